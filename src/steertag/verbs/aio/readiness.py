"""Waiting until a descriptor is readable."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Readable:
    """Tasks that wait until a descriptor is readable. It is watched only while there are some."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Raises what `close` was given."""
        future = self._loop.create_future()
        if not self._waiting:
            self._loop.add_reader(self._fd, self._wake)
        self._waiting.add(future)
        try:
            await future
        finally:
            if future in self._waiting:
                self._waiting.remove(future)
                if not self._waiting:
                    self._loop.remove_reader(self._fd)

    def close(self, reason: OSError) -> None:
        for future in self._take():
            future.set_exception(reason)

    def _wake(self) -> None:
        for future in self._take():
            future.set_result(None)

    def _take(self) -> list[asyncio.Future[None]]:
        waiting, self._waiting = self._waiting, set()
        if waiting:
            self._loop.remove_reader(self._fd)
        return [future for future in waiting if not future.done()]


async def next_of(fd: int, take: Callable[[], _T]) -> _T:
    """What `take` gives, tried again whenever `fd` is readable.

    `take` raises TimeoutError or BlockingIOError while there is nothing. Several tasks may wait for
    one descriptor.
    """
    own = os.dup(fd)  # an event loop has one watcher for each descriptor
    readable = Readable(own)
    try:
        while True:
            try:
                return take()
            except (TimeoutError, BlockingIOError):
                await readable.wait()
    finally:
        os.close(own)
