"""The data source: what is to be sent, in order, by copy, by advertisement, or by RDMA Write.

The stream's order is the order of messages. Octets that are advertised stand where their SrcAvail
does; while any of them is outstanding no Data is sent behind it, so that what a SendSm refuses can
still be sent as Data, in its place. An advertised sink takes the octets at the position that its
SinkAvail names, and no others: it is void as soon as other octets go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from steertag.rdma.constants import ACCESS_REMOTE_READ
from steertag.rdma.memory import Region
from steertag.rdma.wr import SGE
from steertag.sdp.channel import Channel
from steertag.sdp.counters import SdpCounters
from steertag.sdp.transfer import Transfer
from steertag.sdp.tuning import Tuning
from steertag.wire import sdp

WRITE_MIN: Final = 16384
"""Octets from which on it pays to write into an advertised sink, instead of voiding it by Data."""
_HEADER: Final = sdp.BSDH_LEN
_BLANK: Final = bytes(_HEADER)
_POS_MASK: Final = 0xFFFFFFFF
MAX_ADVERT: Final = 1 << 30
"""Octets advertised at once."""
KEPT: Final = 8
"""Times `snd_bytes` that memory which can't change may have: it is kept, and nothing copied."""
_RETIRED: Final = 64
"""Regions of memory that can't change, already read, whose deregistration may wait."""


class Out:
    """A large piece of memory to be sent without a copy.

    Attributes:
        view: all of it.
        at: octets of it that are moved, or were copied.
        end: octets of it that are moved or advertised.
        transfer: whose it is; None for memory that can't change.
        region: its registration, once there is one.
        refused: it goes as Data.
    """

    __slots__ = ("at", "end", "refused", "region", "transfer", "view")

    def __init__(self, view: memoryview, transfer: Transfer | None) -> None:
        self.view = view
        self.at = self.end = 0
        self.transfer = transfer
        self.region: Region | None = None
        self.refused = False


