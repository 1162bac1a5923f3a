"""Whatever arrives, in whatever state: nothing raises, hangs, or grows; every end comes."""

from __future__ import annotations

import socket as std
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inet.namespace import OURS, THEIRS
from tests.inet.ours import Subject
from tests.inet.packets import ACK, Tcp, checksum, emit, icmp_error, ip_header
from tests.inet.script import PEER_ISN, PEER_PORT, PORT
from tests.inet.states import STATES

MASK = 0xFFFFFFFF
MOST_SOCKS = 3  # a listener, the connection, and what a SYN makes of TIME-WAIT
MOST_TIMERS = 40
MOST_QUANTA = 64

near = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([100, 201, 251, 301, 999, 1000, 3000, 3001, 3002, 65535, 2**30, 2**31]),
    st.integers(0, MASK),
)
option = st.one_of(
    st.binary(max_size=12),
    st.builds(
        lambda kind, size, rest: bytes((kind, size)) + rest,
        st.integers(0, 255),
        st.integers(0, 255),
        st.binary(max_size=38),
    ),
    st.builds(
        lambda value, echo: struct.pack("!BBBBII", 1, 1, 8, 10, value, echo),
        st.integers(0, MASK),
        st.integers(0, MASK),
    ),
    st.lists(st.tuples(near, near), max_size=4).map(
        lambda blocks: (
            bytes((1, 1, 5, 2 + 8 * len(blocks)))
            + b"".join(struct.pack("!II", (a + 1) & MASK, (b + 1) & MASK) for a, b in blocks)
        )
    ),
)
options = (
    st.lists(option, max_size=4)
    .map(b"".join)
    .map(lambda octets: (octets + bytes(-len(octets) % 4))[:40])
)


@st.composite
def segments(draw: st.DrawFn) -> Tcp:
    """A segment with right checksums that a hostile peer might send; numbers relative."""
    return Tcp(
        flags=draw(
            st.one_of(
                st.sampled_from([ACK, 0x02, 0x04, 0x14, 0x11, 0x12, 0x18, 0x38]),
                st.integers(0, 255),
            )
        ),
        seq=draw(near) & MASK,
        ack=draw(near) & MASK,
        window=draw(st.sampled_from([0, 1, 100, 65535])),
        urgent=draw(st.sampled_from([0, 1, 5, 65535])),
        payload=bytes(draw(st.sampled_from([0, 0, 1, 100, 1000, 1400]))),
        raw_options=draw(options),
        ecn=draw(st.integers(0, 3)),
    )


def send(s: Subject, segment: Tcp) -> bytes:
    absolute = segment.absolute(s.flow.isn, s.flow.their_isn or 0)
    octets = emit(
        replace(absolute, source=s.ours, dest=s.theirs, sport=s.flow.port, dport=s.flow.their_port)
    )
    s.raw(octets)
    return octets


def is_bounded(s: Subject) -> None:
    assert s.stack_socks <= MOST_SOCKS
    assert s.timers() <= MOST_TIMERS
    assert s.charged() <= MOST_QUANTA


@pytest.mark.parametrize("state", STATES)
@given(hostile=st.lists(segments(), min_size=1, max_size=8), pause=st.sampled_from([0, 0.1, 3]))
@settings(max_examples=25)
def test_hostile_segments_do_no_harm(state: str, hostile: list[Tcp], pause: float) -> None:
    s = Subject(state)
    for segment in hostile:
        send(s, segment)
        # Each segment is answered with a window's worth of data and an ACK at most.
        assert len(s.answers()) <= 80
        is_bounded(s)
        s.side.sleep(pause)
    s.finish()


@pytest.mark.parametrize("v", [4, 6])
@given(frames=st.lists(st.binary(max_size=200), min_size=1, max_size=10))
def test_frames_of_random_octets_do_no_harm(v: int, frames: list[bytes]) -> None:
    s = Subject("ESTABLISHED", v)
    for frame in frames:
        s.raw(frame)
    is_bounded(s)
    assert len(s.answers()) <= 10 * len(frames)
    s.finish()


