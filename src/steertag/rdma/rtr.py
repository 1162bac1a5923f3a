"""Ready-to-receive frames of peer-to-peer mode (RFC 6581 section 9.2; Linux: `siw_qp_mpa_rts`).

The responder may not send before the initiator has. In peer-to-peer mode the initiator's RNIC
sends a first FPDU of its own, so that neither application has to: a message without payload. It
takes a message sequence number like any other of its kind, but no posted receive, and completes
nothing.
"""

from __future__ import annotations

from typing import Final, Literal

from steertag.errors import ProtocolError, WireError
from steertag.wire import ddp, mpa, rdmap

Buffer = bytes | bytearray | memoryview
RtrKind = Literal["write", "read", "send"]

RTR_KINDS: Final[tuple[RtrKind, ...]] = ("write", "read", "send")
"""Every kind, in the order in which siw prefers those that it knows."""
MAX_FPDU: Final = 256
"""Octets of the initiator's first FPDU at most: a Terminate is the longest that may come."""
_STAG: Final = 1
"""Some hardware treats STag 0 specially; siw sends 1, and so do we."""


def ulpdu_of(kind: RtrKind) -> bytes:
    """The initiator's frame: MSN 1 of its queue, if it is an untagged one."""
    if kind == "write":
        return ddp.Tagged(True, rdmap.control(rdmap.Opcode.WRITE), _STAG, 0).emit()
    if kind == "send":
        return ddp.Untagged(True, rdmap.control(rdmap.Opcode.SEND), rdmap.QN_SEND, 1).emit()
    control = rdmap.control(rdmap.Opcode.READ_REQUEST)
    header = ddp.Untagged(True, control, rdmap.QN_READ_REQUEST, 1)
    return header.emit() + rdmap.ReadRequest(0, 0, 0, _STAG, 0).emit()


def terminate_ulpdu(error: ProtocolError) -> bytes:
    """A Terminate that says what was wrong with the set-up."""
    control = rdmap.control(rdmap.Opcode.TERMINATE)
    header = ddp.Untagged(True, control, rdmap.QN_TERMINATE, 1)
    return header.emit() + rdmap.Terminate(error.layer, error.etype, error.code).emit()


def no_match(detail: str) -> ProtocolError:
    """The initiator's first FPDU isn't one that was agreed on."""
    return ProtocolError(mpa.LAYER_LLP, mpa.ETYPE_MPA, mpa.E_NO_MATCHING_RTR, detail)


def take_untrusted(ulpdu: memoryview) -> tuple[RtrKind, bytes] | rdmap.Terminate:
    """What the initiator's first FPDU is: the kind of frame, and the ULPDU that answers it.

    Only a zero-length Read has an answer, a zero-length Read Response; it is empty for the others.
    An initiator that can't go on sends a Terminate instead. Raises ProtocolError for anything else.
    """
    try:
        header = ddp.parse(ulpdu)
        opcode = rdmap.parse_control(header.ulp)
        payload = ulpdu[len(header) :]
        if isinstance(header, ddp.Untagged) and header.qn == rdmap.QN_TERMINATE:
            if opcode is rdmap.Opcode.TERMINATE:
                return rdmap.Terminate.parse(payload)
        elif isinstance(header, ddp.Tagged):
            if opcode is rdmap.Opcode.WRITE and header.last and not payload:
                return "write", b""
        elif (header.msn, header.mo, header.last) != (1, 0, True):
            raise no_match("not a first message of one segment")
        elif header.qn == rdmap.QN_SEND and opcode is rdmap.Opcode.SEND and not payload:
            return "send", b""
        elif header.qn == rdmap.QN_READ_REQUEST and opcode is rdmap.Opcode.READ_REQUEST:
            request = rdmap.ReadRequest.parse(payload)
            if not request.size and len(payload) == rdmap.READ_REQUEST_LEN:
                control = rdmap.control(rdmap.Opcode.READ_RESPONSE)
                answer = ddp.Tagged(True, control, request.sink_stag, request.sink_to)
                return "read", answer.emit()
    except WireError as exc:
        raise no_match(f"first FPDU: {exc}") from exc
    raise no_match(f"{opcode.name} as the first message instead of ready-to-receive")
