"""Fragments: cutting, putting together, limits, overlaps, time running out."""

from __future__ import annotations

import errno
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steertag.inet.ip.addr import parse
from steertag.wire import icmp, icmpv6
from steertag.wire.ipv4 import DF, MF, parse_untrusted
from steertag.wire.ipv6 import Fragment, parse_fragment_untrusted
from tests.unit.inet_ip import UDP, Host, Wire, v4, v6, wired

PAYLOAD = bytes(at & 0xFF for at in range(256)) * 12


def pieces4(
    payload: bytes, size: int, ident: int = 7, source: str = "10.0.0.9", tos: int = 0
) -> list[bytes]:
    found = []
    for at in range(0, len(payload), size):
        more = MF if at + size < len(payload) else 0
        piece = payload[at : at + size]
        found.append(v4(source, "10.0.0.1", piece, frag=more | at >> 3, ident=ident, tos=tos))
    return found


def pieces6(payload: bytes, size: int, ident: int = 7, source: str = "fd00::9") -> list[bytes]:
    found = []
    for at in range(0, len(payload), size):
        header = Fragment(UDP, at, at + size < len(payload), ident).emit()
        found.append(v6(source, "fd00::1", header + payload[at : at + size], 44))
    return found


PIECES = {4: pieces4, 6: pieces6}
PREFIX = {4: "Ip", 6: "Ip6"}


def fragmented(version: int) -> tuple[Host, Wire]:
    return wired("10.0.0.1/24", "fd00::1/64")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled", "twice"])
def test_fragments_become_the_packet_in_any_order(version: int, order: str) -> None:
    host, wire = fragmented(version)
    pieces = PIECES[version](PAYLOAD, 1000)
    if order == "backwards":
        pieces.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(pieces)
    elif order == "twice":
        pieces = [pieces[0], *pieces]
    wire.feed(*pieces)
    (packet,) = host.packets
    assert bytes(packet.data) == PAYLOAD
    assert packet.reassembled
    assert (packet.protocol, packet.ttl) == (UDP, 64)
    assert host.mib[f"{PREFIX[version]}ReasmOKs"] == 1
    assert host.net.defrag.memory == 0
    assert host.stack.timers.deadline is None


