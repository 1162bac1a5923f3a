"""Messages over the queue pair: sequence numbers, credits, the ring of receive buffers.

A credit is a receive buffer that the peer has posted. Who may spend how many:

* Data (and whatever stands in the stream's order) leaves `DATA_FLOOR` of them, so that messages
  about RDMA get through however much data lies unread: their buffers are posted again at once.
* Other messages leave one.
* The last is for a message that gives the peer credits, so that both sides never starve at once.

A credit update of its own (an empty Data) is sent where the peer runs low and two or more can be
given. One that is answered by another thus has cost the half at least: they die out. What may
stay untold is one credit, so that with `MIN_BUFS` buffers data still flows.
"""

from __future__ import annotations

from collections import deque
from mmap import mmap
from typing import Final

from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    SEND_SIGNALED,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
)
from steertag.rdma.memory import Region
from steertag.rdma.qp import QueuePair
from steertag.rdma.rnic import Rnic
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.sdp.counters import SdpCounters
from steertag.sdp.tuning import Tuning
from steertag.wire import sdp

Buffer = bytes | bytearray | memoryview

DATA_FLOOR: Final = 3
_LOW: Final = DATA_FLOOR + 1
"""Credits of the peer's, as it knows, at which it is told of new ones soon."""
_SQ_RESERVE: Final = 8
"""Work requests that data leaves to other messages and RDMA."""
_MAX_CONTROL: Final = 1024
"""Messages that may wait for a credit: more is owed to nobody who follows the rules."""
_MASK: Final = 0xFFFFFFFF
_HEADER: Final = sdp.BSDH_LEN
_MAX_MESSAGE: Final = 65536
_DATA_INDEX: Final = sdp.mid_index(sdp.DATA)
EMPTY: Final = b""


