"""Capture files of every kind are read; what is none is told."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
from collections.abc import Callable

import pytest

from steertag.errors import WireError
from steertag.observe.capture import Packet, read_capture
from tests.decode_support import (
    LINK_LAYERS,
    Talk,
    as_ipv6,
    block,
    contents,
    decoded,
    enhanced,
    every_operation,
    framed,
    interface,
    option,
    pcap,
    pcapng,
    section,
)

PACKET = Packet(1_700_000_000_123_456_000, b"abcde", 9, 101)


def read(octets: bytes) -> list[Packet]:
    return list(read_capture(io.BytesIO(octets)))


def talk() -> Talk:
    made = Talk()
    every_operation(made)
    made.close()
    return made


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_pcapng_packet_is_read_in_either_byte_order(order: str) -> None:
    assert read(pcapng([PACKET], order=order)) == [PACKET]


@pytest.mark.parametrize("order", ["<", ">"])
def test_libpcap_with_nanoseconds_keeps_them(order: str) -> None:
    packet = PACKET._replace(time_ns=PACKET.time_ns + 789)
    assert read(pcap([packet], order=order, nanoseconds=True)) == [packet]


@pytest.mark.parametrize(
    ("options", "units", "time_ns"),
    [
        (b"", 1_500_000, 1_500_000_000),  # microseconds unless said otherwise
        (option(9, b"\x09"), 1_500_000, 1_500_000),
        (option(9, b"\x03"), 1_500, 1_500_000_000),
        (option(9, b"\x8a"), 1_536, 1_500_000_000),  # 2**-10 seconds
        (option(14, struct.pack("<q", 100)), 7, 100_000_007_000),
        (option(2, b"eth0") + option(9, b"\x06") + option(0, b""), 1, 1_000),
    ],
)
def test_the_time_resolution_and_offset_of_an_interface_count(
    options: bytes, units: int, time_ns: int
) -> None:
    octets = section() + interface(101, options) + enhanced(0, units, PACKET)
    assert read(octets) == [PACKET._replace(time_ns=time_ns)]


def test_interfaces_are_numbered_anew_in_each_section() -> None:
    octets = section() + interface(1) + interface(113) + enhanced(1, 0, PACKET)
    octets += section(">") + interface(276, order=">") + enhanced(0, 0, PACKET, ">")
    assert [packet.linktype for packet in read(octets)] == [113, 276]


def test_simple_and_obsolete_packet_blocks_are_read_and_others_passed_over() -> None:
    octets = section() + interface(101, snaplen=5)
    octets += enhanced(0, 3, PACKET)
    octets += block(4, b"names of hosts")
    octets += block(0x0BAD, b"somebody's own")
    octets += block(3, struct.pack("<I", 9) + b"abcde")
    octets += block(2, struct.pack("<HHIIII", 0, 7, 0, 5, 5, 9) + b"abcde")
    assert [packet.time_ns for packet in read(octets)] == [3000, 3000, 5000]
    assert {packet[1:] for packet in read(octets)} == {PACKET[1:]}


@pytest.mark.parametrize("make", [pcap, pcapng])
@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_compressed_captures_are_read(
    make: Callable[[list[Packet]], bytes], compress: Callable[[bytes], bytes]
) -> None:
    packets = talk().packets
    assert read(compress(make(packets))) == packets
    twice = compress(make(packets)[:1000]) + compress(make(packets)[1000:])
    assert read(twice) == packets


class Trickle(io.RawIOBase):
    """A pipe: it can't seek, and gives little at a time."""

    def __init__(self, octets: bytes) -> None:
        self._octets = io.BytesIO(octets)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._octets.readinto(buffer[:7])


@pytest.mark.parametrize("change", [bytes, gzip.compress, lzma.compress])
def test_a_pipe_will_do(change: Callable[[bytes], bytes]) -> None:
    packets = talk().packets
    pipe = io.BufferedReader(Trickle(change(pcapng(packets))))
    assert list(read_capture(pipe)) == packets


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_a_compressed_capture_that_is_cut_gives_what_is_there(
    compress: Callable[[bytes], bytes],
) -> None:
    packets = talk().packets
    found: list[Packet] = []
    with pytest.raises(WireError, match="decompress"):
        found.extend(read_capture(io.BytesIO(compress(pcap(packets))[:-12])))
    assert found
    assert found == packets[: len(found)]


HEAD = section() + interface(101)


