"""Whatever a peer sends, cut however: a defined state, one Terminate at most, no memory but what
was granted, and every request completed in the end."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from steertag.rdma.connection import Connection, Offer
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_INVALIDATE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    MW_TYPE_2,
    SEND_SIGNALED,
    WR_ATOMIC_FETCH_AND_ADD,
)
from steertag.rdma.memory import Region, Window, WindowBind
from steertag.rdma.mpa_state import MpaState
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SendWR
from steertag.wire import ddp, mpa, rdmap
from tests.sim.ends import End, drain, feed, fpdu, lone, terminates

GRANTED = 40_000
SECRET = 40_000
POSTED_RECEIVES = 4
POSTED_SENDS = 5
IDENTIFIER = 0
"""Of the victim's own Atomic Request: they count from 0."""


class Victim:
    """A connected queue pair with memory that the peer may use, and memory that it may not."""

    def __init__(self, *, crc: bool = True, held: bool = False) -> None:
        self.end = end = lone(crc=crc, held=held, ird=2, size=SECRET)
        end.rnic.deregister(end.region)
        end.memory[:] = random.Random(5).randbytes(SECRET)
        end.region = end.rnic.register(end.pd, end.memory, ACCESS_LOCAL_WRITE)
        self.granted = bytearray(GRANTED)
        # Registered over the middle of a larger buffer: an overrun would show at its borders.
        self.around = bytearray(GRANTED + 2000)
        self.region = end.rnic.register(
            end.pd,
            memoryview(self.around)[1000:-1000],
            ACCESS_LOCAL_WRITE
            | ACCESS_REMOTE_WRITE
            | ACCESS_REMOTE_READ
            | ACCESS_REMOTE_ATOMIC
            | ACCESS_MW_BIND,
        )
        self.lent = end.rnic.register(
            end.pd,
            memoryview(self.around)[2000:3000],
            ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE | ACCESS_REMOTE_INVALIDATE,
        )
        self.window = end.rnic.alloc_window(end.pd, MW_TYPE_2)
        bind = WindowBind(
            self.window, self.window.stag ^ 1, self.region, self.region.base + 8, 800, 6
        )
        end.rnic.table.bind(bind, end.pd, end.qp.qp_num)
        # The receives and the Reads go to the front of the other region.
        for wr_id in range(POSTED_RECEIVES):
            end.recv((0, 2000 if wr_id else 12_000), wr_id=100 + wr_id)
        if not held:
            end.read(self.region, 0, 0, 9000, wr_id=0)
            end.read(self.region, 0, 0, 0, wr_id=1)
            add = SendWR(
                2,
                sg=[end.sge(11_000, 8)],
                opcode=WR_ATOMIC_FETCH_AND_ADD,
                send_flags=SEND_SIGNALED,
            )
            add.set_wr_atomic(self.region.stag, 0, 1, 0)
            end.qp.post_send(add)
            end.send((20_000, 100), wr_id=3)
            drain(end)
        else:
            for wr_id in range(4):
                end.send((20_000, 100), wr_id=wr_id)
        end.send((20_000, 20_000), wr_id=4)
        self.secret = bytes(end.memory[12_000:])

    def suffers(self, octets: bytes, rng: random.Random | None) -> None:
        """Take the octets, send at some of the cuts, then lose the stream; check what is left."""
        end = self.end
        sent = bytearray()
        rest = memoryview(octets)
        while rest:
            size = len(rest) if rng is None else rng.randint(1, len(rest))
            feed(end, bytes(rest[:size]), rng)
            rest = rest[size:]
            if rng is None or rng.random() < 0.5:
                sent += drain(end)
        sent += drain(end)
        assert end.qp.state in (QpState.RTS, QpState.ERROR)
        assert len(terminates(bytes(sent))) == end.qp.counters.terminates_sent <= 1
        assert bytes(end.memory[12_000:]) == self.secret
        assert not any(self.around[:1000])
        assert not any(self.around[-1000:])
        end.engine.eof()
        assert end.qp.state is QpState.ERROR
        assert [wc.wr_id for wc in end.sent()] == list(range(POSTED_SENDS))
        assert [wc.wr_id for wc in end.got()] == [100 + n for n in range(POSTED_RECEIVES)]


cuts = st.one_of(st.none(), st.integers(0, 1000).map(random.Random))


