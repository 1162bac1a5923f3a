"""ARP for IPv4 over Ethernet (RFC 826; address conflicts: RFC 5227).

 0                   1                   2                   3
+-------------------------------+-------------------------------+
|       Hardware Type (1)       |    Protocol Type (0x0800)     |
+---------------+---------------+-------------------------------+
| HW length (6) | Addr len. (4) |           Operation           |
+---------------+---------------+-------------------------------+
|   Sender hardware address (6), sender address (4)             |
|   Target hardware address (6), target address (4)             |
+---------------------------------------------------------------+
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from steertag.errors import WireError
from steertag.wire.checksum import Buffer

PACKET: Final = struct.Struct("!HHBBH6s4s6s4s")
PACKET_LEN: Final = PACKET.size

REQUEST: Final = 1
REPLY: Final = 2
_ETHERNET: Final = 1
_IPV4: Final = 0x0800


@dataclass(slots=True)
class Arp:
    """A packet. `sha`, `tha`: hardware addresses; `spa`, `tpa`: IPv4 addresses."""

    operation: int
    sha: bytes
    spa: bytes
    tha: bytes
    tpa: bytes

    def emit(self) -> bytes:
        addresses = (self.sha, self.spa, self.tha, self.tpa)
        return PACKET.pack(_ETHERNET, _IPV4, 6, 4, self.operation, *addresses)


def parse_untrusted(data: Buffer) -> Arp:
    """An ARP packet; padding after it is left alone.

    Raises:
        WireError: cut off, or not of IPv4 over Ethernet.
    """
    if len(data) < PACKET_LEN:
        raise WireError(f"ARP packet of {len(data)} octets")
    hardware, protocol, hw_len, addr_len, operation, *addresses = PACKET.unpack_from(data)
    if (hardware, protocol, hw_len, addr_len) != (_ETHERNET, _IPV4, 6, 4):
        raise WireError(f"ARP for hardware {hardware}, protocol {protocol:#06x}")
    return Arp(operation, *addresses)
