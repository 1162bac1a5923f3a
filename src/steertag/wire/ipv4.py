"""The IPv4 header and its options (RFC 791 section 3.1; DSCP: RFC 2474; ECN: RFC 3168).

 0                   1                   2                   3
+-------+-------+-----------+---+-------------------------------+
|Version|  IHL  |   DSCP    |ECN|         Total Length          |
+-------+-------+-----------+---+-----+-------------------------+
|         Identification        |0 D M|     Fragment Offset     |
+---------------+---------------+-----+-------------------------+
|  Time to Live |    Protocol   |        Header Checksum        |
+---------------+---------------+-------------------------------+
|                       Source Address                          |
+---------------------------------------------------------------+
|                    Destination Address                        |
+---------------------------------------------------------------+
|                 options, padded to 32 bits                    |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from steertag.errors import WireError
from steertag.wire.checksum import Buffer, checksum

HEADER: Final = struct.Struct("!BBHHHBBH4s4s")
"""Version and IHL, tos, total length, id, flags and offset, TTL, protocol, checksum, addresses."""
HEADER_LEN: Final = HEADER.size
MAX_HEADER: Final = 60
MAX_PACKET: Final = 65535

DF: Final = 0x4000
MF: Final = 0x2000
OFFSET_MASK: Final = 0x1FFF
"""Of the fragment offset, in units of 8 octets."""

OPT_END: Final = 0
OPT_NOOP: Final = 1
OPT_SECURITY: Final = 130
OPT_LSRR: Final = 131
OPT_TIMESTAMP: Final = 68
OPT_CIPSO: Final = 134
OPT_RR: Final = 7
OPT_SID: Final = 136
OPT_SSRR: Final = 137
OPT_RA: Final = 148


class OptionError(WireError):
    """An option is malformed.

    Attributes:
        pointer: the octet of the IP header at fault, as a Parameter Problem tells it.
    """

    def __init__(self, pointer: int, detail: str) -> None:
        super().__init__(f"{detail} (octet {pointer} of the header)")
        self.pointer = pointer


@dataclass(slots=True)
class Ipv4:
    """A header. The payload travels beside it.

    Attributes:
        saddr, daddr: four octets each.
        protocol, ttl, tos, ident: as on the wire; `tos` with the ECN bits.
        frag: flags (DF, MF) and offset in units of 8 octets.
        total_len: octets of header and payload. `emit` fills it in if it is 0.
        options: raw octets, a multiple of 4, at most 40.
    """

    saddr: bytes
    daddr: bytes
    protocol: int
    ttl: int = 64
    tos: int = 0
    ident: int = 0
    frag: int = 0
    total_len: int = 0
    options: bytes = b""

    @property
    def header_len(self) -> int:
        return HEADER_LEN + len(self.options)

    def emit(self, payload_len: int = 0) -> bytes:
        """The header with its checksum, for a payload of that many octets."""
        length = self.header_len
        total = self.total_len or length + payload_len
        fields = (0x40 | length >> 2, self.tos, total, self.ident, self.frag, self.ttl)
        addresses = (self.saddr, self.daddr)
        bare = HEADER.pack(*fields, self.protocol, 0, *addresses) + self.options
        return HEADER.pack(*fields, self.protocol, checksum(bare), *addresses) + self.options


def parse_untrusted(packet: Buffer) -> Ipv4:
    """The header that a packet starts with.

    Raises:
        WireError: no IPv4 header, a wrong checksum, or more announced than there is.
    """
    length = len(packet)
    if length < HEADER_LEN:
        raise WireError(f"IPv4 packet of {length} octets")
    first, tos, total, ident, frag, ttl, protocol, _, saddr, daddr = HEADER.unpack_from(packet)
    header = (first & 0x0F) << 2
    if first >> 4 != 4 or header < HEADER_LEN:
        raise WireError(f"IPv4 version and header length {first:#04x}")
    if not header <= total <= length:
        raise WireError(f"IPv4 total length {total}, header {header}, packet of {length} octets")
    if checksum(packet[:header]):
        raise WireError("IPv4 header checksum")
    options = bytes(packet[HEADER_LEN:header])
    return Ipv4(saddr, daddr, protocol, ttl, tos, ident, frag, total, options)


def parse_options_untrusted(options: Buffer) -> list[tuple[int, bytes]]:
    """Each option's kind and what follows its length (RFC 791; ip_options_compile).

    Raises:
        OptionError: a length that is too short, or runs over the end; a pointer that can't be; a
            second option of a kind that may be there once.
    """
    found: list[tuple[int, bytes]] = []
    at, end = 0, len(options)
    while at < end:
        kind = options[at]
        if kind == OPT_END:
            break
        if kind == OPT_NOOP:
            at += 1
            continue
        if at + 2 > end:
            raise OptionError(HEADER_LEN + at, "IPv4 option without a length")
        size = options[at + 1]
        if size < 2 or at + size > end:
            raise OptionError(HEADER_LEN + at, f"IPv4 option {kind} of {size} octets")
        value = bytes(options[at + 2 : at + size])
        _check_option(HEADER_LEN + at, kind, value, found)
        found.append((kind, value))
        at += size
    return found


def _check_option(at: int, kind: int, value: bytes, before: list[tuple[int, bytes]]) -> None:
    size = len(value) + 2
    if kind in (OPT_LSRR, OPT_SSRR):
        if size < 3:
            raise OptionError(at + 1, "source route without a pointer")
        if value[0] < 4:
            raise OptionError(at + 2, "source route pointer")
        if any(other in (OPT_LSRR, OPT_SSRR) for other, _ in before):
            raise OptionError(at, "a second source route")
    elif kind == OPT_RR:
        _check_pointer(at, value, 3, 4, "record route")
    elif kind == OPT_TIMESTAMP:
        _check_pointer(at, value, 4, 5, "timestamp")
    elif kind == OPT_RA and size < 4:
        raise OptionError(at + 1, "router alert")
    if kind in (OPT_RR, OPT_TIMESTAMP) and any(other == kind for other, _ in before):
        raise OptionError(at, f"a second option {kind}")


def _check_pointer(at: int, value: bytes, size: int, lowest: int, what: str) -> None:
    if len(value) + 2 < size:
        raise OptionError(at + 1, f"{what} option too short")
    if value[0] < lowest:
        raise OptionError(at + 2, f"{what} pointer")
