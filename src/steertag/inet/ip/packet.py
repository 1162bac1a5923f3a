"""What the network layer hands to the transport layer: packets, and errors about packets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from steertag.device.frame import CHECKSUM_NONE
from steertag.wire.checksum import partial, pseudo_v6

if TYPE_CHECKING:
    from steertag.device.base import Device
    from steertag.inet.ip.net import InetNet


class Packet:
    """A packet for this host, whole: fragments have been put together (sk_buff on its way in).

    Attributes:
        family: 4 or 6.
        saddr, daddr: packed addresses.
        protocol: of what `data` starts with, after any extension headers.
        ttl, tos: as received; `tos` with the ECN bits, of IPv6 the traffic class.
        data: the transport header and its payload, without the padding of a link.
        network: the same from the IP header on.
        device: where it came in.
        csum: CHECKSUM_*: NONE if nobody has checked the transport checksum.
        gso_size, gso_type: of a super-segment, octets of payload in each of its segments; else 0.
        pkt_type: PACKET_*: sent to this host, or by broadcast or multicast (to the link or by
            the address).
        flowlabel: IPv6's, 20 bits.
        reassembled: it came in fragments.
    """

    __slots__ = (
        "csum",
        "daddr",
        "data",
        "device",
        "family",
        "flowlabel",
        "gso_size",
        "gso_type",
        "network",
        "pkt_type",
        "protocol",
        "reassembled",
        "saddr",
        "tos",
        "ttl",
    )

    family: int
    saddr: bytes
    daddr: bytes
    protocol: int
    ttl: int
    tos: int
    data: memoryview
    network: memoryview
    device: Device
    csum: int
    gso_size: int
    gso_type: int
    pkt_type: int
    flowlabel: int
    reassembled: bool

    def __repr__(self) -> str:
        return (
            f"<Packet IPv{self.family} {self.saddr.hex()} > {self.daddr.hex()}"
            f" protocol {self.protocol}, {len(self.data)} octets>"
        )


class IcmpError:
    """An ICMP error about a packet that this host sent.

    Attributes:
        family: 4 or 6.
        type, code: ICMP's or ICMPv6's.
        info: the MTU of a packet that was too big, the pointer of a parameter problem, else 0.
        errno: what the kernel tells the user (icmp_err_convert, icmpv6_err_convert); 0: nothing.
        fatal: whether it is told to those also who did not ask for soft errors (IP_RECVERR).
        saddr, daddr: of the quoted packet: ours, and the one it was for.
        protocol: of `data`.
        data: the quoted transport header, at least 8 octets, and what more there is.
        offender: who says so.
        device: where it came in.
        packet: the ICMP message itself (for the error queue).
    """

    __slots__ = (
        "code",
        "daddr",
        "data",
        "device",
        "errno",
        "family",
        "fatal",
        "info",
        "offender",
        "packet",
        "protocol",
        "saddr",
        "type",
    )

    family: int
    type: int
    code: int
    info: int
    errno: int
    fatal: bool
    saddr: bytes
    daddr: bytes
    protocol: int
    data: memoryview
    offender: bytes
    device: Device
    packet: Packet

    def __repr__(self) -> str:
        return f"<IcmpError IPv{self.family} type {self.type} code {self.code} errno {self.errno}>"


class L4Protocol:
    """A transport protocol as the network layer knows it (struct net_protocol).

    Attributes:
        handler: called with each packet. err_handler: with each ICMP error, if not None.
        complete: called when a device's turn is over, if not None.
    """

    __slots__ = ("complete", "err_handler", "handler")

    def __init__(
        self,
        handler: Callable[[Packet], None],
        err_handler: Callable[[IcmpError], None] | None,
        complete: Callable[[InetNet], None] | None,
    ) -> None:
        self.handler, self.err_handler, self.complete = handler, err_handler, complete


PACKET_HOST = 0
PACKET_BROADCAST = 1
PACKET_MULTICAST = 2


def l4_checksum_ok(packet: Packet) -> bool:
    """Whether the checksum over pseudo header and `data` is right, if nobody checked it before."""
    if packet.csum != CHECKSUM_NONE:
        return True
    data = packet.data
    length = len(data)
    total = pseudo_v6(packet.saddr, packet.daddr, packet.protocol, length) + partial(data)
    return total % 0xFFFF == 0 and total != 0
