"""A queue pair: the state machine that joins its two halves (Linux: siw_qp.c).

The stream's side, for whoever drives it: `data_to_send`/`sent`, `buffers`/`received`, `eof`,
`stream_lost`, and `ended`/`closing` to know when to close. Nothing here waits or opens anything.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from steertag.errors import ProtocolError, StateError, os_error
from steertag.rdma.constants import (
    WC_OF_WR,
    WC_RECV,
    WcStatus,
)
from steertag.rdma.counters import Counters
from steertag.rdma.cq import WC, CompletionQueue
from steertag.rdma.inbound import Inbound
from steertag.rdma.memory import LocalProtectionError, StagTable
from steertag.rdma.qp_rx import Receiver
from steertag.rdma.qp_state import QpEvent, QpState, step
from steertag.rdma.qp_tx import Transmitter
from steertag.rdma.requests import PendingRead, Sges, wqe_of
from steertag.rdma.srq import Rqe, SharedReceiveQueue
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.wire import ddp, mpa, rdmap

Buffer = bytes | bytearray | memoryview

MAX_SGE: Final = 32
_SCRATCH_OCTETS: Final = 65536
"""Room for what is still read, and thrown away, once the stream has ended for the queue pair."""
# Looked up once: with every message it would be noticed.
_RTS, _TERMINATE, _ERROR = QpState.RTS, QpState.TERMINATE, QpState.ERROR
_MODIFY: Final = {
    QpState.RESET: QpEvent.MODIFY_RESET,
    QpState.INIT: QpEvent.MODIFY_INIT,
    QpState.RTS: QpEvent.MODIFY_RTS,
    QpState.SQD: QpEvent.MODIFY_SQD,
    QpState.ERROR: QpEvent.MODIFY_ERROR,
}


@dataclass(frozen=True, slots=True)
class QpCap:
    """Limits of a queue pair (`struct ibv_qp_cap`); requests, elements, octets."""

    max_send_wr: int = 64
    max_recv_wr: int = 64
    max_send_sge: int = 4
    max_recv_sge: int = 4
    max_inline_data: int = 0


class QueuePair:
    """One end of a connection.

    Args:
        qp_num: its number on the RNIC.
        pd: its protection domain.
        table: the RNIC's regions.
        send_cq, recv_cq: where completions go.
        cap: limits of its queues.
        on_end: called once when the QP can no longer carry anything, with the reason.
        srq: where its receives come from, in the place of a queue of its own.
        on_event: called with the name of each asynchronous event (`IBV_EVENT_...`).
    """

    def __init__(
        self,
        qp_num: int,
        pd: int,
        table: StagTable,
        send_cq: CompletionQueue,
        recv_cq: CompletionQueue,
        cap: QpCap,
        on_end: Callable[[str], None] | None = None,
        srq: SharedReceiveQueue | None = None,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        self.qp_num = qp_num
        self.pd = pd
        self.cap = cap
        self.srq = srq
        self.state = QpState.INIT
        self.counters = Counters()
        self._table = table
        self._send_cq = send_cq
        self._recv_cq = recv_cq
        self._on_end = on_end
        self._on_event = on_event
        self._begin()

    def _begin(self) -> None:
        """Everything that a reset makes anew."""
        self.end_reason = ""
        self._vendor_err = 0
        self._read_status = WcStatus.WR_FLUSH_ERR
        self._drain_told = True
        who, table, counters = self.qp_num, self._table, self.counters
        self.tx = Transmitter(who, self.pd, table, self._send_cq.push, self._local_fault, counters)
        self.tx.depth_limit = self.cap.max_send_wr
        self.tx.max_inline = self.cap.max_inline_data
        self.inbound = Inbound(who, self.pd, table, self._recv_cq.push, self.tx, counters, self.srq)
        self.rx = Receiver(self.pd, table, self.inbound, self.tx, counters)
        self.buffers: Callable[[], list[memoryview]] = self.rx.buffers
        """Where the stream's next octets go."""
        self.data_to_send: Callable[[], list[Buffer]] = self.tx.data_to_send
        """Parts for the next gathering send; empty where there is nothing to send for now."""

    # -- verbs ---------------------------------------------------------------------------------

    def uses(self, cq: CompletionQueue) -> bool:
        return cq is self._send_cq or cq is self._recv_cq

    def modify(self, state: QpState) -> None:
        """`ibv_modify_qp` to RESET, INIT, RTS (from SQD), SQD or ERROR.

        ERROR flushes what is posted, and the stream is closed. RESET flushes too, of a QP that has
        no stream any more.

        Raises StateError for a change that there is none of.
        """
        event = _MODIFY.get(state)
        if event is None:
            raise StateError(f"a queue pair isn't modified to {state.name}")
        before = self.state
        self._step(event)
        if state is QpState.ERROR and before is not QpState.ERROR:
            self._end("moved to the error state")
        elif state is QpState.RESET:
            self.tx.flush(WcStatus.WR_FLUSH_ERR, 0)
            self.inbound.flush(0)
            self._begin()
        self.tx.paused = state is QpState.SQD
        self._drain_told = state is not QpState.SQD
        self._tell_drained()

    def post_send(self, wr: SendWR, flags: int = 0) -> None:
        """Queue one request (not the list linked behind it), with `flags` besides its own.

        Raises:
            OSError: EINVAL for an opcode, a list of elements or a state that doesn't fit;
                ENOMEM when the send queue is full; EOPNOTSUPP for what iWARP doesn't have.
        """
        if self.state is not _RTS or self.tx.write_now(wr, flags, linked=False) is not None:
            self._queue(wr, flags)

    def post_list(self, wr: SendWR, flags: int = 0) -> None:
        """Queue a request and those linked behind it. Raises as `post_send`; `bad_wr` of the error
        is the first one that was not posted."""
        left: SendWR | None = wr
        while left is not None:
            if self.state is _RTS and (left := self.tx.write_now(left, flags, linked=True)) is None:
                return
            try:
                self._queue(left, flags)
            except OSError as exc:
                exc.bad_wr = left  # type: ignore[attr-defined]
                raise
            left = left.next_wr

    def _queue(self, wr: SendWR, flags: int) -> None:
        if self.state is not QpState.RTS:
            if self.state is QpState.ERROR:
                self._flush_now(wr)
                return
            # In TERMINATE it waits for its turn to be flushed, behind what was posted before.
            if self.state not in (QpState.TERMINATE, QpState.SQD):
                raise os_error(errno.EINVAL, f"post_send on a QP in state {self.state.name}")
        tx, sg = self.tx, wr.sg
        if tx.depth() >= self.cap.max_send_wr:
            raise os_error(errno.ENOMEM, f"send queue of {self.cap.max_send_wr} is full")
        sges = _sges(sg if wr.num_sge is None else sg[: wr.num_sge], self.cap.max_send_sge)
        flags |= wr.send_flags
        inline = self.cap.max_inline_data
        tx.sq.append(wqe_of(wr, flags, sges, self._table, self.pd, inline, tx.ord))

    def post_recv(self, wr: RecvWR) -> None:
        """Queue one receive (not the list linked behind it).

        Raises OSError as `post_send`; EINVAL too where receives come from a shared queue, and in
        RESET.
        """
        if self.srq is not None or self.state is QpState.RESET:
            raise os_error(errno.EINVAL, "this QP takes no receives, in RESET or with an SRQ")
        if self.state is QpState.ERROR:
            wc = WC(wr.wr_id, WcStatus.WR_FLUSH_ERR, WC_RECV, 0, self.qp_num)
            self._recv_cq.push(wc)
            return
        if len(self.inbound.rq) >= self.cap.max_recv_wr:
            raise os_error(errno.ENOMEM, f"receive queue of {self.cap.max_recv_wr} is full")
        self.inbound.rq.append(receive_of(wr, self.cap.max_recv_sge))

    def connected(
        self,
        *,
        crc: bool,
        ird: int,
        ord: int,
        held: bool,
        max_ulpdu: int,
        send_msn: int = 1,
        recv_msn: int = 1,
        read_msn: int = 1,
        request_msn: int = 1,
    ) -> None:
        """MPA set-up is done; FPDUs may flow.

        Args:
            crc: CRC32C is in use, both ways.
            ird: Read Requests of the peer that are taken at once.
            ord: Read Requests that are made at once.
            held: send nothing before the peer's first FPDU (the responder, RFC 5044 section 7.1).
            max_ulpdu: octets of a ULPDU at most.
            send_msn, recv_msn: of the first Send to go out and to come in: a ready-to-receive
                frame may have had number 1.
            read_msn, request_msn: of the first Read Request to go out and to come in.
                A ready-to-receive Read of ours has still to be answered.
        """
        self._step(QpEvent.CONNECTED)
        self.tx.crc = self.rx.crc = crc
        self.tx.ord, self.inbound.ird = ord, ird
        self.tx.held = held
        self.tx.max_ulpdu = max_ulpdu
        self.tx.send_msn, self.inbound.receive_msn = send_msn, recv_msn
        self.tx.read_msn, self.inbound.request_msn = read_msn, request_msn
        if read_msn > 1:
            # The Read Response to a ready-to-receive Read is still to come: to no memory of ours.
            self.tx.reads.append(PendingRead(0, 0, 0))

    def close(self) -> None:
        """Disconnect in order: what is posted is sent first; `closing` then says when to close."""
        ended = self.state is QpState.ERROR
        self._step(QpEvent.CLOSE)
        if self.state is QpState.ERROR and not ended:
            self._end("closed before it was connected")
        self._drained()

    def detach(self, stag: int, owner: object) -> None:
        """Drop every view of an STag's memory, which is `owner`'s: it names nothing any more.

        Octets of it that are framed already are copied and still sent. A segment that was on its
        way into it ends the connection (invalid STag), as does a later one.
        """
        self.tx.detach(owner)
        if self.rx.detach(stag, owner):
            code = ddp.T_INVALID_STAG
            self._protocol_error(
                ProtocolError(ddp.LAYER_DDP, ddp.ETYPE_TAGGED, code, "the STag was invalidated")
            )

    # -- the stream's side ---------------------------------------------------------------------

    @property
    def wants_to_send(self) -> bool:
        return self.state is not _ERROR and self.tx.pending()

    @property
    def closing(self) -> bool:
        """Everything is sent: the stream is to be closed (FIN; RFC 5044 knows no half-close)."""
        return self.state is QpState.ERROR

    @property
    def ended(self) -> bool:
        """Nothing more will happen here: every request has completed."""
        return self.state is QpState.ERROR

    def sent(self, octets: int) -> bool:
        """The stream took `octets` of `data_to_send()`. True where there is more to send."""
        more = self.tx.sent(octets)
        if self.state is not _RTS:
            self._drained()
            self._tell_drained()
        return more

    def received(self, octets: int) -> None:
        """The stream wrote `octets` into `buffers()`. Never raises for what the peer sent."""
        state = self.state
        if state is _TERMINATE or state is _ERROR:
            self.counters.rx_bytes += octets
            return
        try:
            self.rx.received(octets)
        except ProtocolError as exc:
            self._protocol_error(exc)
            return
        if self.inbound.terminate is not None:
            self._terminated(self.inbound.terminate)
        elif self.tx.held and self.counters.rx_fpdus:
            self.tx.held = False
        if self.state is not _RTS:
            self._drained()
            self._tell_drained()

    def eof(self) -> None:
        """The peer closed its side."""
        if self.state is QpState.ERROR:
            return
        if self.state is QpState.TERMINATE:
            self._step(QpEvent.PEER_CLOSED)
            self._end(self.end_reason)
            return
        clean = self.rx.between_messages and not self.tx.reads
        self._step(QpEvent.PEER_CLOSED)
        self._end("peer closed" if clean else "peer closed in the middle of a message")

    def protocol_error(self, error: ProtocolError) -> None:
        """What carries our FPDUs found the peer breaking its rules: a Terminate says so."""
        self._protocol_error(error)

    def stream_lost(self, reason: str) -> None:
        """The stream broke (reset, time-out, ...)."""
        if self.state is QpState.ERROR:
            return
        reason = self.end_reason if self.state is QpState.TERMINATE else reason
        self._step(QpEvent.STREAM_LOST)
        self._end(reason)

    # -- inside --------------------------------------------------------------------------------

    def _step(self, event: QpEvent) -> None:
        self.state = step(self.state, event)
        if self.state is QpState.TERMINATE or self.state is QpState.ERROR:
            scratch = [memoryview(bytearray(_SCRATCH_OCTETS))]
            self.buffers = lambda: scratch

    def _drained(self) -> None:
        if self.state is QpState.CLOSING and self.tx.idle:
            self._step(QpEvent.DRAINED)
            self._end("closed")
        elif self.state is QpState.TERMINATE and not self.tx.pending():
            self._step(QpEvent.DRAINED)
            self._end(self.end_reason)

    def _tell_drained(self) -> None:
        if not self._drain_told and self.state is QpState.SQD and self.tx.drained:
            self._drain_told = True
            self._event("IBV_EVENT_SQ_DRAINED")

    def _event(self, name: str) -> None:
        if self._on_event is not None:
            self._on_event(name)

    def _end(self, reason: str) -> None:
        self.end_reason = reason
        self.tx.flush(self._read_status, self._vendor_err)
        self.rx.end()
        self.inbound.flush(self._vendor_err)
        if self.srq is not None:
            self._event("IBV_EVENT_QP_LAST_WQE_REACHED")
        if self._on_end is not None:
            self._on_end(reason)

    def _flush_now(self, wr: SendWR) -> None:
        opcode = WC_OF_WR.get(wr.opcode, wr.opcode)
        self._send_cq.push(WC(wr.wr_id, WcStatus.WR_FLUSH_ERR, opcode, 0, self.qp_num))

    def _local_fault(self, exc: LocalProtectionError) -> None:
        """A request of ours named memory that it may not touch: the stream can't go on."""
        self.rx.segment = None
        self._protocol_error(
            ProtocolError(rdmap.LAYER_RDMAP, rdmap.ETYPE_CATASTROPHIC, 0, str(exc)), ours=True
        )

    def _protocol_error(self, exc: ProtocolError, *, ours: bool = False) -> None:
        """Tell the peer what is wrong, then end. The first error wins."""
        if self.state in (QpState.TERMINATE, QpState.ERROR):
            return
        if not ours:
            self.counters.protocol_errors += 1
        self.end_reason = (
            f"protocol error: {exc.detail}" if not ours else f"local fault: {exc.detail}"
        )
        self._vendor_err = _vendor_err(exc.layer, exc.etype, exc.code)
        self._step(QpEvent.PROTOCOL_ERROR)
        self._event(_event_of(exc, ours=ours))
        segment = self.rx.segment
        quote = segment is not None and exc.layer != mpa.LAYER_LLP
        header, length = segment if segment is not None and quote else (b"", 0)
        size = _ddp_header_len(header)
        self.tx.terminate(
            rdmap.Terminate(
                exc.layer,
                exc.etype,
                exc.code,
                segment_length=length if quote else None,
                ddp_header=header[:size],
                rdma_header=header[size:] if len(header) > ddp.UNTAGGED_LEN else b"",
            ).emit()
        )

    def _terminated(self, terminate: rdmap.Terminate) -> None:
        self._vendor_err = _vendor_err(terminate.layer, terminate.etype, terminate.code)
        if (terminate.layer, terminate.etype) == (rdmap.LAYER_RDMAP, rdmap.ETYPE_PROTECTION):
            self._read_status = WcStatus.REM_ACCESS_ERR
        elif (terminate.layer, terminate.etype) == (rdmap.LAYER_RDMAP, rdmap.ETYPE_OPERATION):
            self._read_status = WcStatus.REM_OP_ERR
        elif self.tx.confirmed is not None:
            # What was refused is known then, whatever kind of request it is.
            tagged = (terminate.layer, terminate.etype) == (ddp.LAYER_DDP, ddp.ETYPE_TAGGED)
            self._read_status = WcStatus.REM_ACCESS_ERR if tagged else WcStatus.REM_OP_ERR
        self._step(QpEvent.TERMINATED)
        self._end(
            f"peer sent a Terminate: layer {terminate.layer}, type {terminate.etype},"
            f" code {terminate.code:#04x}"
        )


