"""The sending half of a queue pair: work requests in, FPDUs out (Linux: siw_qp_tx.c).

A frame leaves as parts (header, views of registered memory, trailer) that one `sendmsg` gathers;
payload is not copied. Only where parts are small are they joined, since a copy of a few octets
costs less than an entry of a scatter/gather list.

Order: requests are emitted in the order they were posted and complete in that order. Read
Responses that the peer asked for take turns with them, a message each.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from steertag.errors import ProtocolError
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    SEND_FENCE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WC_OF_WR,
    WR_BIND_MW,
    WR_LOCAL_INV,
    WR_RDMA_READ_WITH_INV,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
    WcStatus,
)
from steertag.rdma.counters import Counters
from steertag.rdma.cq import WC
from steertag.rdma.fpdu import (
    CTL_TAGGED_LAST,
    CTL_UNTAGGED_LAST,
    NO_CRC,
    PADS,
    TAGGED,
    TAGGED_LEN,
    UNTAGGED,
    UNTAGGED_LEN,
    Buffer,
    Framed,
    cut_message,
    frame,
)
from steertag.rdma.memory import (
    ATOMIC_LEN,
    LocalProtectionError,
    StagTable,
    apply_atomic,
)
from steertag.rdma.requests import AtomicTurn, Message, PendingRead, Wqe
from steertag.wire import rdmap
from steertag.wire.crc32c import CRC_FIELD, crc32c
from steertag.wire.mpa import MAX_ULPDU

if TYPE_CHECKING:
    from steertag.rdma.wr import SendWR

GATHER_OCTETS: Final = 1 << 20
"""Octets emitted at most for one call to the stream: enough that its cost is spread thin."""
MAX_PARTS: Final = 960
"""Parts for one call: below Linux's IOV_MAX of 1024, with room for the last FPDU's."""
SMALL: Final = 1024
"""Octets of a Write up to which its payload is copied into one buffer with its header: a copy of
so little costs less than three entries of a scatter/gather list."""

_OP_WRITE: Final = rdmap.control(rdmap.Opcode.WRITE)
_OP_READ_RESPONSE: Final = rdmap.control(rdmap.Opcode.READ_RESPONSE)
_OP_READ_REQUEST: Final = rdmap.control(rdmap.Opcode.READ_REQUEST)
_OP_ATOMIC_REQUEST: Final = rdmap.control(rdmap.Opcode.ATOMIC_REQUEST)
_OP_ATOMIC_RESPONSE: Final = rdmap.control(rdmap.Opcode.ATOMIC_RESPONSE)
# Without and with a solicited event.
_OP_IMMEDIATE: Final = (
    rdmap.control(rdmap.Opcode.IMMEDIATE),
    rdmap.control(rdmap.Opcode.IMMEDIATE_SE),
)
_OP_SEND: Final = (rdmap.control(rdmap.Opcode.SEND), rdmap.control(rdmap.Opcode.SEND_SE))
_OP_SEND_INVALIDATE: Final = (
    rdmap.control(rdmap.Opcode.SEND_INVALIDATE),
    rdmap.control(rdmap.Opcode.SEND_SE_INVALIDATE),
)
_WRITES: Final = (WR_RDMA_WRITE, WR_RDMA_WRITE_WITH_IMM)
_SENDS: Final = (WR_SEND, WR_SEND_WITH_INV)
_LOCAL: Final = (WR_LOCAL_INV, WR_BIND_MW)
_NOT_REQUESTING: Final = frozenset({*_WRITES, *_SENDS, *_LOCAL, WR_SEND_WITH_IMM})
"""Requests that no response of the peer's belongs to: no ORD limits them."""
_OP_TERMINATE: Final = rdmap.control(rdmap.Opcode.TERMINATE)
_MSN_MASK: Final = 0xFFFFFFFF
_PLAIN: Final = SEND_FENCE | SEND_SIGNALED | SEND_SOLICITED
_SUCCESS: Final = WcStatus.SUCCESS
_LAST_SAFE_TO: Final = (1 << 64) - SMALL


# Stream position behind its last octet, wr_id, opcode, flags, octets, read, status.
_Unfinished = tuple[int, int, int, int, int, PendingRead | None, WcStatus]


