"""Devices that carry frames through memory: a link between two, and a loopback."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence

from steertag.device.base import Device
from steertag.device.frame import (
    ARPHRD_ETHER,
    ARPHRD_LOOPBACK,
    CHECKSUM_NONE,
    CHECKSUM_PARTIAL,
    ETH_HLEN,
    NETIF_F_ALL,
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
            a wire, and segments of a TCP flow are joined where they arrive.
        address: a link-layer address, six octets, for a device of Ethernet frames; b"": of packets.
    """

    kind = "veth"

    def __init__(
        self,
        name: str,
        mtu: int = 65536,
        backlog: int | None = None,
        features: int = NETIF_F_ALL,
        address: bytes = b"",
    ) -> None:
        super().__init__(name, mtu, features)
        if address:
            self.type, self.hard_header_len, self.dev_addr = ARPHRD_ETHER, ETH_HLEN, address
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
            frame = Frame(memoryview(octets), CHECKSUM_NONE)
        else:
            frame = Frame(memoryview(octets), CHECKSUM_PARTIAL, offload.gso_type, offload.gso_size)
        peer._queue.append(frame)
        if peer.on_receive is not None:
            peer.on_receive()

    def receive(self) -> Frame | None:
        return self._queue.popleft() if self._queue else None

    def close(self) -> None:
        self._closed = True
        self.up = False
        self._queue.clear()


def memory_link(
    names: tuple[str, str] = ("mem0", "mem1"),
    mtu: int = 65536,
    backlog: int | None = None,
    features: int = NETIF_F_ALL,
    addresses: tuple[bytes, bytes] = (b"", b""),
) -> tuple[MemoryDevice, MemoryDevice]:
    """Two devices: what one transmits, the other receives. Arguments as of `MemoryDevice`."""
    first, second = (
        MemoryDevice(name, mtu, backlog, features, address)
        for name, address in zip(names, addresses, strict=True)
    )
    first.peer, second.peer = second, first
    return first, second


def loopback(name: str = "lo", mtu: int = 65536, features: int = NETIF_F_ALL) -> MemoryDevice:
    """A device that receives what it transmits."""
    device = MemoryDevice(name, mtu, features=features)
    device.type = ARPHRD_LOOPBACK
    device.kind = ""
    return device
