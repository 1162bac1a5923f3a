from __future__ import annotations

import contextlib
import io
import struct

from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.observe.pcap import Endpoint, PcapWriter, tcp_streams

FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
ENDPOINTS = st.builds(
    Endpoint, st.ip_addresses(v=4).map(str), st.integers(min_value=0, max_value=0xFFFF)
)


@given(
    turns=st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=12),
    mss=st.integers(1, 400),
    ends=st.lists(ENDPOINTS, min_size=2, max_size=2, unique=True),
)
def test_reading_inverts_writing(
    turns: list[tuple[bool, bytes]], mss: int, ends: list[Endpoint]
) -> None:
    file = io.BytesIO()
    tap = PcapWriter(file).tap(ends[0], ends[1], mss=mss)
    for outwards, octets in turns:
        (tap.sent if outwards else tap.received)(octets)
    tap.close()
    file.seek(0)
    (stream,) = tcp_streams(file)
    assert (stream.client, stream.server, stream.complete) == (ends[0], ends[1], True)
    assert stream.sent == b"".join(octets for outwards, octets in turns if outwards)
    assert stream.received == b"".join(octets for outwards, octets in turns if not outwards)


@given(st.binary(max_size=200))
def test_hostile_files_raise_only_wire_errors(octets: bytes) -> None:
    with contextlib.suppress(WireError):
        tcp_streams(io.BytesIO(octets))
    with contextlib.suppress(WireError):
        tcp_streams(io.BytesIO(FILE_HEADER + octets))


@given(
    packets=st.lists(st.binary(max_size=80), max_size=8), ethernet=st.booleans(), ipv4=st.booleans()
)
def test_hostile_packets_raise_nothing(packets: list[bytes], ethernet: bool, ipv4: bool) -> None:
    """With the first octets of IPv4 and TCP's protocol number, the deeper readers are reached."""
    octets = FILE_HEADER if ethernet else FILE_HEADER[:20] + struct.pack("<I", 101)
    for packet in packets:
        if ipv4:
            packet = b"\x45" + packet[:5] + b"\0\0\x40\x06" + packet[5:]
        if ethernet:
            packet = b"\2" * 12 + b"\x08\x00" + packet
        octets += struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet
    for stream in tcp_streams(io.BytesIO(octets)):
        assert len(stream.sent) + len(stream.received) <= 2 * sum(map(len, packets))


@given(cuts=st.data())
def test_any_flipped_octet_of_a_capture_is_survived(cuts: st.DataObject) -> None:
    file = io.BytesIO()
    tap = PcapWriter(file).tap(Endpoint("10.0.0.1", 1), Endpoint("10.0.0.2", 2), mss=10)
    tap.sent(b"a" * 25)
    octets = bytearray(file.getvalue())
    at = cuts.draw(st.integers(0, len(octets) - 1))
    octets[at] ^= cuts.draw(st.integers(1, 0xFF))
    with contextlib.suppress(WireError):
        tcp_streams(io.BytesIO(octets))
