"""RDMAP (RFC 5040 section 4, RFC 7306): the control octet and the headers behind DDP's.

Those are the Read Request, the Atomic Request and Response, Immediate Data and the Terminate.

The control octet is DDP's RsvdULP: version in bits 7:6, two reserved bits, opcode in bits 3:0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from steertag.errors import ProtocolError, WireError
from steertag.wire import ddp, mpa

Buffer = bytes | bytearray | memoryview

VERSION: Final = 1
VERSION_BITS: Final = VERSION << 6
VERSION_MASK: Final = 0xC0
OPCODE_MASK: Final = 0x0F


class Opcode(IntEnum):
    """RFC 5040 section 4.1; from IMMEDIATE on RFC 7306 section 4."""

    WRITE = 0
    READ_REQUEST = 1
    READ_RESPONSE = 2
    SEND = 3
    SEND_INVALIDATE = 4
    SEND_SE = 5
    SEND_SE_INVALIDATE = 6
    TERMINATE = 7
    IMMEDIATE = 8
    IMMEDIATE_SE = 9
    ATOMIC_REQUEST = 10
    ATOMIC_RESPONSE = 11


_OPCODES: Final = {int(opcode): opcode for opcode in Opcode}

QN_SEND: Final = 0
QN_READ_REQUEST: Final = 1
QN_TERMINATE: Final = 2
QN_ATOMIC_RESPONSE: Final = 3

LAYER_RDMAP: Final = 0
ETYPE_CATASTROPHIC: Final = 0
ETYPE_PROTECTION: Final = 1
ETYPE_OPERATION: Final = 2

# Remote protection errors (RFC 5040 section 4.8).
P_INVALID_STAG: Final = 0x00
P_BASE_BOUNDS: Final = 0x01
P_ACCESS: Final = 0x02
P_STAG_NOT_ASSOCIATED: Final = 0x03
P_TO_WRAP: Final = 0x04
P_CANNOT_INVALIDATE: Final = 0x09
P_UNSPECIFIED: Final = 0xFF

# Remote operation errors.
O_INVALID_VERSION: Final = 0x05
O_UNEXPECTED_OPCODE: Final = 0x06
O_CATASTROPHIC_STREAM: Final = 0x07
O_CATASTROPHIC_GLOBAL: Final = 0x08
O_CANNOT_INVALIDATE: Final = 0x09
O_UNSPECIFIED: Final = 0xFF


def control(opcode: int) -> int:
    """The control octet of a message with `opcode`."""
    return VERSION_BITS | opcode


def parse_control(octet: int) -> Opcode:
    """The opcode of a control octet.

    Raises ProtocolError for a version other than 1 or an opcode that no RFC defines.
    """
    if octet & VERSION_MASK != VERSION_BITS:
        raise ProtocolError(
            LAYER_RDMAP, ETYPE_OPERATION, O_INVALID_VERSION, f"RDMAP version {octet >> 6}"
        )
    opcode = _OPCODES.get(octet & OPCODE_MASK)
    if opcode is None:
        raise ProtocolError(
            LAYER_RDMAP,
            ETYPE_OPERATION,
            O_UNEXPECTED_OPCODE,
            f"RDMAP opcode {octet & OPCODE_MASK}",
        )
    return opcode


_READ_REQUEST: Final = struct.Struct("!IQIIQ")


@dataclass(slots=True, frozen=True)
class ReadRequest:
    """The 28 octets of a Read Request (RFC 5040 section 4.4), payload of an untagged segment.

    Attributes:
        sink_stag, sink_to: where the Read Response goes, in the requester's memory.
        size: octets to read.
        source_stag, source_to: where they are, in the responder's memory.
    """

    sink_stag: int
    sink_to: int
    size: int
    source_stag: int
    source_to: int

    @classmethod
    def parse(cls, buf: Buffer, at: int = 0) -> ReadRequest:
        try:
            return cls(*_READ_REQUEST.unpack_from(buf, at))
        except struct.error as exc:
            raise WireError("RDMAP Read Request: too few octets") from exc

    def emit(self) -> bytes:
        return _READ_REQUEST.pack(
            self.sink_stag, self.sink_to, self.size, self.source_stag, self.source_to
        )


READ_REQUEST_LEN: Final = _READ_REQUEST.size


class AtomicOpcode(IntEnum):
    """RFC 7306 section 5.2.1. Swap is in its text; its number is that of the RFC's drafts."""

    FETCH_ADD = 0
    SWAP = 1
    CMP_SWAP = 2