class Source:
    """Args:
    channel: messages.
    tuning, counters: the engine's.
    changed: called when a transfer was cancelled.

    Attributes:
        peer_adverts: advertisements that the peer takes at once.
        mode: COMBINED, PIPELINED or BUFFERED.
        shut: `shutdown` was called.
        fin_sent: DisConn was.
    """

    def __init__(
        self,
        channel: Channel,
        tuning: Tuning,
        counters: SdpCounters,
        changed: Callable[[], None],
    ) -> None:
        self._changed = changed
        self.peer_adverts = 0
        self.mode = sdp.COMBINED
        self.shut = self.fin_sent = False
        self.transfers_done = False
        """A transfer has become done since the engine looked."""
        self.short = False
        """Somebody was told that there is no room."""
        self._short_of = 0
        """Octets of room for memory that can't change which they would have taken; 0: of others."""
        self._channel, self._tuning, self._counters = channel, tuning, counters
        self._queue: deque[bytearray | Out] = deque()
        # Octets of out-of-band data end these queued messages.
        self._oob: list[bytearray] = []
        self._oob_told = False
        self._queued = 0
        self._outstanding: deque[Out] = deque()
        self._held = 0
        """Octets of memory that can't change, outstanding: they count against snd_bytes."""
        self._position = 0
        self._sinks: deque[sdp.SinkAvail] = deque()
        self._writing: deque[tuple[int, Out, int]] = deque()
        self._retired: list[Region] = []
        self.cancels_due = 0
        """SrcAvailCancel that no SendSm has answered."""
        self._copy_next = False
        self._pipeline_asked = False
        self._waiting = False

    # -- what the application gives ------------------------------------------------------------

    def sendmsg(self, parts: Sequence[memoryview], oob: bool) -> int:
        channel = self._channel
        if len(parts) == 1:
            part = parts[0]
            count = len(part)
            if (
                not (oob or self._queue or self._outstanding or self._sinks or self.cancels_due)
                and count <= channel.peer_room
                and (count < self._tuning.zcopy_threshold or not self._tuning.zcopy_threshold)
                and channel.can_data()
                and channel.octets_posted - channel.octets_done < self._tuning.snd_bytes
            ):
                # The way of almost every small message.
                channel.send_data(part)
                self._position += count
                self._copy_next = False
                return count
        taken = self._take(parts)
        if taken and oob:
            self._mark_oob()
        self.pump()
        return taken

    def _take(self, parts: Sequence[memoryview]) -> int:
        taken = self._short_of = 0
        threshold = self._tuning.zcopy_threshold
        for part in parts:
            count = len(part)
            if threshold and count >= threshold and type(part.obj) is bytes and part.readonly:
                count = self._keep(part[:MAX_ADVERT])
                taken += count
                if count < len(part):
                    break
                continue
            room = self.room()
            if room <= 0:
                break
            if self._sinks and count >= WRITE_MIN and not self._queue:
                count = min(count, room, self._sinks[0].length)
                self._queue.append(Out(memoryview(bytes(part[:count])), None))
                self._queued += count
            else:
                count = min(count, room)
                self._copy(part[:count])
            taken += count
            if count < len(part):
                break
        if taken < sum(map(len, parts)):
            self.short = True
        return taken

    def _keep(self, part: memoryview) -> int:
        """Take memory that can't change, without a copy: octets taken. It is rather kept whole
        later than in pieces, each of which is an advertisement of its own."""
        count, room = len(part), self._kept_room()
        if room < count:
            least = min(count, self._tuning.snd_bytes * KEPT // 2)
            if room < least:
                self._short_of = least
                return 0
            part = part[:room]
        self._queue.append(Out(part, None))
        self._queued += len(part)
        return len(part)

    def _kept_room(self) -> int:
        used = self._queued + self._held + self._channel.unsent
        return self._tuning.snd_bytes * KEPT - used

    def has_room(self) -> bool:
        """There is again, for those who were `short` of it."""
        if self.room() >= self._tuning.snd_bytes >> 2:
            return True
        return 0 < self._short_of <= self._kept_room()

    def _copy(self, part: memoryview) -> None:
        """Cut into messages with room for their headers; small ones are joined."""
        queue, room = self._queue, self._channel.peer_room + _HEADER
        self._queued += len(part)
        last = queue[-1] if queue else None
        if type(last) is bytearray and len(last) < room and not self._ends_oob(last):
            fits = room - len(last)
            last += part[:fits]
            part = part[fits:]
        step = self._channel.peer_room
        for at in range(0, len(part), step):
            queue.append(bytearray(_BLANK) + part[at : at + step])

    def _mark_oob(self) -> None:
        last = self._queue[-1]
        if isinstance(last, Out):
            # The out-of-band octet ends a message of its own.
            self._queued -= 1
            octet = last.view[-1:]
            last.view = last.view[:-1]
            self._copy(octet)
            last = self._queue[-1]
            assert not isinstance(last, Out)
        self._oob.append(last)
        self._oob_told = False

    def _ends_oob(self, message: bytearray) -> bool:
        return bool(self._oob) and self._oob[-1] is message

    def send_in_place(self, part: memoryview) -> Transfer:
        transfer = Transfer(self._cancel)
        part = part[:MAX_ADVERT]
        if not len(part):
            transfer.done = True
            return transfer
        self._queue.append(Out(part, transfer))
        self._queued += len(part)
        self.pump()
        return transfer

    @property
    def outq(self) -> int:
        count = self._queued + self._channel.unsent
        for out in self._outstanding:
            count += len(out.view) - out.at
        for _, _, writing in self._writing:
            count += writing
        return count

    def room(self) -> int:
        """Octets that `sendmsg` may take."""
        return self._tuning.snd_bytes - self._queued - self._held - self._channel.unsent

    # -- what goes out -------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what may be sent now."""
        queue = self._queue
        while queue and not self.cancels_due:
            item = queue[0]
            if isinstance(item, Out):
                if not len(item.view):
                    queue.popleft()
                elif not self._send_out(item):
                    return
            elif self._outstanding:
                self._announce_oob()
                return
            elif self._channel.can_data():
                queue.popleft()
                self._send_message(item)
            else:
                self._wait_for_credit()
                return
        if self.shut and not self.fin_sent and self.idle:
            self.fin_sent = True
            self._channel.send_later(sdp.DISCONN)

    @property
    def idle(self) -> bool:
        """Nothing is left to be sent, and no advertisement outstanding."""
        return not (self._queue or self._outstanding or self.cancels_due or self._writing)

    @property
    def advertising(self) -> bool:
        """The peer has octets to read."""
        return bool(self._outstanding)

    def _wait_for_credit(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._counters.credit_waits += 1
        self._announce_oob()

    def _announce_oob(self) -> None:
        """Out-of-band data waits behind other octets: say that it is coming (OOB_PEND)."""
        if self._oob and not self._oob_told:
            self._oob_told = True
            self._channel.send_later(sdp.DATA, sdp.OOB_PEND)

    def _moved(self, count: int) -> None:
        """So many octets go at the stream's position, or are promised there."""
        self._position += count
        self._queued -= count
        self._copy_next = self._waiting = False
        if self._sinks:
            self._sinks.clear()

    def _send_message(self, message: bytearray) -> None:
        flags = 0
        if self._oob:
            flags = sdp.OOB_PEND
            if self._oob[0] is message:
                del self._oob[0]
                flags = sdp.OOB_PRES
        self._moved(len(message) - _HEADER)
        self._channel.send_framed(message, flags)

    def _send_out(self, out: Out) -> bool:
        """The oldest large piece: False where it has to wait."""
        if not out.refused and self._sinks and not self._outstanding:
            return self._write(out)
        if out.refused or self._copy_next or not self._may_advertise(out):
            return self._copy_piece(out)
        return self._advertise(out)

    def _may_advertise(self, out: Out) -> bool:
        return self.mode != sdp.BUFFERED and self.peer_adverts > 0

    def _copy_piece(self, out: Out) -> bool:
        if self._outstanding:
            return False
        if not self._channel.can_data():
            self._wait_for_credit()
            return False
        piece = out.view[out.at : out.at + self._channel.peer_room]
        self._moved(len(piece))
        self._channel.send_data(piece)
        self._advance(out, len(piece))
        if out.at == len(out.view):
            self._queue.popleft()
            self._finish(out)
        return True

    def _advertise(self, out: Out) -> bool:
        channel = self._channel
        limit = 1 if self.mode == sdp.COMBINED else self.peer_adverts
        if self._outstanding and limit == 1 and (self.peer_adverts > 1 or self._pipeline_asked):
            if not channel.can_data():
                return False
            self._change_mode(sdp.PIPELINED)
            limit = self.peer_adverts
        if len(self._outstanding) >= limit:
            return False
        if not channel.can_data():
            self._wait_for_credit()
            return False
        if out.region is None:
            out.region = channel.register(out.view, ACCESS_REMOTE_READ)
            if out.region is None:
                out.refused = True
                return self._copy_piece(out)
        count = len(out.view) - out.at
        inline = b""
        if self.mode == sdp.COMBINED and self._tuning.inline:
            most = min(self._tuning.inline, channel.peer_room - sdp.SRC_AVAIL_BODY.size)
            inline = bytes(out.view[out.at : out.at + most])
        out.end = out.at + count
        region = out.region
        body = sdp.SRC_AVAIL_BODY.pack(count, region.stag, region.base + out.at)
        self._counters.src_adverts += 1
        self._moved(count)
        if out.transfer is None:
            self._held += count
        channel.send(sdp.SRC_AVAIL, sdp.OOB_PEND if self._oob else 0, body + inline)
        self._queue.popleft()
        self._outstanding.append(out)
        return True

    def _change_mode(self, mode: int) -> None:
        self.mode = mode
        self._counters.mode_changes += 1
        self._channel.send(sdp.MODE_CHANGE, 0, sdp.ModeChange(True, mode).emit())

    def _write(self, out: Out) -> bool:
        """RDMA Write into the peer's advertised sink, and RdmaWrCompl behind it."""
        channel, sink = self._channel, self._sinks[0]
        if not (channel.can_data() and channel.can_rdma()):
            self._wait_for_credit()
            return False
        if out.region is None:
            # What doesn't fit into this sink may have to be advertised.
            right = ACCESS_REMOTE_READ if sink.length < len(out.view) - out.at else 0
            out.region = channel.register(out.view, right)
            if out.region is None:
                out.refused = True
                return True
        count = min(len(out.view) - out.at, sink.length)
        sge = SGE(out.region.base + out.at, count, out.region.stag)
        channel.post_rdma(False, sge, sink.rkey, sink.addr)
        channel.send(sdp.RDMA_WR_COMPL, 0, sdp.emit_u32(count))
        self._writing.append((channel.wr_posted, out, count))
        self._counters.tx_write_bytes += count
        rest = self._sinks
        rest.popleft()
        self._sinks = deque()
        self._moved(count)
        if rest and count == sink.length:
            self._sinks = rest
        if out.transfer is None:
            self._held += count
        out.at += count
        if out.at == len(out.view):
            self._queue.popleft()
        return True

    # -- what is done --------------------------------------------------------------------------

    def completed(self) -> None:
        """Work requests have completed."""
        writing, done = self._writing, self._channel.wr_done
        while writing and writing[0][0] <= done:
            _, out, count = writing.popleft()
            if out.transfer is None:
                self._held -= count
            else:
                out.transfer.octets += count
            if out.at == len(out.view) and out.end <= out.at:
                self._finish(out)

    def _advance(self, out: Out, count: int) -> None:
        out.at += count
        if out.transfer is not None:
            out.transfer.octets += count

    def _finish(self, out: Out) -> None:
        """All of it is sent, or nothing more of it will be, once what is being written is."""
        if any(other is out for _, other, _ in self._writing):
            return
        if out.transfer is not None:
            out.transfer.done = True
            self.transfers_done = True
        self._unregister(out)

    def _unregister(self, out: Out) -> None:
        region, out.region = out.region, None
        if region is None:
            return
        if out.transfer is not None:
            self._channel.deregister(region)
            return
        # Views of the same memory may be on their way: to deregister copies those. What can't
        # change, and was the peer's to read, may be registered a little longer.
        self._retired.append(region)
        if not self._outstanding or len(self._retired) > _RETIRED:
            self._deregister_retired()

    def _deregister_retired(self) -> None:
        for region in self._retired:
            self._channel.deregister(region)
        self._retired.clear()

    def read_completed(self, count: int) -> bool:
        """RdmaRdCompl. False where no such octets are outstanding."""
        if not self._outstanding:
            return False
        out = self._outstanding[0]
        if not 0 < count <= out.end - out.at:
            return False
        self._advance(out, count)
        self._counters.tx_read_bytes += count
        if out.transfer is None:
            self._held -= count
        if out.at == out.end:
            self._outstanding.popleft()
            self._finish(out)
        return True

    def send_sm(self) -> bool:
        """SendSm: nothing that is outstanding will be read. False where it answers nothing."""
        if not self._outstanding and not self.cancels_due:
            return False
        cancelled = self.cancels_due > 0
        if cancelled:
            self.cancels_due -= 1
        else:
            self._counters.refusals += 1
            self._copy_next = True
        while self._outstanding:
            out = self._outstanding.pop()
            left = out.end - out.at
            self._position -= left
            if out.transfer is None:
                self._held -= left
            out.end = out.at
            out.refused = out.refused or not cancelled
            if out.transfer is not None and out.transfer.cancelled:
                self._drop(out)
            else:
                self._queued += left
                self._queue.appendleft(out)
        return True

    def _drop(self, out: Out) -> None:
        """Nothing more of it is sent; what is being written of it is."""
        out.view = out.view[: out.at]
        self._finish(out)

    def _cancel(self, transfer: Transfer) -> None:
        for out in self._queue:
            if isinstance(out, Out) and out.transfer is transfer:
                self._queue.remove(out)
                self._queued -= len(out.view) - out.at
                self._drop(out)
                self._changed()
                return
        outstanding = any(out.transfer is transfer for out in self._outstanding)
        if outstanding and not self.cancels_due:
            self.cancels_due += 1
            self._counters.src_cancels += 1
            self._channel.send_later(sdp.SRC_AVAIL_CANCEL)
        self._changed()

    def sink_available(self, sink: sdp.SinkAvail) -> bool:
        """SinkAvail. False where the peer has more of them outstanding than it may."""
        expected = self._position + sum(each.length for each in self._sinks)
        if sink.non_discards != expected & _POS_MASK:
            return True
        if len(self._sinks) >= self._tuning.max_adverts:
            return False
        self._sinks.append(sink)
        return True

    def sinks_cancelled(self) -> bool:
        """SinkAvailCancel: none of the peer's sinks may be written any more."""
        self._sinks.clear()
        return self._channel.send_later(sdp.SINK_CANCEL_ACK)

    def asked_for_mode(self, mode: int) -> None:
        """The peer's sink asks for a mode."""
        if mode == sdp.PIPELINED:
            self._pipeline_asked = True
        elif mode != self.mode:
            self.mode = mode
            self._counters.mode_changes += 1

    def pipeline_asked(self) -> None:
        """REQ_PIPE."""
        self._pipeline_asked = True

    def end(self, error: int) -> None:
        """Nothing more is sent; every transfer is done."""
        outs = {id(out): out for out in self._outstanding}
        outs.update((id(out), out) for out in self._queue if isinstance(out, Out))
        outs.update((id(out), out) for _, out, _ in self._writing)
        self._queue.clear()
        self._outstanding.clear()
        self._writing.clear()
        self._sinks.clear()
        self._oob.clear()
        self._queued = self._held = self.cancels_due = 0
        for out in outs.values():
            if out.transfer is not None and not out.transfer.done:
                out.transfer.error = error
            self._finish(out)
        self._deregister_retired()
