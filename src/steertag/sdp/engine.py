"""One SDP stream over one queue pair (sans-I/O).

Called with the Stack's lock held. Never waits, and never raises for what the peer sent.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from steertag.errors import ProtocolError, WireError
from steertag.rdma.constants import WC_RECV, WcStatus
from steertag.rdma.cq import CompletionQueue
from steertag.rdma.qp import QueuePair
from steertag.rdma.qp_state import QpState
from steertag.rdma.rnic import Rnic
from steertag.sdp.channel import Channel
from steertag.sdp.const import (
    MIN_BUFS,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLPRI,
    POLLRDHUP,
    SdpState,
)
from steertag.sdp.counters import SdpCounters
from steertag.sdp.sink import Sink
from steertag.sdp.source import Source
from steertag.sdp.transfer import Transfer
from steertag.sdp.tuning import Tuning
from steertag.wire import rdmap, sdp

Buffer = bytes | bytearray | memoryview
_BATCH: Final = 64
_HEADER: Final = sdp.BSDH_LEN
_MIN_PEER_SIZE: Final = 128
_DATA: Final = sdp.DATA
_DATA_INDEX: Final = sdp.mid_index(sdp.DATA)
_UNPACK: Final = sdp.BSDH.unpack_from
_HOLD: Final = 0.01
"""Seconds that advertised octets wait for the buffer of somebody who has received so before: for
longer the peer isn't kept waiting by one who is busy elsewhere."""
_EVERYTHING: Final = POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP
_SUCCESS: Final = WcStatus.SUCCESS


class Writer(Protocol):
    """Where received octets go: `MsgHdr.write` and `RecvMsg.write` are such."""

    def __call__(self, offset: int, data: Buffer, /) -> int: ...


