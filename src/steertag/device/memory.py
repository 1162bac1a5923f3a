"""Devices that carry frames through memory: a link between two, and a loopback."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence

from steertag.device.base import Device
from steertag.device.frame import (
    ARPHRD_LOOPBACK,
    CHECKSUM_NONE,
    CHECKSUM_PARTIAL,
    CHECKSUM_UNNECESSARY,
    NETIF_F_ALL,
    NETIF_F_RXCSUM,
    Frame,
    Offload,
)
from steertag.errors import os_error
from steertag.family.skbuff import Buffer


class MemoryDevice(Device):
    """One end of a link. Frames are copied once and arrive in order; none is lost.

    Args:
        backlog: frames that may wait at the far end, above which `transmit` raises ENOBUFS;
            None leaves the limit to the protocols' own flow control.
        features: NETIF_F_*. With all of them, the default, super-segments cross the link whole and
            checksums are not computed at all, as on the kernel's veth; with 0 every frame is as on
            a wire.
    """

    def __init__(
        self,
        name: str,
        mtu: int = 65536,
        backlog: int | None = None,
        features: int = NETIF_F_ALL,
    ) -> None:
        super().__init__(name, mtu, features)
        self.peer: MemoryDevice = self
        self._backlog = backlog
        self._queue: deque[Frame] = deque()
        self._closed = False

    def transmit(self, parts: Sequence[Buffer], offload: Offload | None = None) -> None:
        peer = self.peer
        if self._closed or peer._closed:
            self.stats.tx_dropped += 1
            raise os_error(errno.ENETDOWN)
        if self._backlog is not None and len(peer._queue) >= self._backlog:
            self.stats.tx_dropped += 1
            raise os_error(errno.ENOBUFS)
        octets = b"".join(parts)
        self.count_transmit(len(octets), offload)
        if offload is None:
            # A checksum that needn't be verified is one that the sender would not have computed.
            known = self.type == ARPHRD_LOOPBACK and self.features & NETIF_F_RXCSUM
            frame = Frame(memoryview(octets), CHECKSUM_UNNECESSARY if known else CHECKSUM_NONE)
        else:
            frame = Frame(memoryview(octets), CHECKSUM_PARTIAL, offload.gso_type, offload.gso_size)
        peer._queue.append(frame)
        if peer.on_receive is not None:
            peer.on_receive()

    def receive(self) -> Frame | None:
        return self._queue.popleft() if self._queue else None

    def close(self) -> None:
        self._closed = True
        self._queue.clear()


def memory_link(
    names: tuple[str, str] = ("mem0", "mem1"),
    mtu: int = 65536,
    backlog: int | None = None,
    features: int = NETIF_F_ALL,
) -> tuple[MemoryDevice, MemoryDevice]:
    """Two devices: what one transmits, the other receives."""
    first, second = (MemoryDevice(name, mtu, backlog, features) for name in names)
    first.peer, second.peer = second, first
    return first, second


def loopback(name: str = "lo", mtu: int = 65536) -> MemoryDevice:
    """A device that receives what it transmits."""
    device = MemoryDevice(name, mtu)
    device.type = ARPHRD_LOOPBACK
    return device
