"""What the decoder finds in a capture: start-up frames, FPDUs, and notes about the stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from steertag.observe.packet import Endpoint
from steertag.wire import mpa, rdmap

CRC_GOOD: Final = "good"
CRC_BAD: Final = "bad"
CRC_OFF: Final = "off"
CRC_UNKNOWN: Final = "unknown"
"""Octets of the FPDU are missing, or nothing says whether CRCs are in use."""

STREAM: Final = "stream"
GAP: Final = "gap"
NOTE: Final = "note"

OPCODE_NAMES: Final[dict[int, str]] = {
    rdmap.Opcode.WRITE: "Write",
    rdmap.Opcode.READ_REQUEST: "Read Request",
    rdmap.Opcode.READ_RESPONSE: "Read Response",
    rdmap.Opcode.SEND: "Send",
    rdmap.Opcode.SEND_INVALIDATE: "Send with Invalidate",
    rdmap.Opcode.SEND_SE: "Send with SE",
    rdmap.Opcode.SEND_SE_INVALIDATE: "Send with SE and Invalidate",
    rdmap.Opcode.TERMINATE: "Terminate",
    rdmap.Opcode.IMMEDIATE: "Immediate",
    rdmap.Opcode.IMMEDIATE_SE: "Immediate with SE",
    rdmap.Opcode.ATOMIC_REQUEST: "Atomic Request",
    rdmap.Opcode.ATOMIC_RESPONSE: "Atomic Response",
}

Body = (
    rdmap.ReadRequest
    | rdmap.Terminate
    | rdmap.AtomicRequest
    | rdmap.AtomicResponse
    | bytes  # Immediate Data
)


@dataclass(slots=True, frozen=True)
class Link:
    """One direction of a TCP connection.

    Attributes:
        stream: number of the connection in the capture, from 0, as tshark's tcp.stream.
        source, sink: sender and receiver.
    """

    stream: int
    source: Endpoint
    sink: Endpoint


@dataclass(slots=True)
class MpaFrame:
    """An MPA Request or Reply.

    Attributes:
        packet: number of the packet, from 1, that completes the frame.
        time_ns: when, in nanoseconds since the epoch.
        link: who sent it.
        start: the frame.
        enhanced: IRD, ORD and peer-to-peer flags, where revision 2's S flag announces them.
        problems: what is wrong with it.
    """

    packet: int
    time_ns: int
    link: Link
    start: mpa.StartFrame
    enhanced: mpa.Enhanced | None
    problems: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        return bool(self.problems)


@dataclass(slots=True)
class FpduFrame:
    """An FPDU.

    Attributes:
        packet, time_ns, link, problems: as in `MpaFrame`.
        ulpdu_length: MPA's length field.
        crc: `CRC_GOOD`, `CRC_BAD`, `CRC_OFF` or `CRC_UNKNOWN`.
        markers: how many stand in the FPDU or right before it.
        missing: octets of the FPDU are not in the capture.
        opcode: RDMAP's, or None where the header is unreadable; then the fields below mean nothing.
        last: DDP's L flag.
        tagged: which of the next fields count.
        stag, to: of a tagged segment.
        qn, msn, mo: of an untagged one.
        invalidate: STag that a Send with Invalidate names.
        payload_length: octets behind the DDP header.
        body: what the payload says, for opcodes whose payload isn't the user's.
    """

    packet: int
    time_ns: int
    link: Link
    ulpdu_length: int
    crc: str
    markers: int = 0
    missing: bool = False
    opcode: int | None = None
    last: bool = False
    tagged: bool = False
    stag: int = 0
    to: int = 0
    qn: int = 0
    msn: int = 0
    mo: int = 0
    invalidate: int = 0
    payload_length: int = 0
    body: Body | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        return self.crc == CRC_BAD or bool(self.problems)

    @property
    def name(self) -> str:
        return operation_name(self.opcode)


@dataclass(slots=True)
class Note:
    """Something about a stream that is no frame.

    Attributes:
        kind: `STREAM` (an iWARP connection begins here), `GAP` (octets are missing) or `NOTE`.
        text: one line.
        bad: it counts against the capture.
        missing: octets that a gap lacks.
    """

    packet: int
    time_ns: int
    link: Link
    kind: str
    text: str
    bad: bool = False
    missing: int = 0


Frame = MpaFrame | FpduFrame | Note


def operation_name(opcode: int | None) -> str:
    """The name of an RDMAP opcode, also of one that doesn't exist."""
    if opcode is None:
        return "FPDU"
    return OPCODE_NAMES.get(opcode, f"opcode {opcode}")