class Engine:
    """Args:
    qp: the queue pair, made with `tuning.qp_cap()`, in INIT.
    rnic: what it belongs to.
    pd: its protection domain, the stream's own.
    cq: its completion queue for sends and receives, of `tuning.cq_depth`, the stream's own.
    tuning: limits and thresholds; may be changed while the stream lives, sizes of the ring apart.
    on_event: called with the POLL bits that are news.
    counters: where to count.
    clock: gives seconds, monotonic.

    Attributes:
        state: where the stream is.
        error: errno that ended it; 0 while it lives and after an orderly end.
        reason: the same in words; "" for none.
        ended: the queue pair has ended: nothing moves any more, and no memory is registered.
        deadline: when `handle_timer` has to be called; None for not at all. May change with
            every call.
    """

    def __init__(
        self,
        qp: QueuePair,
        rnic: Rnic,
        pd: int,
        cq: CompletionQueue,
        tuning: Tuning,
        on_event: Callable[[int], None],
        counters: SdpCounters,
        clock: Callable[[], float],
    ) -> None:
        self.state = SdpState.INIT
        self.error = 0
        self.reason = ""
        self.ended = False
        self.deadline: float | None = None
        self.tuning = tuning
        self.counters = counters
        self._qp, self._cq = qp, cq
        self._on_event, self._clock = on_event, clock
        self._channel = Channel(qp, rnic, pd, tuning, counters)
        self._source = Source(self._channel, tuning, counters, self._act)
        self._sink = Sink(self._channel, tuning, counters, self._act)
        self._closed = False
        self._started = self._flushed = False
        self._heard = 0.0
        self._asked_at: float | None = None
        self._end_by: float | None = None
        self._cancel_by: float | None = None
        self._hold_by: float | None = None
        self._handlers: dict[int, Callable[[int, memoryview, int], bool]] = {
            sdp.DISCONN: self._on_disconn,
            sdp.ABORT_CONN: self._on_abort,
            sdp.SEND_SM: self._on_send_sm,
            sdp.RDMA_WR_COMPL: self._on_written,
            sdp.RDMA_RD_COMPL: self._on_read,
            sdp.MODE_CHANGE: self._on_mode,
            sdp.SRC_AVAIL_CANCEL: self._on_source_cancel,
            sdp.SINK_AVAIL_CANCEL: self._on_sink_cancel,
            sdp.SINK_CANCEL_ACK: self._on_cancel_ack,
            sdp.CH_RCV_BUF: self._on_ch_rcv_buf,
            sdp.CH_RCV_BUF_ACK: self._on_ch_rcv_buf_ack,
            sdp.SUSP_COMM: self._on_susp,
            sdp.SINK_AVAIL: self._on_sink_avail,
        }

    # -- set-up --------------------------------------------------------------------------------

    def hello(self, local: bytes = bytes(4), remote: bytes = bytes(4), port: int = 0) -> bytes:
        """Private data of the active side's MPA Request.

        Args:
            local, remote: packed addresses, 4 or 16 octets.
            port: the stream's local port.
        """
        tuning = self.tuning
        size = tuning.recv_size
        return sdp.Hello(
            tuning.recv_count, tuning.max_adverts, size, size, port, local, remote
        ).emit()

    def take_hello(self, private_data: bytes) -> None:
        """The passive side's: what the Request brought. Raises ProtocolError: not SDP, another
        version, sizes that can't work."""
        try:
            hello = sdp.Hello.parse(private_data)
        except WireError as exc:
            raise _set_up_error(str(exc)) from exc
        self._meet(hello.version, hello.bufs, hello.local_size, hello.max_adverts)

    def hello_ack(self) -> bytes:
        """Private data of the passive side's MPA Reply, after `take_hello`."""
        tuning = self.tuning
        return sdp.HelloAck(tuning.recv_count, tuning.max_adverts, tuning.recv_size).emit()

    def take_hello_ack(self, private_data: bytes) -> None:
        """The active side's: what the Reply brought. Raises ProtocolError as `take_hello`."""
        try:
            ack = sdp.HelloAck.parse(private_data)
        except WireError as exc:
            raise _set_up_error(str(exc)) from exc
        self._meet(ack.version, ack.bufs, ack.actual_size, ack.max_adverts)

    def _meet(self, version: int, bufs: int, size: int, adverts: int) -> None:
        if version >> 4 != sdp.VERSION >> 4:
            raise _set_up_error(f"version {version >> 4}.{version & 15}")
        if bufs < MIN_BUFS:
            raise _set_up_error(f"{bufs} receive buffers, {MIN_BUFS} are needed")
        if size < _MIN_PEER_SIZE:
            raise _set_up_error(f"receive buffers of {size} octets")
        self._channel.meet(bufs, size)
        self._source.peer_adverts = adverts

    def prepare(self) -> None:
        """Post the receives: before the MPA Request or Reply is sent. Raises OSError ENOMEM."""
        self._channel.post_ring()

    def start(self) -> None:
        """The queue pair is connected (RTS) and the Hello of the peer taken: data may flow."""
        if self.state is SdpState.INIT:
            self.state = SdpState.ESTABLISHED
        self._started = True
        self._heard = self._clock()
        if self.tuning.buffered:
            mode = sdp.ModeChange(False, sdp.BUFFERED).emit()
            self._channel.send_later(sdp.MODE_CHANGE, 0, mode)
        self._on_event(POLLOUT)
        self.poll()

    # -- progress ------------------------------------------------------------------------------

    def poll(self) -> None:
        """Take completions off the queue and act on them; notice the queue pair's end.

        To be called after octets of the stream were moved, and from the queue pair's `on_end`.
        """
        cq, channel = self._cq, self._channel
        done = 0
        heard = False
        while cq.entries:
            for wc in cq.poll(_BATCH):
                if wc.status is not _SUCCESS:
                    # A later Send that had left may still succeed: what it stands behind, a Read
                    # that was not answered, isn't done all the same.
                    self._flushed = self._flushed or wc.opcode < WC_RECV
                    continue
                if wc.opcode == WC_RECV:
                    heard = True
                    if not self._message(wc.wr_id, wc.byte_len):
                        self._violation()
                elif wc.opcode < WC_RECV:
                    done = done if self._flushed else wc.wr_id
                else:
                    self._violation()
        if done:
            channel.completed(done)
            self._source.completed()
            if not self._sink.completed():
                self._violation()
        if heard and self.tuning.keepalive:
            self._heard, self._asked_at = self._clock(), None
        if self._started and not self.ended:
            self._progress()
        if self._qp.ended and not self.ended:
            self._end()
        self._tell()

    def _progress(self) -> None:
        """Send what credits and completions allow by now."""
        channel, source = self._channel, self._source
        if channel.control:
            channel.flush_control()
        if not self._sink.read_more():
            self._violation()
        source.pump()
        channel.update()
        if source.fin_sent:
            if self.state is SdpState.ESTABLISHED:
                self.state = SdpState.FIN_SENT
            elif self.state is SdpState.FIN_RECEIVED:
                self.state = SdpState.CLOSING
            if self.state is SdpState.CLOSING and not (channel.control or channel.muted):
                channel.muted = True
                self._end_by = self._clock() + self.tuning.close_timeout
                self._qp_close()
        self._set_deadline()

    def _tell(self) -> None:
        """Tell the owner what is news."""
        sink, source = self._sink, self._source
        mask = 0
        if sink.news:
            sink.news = False
            mask = POLLIN
            if sink.fin:
                mask |= POLLRDHUP
        if sink.urgent_news:
            sink.urgent_news = False
            mask |= POLLPRI
        if source.transfers_done or (source.short and source.has_room()):
            source.transfers_done = source.short = False
            mask |= POLLOUT
        if mask:
            self._on_event(mask)

    def _act(self) -> None:
        """A call of the application's has changed something."""
        if self._started and not self.ended:
            self._progress()
        if self._qp.ended and not self.ended:
            self._end()
        self._tell()

    # -- messages ------------------------------------------------------------------------------

    def _message(self, index: int, length: int) -> bool:
        """A message of `length` octets lies in buffer `index`. False if it breaks a rule."""
        channel = self._channel
        message = channel.ring[index]
        if length < _HEADER:
            return False
        mid, flags, bufs, size, mseq, ack = _UNPACK(message)
        if size != length or not channel.received(bufs, mseq, ack):
            return False
        if self.state >= SdpState.CLOSING:
            channel.repost(index)
            return True
        if mid == _DATA:
            self.counters.rx_messages[_DATA_INDEX] += 1
            if self._closed and length > _HEADER:
                channel.repost(index)
                self._reset("data came after the close")
                return True
            return flags <= sdp.FLAGS_KNOWN and self._sink.data(index, length - _HEADER, flags)
        if flags:
            if flags & ~sdp.FLAGS_KNOWN or flags & sdp.OOB_PRES:
                return False
            self._flagged(flags)
        if mid == sdp.SRC_AVAIL:
            self.counters.rx_messages[sdp.mid_index(mid)] += 1
            return self._on_src_avail(index, message[_HEADER:length])
        handler = self._handlers.get(mid)
        if handler is None:
            return False
        self.counters.rx_messages[sdp.mid_index(mid)] += 1
        body = memoryview(bytes(message[_HEADER:length]))
        channel.repost(index)
        return handler(mid, body, flags)

    def _flagged(self, flags: int) -> None:
        if flags & sdp.REQ_PIPE:
            self._source.pipeline_asked()
        if flags & sdp.OOB_PEND:
            self._sink.urgent_coming()

    def _on_src_avail(self, index: int, body: memoryview) -> bool:
        try:
            source = sdp.SrcAvail.parse(body)
        except WireError:
            self._channel.repost(index)
            return False
        if self._closed:
            self._channel.repost(index)
            self._reset("data came after the close")
            return True
        return self._sink.advertised(source, index, body[sdp.SRC_AVAIL_BODY.size :])

    def _on_disconn(self, mid: int, body: memoryview, flags: int) -> bool:
        if len(body) or self._sink.fin:
            return False
        self._sink.finished()
        if self.state is SdpState.FIN_SENT:
            self.state = SdpState.CLOSING
        elif self.state is SdpState.ESTABLISHED:
            self.state = SdpState.FIN_RECEIVED
        return True

    def _on_abort(self, mid: int, body: memoryview, flags: int) -> bool:
        self.counters.aborts_received += 1
        self._fail(errno.ECONNRESET, "the peer aborted the stream")
        self._qp_close()
        return True

    def _on_send_sm(self, mid: int, body: memoryview, flags: int) -> bool:
        return not len(body) and self._source.send_sm()

    def _on_written(self, mid: int, body: memoryview, flags: int) -> bool:
        return len(body) == 4 and self._sink.written(sdp.parse_u32(body))

    def _on_read(self, mid: int, body: memoryview, flags: int) -> bool:
        return len(body) == 4 and self._source.read_completed(sdp.parse_u32(body))

    def _on_mode(self, mid: int, body: memoryview, flags: int) -> bool:
        try:
            change = sdp.ModeChange.parse(body)
        except WireError:
            return False
        if change.of_source:
            self._sink.peer_mode = change.mode
        else:
            self._source.asked_for_mode(change.mode)
        return True

    def _on_source_cancel(self, mid: int, body: memoryview, flags: int) -> bool:
        if len(body):
            return False
        self._sink.source_cancelled()
        return True

    def _on_sink_cancel(self, mid: int, body: memoryview, flags: int) -> bool:
        return not len(body) and self._source.sinks_cancelled()

    def _on_cancel_ack(self, mid: int, body: memoryview, flags: int) -> bool:
        return not len(body) and self._sink.sink_cancel_acked()

    def _on_ch_rcv_buf(self, mid: int, body: memoryview, flags: int) -> bool:
        """The size of our receive buffers stays: that is what the answer says."""
        if len(body) != 4:
            return False
        size = sdp.emit_u32(self.tuning.recv_size)
        return self._channel.send_later(sdp.CH_RCV_BUF_ACK, 0, size)

    def _on_ch_rcv_buf_ack(self, mid: int, body: memoryview, flags: int) -> bool:
        if len(body) != 4:
            return False
        return self._channel.resized(sdp.parse_u32(body))

    def _on_susp(self, mid: int, body: memoryview, flags: int) -> bool:
        """A stream isn't moved to another connection here: the peer is told by the abort."""
        if len(body) != 8:
            return False
        self._reset("the peer wanted to move the stream to another connection")
        return True

    def _on_sink_avail(self, mid: int, body: memoryview, flags: int) -> bool:
        try:
            sink = sdp.SinkAvail.parse(body)
        except WireError:
            return False
        return self._source.sink_available(sink)

    # -- the data source -----------------------------------------------------------------------

    def sendmsg(self, parts: Sequence[memoryview], *, oob: bool = False) -> int:
        """Take octets to send; with `oob` the last one taken is out-of-band data.

        Memory that can't change (a view over `bytes`) of at least `zcopy_threshold` octets is
        kept and advertised; everything else is copied. Gives the octets taken, 0 where there is
        no room. The caller looks at `error` and `send_shut` first.
        """
        if not self._started or self._source.shut or self.state >= SdpState.CLOSING:
            return 0
        return self._source.sendmsg(parts, oob)

    def send_in_place(self, part: memoryview) -> Transfer:
        """Send memory that may change after `Transfer.done`, without a copy; 1 GiB at most.

        Not bounded by `snd_bytes`: it is the caller's memory.
        """
        if self._source.shut or self.state >= SdpState.CLOSING:
            transfer = Transfer(lambda transfer: None)
            transfer.done, transfer.error = True, self.error or errno.EPIPE
            return transfer
        transfer = self._source.send_in_place(part)
        self._set_deadline()
        return transfer

    def writable(self) -> bool:
        """Whether `sendmsg` would take a fair amount."""
        return self._started and self._source.room() >= self.tuning.snd_bytes >> 2

    @property
    def outq(self) -> int:
        """Octets taken from the application that are not known to be delivered (SIOCOUTQ)."""
        return self._source.outq

    @property
    def send_shut(self) -> bool:
        """`shutdown_send` was called."""
        return self._source.shut

    # -- the data sink -------------------------------------------------------------------------

    @property
    def oob_inline(self) -> bool:
        """Out-of-band octets stay in the stream (SO_OOBINLINE)."""
        return self._sink.ready.oob_inline

    @oob_inline.setter
    def oob_inline(self, value: bool) -> None:
        self._sink.ready.oob_inline = value

    def recv_into(self, write: Writer, room: int, *, peek: bool = False) -> int:
        """Give what is there to `write`, at most `room` octets; 0 for nothing.

        Octets handed over lie in memory that the peer's next message may fill: they have to be
        copied before the engine is polled again. Stops before the out-of-band mark, if anything
        was read.
        """
        sink = self._sink
        if not sink.ready.unread:
            return 0
        count = sink.ready.read(write, room, peek)
        if count and not peek and not self.ended:
            if not sink.read_more():
                self._violation()
            self._channel.update()
        return count

    def want(self) -> None:
        """Somebody wants octets, and waits for them without a buffer of its own: advertised ones
        are fetched. (Between two `recv_in_place` they wait for the second one's buffer.)"""
        self._sink.want()

    def recv_in_place(self, part: memoryview) -> Transfer:
        """The caller waits with this buffer.

        What is there already is copied; else an advertised source is read straight into it, or
        it is advertised itself, or filled with whatever comes. Done with the first octets, at
        the end of the stream (`octets` 0, `error` 0), or by an error. One at a time.
        """
        transfer = self._sink.recv_in_place(part)
        if self.ended and not transfer.done:
            self._sink.end(self.error)
        elif self._started and transfer.octets:
            self._channel.update()
        return transfer

    @property
    def unread(self) -> int:
        """Octets that `recv_into` could give now (SIOCINQ)."""
        return self._sink.ready.unread

    @property
    def moves_large(self) -> bool:
        """What comes next is behind large data, whose way takes longer than a message's."""
        return self._channel.reading > 0 or self._source.advertising

    @property
    def readable(self) -> bool:
        """Octets, the end of the stream, or an error are there to be read."""
        self.want()
        sink = self._sink
        return bool(sink.ready.unread or self.eof or self.error or self.ended)

    @property
    def eof(self) -> bool:
        """The peer has shut its side and everything is read (or we shut ours)."""
        return self._sink.discard or (self._sink.fin and self._sink.drained)

    @property
    def peer_shut(self) -> bool:
        """The peer's DisConn is here (POLLRDHUP)."""
        return self._sink.fin

    @property
    def oob_pending(self) -> bool:
        """Out-of-band data is there or announced (POLLPRI)."""
        return self._sink.ready.oob_told

    def recv_oob(self, *, peek: bool = False) -> bytes | None:
        """The out-of-band octet: b"" where it was announced and isn't here; None for none."""
        return self._sink.ready.recv_oob(peek)

    @property
    def at_mark(self) -> bool:
        """Whether the next octet is the one behind (inline: at) the mark (SIOCATMARK)."""
        return self._sink.ready.at_mark

    # -- the end -------------------------------------------------------------------------------

    def shutdown_send(self) -> None:
        """DisConn, behind everything that is to be sent. Once is enough."""
        self._source.shut = True
        self._act()

    def shutdown_recv(self) -> None:
        """Whatever is unread or comes is thrown away; the peer isn't told."""
        if not self._sink.discard:
            self._sink.stop()
            self._act()

    def close(self) -> None:
        """Nobody reads or sends any more: DisConn behind what is left to be sent; unread octets,
        and those that come, reset the stream as TCP does. `ended` tells when it is over."""
        if self._closed or self.ended:
            return
        self._closed = True
        if not self._started or (not self._sink.drained and self.state < SdpState.CLOSING):
            self.abort()
            return
        self._end_by = self._clock() + self.tuning.close_timeout
        self._source.shut = True
        self._act()

    def abort(self) -> None:
        """AbortConn, as fast as it gets away; what is unsent is dropped. Transfers are done."""
        if self.ended or self.state is SdpState.ABORTING:
            return
        self._abort(errno.ECONNABORTED, "aborted")
        self._tell()

    def _reset(self, reason: str) -> None:
        if self.state < SdpState.ABORTING:
            self._abort(errno.ECONNRESET, reason)

    def _violation(self) -> None:
        """The peer broke a rule of SDP's."""
        if self.state < SdpState.ABORTING:
            self.counters.protocol_errors += 1
            self._abort(errno.EPROTO, "the peer broke the protocol")

    def _abort(self, error: int, reason: str) -> None:
        channel = self._channel
        channel.control.clear()
        if self._started and channel.can_control():
            self.counters.aborts_sent += 1
            channel.send(sdp.ABORT_CONN)
        self._fail(error, reason)
        self._qp_close()

    def _fail(self, error: int, reason: str) -> None:
        """The stream is over: what is left are the queue pair's last octets."""
        if not self.error:
            self.error, self.reason = error, reason
        self.state = SdpState.ABORTING
        self._channel.muted = True
        self._end_by = self._clock() + self.tuning.abort_timeout
        self._source.end(error)
        self._sink.end(error)
        self._set_deadline()
        self._on_event(_EVERYTHING)

    def _qp_close(self) -> None:
        """Close the queue pair behind what is posted."""
        if self._qp.state in (QpState.RTS, QpState.SQD, QpState.INIT):
            self._qp.close()

    def _end(self) -> None:
        """The queue pair has ended."""
        self.ended = True
        reason = self._qp.end_reason
        if self.state not in (SdpState.CLOSING, SdpState.ABORTING):
            self.error = errno.ETIMEDOUT if "timed out" in reason else errno.ECONNRESET
            self.reason = reason
        self.state = SdpState.CLOSED
        self._channel.muted = True
        self._channel.control.clear()
        self._source.end(self.error)
        self._sink.end(self.error)
        self._channel.release()
        self.deadline = None
        self._on_event(_EVERYTHING)

    # -- time ----------------------------------------------------------------------------------

    def _set_deadline(self) -> None:
        due = self._end_by
        if self._source.cancels_due or self._sink.cancelling:
            if self._cancel_by is None:
                self._cancel_by = self._clock() + self.tuning.cancel_timeout
            due = self._cancel_by if due is None else min(due, self._cancel_by)
        else:
            self._cancel_by = None
        if self._sink.holding:
            if self._hold_by is None:
                self._hold_by = self._clock() + _HOLD
            due = self._hold_by if due is None else min(due, self._hold_by)
        else:
            self._hold_by = None
        if self.tuning.keepalive and self.state < SdpState.CLOSING and self._started:
            at = self._heard + self.tuning.keepalive
            if self._asked_at is not None:
                at = self._asked_at + self.tuning.keepalive_timeout
            due = at if due is None else min(due, at)
        self.deadline = due

    def handle_timer(self, now: float) -> None:
        """`deadline` has come."""
        if self.ended:
            self.deadline = None
            return
        if self._hold_by is not None and now >= self._hold_by:
            self.want()
        if self._end_by is not None and now >= self._end_by:
            self._end_by = None
            if self.state < SdpState.CLOSING:
                self._reset("the peer did not close in time")
            else:
                self._qp.modify(QpState.ERROR)
        elif self._cancel_by is not None and now >= self._cancel_by:
            self._abort(errno.ETIMEDOUT, "the peer did not answer a cancel")
        elif self.tuning.keepalive and self.state < SdpState.CLOSING:
            self._keepalive(now)
        self._set_deadline()
        if self._qp.ended and not self.ended:
            self._end()
        self._tell()

    def _keepalive(self, now: float) -> None:
        """Ask for a sign of life: ChRcvBuf with the size that the buffers have is answered."""
        if self._asked_at is not None:
            if now >= self._asked_at + self.tuning.keepalive_timeout:
                self._fail(errno.ETIMEDOUT, "no sign of life")
                self._qp.modify(QpState.ERROR)
        elif now >= self._heard + self.tuning.keepalive:
            self.counters.keepalives += 1
            self._asked_at = now
            size = sdp.emit_u32(self._channel.peer_room + _HEADER)
            self._channel.send_later(sdp.CH_RCV_BUF, 0, size)


def _set_up_error(detail: str) -> ProtocolError:
    """The Hello can't be agreed to."""
    return ProtocolError(
        rdmap.LAYER_RDMAP, rdmap.ETYPE_OPERATION, rdmap.O_UNSPECIFIED, f"SDP: {detail}"
    )
