"""What the segments of the peer mean: their checks, their messages, what they complete (RDMAP).

The receiver (`qp_rx`) finds a segment in the stream and asks `admit` where its payload goes; that
is where every check is, in the order of RFC 5041 section 5 and RFC 5042 section 6. When the payload
lies there, `deliver` advances the message that the segment belongs to.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from steertag.errors import ProtocolError, WireError
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    WC_FLAG_WITH_IMM,
    WC_FLAG_WITH_INV,
    WC_RECV,
    WC_RECV_RDMA_WITH_IMM,
    WcStatus,
)
from steertag.rdma.counters import Counters
from steertag.rdma.cq import WC
from steertag.rdma.memory import ATOMIC_LEN, LocalProtectionError, StagTable, apply_atomic
from steertag.rdma.qp_tx import Transmitter
from steertag.rdma.requests import AtomicTurn
from steertag.rdma.srq import Rqe, SharedReceiveQueue
from steertag.wire import ddp, rdmap

_MSN_MASK: Final = 0xFFFFFFFF
_MAX_TERMINATE: Final = 256
_SENDS: Final = frozenset(
    {
        rdmap.Opcode.SEND,
        rdmap.Opcode.SEND_SE,
        rdmap.Opcode.SEND_INVALIDATE,
        rdmap.Opcode.SEND_SE_INVALIDATE,
    }
)
_IMMEDIATES: Final = frozenset({rdmap.Opcode.IMMEDIATE, rdmap.Opcode.IMMEDIATE_SE})
_INVALIDATING: Final = frozenset({rdmap.Opcode.SEND_INVALIDATE, rdmap.Opcode.SEND_SE_INVALIDATE})
_SOLICITING: Final = frozenset(
    {rdmap.Opcode.SEND_SE, rdmap.Opcode.SEND_SE_INVALIDATE, rdmap.Opcode.IMMEDIATE_SE}
)
_FIXED_LEN: Final = {
    rdmap.Opcode.READ_REQUEST: rdmap.READ_REQUEST_LEN,
    rdmap.Opcode.ATOMIC_REQUEST: rdmap.ATOMIC_REQUEST_LEN,
    rdmap.Opcode.ATOMIC_RESPONSE: rdmap.ATOMIC_RESPONSE_LEN,
    rdmap.Opcode.IMMEDIATE: rdmap.IMMEDIATE_LEN,
    rdmap.Opcode.IMMEDIATE_SE: rdmap.IMMEDIATE_LEN,
}
"""Messages that are one segment, always of the same length."""
_REQUESTS: Final = frozenset({rdmap.Opcode.READ_REQUEST, rdmap.Opcode.ATOMIC_REQUEST})


class _Receive:
    """The posted receive that an inbound Send is filling."""

    __slots__ = ("capacity", "opcode", "placed", "sges", "stag", "wr_id")

    def __init__(self, rqe: Rqe, opcode: rdmap.Opcode, stag: int) -> None:
        self.wr_id, self.sges = rqe
        self.capacity = sum(length for _, length, _ in self.sges)
        self.placed = 0
        self.opcode = opcode
        self.stag = stag


class Inbound:
    """Args:
    qp_num: number of the queue pair, for completions.
    pd: its protection domain.
    table: the RNIC's regions.
    complete: takes the completion of a receive; True says that the peer solicited an event.
    transmitter: answers requests and holds those of ours that wait for a response.
    counters: where to count.
    srq: where receives come from, in the place of a queue of the queue pair's own.
    """

    def __init__(
        self,
        qp_num: int,
        pd: int,
        table: StagTable,
        complete: Callable[[WC, bool], None],
        transmitter: Transmitter,
        counters: Counters,
        srq: SharedReceiveQueue | None = None,
    ) -> None:
        self._qp_num = qp_num
        self._pd = pd
        self._table = table
        self._complete = complete
        self._tx = transmitter
        self._counters = counters
        self.srq = srq
        self.ird = 0
        self.access = ACCESS_REMOTE
        """What the peer may do at all, whatever a region grants (IBV_QP_ACCESS_FLAGS)."""
        self.rq: deque[Rqe] = deque() if srq is None else srq.rq
        self.terminate: rdmap.Terminate | None = None
        """The peer's, once it came: nothing more is taken then."""
        self.receive_msn = 1
        self.request_msn = 1
        self._atomic_response_msn = 1
        self._receive: _Receive | None = None

    @property
    def between_messages(self) -> bool:
        """No Send is half received."""
        return self._receive is None

    @property
    def receive_lkeys(self) -> list[int]:
        """STags of the memory that the Send under way is placed into."""
        return [lkey for _, _, lkey in self._receive.sges] if self._receive is not None else []

    def flush(self, vendor_err: int) -> None:
        """Complete every receive that is left with WR_FLUSH_ERR; a shared queue keeps its own."""
        left: list[int] = []
        if self._receive is not None:
            left.append(self._receive.wr_id)
            self._receive = None
        if self.srq is None:
            left += [wr_id for wr_id, _ in self.rq]
            self.rq.clear()
        for wr_id in left:
            wc = WC(wr_id, WcStatus.WR_FLUSH_ERR, WC_RECV, 0, self._qp_num, vendor_err)
            self._complete(wc, False)

    # -- checks before placement ---------------------------------------------------------------

    def admit(
        self, header: ddp.Tagged | ddp.Untagged, length: int, payload: memoryview | None
    ) -> list[memoryview]:
        """Where the segment's payload goes. Raises ProtocolError where it may go nowhere.

        `payload` is None for a segment that will be placed directly: one that carries a header of
        RDMAP's own (a Read Request, a Terminate) is never that large.
        """
        opcode = rdmap.parse_control(header.ulp)
        if isinstance(header, ddp.Tagged):
            if opcode is rdmap.Opcode.WRITE:
                if not length:
                    return []
                return [self.write_target(header.stag, header.to, length)]
            if opcode is rdmap.Opcode.READ_RESPONSE:
                return self.admit_response(header.stag, header.to, length, header.last)
            raise _unexpected(opcode, "in a tagged segment")
        if header.qn == rdmap.QN_SEND and opcode in _SENDS:
            return self._admit_send(header, opcode, length)
        if header.qn > rdmap.QN_ATOMIC_RESPONSE:
            raise _untagged_error(ddp.U_INVALID_QN, f"queue number {header.qn}")
        if payload is None and header.qn != rdmap.QN_SEND:
            raise _untagged_error(ddp.U_TOO_LONG, f"{opcode.name} of {length} octets")
        if header.qn == rdmap.QN_READ_REQUEST and opcode in _REQUESTS:
            self._admit_request(header, opcode, length)
        elif header.qn == rdmap.QN_TERMINATE and opcode is rdmap.Opcode.TERMINATE:
            if length > _MAX_TERMINATE:
                raise _untagged_error(ddp.U_TOO_LONG, f"Terminate of {length} octets")
        elif header.qn == rdmap.QN_ATOMIC_RESPONSE and opcode is rdmap.Opcode.ATOMIC_RESPONSE:
            self._admit_atomic_response(header, length)
        elif header.qn == rdmap.QN_SEND and opcode in _IMMEDIATES:
            self._admit_immediate(header, opcode, length)
        else:
            raise _unexpected(opcode, f"on queue {header.qn}")
        return []

    def write_target(self, stag: int, to: int, length: int) -> memoryview:
        """Where an inbound Write's `length` octets go. Raises ProtocolError."""
        self._check_right(ACCESS_REMOTE_WRITE, "remote write")
        return self._table.write_target(stag, self._pd, self._qp_num, to, length)

    def _check_right(self, right: int, name: str) -> None:
        if not self.access & right:
            raise ProtocolError(
                rdmap.LAYER_RDMAP,
                rdmap.ETYPE_PROTECTION,
                rdmap.P_ACCESS,
                f"{name}: the queue pair does not grant it",
            )

    def _take_receive(self, opcode: rdmap.Opcode, stag: int) -> _Receive:
        if not self.rq:
            raise _untagged_error(ddp.U_NO_BUFFER, f"{opcode.name} without a posted receive")
        rqe = self.rq.popleft() if self.srq is None else self.srq.take()
        return _Receive(rqe, opcode, stag)

    def _admit_send(
        self, header: ddp.Untagged, opcode: rdmap.Opcode, length: int
    ) -> list[memoryview]:
        if header.msn != self.receive_msn:
            raise _untagged_error(ddp.U_MSN_RANGE, f"Send with MSN {header.msn}")
        receive = self._receive
        if receive is None:
            if header.mo:
                raise _untagged_error(ddp.U_INVALID_MO, f"Send begins at MO {header.mo}")
            receive = self._receive = self._take_receive(opcode, header.invalidate)
        elif header.mo != receive.placed:
            raise _untagged_error(
                ddp.U_INVALID_MO, f"Send at MO {header.mo} instead of {receive.placed}"
            )
        elif opcode is not receive.opcode:
            raise _unexpected(opcode, f"in the middle of a {receive.opcode.name}")
        if receive.placed + length > receive.capacity:
            self._fail_receive(WcStatus.LOC_LEN_ERR)
            raise _untagged_error(
                ddp.U_TOO_LONG, f"Send is longer than the {receive.capacity} octets posted"
            )
        try:
            return list(self._scatter(receive, length))
        except LocalProtectionError as exc:
            self._fail_receive(WcStatus.LOC_PROT_ERR)
            raise ProtocolError(
                rdmap.LAYER_RDMAP, rdmap.ETYPE_CATASTROPHIC, 0, f"posted receive: {exc}"
            ) from exc

    def _scatter(self, receive: _Receive, length: int) -> Iterator[memoryview]:
        skip = receive.placed
        for addr, size, lkey in receive.sges:
            if skip >= size:
                skip -= size
                continue
            take = min(size - skip, length)
            if not take:
                return
            yield self._table.local_view(lkey, self._pd, addr + skip, take, ACCESS_LOCAL_WRITE)
            length -= take
            skip = 0

    def _fail_receive(self, status: WcStatus) -> None:
        if self._receive is not None:
            wc = WC(self._receive.wr_id, status, WC_RECV, 0, self._qp_num)
            self._receive = None
            self._complete(wc, False)

    def _admit_immediate(self, header: ddp.Untagged, opcode: rdmap.Opcode, length: int) -> None:
        if header.msn != self.receive_msn:
            raise _untagged_error(ddp.U_MSN_RANGE, f"Immediate Data with MSN {header.msn}")
        if self._receive is not None:
            raise _unexpected(opcode, f"in the middle of a {self._receive.opcode.name}")
        _check_single(header, opcode, length)
        self._receive = self._take_receive(opcode, 0)

    def _admit_request(self, header: ddp.Untagged, opcode: rdmap.Opcode, length: int) -> None:
        if header.msn != self.request_msn:
            raise _untagged_error(ddp.U_MSN_RANGE, f"{opcode.name} with MSN {header.msn}")
        _check_single(header, opcode, length)
        if self._tx.responses_due >= self.ird:
            raise _untagged_error(ddp.U_NO_BUFFER, f"more requests than IRD {self.ird}")

    def _admit_atomic_response(self, header: ddp.Untagged, length: int) -> None:
        if header.msn != self._atomic_response_msn:
            raise _untagged_error(ddp.U_MSN_RANGE, f"Atomic Response with MSN {header.msn}")
        _check_single(header, rdmap.Opcode.ATOMIC_RESPONSE, length)
        reads = self._tx.reads
        if not reads or reads[0].identifier is None:
            raise _unexpected(rdmap.Opcode.ATOMIC_RESPONSE, "without an Atomic Request")

    def admit_response(self, stag: int, to: int, length: int, last: bool) -> list[memoryview]:
        """Where a Read Response's segment goes. Raises ProtocolError."""
        if not self._tx.reads or self._tx.reads[0].identifier is not None:
            raise _unexpected(rdmap.Opcode.READ_RESPONSE, "without a Read Request")
        read = self._tx.reads[0]
        if read.length and stag != read.lkey:
            raise _tagged_error(ddp.T_INVALID_STAG, f"Read Response to STag {stag:#010x}")
        left = read.length - read.placed
        if read.length and to != read.addr + read.placed:
            raise _tagged_error(ddp.T_BASE_BOUNDS, "Read Response at another offset than asked")
        if length > left or last != (length == left):
            raise _tagged_error(ddp.T_BASE_BOUNDS, f"Read Response: {length} octets of {left}")
        if not length:
            return []
        try:
            at = read.addr + read.placed
            view = self._table.local_view(read.lkey, self._pd, at, length, ACCESS_LOCAL_WRITE)
        except LocalProtectionError as exc:
            raise _tagged_error(ddp.T_INVALID_STAG, f"Read Response: {exc}") from exc
        return [view]

    # -- after placement -----------------------------------------------------------------------

    def deliver(self, header: ddp.Tagged | ddp.Untagged, length: int, payload: memoryview) -> None:
        """The segment of `length` octets is placed: advance its message, complete what is done."""
        opcode = rdmap.parse_control(header.ulp)
        if opcode is rdmap.Opcode.READ_RESPONSE:
            self.deliver_response(header.last, length)
        elif isinstance(header, ddp.Untagged):
            if opcode in _SENDS:
                self._deliver_send(header.last, length)
            elif opcode is rdmap.Opcode.READ_REQUEST:
                self._deliver_request(payload)
            elif opcode in _IMMEDIATES:
                self._deliver_immediate(payload)
            elif opcode is rdmap.Opcode.ATOMIC_REQUEST:
                self._deliver_atomic_request(payload)
            elif opcode is rdmap.Opcode.ATOMIC_RESPONSE:
                self._deliver_atomic_response(payload)
            else:
                self._deliver_terminate(payload)

    def _deliver_send(self, last: bool, length: int) -> None:
        receive = self._receive
        assert receive is not None
        receive.placed += length
        if not last:
            return
        flags = stag = 0
        if receive.opcode in _INVALIDATING:
            flags, stag = WC_FLAG_WITH_INV, receive.stag
            self._table.invalidate_remote(stag, self._pd, self._qp_num)
        wc = WC(receive.wr_id, WcStatus.SUCCESS, WC_RECV, receive.placed, self._qp_num)
        wc.wc_flags, wc.invalidated_rkey = flags, stag
        self._received(wc, receive)

    def _deliver_immediate(self, payload: memoryview) -> None:
        receive = self._receive
        assert receive is not None
        wc = WC(receive.wr_id, WcStatus.SUCCESS, WC_RECV_RDMA_WITH_IMM, 0, self._qp_num)
        wc.wc_flags, wc.imm_data = WC_FLAG_WITH_IMM, int.from_bytes(payload[:4], "big")
        self._received(wc, receive)

    def _received(self, wc: WC, receive: _Receive) -> None:
        self._receive = None
        self.receive_msn = (self.receive_msn + 1) & _MSN_MASK
        self._complete(wc, receive.opcode in _SOLICITING)

    def deliver_response(self, last: bool, length: int) -> None:
        """`length` more octets of the oldest Read are here."""
        read = self._tx.reads[0]
        read.placed += length
        if not last:
            return
        if read.invalidate:
            try:
                self._table.invalidate_local(read.lkey, self._pd, self._qp_num)
            except LocalProtectionError as exc:
                raise _tagged_error(ddp.T_INVALID_STAG, f"Read Response: {exc}") from exc
        self._tx.response_done()

    def _deliver_request(self, payload: memoryview) -> None:
        request = rdmap.ReadRequest.parse(payload)
        if request.sink_to + request.size > 1 << 64:
            raise ProtocolError(
                rdmap.LAYER_RDMAP,
                rdmap.ETYPE_PROTECTION,
                rdmap.P_TO_WRAP,
                "Read Response would wrap the tagged offset",
            )
        if request.size:
            self._check_right(ACCESS_REMOTE_READ, "remote read")
            self._table.read_source(
                request.source_stag, self._pd, self._qp_num, request.source_to, request.size
            )
        self._request_taken()
        self._tx.responses.append(request)

    def _deliver_atomic_request(self, payload: memoryview) -> None:
        request = rdmap.AtomicRequest.parse(payload)
        self._check_right(ACCESS_REMOTE_ATOMIC, "remote atomic")
        target = self._table.atomic_target(request.stag, self._pd, self._qp_num, request.to)
        if request.to % ATOMIC_LEN:
            raise ProtocolError(
                rdmap.LAYER_RDMAP,
                rdmap.ETYPE_OPERATION,
                rdmap.O_CATASTROPHIC_STREAM,
                "atomic operation on octets that are not aligned",
            )
        turn = AtomicTurn(request)
        if not self._tx.responses_due:
            # Before the peer's later Writes are placed, which come without waiting for this.
            turn.value = apply_atomic(request, target)
        self._request_taken()
        self._tx.responses.append(turn)

    def _request_taken(self) -> None:
        self.request_msn = (self.request_msn + 1) & _MSN_MASK

    def _deliver_atomic_response(self, payload: memoryview) -> None:
        response = rdmap.AtomicResponse.parse(payload)
        read = self._tx.reads[0]
        if response.identifier != read.identifier:
            raise _unexpected(rdmap.Opcode.ATOMIC_RESPONSE, f"to request {response.identifier:#x}")
        try:
            sink = self._table.local_view(
                read.lkey, self._pd, read.addr, ATOMIC_LEN, ACCESS_LOCAL_WRITE
            )
        except LocalProtectionError as exc:
            raise ProtocolError(
                rdmap.LAYER_RDMAP, rdmap.ETYPE_CATASTROPHIC, 0, f"Atomic Response: {exc}"
            ) from exc
        sink[:] = response.value.to_bytes(ATOMIC_LEN, sys.byteorder)
        self._atomic_response_msn = (self._atomic_response_msn + 1) & _MSN_MASK
        self._tx.response_done()

    def _deliver_terminate(self, payload: memoryview) -> None:
        self._counters.terminates_received += 1
        try:
            self.terminate = rdmap.Terminate.parse(payload)
        except WireError:
            # A Terminate that can't be read still ends the stream: with no cause to tell.
            self.terminate = rdmap.Terminate(
                rdmap.LAYER_RDMAP, rdmap.ETYPE_OPERATION, rdmap.O_UNSPECIFIED
            )


def _check_single(header: ddp.Untagged, opcode: rdmap.Opcode, length: int) -> None:
    if header.mo or not header.last or length != _FIXED_LEN[opcode]:
        raise _untagged_error(ddp.U_INVALID_MO, f"{opcode.name} isn't one segment of its size")


def _tagged_error(code: int, detail: str) -> ProtocolError:
    return ProtocolError(ddp.LAYER_DDP, ddp.ETYPE_TAGGED, code, detail)


def _untagged_error(code: int, detail: str) -> ProtocolError:
    return ProtocolError(ddp.LAYER_DDP, ddp.ETYPE_UNTAGGED, code, detail)


def _unexpected(opcode: rdmap.Opcode, where: str) -> ProtocolError:
    return ProtocolError(
        rdmap.LAYER_RDMAP,
        rdmap.ETYPE_OPERATION,
        rdmap.O_UNEXPECTED_OPCODE,
        f"{opcode.name} {where}",
    )
