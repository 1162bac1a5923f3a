"""Timers of a Stack (Linux: struct timer_list, mod_timer, del_timer).

Nothing here waits or reads a clock: whoever drives the Stack asks for `deadline`, and calls `run`
when it has come. A timer that is put off, as most are, again and again, costs one assignment: the
heap finds out when the earlier time comes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Final

_STALE: Final = 64
"""Dead entries, beyond as many as there are live ones, are cleared away."""


class Timer:
    """One timer of a TimerBase, not set.

    Attributes:
        expires: when `function()` is to be called, seconds of the Stack's clock; None: not set.
    """

    __slots__ = ("_base", "_queued", "expires", "function")

    def __init__(self, base: TimerBase, function: Callable[[], None]) -> None:
        self._base = base
        self._queued: float | None = None
        self.function = function
        self.expires: float | None = None

    @property
    def pending(self) -> bool:
        return self.expires is not None

    def mod(self, expires: float) -> None:
        """Set, or set anew (mod_timer). With the Stack's lock held."""
        if self.expires is None:
            self._base.pending += 1
        self.expires = expires
        queued = self._queued
        if queued is None or expires < queued:
            self._queued = expires
            self._base.push(expires, self)

    def delete(self) -> None:
        """Not set any more (del_timer)."""
        if self.expires is not None:
            self.expires = None
            self._base.pending -= 1


class TimerBase:
    """The timers of one Stack. Guarded by its lock.

    Attributes:
        pending: timers that are set.
        on_earlier: called when `deadline` has become an earlier one; the driver's.
    """

    def __init__(self) -> None:
        self.pending = 0
        self.on_earlier: Callable[[], None] | None = None
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def push(self, expires: float, timer: Timer) -> None:
        heap = self._heap
        if len(heap) > 2 * self.pending + _STALE:
            self._clear_stale()
        earliest = heap[0][0] if heap else None
        heapq.heappush(self._heap, (expires, next(self._numbers), timer))
        if (earliest is None or expires < earliest) and self.on_earlier is not None:
            self.on_earlier()

    @property
    def deadline(self) -> float | None:
        """When `run` is to be called; None while no timer is set."""
        heap = self._heap
        while heap:
            queued, _, timer = heap[0]
            expires = timer.expires if timer._queued == queued else None
            if expires == queued:
                return queued
            heapq.heappop(heap)
            if timer._queued == queued:
                timer._queued = expires
                if expires is not None:  # put off meanwhile
                    heapq.heappush(heap, (expires, next(self._numbers), timer))
        return None

    def due(self, now: float) -> bool:
        """Whether `run` may find something: cheap, and True as well for a timer put off since."""
        heap = self._heap
        return bool(heap) and heap[0][0] <= now

    def run(self, now: float) -> int:
        """Call the functions of those that have expired, earliest first; returns how many."""
        fired = 0
        while (deadline := self.deadline) is not None and deadline <= now:
            timer = heapq.heappop(self._heap)[2]
            timer._queued = timer.expires = None
            self.pending -= 1
            fired += 1
            timer.function()
        return fired

    def _clear_stale(self) -> None:
        live = {entry[2]: entry[2].expires for entry in self._heap if entry[2].expires is not None}
        self._heap[:] = [(expires, next(self._numbers), timer) for timer, expires in live.items()]
        heapq.heapify(self._heap)
        for timer, expires in live.items():
            timer._queued = expires
