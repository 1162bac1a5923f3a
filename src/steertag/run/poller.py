"""The data process's one loop: descriptors, news of the Stack's sockets, timers.

Descriptors are polled edge-triggered: who registers one is told of changes, and moves all that can
be moved, or asks to be called again (`again`). Who makes descriptors does it when called again: no
event of this turn is about a number that was somebody else's a moment ago. Everything is called
with the Stack's lock held, so that a family is entered without taking it anew for each message;
what that leaves to the lock's holder is done before the loop sleeps.
"""

from __future__ import annotations

import heapq
import logging
import select
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Final, Protocol

from steertag.family.stack import Stack
from steertag.runtime.netdev import Lead, ensure_driver

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
PRI: Final = select.EPOLLPRI
ERR: Final = select.EPOLLERR
HUP: Final = select.EPOLLHUP
RDHUP: Final = select.EPOLLRDHUP
_EDGE: Final = IN | OUT | PRI | RDHUP | select.EPOLLET
_EVENTS: Final = 256
_ROUNDS: Final = 4
"""How often news that follow from news are looked at before descriptors have their turn."""
_LOG: Final = logging.getLogger("steertag.run")
_BUG: Final = "a bug in steertag; please report it"


class Runnable(Protocol):
    """What can be asked to be called again."""

    marked: bool

    def run(self) -> None: ...


class Poller:
    """Args:
    stack: whose sockets are used, and which is driven.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.clock = time.monotonic
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[int], None]] = {}
        self._ready: list[Runnable] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()
        self._thread = threading.get_ident()
        self._lead: Lead | None = None
        self.running = True

    # -- descriptors ---------------------------------------------------------------------------

    def register(self, fd: int, call: Callable[[int], None]) -> None:
        """Have `call(events)` called when the descriptor's state changes, and once at first."""
        self._calls[fd] = call
        self._epoll.register(fd, _EDGE)

    def register_level(self, fd: int, call: Callable[[int], None], events: int = IN) -> None:
        """Have it called as long as `events` hold."""
        self._calls[fd] = call
        self._epoll.register(fd, events)

    def modify_level(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        if self._calls.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # -- news and timers -----------------------------------------------------------------------

    def again(self, what: Runnable) -> None:
        """Call `what.run()` once more before the loop sleeps. With the Stack's lock held."""
        if not what.marked:
            what.marked = True
            self._ready.append(what)
            if self._thread != threading.get_ident() and self._lead is not None:
                self._lead.rouse()  # another thread of a family's brought the news

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._serial), call))

    # -- running -------------------------------------------------------------------------------

    def drive(self) -> None:
        """Drive the Stack's devices and timers, too: for families that live in this process."""
        if self._lead is None:
            self._lead = lead = ensure_driver(self.stack).lead()
            self._epoll.register(lead.fileno(), IN)

    def run(self) -> None:
        """Until `running` is cleared."""
        self._thread = threading.get_ident()
        while self.running:
            self.turn(None)

    def turn(self, limit: float | None) -> None:
        """Sleep at most `limit` seconds, and do what there is to do."""
        lead = self._lead
        timeout = None if lead is None else lead.before()
        timeout = self._sooner(timeout, limit)
        events = self._epoll.poll(timeout, _EVENTS)
        lead_fd = -1
        if lead is not None:
            lead_fd = lead.fileno()
            lead.asleep = False
        driven = False
        lock = self.stack.lock
        with lock:
            calls = self._calls
            rest = iter(events)
            while True:
                try:
                    for fd, mask in rest:
                        if fd == lead_fd:
                            driven = True
                        elif (call := calls.get(fd)) is not None:
                            call(mask)
                    break
                except Exception:  # noqa: BLE001 - a bug met by one socket costs that one alone
                    _LOG.exception(_BUG)
            if self._timers:
                self._run_timers()
        if lead is not None and (driven or self.stack.timers.due(self.clock())):
            lead.turn()
        for _ in range(_ROUNDS):
            if not self._ready:
                break
            with lock:
                ready, self._ready = self._ready, []
                for what in ready:
                    what.marked = False
                    try:
                        what.run()
                    except Exception:  # noqa: BLE001 - as above
                        _LOG.exception(_BUG)

    def _sooner(self, timeout: float | None, limit: float | None) -> float | None:
        if self._ready:
            return 0.0
        if self._timers:
            until = max(0.0, self._timers[0][0] - self.clock())
            limit = until if limit is None else min(limit, until)
        if timeout is None:
            return limit
        return timeout if limit is None else min(timeout, limit)

    def _run_timers(self) -> None:
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        self._epoll.close()
