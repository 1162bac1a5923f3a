"""The headers of a capture file: libpcap 2.4, little-endian, microseconds.

https://www.tcpdump.org/manpages/pcap-savefile.5.html. A file header, then for every packet a
record header and its octets.
"""

from __future__ import annotations

import struct
from typing import Final

LINKTYPE_ETHERNET: Final = 1
LINKTYPE_RAW: Final = 101
"""Packets that begin with their IP header, of version 4 or 6."""

MAX_SNAPLEN: Final = 262_144
"""The most octets of one packet that a capture may hold (libpcap's limit)."""

_MICROSECONDS: Final = 0xA1B2C3D4
_FILE_HEADER: Final = struct.Struct("<IHHiIII")  # magic, version, zone, sigfigs, snaplen, link type
_RECORD: Final = struct.Struct("<IIII")  # seconds, fraction, octets captured, octets on the wire


def file_header(linktype: int) -> bytes:
    """What a capture of packets of this LINKTYPE_ begins with."""
    return _FILE_HEADER.pack(_MICROSECONDS, 2, 4, 0, 0, MAX_SNAPLEN, linktype)


def record_header(microseconds: int, captured: int, length: int) -> bytes:
    """What stands before a packet.

    Args:
        microseconds: since the epoch.
        captured: octets that follow. length: those that the packet had.
    """
    seconds, fraction = divmod(microseconds, 1_000_000)
    return _RECORD.pack(seconds & 0xFFFFFFFF, fraction, captured, length)
