"""Whether the segments of one direction follow each other as DDP and RDMAP want it.

A TCP stream keeps segments in order, so every one of them can be foretold: the queue, MSN and MO of
an untagged segment (RFC 5041 section 4.3), STag and TO of one that goes on with a tagged message,
and which Read Response answers which Read Request (RFC 5040 section 5.2).

What the capture lacks isn't held against the stream: behind a gap, and where a capture begins in
the middle, the first segment of each kind is believed; Read Responses aren't matched any more, as
buffers are used again and again and nothing else in them says which request they answer.
"""

from __future__ import annotations

from typing import Final

from steertag.observe.decode.frames import FpduFrame, operation_name
from steertag.wire import rdmap
from steertag.wire.rdmap import Opcode

QN_OF: Final[dict[int, int]] = {
    Opcode.READ_REQUEST: rdmap.QN_READ_REQUEST,
    Opcode.SEND: rdmap.QN_SEND,
    Opcode.SEND_INVALIDATE: rdmap.QN_SEND,
    Opcode.SEND_SE: rdmap.QN_SEND,
    Opcode.SEND_SE_INVALIDATE: rdmap.QN_SEND,
    Opcode.TERMINATE: rdmap.QN_TERMINATE,
    Opcode.IMMEDIATE: rdmap.QN_SEND,
    Opcode.IMMEDIATE_SE: rdmap.QN_SEND,
    Opcode.ATOMIC_REQUEST: rdmap.QN_READ_REQUEST,
    Opcode.ATOMIC_RESPONSE: rdmap.QN_ATOMIC_RESPONSE,
}
"""The queue of each untagged opcode; an opcode that isn't here is a tagged one or none."""

TAGGED_OPCODES: Final = frozenset({int(Opcode.WRITE), int(Opcode.READ_RESPONSE)})

_WORD: Final = 0xFFFFFFFF
_MAX_OUTSTANDING: Final = 0x4000  # ORD has 14 bits
_NEAR: Final = 1 << 16
_FAMILIAR: Final = 16


class SegmentOrder:
    """The state of one direction.

    Attributes:
        familiar_stags: STags that tagged segments named lately.
        intact: the capture lacked nothing of this direction so far.
        terminated: a Terminate was sent, behind which nothing may follow.
    """

    def __init__(self) -> None:
        # QN -> the next segment's MSN and MO, and the opcode that a message in progress has.
        self._queues: dict[int, tuple[int, int, int | None]] = {}
        self._tagged: tuple[int, int, int] | None = None  # opcode, STag, TO of what must follow
        self._requests: list[rdmap.ReadRequest] = []
        self._answered = 0  # octets of the oldest request's Response
        self._all_requests = True  # neither one nor the Response to one went by unseen
        self._last_msn: dict[int, int] = {}  # of each queue; a gap doesn't make it forgotten
        self.familiar_stags: list[int] = []
        self.intact = True
        self.terminated = False

    def lose(self) -> None:
        """Segments may have gone by unseen."""
        self._queues.clear()
        self._tagged = None
        self.intact = False
        self.forget_requests()

    def forget_requests(self) -> None:
        """Requests, or Responses to them, may have gone by unseen."""
        self._requests.clear()
        self._answered = 0
        self._all_requests = False

    def foresees(self, qn: int, msn: int) -> bool:
        """Whether an untagged segment like this may well be a later one of this direction."""
        last = self._last_msn.get(qn)
        return last is not None and (msn - last) & _WORD < _NEAR

    def untagged(self, frame: FpduFrame) -> None:
        """Note an untagged segment; what is wrong goes into `frame.problems`."""
        assert frame.opcode is not None, "a segment without a header has no order"
        qn = frame.qn
        expected_qn = QN_OF.get(frame.opcode)
        if expected_qn is None:
            return  # an unknown opcode, or a tagged one: the reader of headers said so
        if qn != expected_qn:
            frame.problems.append(f"QN {qn} instead of {expected_qn}")
            return
        msn, mo, opcode = self._queues.get(
            qn, (1, 0, None) if self.intact else (frame.msn, frame.mo, None)
        )
        if frame.msn != msn:
            frame.problems.append(f"MSN {frame.msn} instead of {msn}")
        elif frame.mo != mo:
            frame.problems.append(f"MO {frame.mo} instead of {mo}")
        elif opcode is not None and opcode != frame.opcode:
            frame.problems.append(f"goes on with a message that began as {operation_name(opcode)}")
        self._last_msn[qn] = frame.msn
        if frame.last:
            self._queues[qn] = ((frame.msn + 1) & _WORD, 0, None)
        else:
            self._queues[qn] = (frame.msn, frame.mo + frame.payload_length, frame.opcode)

    def tagged(self, frame: FpduFrame) -> None:
        """Note a tagged segment; what is wrong goes into `frame.problems`."""
        assert frame.opcode is not None, "a segment without a header has no order"
        here = (frame.opcode, frame.stag, frame.to)
        if self._tagged is not None and here != self._tagged:
            opcode, stag, to = self._tagged
            frame.problems.append(
                f"{operation_name(opcode)} to STag {stag:#010x} TO {to:#x} was to go on first"
            )
        following = (frame.opcode, frame.stag, frame.to + frame.payload_length)
        self._tagged = None if frame.last else following
        if frame.stag not in self.familiar_stags:
            self.familiar_stags.append(frame.stag)
            del self.familiar_stags[:-_FAMILIAR]

    def asks(self, request: rdmap.ReadRequest) -> None:
        """Note a Read Request of this direction."""
        if len(self._requests) >= _MAX_OUTSTANDING:
            self.forget_requests()  # nobody answers, or the answers aren't in the capture
        if self._all_requests:
            self._requests.append(request)

    def answered(self, frame: FpduFrame, *, certain: bool) -> None:
        """Note a Read Response segment of the other direction to a request of this one.

        `certain`: the capture has all that the requester had sent by then.
        """
        if not certain:
            self.forget_requests()
        if not self._all_requests:
            return
        if not self._requests:
            frame.problems.append("no Read Request asked for it")
            return
        request = self._requests[0]
        expected = (request.sink_stag, request.sink_to + self._answered)
        if (frame.stag, frame.to) != expected:
            frame.problems.append(
                f"the Read Request asked for STag {expected[0]:#010x} TO {expected[1]:#x}"
            )
        total = self._answered + frame.payload_length
        if total > request.size or (frame.last and total < request.size):
            frame.problems.append(f"{total} octets instead of the {request.size} asked for")
        if frame.last or total > request.size:
            del self._requests[0]
            self._answered = 0
        else:
            self._answered = total
