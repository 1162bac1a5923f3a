"""The Device interface, and how a protocol receives from one (Linux: net_device, NAPI)."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from steertag.device.ack_filter import AckFilter
from steertag.device.frame import (
    ARPHRD_ETHER,
    ARPHRD_LOOPBACK,
    ARPHRD_NONE,
    CHECKSUM_NONE,
    CHECKSUM_PARTIAL,
    CHECKSUM_UNNECESSARY,
    ETH_HLEN,
    ETH_P_IP,
    ETH_P_IPV6,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    MAX_SUPER_FRAME,
    NETIF_F_ALL,
    NETIF_F_GSO_UDP_L4,
    NETIF_F_HW_CSUM,
    NETIF_F_RXCSUM,
    NETIF_F_TSO,
    NETIF_F_TSO6,
    Frame,
    Offload,
)
from steertag.device.gro import Gro
from steertag.errors import ProtocolError, WireError, os_error
from steertag.family.skbuff import Buffer
from steertag.family.stack import NETDEV_REGISTER, NETDEV_UNREGISTER, Stack

__all__ = [
    "ARPHRD_ETHER",
    "ARPHRD_LOOPBACK",
    "ARPHRD_NONE",
    "CHECKSUM_NONE",
    "CHECKSUM_PARTIAL",
    "CHECKSUM_UNNECESSARY",
    "ETH_HLEN",
    "ETH_P_IP",
    "ETH_P_IPV6",
    "GSO_ECN",
    "GSO_NONE",
    "GSO_TCPV4",
    "GSO_TCPV6",
    "GSO_UDP_L4",
    "MAX_SUPER_FRAME",
    "NETIF_F_ALL",
    "NETIF_F_GSO_UDP_L4",
    "NETIF_F_HW_CSUM",
    "NETIF_F_RXCSUM",
    "NETIF_F_TSO",
    "NETIF_F_TSO6",
    "Device",
    "DeviceStats",
    "Frame",
    "Offload",
    "netdev_poll",
    "register_netdevice",
    "unregister_netdevice",
]


_LAST_INDEX: Final = "netdev.ifindex"

TURN_OCTETS: Final = 1 << 19
"""Of frames taken in one turn: whoever reads them finds them in the processor's cache."""


@dataclass(slots=True)
class DeviceStats:
    """What passed, in frames and octets (rtnl_link_stats64). A super-segment is one frame.

    Attributes:
        rx_errors: received frames that were not valid.
        rx_dropped: those that came while the device was down.
        multicast: received frames whose link-layer address is a group's.
        tx_errors: frames that could not be sent as they were.
        tx_dropped: those that found it down, or full.
    """

    rx_packets: int = 0
    rx_bytes: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    multicast: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


class Device(ABC):
    """Something that carries frames. It never waits.

    Attributes:
        name: as listed.
        mtu: most octets of an IP packet; a link-layer header (`hard_header_len`) comes on top.
        type: ARPHRD_*. dev_addr: its link-layer address, b"" without.
        kind: of which kind it is, as `ip -d link` has it: "tun", "veth"; "" for none of its own.
        features: NETIF_F_*: what `transmit` does by itself; `dev_queue_xmit` does the rest.
        gro: where the device doesn't verify checksums, its segments are put together (gro.py), and
            acknowledgements that say less than the next one are left out (ack_filter.py).
        ifindex: its number in the Stack; 0 before it is registered.
        up: frames are carried.
        stats: counters.
        on_receive: called when `receive` has something to give; may be called from any thread.
        turn: takes a turn's frames in; set by `register_netdevice`.
    """

    gro: bool = True
    kind: str = ""
    type: int = ARPHRD_NONE
    hard_header_len: int = 0
    dev_addr: bytes = b""

    def __init__(self, name: str, mtu: int, features: int = 0) -> None:
        self.name = name
        self.mtu = mtu
        self.features = features
        self.ifindex = 0
        self.up = True
        self.stats = DeviceStats()
        self.on_receive: Callable[[], None] | None = None
        self.turn: Callable[[], bool] | None = None

    @abstractmethod
    def transmit(self, parts: Sequence[Buffer], offload: Offload | None = None) -> None:
        """Send one frame, given in parts, which the caller may reuse at once.

        `offload` asks for no more than `features` has.

        Raises:
            OSError: EMSGSIZE, longer than the mtu; ENOBUFS, no room now; ENETDOWN, closed.
        """

    @abstractmethod
    def receive(self) -> Frame | None:
        """The next frame; None if there is none."""

    def fileno(self) -> int:
        """Readable when `receive` has something; -1: none, `on_receive` is called."""
        return -1

    @abstractmethod
    def close(self) -> None:
        """Carry no more frames."""

    def check_length(self, length: int, offload: Offload | None = None) -> None:
        """Raises EMSGSIZE for a frame that is longer than the device carries."""
        most = MAX_SUPER_FRAME if offload is not None and offload.gso_size else self.mtu
        if length > most + self.hard_header_len:
            self.stats.tx_errors += 1
            raise os_error(errno.EMSGSIZE, f"{length} octets, and {self.name} carries {most}")

    def count_transmit(self, length: int, offload: Offload | None = None) -> None:
        """Check a frame's length and count it. Raises EMSGSIZE."""
        self.check_length(length, offload)
        self.stats.tx_packets += 1
        self.stats.tx_bytes += length


