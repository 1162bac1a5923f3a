"""ICMPv6 messages (RFC 4443) and those of Neighbor Discovery (RFC 4861).

     0                   1                   2                   3
    +---------------+---------------+-------------------------------+
    |     Type      |     Code      |           Checksum            |
    +---------------+---------------+-------------------------------+
    | rest: identifier and sequence number, MTU, pointer, ND flags  |
    +---------------------------------------------------------------+
    | body: of an echo; as much of the packet that an error is      |
    | about as makes 1280 octets; of ND a target and options        |

ND options are type, length in units of 8 octets, value (RFC 4861 section 4.6). The checksum covers
the IPv6 pseudo header too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from steertag.errors import WireError
from steertag.wire.checksum import Buffer, checksum, pseudo_v6

HEADER: Final = struct.Struct("!BBHI")
HEADER_LEN: Final = HEADER.size
_PROTOCOL: Final = 58

DEST_UNREACH: Final = 1
PKT_TOOBIG: Final = 2
TIME_EXCEEDED: Final = 3
PARAMPROB: Final = 4
ECHO_REQUEST: Final = 128
ECHO_REPLY: Final = 129
MLD_QUERY: Final = 130
MLD_REPORT: Final = 131
MLD_REDUCTION: Final = 132
ROUTER_SOLICIT: Final = 133
ROUTER_ADVERT: Final = 134
NEIGHBOR_SOLICIT: Final = 135
NEIGHBOR_ADVERT: Final = 136
REDIRECT: Final = 137
MLD2_REPORT: Final = 143

NOROUTE: Final = 0
ADM_PROHIBITED: Final = 1
NOT_NEIGHBOUR: Final = 2
ADDR_UNREACH: Final = 3
PORT_UNREACH: Final = 4
POLICY_FAIL: Final = 5
REJECT_ROUTE: Final = 6

EXC_HOPLIMIT: Final = 0
EXC_FRAGTIME: Final = 1

HDR_FIELD: Final = 0
UNK_NEXTHDR: Final = 1
UNK_OPTION: Final = 2

NA_ROUTER: Final = 1 << 31
NA_SOLICITED: Final = 1 << 30
NA_OVERRIDE: Final = 1 << 29

OPT_SOURCE_LL: Final = 1
OPT_TARGET_LL: Final = 2
OPT_PREFIX: Final = 3
OPT_MTU: Final = 5

_PREFIX: Final = struct.Struct("!BBIII16s")


@dataclass(slots=True)
class Icmpv6:
    """The first eight octets; the body travels beside them. `rest`: the second word."""

    type: int
    code: int = 0
    rest: int = 0

    def emit(self, saddr: bytes, daddr: bytes, body: Buffer = b"") -> bytes:
        """The header, with the checksum over pseudo header, itself and `body`."""
        bare = HEADER.pack(self.type, self.code, 0, self.rest)
        pseudo = pseudo_v6(saddr, daddr, _PROTOCOL, HEADER_LEN + len(body))
        total = checksum(bare, body, initial=pseudo)
        return HEADER.pack(self.type, self.code, total, self.rest)


@dataclass(slots=True)
class Prefix:
    """A Prefix Information option (RFC 4861 section 4.6.2). Lifetimes: seconds."""

    prefix: bytes
    prefixlen: int
    on_link: bool
    autonomous: bool
    valid: int
    preferred: int

    def emit(self) -> bytes:
        flags = self.on_link << 7 | self.autonomous << 6
        head = bytes((OPT_PREFIX, 4))
        lifetimes = (self.valid, self.preferred, 0)
        return head + _PREFIX.pack(self.prefixlen, flags, *lifetimes, self.prefix)


def parse_untrusted(message: Buffer) -> Icmpv6:
    """The header of a message. The checksum is the caller's to check.

    Raises:
        WireError: cut off.
    """
    if len(message) < HEADER_LEN:
        raise WireError(f"ICMPv6 message of {len(message)} octets")
    kind, code, _, rest = HEADER.unpack_from(message)
    return Icmpv6(kind, code, rest)


def parse_nd_options_untrusted(data: Buffer) -> list[tuple[int, bytes]]:
    """Types and values of ND options.

    Raises:
        WireError: one has length zero or is cut off: the whole message is to be dropped.
    """
    found = []
    at, end = 0, len(data)
    while at < end:
        if at + 2 > end:
            raise WireError("ND option is cut off")
        size = data[at + 1] << 3
        if not size or at + size > end:
            raise WireError(f"ND option {data[at]} of {size} octets in {end - at}")
        found.append((data[at], bytes(data[at + 2 : at + size])))
        at += size
    return found


def parse_prefix_untrusted(value: bytes) -> Prefix:
    """The value of a Prefix Information option. Raises WireError for another length."""
    if len(value) != _PREFIX.size:
        raise WireError(f"ND prefix option of {len(value)} octets")
    prefixlen, flags, valid, preferred, _, prefix = _PREFIX.unpack(value)
    if prefixlen > 128:
        raise WireError(f"ND prefix of {prefixlen} bits")
    return Prefix(prefix, prefixlen, bool(flags & 0x80), bool(flags & 0x40), valid, preferred)


def link_address_option(kind: int, address: bytes) -> bytes:
    """A source or target link-layer address option, for Ethernet."""
    return bytes((kind, 1)) + address
