"""Finds the TCP segment in a captured packet: link layer, IPv4 or IPv6, TCP.

Checksums are not verified: a capture of a sender that leaves them to its network card has none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from steertag.observe.capture import Packet

# https://www.tcpdump.org/linktypes.html; 12 and 14 are what LINKTYPE_RAW is as a DLT_.
LINKTYPE_NULL: Final = 0
LINKTYPE_ETHERNET: Final = 1
LINKTYPE_PPP: Final = 9
LINKTYPE_RAW: Final = 101
LINKTYPE_LOOP: Final = 108
LINKTYPE_ENC: Final = 109
LINKTYPE_LINUX_SLL: Final = 113
LINKTYPE_IPV4: Final = 228
LINKTYPE_IPV6: Final = 229
LINKTYPE_NFLOG: Final = 239
LINKTYPE_LINUX_SLL2: Final = 276
_DLT_RAW: Final = 12
_DLT_RAW_OPENBSD: Final = 14

_VLAN_TAGS: Final = frozenset({0x8100, 0x88A8, 0x9100})
_IP_ETHERTYPES: Final = frozenset({0x0800, 0x86DD})
_PPP_IP: Final = frozenset({0x0021, 0x0057})
_NFULA_PAYLOAD: Final = 9

_IPV4_LEN: Final = 20
_IPV6_LEN: Final = 40
_TCP: Final = struct.Struct("!HHIIBB")
_TCP_LEN: Final = 20
_PROTO_TCP: Final = 6
_FRAGMENT_MASK: Final = 0x3FFF  # more fragments, and the offset
# Hop-by-hop options, routing, destination options, mobility, HIP, shim6: all count in 8 octets.
_EXTENSIONS: Final = frozenset({0, 43, 60, 135, 139, 140})
_FRAGMENT_HEADER: Final = 44
_AUTHENTICATION_HEADER: Final = 51

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
ACK: Final = 0x10


class Skipped(IntEnum):
    """Why a packet has no TCP segment to look at."""

    NOT_TCP = 0
    LINKTYPE = 1
    FRAGMENT = 2
    CUT = 3


class Segment(NamedTuple):
    """A TCP segment.

    Attributes:
        key: addresses and ports, source before destination in both, as on the wire: the same for
            all segments of one direction of a connection.
        seq, ack, flags: TCP's.
        payload: octets captured.
        length: octets of payload on the wire; more than `payload` holds where the packet was cut.
    """

    key: bytes
    seq: int
    ack: int
    flags: int
    payload: bytes
    length: int


class Endpoint(NamedTuple):
    """An IP address in the usual form and a TCP port."""

    host: str
    port: int


def reverse_key(key: bytes) -> bytes:
    """The key of the other direction."""
    size = (len(key) - 4) // 2
    return key[size : 2 * size] + key[:size] + key[-2:] + key[-4:-2]


def endpoints(key: bytes) -> tuple[Endpoint, Endpoint]:
    """Source and destination."""
    size = (len(key) - 4) // 2
    address = IPv4Address if size == 4 else IPv6Address
    ports = struct.unpack("!HH", key[-4:])
    hosts = (str(address(key[:size])), str(address(key[size : 2 * size])))
    return Endpoint(hosts[0], ports[0]), Endpoint(hosts[1], ports[1])


def tcp_segment_untrusted(packet: Packet) -> Segment | Skipped:
    """The TCP segment in a packet, whatever the packet's octets; it raises nothing."""
    find = _NETWORK_LAYER.get(packet.linktype)
    if find is None:
        return Skipped.LINKTYPE
    octets = packet.octets
    at = find(octets)
    if at is None:
        return Skipped.NOT_TCP
    if len(octets) <= at:
        return Skipped.CUT
    version = octets[at] >> 4
    if version == 4:
        return _ipv4(packet, at)
    return _ipv6(packet, at) if version == 6 else Skipped.NOT_TCP


# --- link layers: where the IP header begins, or None if it is something else -------------------


def _behind_ethertype(octets: bytes, at: int) -> int | None:
    ethertype = int.from_bytes(octets[at : at + 2], "big")
    while ethertype in _VLAN_TAGS:
        at += 4
        ethertype = int.from_bytes(octets[at : at + 2], "big")
    return at + 2 if ethertype in _IP_ETHERTYPES else None


def _ethernet(octets: bytes) -> int | None:
    return 14 if octets[12:14] == b"\x08\x00" else _behind_ethertype(octets, 12)


def _linux_sll(octets: bytes) -> int | None:
    return _behind_ethertype(octets, 14)


