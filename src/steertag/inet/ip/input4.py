"""IPv4 packets come in (net/ipv4/ip_input.c, and the input side of route.c).

Hosts are as Linux: an address is the host's, whichever device a packet for it comes in by (RFC 1122
section 3.3.4.2, the weak model), packets for others are not forwarded, and sources that can't be
right are dropped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from steertag.device.base import CHECKSUM_NONE
from steertag.inet.ip import addr as ip
from steertag.inet.ip.packet import PACKET_BROADCAST, PACKET_HOST, PACKET_MULTICAST, Packet
from steertag.inet.ip.route import RTN_BROADCAST, RTN_LOCAL, RTN_MULTICAST
from steertag.wire.icmp import DEST_UNREACH, PARAMETERPROB, PROT_UNREACH
from steertag.wire.ipv4 import (
    HEADER_LEN,
    MF,
    OFFSET_MASK,
    OPT_LSRR,
    OPT_SSRR,
    OptionError,
    parse_options_untrusted,
)

if TYPE_CHECKING:
    from steertag.device.base import Frame
    from steertag.inet.ip.devinet import InDevice
    from steertag.inet.ip.net import InetNet

Receive = Callable[["Frame", memoryview, int], None]

_FIELDS: Final = struct.Struct("!BBHHHBBH8s")
_FRAGMENT: Final = MF | OFFSET_MASK
ECN_COUNTERS4: Final = (
    "IpExtInNoECTPkts",
    "IpExtInECT1Pkts",
    "IpExtInECT0Pkts",
    "IpExtInCEPkts",
)


def ip_receiver(net: InetNet, indev: InDevice) -> Receive:
    """`ip_rcv(frame, packet, pkt_type)` for a device.

    The plain packet (no options, no fragment, between addresses that were looked at before) is
    handed on at once; all others go through `_slow`.
    """
    mib, flows, l4, raw, device = net.mib, indev.flows, net.l4, net.raw_deliver, indev.device
    unpack = _FIELDS.unpack_from

    def ip_rcv(frame: Frame, data: memoryview, pkt_type: int) -> None:
        mib["IpInReceives"] += 1
        length = len(data)
        mib["IpExtInOctets"] += length
        if length < HEADER_LEN:
            mib["IpInHdrErrors"] += 1
            return
        first, tos, total, _, frag, ttl, protocol, _, pair = unpack(data)
        flow = flows.get(pair)
        known = l4.get(protocol)
        if (
            first != 0x45
            or flow is None
            or known is None
            or frag & _FRAGMENT
            or pkt_type
            or not HEADER_LEN <= total <= length
            or int.from_bytes(data[:HEADER_LEN], "big") % 0xFFFF
        ):
            _slow(net, indev, frame, data, pkt_type)
            return
        mib[ECN_COUNTERS4[tos & 3]] += 1
        if total != length:
            data = data[:total]
        packet = Packet()
        packet.family = 4
        packet.saddr, packet.daddr = flow
        packet.protocol = protocol
        packet.ttl = ttl
        packet.tos = tos
        packet.network = data
        packet.data = data[HEADER_LEN:]
        packet.device = device
        packet.csum = frame.csum
        packet.gso_size = frame.gso_size
        packet.gso_type = frame.gso_type
        packet.pkt_type = PACKET_HOST
        packet.flowlabel = 0
        packet.reassembled = False
        for hook in raw:
            hook(packet)
        mib["IpInDelivers"] += 1
        known.handler(packet)

    return ip_rcv


def _slow(net: InetNet, indev: InDevice, frame: Frame, data: memoryview, pkt_type: int) -> None:
    """ip_rcv_core, ip_rcv_finish_core: every check."""
    mib = net.mib
    length = len(data)
    first, tos, total, _, frag, ttl, protocol, _, pair = _FIELDS.unpack_from(data)
    header = (first & 0x0F) << 2
    if first >> 4 != 4 or header < HEADER_LEN:
        mib["IpInHdrErrors"] += 1
        return
    mib[ECN_COUNTERS4[tos & 3]] += 1
    if header > length:
        mib["IpInHdrErrors"] += 1
        return
    if int.from_bytes(data[:header], "big") % 0xFFFF:
        mib["IpExtInCsumErrors"] += 1
        mib["IpInHdrErrors"] += 1
        return
    if total > length:
        mib["IpExtInTruncatedPkts"] += 1
        return
    if total < header:
        mib["IpInHdrErrors"] += 1
        return
    packet = _packet(frame, data[:total], header)
    packet.device = indev.device
    packet.tos, packet.ttl, packet.protocol = tos, ttl, protocol
    packet.saddr, packet.daddr = pair[:4], pair[4:]
    packet.pkt_type = pkt_type
    kind = _route_input(net, indev, packet)
    if not kind or not _options_ok(net, packet, header):
        return
    if kind == RTN_LOCAL and pkt_type == PACKET_HOST:
        indev.remember(pair)
    elif kind != RTN_LOCAL:
        _count_group(net, packet, kind)
    if frag & _FRAGMENT:
        whole = net.defrag.v4(packet)
        if whole is None:
            return
        packet = whole
    deliver(net, packet)


def _packet(frame: Frame, network: memoryview, header: int) -> Packet:
    packet = Packet()
    packet.family = 4
    packet.network, packet.data = network, network[header:]
    packet.csum = frame.csum
    packet.gso_size, packet.gso_type = frame.gso_size, frame.gso_type
    packet.flowlabel = 0
    packet.reassembled = False
    return packet


def _route_input(net: InetNet, indev: InDevice, packet: Packet) -> int:
    """ip_route_input_slow: RTN_* of a packet that is for this host, 0 for one that is dropped."""
    saddr, daddr = packet.saddr, packet.daddr
    outside = not indev.is_loopback
    if saddr[0] & 0xF0 == 0xE0 or saddr == ip.BROADCAST4:
        return 0  # martian source
    kind = 0
    if daddr == ip.BROADCAST4 or (saddr == daddr == ip.ANY4):
        kind = RTN_BROADCAST
    elif daddr[0] & 0xF0 == 0xE0:
        if daddr not in indev.groups:
            return 0
        kind = RTN_MULTICAST
    elif saddr[0] == 0 or daddr[0] == 0:
        return 0
    if outside and (saddr[0] == 127 or daddr[0] == 127):
        return 0
    if kind == 0:
        if net.is_local(daddr):
            kind = RTN_LOCAL
        elif daddr in net.broadcasts:
            kind = RTN_BROADCAST
        else:
            net.mib["IpInAddrErrors"] += 1  # for another host, and nothing is forwarded
            return 0
    if outside and saddr != ip.ANY4 and not _source_ok(net, indev, saddr):
        return 0
    if kind == RTN_BROADCAST:
        packet.pkt_type = PACKET_BROADCAST
    elif kind == RTN_MULTICAST:
        packet.pkt_type = PACKET_MULTICAST
    return kind


def _source_ok(net: InetNet, indev: InDevice, saddr: bytes) -> bool:
    """fib_validate_source: not an address of this host, and, if that is asked for, from where
    answers would go (RFC 3704)."""
    if net.is_local(saddr) or saddr in net.broadcasts:
        return False
    mode = net.ctl.rp_filter[0]
    if mode:
        route = net.fib4.lookup(saddr, indev.device if mode == 1 else None)
        best = net.fib4.lookup(saddr)
        if route is None or (mode == 1 and best is not route):
            net.mib["TcpExtIPReversePathFilter"] += 1
            return False
    return True


def _options_ok(net: InetNet, packet: Packet, header: int) -> bool:
    """ip_rcv_options: options are looked at and passed over; source routes are not followed."""
    if header == HEADER_LEN:
        return True
    try:
        options = parse_options_untrusted(packet.network[HEADER_LEN:header])
    except OptionError as exc:
        net.mib["IpInHdrErrors"] += 1
        net.icmp.send(packet, PARAMETERPROB, 0, exc.pointer << 24)
        return False
    return not any(kind in (OPT_LSRR, OPT_SSRR) for kind, _ in options)


def _count_group(net: InetNet, packet: Packet, kind: int) -> None:
    mib = net.mib
    name = "Mcast" if kind == RTN_MULTICAST else "Bcast"
    mib[f"IpExtIn{name}Pkts"] += 1
    mib[f"IpExtIn{name}Octets"] += len(packet.network)


def deliver(net: InetNet, packet: Packet) -> None:
    """ip_local_deliver_finish: to raw sockets and to the transport protocol."""
    mib = net.mib
    taken = False
    for hook in net.raw_deliver:
        taken |= hook(packet)
    known = net.l4.get(packet.protocol)
    if known is not None:
        mib["IpInDelivers"] += 1
        known.handler(packet)
    elif taken:
        mib["IpInDelivers"] += 1
    else:
        mib["IpInUnknownProtos"] += 1
        net.icmp.send(packet, DEST_UNREACH, PROT_UNREACH)


def whole_packet(first: Packet, network: bytes, header: int) -> Packet:
    """What a packet's fragments have become; `first`: that with offset 0."""
    view = memoryview(network)
    packet = Packet()
    packet.family = 4
    packet.saddr, packet.daddr, packet.protocol = first.saddr, first.daddr, first.protocol
    packet.ttl, packet.tos = first.ttl, view[1]
    packet.network, packet.data = view, view[header:]
    packet.device, packet.pkt_type = first.device, first.pkt_type
    packet.csum, packet.gso_size, packet.gso_type = CHECKSUM_NONE, 0, 0
    packet.flowlabel = 0
    packet.reassembled = True
    return packet
