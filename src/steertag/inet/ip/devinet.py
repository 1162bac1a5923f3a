"""What the network layer keeps per device: addresses, groups, the receive path (struct in_device,
struct inet6_dev)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from steertag.device.base import ARPHRD_ETHER, ARPHRD_LOOPBACK, Device
from steertag.family.timer import Timer
from steertag.inet.ip.addr import (
    ALL_HOSTS4,
    ALL_NODES,
    LINK_LOCAL_PREFIX,
    NODE_LOCAL_ALL_NODES,
    masked,
    solicited_node,
    text,
)
from steertag.wire.ethernet import modified_eui64

if TYPE_CHECKING:
    from steertag.inet.ip.net import InetNet

_FLOWS: Final = 4096
"""Pairs of addresses per device whose packets need not be looked at again."""


@dataclass(slots=True, eq=False)
class IfAddr:
    """An address of a device (struct in_ifaddr, struct inet6_ifaddr).

    Attributes:
        address, prefixlen: octets and bits.
        broadcast: of an IPv4 subnet, b"" where there is none.
        tentative: nobody knows yet whether somebody else has it (RFC 4862): not used.
        dadfailed: somebody else has it: never used.
        deprecated: sources of new connections are others, if there are.
        protocol: who added it: kernel (link-local), ra, static.
        expires, preferred_until: seconds of the Stack's clock, None: for ever.
    """

    address: bytes
    prefixlen: int
    broadcast: bytes = b""
    tentative: bool = False
    dadfailed: bool = False
    deprecated: bool = False
    protocol: str = "static"
    expires: float | None = None
    preferred_until: float | None = None
    probes: int = 0
    timer: Timer | None = None

    @property
    def usable(self) -> bool:
        return not self.tentative and not self.dadfailed

    @property
    def network(self) -> bytes:
        return masked(self.address, self.prefixlen)

    def __str__(self) -> str:
        return f"{text(self.address)}/{self.prefixlen}"


class InDevice:
    """A device as the network layer sees it.

    Attributes:
        device, net: as they are.
        addresses: in the order in which they were added.
        groups: multicast groups with the number of their users.
        is_loopback, is_ethernet: of the device's type.
        flows: pairs of addresses, as they stand in a header, from and to which unicast packets
            were found right: a fast path's memory, cleared when routes or addresses change.
        hop_limit, mtu6: what a router advertised, 0 if none did.
    """

    def __init__(self, net: InetNet, device: Device) -> None:
        self.net, self.device = net, device
        self.is_loopback = device.type == ARPHRD_LOOPBACK
        self.is_ethernet = device.type == ARPHRD_ETHER
        self.addresses: list[IfAddr] = []
        self.groups: dict[bytes, int] = {ALL_HOSTS4: 1, ALL_NODES: 1, NODE_LOCAL_ALL_NODES: 1}
        self.flows: dict[bytes, tuple[bytes, bytes]] = {}
        self.hop_limit = 0
        self.mtu6 = 0

    def find(self, address: bytes) -> IfAddr | None:
        """Its own address, if it is one."""
        return next((each for each in self.addresses if each.address == address), None)

    def has(self, address: bytes) -> bool:
        """Whether it is an address of this device that is in use."""
        found = self.find(address)
        return found is not None and found.usable

    def of_family(self, octets: int) -> list[IfAddr]:
        """The addresses of 4 or of 16 octets that are in use."""
        return [each for each in self.addresses if len(each.address) == octets and each.usable]

    def link_local(self) -> bytes:
        """Its link-local IPv6 address, b"" without."""
        for each in self.of_family(16):
            if each.address[0] == 0xFE and each.address[1] & 0xC0 == 0x80:
                return each.address
        return b""

    def eui64_link_local(self) -> bytes:
        """The address that an Ethernet device gives itself (RFC 4862 section 5.3)."""
        return LINK_LOCAL_PREFIX + modified_eui64(self.device.dev_addr)

    def join(self, group: bytes) -> None:
        self.groups[group] = self.groups.get(group, 0) + 1

    def leave(self, group: bytes) -> bool:
        """False if it was not joined."""
        users = self.groups.get(group, 0)
        if users > 1:
            self.groups[group] = users - 1
        elif users:
            del self.groups[group]
        return users > 0

    def join_solicited(self, address: bytes) -> None:
        if len(address) == 16:
            self.join(solicited_node(address))

    def leave_solicited(self, address: bytes) -> None:
        if len(address) == 16:
            self.leave(solicited_node(address))

    def remember(self, pair: bytes) -> None:
        """Packets between these addresses are right; `pair`: source and destination."""
        if len(self.flows) >= _FLOWS:
            self.flows.clear()
        half = len(pair) >> 1
        self.flows[pair] = (pair[:half], pair[half:])