@pytest.mark.parametrize("v", [4, 6])
@given(
    protocol=st.integers(0, 255),
    bodies=st.lists(st.binary(max_size=120), max_size=6),
    tos=st.integers(0, 255),
    ttl=st.integers(0, 255),
)
def test_ip_packets_with_any_payload_do_no_harm(
    v: int, protocol: int, bodies: list[bytes], tos: int, ttl: int
) -> None:
    s = Subject("ESTABLISHED", v)
    family = std.AF_INET if v == 4 else std.AF_INET6
    source, dest = (std.inet_pton(family, text) for text in (s.ours, s.theirs))
    for body in bodies:
        s.raw(ip_header(source, dest, protocol, len(body), tos, ttl) + body)
    is_bounded(s)
    s.finish()


@pytest.mark.parametrize("state", ["SYN_SENT", "ESTABLISHED", "TIME_WAIT"])
@pytest.mark.parametrize("v", [4, 6])
@given(
    kind=st.integers(0, 255),
    code=st.integers(0, 20),
    info=st.integers(0, MASK),
    segment=segments(),
    cut=st.integers(0, 60),
)
@settings(max_examples=25)
def test_icmp_errors_about_anything_do_no_harm(
    v: int, state: str, kind: int, code: int, info: int, segment: Tcp, cut: int
) -> None:
    s = Subject(state, v)
    quoted = emit(
        replace(
            segment.absolute(s.flow.their_isn or 0, s.flow.isn),
            source=s.theirs,
            dest=s.ours,
            sport=s.flow.their_port,
            dport=s.flow.port,
        )
    )
    s.raw(icmp_error(quoted[:cut], s.ours, s.theirs, kind, code, info))
    s.answers()
    is_bounded(s)
    s.finish()


fragment = st.tuples(st.integers(0, 3), st.integers(0, 8191), st.booleans(), st.integers(0, 400))


@given(fragments=st.lists(fragment, max_size=20))
def test_ipv4_fragments_of_any_kind_do_no_harm(fragments: list[tuple[int, int, bool, int]]) -> None:
    s = Subject("LISTEN")
    source, dest = (std.inet_aton(text) for text in (OURS[0], THEIRS[0]))
    for ident, offset, more, size in fragments:
        body = bytes(size)
        field = (0x2000 if more else 0) | offset
        header = bytearray(ip_header(source, dest, 6, size))
        header[4:8] = struct.pack("!HH", ident, field)
        header[10:12] = bytes(2)
        header[10:12] = struct.pack("!H", checksum(bytes(header)) ^ 0xFFFF)
        s.raw(bytes(header) + body)
    is_bounded(s)
    s.finish()


@given(fragments=st.lists(fragment, max_size=20), inner=st.integers(0, 255))
def test_ipv6_fragments_of_any_kind_do_no_harm(
    fragments: list[tuple[int, int, bool, int]], inner: int
) -> None:
    s = Subject("LISTEN", 6)
    source, dest = (std.inet_pton(std.AF_INET6, text) for text in (OURS[1], THEIRS[1]))
    for ident, offset, more, size in fragments:
        extension = struct.pack("!BBHI", inner, 0, offset << 3 | more, ident)
        s.raw(ip_header(source, dest, 44, 8 + size) + extension + bytes(size))
    is_bounded(s)
    s.finish()


@given(
    chain=st.lists(
        st.tuples(
            st.sampled_from([0, 43, 44, 50, 51, 59, 60, 135, 6, 58]),
            st.integers(0, 255),
            st.binary(min_size=6, max_size=30),
        ),
        max_size=8,
    )
)
def test_ipv6_extension_headers_of_any_kind_do_no_harm(
    chain: list[tuple[int, int, bytes]],
) -> None:
    s = Subject("LISTEN", 6)
    source, dest = (std.inet_pton(std.AF_INET6, text) for text in (OURS[1], THEIRS[1]))
    body = b""
    following = 59
    for protocol, size, octets in reversed(chain):
        body = bytes((following, size)) + octets + body
        following = protocol
    s.raw(ip_header(source, dest, following, len(body)) + body)
    s.answers()
    is_bounded(s)
    s.finish()


# -- floods: what they cost is counted, not timed -------------------------------------------------