@given(st.binary(max_size=300), cuts, st.booleans(), st.booleans())
def test_arbitrary_octets(octets: bytes, rng: random.Random | None, crc: bool, held: bool) -> None:
    Victim(crc=crc, held=held).suffers(octets, rng)


@given(st.integers(0, 65535), st.binary(max_size=64), st.integers(0, 70_000), cuts)
@settings(max_examples=50)
def test_an_arbitrary_length_and_header_with_much_behind_it(
    length: int, header: bytes, more: int, rng: random.Random | None
) -> None:
    Victim(crc=False).suffers(length.to_bytes(2, "big") + header + bytes(more), rng)


# -- FPDUs that are well made and mean harm -------------------------------------------------------

stags = st.sampled_from(["granted", "secret", "lent", "window", "zero", "one", "unknown"])
offsets = st.one_of(
    st.integers(-3, 3),
    st.integers(0, GRANTED),
    st.integers(GRANTED - 3, GRANTED + 3),
    st.sampled_from([-(1 << 30), (1 << 63), (1 << 64) - 1]),
)
lengths = st.sampled_from(
    [0, 1, 4, 8, 12, 28, 29, 52, 100, 8191, 8192, 9000, 12_000, 12_001, 30_000, 65_000]
)
sequence = st.sampled_from([0, 1, 1, 1, 2, 3, 0xFFFFFFFF])
octet = st.integers(0, 255)
usual_control = st.integers(0, 12).map(rdmap.control)


read_requests = st.tuples(
    st.just("read"), stags, offsets, lengths, st.sampled_from([0, (1 << 64) - 5])
)
atomic_requests = st.tuples(
    st.just("atomic"), stags, offsets, st.integers(0, 3), st.sampled_from([0, 1, (1 << 64) - 1])
)

Op = rdmap.Opcode
QUEUES = {
    Op.SEND: 0,
    Op.SEND_INVALIDATE: 0,
    Op.SEND_SE_INVALIDATE: 0,
    Op.IMMEDIATE: 0,
    Op.IMMEDIATE_SE: 0,
    Op.READ_REQUEST: 1,
    Op.ATOMIC_REQUEST: 1,
    Op.ATOMIC_RESPONSE: 3,
}


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, dict[str, object]]:
    """A whole message that fits its opcode, as far as its form goes."""
    opcode = draw(st.sampled_from(list(QUEUES)))
    length = draw(lengths)
    request: object = None
    if opcode in (Op.IMMEDIATE, Op.IMMEDIATE_SE):
        length = rdmap.IMMEDIATE_LEN
    elif opcode is Op.READ_REQUEST:
        request = draw(read_requests)
    elif opcode is Op.ATOMIC_REQUEST:
        request = draw(atomic_requests)
    elif opcode is Op.ATOMIC_RESPONSE:
        request = ("response", draw(st.sampled_from([IDENTIFIER, IDENTIFIER, 1])))
    return "untagged", {
        "qn": QUEUES[opcode],
        "msn": draw(st.sampled_from([1, 1, 1, 2, 2, 3])),
        "mo": 0,
        "length": length,
        "invalidate": draw(stags),
        "request": request,
        "control": rdmap.control(opcode),
        "last": True,
        "version": 0,
    }


@st.composite
def segments(draw: st.DrawFn) -> tuple[str, dict[str, object]]:
    control = draw(st.one_of(usual_control, usual_control, octet))
    if draw(st.booleans()):
        fields = {"stag": draw(stags), "to": draw(offsets), "length": draw(lengths)}
        kind = "tagged"
    else:
        fields = {
            "qn": draw(st.sampled_from([0, 0, 1, 1, 2, 3, 4, 0xFFFFFFFF])),
            "msn": draw(sequence),
            "mo": draw(st.sampled_from([0, 0, 0, 1, 100, 9000, 0xFFFFFFFF])),
            "length": draw(lengths),
            "invalidate": draw(stags),
            "request": draw(st.one_of(st.none(), read_requests, atomic_requests)),
        }
        kind = "untagged"
    return kind, {
        **fields,
        "control": control,
        "last": draw(st.booleans()),
        "version": draw(st.sampled_from([0, 0, 0, 0, 0, 1, 3])),
    }