@given(
    st.integers(4, 6).filter(lambda version: version != 5),
    st.integers(1, 3000),
    st.integers(1, 60).map(lambda units: units * 8),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_any_cut_in_any_order_is_put_together(
    version: int, length: int, size: int, rng: random.Random
) -> None:
    host, wire = fragmented(version)
    payload = rng.randbytes(length)
    pieces = PIECES[version](payload, size)
    rng.shuffle(pieces)
    wire.feed(*pieces)
    assert [bytes(packet.data) for packet in host.packets] == [payload]
    assert len(host.net.defrag) == 0


def test_the_header_of_the_whole_is_right() -> None:
    host, wire = fragmented(4)
    wire.feed(*pieces4(PAYLOAD, 1000, tos=0x28))
    header = parse_untrusted(host.packets[0].network)
    assert (header.total_len, header.frag, header.tos) == (20 + len(PAYLOAD), 0, 0x28)


@pytest.mark.parametrize("version", [4, 6])
def test_packets_of_different_identification_are_kept_apart(version: int) -> None:
    host, wire = fragmented(version)
    first = PIECES[version](PAYLOAD, 2000, ident=1)
    second = PIECES[version](PAYLOAD[::-1], 2000, ident=2)
    wire.feed(first[0], second[0], second[1], first[1])
    assert [bytes(each.data) for each in host.packets] == [PAYLOAD[::-1], PAYLOAD]


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_that_overlap_are_the_end_of_their_packet(version: int) -> None:
    host, wire = fragmented(version)
    by_1000, by_600 = PIECES[version](PAYLOAD, 1000), PIECES[version](PAYLOAD, 600)
    wire.feed(by_1000[0], by_600[1])
    assert len(host.net.defrag) == 0
    assert host.mib[f"{PREFIX[version]}ReasmFails"] == 1
    if version == 4:
        assert host.mib["IpExtReasmOverlaps"] == 1
    wire.feed(*by_1000[1:])
    assert host.packets == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("change", ["shorter", "beyond the last", "empty"])
def test_fragments_that_contradict_each_other_end_their_packet(version: int, change: str) -> None:
    host, wire = fragmented(version)
    whole, short = PIECES[version](PAYLOAD, 1000), PIECES[version](PAYLOAD[:1500], 1000)
    if change == "shorter":
        wire.feed(whole[2], short[1])
    elif change == "beyond the last":
        wire.feed(short[1], whole[2])
    elif version == 4:
        wire.feed(whole[0], v4("10.0.0.9", "10.0.0.1", b"", frag=MF | 200, ident=7))
    else:
        header = Fragment(UDP, 1600, True, 7).emit()
        wire.feed(whole[0], v6("fd00::9", "fd00::1", header, 44))
    assert len(host.net.defrag) == 0
    assert host.packets == []


@pytest.mark.parametrize(("version", "seconds"), [(4, 30), (6, 60)])
def test_what_is_not_complete_in_time_is_dropped_and_the_sender_told(
    version: int, seconds: int
) -> None:
    host, wire = fragmented(version)
    pieces = PIECES[version](PAYLOAD, 1000)
    wire.feed(pieces[0])
    host.pass_time(seconds - 1)
    assert len(host.net.defrag) == 1
    assert wire.sent == []
    host.pass_time(2)
    assert len(host.net.defrag) == 0
    prefix = PREFIX[version]
    assert (host.mib[f"{prefix}ReasmTimeout"], host.mib[f"{prefix}ReasmFails"]) == (1, 1)
    (answer,) = wire.take()
    message = answer[20:22] if version == 4 else answer[40:42]
    assert message == (bytes((11, 1)) if version == 4 else bytes((3, 1)))
    assert pieces[0][:100] in answer


@pytest.mark.parametrize("version", [4, 6])
def test_without_the_first_fragment_nobody_is_told(version: int) -> None:
    host, wire = fragmented(version)
    wire.feed(PIECES[version](PAYLOAD, 1000)[1])
    host.pass_time(100)
    assert len(host.net.defrag) == 0
    assert wire.sent == []


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_take_bounded_memory(version: int) -> None:
    host, wire = fragmented(version)
    row = "net.ipv4.ipfrag_high_thresh" if version == 4 else "net.ipv6.ip6frag_high_thresh"
    host.stack.sysctl[row] = 100_000
    for number in range(500):
        source = f"10.0.1.{number % 250 + 1}" if version == 4 else f"fd00::1:{number}"
        wire.feed(PIECES[version](PAYLOAD, 1000, ident=number, source=source)[0])
        assert host.net.defrag.memory < 100_000 + 2000
    assert host.mib[f"{PREFIX[version]}ReasmFails"] > 400
    host.pass_time(100)
    assert host.net.defrag.memory == 0
    wire.feed(*PIECES[version](PAYLOAD, 1000))
    assert len(host.packets) == 1


@pytest.mark.parametrize("version", [4, 6])
def test_one_source_may_not_have_it_all(version: int) -> None:
    host, wire = fragmented(version)
    wire.feed(*[PIECES[version](PAYLOAD, 1000, ident=number)[0] for number in range(400)])
    assert len(host.net.defrag) == 256
    other = "10.0.0.8" if version == 4 else "fd00::8"
    wire.feed(*PIECES[version](PAYLOAD, 1000, source=other))
    assert len(host.packets) == 1


def test_a_packet_of_which_too_much_else_came_meanwhile_is_given_up() -> None:
    host, wire = fragmented(4)
    old, new = pieces4(PAYLOAD, 2000), pieces4(PAYLOAD[::-1], 2000)
    wire.feed(old[0])
    wire.feed(*[pieces4(PAYLOAD, 2000, ident=number)[0] for number in range(100, 165)])
    wire.feed(new[1], new[0])
    assert [bytes(each.data) for each in host.packets] == [PAYLOAD[::-1]]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ((2, 2), 2),
        ((2, 3), 3),
        ((1, 3), 3),
        ((2, 1), 2),
        ((0, 0), 0),
        ((0, 3), None),
        ((0, 2), None),
    ],
)
def test_congestion_marks_of_fragments_are_put_together(
    marks: tuple[int, int], expected: int | None
) -> None:
    host, wire = fragmented(4)
    pieces = [pieces4(PAYLOAD, 2000, tos=mark)[at] for at, mark in enumerate(marks)]
    wire.feed(*pieces)
    assert [packet.tos for packet in host.packets] == ([] if expected is None else [expected])
    assert len(host.net.defrag) == 0


