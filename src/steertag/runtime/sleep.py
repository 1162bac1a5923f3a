"""How a thread sleeps while it waits for news of a socket, and how it is roused."""

from __future__ import annotations

import math
import os
import select
import threading
from collections.abc import Callable
from typing import Final

from steertag.family.sock import POLLRDHUP
from steertag.family.socket import POLL_LOOK
from steertag.family.stack import Stack

READ: Final = select.POLLIN
WRITE: Final = select.POLLOUT
NEVER: Final = math.inf
"""When a thread wakes that only others rouse."""
_ALWAYS: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL | POLL_LOOK
_NEWS: Final = {
    READ: READ | POLLRDHUP | _ALWAYS,
    WRITE: WRITE | _ALWAYS,
    READ | WRITE: READ | WRITE | POLLRDHUP | _ALWAYS,
}


class EventFd:
    """An eventfd, open as long as somebody refers to it."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return  # somebody else did

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        _close(self.fd)


class Sleeper:
    """A thread that sleeps, and how it is roused: in an epoll by an eventfd, or on a semaphore.

    Attributes:
        asleep: it sleeps, or is about to; set and looked at with the Stack's lock held.
        wake_at: when it will wake by itself.
    """

    __slots__ = ("_eventfd", "_semaphore", "asleep", "wake_at")

    def __init__(self) -> None:
        self.asleep = False
        self.wake_at = NEVER
        self._eventfd: EventFd | None = None
        self._semaphore: threading.Lock | None = None

    def prepare(self, until: float, eventfd: EventFd | None = None) -> None:
        """Before sleeping, with the Stack's lock held."""
        self._eventfd = eventfd
        if eventfd is None and self._semaphore is None:
            self._semaphore = threading.Lock()
            self._semaphore.acquire()
        self.wake_at = until
        self.asleep = True

    def rouse(self) -> None:
        """With the Stack's lock held."""
        if not self.asleep:
            return
        self.asleep = False
        if self._eventfd is not None:
            self._eventfd.set()
        elif self._semaphore is not None:
            self._semaphore.release()

    def sleep(self, stack: Stack, timeout: float | None) -> None:
        """On the semaphore. Without the lock held."""
        semaphore = self._semaphore
        assert semaphore is not None  # made by `prepare`
        woken = False
        try:
            woken = semaphore.acquire(True, -1 if timeout is None else max(0.0, timeout))
        finally:
            if not woken:
                with stack.lock:
                    if self.asleep:
                        self.asleep = False
                    else:  # roused at this very moment
                        semaphore.acquire(False)


class Waiter(Sleeper):
    """A thread in a blocking call on one socket.

    Attributes:
        news: there was some for it since it began to wait.
    """

    __slots__ = ("_mask", "news")

    def __init__(self, events: int) -> None:
        super().__init__()
        self.news = False
        self._mask = _NEWS[events]

    def wake(self, mask: int) -> None:
        """The socket's call-back: `mask` is news. With the Stack's lock held."""
        if mask & self._mask:
            self.news = True
            self.rouse()
