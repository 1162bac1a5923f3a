"""The fuzzer's target of SDP, without the fuzzer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steertag.wire import sdp
from tests.fuzz.sdp_targets import Play, one_input, seeds

record = st.tuples(st.integers(0, 7), st.binary(max_size=40)).map(
    lambda pair: bytes((pair[0], len(pair[1]))) + pair[1]
)


@given(choice=st.integers(0, 255), records=st.lists(record, max_size=30))
@settings(max_examples=150, deadline=None)
def test_no_peer_raises_hangs_or_grows(choice: int, records: list[bytes]) -> None:
    one_input(bytes((choice,)) + b"".join(records))


@pytest.mark.parametrize("number", range(len(seeds())))
def test_what_the_fuzzer_begins_with_does_no_harm(number: int) -> None:
    one_input(seeds()[number])


@pytest.mark.parametrize("mid", sorted(sdp.NAMES))
def test_each_message_is_taken_or_resets_the_stream_in_every_tuning(mid: int) -> None:
    for choice in range(256):
        for body in (b"", sdp.emit_u32(1), bytes(16), bytes(20)):
            play = Play(choice)
            play.program_sends(b"...")
            play.say(mid, body)
            play.hostile.check()
            play.finish()


def test_memory_that_is_there_is_read_and_written_by_what_the_fuzzer_plays() -> None:
    """The target comes past the first checks: else it would find nothing."""
    play = Play(1)
    play.step(2, b"\x10\0\0\0")
    play.step(5, b"....")
    assert play.victim.counters.rx_read_bytes
    play = Play(1)
    play.step(3, b"\x10\0\0\0")
    play.step(4, b"..")
    assert play.victim.counters.tx_write_bytes


def test_what_is_fetched_in_small_pieces_takes_no_region_for_each() -> None:
    play = Play(0b0100_0000)  # everything is read ahead
    play.step(2, b"\0\xff")
    regions = play.victim.regions
    for _ in range(60):
        play.step(2, b"\0\xff")
    assert play.victim.engine.unread == 61 * 256
    assert play.victim.regions <= regions
