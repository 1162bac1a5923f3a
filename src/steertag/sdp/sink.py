"""The data sink: what came, in order, and how what is advertised is fetched.

In the stream's order there are first the octets that are here (`ready`), then those that RDMA
Reads under way bring, then the rest of the advertised sources. A source sends no Data behind
octets that it has advertised, so nothing comes behind those.

A waiting receive (`recv_in_place`) is served by what comes first: octets that are here are copied;
an advertised source is read straight into its buffer; and where there is nothing at all it is
advertised itself, if it is large, so that the peer may write into it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from steertag.rdma.constants import ACCESS_LOCAL_WRITE, ACCESS_REMOTE_WRITE
from steertag.rdma.memory import Region
from steertag.rdma.wr import SGE
from steertag.sdp.channel import Channel
from steertag.sdp.counters import SdpCounters
from steertag.sdp.pieces import Advert, Read
from steertag.sdp.ready import TRUESIZE, Ready
from steertag.sdp.transfer import Transfer
from steertag.sdp.tuning import Tuning
from steertag.wire import sdp

if TYPE_CHECKING:
    pass

IN_PLACE_MIN: Final = 262144
"""Octets from which on reading a part of a source straight into the waiting buffer pays: for fewer
more is read ahead, and copied."""
_STAGES: Final = 2
"""Pieces of memory to be read into that are kept for the next Read."""
_READS: Final = 4
"""RDMA Reads under way at most."""
_POS_MASK: Final = 0xFFFFFFFF
_MAX_BACKOFF: Final = 64
_HEADER: Final = sdp.BSDH_LEN


class Sink:
    """Args:
    channel: messages.
    tuning, counters: the engine's.
    changed: called when a transfer was cancelled.

    Attributes:
        discard: nobody reads any more.
        fin: the peer's DisConn is here.
        ready: the octets that are here.
        news: something has become readable, or a transfer done, since the engine looked.
        peer_mode: the peer's source's mode.
    """

    def __init__(
        self,
        channel: Channel,
        tuning: Tuning,
        counters: SdpCounters,
        changed: Callable[[], None],
    ) -> None:
        self._changed = changed
        self.discard = self.fin = False
        self.news = self.urgent_news = False
        self.peer_mode = sdp.COMBINED
        self._channel, self._tuning, self._counters = channel, tuning, counters
        self.ready = Ready(tuning.rcv_bytes, channel.repost, self._unstage)
        self._reads: deque[Read] = deque()
        self._adverts: deque[Advert] = deque()
        self._position = 0
        self._stages: list[Region] = []
        """Memory to be read into, of read_size octets each, for which there is no use just now."""
        self._refused = False
        """A SendSm has gone, and no octets have come since: later SrcAvail are refused by it."""
        self._no_reads = tuning.buffered
        self._cancel_asked = False
        # The waiting receive.
        self._waiter: Transfer | None = None
        self._place = memoryview(b"")
        self._hold = False
        """Nothing is read ahead until somebody asks, or waits, or time has passed: see `want`."""
        self._owed: list[int] = []
        """What was read meanwhile, and the peer isn't told of yet: see `holding`."""
        self._filling = 0
        """Reads that go into `_place`, and the octets they were begun for."""
        self._asked = 0
        self._sink: Region | None = None
        """`_place`'s registration while it is advertised."""
        self._acks_due = 0
        self._backoff = self._skip = 0

    # -- what comes ----------------------------------------------------------------------------

    def data(self, index: int, count: int, flags: int) -> bool:
        """Data with `count` octets lies in receive buffer `index`. False for a broken rule."""
        view = self._channel.ring[index][_HEADER : _HEADER + count]
        if flags:
            if flags & sdp.OOB_PEND:
                self.urgent_coming()
            if flags & sdp.OOB_PRES:
                return self._oob(index, view)
        if not count:
            self._channel.repost(index)
            return True
        if self._adverts or self._reads or self.fin:
            return False
        self._counters.rx_bcopy_bytes += count
        self._position += count
        self._refused = False
        self._void()
        if self.discard:
            self._channel.repost(index)
            return True
        self.news = True
        if self._waiter is not None and not self.ready:
            taken = min(count, len(self._place))
            self._place[:taken] = view[:taken]
            self._fill_done(taken)
            if taken == count:
                self._channel.repost(index)
                return True
            view = view[taken:]
        self.ready.received(index, view)
        if self._waiter is not None:
            self._serve_waiter()
        return True

    def _oob(self, index: int, view: memoryview) -> bool:
        """The last octet is out-of-band data."""
        count = len(view)
        if not count or self._adverts or self._reads or self.fin:
            return False
        self._counters.rx_bcopy_bytes += count
        self._position += count
        self._refused = False
        self._void()
        octet = bytes(view[-1:])
        front = bytes(view[:-1])
        self._channel.repost(index)
        self.news = self.urgent_news = True
        if self.discard:
            self.ready.oob_told = True
            return True
        if front:
            self.ready.copied(front)
        self.ready.marked(octet)
        self._serve_waiter()
        return True

    def urgent_coming(self) -> None:
        """A message says that out-of-band data is on its way."""
        if not self.ready.oob_told:
            self.ready.oob_told = self.urgent_news = True

    def advertised(self, source: sdp.SrcAvail, index: int, inline: memoryview) -> bool:
        """SrcAvail in receive buffer `index`. False for a broken rule."""
        inlined = bytes(inline)
        self._channel.repost(index)
        if self._refused:
            return True
        limit = 1 if self.peer_mode == sdp.COMBINED else self._tuning.max_adverts
        if self.fin or len(self._adverts) >= limit or self.peer_mode == sdp.BUFFERED:
            return False
        self._position += source.length
        self._void()
        advert = Advert(source.length, source.rkey, source.addr)
        self._adverts.append(advert)
        if self.discard:
            return bool(self._reads) or self._drop_adverts()
        if self._no_reads:
            return self._refuse()
        if inlined and len(self._adverts) == 1 and not self._reads:
            advert.asked = advert.got = len(inlined)
            self._counters.rx_bcopy_bytes += len(inlined)
            self.ready.copied(inlined)
            self.news = True
            self._serve_waiter()
            if advert.got == advert.length:
                self._adverts.popleft()
            if not self._tell_read(len(inlined)):
                return False
        return self.read_more()

    # -- fetching ------------------------------------------------------------------------------

    def read_more(self) -> bool:
        """Begin the RDMA Reads that may be begun. False where the peer lets nothing be answered."""
        if self._cancel_asked or self._hold or self.discard or not self._adverts:
            return True
        channel = self._channel
        for advert in self._adverts:
            while advert.asked < advert.length:
                if len(self._reads) >= _READS or not channel.can_rdma():
                    return True
                left = advert.length - advert.asked
                size = min(left, len(self._place) - self._asked)
                if self._may_fill(size, left):
                    begun = self._read_in_place(advert, size)
                else:
                    if self._leave_to_waiter():
                        return True
                    room = self._tuning.rcv_bytes - self.ready.held
                    count = min(left, self._tuning.read_size)
                    if count > room and self.ready.held:
                        return True
                    begun = self._read_ahead(advert, count)
                if not begun:
                    return self._refuse() if not self._reads else True
        return True

    def _leave_to_waiter(self) -> bool:
        """Whether the next octets stay the peer's until there is a buffer that they may go straight
        into: what is under way ends this call, and the next one has one."""
        if self._waiter is None or self._tuning.read_ahead:
            return False
        return self._asked > 0 or bool(self._reads)

    def _may_fill(self, size: int, left: int) -> bool:
        """Whether the next octets of the stream may go straight into the waiting buffer."""
        waiter = self._waiter
        return (
            waiter is not None
            and not waiter.cancelled
            and not self.ready
            and len(self._reads) == self._filling
            and (size == left or size >= IN_PLACE_MIN)
            and size > 0
        )

    def _read_in_place(self, advert: Advert, count: int) -> bool:
        place = self._place[self._asked : self._asked + count]
        region = self._channel.register(place, ACCESS_LOCAL_WRITE)
        if region is None:
            # Memory that can't be registered: octets come by way of our own.
            return self._read_ahead(advert, min(count, self._tuning.read_size))
        if not self._read(advert, count, region, staged=False):
            self._channel.deregister(region)
            return False
        self._filling += 1
        self._asked += count
        return True

    def _read_ahead(self, advert: Advert, count: int) -> bool:
        region = self._stage(count)
        if region is None:
            return False
        if not self._read(advert, count, region, staged=True):
            self._unstage(region)
            return False
        self.ready.held += count + TRUESIZE
        return True

    def _stage(self, count: int) -> Region | None:
        """Registered memory of our own: kept for a while, as to make it costs more than to copy
        out of it does."""
        size = self._tuning.read_size
        if self._stages and count > size >> 2 and len(self._stages[-1].view) >= count:
            return self._stages.pop()
        memory = bytearray(size if count > size >> 2 else count)
        return self._channel.register(memoryview(memory), ACCESS_LOCAL_WRITE)

    def _unstage(self, region: Region) -> None:
        """What was read into it is taken out."""
        if not region.valid:
            return
        if len(self._stages) < _STAGES and len(region.view) == self._tuning.read_size:
            self._stages.append(region)
        else:
            self._channel.deregister(region)

    def _read(self, advert: Advert, count: int, region: Region, *, staged: bool) -> bool:
        sge = SGE(region.base, count, region.stag)
        try:
            number = self._channel.post_rdma(True, sge, advert.rkey, advert.addr + advert.asked)
        except OSError:
            # The peer takes no Read Requests.
            self._no_reads = True
            return False
        advert.asked += count
        self._channel.reading += 1
        self._reads.append(Read(number, advert, count, region, staged))
        return True

    def completed(self) -> bool:
        """Work requests have completed. False where the peer lets nothing be answered."""
        reads, done = self._reads, self._channel.wr_done
        while reads and reads[0].number <= done:
            read = reads.popleft()
            self._channel.reading -= 1
            if not read.staged:
                self._channel.deregister(read.region)
            self._read_done(read)
            if self.holding:
                # The next Read is not far: one message's way for both.
                self._owed.append(read.count)
            elif not self._tell_read(read.count):
                return False
        if self._cancel_asked and not reads:
            self._answer_cancel()
        if self.discard and self._adverts and not reads:
            return self._drop_adverts()
        return True

    def _drop_adverts(self) -> bool:
        """Nobody reads any more: call what is advertised read."""
        if not self._pay():
            return False
        while self._adverts:
            advert = self._adverts.popleft()
            if not self._tell_read(advert.length - advert.got):
                return False
        return True

    def _read_done(self, read: Read) -> None:
        advert, count = read.advert, read.count
        advert.got += count
        if advert.got == advert.length and self._adverts and self._adverts[0] is advert:
            self._adverts.popleft()
        self._counters.rx_read_bytes += count
        self.news = True
        if not read.staged:
            self._counters.rx_inplace_bytes += count
            if self._waiter is None:
                return
            self._waiter.octets += count
            self._filling -= 1
            self.read_more()
            if not self._filling:
                self._waiter_done()
            return
        if self.discard:
            self.ready.held -= count + TRUESIZE
            self._unstage(read.region)
            return
        self.ready.fetched(read.region, count)
        self._serve_waiter()

    def _tell_read(self, count: int) -> bool:
        if self._owed and not self._pay():
            return False
        flags = sdp.REQ_PIPE if self.peer_mode == sdp.COMBINED else 0
        return self._channel.send_later(sdp.RDMA_RD_COMPL, flags, sdp.emit_u32(count))

    def _pay(self) -> bool:
        """Tell the peer of the Reads that it hasn't been told of."""
        owed, self._owed = self._owed, []
        return all(self._tell_read(count) for count in owed)

    def _refuse(self) -> bool:
        """SendSm: the source is to send what it has advertised as Data."""
        if not self._pay():
            return False
        self._forget_adverts()
        self._refused = True
        self._counters.refused += 1
        if self.peer_mode != sdp.BUFFERED:
            mode = sdp.ModeChange(False, sdp.BUFFERED).emit()
            if not self._channel.send_later(sdp.MODE_CHANGE, 0, mode):
                return False
        return self._channel.send_later(sdp.SEND_SM)

    def _forget_adverts(self) -> None:
        for advert in self._adverts:
            self._position -= advert.length - advert.got
        self._adverts.clear()

    def source_cancelled(self) -> None:
        """SrcAvailCancel."""
        if self._refused:
            # Our SendSm, which crossed it, is its answer.
            self._refused = False
            return
        self._cancel_asked = True
        if not self._reads:
            self._answer_cancel()

    def _answer_cancel(self) -> None:
        self._cancel_asked = False
        self._pay()
        self._forget_adverts()
        self._channel.send_later(sdp.SEND_SM)
        self.offer_sink()

    # -- the waiting receive -------------------------------------------------------------------

    def recv_in_place(self, part: memoryview) -> Transfer:
        transfer = Transfer(self._cancel)
        if self._waiter is not None or not len(part) or self.discard:
            transfer.done = True
            return transfer
        self._waiter, self._place = transfer, part
        self._hold = False
        if self._owed:
            self._pay()
        self._serve_waiter()
        if not transfer.done and self.fin and not (self._reads or self._adverts):
            self._waiter_done()
        if not transfer.done:
            self.read_more()
            self.offer_sink()
        return transfer

    def _serve_waiter(self) -> None:
        """Copy what is here to whoever waits, and no Read or Write of the peer's is to serve."""
        if self._waiter is None or self._filling or self._sink is not None or not self.ready:
            return
        place = self._place

        def write(offset: int, data: bytes | bytearray | memoryview, /) -> int:
            place[offset : offset + len(data)] = data
            return len(data)

        if count := self.ready.read(write, len(place), peek=False):
            self._fill_done(count)

    def _fill_done(self, count: int) -> None:
        assert self._waiter is not None
        self._waiter.octets += count
        self._waiter_done()

    def _waiter_done(self) -> None:
        waiter, self._waiter = self._waiter, None
        # Who waits with a large buffer will soon wait again: the next octets go straight to it.
        self._hold = len(self._place) >= IN_PLACE_MIN
        self._place = memoryview(b"")
        self._filling = self._asked = 0
        self._release_sink()
        if waiter is not None:
            waiter.done = True
        self.news = True

    def offer_sink(self) -> None:
        """Advertise the waiting buffer, where there is nothing for it."""
        threshold = self._tuning.sink_threshold
        if (
            self._waiter is None
            or not threshold
            or len(self._place) < threshold
            or self._sink is not None
            or self.ready
            or self._reads
            or self._adverts
            or self._refused
            or self._acks_due
            or self.fin
            or self._cancel_asked
            or self._waiter.cancelled
        ):
            return
        if self._skip:
            self._skip -= 1
            return
        place = self._place[:0x40000000]
        region = self._channel.register(place, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE)
        if region is None:
            return
        self._sink = region
        self._counters.sink_adverts += 1
        body = sdp.SINK_AVAIL_BODY.pack(
            len(place), region.stag, region.base, self._position & _POS_MASK
        )
        self._channel.send_later(sdp.SINK_AVAIL, 0, body)

    def _void(self) -> None:
        """Octets come another way: what we advertised takes none, and isn't offered so soon."""
        if self._sink is not None:
            self._counters.sink_void += 1
            self._release_sink()
            self._backoff = min(2 * self._backoff or 1, _MAX_BACKOFF)
            self._skip = self._backoff
            if self._waiter is not None and self._waiter.cancelled:
                self._waiter_done()

    def _release_sink(self) -> None:
        if self._sink is not None:
            region, self._sink = self._sink, None
            self._channel.deregister(region)

    def written(self, count: int) -> bool:
        """RdmaWrCompl. False where nothing so large was advertised."""
        if self._sink is None or not 0 < count <= self._sink.length:
            return False
        self._position += count
        self._refused = False
        self._backoff = 0
        self._counters.rx_write_bytes += count
        self._counters.rx_inplace_bytes += count
        self._fill_done(count)
        return True

    def sink_cancel_acked(self) -> bool:
        """SinkCancelAck. False where none is due."""
        if not self._acks_due:
            return False
        self._acks_due -= 1
        if self._waiter is not None and self._waiter.cancelled and not self._filling:
            self._waiter_done()
        else:
            self.offer_sink()
        return True

    def _cancel(self, transfer: Transfer) -> None:
        if transfer is not self._waiter:
            return
        if self._filling:
            pass  # the Read can't be taken back: the transfer is done when that is
        elif self._sink is None:
            self._waiter_done()
        else:
            self._counters.sink_cancels += 1
            self._acks_due += 1
            self._channel.send_later(sdp.SINK_AVAIL_CANCEL)
        self._changed()

    @property
    def cancelling(self) -> bool:
        """The peer is to answer for memory of the application's that it may still touch."""
        return self._waiter is not None and self._waiter.cancelled

    @property
    def holding(self) -> bool:
        """Advertised octets are left where they are, for the buffer of the next call; so is the
        word that those before them are read."""
        return self._hold and bool(self._adverts) and self._waiter is None

    def want(self) -> None:
        """Somebody looks for octets, without a buffer that they could go straight into; or none
        has come for a while."""
        if self._hold:
            self._hold = False
            self._pay()
            self.read_more()

    # -- the end -------------------------------------------------------------------------------

    @property
    def drained(self) -> bool:
        """Everything that the peer has sent was read (or isn't wanted)."""
        return not (self.ready.unread or self._reads or self._adverts) or self.discard

    def stop(self) -> None:
        """Nobody reads any more: what is here is dropped, what is advertised called read."""
        self.discard = True
        self.ready.drop()
        if self._waiter is not None:
            self._waiter.cancel()
        if not self._reads:
            self._drop_adverts()

    def finished(self) -> None:
        """DisConn."""
        self.fin = True
        self.news = True
        if self._waiter is not None and not (self._filling or self.ready or self._reads):
            self._waiter_done()

    def end(self, error: int) -> None:
        """The queue pair has ended: what is here can still be read."""
        for read in self._reads:
            self._channel.deregister(read.region)
        for stage in (*self.ready.regions(), *self._stages):
            self._channel.deregister(stage)
        self._stages.clear()
        self._reads.clear()
        self._adverts.clear()
        self._owed.clear()
        waiter = self._waiter
        self._waiter_done()
        if waiter is not None:
            waiter.error = error
