"""Two SDP engines over two queue pairs, joined by streams in memory that cut as a seed says."""

from __future__ import annotations

import random
from collections import deque
from typing import Final

from steertag.rdma.cq import CompletionQueue
from steertag.rdma.qp import QueuePair
from steertag.rdma.rnic import Rnic
from steertag.sdp.counters import SdpCounters
from steertag.sdp.engine import Engine
from steertag.sdp.transfer import Transfer
from steertag.sdp.tuning import Tuning

POLLIN, POLLPRI, POLLOUT = 1, 2, 4
ORD: Final = 16


class End:
    """One side: an engine, its queue pair, and what the application has done.

    Attributes:
        now: its clock.
        wire: octets on their way to the other side.
        taken: octets that the application has received.
        events: POLL bits told since somebody looked.
    """

    def __init__(self, rng: random.Random, tuning: Tuning) -> None:
        self.now = 0.0
        self.tuning = tuning
        self.counters = SdpCounters()
        self.rnic = Rnic(rng.getrandbits)
        pd = self.rnic.alloc_pd()
        self.cq = CompletionQueue(tuning.cq_depth)
        self.qp: QueuePair = self.rnic.create_qp(pd, self.cq, self.cq, tuning.qp_cap())
        self.events = 0
        self.engine = Engine(
            self.qp, self.rnic, pd, self.cq, tuning, self._event, self.counters, lambda: self.now
        )
        self.wire: deque[bytes] = deque()
        self.taken = bytearray()
        self.ended = False

    def _event(self, mask: int) -> None:
        self.events |= mask

    def send_some(self, rng: random.Random | None) -> bool:
        """Move some octets out of the queue pair. False where there are none."""
        parts = self.qp.data_to_send()
        octets = sum(map(len, parts))
        if not octets:
            return False
        count = octets if rng is None else rng.randint(1, octets)
        self.wire.append(b"".join(parts)[:count])
        self.qp.sent(count)
        return True

    def receive(self, octets: bytes) -> None:
        """Feed octets of the stream to the queue pair."""
        view = memoryview(octets)
        while len(view):
            buffers = self.qp.buffers()
            filled = 0
            for buffer in buffers:
                count = min(len(buffer), len(view) - filled)
                buffer[:count] = view[filled : filled + count]
                filled += count
                if filled == len(view):
                    break
            self.qp.received(filled)
            view = view[filled:]
            if self.qp.ended:
                break
        self.engine.poll()

    def read(self, room: int) -> int:
        """Receive into what was taken."""
        pieces: list[bytes] = []

        def write(offset: int, data: bytes | bytearray | memoryview, /) -> int:
            pieces.append(bytes(data))
            return len(data)

        count = self.engine.recv_into(write, room)
        if not count:
            self.engine.want()
        octets = b"".join(pieces)
        assert len(octets) == count <= room
        self.taken += octets
        return count

    @property
    def regions(self) -> int:
        """Regions that are registered."""
        return len(self.rnic.table.regions)


class Ends:
    """Two of them, connected."""

    def __init__(
        self,
        seed: int = 0,
        left: Tuning | None = None,
        right: Tuning | None = None,
        ord: int = ORD,
    ) -> None:
        rng = random.Random(seed)
        self.left = End(rng, left or Tuning())
        self.right = End(rng, right or Tuning())
        for end in self.both:
            end.engine.prepare()
        self.right.engine.take_hello(self.left.engine.hello())
        self.left.engine.take_hello_ack(self.right.engine.hello_ack())
        for end in self.both:
            end.qp.connected(crc=False, ird=ORD, ord=ord, held=False, max_ulpdu=65534)
        for end in self.both:
            end.engine.start()

    @property
    def both(self) -> tuple[End, End]:
        return self.left, self.right

    def other(self, end: End) -> End:
        return self.right if end is self.left else self.left

    def move(self, end: End, rng: random.Random | None = None) -> bool:
        """Let some octets of one side's out, and the oldest ones in on the other side."""
        moved = end.send_some(rng)
        if end.wire:
            self.other(end).receive(end.wire.popleft())
            moved = True
        elif moved:
            end.engine.poll()
        if end.qp.ended and not end.wire and not end.ended:
            end.ended = True
            self.other(end).qp.eof()
            self.other(end).engine.poll()
            moved = True
        end.engine.poll()
        return moved

    def settle(self) -> None:
        """Move octets until both sides are quiet."""
        for _ in range(100_000):
            if not self.move(self.left) | self.move(self.right):
                return
        raise AssertionError("the two sides never become quiet")

    def set_time(self, now: float) -> None:
        for end in self.both:
            end.now = now
            deadline = end.engine.deadline
            if deadline is not None and now >= deadline:
                end.engine.handle_timer(now)

    def pass_on(self, data: bytes) -> bytes:
        """Send from left to right, reading all the while."""
        view = memoryview(data)
        before = len(self.right.taken)
        for _ in range(1_000_000):
            if len(view):
                view = view[self.left.engine.sendmsg([view]) :]
            self.settle()
            while self.right.read(1 << 20):
                pass
            self.settle()
            if len(self.right.taken) - before >= len(data):
                return bytes(self.right.taken[before:])
        raise AssertionError(f"{len(self.right.taken) - before} of {len(data)} octets came")


__all__ = ["ORD", "POLLIN", "POLLOUT", "POLLPRI", "End", "Ends", "Transfer"]
