"""DDP segment headers (RFC 5041 section 4): tagged 14 octets, untagged 18, network byte order.

     octet 0       1         2..5           6..13
    |T|L|Rsvd|DV| RsvdULP | STag         | TO                      tagged
    |T|L|Rsvd|DV| RsvdULP | RsvdULP 32   | QN 32 | MSN 32 | MO 32  untagged

The second octet belongs to RDMAP (`steertag.wire.rdmap`), as do the untagged header's 32 bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from steertag.errors import ProtocolError, WireError

Buffer = bytes | bytearray | memoryview

_TAGGED: Final = struct.Struct("!BBIQ")
_UNTAGGED: Final = struct.Struct("!BBIIII")
TAGGED_LEN: Final = _TAGGED.size
UNTAGGED_LEN: Final = _UNTAGGED.size
T_FLAG: Final = 0x80
L_FLAG: Final = 0x40
RESERVED_MASK: Final = 0x3C
VERSION_MASK: Final = 0x03
VERSION: Final = 1

LAYER_DDP: Final = 1
ETYPE_CATASTROPHIC: Final = 0
ETYPE_TAGGED: Final = 1
ETYPE_UNTAGGED: Final = 2

# Error codes of the tagged buffer model (RFC 5041 section 7.2).
T_INVALID_STAG: Final = 0x00
T_BASE_BOUNDS: Final = 0x01
T_STAG_NOT_ASSOCIATED: Final = 0x02
T_TO_WRAP: Final = 0x03
T_INVALID_VERSION: Final = 0x04

# Error codes of the untagged buffer model.
U_INVALID_QN: Final = 0x01
U_NO_BUFFER: Final = 0x02
U_MSN_RANGE: Final = 0x03
U_INVALID_MO: Final = 0x04
U_TOO_LONG: Final = 0x05
U_INVALID_VERSION: Final = 0x06


@dataclass(slots=True)
class Tagged:
    """A tagged segment's header.

    Attributes:
        last: this segment ends its message.
        ulp: the RsvdULP octet: RDMAP's version and opcode.
        stag: steering tag of the data sink's buffer.
        to: tagged offset of the first payload octet.
        reserved: the reserved bits of the first octet, kept so that parse and emit are inverses.
    """

    last: bool
    ulp: int
    stag: int
    to: int
    reserved: int = 0

    def emit(self) -> bytes:
        flags = T_FLAG | VERSION | (L_FLAG if self.last else 0) | self.reserved
        return _TAGGED.pack(flags, self.ulp, self.stag, self.to)

    def __len__(self) -> int:
        return TAGGED_LEN


@dataclass(slots=True)
class Untagged:
    """An untagged segment's header.

    Attributes:
        last: this segment ends its message.
        ulp: the RsvdULP octet: RDMAP's version and opcode.
        invalidate: RDMAP's 32 bits: the STag to invalidate, for the opcodes that carry one.
        qn: queue number: 0 Send, 1 Read Request, 2 Terminate.
        msn: message sequence number, from 1 on each queue.
        mo: message offset of the first payload octet.
        reserved: as in `Tagged`.
    """

    last: bool
    ulp: int
    qn: int
    msn: int
    mo: int = 0
    invalidate: int = 0
    reserved: int = 0

    def emit(self) -> bytes:
        flags = VERSION | (L_FLAG if self.last else 0) | self.reserved
        return _UNTAGGED.pack(flags, self.ulp, self.invalidate, self.qn, self.msn, self.mo)

    def __len__(self) -> int:
        return UNTAGGED_LEN


def parse(buf: Buffer, at: int = 0) -> Tagged | Untagged:
    """The segment header that starts at octet `at`.

    Raises WireError for a buffer that is too short, ProtocolError for a version other than 1.
    """
    if at >= len(buf):
        raise WireError("DDP header: no octets")
    flags = buf[at]
    tagged = bool(flags & T_FLAG)
    if flags & VERSION_MASK != VERSION:
        etype, code = (
            (ETYPE_TAGGED, T_INVALID_VERSION) if tagged else (ETYPE_UNTAGGED, U_INVALID_VERSION)
        )
        raise ProtocolError(
            LAYER_DDP, etype, code, f"DDP version {flags & VERSION_MASK} instead of {VERSION}"
        )
    last, reserved = bool(flags & L_FLAG), flags & RESERVED_MASK
    try:
        if tagged:
            _, ulp, stag, to = _TAGGED.unpack_from(buf, at)
            return Tagged(last, ulp, stag, to, reserved)
        _, ulp, invalidate, qn, msn, mo = _UNTAGGED.unpack_from(buf, at)
        return Untagged(last, ulp, qn, msn, mo, invalidate, reserved)
    except struct.error as exc:
        raise WireError("DDP header: too few octets") from exc
