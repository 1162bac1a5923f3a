"""What one SDP stream is allowed to hold, and when it copies."""

from __future__ import annotations

from dataclasses import dataclass

from steertag.rdma.qp import QpCap
from steertag.sdp.const import MIN_BUFS
from steertag.wire.sdp import BSDH_LEN


@dataclass(slots=True)
class Tuning:
    """Per stream; sizes in octets, times in seconds.

    Attributes:
        zcopy_threshold: a send of at least so much is advertised instead of copied; 0: none is.
        sink_threshold: a waiting receive with at least so much room is advertised (SinkAvail)
            where nothing is there; 0: none is.
        recv_size: size of a posted receive buffer, the message's header included; by default what
            fits into one segment.
        recv_count: receive buffers, which are the peer's credits; 5 to 65535.
        send_count: work requests that may be posted and not completed.
        max_adverts: of the peer's sources that are taken at once, 1 to 255.
        snd_bytes: taken from the application and not yet sent, at most.
        rcv_bytes: received or read ahead and not yet taken by the application, at most, besides
            the receive buffers.
        read_size: of one RDMA Read into memory of the engine's own.
        read_ahead: while a Read goes into the waiting buffer, others go into memory of the
            engine's own: more overlaps, and more is copied.
        inline: first octets of an advertised source that its SrcAvail carries in combined mode.
        buffered: this side's sink wants no advertised sources (it asks for buffered mode).
        keepalive: silence after which the peer is asked for a sign of life; 0: never.
        keepalive_timeout: for its answer; then the stream has ended (ETIMEDOUT).
        close_timeout: for the peer's DisConn after a close.
        abort_timeout: for an AbortConn to get away.
        cancel_timeout: for the answer to a cancel; then the stream is reset.
    """

    zcopy_threshold: int = 524288
    sink_threshold: int = 524288
    recv_size: int = 61440
    recv_count: int = 32
    send_count: int = 128
    max_adverts: int = 8
    snd_bytes: int = 4 << 20
    rcv_bytes: int = 4 << 20
    read_size: int = 1 << 20
    read_ahead: bool = False
    inline: int = 0
    buffered: bool = False
    keepalive: float = 0.0
    keepalive_timeout: float = 30.0
    close_timeout: float = 60.0
    abort_timeout: float = 2.0
    cancel_timeout: float = 30.0

    def __post_init__(self) -> None:
        if not MIN_BUFS <= self.recv_count <= 0xFFFF:
            raise ValueError(f"{self.recv_count} receive buffers: {MIN_BUFS} to 65535")
        if self.recv_size < 128:
            raise ValueError(f"receive buffers of {self.recv_size} octets: 128 at least")
        if not 1 <= self.max_adverts <= 255:
            raise ValueError(f"{self.max_adverts} advertisements: 1 to 255")
        if self.send_count < 16:
            raise ValueError(f"{self.send_count} work requests: 16 at least")

    def qp_cap(self) -> QpCap:
        """Limits of the queue pair that the stream needs."""
        return QpCap(
            max_send_wr=self.send_count,
            max_recv_wr=self.recv_count,
            max_send_sge=1,
            max_recv_sge=1,
            max_inline_data=65536,
        )

    @property
    def cq_depth(self) -> int:
        """Completions that may wait at once, of both queues."""
        return self.send_count + self.recv_count + 8

    @property
    def recv_room(self) -> int:
        """Octets of payload that fit into a receive buffer."""
        return self.recv_size - BSDH_LEN
