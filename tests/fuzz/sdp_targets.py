"""Octets that a fuzzer chose, as what a peer says over SDP, and what the program does meanwhile.

The first octet chooses how the engine is tuned, and with that the modes it comes into; then come
records as in `targets`: what happens (one octet), how many octets say what (one octet), and those.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from steertag.rdma.constants import ACCESS_LOCAL_WRITE, ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE
from steertag.sdp.transfer import Transfer
from steertag.sdp.tuning import Tuning
from steertag.wire import sdp
from tests.property.test_sdp_hostile import Hostile

MOST_RECORDS: Final = 64
_MIDS: Final = tuple(sorted(sdp.NAMES))
_THRESHOLDS: Final = ((0, 0), (1, 1), (1, 0), (4000, 1000))
_SIZES: Final = (1, 100, 5000, 70_000, 300_000)
_MEMORY: Final = 1 << 16
_PLACE: Final = struct.Struct("!HH")
_TIMES: Final = (0.02, 31.0, 100.0)


def tuned(choice: int) -> Tuning:
    """Eight bits: whether memory is advertised, how many credits there are, and the modes."""
    source, sink = _THRESHOLDS[choice & 3]
    return Tuning(
        zcopy_threshold=source,
        sink_threshold=sink,
        recv_count=5 if choice & 4 else 32,
        max_adverts=1 if choice & 8 else 8,
        inline=50 if choice & 16 else 0,
        buffered=bool(choice & 32),
        read_ahead=bool(choice & 64),
        keepalive=50.0 if choice & 128 else 0.0,
        recv_size=4096,
        read_size=5000,
        snd_bytes=100_000,
        rcv_bytes=100_000,
    )


class Play:
    """A peer with memory that may be read and written, and a program at the other end."""

    def __init__(self, choice: int) -> None:
        self.hostile = Hostile(0, tuned(choice))
        self.victim = self.hostile.victim
        me = self.hostile.me
        access = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE
        self.region = me.rnic.register(me.qp.pd, bytearray(_MEMORY), access)
        self.transfers: list[Transfer] = []
        self.actions = (
            self.raw,
            self.message,
            self.source,
            self.sink,
            self.program_sends,
            self.program_receives,
            self.program_gives_up,
            self.time_passes,
        )

    # -- the peer ------------------------------------------------------------------------------

    def raw(self, octets: bytes) -> None:
        self.hostile.raw(octets)

    def message(self, octets: bytes) -> None:
        """Of some kind, with a header that is right but for what the octets say."""
        mid, flags, bufs = octets[:3].ljust(3, b"\0")
        self.say(_MIDS[mid % len(_MIDS)], octets[3:], flags & 7, bufs)

    def source(self, octets: bytes) -> None:
        """Advertise memory that is there, and some first octets of it."""
        size, at = self._place(octets)
        self.say(sdp.SRC_AVAIL, sdp.SrcAvail(size, self.region.stag, at).emit() + octets[4:])

    def sink(self, octets: bytes) -> None:
        """Advertise memory that is there, at the place where the stream is."""
        size, at = self._place(octets)
        counters = self.victim.counters
        gone = counters.tx_bcopy_bytes + counters.tx_read_bytes + counters.tx_write_bytes
        advert = sdp.SinkAvail(size, self.region.stag, at, gone & 0xFFFFFFFF)
        self.say(sdp.SINK_AVAIL, advert.emit())

    def say(self, mid: int, body: bytes, flags: int = 0, bufs: int = 32) -> None:
        sent = sum(self.victim.counters.tx_messages)
        self.hostile.send(mid, body, flags, bufs, ack=sent)

    def _place(self, octets: bytes) -> tuple[int, int]:
        size, offset = _PLACE.unpack(octets[:4].ljust(4, b"\1"))
        offset %= _MEMORY // 2
        return 1 + size % (_MEMORY // 2), self.region.base + offset

    # -- the program ---------------------------------------------------------------------------

    def program_sends(self, octets: bytes) -> None:
        engine = self.victim.engine
        size = _SIZES[len(octets) % len(_SIZES)]
        if len(octets) % 3 == 0:
            self.transfers.append(engine.send_in_place(memoryview(bytearray(size))))
        else:
            engine.sendmsg([memoryview(bytes(size))], oob=len(octets) % 3 == 1)

    def program_receives(self, octets: bytes) -> None:
        size = _SIZES[len(octets) % len(_SIZES)]
        if self.transfers and not self.transfers[-1].done:
            self.victim.engine.want()
        elif len(octets) % 2:
            self.victim.read(size)
        else:
            self.transfers.append(self.victim.engine.recv_in_place(memoryview(bytearray(size))))

    def program_gives_up(self, octets: bytes) -> None:
        engine = self.victim.engine
        what = len(octets) % 5
        if what < 2 and self.transfers:
            self.transfers[-1].cancel()
        elif what == 2:
            engine.shutdown_send()
        elif what == 3:
            engine.shutdown_recv()
        elif what == 4:
            engine.recv_oob()

    def time_passes(self, octets: bytes) -> None:
        victim = self.victim
        victim.now += _TIMES[len(octets) % len(_TIMES)]
        due = victim.engine.deadline
        if due is not None and due <= victim.now:
            victim.engine.handle_timer(victim.now)

    # -- the whole -----------------------------------------------------------------------------

    def step(self, kind: int, octets: bytes) -> None:
        self.actions[kind % len(self.actions)](octets)
        self.hostile.carry()
        self.transfers = [each for each in self.transfers if not each.done][-20:]
        self.hostile.check(errno.ETIMEDOUT)  # of a cancel, or a sign of life

    def finish(self) -> None:
        """The program closes: in the end nothing is left, and who lent memory has it back."""
        engine = self.victim.engine
        engine.close()
        for _ in range(4):
            self.hostile.carry()
            self.victim.now += 1000.0
            engine.handle_timer(self.victim.now)
        assert engine.ended
        assert not self.victim.regions
        assert all(each.done for each in self.transfers)


def one_input(data: bytes) -> None:
    """Play `data`; raises AssertionError where something grows, or whatever the engine raises."""
    if not data:
        return
    play = Play(data[0])
    at, records = 1, 0
    while at + 2 <= len(data) and records < MOST_RECORDS:
        kind, size = data[at], data[at + 1]
        play.step(kind, data[at + 2 : at + 2 + size])
        at += 2 + size
        records += 1
    play.finish()


def seeds() -> list[bytes]:
    """Inputs to begin with: in each tuning the two ends talk, and then one message of each kind."""
    talk = b"".join(
        bytes((kind, len(octets))) + octets
        for kind, octets in (
            (4, b"..."),
            (1, bytes((_MIDS.index(sdp.DATA), 0, 32)) + b"hello"),
            (5, b"."),
            (2, b"\x10\0\0\0"),
            (5, b".."),
            (1, bytes((_MIDS.index(sdp.MODE_CHANGE), 0, 32)) + b"\x20\0\0\0"),
            (3, b"\x10\0\0\0"),
            (4, b"."),
            (7, b""),
        )
    )
    inputs = []
    for choice in range(0, 256, 7):
        body = b"" if choice & 1 else sdp.emit_u32(1)
        octets = bytes((choice % len(_MIDS), 0, 32)) + body
        inputs.append(bytes((choice,)) + talk + bytes((1, len(octets))) + octets)
    return inputs
