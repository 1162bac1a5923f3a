"""Large buffers that are used again and again (Linux: page_pool).

Fresh memory costs more than what is done with it: the kernel has to find, clear and map each page,
for a super-segment of 64 KiB several times what copying it takes. A buffer that was in use a moment
ago costs nothing, and is in the processor's cache.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Final

_LOOKS: Final = 4
"""Buffers looked at in one `take`, in the hope that nobody holds them any more."""


class BufferPool:
    """Buffers of one size. One is free again as soon as nobody refers to it, or to a view of it;
    nobody has to say so.

    Args:
        size: octets of each.
        most: buffers that are remembered; where more are in use at once, the rest is ordinary
            memory.
    """

    __slots__ = ("_free", "_most", "_used", "size")

    def __init__(self, size: int, most: int = 256) -> None:
        self.size = size
        self._most = most
        self._used: deque[bytearray] = deque()
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        """A buffer with anything in it, the caller's as long as it, or a view of it, is held."""
        used, free = self._used, self._free
        for _ in range(_LOOKS):
            if not used:
                break
            if _references(used[0]) > _ALONE:
                used.rotate(-1)
                break
            free.append(used.popleft())
        buffer = free.pop() if free else bytearray(self.size)
        if len(used) < self._most:
            used.append(buffer)
        return buffer

    def __len__(self) -> int:
        """Buffers that are remembered."""
        return len(self._used) + len(self._free)


def _references(buffer: bytearray) -> int:
    return _count(buffer)


def _many(_: object) -> int:
    return 1 << 30


# An interpreter that doesn't count references never finds a buffer free: they are made anew.
_count = getattr(sys, "getrefcount", _many)


def _references_of_one_alone() -> int:
    queue = deque([bytearray(1)])
    return _references(queue[0])


_ALONE: Final = _references_of_one_alone()
