"""Devices that carry frames through memory: a link between two, and a loopback."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence

from steertag.device.base import Device
from steertag.errors import os_error
from steertag.family.skbuff import Buffer


class MemoryDevice(Device):
    """One end of a link. Frames are copied once and arrive in order; none is lost.

    Args:
        backlog: frames that may wait at the far end, above which `transmit` raises ENOBUFS;
            None leaves the limit to the protocols' own flow control.
    """

    def __init__(self, name: str, mtu: int = 65536, backlog: int | None = None) -> None:
        super().__init__(name, mtu)
        self.peer: MemoryDevice = self
        self._backlog = backlog
        self._queue: deque[bytes] = deque()
        self._closed = False

    def transmit(self, parts: Sequence[Buffer]) -> None:
        peer = self.peer
        if self._closed or peer._closed:
            self.stats.tx_dropped += 1
            raise os_error(errno.ENETDOWN)
        if self._backlog is not None and len(peer._queue) >= self._backlog:
            self.stats.tx_dropped += 1
            raise os_error(errno.ENOBUFS)
        frame = b"".join(parts)
        self.count_transmit(len(frame))
        peer._queue.append(frame)
        if peer.on_receive is not None:
            peer.on_receive()

    def receive(self) -> memoryview | None:
        return memoryview(self._queue.popleft()) if self._queue else None

    def close(self) -> None:
        self._closed = True
        self._queue.clear()


def memory_link(
    names: tuple[str, str] = ("mem0", "mem1"), mtu: int = 65536, backlog: int | None = None
) -> tuple[MemoryDevice, MemoryDevice]:
    """Two devices: what one transmits, the other receives."""
    first, second = (MemoryDevice(name, mtu, backlog) for name in names)
    first.peer, second.peer = second, first
    return first, second


def loopback(name: str = "lo", mtu: int = 65536) -> MemoryDevice:
    """A device that receives what it transmits."""
    return MemoryDevice(name, mtu)
