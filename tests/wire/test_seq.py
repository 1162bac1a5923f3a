"""Sequence arithmetic across the wrap-around."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steertag.wire import seq

numbers = st.integers(0, 2**32 - 1)
steps = st.integers(1, 2**31 - 1)


@given(numbers, steps)
def test_what_is_added_lies_after(start: int, step: int) -> None:
    later = seq.add(start, step)
    assert seq.after(later, start)
    assert seq.before(start, later)
    assert not seq.before(later, start)
    assert seq.diff(later, start) == step
    assert seq.diff(start, later) == -step


@given(numbers)
def test_a_number_is_neither_before_nor_after_itself(number: int) -> None:
    assert not seq.before(number, number)
    assert not seq.after(number, number)


@given(numbers, st.integers(0, 2**30), st.integers(0, 2**30))
def test_between_includes_its_ends(low: int, to_x: int, to_high: int) -> None:
    x = seq.add(low, to_x)
    assert seq.between(low, x, seq.add(x, to_high))
    if to_high:
        assert not seq.between(seq.add(x, 1), x, seq.add(x, 1 + to_high))
