"""The UDP header (RFC 768; over IPv6: RFC 8200 section 8.1).

 0                   1                   2                   3
+-------------------------------+-------------------------------+
|          Source Port          |       Destination Port        |
+-------------------------------+-------------------------------+
|            Length             |           Checksum            |
+-------------------------------+-------------------------------+
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from steertag.errors import WireError

Buffer = bytes | bytearray | memoryview

HEADER: Final = struct.Struct("!HHHH")
"""Source port, destination port, length of header and payload, checksum."""
HEADER_LEN: Final = HEADER.size
CHECKSUM_AT: Final = 6
MAX_PAYLOAD: Final = 65535 - HEADER_LEN
"""Octets of payload that the length field can say; IPv4's own header takes 20 more off."""


@dataclass(slots=True)
class UdpHeader:
    """One header.

    Attributes:
        length: octets of header and payload.
        checksum: 0: the sender computed none, which only IPv4 allows.
    """

    sport: int
    dport: int
    length: int
    checksum: int = 0

    @classmethod
    def parse(cls, datagram: Buffer) -> tuple[UdpHeader, memoryview]:
        """The header, and the payload that its length says; what follows that is padding.

        Raises:
            WireError: fewer octets than a header, or than its length says, or a length that does
                not cover the header.
        """
        view = memoryview(datagram)
        if len(view) < HEADER_LEN:
            raise WireError(f"UDP: {len(view)} octets are no header")
        header = cls(*HEADER.unpack_from(view))
        if not HEADER_LEN <= header.length <= len(view):
            raise WireError(f"UDP: length {header.length} of {len(view)} octets")
        return header, view[HEADER_LEN : header.length]

    def emit(self) -> bytes:
        return HEADER.pack(self.sport, self.dport, self.length, self.checksum)