def test_a_flood_of_syns_from_everywhere_costs_a_bounded_backlog() -> None:
    s = Subject("LISTEN")
    before = s.stack_socks
    for number in range(5000):
        source = f"192.0.2.{number % 250 + 3}"
        packet = Tcp(
            flags=0x02,
            seq=number,
            mss=1460,
            options=(2,),
            source=source,
            dest=s.theirs,
            sport=1024 + number,
            dport=PORT,
        )
        s.raw(emit(packet))
        assert len(s.answers()) <= 1
    assert s.stack_socks == before
    assert s.timers() <= 5000 // 10
    s.finish()


def test_a_listener_that_is_flooded_still_takes_connections() -> None:
    s = Subject("LISTEN")
    for number in range(1000):
        packet = Tcp(
            flags=0x02,
            seq=number,
            mss=1460,
            options=(2,),
            source="192.0.2.77",
            dest=s.theirs,
            sport=1024 + number,
            dport=PORT,
        )
        s.raw(emit(packet))
    s.answers()
    s.handshake("<mss 1000>")
    s.accept(s._socks[0])
    s.finish()


def test_a_flood_of_acks_for_nobody_makes_nothing() -> None:
    s = Subject("LISTEN")
    before = (s.stack_socks, s.timers(), s.charged())
    for number in range(2000):
        packet = Tcp(
            flags=ACK,
            seq=number,
            ack=number,
            source=s.ours,
            dest=s.theirs,
            sport=1024 + number,
            dport=PORT,
        )
        s.raw(emit(packet))
        assert len(s.answers()) <= 1
    assert (s.stack_socks, s.timers(), s.charged()) == before
    s.finish()


@pytest.mark.parametrize("flags", [ACK, 0x04, 0x02, 0x12, 0x18])
def test_a_blind_attack_gets_few_answers_and_does_not_end_the_connection(flags: int) -> None:
    s = Subject("ESTABLISHED")
    conn = s._socks[-1]
    answers = 0
    guesses = range(0x1000_0000, 0xF000_0000, 0x0100_0000)
    for guess in guesses:
        send(s, Tcp(flags=flags, seq=guess, ack=guess ^ 0x5555_5555, payload=bytes(10)))
        answers += len(s.answers())
    # Data is answered each time, and once, as the kernel does: no loop of ACKs comes of it.
    assert answers <= (len(guesses) if flags in (ACK, 0x18) else 5)
    s.inject("P. 1:201(200) ack 1")
    assert conn.recv(1000) == s.octets(200) + s.octets(100, 201)
    s.finish()


def test_two_ends_do_not_answer_each_others_challenges_for_ever() -> None:
    s = Subject("ESTABLISHED")
    answers = 0
    for _ in range(100):  # each answer of ours provokes the next: an ACK storm
        send(s, Tcp(flags=ACK, seq=2**30, ack=1))
        answers += len(s.answers())
    assert answers <= 2
    s.finish()


def test_data_out_of_order_octet_by_octet_is_bounded_by_the_receive_buffer() -> None:
    s = Subject("ESTABLISHED")
    for at in range(1001, 60001, 2):
        send(s, Tcp(flags=ACK, seq=at, ack=1, payload=b"x"))
        s.answers()
    assert s.charged() <= 2048
    s.finish()


def test_overlapping_fragments_that_never_end_are_forgotten() -> None:
    s = Subject("LISTEN")
    before = s.timers()
    source, dest = (std.inet_aton(text) for text in (OURS[0], THEIRS[0]))
    for ident in range(3000):
        header = bytearray(ip_header(source, dest, 17, 1000))
        header[4:8] = struct.pack("!HH", ident, 0x2000)
        header[10:12] = bytes(2)
        header[10:12] = struct.pack("!H", checksum(bytes(header)) ^ 0xFFFF)
        s.raw(bytes(header) + bytes(1000))
    s.side.sleep(61)
    s.answers()
    assert s.timers() <= before
    s.finish()


def test_the_test_sends_where_the_connection_is() -> None:
    s = Subject("ESTABLISHED")
    assert (s.flow.port, s.flow.isn) == (PEER_PORT, PEER_ISN)
    s.finish()