def _vendor_err(layer: int, etype: int, code: int) -> int:
    return layer << 12 | etype << 8 | code


def _ddp_header_len(header: bytes) -> int:
    if not header:
        return 0
    return ddp.TAGGED_LEN if header[0] & ddp.T_FLAG else ddp.UNTAGGED_LEN


def _event_of(exc: ProtocolError, *, ours: bool) -> str:
    """The asynchronous event that goes with an error (siw raises the same ones)."""
    if ours:
        return "IBV_EVENT_QP_FATAL"
    protection = (rdmap.LAYER_RDMAP, rdmap.ETYPE_PROTECTION), (ddp.LAYER_DDP, ddp.ETYPE_TAGGED)
    if (exc.layer, exc.etype) in protection:
        return "IBV_EVENT_QP_ACCESS_ERR"
    return "IBV_EVENT_QP_REQ_ERR"


def receive_of(wr: RecvWR, max_sge: int) -> Rqe:
    """The entry of a receive queue for a request. Raises OSError EINVAL for what doesn't fit."""
    sg = wr.sg if wr.num_sge is None else wr.sg[: wr.num_sge]
    return wr.wr_id, _sges(sg, max_sge)


def _sges(sg: object, limit: int) -> Sges:
    elements: list[tuple[int, int, int]] = []
    for sge in sg:  # type: ignore[attr-defined]
        if not isinstance(sge, SGE):
            raise os_error(errno.EINVAL, f"{sge!r} is no SGE")
        if sge.length < 0:
            raise os_error(errno.EINVAL, f"element of {sge.length} octets")
        elements.append((sge.addr, sge.length, sge.lkey))
    if len(elements) > limit:
        raise os_error(errno.EINVAL, f"{len(elements)} elements, the QP takes {limit}")
    return tuple(elements)
