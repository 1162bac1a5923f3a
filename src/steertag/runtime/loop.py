"""One loop over the descriptors of a Context, driven by a thread of its own or by its user.

`Loop.run_once` is the loop's body: in a background thread (`start`) it runs by itself; without
one, whoever waits (`wait_for`) or polls runs it. Handlers and what they lead to run with
`Loop.lock` held.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, Protocol

READ: Final = select.EPOLLIN | select.EPOLLRDHUP
WRITE: Final = select.EPOLLOUT
HANGUP: Final = select.EPOLLRDHUP
"""Nothing is to be read, but that the peer has closed is to be known."""
_STALE: Final = 64
"""Timers that no handler has any more, beyond as many as there are others, are cleared away."""
_GLANCES: Final = 64
"""Turns that a busy connection gets before the others are looked at."""
_THREAD_NAME: Final = "steertag-rnic"
_LOG: Final = logging.getLogger("steertag.runtime")


class Handler(Protocol):
    """Something with a descriptor, registered with a Loop."""

    @property
    def deadline(self) -> float | None:
        """When `handle_timer` is to be called; seconds of the loop's clock.

        The loop looks at it when the handler is added and when it is told (`Loop.schedule`), which
        it has to be when the time becomes an earlier one.
        """
        ...

    def fileno(self) -> int: ...

    def pump(self) -> bool:
        """Move what can be moved without waiting; True if anything was."""
        ...

    def block(self, timeout: float | None) -> bool | None:
        """Wait up to `timeout` seconds (None: without end) for what `pump` would move, move it.

        None where it can't.
        """
        ...

    def glance(self, timeout: float | None) -> bool:
        """Move what is there already; with time to wait (`timeout` isn't 0), look a while for it.

        True if anything was moved.
        """
        ...

    def handle_timer(self, now: float) -> None: ...

    def close(self) -> None:
        """Let go of the descriptor, and of the loop."""
        ...


class Registrar(Protocol):
    """Where handlers register: a `Loop`, or a Stack's `Reactor`.

    Attributes:
        clock: seconds, monotonic.
        lock: held while handlers run.
    """

    @property
    def clock(self) -> Callable[[], float]: ...
    @property
    def lock(self) -> AbstractContextManager[object]: ...
    def add(self, handler: Handler, events: int = READ) -> None: ...
    def remove(self, handler: Handler) -> None: ...
    def wait_on(self, handler: Handler, events: int) -> None: ...
    def schedule(self, handler: Handler) -> None: ...
    def wake(self) -> None: ...
    def notify(self) -> None: ...


class Loop:
    """Args:
    clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._events: dict[int, int] = {}
        self._sole: Handler | None = None
        self._busy: Handler | None = None
        self._glances = 0
        self._timers: list[tuple[float, int, Handler]] = []
        self._due: dict[Handler, float] = {}  # of each handler with a timer: which one counts
        self._numbers = itertools.count()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.closed = False
        self.polled = False
        """Somebody waits on `fileno()` and for `deadline`: it is readable when that changes."""
        self.waits = 0

    # -- handlers ------------------------------------------------------------------------------

    def add(self, handler: Handler, events: int = READ) -> None:
        with self.lock:
            self._handlers[handler.fileno()] = handler
            self._events[handler.fileno()] = events
            self._epoll.register(handler.fileno(), events)
            self._find_sole()
            self.schedule(handler)
            self.wake()

    def schedule(self, handler: Handler) -> None:
        """The handler has a deadline now, or an earlier one than before. With the lock held."""
        deadline = handler.deadline
        due = self._due.get(handler)
        if deadline is None or (due is not None and due <= deadline):
            return
        if len(self._timers) > 2 * len(self._due) + _STALE:
            self._timers = [timer for timer in self._timers if self._due.get(timer[2]) == timer[0]]
            heapq.heapify(self._timers)
        self._due[handler] = deadline
        heapq.heappush(self._timers, (deadline, next(self._numbers), handler))
        if self._timers[0][2] is handler:
            self.wake()

    def wait_on(self, handler: Handler, events: int) -> None:
        """Pump the handler on `events` from now on; 0: on nothing, not even a hang-up."""
        fd = handler.fileno()
        before = self._events[fd]
        if events == before:
            return
        self._events[fd] = events
        if not events:
            self._epoll.unregister(fd)
        elif not before:
            self._epoll.register(fd, events)
        else:
            self._epoll.modify(fd, events)

    def remove(self, handler: Handler) -> None:
        with self.lock:
            if self._handlers.pop(handler.fileno(), None) is not None:
                self.wait_on(handler, 0)
                del self._events[handler.fileno()]
                self._due.pop(handler, None)
                self._find_sole()
                if self._busy is handler:
                    self._busy = None

    def handlers(self) -> list[Handler]:
        """What is registered at this moment."""
        return list(self._handlers.values())

    # -- running -------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable where `run_once` would find something; for another loop to wait on."""
        return self._epoll.fileno()

    @property
    def deadline(self) -> float | None:
        """When `run_once` is to be called at the latest; None where that depends on no time."""
        with self.lock:
            timers = self._timers
            while timers:
                due, _, handler = timers[0]
                deadline = handler.deadline if self._due.get(handler) == due else None
                if deadline is not None and deadline <= due:
                    return deadline
                heapq.heappop(timers)
                if self._due.get(handler) == due:
                    del self._due[handler]
                    if deadline is not None:
                        # Put off meanwhile, of which nobody had to tell.
                        self._due[handler] = deadline
                        heapq.heappush(timers, (deadline, next(self._numbers), handler))
            return None

    @property
    def threaded(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        """Run in a background thread from now on."""
        self._thread = threading.Thread(target=self._run, name=_THREAD_NAME, daemon=True)
        self._thread.start()

    def run_once(self, timeout: float | None) -> bool:
        """Move what can be moved; where that is nothing, wait up to `timeout` seconds for more.

        None waits without end. True if anything was moved.
        """
        sole = self._sole
        if self._thread is None and sole is None and self._glance(timeout):
            return True
        if sole is not None and self._thread is None:
            # The usual case of a latency-bound program: no epoll in the way of the socket.
            with self.lock:
                moved = sole.block(timeout)
                if moved is not None:
                    return moved
                if sole.pump():
                    self._fire_timers()
                    return True
                if timeout == 0 and sole.deadline is None:
                    return False
        return self._run_ready(timeout)

    def run_ready(self) -> bool:
        """Move what `fileno()` was readable for, without waiting. True if anything was moved."""
        return self._run_ready(0.0)

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `predicate()` holds, called with the lock held; False after `timeout`.

        With a background thread this sleeps until something changes; without one it runs the
        loop.
        """
        end = None if timeout is None else self.clock() + timeout
        if self._thread is not None and threading.current_thread() is not self._thread:
            with self._changed:
                return self._changed.wait_for(lambda: predicate() or self.closed, timeout)
        while True:
            with self.lock:
                if predicate():
                    return True
            left = None if end is None else end - self.clock()
            if self.closed or (left is not None and left <= 0):
                return False
            self.run_once(left)

    def notify(self) -> None:
        """Something that `wait_for` may be waiting for has changed. With the lock held."""
        self._changed.notify_all()

    def wake(self) -> None:
        """Make a thread that sleeps in `run_once` look again."""
        if (self._thread is not None or self.polled) and not self.closed:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread, if there is one. Handlers are their owners' to close, before this."""
        if self.closed:
            return
        with self.lock:
            self._stopping = True
            self.wake()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()
        with self.lock:
            self.closed = True
            self._epoll.close()
            os.close(self._wake)
            self._changed.notify_all()

    # -- inside --------------------------------------------------------------------------------

    def _glance(self, timeout: float | None) -> bool:
        """Look first where something moved last: there the next message is likely to be.

        So that a connection costs no more for those beside it that are idle; after some turns
        the others are looked at all the same.
        """
        busy = self._busy
        if busy is None or self._glances >= _GLANCES:
            self._glances = 0
            return False
        with self.lock:
            if self._busy is None or not busy.glance(timeout):
                return False
        self._glances += 1
        return True

    def _run_ready(self, timeout: float | None) -> bool:
        with self.lock:
            timeout = self._until_deadline(timeout)
        self.waits += 1
        ready = self._epoll.poll(-1 if timeout is None else timeout)
        moved = False
        for fd, _ in ready:
            with self.lock:
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                    continue
                handler_of_fd = self._handlers.get(fd)
                if handler_of_fd is not None and self._contained(handler_of_fd, handler_of_fd.pump):
                    moved = True
                    self._busy = handler_of_fd
        self._fire_timers()
        return moved

    def _contained(self, handler: Handler, run: Callable[[], bool | None]) -> bool | None:
        """Run a handler's call so that a bug met by one connection ends that one alone.

        In the background thread; a program that drives the loop itself gets the exception.
        """
        if self._thread is None:
            return run()
        try:
            return run()
        except Exception:  # noqa: BLE001 - whatever it is, the others go on
            _LOG.exception("a bug in steertag ends a connection; please report it")
            handler.close()
            return True

    def _find_sole(self) -> None:
        self._sole = next(iter(self._handlers.values())) if len(self._handlers) == 1 else None

    def _run(self) -> None:
        while not self._stopping:
            self.run_once(None)

    def _until_deadline(self, timeout: float | None) -> float | None:
        deadline = self.deadline
        if deadline is None:
            return timeout
        left = max(0.0, deadline - self.clock())
        return left if timeout is None else min(timeout, left)

    def _fire_timers(self) -> None:
        if not self._timers:
            return
        with self.lock:
            now = self.clock()
            expired = []
            while (deadline := self.deadline) is not None and deadline <= now:
                handler = heapq.heappop(self._timers)[2]
                del self._due[handler]
                expired.append(handler)
            for handler in expired:
                fd = handler.fileno()
                self._contained(handler, partial(handler.handle_timer, now))
                if self._handlers.get(fd) is handler:
                    self.schedule(handler)