@pytest.mark.parametrize(
    ("octets", "says"),
    [
        (b"\x0a\x0d\x0d\x0a", "ends 4 octets early"),
        (section()[:8] + b"ABCD" + section()[12:], "byte-order magic"),
        (HEAD + b"\6\0", "cut short"),
        (HEAD + enhanced(0, 0, PACKET)[:-1], "early"),
        (HEAD + enhanced(0, 0, PACKET)[:-4] + b"\1\0\0\0", "two different lengths"),
        (HEAD + enhanced(1, 0, PACKET), "interface 1"),
        (HEAD + block(6, bytes(16)), "too short"),
        (HEAD + block(6, struct.pack("<IIIII", 0, 0, 0, 100, 100)), "100 octets"),
        (HEAD + struct.pack("<II", 6, 13), "of 13 octets"),
        (HEAD + struct.pack("<II", 6, 1 << 30), "octets"),
        (block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 2, 0, -1)), "version 2"),
        (gzip.compress(pcap([PACKET]), mtime=0)[:-9], "decompress"),
        (gzip.compress(pcap([PACKET]), mtime=0)[:9] + bytes(40), "decompress"),
        (lzma.compress(pcap([PACKET]))[:-3], "decompress"),
        (lzma.compress(pcap([PACKET]))[:9] + bytes(40), "decompress"),
        (gzip.compress(b"hello, hello, hello, hello", mtime=0), "magic number"),
    ],
)
def test_what_is_no_capture_is_a_wire_error(octets: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        read(octets)


def test_what_is_before_the_end_of_a_cut_file_is_read() -> None:
    reader = read_capture(io.BytesIO(pcapng([PACKET, PACKET])[:-1]))
    assert next(reader) == PACKET
    with pytest.raises(WireError):
        next(reader)


@pytest.mark.parametrize("layer", LINK_LAYERS)
def test_every_link_layer_brings_the_same_frames(layer: str) -> None:
    packets = talk().packets
    raw, _ = decoded(packets)
    other, decoder = decoded([framed(packet, layer) for packet in packets])
    assert contents(other) == contents(raw)
    assert decoder.summary.bad == 0


@pytest.mark.parametrize(
    ("extensions", "first"),
    [
        (b"", 6),
        (b"\x06\x00" + bytes(6), 0),
        (b"\x2b\x00" + bytes(6) + b"\x3c\x02" + bytes(22) + b"\x06\x00" + bytes(6), 0),
        (b"\x06\x04" + bytes(22), 51),  # an authentication header counts in 4 octets
        (b"\x06\x00" + bytes(6), 44),
    ],
)
def test_ipv6_with_extension_headers_brings_the_same_frames(extensions: bytes, first: int) -> None:
    packets = talk().packets
    raw, _ = decoded(packets)
    other, decoder = decoded([as_ipv6(packet, extensions, first) for packet in packets])
    assert [row[1:] for row in contents(other)] == [row[1:] for row in contents(raw)]
    assert {frame.link.source.host for frame in other} == {"2001:db8::a00:1", "2001:db8::a00:2"}
    assert decoder.summary.bad == 0


def test_fragments_and_unknown_link_types_are_counted() -> None:
    packets = talk().packets
    fragment = bytearray(packets[5].octets)
    fragment[6] |= 0x20
    ipv6 = as_ipv6(packets[5], b"\x06\x00\x00\x01" + bytes(4), 44)
    strange = [packet._replace(linktype=147) for packet in packets[:3]]
    _, decoder = decoded([packets[5]._replace(octets=bytes(fragment)), ipv6, *strange])
    assert decoder.summary.fragments == 2
    assert decoder.summary.unknown_linktypes == {147: 3}
    assert decoder.summary.tcp_streams == 0


def test_a_segment_larger_than_ip_can_say_is_read() -> None:
    """Segmentation offload makes such packets: their length field is 0."""
    made = Talk(mss=60000)
    made.client.tagged(payload=bytes(50000))
    packets = made.packets
    large = bytearray(packets[-1].octets)
    large[2:4] = b"\0\0"
    frames, _ = decoded([*packets[:-1], packets[-1]._replace(octets=bytes(large))])
    assert contents(frames)[0][-2:] == (50000, "good")


def test_padding_of_a_short_ethernet_frame_is_no_payload() -> None:
    made = Talk()
    made.client.untagged(payload=b"after an acknowledgement that is padded")
    packets = [framed(packet, "ethernet") for packet in made.packets]
    padded = [packet._replace(octets=packet.octets.ljust(60, b"\xaa")) for packet in packets]
    frames, decoder = decoded(padded)
    assert contents(frames) == contents(decoded(packets)[0])
    assert decoder.summary.bad == 0
