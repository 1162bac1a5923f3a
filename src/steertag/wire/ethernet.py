"""The Ethernet header (IEEE 802.3; RFC 894, RFC 2464).

+-----------------------------+
| Destination, 6 octets       |
| Source, 6 octets            |
| EtherType, 2 octets         |
+-----------------------------+
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from steertag.errors import WireError
from steertag.wire.checksum import Buffer

HEADER: Final = struct.Struct("!6s6sH")
HEADER_LEN: Final = HEADER.size
ADDRESS_LEN: Final = 6

ETH_P_IP: Final = 0x0800
ETH_P_ARP: Final = 0x0806
ETH_P_IPV6: Final = 0x86DD

BROADCAST: Final = b"\xff" * 6


@dataclass(slots=True)
class Ethernet:
    """A header. `dest`, `source`: six octets each."""

    dest: bytes
    source: bytes
    ethertype: int

    def emit(self) -> bytes:
        return HEADER.pack(self.dest, self.source, self.ethertype)


def parse_untrusted(frame: Buffer) -> Ethernet:
    """The header that a frame starts with. Raises WireError if it is cut off."""
    if len(frame) < HEADER_LEN:
        raise WireError(f"Ethernet frame of {len(frame)} octets")
    return Ethernet(*HEADER.unpack_from(frame))


def multicast_v4(group: bytes) -> bytes:
    """Where a group's packets are sent (RFC 1112 section 6.4)."""
    return bytes((0x01, 0x00, 0x5E, group[1] & 0x7F, group[2], group[3]))


def multicast_v6(group: bytes) -> bytes:
    """Where a group's packets are sent (RFC 2464 section 7)."""
    return b"\x33\x33" + group[12:]


def modified_eui64(address: bytes) -> bytes:
    """The interface identifier made from an address (RFC 4291 appendix A), eight octets."""
    return bytes((address[0] ^ 2, *address[1:3], 0xFF, 0xFE, *address[3:]))


def format_address(address: bytes) -> str:
    """As ip(8) prints it: 02:00:00:00:00:01."""
    return address.hex(":")
