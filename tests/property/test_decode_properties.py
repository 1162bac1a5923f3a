"""The decoder against files that somebody made up or damaged: one kind of error, and an end."""

from __future__ import annotations

import contextlib
import io
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.observe.capture import Packet, read_capture
from steertag.observe.decode import Decoder, Frame, frame_object, line, reassembly, summary_lines
from steertag.observe.decode import decoder as limits
from steertag.wire import mpa
from tests.decode_support import (
    LINK_LAYERS,
    Talk,
    as_ipv6,
    contents,
    decoded,
    every_operation,
    fpdus,
    framed,
    pcap,
    pcapng,
    section,
)
from tests.wire.mpa_stream import capture_octets


def conversation(*, crc: bool = True, markers: bool = False, mss: int = 300) -> list[Packet]:
    start = mpa.StartFrame(reply=False, crc=crc, markers=markers)
    reply = mpa.StartFrame(reply=True, crc=crc, markers=markers)
    talk = Talk(crc=crc, mss=mss, request=start, reply=reply)
    every_operation(talk)  # with markers agreed on and none sent: worse than nonsense
    talk.close()
    return talk.packets


PACKETS = conversation()
FILES = [
    pcap(PACKETS),
    pcapng(PACKETS),
    pcap([framed(packet, "linux_sll2") for packet in PACKETS]),
    pcapng([as_ipv6(packet, b"\x06\x00" + bytes(6), 0) for packet in PACKETS]),
    pcap(conversation(crc=False)),
    pcap(conversation(markers=True)),
    capture_octets("rping-crc-p2p-S1000"),
    capture_octets("user-pyrping-badcrc"),
]


def decode(octets: bytes) -> tuple[list[Frame], Decoder]:
    """All that `stag decode` does with a file."""
    decoder = Decoder()
    frames: list[Frame] = []
    with contextlib.suppress(WireError):
        for frame in decoder.decode(read_capture(io.BytesIO(octets))):
            assert "\n" not in line(frame, 0)
            json.dumps(frame_object(frame, 0))
            frames.append(frame)
    summary_lines(decoder.summary)
    assert decoder.summary.bad == sum(frame.bad for frame in frames)
    return frames, decoder


@given(st.binary(max_size=400))
def test_made_up_files_raise_nothing_else(octets: bytes) -> None:
    decode(octets)
    decode(section() + octets)
    decode(FILES[0][:24] + octets)


@settings(max_examples=300)
@given(
    file=st.sampled_from(FILES),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)), max_size=8
    ),
    end=st.floats(0, 1),
)
def test_damaged_captures_raise_nothing_else(
    file: bytes, changes: list[tuple[float, bytes]], end: float
) -> None:
    octets = bytearray(file)
    for place, change in changes:
        at = int(place * len(octets))
        octets[at : at + len(change)] = change
    if end < 0.5:
        del octets[int(len(octets) * (1 - end)) :]
    decode(bytes(octets))


@given(
    packets=st.lists(
        st.tuples(st.sampled_from(sorted(LINK_LAYERS)), st.binary(max_size=120)), max_size=10
    )
)
def test_made_up_packets_raise_nothing(packets: list[tuple[str, bytes]]) -> None:
    made = [
        framed(Packet(0, b"\x45" + octets[:8] + b"\x06" + octets[8:], len(octets) + 2, 0), layer)
        for layer, octets in packets
    ]
    decode(pcapng(made))


def segment(seq: int, flags: int, payload: bytes, *, back: bool) -> Packet:
    """Built on the conversation's own packets, so that it belongs to their connection."""
    octets = bytearray(PACKETS[1 if back else 0].octets[:40])
    octets[24:28] = (seq & 0xFFFFFFFF).to_bytes(4, "big")
    octets[32:34] = bytes((0x50, flags))
    octets[2:4] = (40 + len(payload)).to_bytes(2, "big")
    return Packet(0, bytes(octets) + payload, 40 + len(payload), 101)


