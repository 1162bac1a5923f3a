"""IPv6 packets come in (net/ipv6/ip6_input.c, exthdrs.c; RFC 8200)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from steertag.errors import WireError
from steertag.inet.ip import addr as ip
from steertag.inet.ip.packet import PACKET_HOST, PACKET_MULTICAST, Packet
from steertag.wire.icmpv6 import HDR_FIELD, PARAMPROB, UNK_NEXTHDR, UNK_OPTION
from steertag.wire.ipv6 import (
    DSTOPTS,
    FRAGMENT,
    HEADER_LEN,
    HOPOPTS,
    NONE,
    OPT_JUMBO,
    OPT_ROUTER_ALERT,
    ROUTING,
    extension_untrusted,
    parse_options_untrusted,
)

if TYPE_CHECKING:
    from steertag.device.base import Frame
    from steertag.inet.ip.devinet import InDevice
    from steertag.inet.ip.net import InetNet

Receive = Callable[["Frame", memoryview, int], None]

_FIELDS: Final = struct.Struct("!IHBB32s")
_NEXTHDR_AT: Final = 6
_EXTENSIONS: Final = frozenset({HOPOPTS, ROUTING, FRAGMENT, DSTOPTS, NONE})
_MOST_HEADERS: Final = 64
"""Extension headers that are walked: no packet that means well has as many."""
ECN_COUNTERS6: Final = ("Ip6InNoECTPkts", "Ip6InECT1Pkts", "Ip6InECT0Pkts", "Ip6InCEPkts")


def ipv6_receiver(net: InetNet, indev: InDevice) -> Receive:
    """`ipv6_rcv(frame, packet, pkt_type)` for a device.

    The plain packet (no extension headers, between addresses that were looked at before) is handed
    on at once; all others go through `_slow`.
    """
    mib, flows, l4, raw, device = net.mib, indev.flows, net.l4v6, net.raw_deliver, indev.device
    unpack = _FIELDS.unpack_from

    def ipv6_rcv(frame: Frame, data: memoryview, pkt_type: int) -> None:
        mib["Ip6InReceives"] += 1
        length = len(data)
        mib["Ip6InOctets"] += length
        if length < HEADER_LEN:
            mib["Ip6InHdrErrors"] += 1
            return
        first, total, protocol, hops, pair = unpack(data)
        total += HEADER_LEN
        flow = flows.get(pair)
        known = l4.get(protocol)
        if first >> 28 != 6 or flow is None or known is None or pkt_type or total > length:
            _slow(net, indev, frame, data, pkt_type)
            return
        mib[ECN_COUNTERS6[first >> 20 & 3]] += 1
        if total != length:
            data = data[:total]
        packet = Packet()
        packet.family = 6
        packet.saddr, packet.daddr = flow
        packet.protocol = protocol
        packet.ttl = hops
        packet.tos = first >> 20 & 0xFF
        packet.network = data
        packet.data = data[HEADER_LEN:]
        packet.device = device
        packet.csum = frame.csum
        packet.gso_size = frame.gso_size
        packet.gso_type = frame.gso_type
        packet.pkt_type = PACKET_HOST
        packet.flowlabel = first & 0xFFFFF
        packet.reassembled = False
        for hook in raw:
            hook(packet)
        mib["Ip6InDelivers"] += 1
        known.handler(packet)

    return ipv6_rcv


def _slow(net: InetNet, indev: InDevice, frame: Frame, data: memoryview, pkt_type: int) -> None:
    """ip6_rcv_core: every check."""
    mib = net.mib
    first, payload_len, protocol, hops, pair = _FIELDS.unpack_from(data)
    if first >> 28 != 6:
        mib["Ip6InHdrErrors"] += 1
        return
    mib[ECN_COUNTERS6[first >> 20 & 3]] += 1
    total = payload_len + HEADER_LEN
    if total > len(data):
        mib["Ip6InTruncatedPkts"] += 1
        return
    network = data[:total]
    packet = Packet()
    packet.family = 6
    packet.saddr, packet.daddr = pair[:16], pair[16:]
    packet.protocol, packet.ttl, packet.tos = protocol, hops, first >> 20 & 0xFF
    packet.network, packet.data = network, network[HEADER_LEN:]
    packet.device, packet.pkt_type = indev.device, pkt_type
    packet.csum = frame.csum
    packet.gso_size, packet.gso_type = frame.gso_size, frame.gso_type
    packet.flowlabel = first & 0xFFFFF
    packet.reassembled = False
    if not _addresses_ok(net, indev, packet):
        return
    if packet.pkt_type == PACKET_HOST:
        indev.remember(pair)
    elif ip.is_multicast(packet.daddr):
        mib["Ip6InMcastPkts"] += 1
        mib["Ip6InMcastOctets"] += total
    deliver(net, packet, protocol, HEADER_LEN, _NEXTHDR_AT)


def _addresses_ok(net: InetNet, indev: InDevice, packet: Packet) -> bool:
    """Whether a packet is for this host, and its source can be."""
    saddr, daddr = packet.saddr, packet.daddr
    mib = net.mib
    outside = not indev.is_loopback
    if saddr[0] == 0xFF or (outside and ip.LOOPBACK6 in (saddr, daddr)):
        mib["Ip6InHdrErrors"] += 1
        return False
    if daddr[0] == 0xFF:
        # RFC 4291 section 2.7: scope 0 is reserved, and scope 1 never leaves a host
        if daddr[1] & 0x0F == 0 or (outside and daddr[1] & 0x0F == 1):
            mib["Ip6InHdrErrors"] += 1
            return False
        if daddr not in indev.groups:
            return False
        packet.pkt_type = PACKET_MULTICAST
        return True
    on_link = outside and ip.is_link_local(daddr)
    mine = indev.has(daddr) if on_link else net.is_local(daddr)
    if not mine:
        mib["Ip6InAddrErrors"] += 1  # for another host, and nothing is forwarded
    return mine


def deliver(net: InetNet, packet: Packet, protocol: int, at: int, nexthdr_at: int) -> None:
    """ip6_protocol_deliver_rcu: through the extension headers to the transport protocol.

    Args:
        at: where in the packet the header `protocol` starts.
        nexthdr_at: where the octet that says so is.
    """
    for _ in range(_MOST_HEADERS):
        if protocol not in _EXTENSIONS:
            _deliver(net, packet, protocol, at, nexthdr_at)
            return
        if protocol == NONE:
            return
        if protocol == FRAGMENT:
            net.defrag.v6(packet, at, nexthdr_at)
            return
        if protocol == HOPOPTS and nexthdr_at != _NEXTHDR_AT:
            net.mib["Ip6InHdrErrors"] += 1
            net.icmp6.send(packet, PARAMPROB, UNK_NEXTHDR, nexthdr_at)
            return
        try:
            following, size = extension_untrusted(packet.network[at:])
        except WireError:
            net.mib["Ip6InHdrErrors"] += 1
            return
        if protocol == ROUTING:
            passed = _routing_ok(net, packet, at)
        else:
            passed = _options_ok(net, packet, protocol, at, size)
        if not passed:
            return
        protocol, nexthdr_at, at = following, at, at + size
    net.mib["Ip6InHdrErrors"] += 1


def _deliver(net: InetNet, packet: Packet, protocol: int, at: int, nexthdr_at: int) -> None:
    mib = net.mib
    packet.protocol = protocol
    packet.data = packet.network[at:]
    taken = False
    for hook in net.raw_deliver:
        taken |= hook(packet)
    known = net.l4v6.get(protocol)
    if known is not None:
        mib["Ip6InDelivers"] += 1
        known.handler(packet)
    elif taken:
        mib["Ip6InDelivers"] += 1
    else:
        mib["Ip6InUnknownProtos"] += 1
        net.icmp6.send(packet, PARAMPROB, UNK_NEXTHDR, nexthdr_at)


def _routing_ok(net: InetNet, packet: Packet, at: int) -> bool:
    """RFC 8200 section 4.4, RFC 5095: no type is known, and none is followed."""
    if packet.network[at + 3]:  # segments left
        net.mib["Ip6InHdrErrors"] += 1
        net.icmp6.send(packet, PARAMPROB, HDR_FIELD, at + 2)
        return False
    return True


def _options_ok(net: InetNet, packet: Packet, header: int, at: int, size: int) -> bool:
    """ip6_parse_tlv: options are looked at and passed over; what is unknown says what to do."""
    try:
        options = parse_options_untrusted(packet.network[at + 2 : at + size])
    except WireError:
        net.mib["Ip6InHdrErrors"] += 1
        return False
    ctl = net.ctl
    if len(options) > (ctl.max_hbh_opts if header == HOPOPTS else ctl.max_dst_opts)[0]:
        net.mib["Ip6InHdrErrors"] += 1
        return False
    for offset, kind, value in options:
        pointer = at + 2 + offset
        if header == HOPOPTS and kind == OPT_ROUTER_ALERT:
            if len(value) != 2:
                net.mib["Ip6InHdrErrors"] += 1
                return False
        elif header == HOPOPTS and kind == OPT_JUMBO:
            # Packets beyond 65535 octets are not received, so a jumbo length is always wrong here.
            net.mib["Ip6InHdrErrors"] += 1
            net.icmp6.send(packet, PARAMPROB, HDR_FIELD, pointer)
            return False
        elif not _unknown_passes(net, packet, kind, pointer):
            return False
    return True


def _unknown_passes(net: InetNet, packet: Packet, kind: int, pointer: int) -> bool:
    """RFC 8200 section 4.2: the two high bits of an option's type."""
    action = kind >> 6
    if action == 0:
        return True
    net.mib["Ip6InHdrErrors"] += 1
    if action == 2 or (action == 3 and not ip.is_multicast(packet.daddr)):
        net.icmp6.send(packet, PARAMPROB, UNK_OPTION, pointer)
    return False