_ATOMIC_OPCODES: Final = {int(opcode): opcode for opcode in AtomicOpcode}
_ATOMIC_REQUEST: Final = struct.Struct("!IIIQQQQQ")
_ATOMIC_RESPONSE: Final = struct.Struct("!IQ")
ATOMIC_REQUEST_LEN: Final = _ATOMIC_REQUEST.size
ATOMIC_RESPONSE_LEN: Final = _ATOMIC_RESPONSE.size
_ATOMIC_OPCODE_MASK: Final = 0x0F
ALL_BITS: Final = (1 << 64) - 1
IMMEDIATE_LEN: Final = 8
"""Octets of an Immediate Data message; verbs programs use the first four (RFC 7306 section 6)."""


@dataclass(slots=True, frozen=True)
class AtomicRequest:
    """The 52 octets of an Atomic Request (RFC 7306 section 5.2.1), payload of an untagged segment.

         32 bits: reserved 28, AOpCode 4 | Request Identifier 32 | Remote STag 32
         64 bits each: Remote TO | Add or Swap Data | Add or Swap Mask | Compare Data | Compare Mask

    Attributes:
        opcode: what to do.
        identifier: comes back in the Atomic Response.
        stag, to: the 8 octets in the responder's memory.
        swap_data, swap_mask: what is added or put there, and its mask.
        compare_data, compare_mask: for CmpSwap.
        reserved: reserved bits, kept so that parse and emit are inverses.
    """

    opcode: AtomicOpcode
    identifier: int
    stag: int
    to: int
    swap_data: int = 0
    swap_mask: int = 0
    compare_data: int = 0
    compare_mask: int = 0
    reserved: int = 0

    @classmethod
    def parse(cls, buf: Buffer, at: int = 0) -> AtomicRequest:
        """Raises WireError for too few octets, ProtocolError for an AOpCode that isn't defined."""
        try:
            word, identifier, stag, to, swap, swap_mask, compare, compare_mask = (
                _ATOMIC_REQUEST.unpack_from(buf, at)
            )
        except struct.error as exc:
            raise WireError("RDMAP Atomic Request: too few octets") from exc
        opcode = _ATOMIC_OPCODES.get(word & _ATOMIC_OPCODE_MASK)
        if opcode is None:
            raise ProtocolError(
                LAYER_RDMAP,
                ETYPE_OPERATION,
                O_UNEXPECTED_OPCODE,
                f"atomic operation code {word & _ATOMIC_OPCODE_MASK}",
            )
        reserved = word & ~_ATOMIC_OPCODE_MASK
        return cls(opcode, identifier, stag, to, swap, swap_mask, compare, compare_mask, reserved)

    def emit(self) -> bytes:
        return _ATOMIC_REQUEST.pack(
            self.reserved | self.opcode,
            self.identifier,
            self.stag,
            self.to,
            self.swap_data,
            self.swap_mask,
            self.compare_data,
            self.compare_mask,
        )


@dataclass(slots=True, frozen=True)
class AtomicResponse:
    """The 12 octets of an Atomic Response (RFC 7306 section 5.2.2), on queue 3.

    Attributes:
        identifier: the request's.
        value: what the 8 octets held before.
    """

    identifier: int
    value: int

    @classmethod
    def parse(cls, buf: Buffer, at: int = 0) -> AtomicResponse:
        try:
            return cls(*_ATOMIC_RESPONSE.unpack_from(buf, at))
        except struct.error as exc:
            raise WireError("RDMAP Atomic Response: too few octets") from exc

    def emit(self) -> bytes:
        return _ATOMIC_RESPONSE.pack(self.identifier, self.value)


_TERMINATE: Final = struct.Struct("!BBBB")
_SEGMENT_LEN: Final = struct.Struct("!H")
TERMINATE_MIN_LEN: Final = _TERMINATE.size
_HDRCT_M: Final = 0x80
_HDRCT_D: Final = 0x40
_HDRCT_R: Final = 0x20
_HDRCT_MASK: Final = 0xE0

# The error codes that the RFCs define for a (layer, etype): what tells the two forms apart.
_DEFINED: Final[dict[tuple[int, int], frozenset[int]]] = {
    (LAYER_RDMAP, ETYPE_CATASTROPHIC): frozenset({0x00}),
    (LAYER_RDMAP, ETYPE_PROTECTION): frozenset({0, 1, 2, 3, 4, 9, 0xFF}),
    (LAYER_RDMAP, ETYPE_OPERATION): frozenset({5, 6, 7, 8, 9, 0xFF}),
    (ddp.LAYER_DDP, ddp.ETYPE_CATASTROPHIC): frozenset({0x00}),
    (ddp.LAYER_DDP, ddp.ETYPE_TAGGED): frozenset({0, 1, 2, 3, 4}),
    (ddp.LAYER_DDP, ddp.ETYPE_UNTAGGED): frozenset({1, 2, 3, 4, 5, 6}),
    (mpa.LAYER_LLP, mpa.ETYPE_MPA): frozenset({1, 2, 3, 4, 5, 6, 7}),
}


