"""ICMP messages (RFC 792; RFC 1191 for the MTU, RFC 950 and 1122 for codes).

 0                   1                   2                   3
+---------------+---------------+-------------------------------+
|     Type      |     Code      |           Checksum            |
+---------------+---------------+-------------------------------+
| rest: identifier and sequence number, or MTU, or pointer      |
+---------------------------------------------------------------+
| data: of an echo, or IP header and 8 or more octets of the    |
| packet that an error is about                                 |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from steertag.errors import WireError
from steertag.wire.checksum import Buffer, checksum

HEADER: Final = struct.Struct("!BBHI")
HEADER_LEN: Final = HEADER.size

ECHOREPLY: Final = 0
DEST_UNREACH: Final = 3
SOURCE_QUENCH: Final = 4
REDIRECT: Final = 5
ECHO: Final = 8
TIME_EXCEEDED: Final = 11
PARAMETERPROB: Final = 12
TIMESTAMP: Final = 13
TIMESTAMPREPLY: Final = 14
ADDRESS: Final = 17
ADDRESSREPLY: Final = 18
NR_TYPES: Final = 18

NET_UNREACH: Final = 0
HOST_UNREACH: Final = 1
PROT_UNREACH: Final = 2
PORT_UNREACH: Final = 3
FRAG_NEEDED: Final = 4
SR_FAILED: Final = 5
PKT_FILTERED: Final = 13

EXC_TTL: Final = 0
EXC_FRAGTIME: Final = 1

ERRORS: Final = frozenset({DEST_UNREACH, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETERPROB})
"""Types that report about another packet: never answered with an error themselves."""


@dataclass(slots=True)
class Icmp:
    """The first eight octets; data travels beside them.

    Attributes:
        rest: the second word: identifier << 16 | sequence number, the MTU, pointer << 24.
    """

    type: int
    code: int = 0
    rest: int = 0

    def emit(self, data: Buffer = b"") -> bytes:
        """The header, with the checksum over it and `data`."""
        bare = HEADER.pack(self.type, self.code, 0, self.rest)
        return HEADER.pack(self.type, self.code, checksum(bare, data), self.rest)


def parse_untrusted(message: Buffer) -> Icmp:
    """The header of a message. The checksum is the caller's to check, it is over all of it.

    Raises:
        WireError: cut off.
    """
    if len(message) < HEADER_LEN:
        raise WireError(f"ICMP message of {len(message)} octets")
    kind, code, _, rest = HEADER.unpack_from(message)
    return Icmp(kind, code, rest)
