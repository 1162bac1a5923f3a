"""What a device does not do is done in software, and undone on the other side."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.device import Device, MemoryDevice, dev_queue_xmit, memory_link
from steertag.device.frame import (
    CHECKSUM_NONE,
    CHECKSUM_PARTIAL,
    CHECKSUM_UNNECESSARY,
    GSO_ECN,
    GSO_TCPV4,
    NETIF_F_ALL,
    NETIF_F_HW_CSUM,
    NETIF_F_TSO,
    Frame,
    Offload,
)
from steertag.device.gro import MAX_FLOWS, Gro
from steertag.device.gso import on_the_wire_untrusted, segments
from steertag.wire import tcp
from steertag.wire.checksum import partial_parts
from tests.unit.device_frames import (
    checksum_is_right,
    ethernet,
    ip_header,
    segment,
    super_datagram,
    super_segment,
    tcp_of,
)

versions = st.sampled_from((4, 6))


def received(device: Device) -> list[Frame]:
    frames = []
    while (frame := device.receive()) is not None:
        frames.append(frame)
    return frames


def joined(packets: Sequence[bytes], l3: int = 0) -> list[Frame]:
    """What software GRO makes of packets that come in one turn."""
    delivered: list[Frame] = []
    gro = Gro(delivered.append, l3)
    for packet in packets:
        gro.receive(Frame(memoryview(packet)))
    gro.flush()
    return delivered


# -- GSO ---------------------------------------------------------------------------------------


@given(
    version=versions,
    payload=st.binary(min_size=1, max_size=5000),
    mss=st.integers(1, 1500),
    link=st.booleans(),
)
def test_every_segment_has_its_own_lengths_and_checksums(
    version: int, payload: bytes, mss: int, link: bool
) -> None:
    l2 = ethernet(version) if link else b""
    flags = tcp.ACK | tcp.PSH | tcp.FIN | tcp.CWR
    parts, offload = super_segment(version, payload, mss, l2, flags=flags)
    cut = [b"".join(piece) for piece in segments(parts, offload, len(l2))]
    assert len(cut) == -(-len(payload) // mss)
    at = 0
    for number, packet in enumerate(cut):
        assert packet.startswith(l2)
        assert checksum_is_right(packet, len(l2))
        found = tcp_of(packet, len(l2))
        assert found.seq == 7 + at
        at += len(found.payload)
        last = number == len(cut) - 1
        assert bool(found.flags & tcp.PSH) == bool(found.flags & tcp.FIN) == last
        assert bool(found.flags & tcp.CWR) == (number == 0)
    assert at == len(payload)


def test_the_identification_counts_the_segments() -> None:
    parts, offload = super_segment(4, bytes(400), 100)
    parts[0] = parts[0][:4] + b"\xff\xfe" + parts[0][6:]
    idents = [b"".join(piece)[4:6].hex() for piece in segments(parts, offload, 0)]
    assert idents == ["fffe", "ffff", "0000", "0001"]


@given(version=versions, payload=st.binary(min_size=1, max_size=3000), size=st.integers(1, 1400))
def test_a_super_datagram_is_cut_into_datagrams(version: int, payload: bytes, size: int) -> None:
    parts, offload = super_datagram(version, payload, size)
    cut = [b"".join(piece) for piece in segments(parts, offload, 0)]
    head = offload.hdr_len
    assert b"".join(packet[head:] for packet in cut) == payload
    assert all(checksum_is_right(packet) for packet in cut)
    lengths = [int.from_bytes(packet[head - 4 : head - 2], "big") for packet in cut]
    assert lengths == [len(packet) - head + 8 for packet in cut]


def test_headers_and_payload_may_come_in_any_parts() -> None:
    payload = bytes(range(250))
    (header, _), offload = super_segment(4, payload, 100)
    whole = [b"".join(piece) for piece in segments([header, payload], offload, 0)]
    for parts in (
        [header + payload],
        [header[:20], header[20:], payload],
        [header, payload[:99], payload[99:]],
        [header + payload[:1], payload[1:]],
    ):
        assert [b"".join(piece) for piece in segments(parts, offload, 0)] == whole


# -- dev_queue_xmit --------------------------------------------------------------------------------


def test_a_device_that_does_all_gets_it_as_it_is() -> None:
    ours, theirs = memory_link()
    parts, offload = super_segment(4, bytes(5000), 1000)
    dev_queue_xmit(ours, parts, offload)
    (frame,) = received(theirs)
    assert bytes(frame.data) == b"".join(parts)
    assert (frame.csum, frame.gso_type, frame.gso_size) == (CHECKSUM_PARTIAL, GSO_TCPV4, 1000)
    assert ours.stats.tx_packets == 1


@pytest.mark.parametrize("version", [4, 6])
def test_a_device_that_does_nothing_gets_finished_packets(version: int) -> None:
    ours, theirs = memory_link(features=0, mtu=1100)
    payload = bytes(range(256)) * 10
    parts, offload = super_segment(version, payload, 1000)
    dev_queue_xmit(ours, parts, offload)
    frames = received(theirs)
    assert [len(tcp_of(frame.data).payload) for frame in frames] == [1000, 1000, 560]
    assert all(checksum_is_right(bytes(frame.data)) for frame in frames)
    assert {frame.csum for frame in frames} == {CHECKSUM_NONE}
    assert {frame.gso_size for frame in frames} == {0}


def test_a_device_that_only_sums_gets_segments_to_sum() -> None:
    ours, theirs = memory_link(features=NETIF_F_HW_CSUM)
    parts, offload = super_segment(4, bytes(2500), 1000)
    dev_queue_xmit(ours, parts, offload)
    frames = received(theirs)
    assert [frame.csum for frame in frames] == [CHECKSUM_PARTIAL] * 3
    for frame in frames:
        (packet,) = on_the_wire_untrusted(frame, 0)
        assert checksum_is_right(bytes(packet))


def test_a_device_that_cuts_ipv4_alone_gets_ipv6_cut() -> None:
    for version, count in ((4, 1), (6, 3)):
        ours, theirs = memory_link(features=NETIF_F_HW_CSUM | NETIF_F_TSO)
        dev_queue_xmit(ours, *super_segment(version, bytes(2500), 1000))
        assert len(received(theirs)) == count


def test_ecn_of_a_super_segment_asks_for_no_more() -> None:
    ours, theirs = memory_link()
    parts, offload = super_segment(4, bytes(2500), 1000, flags=tcp.ACK | tcp.CWR)
    offload.gso_type |= GSO_ECN
    dev_queue_xmit(ours, parts, offload)
    assert len(received(theirs)) == 1


@given(version=versions, payload=st.binary(max_size=3000), split=st.integers(0, 60))
def test_a_checksum_is_completed(version: int, payload: bytes, split: int) -> None:
    ours, theirs = memory_link(features=0)
    (header, body), offload = super_segment(version, payload, 0)
    dev_queue_xmit(ours, [header[:split], header[split:], body], offload)
    (frame,) = received(theirs)
    assert checksum_is_right(bytes(frame.data))


def test_a_device_that_is_down_sends_nothing() -> None:
    ours, theirs = memory_link()
    ours.up = False
    with pytest.raises(OSError, match="down") as caught:
        dev_queue_xmit(ours, [b"x"])
    assert caught.value.errno == errno.ENETDOWN
    assert received(theirs) == []
    assert ours.stats.tx_dropped == 1


def test_only_a_first_segment_that_cannot_be_sent_is_an_error() -> None:
    ours, theirs = memory_link(features=0, backlog=2)
    dev_queue_xmit(ours, *super_segment(4, bytes(3000), 1000))
    assert (len(received(theirs)), ours.stats.tx_dropped) == (2, 1)
    dev_queue_xmit(ours, [b"x"])
    dev_queue_xmit(ours, [b"y"])
    with pytest.raises(OSError, match="buffer") as caught:
        dev_queue_xmit(ours, *super_segment(4, bytes(3000), 1000))
    assert caught.value.errno == errno.ENOBUFS


# -- GRO ---------------------------------------------------------------------------------------


@given(
    version=versions,
    payload=st.binary(min_size=1, max_size=9000),
    mss=st.integers(1, 1500),
    seq=st.sampled_from((7, 2**32 - 3)),
    link=st.booleans(),
)
def test_what_was_cut_is_put_together_again(
    version: int, payload: bytes, mss: int, seq: int, link: bool
) -> None:
    l2 = ethernet(version) if link else b""
    parts, offload = super_segment(version, payload, mss, l2, flags=tcp.ACK | tcp.PSH, seq=seq)
    cut = [b"".join(piece) for piece in segments(parts, offload, len(l2))]
    (whole,) = joined(cut, len(l2))
    found = tcp_of(whole.data, len(l2))
    assert (bytes(found.payload), found.seq) == (payload, seq)
    assert found.flags & tcp.PSH
    assert whole.gso_size == (mss if len(cut) > 1 else 0)
    assert whole.csum == (CHECKSUM_UNNECESSARY if len(cut) > 1 else CHECKSUM_NONE)
    if version == 4:
        assert partial_parts([whole.data[len(l2) : len(l2) + 20]]) == 0xFFFF
        assert int.from_bytes(whole.data[len(l2) + 2 :][:2], "big") == len(whole) - len(l2)


FIRST = segment(bytes(100))
SECOND = {"seq": 107}


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 108},
        {"seq": 106},
        {"ack": 10},
        {"window": 513},
        {"tsval": 2},
        {"port": 1001},
        {"tos": 3},
        {"ttl": 63},
        {"damage": 1},
        {"flags": tcp.ACK | tcp.CWR},
        {"flags": tcp.ACK | tcp.ECE},
        {"flags": tcp.ACK | tcp.URG},
        {"flags": tcp.ACK | tcp.RST},
        {"flags": tcp.ACK | tcp.SYN},
    ],
    ids=str,
)
@pytest.mark.parametrize("version", [4, 6])
def test_what_does_not_follow_stays_by_itself(change: dict[str, int], version: int) -> None:
    first = segment(bytes(100), version=version)
    second = segment(bytes(100), version=version, **(SECOND | change))
    found = joined([first, second])
    assert [bytes(frame.data) for frame in found] == [first, second]
    assert [frame.gso_size for frame in found] == [0, 0]
    if "damage" in change:
        assert found[1].csum == CHECKSUM_NONE


def test_a_segment_longer_than_the_first_stays_by_itself() -> None:
    assert len(joined([FIRST, segment(bytes(101), seq=107)])) == 2


@pytest.mark.parametrize("flags", [tcp.ACK | tcp.PSH, tcp.ACK | tcp.FIN])
def test_a_pushed_or_last_segment_ends_the_frame(flags: int) -> None:
    second = segment(bytes(100), seq=107, flags=flags)
    found = joined([FIRST, second, segment(bytes(100), seq=207)])
    assert [len(tcp_of(frame.data).payload) for frame in found] == [200, 100]
    assert tcp_of(found[0].data).flags == flags


def test_a_short_segment_ends_the_frame() -> None:
    packets = [FIRST, segment(bytes(50), seq=107), segment(bytes(50), seq=157)]
    assert [len(tcp_of(frame.data).payload) for frame in joined(packets)] == [150, 50]


def test_an_acknowledgment_alone_comes_behind_the_data_before_it() -> None:
    ack = segment(b"", seq=107)
    found = joined([FIRST, ack, segment(bytes(100), seq=107)])
    assert [len(tcp_of(frame.data).payload) for frame in found] == [100, 0, 100]


def test_a_frame_grows_to_64_kib_and_no_further() -> None:
    packets = [segment(bytes(1448), seq=7 + 1448 * number) for number in range(50)]
    found = joined(packets)
    assert [len(frame) for frame in found] == [45 * 1448 + 52, 5 * 1448 + 52]
    assert max(map(len, found)) <= 65535


def test_flows_are_joined_each_by_itself() -> None:
    packets = [
        segment(bytes((port & 255,)) * 100, seq=7 + 100 * number, port=port)
        for number in range(5)
        for port in (1000, 1001, 1002)
    ]
    found = joined(packets)
    assert [len(tcp_of(frame.data).payload) for frame in found] == [500] * 3
    assert {tcp_of(frame.data).source for frame in found} == {1000, 1001, 1002}


def test_flows_that_are_held_back_have_a_limit() -> None:
    delivered: list[Frame] = []
    gro = Gro(delivered.append)
    for port in range(1, MAX_FLOWS + 11):
        gro.receive(Frame(memoryview(segment(bytes(10), port=port))))
    assert len(delivered) == 10


def test_a_super_segment_comes_behind_what_was_before() -> None:
    delivered: list[Frame] = []
    gro = Gro(delivered.append)
    gro.receive(Frame(memoryview(FIRST)))
    gro.receive(Frame(memoryview(segment(bytes(500), seq=107)), CHECKSUM_PARTIAL, GSO_TCPV4, 100))
    assert [len(tcp_of(frame.data).payload) for frame in delivered] == [100, 500]


def test_frames_to_other_stations_and_other_protocols_are_not_joined() -> None:
    l2 = ethernet(4)
    first = segment(bytes(100), l2=l2)
    second = segment(bytes(100), l2=ethernet(4, b"\x02\0\0\0\0\3"), seq=107)
    assert len(joined([first, second], 14)) == 2
    odd = [segment(bytes(100), l2=bytes(14), seq=seq) for seq in (7, 107)]
    assert len(joined(odd, 14)) == 2


def test_ipv4_fragments_and_padding_are_left_alone() -> None:
    first, second = segment(bytes(100)), segment(bytes(100), seq=107)
    fragment = bytearray(first)
    fragment[6] |= 0x20
    fragment[10:12] = b"\0\0"
    check = partial_parts([bytes(fragment[:20])]) ^ 0xFFFF
    fragment[10:12] = check.to_bytes(2, "big")
    assert len(joined([bytes(fragment), second])) == 2
    assert len(joined([first, second + bytes(3)])) == 2


@given(st.lists(st.binary(max_size=120), max_size=10), st.sampled_from((0, 14)))
def test_hostile_frames_pass_unharmed(frames: list[bytes], l3: int) -> None:
    assert [bytes(frame.data) for frame in joined(frames, l3)] == frames


@given(
    st.lists(st.tuples(st.integers(0, 151), st.integers(0, 255), st.integers(0, 3)), max_size=6),
    versions,
)
def test_damaged_segments_lose_no_octets(damage: list[tuple[int, int, int]], version: int) -> None:
    """Whatever is flipped in them, frames come out with all the payload that went in."""
    packets = [
        bytearray(segment(bytes(60), version=version, seq=7 + 60 * number)) for number in range(4)
    ]
    for at, octet, number in damage:
        packets[number][at % len(packets[number])] = octet
    delivered = joined([bytes(packet) for packet in packets])
    octets = sum(len(frame) - 52 - 20 * (version == 6) for frame in delivered)
    assert octets == 240


# -- what was received, as on a wire ---------------------------------------------------------------


@given(
    octets=st.binary(max_size=200),
    start=st.sampled_from((b"", b"\x45", b"\x60", ip_header(4, 6, 40), ip_header(6, 17, 40))),
    csum=st.sampled_from((CHECKSUM_NONE, CHECKSUM_UNNECESSARY, CHECKSUM_PARTIAL)),
    kind=st.sampled_from((0, 1, 4, 5, 7)),
    size=st.integers(0, 100),
    l2=st.sampled_from((b"", ethernet(4), ethernet(6))),
)
def test_hostile_frames_cannot_break_the_cutting(
    octets: bytes, start: bytes, csum: int, kind: int, size: int, l2: bytes
) -> None:
    data = l2 + start + octets
    cut = on_the_wire_untrusted(Frame(memoryview(data), csum, kind, size), len(l2))
    assert sum(map(len, cut)) >= len(data)


@given(version=versions, payload=st.binary(min_size=1, max_size=3000), udp=st.booleans())
def test_a_received_super_segment_is_cut_as_its_sender_would_have(
    version: int, payload: bytes, udp: bool
) -> None:
    build = super_datagram if udp else super_segment
    parts, offload = build(version, payload, 700)
    sent = [b"".join(piece) for piece in segments(parts, offload, 0)]
    frame = Frame(memoryview(b"".join(parts)), CHECKSUM_PARTIAL, offload.gso_type, 700)
    assert [bytes(packet) for packet in on_the_wire_untrusted(frame, 0)] == sent


def test_a_received_packet_behind_extension_headers_gets_its_checksum() -> None:
    (header, payload), _ = super_segment(6, b"payload", 0)
    packet = bytearray(header[:40] + bytes((6, 0, 1, 4, 0, 0, 0, 0)) + header[40:] + payload)
    packet[6] = 60  # destination options
    packet[4:6] = (len(packet) - 40).to_bytes(2, "big")
    (found,) = on_the_wire_untrusted(Frame(memoryview(packet), CHECKSUM_PARTIAL), 0)
    plain = bytes(found[:6]) + b"\x06" + bytes(found[7:40]) + bytes(found[48:])
    plain = plain[:4] + (len(plain) - 40).to_bytes(2, "big") + plain[6:]
    assert checksum_is_right(plain)


def test_every_feature_has_software_for_want_of_it() -> None:
    for build in (super_segment, super_datagram):
        for version in (4, 6):
            for features in range(NETIF_F_ALL + 1):
                ours, theirs = memory_link(features=features)
                dev_queue_xmit(ours, *build(version, bytes(range(250)), 100))
                packets = [
                    bytes(packet)
                    for frame in received(theirs)
                    for packet in on_the_wire_untrusted(frame, 0)
                ]
                assert len(packets) == 3
                assert all(checksum_is_right(packet) for packet in packets)


def test_an_offload_moves_with_its_headers() -> None:
    offload = Offload(0, 16, GSO_TCPV4, 100, 32)
    offload.moved(20)
    offload.moved(14)
    assert (offload.csum_start, offload.csum_offset, offload.hdr_len) == (34, 16, 66)


def test_a_closed_memory_device_is_down() -> None:
    device = MemoryDevice("mem0")
    device.close()
    assert not device.up
    with pytest.raises(OSError, match="down"):
        device.transmit([b"x"])