SEQUENCE = st.one_of(
    st.integers(900, 3000),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from([0x7FFFFFFF, 0x80000000, 0x80000001 + 1000, 0xFFFFFFFF]),
)


@settings(max_examples=200)
@given(
    segments=st.lists(
        st.tuples(SEQUENCE, st.integers(0, 63), st.binary(max_size=200), st.booleans()),
        max_size=30,
    ),
    at=st.integers(0, len(PACKETS)),
)
def test_made_up_segments_in_a_connection_raise_nothing(
    segments: list[tuple[int, int, bytes, bool]], at: int
) -> None:
    made = [segment(seq, flags, octets, back=back) for seq, flags, octets, back in segments]
    decode(pcap([*PACKETS[:at], *made, *PACKETS[at:]]))


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, len(PACKETS) - 1), max_size=40),
    st.randoms(use_true_random=False),
    st.integers(1, 6),
)
def test_copies_and_moderate_reordering_change_no_frame(
    copies: list[int], rng: object, reach: int
) -> None:
    import random

    assert isinstance(rng, random.Random)
    order = sorted(range(4, len(PACKETS) - 3), key=lambda index: index + rng.uniform(0, reach))
    packets = [*PACKETS[:4], *(PACKETS[index] for index in order), *PACKETS[-3:]]
    for index in copies:
        at = packets.index(PACKETS[index])
        packets.insert(rng.randint(at + 1, len(packets)), PACKETS[index])
    frames, decoder = decoded(packets)
    assert sorted(map(repr, contents(frames))) == sorted(map(repr, contents(decoded(PACKETS)[0])))
    assert decoder.summary.gaps == 0


@settings(max_examples=100)
@given(st.sets(st.integers(5, len(PACKETS) - 4), min_size=1, max_size=6))
def test_frames_around_lost_packets_are_right_or_marked(lost: set[int]) -> None:
    """Whatever is lost: what is shown as good was in the conversation, and the loss is told."""
    whole = {repr(row) for row in contents(decoded(PACKETS)[0])}
    frames, decoder = decoded(packet for i, packet in enumerate(PACKETS) if i not in lost)
    for frame, row in zip(fpdus(frames), contents(frames), strict=True):
        assert frame.crc != "bad"
        assert not frame.problems
        if frame.crc == "good":
            assert repr(row) in whole
    carried = any(len(PACKETS[index].octets) > 40 for index in lost)
    assert (decoder.summary.gaps > 0) == carried


@given(st.data())
def test_a_stream_full_of_holes_holds_no_more_than_its_window(data: st.DataObject) -> None:
    taken: list[int] = []

    class Sink:
        def data(self, octets: bytes) -> None:
            taken.append(len(octets))

        def missing(self, octets: int, *, cut: bool) -> None:
            taken.append(octets)

    stream = reassembly.HalfStream(Sink())
    stream.segment(0, 2, b"", 0)
    size = data.draw(st.integers(1, 60_000))
    step = data.draw(st.integers(size + 1, 2 * size + 1))
    for number in range(1, 2 * reassembly.WINDOW // (size + 128) + 2):
        stream.segment(number * step, 0, bytes(size), size)
        assert stream.held <= reassembly.WINDOW
        if number > 2000:
            break
    stream.finish()
    assert stream.held == 0


def test_a_capture_of_very_many_connections_is_followed_within_limits() -> None:
    def packets() -> list[Packet]:
        made = []
        for number in range(limits.MAX_CONNECTIONS + 500):
            octets = bytearray(segment(1000, 2, b"", back=False).octets)
            octets[20:22] = (number & 0xFFFF).to_bytes(2, "big")
            octets[19] = number >> 16
            made.append(Packet(0, bytes(octets), len(octets), 101))
        return made

    decoder = Decoder()
    assert list(decoder.decode(packets())) == []
    assert decoder.summary.tcp_streams == limits.MAX_CONNECTIONS + 500