def built_request(
    request: tuple[object, ...], place: Callable[[object, object], tuple[int, int]]
) -> bytes:
    match request:
        case ("read", name, offset, int(size), int(sink)):
            return rdmap.ReadRequest(9, sink, size, *place(name, offset)).emit()
        case ("atomic", name, offset, int(operation), int(data)):
            to = place(name, offset)
            atomic = rdmap.AtomicRequest(
                rdmap.AtomicOpcode.SWAP, 7, *to, data, data, data, data
            ).emit()
            return atomic[:3] + bytes([operation]) + atomic[4:]
        case ("response", int(identifier)):
            return rdmap.AtomicResponse(identifier, 0x5A5A).emit()
    raise AssertionError(request)


def built(victim: Victim, kind: str, fields: dict[str, object], crc: bool) -> bytes:
    regions: dict[str, Region | Window] = {
        "granted": victim.region,
        "secret": victim.end.region,
        "lent": victim.lent,
        "window": victim.window,
    }

    def place(name: object, offset: object) -> tuple[int, int]:
        assert isinstance(name, str)
        assert isinstance(offset, int)
        region = regions.get(name)
        if region is not None:
            return region.stag, (region.base + offset) % (1 << 64)
        number = {"zero": 0, "one": 1}.get(name, victim.region.stag ^ 0x5555)
        return number, offset % (1 << 64)

    control, last, length = fields["control"], bool(fields["last"]), fields["length"]
    assert isinstance(control, int)
    assert isinstance(length, int)
    payload = b"\xa5" * length
    header: ddp.Tagged | ddp.Untagged
    if kind == "tagged":
        header = ddp.Tagged(last, control, *place(fields["stag"], fields["to"]))
    else:
        qn, msn, mo = fields["qn"], fields["msn"], fields["mo"]
        assert isinstance(qn, int)
        assert isinstance(msn, int)
        assert isinstance(mo, int)
        header = ddp.Untagged(last, control, qn, msn, mo, place(fields["invalidate"], 0)[0])
        if isinstance(request := fields["request"], tuple):
            payload = built_request(request, place)
    octets = bytearray(fpdu(header, payload, crc=crc))
    if fields["version"] and not crc:
        octets[2] ^= int(str(fields["version"]))
    return bytes(octets)


@given(st.lists(st.one_of(segments(), messages()), max_size=8), cuts, st.booleans(), st.booleans())
@settings(max_examples=300)
def test_segments_with_arbitrary_fields(
    program: list[tuple[str, dict[str, object]]],
    rng: random.Random | None,
    crc: bool,
    held: bool,
) -> None:
    victim = Victim(crc=crc, held=held)
    octets = b"".join(built(victim, kind, fields, crc) for kind, fields in program)
    victim.suffers(octets, rng)


def valid_stream(victim: Victim) -> bytes:
    """A well-behaved peer's octets: every kind of message, small and large."""
    region, mine, lent = victim.region, victim.end.region, victim.lent
    send, send_se = rdmap.control(rdmap.Opcode.SEND), rdmap.control(rdmap.Opcode.SEND_SE)
    write = rdmap.control(rdmap.Opcode.WRITE)
    response = rdmap.control(rdmap.Opcode.READ_RESPONSE)
    request = rdmap.ReadRequest(9, 9, 5000, region.stag, region.base).emit()
    swap = rdmap.AtomicRequest(
        rdmap.AtomicOpcode.SWAP, 7, region.stag, region.base + 32_000, 5, rdmap.ALL_BITS
    ).emit()
    value = rdmap.AtomicResponse(IDENTIFIER, 5).emit()
    invalidate, immediate = rdmap.control(Op.SEND_INVALIDATE), rdmap.control(Op.IMMEDIATE)
    return b"".join(
        [
            fpdu(ddp.Untagged(False, send, 0, 1), bytes(9000)),
            fpdu(ddp.Tagged(True, write, region.stag, region.base), bytes(100)),
            fpdu(ddp.Tagged(False, response, mine.stag, mine.base), bytes(8500)),
            fpdu(ddp.Untagged(True, send, 0, 1, 9000), bytes(50)),
            fpdu(ddp.Tagged(True, response, mine.stag, mine.base + 8500), bytes(500)),
            fpdu(ddp.Tagged(True, response, 0, 0)),
            fpdu(ddp.Untagged(True, rdmap.control(1), 1, 1), request),
            fpdu(ddp.Untagged(True, rdmap.control(Op.ATOMIC_RESPONSE), 3, 1), value),
            fpdu(ddp.Untagged(True, rdmap.control(Op.ATOMIC_REQUEST), 1, 2), swap),
            fpdu(ddp.Untagged(True, send_se, 0, 2), bytes(7)),
            fpdu(ddp.Untagged(True, invalidate, 0, 3, 0, lent.stag), bytes(7)),
            fpdu(ddp.Untagged(True, immediate, 0, 4), bytes(8)),
            fpdu(ddp.Tagged(True, write, region.stag, region.base + 77), bytes(30_000)),
            *[fpdu(ddp.Tagged(True, write, region.stag, region.base), bytes(64))] * 6,
            fpdu(ddp.Untagged(True, rdmap.control(7), 2, 1), rdmap.Terminate(0, 1, 2).emit()),
        ]
    )


