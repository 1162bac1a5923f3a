"""A Stack's own loop of streams: handlers as `Loop` has them, with the Stack's lock and timers.

`Loop` has a lock and a thread of its own; a family whose connections run over streams needs
neither: its handlers run with the Stack's lock held, and whoever waits on the Stack drives them
(`NetDriver`), as it does devices. The descriptors are in an epoll of its own, which the driver
sees as one more; who waits for one connection alone looks at that first (`Proto.busy_loop`).

A stream of a family of this process has no need of a descriptor: it tells of its news by itself
(`attach`, `news`), and is pumped as soon as the lock is let go.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Final

from steertag.family.timer import Timer
from steertag.runtime.loop import READ, Handler
from steertag.runtime.netdev import ensure_driver

if TYPE_CHECKING:
    from steertag.family.lock import StackLock
    from steertag.family.stack import Stack

_LOG: Final = logging.getLogger("steertag.runtime")
_TURN: Final = 64
"""Handlers pumped in one turn."""
_IDLE: Final = 5.0
"""Seconds without a handler after which it isn't driven any more."""


class Reactor:
    """Args:
    stack: whose lock, clock and timers it uses, and whose driver drives it.
    name: for the log.
    """

    def __init__(self, stack: Stack, name: str) -> None:
        self.stack = stack
        self.name = name
        self.lock: StackLock = stack.lock
        self.clock: Callable[[], float] = stack.clock
        self._epoll: select.epoll | None = None
        self._handlers: dict[int, Handler] = {}
        self._events: dict[int, int] = {}
        self._timers: dict[Handler, Timer] = {}
        self._masks: dict[int, Callable[[], int]] = {}
        self._ready: dict[int, None] = {}
        self._raised = False
        self._idle = Timer(stack.timers, self._leave)
        self._numbers = count(-2, -1)

    # -- handlers ------------------------------------------------------------------------------

    def add(self, handler: Handler, events: int = READ) -> None:
        with self.lock:
            fd = handler.fileno()
            self._handlers[fd] = handler
            self._events[fd] = 0
            self.wait_on(handler, events)
            self.schedule(handler)

    def remove(self, handler: Handler) -> None:
        with self.lock:
            fd = handler.fileno()
            if self._handlers.get(fd) is not handler:
                return
            self.wait_on(handler, 0)
            del self._handlers[fd], self._events[fd]
            self._ready.pop(fd, None)
            timer = self._timers.pop(handler, None)
            if timer is not None:
                timer.delete()
            if not self._handlers and self._epoll is not None:
                self._idle.mod(self.clock() + _IDLE)

    def wait_on(self, handler: Handler, events: int) -> None:
        """Pump the handler on `events` from now on; 0: on nothing, not even a hang-up."""
        fd = handler.fileno()
        before = self._events[fd]
        if events == before:
            return
        self._events[fd] = events
        if fd < 0:
            if events:
                self.news(fd)
            return
        epoll = self._epoll
        if epoll is None:
            if not events:
                return
            epoll = self._open()
        if not events:
            epoll.unregister(fd)
        elif not before:
            epoll.register(fd, events)
        else:
            epoll.modify(fd, events)

    def schedule(self, handler: Handler) -> None:
        """The handler has a deadline now, or an earlier one than before. With the lock held."""
        deadline = handler.deadline
        timer = self._timers.get(handler)
        if deadline is None:
            if timer is not None:
                timer.delete()
            return
        if timer is None:
            timer = Timer(self.stack.timers, lambda: self._expired(handler))
            self._timers[handler] = timer
        timer.mod(deadline)

    def wake(self) -> None:
        """Nobody sleeps in a reactor: its driver's epoll sees what was registered."""

    def notify(self) -> None:
        """Nobody waits for a reactor: sockets tell of their news themselves."""

    def handlers(self) -> list[Handler]:
        """What is registered at this moment."""
        return list(self._handlers.values())

    # -- streams of this process ---------------------------------------------------------------

    def attach(self, mask: Callable[[], int]) -> int:
        """A number in the place of a descriptor, for a stream that tells its `news` itself.

        Args:
            mask: POLL* bits that hold at the moment.
        """
        number = next(self._numbers)
        self._masks[number] = mask
        return number

    def detach(self, number: int) -> None:
        """The stream is closed."""
        self._masks.pop(number, None)

    def news(self, number: int) -> None:
        """Pump the stream's handler when the Stack's lock is let go. With it held."""
        if number in self._handlers:
            self._ready[number] = None
            if not self._raised:
                self._raised = True
                self.lock.raise_work(self._run_ready)

    def _run_ready(self) -> None:
        self._raised = False
        ready, self._ready = self._ready, {}
        for number in ready:
            events = self._events.get(number, 0)
            mask = self._masks.get(number)
            if events and mask is not None and mask() & (events | select.POLLERR | select.POLLHUP):
                handler = self._handlers[number]
                if self._pump(handler) and self._handlers.get(number) is handler:
                    self.news(number)  # there may be more

    # -- driving -------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable where `turn` would find something."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def turn(self) -> bool:
        """Move what can be moved without waiting; True if anything was. With the lock held."""
        if self._epoll is None:
            return False
        moved = False
        for fd, _ in self._epoll.poll(0, _TURN):
            handler = self._handlers.get(fd)
            if handler is not None and self._pump(handler):
                moved = True
        return moved

    def close(self) -> None:
        """In the child of a fork, or at the end: every handler is closed."""
        # First: what is taken out of it in a child is taken out of the parent's, which is the same.
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            epoll.close()
        for handler in self.handlers():
            handler.close()
        self._idle.delete()

    # -- inside --------------------------------------------------------------------------------

    def _open(self) -> select.epoll:
        self._epoll = epoll = select.epoll()
        ensure_driver(self.stack).drive(self)
        return epoll

    def _leave(self) -> None:
        """Nobody has had a use for it for a while: the driver may have nothing to do."""
        epoll = self._epoll
        if not self._handlers and epoll is not None:
            ensure_driver(self.stack).leave(self)
            self._epoll = None
            epoll.close()

    def _pump(self, handler: Handler) -> bool:
        """A bug met by one connection ends that one alone."""
        try:
            return handler.pump()
        except Exception:  # noqa: BLE001 - whatever it is, the others go on
            _LOG.exception("a bug in steertag ends a connection; please report it")
            handler.close()
            return True

    def _expired(self, handler: Handler) -> None:
        now = self.clock()
        deadline = handler.deadline
        if deadline is not None and deadline > now:
            self._timers[handler].mod(deadline)  # put off meanwhile, of which nobody had to tell
            return
        try:
            handler.handle_timer(now)
        except Exception:  # noqa: BLE001 - whatever it is, the others go on
            _LOG.exception("a bug in steertag ends a connection; please report it")
            handler.close()
        if self._handlers.get(handler.fileno()) is handler:
            self.schedule(handler)
