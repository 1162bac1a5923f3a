"""Buffers are used again once nobody can see them any more, and not before."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from steertag.family.pool import BufferPool


def test_a_buffer_that_nobody_holds_is_given_again() -> None:
    pool = BufferPool(64)
    first = id(pool.take())
    assert id(pool.take()) == first
    assert len(pool) == 1


def test_a_buffer_with_a_view_is_left_alone() -> None:
    pool = BufferPool(64)
    buffer = pool.take()
    view = memoryview(buffer)[10:20]
    del buffer
    view[:] = b"0123456789"
    for _ in range(10):
        other = pool.take()
        other[:] = bytes(64)
        del other
    assert bytes(view) == b"0123456789"


def test_no_more_than_the_limit_is_remembered() -> None:
    pool = BufferPool(64, most=4)
    held = [pool.take() for _ in range(20)]
    assert len(pool) == 4
    assert len({id(buffer) for buffer in held}) == 20


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_what_is_held_never_changes(seed: int, most: int) -> None:
    rng = random.Random(seed)
    pool = BufferPool(16, most=most)
    held: list[tuple[memoryview, bytes]] = []
    for number in range(200):
        if held and rng.random() < 0.5:
            held.pop(rng.randrange(len(held)))
        else:
            octets = number.to_bytes(16, "big")
            view = memoryview(pool.take())
            view[:] = octets
            held.append((view[: rng.randrange(1, 17)], octets))
        assert all(bytes(view) == octets[: len(view)] for view, octets in held)