def _linux_sll2(octets: bytes) -> int | None:
    # A VLAN tag is at the place of the payload, not of the protocol field.
    ethertype = int.from_bytes(octets[:2], "big")
    if ethertype in _VLAN_TAGS:
        return _behind_ethertype(octets, 22)
    return 20 if ethertype in _IP_ETHERTYPES else None


def _ppp(octets: bytes) -> int | None:
    at = 2 if octets[:2] == b"\xff\x03" else 0
    return at + 2 if int.from_bytes(octets[at : at + 2], "big") in _PPP_IP else None


def _nflog(octets: bytes) -> int | None:
    """Behind 4 octets are attributes: length and type in the host's order, padded to 4 octets."""
    at = 4
    # Lengths are small: whichever order makes the first one smaller is the host's.
    little, big = (int.from_bytes(octets[4:6], order) for order in ("little", "big"))
    fields = struct.Struct("<HH" if little <= big else ">HH")
    while at + 4 <= len(octets):
        size, kind = fields.unpack_from(octets, at)
        if kind & 0x7FFF == _NFULA_PAYLOAD:
            return at + 4
        if size < 4:
            return None
        at += size + 3 & ~3
    return None


def _at(offset: int) -> Callable[[bytes], int | None]:
    return lambda octets: offset


# What begins with an address family is known by IP's own version, as systems number families
# differently.
_NETWORK_LAYER: Final[dict[int, Callable[[bytes], int | None]]] = {
    LINKTYPE_ETHERNET: _ethernet,
    LINKTYPE_NULL: _at(4),
    LINKTYPE_LOOP: _at(4),
    LINKTYPE_ENC: _at(12),
    LINKTYPE_RAW: _at(0),
    _DLT_RAW: _at(0),
    _DLT_RAW_OPENBSD: _at(0),
    LINKTYPE_IPV4: _at(0),
    LINKTYPE_IPV6: _at(0),
    LINKTYPE_PPP: _ppp,
    LINKTYPE_LINUX_SLL: _linux_sll,
    LINKTYPE_LINUX_SLL2: _linux_sll2,
    LINKTYPE_NFLOG: _nflog,
}


# --- IP and TCP ---------------------------------------------------------------------------------


def _ipv4(packet: Packet, at: int) -> Segment | Skipped:
    octets = packet.octets
    if len(octets) < at + _IPV4_LEN:
        return Skipped.CUT
    header = (octets[at] & 0x0F) * 4
    if octets[at + 9] != _PROTO_TCP or header < _IPV4_LEN:
        return Skipped.NOT_TCP
    if (octets[at + 6] << 8 | octets[at + 7]) & _FRAGMENT_MASK:
        return Skipped.FRAGMENT
    # A frame of a segmentation offload can be larger than the field holds: then it is 0.
    total = octets[at + 2] << 8 | octets[at + 3]
    end = at + total if total else packet.length
    return _tcp(octets, octets[at + 12 : at + 20], at + header, end)


def _ipv6(packet: Packet, at: int) -> Segment | Skipped:
    octets = packet.octets
    if len(octets) < at + _IPV6_LEN:
        return Skipped.CUT
    addresses = octets[at + 8 : at + 40]
    size = octets[at + 4] << 8 | octets[at + 5]
    end = at + _IPV6_LEN + size if size else packet.length  # 0: a jumbogram (RFC 2675)
    kind = octets[at + 6]
    at += _IPV6_LEN
    while kind != _PROTO_TCP:
        if kind not in _EXTENSIONS and kind not in (_FRAGMENT_HEADER, _AUTHENTICATION_HEADER):
            return Skipped.NOT_TCP
        if len(octets) < at + 8:
            return Skipped.CUT
        if kind == _FRAGMENT_HEADER:
            if (octets[at + 2] << 8 | octets[at + 3]) & 0xFFF9:  # offset, more fragments
                return Skipped.FRAGMENT
            step = 8
        elif kind == _AUTHENTICATION_HEADER:
            step = (octets[at + 1] + 2) * 4
        else:
            step = (octets[at + 1] + 1) * 8
        kind = octets[at]
        at += step
    return _tcp(octets, addresses, at, end)


def _tcp(octets: bytes, addresses: bytes, at: int, end: int) -> Segment | Skipped:
    if len(octets) < at + _TCP_LEN:
        return Skipped.CUT
    _, _, seq, ack, offset, flags = _TCP.unpack_from(octets, at)
    payload_at = at + (offset >> 4) * 4
    if payload_at < at + _TCP_LEN or end < payload_at:
        return Skipped.NOT_TCP
    key = addresses + octets[at : at + 4]
    return Segment(key, seq, ack, flags, octets[payload_at:end], end - payload_at)