class Channel:
    """Args: as `Engine`.

    Attributes:
        peer_room: octets of payload that a message to the peer may have.
        mseq, recv_mseq: number of the last message sent, and received. Not cut to 32 bits.
        wr_posted, wr_done: work requests posted, and completed.
        octets_posted, octets_done: payload of Data posted, and known to be sent.
    """

    def __init__(
        self, qp: QueuePair, rnic: Rnic, pd: int, tuning: Tuning, counters: SdpCounters
    ) -> None:
        self.qp = qp
        self.counters = counters
        self._tuning = tuning
        self.peer_room = 0
        self.mseq = self.recv_mseq = 0
        self.wr_posted = self.wr_done = 0
        self.octets_posted = self.octets_done = 0
        self.reading = 0
        """RDMA Reads that are posted: requests behind one may have to wait for it."""
        self.muted = False
        """Nothing may be sent: AbortConn was, or everything."""
        self.control: deque[tuple[int, int, bytes]] = deque()
        self._rnic, self._pd = rnic, pd
        self._acked = 0
        self._limit = 0
        self._count = tuning.recv_count
        self._half = max(2, tuning.recv_count // 2)
        self._posted = 0
        self._told = 0
        self._size = tuning.recv_size
        self._sq_limit = tuning.send_count
        self._signal_every = tuning.send_count // 4
        self._last_signal = 0
        self._since_signal = 0
        # Positions of the stream of Data that signaled requests stand for, in their order.
        self._marks: deque[tuple[int, int]] = deque()
        self._wr = SendWR(opcode=WR_SEND)
        self.region: Region | None = None
        self.ring: list[memoryview] = []
        self._receives: list[RecvWR] = []

    # -- the ring ------------------------------------------------------------------------------

    def post_ring(self) -> None:
        """Make the receive buffers and post them all. Raises OSError ENOMEM."""
        size, count = self._size, self._count
        # Pages that no message comes into cost nothing.
        memory = mmap(-1, size * count)
        self.region = region = self._rnic.register(self._pd, memory, ACCESS_LOCAL_WRITE)
        view = memoryview(memory)
        for index in range(count):
            at = index * size
            self.ring.append(view[at : at + size])
            sge = SGE(region.base + at, size, region.stag)
            receive = RecvWR(index, None, [sge])
            self._receives.append(receive)
            self.qp.post_recv(receive)
        self._posted = self._told = count

    def repost(self, index: int) -> None:
        """The buffer's octets are taken out: the next message may come into it."""
        if self.region is not None:
            self._posted += 1
            self.qp.post_recv(self._receives[index])

    def release(self) -> None:
        """The queue pair has ended: the ring isn't registered any more."""
        if self.region is not None:
            self._rnic.deregister(self.region)
            self.region = None

    @property
    def bufs(self) -> int:
        """Receive buffers that are posted."""
        return self._posted

    # -- credits -------------------------------------------------------------------------------

    def meet(self, bufs: int, size: int) -> None:
        """The peer's Hello says how many buffers it has posted, and of what size."""
        self._limit = bufs
        self.peer_room = min(size, _MAX_MESSAGE) - _HEADER

    def resized(self, size: int) -> bool:
        """ChRcvBufAck: the peer's receive buffers have this size. False where they shrank, which
        nobody asked for: messages that fit may be on their way."""
        room = min(size, _MAX_MESSAGE) - _HEADER
        if room < self.peer_room:
            return False
        self.peer_room = room
        return True

    @property
    def credits(self) -> int:
        return self._limit - self.mseq

    def can_data(self) -> bool:
        """Whether a message in the stream's order may go."""
        return (
            self._limit - self.mseq > DATA_FLOOR
            and self.wr_posted - self.wr_done < self._sq_limit - _SQ_RESERVE
            and not self.control
            and not self.muted
        )

    def can_control(self) -> bool:
        """Whether any other message may go."""
        left = self._limit - self.mseq
        return (
            (left > 1 or (left == 1 and self._told < self.recv_mseq + self._posted))
            and self.wr_posted - self.wr_done < self._sq_limit
            and not self.muted
        )

    def can_rdma(self) -> bool:
        """Whether a Read or Write may be posted."""
        room = self._sq_limit - _SQ_RESERVE // 2
        return self.wr_posted - self.wr_done < room and not self.muted

    def received(self, bufs: int, mseq: int, mseq_ack: int) -> bool:
        """A message came, into one of our buffers. False where its numbers can't be."""
        self.recv_mseq += 1
        self._posted -= 1
        if mseq != self.recv_mseq & _MASK:
            return False
        advance = (mseq_ack - self._acked) & _MASK
        if advance:
            if advance > self.mseq - self._acked:
                return False
            self._acked += advance
        self._limit = self._acked + bufs
        return True

    def update(self) -> None:
        """Tell the peer of new credits, if it needs them and hears of them no other way."""
        given = self.recv_mseq + self._posted - self._told
        if given < 2 or self.control or not self.can_control():
            return
        if given >= self._half or self._told - self.recv_mseq <= _LOW:
            self.counters.credit_updates += 1
            self.send(sdp.DATA)

    # -- sending -------------------------------------------------------------------------------

    def send(self, mid: int, flags: int = 0, body: bytes = EMPTY) -> None:
        """Post a message now. The caller has asked whether it may."""
        header = self._header(mid, flags, len(body))
        self.counters.tx_messages[sdp.mid_index(mid)] += 1
        self._post(header + body, signal=mid != sdp.DATA)

    def send_later(self, mid: int, flags: int = 0, body: bytes = EMPTY) -> bool:
        """Post a message as soon as credits allow, before any data. False where too many wait."""
        if not self.control and self.can_control():
            self.send(mid, flags, body)
        elif len(self.control) >= _MAX_CONTROL:
            return False
        else:
            self.control.append((mid, flags, body))
        return True

    def flush_control(self) -> None:
        while self.control and self.can_control():
            self.send(*self.control.popleft())

    def send_data(self, payload: Buffer, flags: int = 0) -> None:
        """Post Data: the payload is copied."""
        count = len(payload)
        self.mseq = mseq = self.mseq + 1
        ack, posted = self.recv_mseq, self._posted
        self._told = ack + posted
        header = sdp.BSDH.pack(sdp.DATA, flags, posted, _HEADER + count, mseq & _MASK, ack & _MASK)
        self._data(header + payload, count)

    def send_framed(self, message: bytearray, flags: int = 0) -> None:
        """Post Data whose message has room for the header at its start, without a copy."""
        count = len(message) - _HEADER
        message[:_HEADER] = self._header(sdp.DATA, flags, count)
        self._data(message, count)

    def _data(self, message: bytes | bytearray, count: int) -> None:
        counters = self.counters
        counters.tx_messages[_DATA_INDEX] += 1
        counters.tx_bcopy_bytes += count
        self.octets_posted += count
        self._since_signal += count
        self._post(message)

    def _header(self, mid: int, flags: int, count: int) -> bytes:
        self.mseq += 1
        self._told = self.recv_mseq + self._posted
        return sdp.BSDH.pack(
            mid,
            flags,
            self._posted,
            _HEADER + count,
            self.mseq & _MASK,
            self.recv_mseq & _MASK,
        )

    def _post(self, message: bytes | bytearray, *, signal: bool = False) -> None:
        self.wr_posted = number = self.wr_posted + 1
        wr = self._wr
        wr.inline_data = message
        if (
            signal
            or number - self._last_signal >= self._signal_every
            or self._since_signal >= self._tuning.snd_bytes >> 3
        ):
            wr.wr_id, wr.send_flags = number, SEND_SIGNALED
            self._signaled(number)
        else:
            wr.send_flags = 0
        self.qp.post_send(wr)

    def _signaled(self, number: int) -> None:
        self._last_signal = number
        self._since_signal = 0
        self._marks.append((number, self.octets_posted))

    def post_rdma(self, read: bool, sge: SGE, rkey: int, addr: int) -> int:
        """Post an RDMA Read or Write; gives its number, which `completed` will reach.

        Raises OSError EINVAL where the peer takes no Read Requests.
        """
        number = self.wr_posted + 1
        wr = SendWR(
            number,
            None,
            [sge],
            WR_RDMA_READ if read else WR_RDMA_WRITE,
            SEND_SIGNALED,
            rkey=rkey,
            remote_addr=addr,
        )
        self.qp.post_send(wr)
        self.wr_posted = number
        self._signaled(number)
        return number

    def completed(self, number: int) -> None:
        """Everything posted up to the request of this number is done."""
        self.wr_done = number
        marks = self._marks
        while marks and marks[0][0] <= number:
            self.octets_done = marks.popleft()[1]

    @property
    def unsent(self) -> int:
        """Payload of Data that is posted and not known to be with the stream."""
        unsent = self.octets_posted - self.octets_done
        if unsent and not self.reading and not self.qp.wants_to_send:
            # Most requests aren't signaled: nothing else says that they are sent.
            self.octets_done = self.octets_posted
            return 0
        return unsent

    # -- registration --------------------------------------------------------------------------

    def register(self, memory: memoryview, access: int) -> Region | None:
        """None where the RNIC can't have it (too many regions, or memory of a strange shape)."""
        try:
            return self._rnic.register(self._pd, memory, access)
        except (OSError, ValueError, TypeError):
            return None

    def deregister(self, region: Region) -> None:
        self._rnic.deregister(region)
