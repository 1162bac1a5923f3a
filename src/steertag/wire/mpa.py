"""MPA (RFC 5044, RFC 6581): the two start-up frames, and the framing of an FPDU.

Start-up frame, 20 octets and private data:

     octet 0..15   16          17    18..19    20..
    | key        | M C R S rsvd | Rev | PD_Length | Private Data |

FPDU:

     octet 0..1       2..               to a multiple of 4    last 4
    | ULPDU_Length | ULPDU            | PAD (zero)          | CRC32C, little-endian |
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from steertag.errors import ProtocolError
from steertag.wire.crc32c import CRC_FIELD, crc32c

Buffer = bytes | bytearray | memoryview

KEY_REQUEST: Final = b"MPA ID Req Frame"
KEY_REPLY: Final = b"MPA ID Rep Frame"
_START: Final = struct.Struct("!16sBBH")
START_LEN: Final = _START.size
MAX_PRIVATE_DATA: Final = 512
"""Octets of private data in a start-up frame (RFC 5044 section 7.1.1)."""

FLAG_MARKERS: Final = 0x80
FLAG_CRC: Final = 0x40
FLAG_REJECT: Final = 0x20
FLAG_ENHANCED: Final = 0x10

LENGTH_LEN: Final = 2
CRC_LEN: Final = 4
MAX_ULPDU: Final = 0xFFFF
_LENGTH: Final = struct.Struct("!H")
_PADS: Final = (b"", b"\0", b"\0\0", b"\0\0\0")

LAYER_LLP: Final = 2
ETYPE_MPA: Final = 0
E_STREAM_LOST: Final = 0x01
E_CRC: Final = 0x02
E_MARKER: Final = 0x03
E_START_FRAME: Final = 0x04
E_LOCAL_CATASTROPHIC: Final = 0x05
E_INSUFFICIENT_IRD: Final = 0x06
E_NO_MATCHING_RTR: Final = 0x07


@dataclass(slots=True, frozen=True)
class StartFrame:
    """An MPA Request or Reply Frame (RFC 5044 section 7.1.1).

    Attributes:
        reply: it is a Reply, not a Request.
        markers, crc, reject: the flags M, C and R.
        enhanced: flag S: the private data begins with `Enhanced` (RFC 6581 section 9).
        revision: 1 (RFC 5044) or 2 (RFC 6581); others parse, the state machine refuses them.
        private_data: as on the wire, the `Enhanced` words included.
        reserved: the low four bits of the flags octet, kept so that parse and emit are inverses.
    """

    reply: bool
    markers: bool = False
    crc: bool = False
    reject: bool = False
    enhanced: bool = False
    revision: int = 2
    private_data: bytes = b""
    reserved: int = 0

    @classmethod
    def parse(cls, buf: Buffer, at: int = 0) -> StartFrame | None:
        """The frame that starts at octet `at`, or None while more octets are needed.

        Raises ProtocolError for a wrong key (as soon as the octets there rule both keys out) and
        for private data over `MAX_PRIVATE_DATA`.
        """
        have = len(buf) - at
        key = bytes(buf[at : at + min(have, len(KEY_REQUEST))])
        if not (KEY_REQUEST.startswith(key) or KEY_REPLY.startswith(key)):
            raise ProtocolError(LAYER_LLP, ETYPE_MPA, E_START_FRAME, "MPA key is wrong")
        if have < START_LEN:
            return None
        key, flags, revision, length = _START.unpack_from(buf, at)
        if length > MAX_PRIVATE_DATA:
            raise ProtocolError(
                LAYER_LLP, ETYPE_MPA, E_START_FRAME, f"MPA private data of {length} octets"
            )
        if have < START_LEN + length:
            return None
        return cls(
            reply=key == KEY_REPLY,
            markers=bool(flags & FLAG_MARKERS),
            crc=bool(flags & FLAG_CRC),
            reject=bool(flags & FLAG_REJECT),
            enhanced=bool(flags & FLAG_ENHANCED),
            revision=revision,
            private_data=bytes(buf[at + START_LEN : at + START_LEN + length]),
            reserved=flags & 0x0F,
        )

    def emit(self) -> bytes:
        """The whole frame. Raises ValueError for private data over `MAX_PRIVATE_DATA`."""
        if len(self.private_data) > MAX_PRIVATE_DATA:
            raise ValueError(f"MPA private data of {len(self.private_data)} octets")
        flags = (
            (FLAG_MARKERS if self.markers else 0)
            | (FLAG_CRC if self.crc else 0)
            | (FLAG_REJECT if self.reject else 0)
            | (FLAG_ENHANCED if self.enhanced else 0)
            | self.reserved
        )
        key = KEY_REPLY if self.reply else KEY_REQUEST
        head = _START.pack(key, flags, self.revision, len(self.private_data))
        return head + self.private_data

    def __len__(self) -> int:
        return START_LEN + len(self.private_data)


_ENHANCED: Final = struct.Struct("!HH")
ENHANCED_LEN: Final = _ENHANCED.size
MAX_IRD_ORD: Final = 0x3FFF
_HIGH: Final = 0x8000
_LOW: Final = 0x4000


@dataclass(slots=True, frozen=True)
class Enhanced:
    """The first four octets of an enhanced frame's private data (RFC 6581 section 9).

    Attributes:
        ird, ord: Read Requests that the sender takes and makes at once, 14 bits each;
            0x3FFF means that the sender doesn't negotiate the number.
        peer_to_peer: control flag A.
        rtr_send, rtr_write, rtr_read: which zero-length ready-to-receive frames the sender knows
            (flags B, C and D).
    """

    ird: int
    ord: int
    peer_to_peer: bool = False
    rtr_send: bool = False
    rtr_write: bool = False
    rtr_read: bool = False

    @classmethod
    def parse(cls, private_data: Buffer) -> Enhanced:
        """Raises ProtocolError where the private data is too short to hold the two words."""
        if len(private_data) < ENHANCED_LEN:
            raise ProtocolError(
                LAYER_LLP, ETYPE_MPA, E_START_FRAME, "enhanced MPA frame without IRD and ORD"
            )
        ird, ord_ = _ENHANCED.unpack_from(private_data)
        return cls(
            ird=ird & MAX_IRD_ORD,
            ord=ord_ & MAX_IRD_ORD,
            peer_to_peer=bool(ird & _HIGH),
            rtr_send=bool(ird & _LOW),
            rtr_write=bool(ord_ & _HIGH),
            rtr_read=bool(ord_ & _LOW),
        )

    def emit(self) -> bytes:
        ird = self.ird | (_HIGH if self.peer_to_peer else 0) | (_LOW if self.rtr_send else 0)
        ord_ = self.ord | (_HIGH if self.rtr_write else 0) | (_LOW if self.rtr_read else 0)
        return _ENHANCED.pack(ird, ord_)


def pad_len(ulpdu_len: int) -> int:
    """Octets of PAD after a ULPDU of `ulpdu_len` octets."""
    return -(LENGTH_LEN + ulpdu_len) & 3


def fpdu_len(ulpdu_len: int) -> int:
    """Octets of the whole FPDU that carries a ULPDU of `ulpdu_len` octets."""
    return LENGTH_LEN + ulpdu_len + pad_len(ulpdu_len) + CRC_LEN


@dataclass(slots=True, frozen=True)
class Fpdu:
    """One FPDU read from a contiguous buffer.

    Attributes:
        ulpdu: the DDP segment, a view of the buffer it was read from.
        crc: the CRC field as sent.
        computed: the CRC32C over length, ULPDU and PAD.
        size: octets that the FPDU takes in the stream.
    """

    ulpdu: memoryview
    crc: int
    computed: int
    size: int

    @property
    def crc_ok(self) -> bool:
        return self.crc == self.computed

    @classmethod
    def parse(cls, buf: Buffer, at: int = 0) -> Fpdu | None:
        """The FPDU that starts at octet `at`, or None while more octets are needed.

        A wrong CRC isn't an error here: the connection knows whether CRCs are in use. What PAD
        holds is ignored, but counts for the CRC (RFC 5044 section 4).
        """
        have = len(buf) - at
        if have < LENGTH_LEN:
            return None
        (length,) = _LENGTH.unpack_from(buf, at)
        size = fpdu_len(length)
        if have < size:
            return None
        view = memoryview(buf)[at : at + size]
        (crc,) = CRC_FIELD.unpack_from(view, size - CRC_LEN)
        return cls(
            ulpdu=view[LENGTH_LEN : LENGTH_LEN + length],
            crc=crc,
            computed=crc32c(view[: size - CRC_LEN]),
            size=size,
        )


def emit_fpdu(ulpdu: Sequence[Buffer], *, crc: bool = True) -> list[Buffer]:
    """The parts of the FPDU whose ULPDU is the concatenation of `ulpdu`; payload isn't copied.

    Raises ValueError for a ULPDU over `MAX_ULPDU` octets.
    """
    length = sum(map(len, ulpdu))
    if length > MAX_ULPDU:
        raise ValueError(f"ULPDU of {length} octets")
    parts: list[Buffer] = [_LENGTH.pack(length), *ulpdu]
    pad = _PADS[pad_len(length)]
    value = 0
    if crc:
        for part in parts:
            value = crc32c(part, value)
        value = crc32c(pad, value)
    parts.append(pad + CRC_FIELD.pack(value))
    return parts
