"""Reads an FPDU's DDP and RDMAP headers into a frame, and says what is wrong with them."""

from __future__ import annotations

import struct
from typing import Final

from steertag.errors import ProtocolError, WireError
from steertag.observe.decode.frames import FpduFrame, operation_name
from steertag.observe.decode.order import QN_OF, TAGGED_OPCODES
from steertag.wire import ddp, mpa, rdmap
from steertag.wire.rdmap import Opcode

_TAGGED: Final = struct.Struct("!IQ")
_UNTAGGED: Final = struct.Struct("!IIII")
_CONTROL_LEN: Final = 2
_SEND_LAST: Final = int(Opcode.SEND_SE_INVALIDATE)
_INVALIDATING: Final = frozenset({int(Opcode.SEND_INVALIDATE), int(Opcode.SEND_SE_INVALIDATE)})
# Opcodes whose message is one segment of a fixed payload.
_PAYLOAD_LEN: Final[dict[int, int]] = {
    Opcode.READ_REQUEST: rdmap.READ_REQUEST_LEN,
    Opcode.IMMEDIATE: rdmap.IMMEDIATE_LEN,
    Opcode.IMMEDIATE_SE: rdmap.IMMEDIATE_LEN,
    Opcode.ATOMIC_REQUEST: rdmap.ATOMIC_REQUEST_LEN,
    Opcode.ATOMIC_RESPONSE: rdmap.ATOMIC_RESPONSE_LEN,
}


def read_headers_untrusted(frame: FpduFrame, octets: bytes, captured: int) -> None:
    """Fill `frame` from an FPDU's octets (length field first, markers taken out).

    Only the first `captured` of them are in the capture; the others are zero. What is wrong goes
    into `frame.problems`; nothing is raised. `frame.opcode` stays None where no header can be
    read.
    """
    length = frame.ulpdu_length
    if length < _CONTROL_LEN:
        frame.problems.append(f"a ULPDU of {length} octets has no DDP header")
        return
    if captured < mpa.LENGTH_LEN + _CONTROL_LEN:
        return
    flags, ulp = octets[2], octets[3]
    if flags & ddp.VERSION_MASK != ddp.VERSION:
        frame.problems.append(f"DDP version {flags & ddp.VERSION_MASK} instead of {ddp.VERSION}")
        return
    frame.tagged = bool(flags & ddp.T_FLAG)
    header = ddp.TAGGED_LEN if frame.tagged else ddp.UNTAGGED_LEN
    if length < header:
        frame.problems.append(f"a ULPDU of {length} octets is too short for its DDP header")
        return
    if captured < mpa.LENGTH_LEN + header:
        return
    frame.last = bool(flags & ddp.L_FLAG)
    frame.payload_length = length - header
    if frame.tagged:
        frame.stag, frame.to = _TAGGED.unpack_from(octets, 4)
    else:
        frame.invalidate, frame.qn, frame.msn, frame.mo = _UNTAGGED.unpack_from(octets, 4)
    opcode = frame.opcode = ulp & rdmap.OPCODE_MASK
    if ulp & rdmap.VERSION_MASK != rdmap.VERSION_BITS:
        frame.problems.append(f"RDMAP version {ulp >> 6} instead of {rdmap.VERSION}")
    elif (opcode in TAGGED_OPCODES) != frame.tagged or opcode > Opcode.ATOMIC_RESPONSE:
        _misplaced(frame, opcode)
    elif Opcode.SEND <= opcode <= _SEND_LAST:
        if opcode not in _INVALIDATING:
            frame.invalidate = 0
    elif not frame.tagged:
        _read_body(frame, octets, mpa.LENGTH_LEN + header, captured)


def _misplaced(frame: FpduFrame, opcode: int) -> None:
    if opcode > Opcode.ATOMIC_RESPONSE:
        frame.problems.append(f"unknown RDMAP opcode {opcode}")
    else:
        how = "a tagged" if frame.tagged else "an untagged"
        frame.problems.append(f"{operation_name(opcode)} in {how} segment")


def _read_body(frame: FpduFrame, octets: bytes, at: int, captured: int) -> None:
    """What the payload of an operation's own segment says."""
    opcode = frame.opcode
    assert opcode is not None, "the header was read"
    expected = _PAYLOAD_LEN.get(opcode)
    if expected is not None and (frame.payload_length != expected or not frame.last):
        frame.problems.append(
            f"{operation_name(opcode)} of {frame.payload_length} octets"
            f"{'' if frame.last else ' that is not the last segment'} instead of {expected}"
        )
        return
    end = at + frame.payload_length
    if captured < end:
        return
    try:
        frame.body = _body(opcode, octets[at:end])
    except WireError as exc:
        frame.problems.append(str(exc))
    except ProtocolError as exc:
        frame.problems.append(exc.detail)


def _body(
    opcode: int, payload: bytes
) -> rdmap.ReadRequest | rdmap.Terminate | rdmap.AtomicRequest | rdmap.AtomicResponse | bytes:
    match opcode:
        case Opcode.READ_REQUEST:
            return rdmap.ReadRequest.parse(payload)
        case Opcode.TERMINATE:
            return rdmap.Terminate.parse(payload)
        case Opcode.ATOMIC_REQUEST:
            return rdmap.AtomicRequest.parse(payload)
        case Opcode.ATOMIC_RESPONSE:
            return rdmap.AtomicResponse.parse(payload)
    return payload


_SHORTEST: Final = mpa.LENGTH_LEN + ddp.UNTAGGED_LEN


def plausible_length(octets: bytes | bytearray, at: int) -> int | None:
    """The ULPDU length of an FPDU that begins at `at` by the looks of its headers.

    0: it doesn't look like one. None: there are too few octets to tell.
    """
    if len(octets) - at < _SHORTEST:
        return None
    length = octets[at] << 8 | octets[at + 1]
    flags, ulp = octets[at + 2], octets[at + 3]
    opcode = ulp & rdmap.OPCODE_MASK
    if (
        flags & ~(ddp.T_FLAG | ddp.L_FLAG) != ddp.VERSION
        or ulp & ~rdmap.OPCODE_MASK != rdmap.VERSION_BITS
    ):
        return 0
    if flags & ddp.T_FLAG:
        return length if opcode in TAGGED_OPCODES and length >= ddp.TAGGED_LEN else 0
    expected = _PAYLOAD_LEN.get(opcode)
    if expected is not None and length != ddp.UNTAGGED_LEN + expected:
        return 0
    _, qn, _, mo = _UNTAGGED.unpack_from(octets, at + 4)
    if QN_OF.get(opcode) != qn or length < ddp.UNTAGGED_LEN:
        return 0
    # Only Sends have more than one segment.
    return length if mo == 0 or Opcode.SEND <= opcode <= _SEND_LAST else 0