@dataclass(slots=True, frozen=True)
class Terminate:
    """A Terminate message's payload (RFC 5040 section 4.8).

    Attributes:
        layer, etype, code: what went wrong, as in `ProtocolError`.
        segment_length: length of the DDP segment at fault, where its header is included.
        ddp_header: that segment's DDP header (14 or 18 octets), or empty.
        rdma_header: the RDMAP header behind it (a Read Request's 28 octets), or empty.
        swapped: the control word is in the form that Linux's siw sends on little-endian machines:
            nibbles of the first octet exchanged and the header bits M, D, R at the low end.
        reserved: reserved bits of the control word, kept so that parse and emit are inverses.
        trailing: octets behind what the header bits announce.
    """

    layer: int
    etype: int
    code: int
    segment_length: int | None = None
    ddp_header: bytes = b""
    rdma_header: bytes = b""
    swapped: bool = False
    reserved: int = 0
    trailing: bytes = b""

    @classmethod
    def parse(cls, buf: Buffer, at: int = 0) -> Terminate:
        """Raises WireError for a buffer that ends before what its header bits announce."""
        try:
            first, code, hdrct, low = _TERMINATE.unpack_from(buf, at)
        except struct.error as exc:
            raise WireError("RDMAP Terminate: too few octets") from exc
        swapped = _is_swapped(first, code, hdrct)
        if swapped:
            layer, etype = first & 0x0F, first >> 4
            m, d, r = hdrct & 0x01, hdrct & 0x02, hdrct & 0x04
            reserved = (hdrct & 0xF8) << 8 | low
        else:
            layer, etype = first >> 4, first & 0x0F
            m, d, r = hdrct & _HDRCT_M, hdrct & _HDRCT_D, hdrct & _HDRCT_R
            reserved = (hdrct & ~_HDRCT_MASK) << 8 | low
        rest = bytes(buf[at + TERMINATE_MIN_LEN :])
        segment_length: int | None = None
        ddp_header = rdma_header = b""
        if m:
            if len(rest) < _SEGMENT_LEN.size:
                raise WireError("RDMAP Terminate: no segment length")
            (segment_length,) = _SEGMENT_LEN.unpack_from(rest)
            rest = rest[_SEGMENT_LEN.size :]
        if d:
            if not rest:
                raise WireError("RDMAP Terminate: no DDP header")
            size = ddp.TAGGED_LEN if rest[0] & ddp.T_FLAG else ddp.UNTAGGED_LEN
            ddp_header, rest = _take(rest, size, "DDP header")
        if r:
            rdma_header, rest = _take(rest, READ_REQUEST_LEN, "RDMA header")
        return cls(
            layer,
            etype,
            code,
            segment_length,
            ddp_header,
            rdma_header,
            swapped,
            reserved,
            rest,
        )

    def emit(self) -> bytes:
        m, d, r = self.segment_length is not None, bool(self.ddp_header), bool(self.rdma_header)
        high = self.reserved >> 8
        if self.swapped:
            first = self.etype << 4 | self.layer
            hdrct = high | (0x01 if m else 0) | (0x02 if d else 0) | (0x04 if r else 0)
        else:
            first = self.layer << 4 | self.etype
            hdrct = high | (_HDRCT_M if m else 0) | (_HDRCT_D if d else 0) | (_HDRCT_R if r else 0)
        word = _TERMINATE.pack(first, self.code, hdrct, self.reserved & 0xFF)
        length = b"" if self.segment_length is None else _SEGMENT_LEN.pack(self.segment_length)
        return word + length + self.ddp_header + self.rdma_header + self.trailing


def _take(rest: bytes, size: int, what: str) -> tuple[bytes, bytes]:
    if len(rest) < size:
        raise WireError(f"RDMAP Terminate: {what} cut short")
    return rest[:size], rest[size:]


def _is_swapped(first: int, code: int, hdrct: int) -> bool:
    """Whether the control word reads as siw's form only (facts: its bit fields are native)."""
    if hdrct & _HDRCT_MASK:
        return False
    if hdrct & 0x07:
        return True
    rfc, siw = (first >> 4, first & 0x0F), (first & 0x0F, first >> 4)
    return code not in _DEFINED.get(rfc, ()) and code in _DEFINED.get(siw, ())