def test_more_than_65535_octets_are_no_packet() -> None:
    host, wire = fragmented(4)
    wire.feed(v4("10.0.0.9", "10.0.0.1", bytes(100), frag=8191, ident=7))
    assert len(host.net.defrag) == 0
    assert host.mib["IpReasmFails"] == 1
    _, wire = fragmented(6)
    header = Fragment(UDP, 65528, False, 7).emit()
    wire.feed(v6("fd00::9", "fd00::1", header + bytes(100), 44))
    message = icmpv6.parse_untrusted(wire.take()[0][40:])
    assert message == icmpv6.Icmpv6(icmpv6.PARAMPROB, icmpv6.HDR_FIELD, 42)


def test_an_ipv6_fragment_of_odd_length_is_a_parameter_problem() -> None:
    _, wire = fragmented(6)
    header = Fragment(UDP, 0, True, 7).emit()
    wire.feed(v6("fd00::9", "fd00::1", header + bytes(9), 44))
    message = icmpv6.parse_untrusted(wire.take()[0][40:])
    assert message == icmpv6.Icmpv6(icmpv6.PARAMPROB, icmpv6.HDR_FIELD, 4)


def test_an_atomic_fragment_is_whole() -> None:
    host, wire = fragmented(6)
    for _ in range(2):
        wire.feed(v6("fd00::9", "fd00::1", Fragment(UDP, 0, False, 7).emit() + b"all", 44))
    assert [bytes(each.data) for each in host.packets] == [b"all", b"all"]


# -- cutting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [576, 1280, 1500, 9000])
def test_a_packet_that_is_too_long_leaves_in_fragments(mtu: int) -> None:
    host = Host()
    wire = Wire(mtu=mtu)
    host.net.add_device(wire, ("10.0.0.1/24",))
    host.send("10.0.0.2", PAYLOAD * 4, df=False)
    headers = [parse_untrusted(packet) for packet in wire.sent]
    assert all(header.total_len <= mtu for header in headers)
    assert b"".join(packet[20:] for packet in wire.sent) == PAYLOAD * 4
    assert len({header.ident for header in headers}) == 1
    assert [bool(header.frag & MF) for header in headers] == [True] * (len(headers) - 1) + [False]
    assert not any(header.frag & DF for header in headers)
    for (one, packet), (following, _) in pairwise(zip(headers, wire.sent, strict=True)):
        assert (one.frag & 0x1FFF) * 8 + len(packet) - 20 == (following.frag & 0x1FFF) * 8
    assert host.mib["IpFragCreates"] == len(headers)
    assert host.mib["IpFragOKs"] == 1
    assert host.mib["IpOutRequests"] == 1


def test_an_ipv6_packet_that_is_too_long_leaves_in_fragments() -> None:
    host, wire = wired("fd00::1/64")
    host.send("fd00::2", PAYLOAD, df=False)
    fragments = [parse_fragment_untrusted(packet[40:]) for packet in wire.sent]
    assert [fragment.offset for fragment in fragments] == [0, 1448, 2896]
    assert [fragment.more for fragment in fragments] == [True, True, False]
    assert {fragment.nexthdr for fragment in fragments} == {UDP}
    assert b"".join(packet[48:] for packet in wire.sent) == PAYLOAD
    assert len({fragment.ident for fragment in fragments}) == 1


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_what_must_not_be_fragmented_is_refused(address: str) -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    with pytest.raises(OSError, match="the path carries 1500") as caught:
        host.send(address, PAYLOAD, df=True)
    assert caught.value.errno == errno.EMSGSIZE
    assert wire.sent == []
    assert host.mib["IpFragFails"] + host.mib["Ip6FragFails"] == 1


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_more_than_a_packet_can_hold_is_refused(address: str) -> None:
    host, _ = wired("10.0.0.1/24", "fd00::1/64")
    with pytest.raises(OSError, match="octets") as caught:
        host.send(address, bytes(66000))
    assert caught.value.errno == errno.EMSGSIZE


def test_an_error_about_a_fragment_is_about_the_first_only() -> None:
    host, wire = wired("10.0.0.1/24")
    later = v4("10.0.0.9", "10.0.0.1", bytes(8), 17, frag=5, options=bytes.fromhex("07020000"))
    wire.feed(later)
    assert wire.sent == []
    assert host.mib["IpInHdrErrors"] == 1
    first = v4("10.0.0.9", "10.0.0.1", bytes(8), 17, frag=MF, options=bytes.fromhex("07020000"))
    wire.feed(first)
    assert wire.take()[0][20] == icmp.PARAMETERPROB


def test_the_route_of_a_fragmented_packet_stays_valid() -> None:
    host, _ = wired("10.0.0.1/24")
    dst = host.net.route_output(parse("10.0.0.2"))
    dst.xmit([PAYLOAD], UDP, df=False)
    assert dst.valid()
