"""Timers: when they fire, and what they cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steertag.family.timer import Timer, TimerBase


def test_a_timer_fires_once_when_its_time_has_come() -> None:
    base, fired = TimerBase(), []
    timer = Timer(base, lambda: fired.append(1))
    timer.mod(5.0)
    assert base.run(4.9) == 0
    assert base.deadline == 5.0
    assert base.run(5.0) == 1
    assert not timer.pending
    assert base.deadline is None
    assert base.run(100.0) == 0
    assert fired == [1]


def test_a_timer_that_is_put_off_fires_later() -> None:
    base, fired = TimerBase(), []
    timer = Timer(base, lambda: fired.append(1))
    timer.mod(1.0)
    timer.mod(3.0)
    base.run(2.0)
    assert not fired
    assert base.deadline == 3.0


def test_a_deleted_timer_does_not_fire() -> None:
    base, fired = TimerBase(), []
    timer = Timer(base, lambda: fired.append(1))
    timer.mod(1.0)
    timer.delete()
    assert base.pending == 0
    assert base.deadline is None
    base.run(2.0)
    assert not fired


def test_the_driver_hears_of_an_earlier_deadline_only() -> None:
    base, heard = TimerBase(), []
    base.on_earlier = lambda: heard.append(base.deadline)
    first, second = Timer(base, lambda: None), Timer(base, lambda: None)
    first.mod(5.0)
    second.mod(9.0)
    second.mod(2.0)
    first.mod(7.0)
    assert heard == [5.0, 2.0]


def test_a_function_may_set_its_timer_again() -> None:
    base = TimerBase()
    times: list[float] = []

    def tick() -> None:
        times.append(len(times))
        if len(times) < 3:
            timer.mod(10.0 * len(times))

    timer = Timer(base, tick)
    timer.mod(1.0)
    for now in (1.0, 10.0, 20.0, 30.0):
        base.run(now)
    assert len(times) == 3
    assert base.pending == 0


operations = st.lists(
    st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 50))), max_size=200
)


@given(operations)
def test_timers_fire_as_a_plain_table_says(program: list[tuple[int, int | None]]) -> None:
    base = TimerBase()
    fired: list[int] = []
    timers = [Timer(base, lambda n=n: fired.append(n)) for n in range(6)]  # type: ignore[misc]
    table: dict[int, float] = {}
    for which, when in program:
        if when is None:
            timers[which].delete()
            table.pop(which, None)
        else:
            timers[which].mod(float(when))
            table[which] = float(when)
        assert base.pending == len(table)
        assert base.deadline == min(table.values(), default=None)
    base.run(25.0)
    assert sorted(fired) == sorted(n for n, when in table.items() if when <= 25.0)


def test_dead_entries_are_cleared_away() -> None:
    base = TimerBase()
    timer = Timer(base, lambda: None)
    for step in range(10_000):
        timer.mod(1e6 - step)
        timer.delete()
    assert len(base._heap) < 200