def test_the_valid_stream_is_valid() -> None:
    victim = Victim()
    feed(victim.end, valid_stream(victim))
    assert victim.end.qp.counters.protocol_errors == 0
    assert victim.end.qp.counters.terminates_received == 1
    assert victim.lent.stag not in victim.end.rnic.table.regions
    victim.suffers(b"", None)


@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), octet), max_size=6),
    st.one_of(st.none(), st.integers(0, 1 << 20)),
    cuts,
    st.booleans(),
)
@settings(max_examples=200)
def test_a_valid_stream_with_octets_changed_or_cut_off(
    changes: list[tuple[int, int]],
    end_at: int | None,
    rng: random.Random | None,
    crc: bool,
) -> None:
    victim = Victim(crc=crc)
    octets = bytearray(valid_stream(victim))
    for at, value in changes:
        # Headers are what a change hurts most: half of them go to the start of the stream's tail.
        octets[-(at % 1000) - 1 if at & 1 else at % len(octets)] = value
    if end_at is not None:
        del octets[end_at % len(octets) :]
    victim.suffers(bytes(octets), rng)


# -- set-up ---------------------------------------------------------------------------------------


@st.composite
def start_frames(draw: st.DrawFn) -> bytes:
    """Arbitrary octets, or a start-up frame with some of its fields changed."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=600))
    octets = bytearray(
        mpa.StartFrame(
            reply=draw(st.booleans()),
            markers=draw(st.sampled_from([False, False, True])),
            crc=draw(st.booleans()),
            reject=draw(st.booleans()),
            enhanced=draw(st.booleans()),
            revision=draw(st.sampled_from([0, 1, 2, 2, 3, 255])),
            private_data=draw(st.binary(max_size=mpa.MAX_PRIVATE_DATA)),
            reserved=draw(st.integers(0, 15)),
        ).emit()
    )
    for at, value in draw(st.lists(st.tuples(st.integers(0, 600), octet), max_size=2)):
        octets[at % len(octets)] = value
    return bytes(octets) + draw(st.binary(max_size=40))


def settled(end: End, connection: Connection) -> None:
    """The set-up came to an end, or waits for the rest of a frame and then times out."""
    if connection.state in (
        MpaState.WAIT_REPLY,
        MpaState.WAIT_REQUEST,
        MpaState.REQUESTED,
        MpaState.WAIT_RTR,
    ):
        assert connection.deadline is not None
        connection.handle_timer(connection.deadline)
    if connection.state is MpaState.ESTABLISHED:
        drain(end)
        end.engine.eof()
        assert end.qp.state is QpState.ERROR
    else:
        assert connection.state in (MpaState.REJECTED, MpaState.FAILED)
        assert connection.code
        assert connection.reason
        drain(end)
        assert connection.closing
        end.qp.stream_lost("closed")
    end.engine.eof()
    end.engine.stream_lost("again")
    assert [wc.wr_id for wc in end.got()] == [7]


@given(start_frames(), cuts, st.booleans())
def test_an_arbitrary_reply(octets: bytes, rng: random.Random | None, peer_to_peer: bool) -> None:
    end = End()
    end.recv((0, 100), wr_id=7)
    offer = Offer(peer_to_peer=peer_to_peer)
    end.connection = Connection.initiate(end.qp, offer, now=0.0)
    drain(end)
    feed(end, octets, rng)
    settled(end, end.connection)


@given(start_frames(), cuts, st.booleans())
def test_an_arbitrary_request(octets: bytes, rng: random.Random | None, accept: bool) -> None:
    end = End()
    end.recv((0, 100), wr_id=7)
    end.connection = Connection.respond(now=0.0)
    taken = feed(end, octets, rng)
    if end.connection.state is MpaState.REQUESTED:
        if accept:
            end.connection.accept(end.qp, Offer())
            drain(end)
        else:
            end.connection.reject(b"no")
    feed(end, octets[taken:], rng)
    settled(end, end.connection)
