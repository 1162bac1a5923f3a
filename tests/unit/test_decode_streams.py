"""Frames come out whatever became of the TCP segments; what is missing is said."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from steertag.observe.capture import Packet
from steertag.observe.decode import decoder as limits
from steertag.observe.decode.frames import CRC_UNKNOWN
from steertag.observe.packet import Endpoint, Skipped, tcp_segment_untrusted
from steertag.wire import mpa
from steertag.wire.rdmap import Opcode
from tests.decode_support import (
    CLIENT,
    SERVER,
    Talk,
    contents,
    cut,
    decoded,
    every_operation,
    fpdus,
    mpa_frames,
    notes,
    renumbered,
)


def talk(mss: int = 300, *, crc: bool = True) -> Talk:
    made = Talk(mss=mss, crc=crc)
    every_operation(made)
    made.close()
    return made


WHOLE = contents(decoded(talk().packets)[0])


def payload_of(packet: Packet) -> int:
    segment = tcp_segment_untrusted(packet)
    assert not isinstance(segment, Skipped)
    return segment.length


def with_flags(packet: Packet, flags: int) -> Packet:
    octets = bytearray(packet.octets)
    octets[33] = flags
    return packet._replace(octets=bytes(octets))


def by_sender(rows: list[tuple[object, ...]]) -> list[list[tuple[object, ...]]]:
    """What each end sent; how the two directions interleave depends on the packets."""
    return [[row for row in rows if row[0] == end] for end in (CLIENT, SERVER)]


def test_nothing_is_wrong_with_the_conversation_itself() -> None:
    frames, decoder = decoded(talk().packets)
    assert len(WHOLE) == 2 * 19
    assert decoder.summary.bad == 0
    assert decoder.summary.crc == {"good": 2 * 19, "bad": 0, "off": 0, "unknown": 0}
    assert [frame.kind for frame in notes(frames)] == ["stream"]


def test_each_frame_is_reported_with_the_packet_that_completes_it() -> None:
    made = Talk(mss=100)
    made.client.tagged(payload=bytes(250))
    made.client.tagged(payload=b"abc")
    found = fpdus(decoded(made.packets)[0])
    # Handshake 3, MPA 2, then 270 octets in three packets.
    assert [frame.packet for frame in found] == [8, 9]
    assert [frame.time_ns for frame in found] == [7000, 8000]


@pytest.mark.parametrize("seed", range(20))
def test_segments_reordered_and_sent_again_make_the_same_frames(seed: int) -> None:
    rng = random.Random(seed)
    packets = talk().packets
    order = sorted(range(4, len(packets)), key=lambda index: index + rng.uniform(0, 6))
    shuffled = packets[:4] + [packets[index] for index in order]
    for _ in range(30):
        at = rng.randrange(4, len(shuffled))
        shuffled.insert(rng.randrange(at, len(shuffled)), shuffled[at])
    frames, decoder = decoded(shuffled)
    assert by_sender(contents(frames)) == by_sender(WHOLE)
    assert decoder.summary.gaps == 0


@pytest.mark.parametrize("shift", [-1_600, -5_000, -1_001])
def test_sequence_numbers_that_wrap_make_the_same_frames(shift: int) -> None:
    frames, decoder = decoded(renumbered(packet, shift) for packet in talk().packets)
    assert contents(frames) == WHOLE
    assert decoder.summary.bad == 0


def test_segments_that_overlap_make_the_same_frames() -> None:
    """Each segment again together with what follows it, as a retransmission merges them."""
    packets = talk().packets
    merged: list[Packet] = []
    for one, two in pairwise(packets):
        merged.append(one)
        if one.octets[12:20] == two.octets[12:20] and payload_of(one) and payload_of(two):
            octets = bytearray(one.octets + two.octets[40:])
            octets[2:4] = len(octets).to_bytes(2, "big")
            merged.append(Packet(one.time_ns, bytes(octets), len(octets), one.linktype))
    frames, decoder = decoded([*merged, packets[-1]])
    assert by_sender(contents(frames)) == by_sender(WHOLE)
    assert decoder.summary.gaps == 0
    assert len(merged) > len(packets) + 5


def long_talk(
    *, crc: bool = True, size: int = 1000, count: int = 60, mss: int = 1460, close: bool = True
) -> Talk:
    made = Talk(mss=mss, crc=crc)
    rng = random.Random(5)
    for number in range(count):
        made.client.tagged(payload=rng.randbytes(size), to=0x1000 + number * size)
        made.client.untagged(payload=rng.randbytes(20))
    if close:
        made.close()
    return made


def test_octets_missing_inside_an_fpdu_cost_no_other_frame() -> None:
    packets = long_talk(size=4000).packets
    del packets[6]  # the second of three segments of the first Write
    frames, decoder = decoded(packets)
    found = fpdus(frames)
    assert len(found) == 120
    assert [frame.missing for frame in found] == [True] + 119 * [False]
    assert found[0].crc == CRC_UNKNOWN
    assert (found[0].opcode, found[0].payload_length) == (Opcode.WRITE, 4000)
    (gap,) = notes(frames, "gap")
    assert (gap.bad, gap.missing) == (True, 1460)
    assert decoder.summary.bad == 1


@pytest.mark.parametrize("crc", [True, False])
def test_frames_are_found_again_behind_a_gap_that_hides_where_they_begin(crc: bool) -> None:
    packets = long_talk(crc=crc, size=3001).packets
    whole = contents(decoded(packets)[0])
    del packets[11:14]
    frames, decoder = decoded(packets)
    rows = contents(frames)
    assert len(whole) - 6 <= len(rows) < len(whole)
    assert rows[-100:] == whole[-100:]
    assert sum(note.bad for note in notes(frames)) == len(notes(frames, "gap")) == 1
    assert any("found again" in note.text for note in notes(frames))
    assert decoder.summary.crc["bad"] == 0
    assert not any(frame.problems for frame in fpdus(frames))


def test_an_acknowledged_hole_is_given_up_and_frames_go_on_before_the_capture_ends() -> None:
    packets = long_talk(size=1000).packets
    acknowledgement = with_flags(packets[-2], 0x10)
    missing = packets.pop(20)
    many = [*packets[:-3], *([acknowledgement] * 40), packets[-3]]
    frames, _ = decoded(many)
    gaps = notes(frames, "gap")
    assert [gap.missing for gap in gaps] == [payload_of(missing)]
    assert gaps[0].packet < len(many), "not only at the end"


def test_a_hole_that_is_filled_late_is_none() -> None:
    packets = long_talk().packets
    packets.insert(100, packets.pop(20))
    frames, decoder = decoded(packets)
    assert contents(frames) == contents(decoded(long_talk().packets)[0])
    assert decoder.summary.gaps == 0


def test_octets_acknowledged_and_never_captured_are_a_gap_at_the_end() -> None:
    made = long_talk(close=False)
    made.server.untagged(payload=b"I have it all")
    packets = made.packets
    frames, _ = decoded(packets[:10] + packets[-1:])
    (gap,) = notes(frames, "gap")
    assert gap.missing == sum(map(payload_of, packets[10:-1]))


@pytest.mark.parametrize("crc", [True, False])
def test_a_capture_that_begins_in_the_middle_is_recognised_and_its_crc_detected(crc: bool) -> None:
    packets = long_talk(crc=crc).packets
    whole = contents(decoded(packets)[0])
    frames, decoder = decoded(packets[20:])
    rows = contents(frames)
    assert rows == whole[-len(rows) :]
    assert len(rows) > 80
    assert decoder.summary.iwarp_streams == 1
    assert decoder.summary.bad == 0
    texts = [note.text for note in notes(frames)]
    assert "the capture has no start-up frames of it" in texts
    assert any(text.startswith(f"CRC {'on' if crc else 'off'}") for text in texts)


def test_a_capture_that_begins_behind_the_handshake_still_has_the_start_up_frames() -> None:
    frames, decoder = decoded(talk().packets[3:])
    assert contents(frames) == WHOLE
    assert len(mpa_frames(frames)) == 2
    assert decoder.summary.bad == 0


def test_the_client_syn_may_be_missing() -> None:
    frames, decoder = decoded(talk().packets[1:])
    assert contents(frames) == WHOLE
    assert decoder.summary.bad == 0


def test_only_one_direction_captured_is_decoded() -> None:
    packets = [packet for packet in long_talk().packets if packet.octets[15] == 1]
    frames, decoder = decoded(packets)
    assert len(fpdus(frames)) == 120
    assert {frame.crc for frame in fpdus(frames)} == {"good"}
    assert decoder.summary.bad == 0


def test_packets_cut_by_the_snap_length_keep_their_headers_and_say_that_no_crc_was_seen() -> None:
    packets = long_talk(size=1400, mss=1424).packets
    frames, decoder = decoded(cut(packet, 96) for packet in packets)
    found = fpdus(frames)
    whole = fpdus(decoded(packets)[0])
    # A Write fills its segment and is cut; the small Send behind it isn't.
    assert [(f.opcode, f.to, f.msn, f.payload_length) for f in found] == [
        (f.opcode, f.to, f.msn, f.payload_length) for f in whole
    ]
    assert {frame.crc for frame in found if frame.tagged} == {CRC_UNKNOWN}
    assert {frame.crc for frame in found if not frame.tagged} == {"good"}
    assert decoder.summary.truncated_packets == 60
    assert decoder.summary.bad == 0


def test_where_the_snap_length_hides_the_next_frame_it_is_found_again_by_its_numbers() -> None:
    made = Talk(mss=1460)
    put = made.client.put
    for _ in range(30):
        pair: list[bytes] = []
        made.client.put = pair.append
        made.client.untagged(payload=bytes(600))
        made.client.untagged(payload=bytes(600))
        put(b"".join(pair))
    frames, decoder = decoded(cut(packet, 96) for packet in made.packets)
    found = [frame.msn for frame in fpdus(frames) if frame.opcode is not None]
    assert found == list(range(1, 60, 2)), "the second of each segment isn't in the capture"
    assert decoder.summary.gaps == 30


def test_a_new_connection_on_the_same_ports_is_another_stream() -> None:
    first = talk().packets
    second = [renumbered(packet, 1_000_000) for packet in talk().packets]
    # The server's number changes too, as those of two connections do.
    frames, decoder = decoded([*first, *second])
    assert decoder.summary.tcp_streams == 2
    assert [row for row in contents(frames) if row] == WHOLE + WHOLE
    assert {frame.link.stream for frame in frames} == {0, 1}
    assert decoder.summary.bad == 0


def test_late_copies_of_an_ended_connection_are_no_new_one() -> None:
    packets = talk().packets
    frames, decoder = decoded(packets + packets[5:20])
    assert decoder.summary.tcp_streams == 1
    assert contents(frames) == WHOLE


def test_a_reset_ends_a_connection_and_is_not_bad_by_itself() -> None:
    packets = talk().packets[:-3]
    reset = with_flags(talk().packets[-1], 0x04)
    frames, decoder = decoded([*packets, reset, packets[-1]])
    assert contents(frames) == WHOLE
    assert decoder.summary.bad == 0


def test_a_fin_inside_an_fpdu_is_bad() -> None:
    made = Talk()
    made.client.put(b"".join(mpa.emit_fpdu([bytes(100)]))[:50])
    made.close()
    frames, _ = decoded(made.packets)
    (note,) = [note for note in notes(frames) if note.bad]
    assert "ends inside an FPDU" in note.text


def test_a_capture_that_stops_inside_an_fpdu_says_so_and_is_not_bad() -> None:
    packets = long_talk(size=5000).packets[:6]
    frames, decoder = decoded(packets)
    assert "the capture ends inside an FPDU" in notes(frames)[-1].text
    assert decoder.summary.bad == 0


def test_streams_and_ports_select() -> None:
    first = talk().packets
    second = [renumbered(packet, 1_000_000) for packet in talk().packets]
    for streams, count in (
        ({0}, len(WHOLE)),
        ({1}, len(WHOLE)),
        ({0, 1}, 2 * len(WHOLE)),
        ({2}, 0),
    ):
        frames, decoder = decoded([*first, *second], streams=streams)
        assert len(fpdus(frames)) == count
        assert {frame.link.stream for frame in frames} == streams - {2}
        assert decoder.summary.tcp_streams == 2
    assert len(fpdus(decoded(first, ports=[7471])[0])) == len(WHOLE)
    assert len(fpdus(decoded(first, ports=[40000])[0])) == len(WHOLE)
    assert fpdus(decoded(first, ports=[80])[0]) == []


def other_protocol(rng: random.Random) -> Talk:
    made = Talk(start=False)
    for _ in range(40):
        made.client.put(rng.randbytes(1000))
        made.server.put(bytes(1000))
    made.close()
    return made


@pytest.mark.parametrize("skip", [0, 3, 10])
def test_a_connection_of_another_protocol_is_passed_over_in_silence(skip: int) -> None:
    frames, decoder = decoded(other_protocol(random.Random(1)).packets[skip:])
    assert frames == []
    assert (decoder.summary.tcp_streams, decoder.summary.iwarp_streams) == (1, 0)


def test_fpdus_without_start_up_frames_are_found_where_the_port_is_named() -> None:
    """So a connection looks whose ends agreed on everything beforehand."""
    talk = Talk(start=False)
    for number in range(10):
        talk.client.untagged(payload=bytes(number))
    assert decoded(talk.packets)[0] == []
    frames, decoder = decoded(talk.packets, ports=[7471])
    assert [frame.msn for frame in fpdus(frames)] == list(range(1, 11))
    assert decoder.summary.bad == 0


def test_too_much_that_waits_drops_the_longest_silent_connections_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MEMORY", 1_000_000)
    packets: list[Packet] = []
    for number in range(60):
        talk = Talk(mss=60_000, client=Endpoint("10.0.0.1", 50_000 + number))
        for _ in range(3):
            talk.client.tagged(payload=bytes(50_000))
        packets += [packet for at, packet in enumerate(talk.packets) if at != 5]  # the first Write
    frames, decoder = decoded(packets)
    dropped = [note for note in notes(frames) if "followed no further" in note.text]
    assert 30 < len(dropped) < 60
    assert [note.link.stream for note in dropped] == list(range(len(dropped)))
    assert all(note.bad for note in dropped)
    # What waited is shown before the connection is let go of.
    assert decoder.summary.gaps == 60
    assert {frame.crc for frame in fpdus(frames)} <= {"good", CRC_UNKNOWN}


def test_a_single_connection_that_waits_for_too_much_goes_on_behind_the_hole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MEMORY", 200_000)
    talk = Talk(mss=60_000)
    for number in range(20):
        talk.client.untagged(payload=bytes(50_000), msn=number + 1)
    packets = talk.packets
    del packets[6]
    frames, decoder = decoded(packets)
    assert [frame.msn for frame in fpdus(frames)] == [1, *range(3, 21)]
    assert decoder.summary.gaps == 1
    assert max(note.packet for note in notes(frames, "gap")) < len(packets) - 5
