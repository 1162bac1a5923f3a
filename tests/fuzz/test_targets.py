"""The fuzzer's target, without the fuzzer."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import one_input, seeds
from tests.inet.states import STATES

record = st.tuples(st.integers(0, 4), st.binary(max_size=60)).map(
    lambda pair: bytes((pair[0], len(pair[1]))) + pair[1]
)


@given(first=st.integers(0, 255), records=st.lists(record, max_size=20))
@settings(max_examples=100)
def test_no_input_raises_hangs_or_grows(first: int, records: list[bytes]) -> None:
    one_input(bytes((first,)) + b"".join(records))


@pytest.mark.parametrize("octets", seeds())
def test_what_the_fuzzer_begins_with_does_no_harm(octets: bytes) -> None:
    one_input(octets)


@pytest.mark.parametrize("state", range(len(STATES)))
def test_segments_near_a_connections_numbers_do_no_harm_in_any_state(state: int) -> None:
    rng = random.Random(state)
    for _ in range(20):
        records = bytearray((state,))
        for _ in range(12):
            near = rng.choice([0, 1, 2, 100, 3001]).to_bytes(2, "big")
            octets = bytes((rng.choice([16, 17, 24, 2, 18, 4, 20, 48]),)) + near
            octets += rng.choice([0, 1, 2, 3001]).to_bytes(2, "big") + rng.randbytes(5)
            records += bytes((1, len(octets))) + octets
        one_input(bytes(records))
