"""Waiting for a descriptor, with a deadline."""

from __future__ import annotations

import errno
import math
import select
import threading
import time
from collections.abc import Callable

from steertag.errors import os_error

READ = select.POLLIN
WRITE = select.POLLOUT


def deadline_after(timeout: float | None) -> float | None:
    """When `timeout` seconds from now are over; None waits for ever."""
    return None if timeout is None else time.monotonic() + timeout


def wait_fd(fd: int, events: int, deadline: float | None) -> int:
    """Wait until one of `events` (POLL* bits), an error or a hang-up holds; returns which do.

    Signals are handled while waiting, and the wait goes on for what is left of the time.

    Raises:
        TimeoutError: the deadline passed first.
        OSError: EBADF, the descriptor is closed.
    """
    poller = select.poll()
    poller.register(fd, events)
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left < 0:
        left = 0.0
    # poll counts in milliseconds and rounds down: rounded up here, so that it is not in vain.
    ready = poller.poll(None if left is None else math.ceil(left * 1000))
    if not ready:
        raise TimeoutError("timed out")
    mask = ready[0][1]
    if mask & select.POLLNVAL:
        raise os_error(errno.EBADF)
    return mask


def wait_until(
    callbacks: list[Callable[[int], None]], done: Callable[[], bool], deadline: float | None
) -> bool:
    """Wait until `done()`, looking again whenever one calls what it adds to `callbacks`.

    Returns False if the deadline passed first.
    """
    event = threading.Event()

    def news(mask: int) -> None:
        event.set()

    callbacks.append(news)
    try:
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            event.wait(left)
            event.clear()
        return True
    finally:
        callbacks.remove(news)