class Transmitter:
    """Args:
    qp_num: number of the queue pair, for completions.
    pd: its protection domain.
    table: the RNIC's regions.
    complete: takes each completion of a work request.
    local_fault: called when a request names local memory that it may not touch.
    counters: where to count.
    """

    def __init__(
        self,
        qp_num: int,
        pd: int,
        table: StagTable,
        complete: Callable[[WC], None],
        local_fault: Callable[[LocalProtectionError], None],
        counters: Counters,
    ) -> None:
        self._qp_num = qp_num
        self._pd = pd
        self._table = table
        self._complete = complete
        self._local_fault = local_fault
        self._counters = counters
        self.crc = True
        self.held = False
        self.ord = 0
        self.max_ulpdu = MAX_ULPDU - 1
        self.depth_limit = 0
        """Requests that may be posted and not completed."""
        self.max_inline = 0
        """Octets of inline data at most."""
        self.sq: deque[Wqe] = deque()
        self.responses: deque[rdmap.ReadRequest | AtomicTurn] = deque()
        self.reads: deque[PendingRead] = deque()
        self._unfinished: deque[_Unfinished] = deque()
        self._message: Message | None = None
        self._terminate: bytes | None = None
        self._response_last = False
        self.paused = False
        """Nothing new is taken off the send queue (SQD)."""
        self.confirmed: Callable[[], int] | None = None
        """Gives the octets of the stream that the peer has dealt with, where it tells. Requests
        complete then, instead of when the stream took them."""
        self.send_msn = 1
        self.read_msn = 1
        self._atomic_response_msn = 1
        self._atomic_identifier = 0
        self._parts: list[Buffer] = []
        self._part_octets = 0
        self._small: list[bytes] = []
        self._small_octets = 0
        self._emitted = 0
        self._sent = 0

    # -- what the application posts ------------------------------------------------------------

    def depth(self) -> int:
        """Requests posted and not completed."""
        return len(self.sq) + len(self._unfinished) + (self._current() is not None)

    @property
    def idle(self) -> bool:
        """Nothing is left to send, and no Read Response is waited for."""
        return self._sent == self._emitted and not self.pending() and not self.reads

    @property
    def drained(self) -> bool:
        """No request is under way: what is left on the send queue has not begun."""
        return not self._unfinished and self._current() is None

    @property
    def responses_due(self) -> int:
        """Requests of the peer that have not been answered whole."""
        answering = self._message is not None and self._message.response is not None
        return len(self.responses) + answering

    @property
    def awaited(self) -> int:
        """Octets, at least, that are still to come of the answer to our oldest Read: what is here
        of a segment counts when the segment is here whole."""
        if not self.reads:
            return 0
        read = self.reads[0]
        return max(0, read.length - read.placed - MAX_ULPDU)

    def response_done(self) -> None:
        """The response to our oldest request is here."""
        self.reads.popleft().done = True
        self.complete_ready()

    def _current(self) -> Wqe | None:
        return None if self._message is None else self._message.wqe

    def write_now(self, wr: SendWR, more_flags: int, *, linked: bool) -> SendWR | None:
        """Frame small RDMA Writes as they are posted, and a small Send of inline data: what message
        rate and latency depend on.

        Takes `wr` and, if `linked`, those behind it, as long as they are plain: one element, and
        memory that they may read. Gives the first one that has to go the long way, None where all
        are framed. None is framed while other work is before it, or the queue is full.
        """
        unfinished, emitted = self._unfinished, self._emitted
        room = self.depth_limit - len(unfinished)
        if (
            self.sq
            or self.responses
            or self.held
            or self.paused
            or self._message is not None
            or self._terminate is not None
            or emitted - self._sent > GATHER_OCTETS
        ):
            return wr
        if wr.opcode == WR_SEND:
            return wr if linked or room <= 0 else self._send_now(wr, more_flags)
        regions, pd, crc, small = self._table.regions, self._pd, self.crc, self._small
        left: SendWR | None = wr
        lkey, region = -1, None
        while left is not None and room > 0:
            sg, flags = left.sg, left.send_flags | more_flags
            if left.opcode != WR_RDMA_WRITE or len(sg) != 1 or left.num_sge == 0:
                break
            sge = sg[0]
            length = sge.length
            if sge.lkey != lkey:
                lkey = sge.lkey
                region = regions.get(lkey)
            if (
                region is None
                or not 0 <= length <= SMALL
                or flags & ~_PLAIN
                or (flags & SEND_FENCE and self.reads)
                or left.inline_data is not None
                or left.remote_addr > _LAST_SAFE_TO
                or region.pd != pd
                or (offset := sge.addr - region.base) < 0
                or offset + length > region.length
            ):
                break
            ulpdu = length + TAGGED_LEN
            to, rkey = left.remote_addr, left.rkey
            try:
                header = TAGGED.pack(ulpdu, CTL_TAGGED_LAST, _OP_WRITE, rkey, to)
            except struct.error:
                break
            # One buffer and one call of the digest: a copy of so little costs less.
            framed = header + region.view[offset : offset + length]
            pad = -(ulpdu + 2) & 3
            if pad:
                framed += PADS[pad]
            small.append(framed + CRC_FIELD.pack(crc32c(framed)) if crc else framed + NO_CRC[0])
            emitted += ulpdu + pad + 6
            self._small_octets += length
            unfinished.append((emitted, left.wr_id, WR_RDMA_WRITE, flags, length, None, _SUCCESS))
            left = left.next_wr
            if not linked:
                break
            room -= 1
        self._emitted = emitted
        return left if linked or left is wr else None

    def _send_now(self, wr: SendWR, more_flags: int) -> SendWR | None:
        """Frame a small Send of inline data as it is posted. Gives it back where it isn't one."""
        data, flags = wr.inline_data, wr.send_flags | more_flags
        if (
            data is None
            or (length := len(data)) > SMALL
            or length > self.max_inline
            or wr.sg
            or flags & ~_PLAIN
            or (flags & SEND_FENCE and self.reads)
        ):
            return wr
        msn = self.send_msn
        self.send_msn = (msn + 1) & _MSN_MASK
        ulpdu = length + UNTAGGED_LEN
        op = _OP_SEND[1] if flags & SEND_SOLICITED else _OP_SEND[0]
        framed = UNTAGGED.pack(ulpdu, CTL_UNTAGGED_LAST, op, 0, rdmap.QN_SEND, msn, 0) + data
        pad = -(ulpdu + 2) & 3
        if pad:
            framed += PADS[pad]
        framed += CRC_FIELD.pack(crc32c(framed)) if self.crc else NO_CRC[0]
        self._small.append(framed)
        self._small_octets += length
        self._emitted = end = self._emitted + len(framed)
        self._unfinished.append((end, wr.wr_id, WR_SEND, flags, length, None, _SUCCESS))
        return None

    def _join_small(self) -> None:
        """Make one part of the small messages that were framed since the last call."""
        small = self._small
        octets = small[0] if len(small) == 1 else b"".join(small)
        self._parts.append(octets)
        self._part_octets += len(octets)
        self._counters.staged_bytes += self._small_octets
        self._counters.tx_fpdus += len(small)
        self._small = []
        self._small_octets = 0

    # -- what goes to the stream ---------------------------------------------------------------

    def pending(self) -> bool:
        """Whether `data_to_send` would give something."""
        if self._small or self._parts or self._terminate is not None:
            return True
        if self.held:
            return False
        if self._message is not None or self.responses:
            return True
        return bool(self.sq) and not self.paused and not self._stalled(self.sq[0])

    def data_to_send(self) -> list[Buffer]:
        """The parts that the next `sendmsg` gathers: the same until `sent` takes from them.

        Empty where there is nothing to send for now.
        """
        if self._small and len(self._parts) < MAX_PARTS:
            self._join_small()
            if self.sq or self.responses:
                self._gather()
        elif not self._parts and self.pending():
            self._gather()
        return self._parts

    def sent(self, octets: int) -> bool:
        """The stream took `octets` of what `data_to_send` gave. True where there is more."""
        self._sent += octets
        self._counters.tx_bytes += octets
        if octets == self._part_octets:
            self._parts = []
            self._part_octets = 0
        else:
            self._drop(octets)
        if self._unfinished:
            self.complete_ready()
        return self.pending()

    def _drop(self, octets: int) -> None:
        """Forget the first `octets` of the parts: they are sent."""
        parts = self._parts
        self._part_octets -= octets
        whole = 0
        while octets >= len(parts[whole]):
            octets -= len(parts[whole])
            whole += 1
        del parts[:whole]
        parts[0] = memoryview(parts[0])[octets:]

    def complete_ready(self) -> None:
        """Complete, in order, the requests that are done."""
        unfinished = self._unfinished
        sent = self._sent if self.confirmed is None else self.confirmed()
        while unfinished:
            end, wr_id, opcode, flags, length, read, status = unfinished[0]
            if end > sent or (read is not None and not read.done):
                return
            unfinished.popleft()
            if flags & SEND_SIGNALED or status is not WcStatus.SUCCESS:
                self._complete(WC(wr_id, status, WC_OF_WR[opcode], length, self._qp_num))

    def flush(self, read_status: WcStatus, vendor_err: int) -> None:
        """Complete every request that is left: the stream is gone.

        What was handed to the stream whole keeps its own status; the oldest Read that waits for
        its response gets `read_status`, everything else WR_FLUSH_ERR. Where the peer confirms
        what it has dealt with, it is the oldest request that it hasn't that gets `read_status`.
        """
        if (current := self._current()) is not None:
            self.sq.appendleft(current)
        self._message = None
        self.complete_ready()
        told = self.confirmed is not None
        sent = self._sent if self.confirmed is None else self.confirmed()
        for end, wr_id, opcode, flags, length, read, status in self._unfinished:
            done = end <= sent and (read is None or read.done)
            if not done and status is WcStatus.SUCCESS:
                status = WcStatus.WR_FLUSH_ERR
                if read is not None or told:
                    status, read_status = read_status, WcStatus.WR_FLUSH_ERR
            if flags & SEND_SIGNALED or status is not WcStatus.SUCCESS:
                wc = WC(wr_id, status, WC_OF_WR[opcode], length, self._qp_num, vendor_err)
                self._complete(wc)
        self._unfinished.clear()
        for wqe in self.sq:
            status = read_status if told and wqe is current else WcStatus.WR_FLUSH_ERR
            self._complete(WC(wqe[0], status, WC_OF_WR[wqe[1]], 0, self._qp_num, vendor_err))
        self.sq.clear()
        self.reads.clear()
        self.responses.clear()
        self._parts = []
        self._part_octets = 0
        self._small = []
        self._terminate = None

    def terminate(self, payload: bytes) -> None:
        """Send a Terminate behind what is already framed, and nothing after it.

        Requests that are left, the one that is being cut too, wait to be flushed.
        """
        if self._terminate is None:
            self._terminate = payload
            self.responses.clear()
            self.held = True

    def detach(self, owner: object) -> None:
        """Replace views of `owner`'s memory among the parts by copies: it is being deregistered."""
        # In place: an invalidation may happen while parts are being gathered.
        self._parts[:] = _owned(self._parts, owner)

    # -- emission ------------------------------------------------------------------------------

    def _stalled(self, wqe: Wqe) -> bool:
        if wqe[2] & SEND_FENCE and self.reads:
            return True
        return wqe[1] not in _NOT_REQUESTING and len(self.reads) >= self.ord

    def _gather(self) -> None:
        before = self._emitted
        parts = self._parts
        if not self.held:
            try:
                self._gather_messages(parts)
            except LocalProtectionError as exc:
                self._local_fault(exc)
        if self._terminate is not None:
            self._untagged(parts, _OP_TERMINATE, rdmap.QN_TERMINATE, 1, self._terminate)
            self._terminate = None
            self._counters.terminates_sent += 1
        self._part_octets += self._emitted - before

    def _gather_messages(self, parts: list[Buffer]) -> None:
        """Emit messages and pieces of messages until there is enough for one call."""
        limit = self._emitted + GATHER_OCTETS
        while self._emitted < limit and len(parts) < MAX_PARTS and self._terminate is None:
            if self._message is None and not self._next_message(parts):
                return
            if self._message is not None:
                self._segments(parts, self._message, limit)

    def _next_message(self, parts: list[Buffer]) -> bool:
        """Begin the next message. False where there is none, or none that may go now."""
        sq = self.sq
        blocked = not sq or self.paused or self._stalled(sq[0])
        if self.responses and (blocked or not self._response_last):
            self._response_last = True
            self._respond(parts, self.responses.popleft())
            return True
        if blocked:
            return False
        self._response_last = False
        wqe = sq[0]
        _, opcode, flags, rkey, remote_addr, length, _, extra = wqe
        if opcode in _WRITES:
            sq.popleft()
            self._message = Message(_OP_WRITE, length, wqe=wqe, stag=rkey, to=remote_addr)
        elif opcode in _SENDS:
            sq.popleft()
            controls = _OP_SEND if opcode == WR_SEND else _OP_SEND_INVALIDATE
            self._message = Message(
                controls[bool(flags & SEND_SOLICITED)],
                length,
                wqe=wqe,
                stag=0 if extra is None else extra.stag,
                msn=self._next_send_msn(),
            )
        elif opcode == WR_SEND_WITH_IMM:
            sq.popleft()
            self._immediate(parts, wqe)
        elif opcode in _LOCAL:
            self._local_operation(wqe)
        else:
            self._request(parts, wqe)
        return True

    def _next_send_msn(self) -> int:
        msn = self.send_msn
        self.send_msn = (msn + 1) & _MSN_MASK
        return msn

    def _respond(self, parts: list[Buffer], request: rdmap.ReadRequest | AtomicTurn) -> None:
        if isinstance(request, rdmap.ReadRequest):
            self._message = Message(
                _OP_READ_RESPONSE,
                request.size,
                response=request,
                stag=request.sink_stag,
                to=request.sink_to,
            )
            return
        if request.value is None:
            asked = request.request
            try:
                target = self._table.atomic_target(asked.stag, self._pd, self._qp_num, asked.to)
            except ProtocolError as exc:
                raise LocalProtectionError(f"before its turn came: {exc.detail}") from exc
            request.value = apply_atomic(asked, target)
        payload = rdmap.AtomicResponse(request.request.identifier, request.value).emit()
        qn, msn = rdmap.QN_ATOMIC_RESPONSE, self._atomic_response_msn
        self._untagged(parts, _OP_ATOMIC_RESPONSE, qn, msn, payload)
        self._atomic_response_msn = (msn + 1) & _MSN_MASK

    def _immediate(self, parts: list[Buffer], wqe: Wqe) -> None:
        """Immediate Data: alone, or behind the Write that it belongs to."""
        extra = wqe[7]
        assert extra is not None
        control = _OP_IMMEDIATE[bool(wqe[2] & SEND_SOLICITED)]
        payload = extra.immediate.to_bytes(4, "big") + bytes(rdmap.IMMEDIATE_LEN - 4)
        self._untagged(parts, control, rdmap.QN_SEND, self._next_send_msn(), payload)
        self._finished(wqe)

    def _local_operation(self, wqe: Wqe) -> None:
        """What happens on this side alone, in its turn: an invalidation or a bind."""
        extra = wqe[7]
        assert extra is not None
        try:
            if extra.bind is not None:
                self._table.bind(extra.bind, self._pd, self._qp_num)
            else:
                self._table.invalidate_local(extra.stag, self._pd, self._qp_num)
        except LocalProtectionError:
            self._failed(
                wqe, WcStatus.MW_BIND_ERR if extra.bind is not None else WcStatus.LOC_PROT_ERR
            )
            raise
        self.sq.popleft()
        self._finished(wqe)
        self.complete_ready()

    def _finished(self, wqe: Wqe, read: PendingRead | None = None) -> None:
        """The request is framed whole: it completes when its octets are sent (and read)."""
        wr_id, opcode, flags, _, _, length = wqe[:6]
        self._unfinished.append((self._emitted, wr_id, opcode, flags, length, read, _SUCCESS))

    def _failed(self, wqe: Wqe, status: WcStatus) -> None:
        """`wqe` (still on the queue, or the message) can't be done: it completes with `status`."""
        if self._message is not None:
            self._message = None
        else:
            self.sq.popleft()
        wr_id, opcode, flags = wqe[:3]
        self._unfinished.append((self._emitted, wr_id, opcode, flags, 0, None, status))

    def _local(self, wqe: Wqe, addr: int, length: int, lkey: int, right: int = 0) -> memoryview:
        """`StagTable.local_view`; on failure `wqe` is done."""
        try:
            return self._table.local_view(lkey, self._pd, addr, length, right)
        except LocalProtectionError:
            self._failed(wqe, WcStatus.LOC_PROT_ERR)
            raise

    def _request(self, parts: list[Buffer], wqe: Wqe) -> None:
        """Emit a Read Request or an Atomic Request."""
        _, opcode, _, rkey, remote_addr, length, sges, extra = wqe
        addr, _, lkey = sges[0] if length else (0, 0, 0)
        if length:
            self._local(wqe, addr, length, lkey, ACCESS_LOCAL_WRITE)
        self.sq.popleft()
        if extra is not None and extra.atomic is not None:
            identifier = self._atomic_identifier
            self._atomic_identifier = (identifier + 1) & _MSN_MASK
            control, payload = (
                _OP_ATOMIC_REQUEST,
                replace(extra.atomic, identifier=identifier).emit(),
            )
            read = PendingRead(lkey, addr, ATOMIC_LEN, identifier=identifier)
        else:
            control = _OP_READ_REQUEST
            payload = rdmap.ReadRequest(lkey, addr, length, rkey, remote_addr).emit()
            invalidate = opcode == WR_RDMA_READ_WITH_INV
            read = PendingRead(lkey, addr, length, invalidate=invalidate)
        self._untagged(parts, control, rdmap.QN_READ_REQUEST, self.read_msn, payload)
        self.read_msn = (self.read_msn + 1) & _MSN_MASK
        self.reads.append(read)
        self._finished(wqe, read)

    def _untagged(
        self, parts: list[Buffer], control: int, qn: int, msn: int, payload: bytes
    ) -> None:
        """Frame a message that is one untagged segment."""
        length = UNTAGGED_LEN + len(payload)
        header = UNTAGGED.pack(length, CTL_UNTAGGED_LAST, control, 0, qn, msn, 0)
        self._count(frame(parts, header + payload, [], crc=self.crc))

    def _segments(self, parts: list[Buffer], message: Message, limit: int) -> None:
        """Emit the message's next segments, until its end or until there is enough."""
        step = message.segment_size(self.max_ulpdu)
        room = limit - self._emitted
        source = self._source(message, min(message.total - message.position, room + step))
        self._count(cut_message(parts, message, source, step, room, MAX_PARTS, crc=self.crc))
        if message.position == message.total:
            self._message_cut(parts, message)

    def _count(self, framed: Framed) -> None:
        octets, fpdus = framed
        self._emitted += octets
        self._counters.tx_fpdus += fpdus

    def _message_cut(self, parts: list[Buffer], message: Message) -> None:
        """Go on after a message's last segment."""
        self._message = None
        wqe = message.wqe
        if wqe is not None and wqe[1] == WR_RDMA_WRITE_WITH_IMM:
            self._immediate(parts, wqe)
        elif wqe is not None:
            self._finished(wqe)

    def _source(self, message: Message, octets: int) -> list[memoryview]:
        """Views of the message's next `octets`; checked anew each time: a region may have been
        deregistered meanwhile."""
        if not octets:
            return []
        request, wqe = message.response, message.wqe
        if request is not None:
            source = self._table.read_source
            to = request.source_to + message.position
            try:
                return [source(request.source_stag, self._pd, self._qp_num, to, octets)]
            except ProtocolError as exc:
                self._message = None
                raise LocalProtectionError(f"amid a Read Response: {exc.detail}") from exc
        assert wqe is not None
        extra = wqe[7]
        if extra is not None and extra.inline is not None:
            return [memoryview(extra.inline)[message.position : message.position + octets]]
        views: list[memoryview] = []
        skip = message.position
        for addr, length, lkey in wqe[6]:
            if skip >= length:
                skip -= length
                continue
            take = min(length - skip, octets)
            if not take:
                break
            views.append(self._local(wqe, addr + skip, take, lkey))
            octets -= take
            skip = 0
        return views


def _owned(parts: list[Buffer], owner: object) -> list[Buffer]:
    """`parts` with copies in the place of views of `owner`'s memory."""
    return [
        bytes(part) if isinstance(part, memoryview) and part.obj is owner else part
        for part in parts
    ]
