"""Cutting a packet into fragments (ip_do_fragment, ip6_fragment; RFC 791, RFC 8200 section 4.5)."""

from __future__ import annotations

from steertag.family.skbuff import Buffer
from steertag.wire.ipv4 import HEADER_LEN as HEADER4_LEN
from steertag.wire.ipv4 import MF, Ipv4
from steertag.wire.ipv6 import FRAGMENT, Fragment, Ipv6


def fragments_v4(
    payload: bytes, mtu: int, tos: int, ident: int, ttl_protocol: int, addresses: bytes
) -> list[list[Buffer]]:
    """A payload in packets of at most `mtu` octets: header and piece of each."""
    room = (mtu - HEADER4_LEN) & ~7
    view = memoryview(payload)
    header = Ipv4(addresses[:4], addresses[4:], ttl_protocol & 0xFF, ttl_protocol >> 8, tos, ident)
    pieces: list[list[Buffer]] = []
    for at in range(0, len(view), room):
        piece = view[at : at + room]
        more = MF if at + room < len(view) else 0
        header.frag = more | at >> 3
        pieces.append([header.emit(len(piece)), piece])
    return pieces


def fragments_v6(
    payload: bytes, room: int, first: int, protocol: int, ident: int, ends: tuple[int, bytes]
) -> list[list[Buffer]]:
    """A payload in pieces of at most `room` octets: the headers and piece of each."""
    view = memoryview(payload)
    hops, addresses = ends
    tos, label = first >> 20 & 0xFF, first & 0xFFFFF
    header = Ipv6(addresses[:16], addresses[16:], FRAGMENT, hops, tos, label)
    pieces: list[list[Buffer]] = []
    for at in range(0, len(view), room):
        piece = view[at : at + room]
        fragment = Fragment(protocol, at, at + room < len(view), ident).emit()
        pieces.append([header.emit(len(fragment) + len(piece)) + fragment, piece])
    return pieces