def register_netdevice(
    stack: Stack,
    device: Device,
    receive: Callable[[Frame], None],
    complete: Callable[[], None] | None = None,
) -> None:
    """Have `receive(frame)` called for every frame, with the Stack's lock held.

    A turn takes at most sysctl net.core.netdev_budget frames, or TURN_OCTETS, so that a flood does
    not keep the Stack from its other work; `complete()` is called when it is over (napi_complete).
    Where the device verifies no checksums (NETIF_F_RXCSUM), segments of a TCP flow that came in one
    turn are joined before. A frame that is not valid (WireError, ProtocolError) is counted in
    `rx_errors`.

    Raises:
        OSError: EEXIST, a device of that name is there.
    """
    stats = device.stats
    budget = stack.sysctl.table("net.core.netdev_budget").data
    ethernet = device.type == ARPHRD_ETHER

    def contained(frame: Frame) -> None:
        try:
            receive(frame)
        except (WireError, ProtocolError):
            stats.rx_errors += 1

    aggregate = not device.features & NETIF_F_RXCSUM and device.gro
    gro = Gro(contained, device.hard_header_len) if aggregate else None
    acks = AckFilter(gro.receive if gro is not None else contained, device.hard_header_len)
    take = acks.receive if device.gro else contained

    def turn() -> bool:
        taken = 0
        most = stats.rx_bytes + TURN_OCTETS
        try:
            while taken < budget[0] and stats.rx_bytes < most:
                frame = device.receive()
                if frame is None:
                    return taken > 0
                taken += 1
                if not device.up:
                    stats.rx_dropped += 1
                    continue
                data = frame.data
                stats.rx_packets += 1
                stats.rx_bytes += len(data)
                if ethernet and data and data[0] & 1:
                    stats.multicast += 1
                take(frame)
        finally:
            acks.flush()
            if gro is not None:
                gro.flush()
            if taken and complete is not None:
                complete()
        if device.fileno() == -1:
            stack.lock.raise_work(poll)
        return True

    def poll() -> None:
        turn()

    with stack.lock:
        if device.name in stack.devices:
            raise os_error(errno.EEXIST, f"device {device.name}")
        device.turn = turn
        device.ifindex = _dev_new_index(stack)
        stack.devices[device.name] = device
        for notify in tuple(stack.netdev_chain):
            notify(NETDEV_REGISTER, device)
    device.on_receive = lambda: stack.lock.raise_work(poll)
    device.on_receive()  # what came before


def _dev_new_index(stack: Stack) -> int:
    """A number that no device of the Stack has had."""
    last = stack.generic.get(_LAST_INDEX, 0)
    assert isinstance(last, int)  # nobody else writes it
    stack.generic[_LAST_INDEX] = last + 1
    return last + 1


def netdev_poll(stack: Stack, device: Device) -> bool:
    """One turn of a registered device now; True if anything came."""
    with stack.lock:
        return device.turn is not None and device.turn()


def unregister_netdevice(stack: Stack, device: Device) -> None:
    """Take a device out; it is not closed. Raises ENODEV if it is not there."""
    with stack.lock:
        if stack.devices.get(device.name) is not device:
            raise os_error(errno.ENODEV, f"device {device.name}")
        del stack.devices[device.name]
        for notify in tuple(stack.netdev_chain):
            notify(NETDEV_UNREGISTER, device)
        device.on_receive = None
