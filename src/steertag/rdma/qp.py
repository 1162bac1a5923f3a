"""A queue pair: the state machine that joins its two halves (Linux: siw_qp.c).

The stream's side, for whoever drives it: `data_to_send`/`sent`, `buffers`/`received`, `eof`,
`stream_lost`, and `ended`/`closing` to know when to close. Nothing here waits or opens anything.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from steertag.errors import ProtocolError, os_error
from steertag.rdma.constants import (
    SEND_KNOWN,
    WC_OF_WR,
    WC_RECV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WcStatus,
)
from steertag.rdma.counters import Counters
from steertag.rdma.cq import WC, CompletionQueue
from steertag.rdma.memory import LocalProtectionError, Region, StagTable
from steertag.rdma.qp_rx import Receiver
from steertag.rdma.qp_state import QpEvent, QpState, step
from steertag.rdma.qp_tx import SMALL, Sges, Transmitter
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.wire import ddp, mpa, rdmap

Buffer = bytes | bytearray | memoryview

MAX_SGE: Final = 32
_SCRATCH_OCTETS: Final = 65536
"""Room for what is still read, and thrown away, once the stream has ended for the queue pair."""


@dataclass(frozen=True, slots=True)
class QpCap:
    """Limits of a queue pair (`struct ibv_qp_cap`); requests and elements."""

    max_send_wr: int = 64
    max_recv_wr: int = 64
    max_send_sge: int = 4
    max_recv_sge: int = 4
    max_inline_data: int = 0  # there is no inline data: more is EINVAL


class QueuePair:
    """One end of a connection.

    Args:
        qp_num: its number on the RNIC.
        pd: its protection domain.
        table: the RNIC's regions.
        send_cq, recv_cq: where completions go.
        cap: limits of its queues.
        on_end: called once when the QP can no longer carry anything, with the reason.
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
    ) -> None:
        self.qp_num = qp_num
        self.pd = pd
        self.cap = cap
        self.state = QpState.IDLE
        self.counters = Counters()
        self.end_reason = ""
        self._send_cq = send_cq
        self._recv_cq = recv_cq
        self._on_end = on_end
        self._vendor_err = 0
        self._read_status = WcStatus.WR_FLUSH_ERR
        self.tx = Transmitter(qp_num, pd, table, send_cq.push, self._local_fault, self.counters)
        self.rx = Receiver(qp_num, pd, table, recv_cq.push, self.tx, self.counters)
        self.buffers: Callable[[], list[memoryview]] = self.rx.buffers
        """Where the stream's next octets go."""

    # -- verbs ---------------------------------------------------------------------------------

    def uses(self, cq: CompletionQueue) -> bool:
        return cq is self._send_cq or cq is self._recv_cq

    def post_send(self, wr: SendWR, flags: int = 0) -> None:
        """Queue one request (not the list linked behind it), with `flags` besides its own.

        Raises:
            OSError: EINVAL for an opcode, a list of elements or a state that doesn't fit;
                ENOMEM when the send queue is full.
        """
        if self.state is not QpState.RTS:
            if self.state is QpState.ERROR:
                self._flush_now(wr)
                return
            # In TERMINATE it waits for its turn to be flushed, behind what was posted before.
            if self.state is not QpState.TERMINATE:
                raise os_error(errno.EINVAL, f"post_send on a QP in state {self.state.name}")
        opcode = wr.opcode
        if opcode not in WC_OF_WR:
            raise os_error(errno.EINVAL, f"work request opcode {opcode}")
        tx = self.tx
        if tx.depth() >= self.cap.max_send_wr:
            raise os_error(errno.ENOMEM, f"send queue of {self.cap.max_send_wr} is full")
        sg = wr.sg if wr.num_sge is None else wr.sg[: wr.num_sge]
        flags |= wr.send_flags
        if flags & ~SEND_KNOWN:
            raise os_error(errno.EINVAL, f"send flags {flags:#x}; data is never inline")
        if len(sg) == 1:
            sge = sg[0]
            length = sge.length
            one = (sge.addr, length, sge.lkey)
            if (
                opcode == WR_RDMA_WRITE
                and 0 <= length <= SMALL
                and tx.write_now(wr.wr_id, flags, wr.rkey, wr.remote_addr, one)
            ):
                return
            sges: Sges = (one,)
        else:
            sges = _sges(sg, self.cap.max_send_sge)
            length = sum(size for _, size, _ in sges)
        if opcode == WR_RDMA_READ:
            if len(sges) > 1:
                raise os_error(errno.EINVAL, "an iWARP RDMA Read has one local element")
            if not tx.ord:
                raise os_error(errno.EINVAL, "the peer takes no Read Requests (ORD is 0)")
        if length < 0 or length > 0xFFFFFFFF:
            raise os_error(errno.EINVAL, f"message of {length} octets")
        if wr.rkey >> 32 or wr.remote_addr < 0 or wr.remote_addr + length > 1 << 64:
            raise os_error(
                errno.EINVAL, f"{length} octets at remote address {wr.remote_addr}, rkey {wr.rkey}"
            )
        tx.sq.append((wr.wr_id, opcode, flags, wr.rkey, wr.remote_addr, length, sges))

    def post_recv(self, wr: RecvWR) -> None:
        """Queue one receive (not the list linked behind it). Raises as `post_send`."""
        if self.state is QpState.ERROR:
            wc = WC(wr.wr_id, WcStatus.WR_FLUSH_ERR, WC_RECV, 0, self.qp_num)
            self._recv_cq.push(wc)
            return
        if len(self.rx.rq) >= self.cap.max_recv_wr:
            raise os_error(errno.ENOMEM, f"receive queue of {self.cap.max_recv_wr} is full")
        sg = wr.sg if wr.num_sge is None else wr.sg[: wr.num_sge]
        self.rx.rq.append((wr.wr_id, _sges(sg, self.cap.max_recv_sge)))

    def connected(self, *, crc: bool, ird: int, ord: int, held: bool, max_ulpdu: int) -> None:
        """MPA set-up is done; FPDUs may flow.

        Args:
            crc: CRC32C is in use, both ways.
            ird: Read Requests of the peer that are taken at once.
            ord: Read Requests that are made at once.
            held: send nothing before the peer's first FPDU (the responder, RFC 5044 section 7.1).
            max_ulpdu: octets of a ULPDU at most.
        """
        self._step(QpEvent.CONNECTED)
        self.tx.crc = self.rx.crc = crc
        self.tx.ord, self.rx.ird = ord, ird
        self.tx.held = held
        self.tx.max_ulpdu = max_ulpdu

    def close(self) -> None:
        """Disconnect in order: what is posted is sent first; `closing` then says when to close."""
        self._step(QpEvent.CLOSE)
        if self.state is QpState.ERROR:
            self._end("closed before it was connected")
        self._drained()

    def detach(self, region: Region) -> None:
        """Drop every view of a region's memory: it is being deregistered.

        Octets of it that are framed already are copied and still sent. A segment that was on its
        way into it ends the connection (invalid STag), as does a later one.
        """
        self.tx.detach(region.view.obj)
        if self.rx.detach(region):
            code = ddp.T_INVALID_STAG
            self._protocol_error(
                ProtocolError(ddp.LAYER_DDP, ddp.ETYPE_TAGGED, code, "the region was deregistered")
            )

    # -- the stream's side ---------------------------------------------------------------------

    @property
    def wants_to_send(self) -> bool:
        return self.state is not QpState.ERROR and self.tx.pending()

    @property
    def closing(self) -> bool:
        """Everything is sent: the stream is to be closed (FIN; RFC 5044 knows no half-close)."""
        return self.state is QpState.ERROR

    @property
    def ended(self) -> bool:
        """Nothing more will happen here: every request has completed."""
        return self.state is QpState.ERROR

    def data_to_send(self) -> list[Buffer]:
        """Parts for the next gathering send; empty where there is nothing to send for now."""
        return self.tx.data_to_send()

    def sent(self, octets: int) -> bool:
        """The stream took `octets` of `data_to_send()`. True where there is more to send."""
        more = self.tx.sent(octets)
        if self.state is not QpState.RTS:
            self._drained()
        return more

    def received(self, octets: int) -> None:
        """The stream wrote `octets` into `buffers()`. Never raises for what the peer sent."""
        if self.state is QpState.TERMINATE or self.state is QpState.ERROR:
            self.counters.rx_bytes += octets
            return
        rx = self.rx
        try:
            rx.received(octets)
        except ProtocolError as exc:
            self._protocol_error(exc)
            return
        if rx.terminate is not None:
            self._terminated(rx.terminate)
        elif self.tx.held and self.counters.rx_fpdus:
            self.tx.held = False
        if self.state is QpState.CLOSING:
            self._drained()

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

    def _end(self, reason: str) -> None:
        self.end_reason = reason
        self.tx.flush(self._read_status, self._vendor_err)
        self.rx.flush(self._vendor_err)
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
