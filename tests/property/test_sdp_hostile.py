"""Whatever a peer sends over SDP: the stream goes on or is reset, and nothing grows."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.rdma.constants import WR_SEND
from steertag.rdma.wr import SendWR
from steertag.sdp.const import SdpState
from steertag.sdp.ready import COPY_MAX
from steertag.sdp.tuning import Tuning
from steertag.wire import sdp
from tests.sim.sdp_ends import Ends

MIDS = sorted(sdp.NAMES)
FAILURES = (errno.EPROTO, errno.ECONNRESET)


class Hostile:
    """A peer that has a queue pair, and no manners. Its sequence numbers are right or as told."""

    def __init__(self, seed: int = 0, tuning: Tuning | None = None) -> None:
        tuning = tuning or Tuning(rcv_bytes=100_000, snd_bytes=100_000)
        self.ends = Ends(seed, tuning, tuning)
        self.victim, self.me = self.ends.both
        self.mseq = 0

    def send(
        self,
        mid: int,
        body: bytes = b"",
        flags: int = 0,
        bufs: int = 32,
        size: int | None = None,
        mseq: int | None = None,
        ack: int = 0,
    ) -> None:
        self.mseq += 1
        header = sdp.BSDH.pack(
            mid,
            flags,
            bufs,
            16 + len(body) if size is None else size,
            (self.mseq if mseq is None else mseq) & 0xFFFFFFFF,
            ack & 0xFFFFFFFF,
        )
        self.raw(header + body)

    def raw(self, message: bytes) -> None:
        if not self.me.qp.closing:
            self.me.qp.post_send(SendWR(opcode=WR_SEND, inline_data=message, send_flags=0))
        self.carry()

    def carry(self) -> None:
        """Octets move, and the peer's engine isn't asked."""
        me, victim = self.me, self.victim
        moved = True
        while moved:
            moved = me.send_some(None)
            while me.wire:
                victim.receive(me.wire.popleft())
            moved |= victim.send_some(None)
            victim.engine.poll()
            while victim.wire:
                view = victim.wire.popleft()
                at = 0
                while at < len(view) and not me.qp.ended:
                    buffer = me.qp.buffers()[0]
                    count = min(len(buffer), len(view) - at)
                    buffer[:count] = view[at : at + count]
                    at += count
                    me.qp.received(count)
            # What it received goes back to the ring: it never lacks buffers.
            for wc in me.cq.poll(1000):
                if wc.opcode == 128 and not wc.status and not me.qp.closing:
                    me.engine._channel.repost(wc.wr_id)
            if victim.qp.ended and not me.qp.ended:
                me.qp.eof()

    def check(self, *others: int) -> None:
        """The victim is alive, or has ended with an error that says why: `others` may be, too."""
        engine = self.victim.engine
        assert engine.error in (0, *FAILURES, *others)
        assert engine.unread <= 200_000 + 32 * 32768
        # Those in which octets lie that were fetched, and some to fetch others.
        assert self.victim.regions <= 10 + engine.tuning.rcv_bytes // COPY_MAX
        assert not self.victim.cq.overrun


def reset_by(hostile: Hostile) -> None:
    assert hostile.victim.engine.error == errno.EPROTO
    assert hostile.victim.counters.protocol_errors == 1
    assert hostile.victim.counters.aborts_sent == 1
    assert hostile.victim.engine.state in (SdpState.ABORTING, SdpState.CLOSED)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mid": sdp.DATA, "mseq": 5},
        {"mid": sdp.DATA, "size": 17},
        {"mid": sdp.DATA, "size": 15},
        {"mid": sdp.DATA, "ack": 99},
        {"mid": sdp.DATA, "flags": 8},
        {"mid": sdp.DATA, "flags": sdp.OOB_PRES},
        {"mid": sdp.HELLO, "body": bytes(52)},
        {"mid": 0x55},
        {"mid": sdp.SEND_SM},
        {"mid": sdp.RDMA_RD_COMPL, "body": sdp.emit_u32(1)},
        {"mid": sdp.RDMA_WR_COMPL, "body": sdp.emit_u32(1)},
        {"mid": sdp.RDMA_WR_COMPL, "body": b""},
        {"mid": sdp.SINK_CANCEL_ACK},
        {"mid": sdp.MODE_CHANGE, "body": b"\xff" * 4},
        {"mid": sdp.SRC_AVAIL, "body": bytes(16)},
        {"mid": sdp.SRC_AVAIL, "body": b""},
        {"mid": sdp.SINK_AVAIL, "body": bytes(20)},
        {"mid": sdp.CH_RCV_BUF_ACK, "body": bytes(4)},
        {"mid": sdp.SUSP_COMM, "body": b""},
    ],
    ids=lambda arguments: repr(arguments),
)
def test_a_broken_rule_resets_the_stream_and_is_counted(arguments: dict[str, object]) -> None:
    hostile = Hostile()
    hostile.send(**arguments)  # type: ignore[arg-type]
    reset_by(hostile)


def test_more_sources_than_the_mode_allows_reset_the_stream() -> None:
    hostile = Hostile()
    for _ in range(2):
        hostile.send(sdp.SRC_AVAIL, sdp.SrcAvail(1000, 77, 0).emit())
    assert hostile.victim.engine.error in FAILURES


def test_a_source_that_cannot_be_read_ends_the_connection_and_nothing_stays_registered() -> None:
    hostile = Hostile()
    hostile.send(sdp.SRC_AVAIL, sdp.SrcAvail(1 << 30, 77, 0).emit())
    hostile.carry()
    assert hostile.victim.engine.error == errno.ECONNRESET
    assert hostile.victim.regions == 0


def test_data_behind_advertised_octets_resets_the_stream() -> None:
    hostile = Hostile()
    region = hostile.me.rnic.register(hostile.me.qp.pd, bytes(3 << 20), 4)
    hostile.send(sdp.SRC_AVAIL, sdp.SrcAvail(3 << 20, region.stag, region.base).emit())
    hostile.send(sdp.DATA, b"behind")
    reset_by(hostile)


def test_a_completion_beyond_what_was_advertised_resets_the_stream() -> None:
    hostile = Hostile()
    hostile.victim.engine.send_in_place(memoryview(bytearray(1000)))
    hostile.carry()
    hostile.send(sdp.RDMA_RD_COMPL, sdp.emit_u32(1001), ack=1)
    reset_by(hostile)


def test_answers_that_nobody_gives_credits_for_do_not_pile_up() -> None:
    hostile = Hostile()
    for _ in range(5000):
        hostile.send(sdp.CH_RCV_BUF, bytes(4), bufs=0)
        if hostile.victim.engine.error:
            break
    assert hostile.victim.engine.error == errno.EPROTO


def test_sinks_without_end_reset_the_stream() -> None:
    hostile = Hostile()
    for index in range(20):
        hostile.send(sdp.SINK_AVAIL, sdp.SinkAvail(10, 1, 0, 10 * index).emit())
    reset_by(hostile)


def test_octets_without_a_reader_are_bounded_by_credits() -> None:
    hostile = Hostile()
    for _ in range(3000):
        hostile.send(sdp.DATA, b"x" * 64)
        if hostile.victim.qp.closing:
            break
    hostile.check()
    # More Sends than receives were posted: the queue pair ends that.
    assert hostile.victim.engine.ended


@given(st.binary(max_size=120))
def test_no_octets_raise_anything_but_wire_errors(octets: bytes) -> None:
    for parse in (sdp.Bsdh.parse, sdp.Hello.parse, sdp.HelloAck.parse):
        try:
            parse(octets)
        except WireError:
            continue
    for mid in MIDS:
        try:
            sdp.parse_body(mid, octets)
        except WireError:
            continue


@given(
    st.builds(
        sdp.Bsdh,
        st.sampled_from(MIDS),
        st.integers(0, 7),
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFFFFFF),
        st.integers(0, 0xFFFFFFFF),
        st.integers(0, 0xFFFFFFFF),
    )
)
def test_the_base_header_survives_the_wire(header: sdp.Bsdh) -> None:
    assert sdp.Bsdh.parse(header.emit()) == header


@given(
    st.integers(0, 0xFFFF),
    st.integers(0, 255),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFF),
    st.sampled_from((4, 16)).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
)
def test_hellos_survive_the_wire(
    bufs: int, adverts: int, desired: int, local: int, port: int, address: bytes
) -> None:
    hello = sdp.Hello(bufs, adverts, desired, local, port, address, address)
    assert sdp.Hello.parse(hello.emit()) == hello
    ack = sdp.HelloAck(bufs, adverts, local)
    assert sdp.HelloAck.parse(ack.emit()) == ack


message = st.tuples(
    st.sampled_from(MIDS),
    st.one_of(
        st.just(b""),
        st.integers(0, 3000).map(sdp.emit_u32),
        st.binary(max_size=40),
        st.tuples(st.integers(1, 5000), st.integers(0, 3), st.integers(0, 9)).map(
            lambda each: sdp.SrcAvail(*each).emit()
        ),
        st.tuples(st.integers(1, 5000), st.integers(0, 3), st.integers(0, 9)).map(
            lambda each: sdp.SinkAvail(*each, 0).emit()
        ),
        st.tuples(st.booleans(), st.integers(0, 2)).map(lambda each: sdp.ModeChange(*each).emit()),
    ),
    st.sampled_from((0, 0, 0, 1, 2, 4, 6)),
    st.integers(0, 40),
    st.integers(0, 3),
)


@given(messages=st.lists(message, max_size=30), seed=st.integers(0, 1 << 16))
@settings(max_examples=150, deadline=None)
def test_no_messages_raise_or_grow(
    messages: list[tuple[int, bytes, int, int, int]], seed: int
) -> None:
    rng = random.Random(seed)
    hostile = Hostile(seed)
    engine = hostile.victim.engine
    for mid, body, flags, bufs, ack in messages:
        if rng.random() < 0.3:
            engine.sendmsg([memoryview(rng.randbytes(rng.choice((10, 5000, 80_000))))])
        if rng.random() < 0.2:
            engine.recv_in_place(memoryview(bytearray(rng.choice((10, 300_000)))))
        if rng.random() < 0.1:
            engine.send_in_place(memoryview(bytearray(70_000))).cancel()
        if rng.random() < 0.2:
            hostile.victim.read(rng.choice((1, 100_000)))
        hostile.send(mid, body, flags, bufs, ack=ack)
        hostile.check()
    engine.close()
    hostile.carry()
    hostile.victim.now = 1000.0
    engine.handle_timer(1000.0)
    hostile.victim.now = 2000.0
    engine.handle_timer(2000.0)
    assert engine.ended
    assert hostile.victim.regions == 0
