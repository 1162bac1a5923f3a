"""The IPv6 header and its extension headers (RFC 8200).

     0                   1                   2                   3
    +-------+---------------+---------------------------------------+
    |Version| Traffic Class |              Flow Label               |
    +-------+-------+-------+-------+---------------+---------------+
    |         Payload Length        |  Next Header  |   Hop Limit   |
    +-------------------------------+---------------+---------------+
    |                 Source Address, 16 octets                     |
    |              Destination Address, 16 octets                   |
    +---------------------------------------------------------------+

Hop-by-hop and destination options (section 4.3, 4.6), routing (4.4): next header, length in units
of 8 octets without the first 8, the rest. Fragment (4.5):

    +---------------+---------------+-------------------------+---+-+
    |  Next Header  |   Reserved    |     Fragment Offset     |Res|M|
    +---------------+---------------+-------------------------+---+-+
    |                        Identification                         |
    +---------------------------------------------------------------+
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from steertag.errors import WireError
from steertag.wire.checksum import Buffer

HEADER: Final = struct.Struct("!IHBB16s16s")
"""Version, class and label; payload length; next header; hop limit; addresses."""
HEADER_LEN: Final = HEADER.size
MIN_MTU: Final = 1280
MAX_PACKET: Final = 65535 + HEADER_LEN

HOPOPTS: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
NONE: Final = 59
DSTOPTS: Final = 60

FRAGMENT_HEADER: Final = struct.Struct("!BBHI")
"""Next header, reserved, offset in units of 8 octets << 3 | M, identification."""
FRAGMENT_LEN: Final = FRAGMENT_HEADER.size
MORE: Final = 1

OPT_PAD1: Final = 0
OPT_PADN: Final = 1
OPT_ROUTER_ALERT: Final = 5
OPT_JUMBO: Final = 0xC2


@dataclass(slots=True)
class Ipv6:
    """A header. The payload travels beside it.

    Attributes:
        saddr, daddr: 16 octets each.
        nexthdr: protocol of what follows.
        hop_limit, tos, flowlabel: as on the wire; `tos` is the traffic class.
        payload_len: octets after this header, extension headers included. `emit` fills it in if
            it is 0.
    """

    saddr: bytes
    daddr: bytes
    nexthdr: int
    hop_limit: int = 64
    tos: int = 0
    flowlabel: int = 0
    payload_len: int = 0

    def emit(self, payload_len: int = 0) -> bytes:
        """The header, for a payload of that many octets."""
        first = 6 << 28 | self.tos << 20 | self.flowlabel
        length = self.payload_len or payload_len
        return HEADER.pack(first, length, self.nexthdr, self.hop_limit, self.saddr, self.daddr)


@dataclass(slots=True)
class Fragment:
    """A fragment header. `offset`: octets, a multiple of 8."""

    nexthdr: int
    offset: int
    more: bool
    ident: int

    def emit(self) -> bytes:
        return FRAGMENT_HEADER.pack(self.nexthdr, 0, self.offset | self.more, self.ident)


def parse_untrusted(packet: Buffer) -> Ipv6:
    """The header that a packet starts with.

    Raises:
        WireError: no IPv6 header, or more announced than there is.
    """
    length = len(packet)
    if length < HEADER_LEN:
        raise WireError(f"IPv6 packet of {length} octets")
    first, payload_len, nexthdr, hops, saddr, daddr = HEADER.unpack_from(packet)
    if first >> 28 != 6:
        raise WireError(f"IPv6 version {first >> 28}")
    if payload_len + HEADER_LEN > length:
        raise WireError(f"IPv6 payload length {payload_len} in a packet of {length} octets")
    tos, label = first >> 20 & 0xFF, first & 0xFFFFF
    return Ipv6(saddr, daddr, nexthdr, hops, tos, label, payload_len)


def parse_fragment_untrusted(data: Buffer) -> Fragment:
    """A fragment header. Raises WireError if it is cut off."""
    if len(data) < FRAGMENT_LEN:
        raise WireError(f"IPv6 fragment header of {len(data)} octets")
    nexthdr, _, offset, ident = FRAGMENT_HEADER.unpack_from(data)
    return Fragment(nexthdr, offset & 0xFFF8, bool(offset & MORE), ident)


def extension_untrusted(data: Buffer) -> tuple[int, int]:
    """Next header and octets of the options or routing header that `data` starts with.

    Raises:
        WireError: it is cut off.
    """
    if len(data) < 8:
        raise WireError(f"IPv6 extension header of {len(data)} octets")
    size = data[1] + 1 << 3
    if size > len(data):
        raise WireError(f"IPv6 extension header of {size} octets in {len(data)}")
    return data[0], size


def parse_options_untrusted(area: Buffer) -> list[tuple[int, int, bytes]]:
    """The options of a hop-by-hop or destination header: (offset in `area`, type, value).

    `area` is the header from its third octet on. Padding is left out.

    Raises:
        WireError: an option is cut off, or there is more padding than aligning takes: more than
            7 octets, or octets that are not zero (RFC 4942 section 2.1.9.5, as the kernel).
    """
    found = []
    at, end, padding = 0, len(area), 0
    while at < end:
        kind = area[at]
        if kind == OPT_PAD1:
            at += 1
            padding += 1
            if padding > 7:
                raise WireError("IPv6 options with too much padding")
            continue
        if at + 2 > end or at + 2 + area[at + 1] > end:
            raise WireError(f"IPv6 option {kind} is cut off")
        size = area[at + 1] + 2
        value = bytes(area[at + 2 : at + size])
        if kind == OPT_PADN:
            padding += size
            if padding > 7 or any(value):
                raise WireError("IPv6 options with padding that carries something")
        else:
            padding = 0
            found.append((at, kind, value))
        at += size
    return found
