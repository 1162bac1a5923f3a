from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import pytest

from steertag.errors import WireError
from steertag.observe.pcap import (
    MAX_SNAPLEN,
    Endpoint,
    Packet,
    PcapWriter,
    TcpStream,
    read_pcap,
    tcp_streams,
)

CLIENT = Endpoint("10.0.0.1", 40000)
SERVER = Endpoint("10.0.0.2", 7471)


def capture(*, close: bool = True, mss: int = 1460) -> bytes:
    """A conversation of three turns, as a file's octets."""
    file = io.BytesIO()
    writer = PcapWriter(file)
    tap = writer.tap(CLIENT, SERVER, mss=mss)
    tap.sent(b"request" * 500)
    tap.received(memoryview(b"reply" * 700))
    tap.sent(bytearray(b"thanks"))
    if close:
        tap.close()
    writer.close()
    return file.getvalue()


def rebuilt(packets: list[Packet]) -> io.BytesIO:
    """A capture file of `packets`, written by the format's definition."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, MAX_SNAPLEN, packets[0].linktype)
    for packet in packets:
        out += struct.pack("<IIII", 0, 0, len(packet.octets), packet.length) + packet.octets
    return io.BytesIO(out)


def packets_of(octets: bytes) -> list[Packet]:
    return list(read_pcap(io.BytesIO(octets)))


WHOLE = TcpStream(CLIENT, SERVER, b"request" * 500 + b"thanks", b"reply" * 700, complete=True)


def test_what_a_tap_recorded_reads_back() -> None:
    assert tcp_streams(io.BytesIO(capture())) == [WHOLE]


def test_an_end_that_accepted_records_itself_as_the_server(tmp_path: Path) -> None:
    path = tmp_path / "server.pcap"
    with PcapWriter(path) as writer:
        tap = writer.tap(SERVER, CLIENT, initiator=False)
        tap.received(b"from the client")
        tap.sent(b"from the server")
    (stream,) = tcp_streams(path)
    assert (stream.client, stream.server) == (CLIENT, SERVER)
    assert (stream.sent, stream.received) == (b"from the client", b"from the server")


def test_a_connection_may_outlive_its_capture(tmp_path: Path) -> None:
    path = tmp_path / "short.pcap"
    with PcapWriter(path) as writer:
        tap = writer.tap(CLIENT, SERVER)
        tap.sent(b"recorded")
    tap.received(b"too late")
    tap.close()
    (stream,) = tcp_streams(path)
    assert (stream.sent, stream.received) == (b"recorded", b"")


@pytest.mark.parametrize(
    ("local", "remote"), [("2001:db8::1", "2001:db8::2"), ("fe80::1%eth0", "fe80::2%eth0")]
)
def test_a_connection_over_ipv6_reads_back(local: str, remote: str) -> None:
    file = io.BytesIO()
    tap = PcapWriter(file).tap(Endpoint(local, 1), Endpoint(remote, 2))
    tap.sent(b"question")
    tap.received(b"answer")
    tap.close()
    file.seek(0)
    (stream,) = tcp_streams(file)
    assert stream.client == (local.partition("%")[0], 1)
    assert (stream.sent, stream.received, stream.complete) == (b"question", b"answer", True)


def test_an_ipv4_address_in_ipv6_notation_is_recorded_as_ipv4() -> None:
    file = io.BytesIO()
    PcapWriter(file).tap(Endpoint("::ffff:10.0.0.1", 40000), SERVER).sent(b"x")
    file.seek(0)
    assert tcp_streams(file)[0].client == CLIENT


def test_ends_of_different_address_families_are_refused() -> None:
    with pytest.raises(ValueError, match="different families"):
        PcapWriter(io.BytesIO()).tap(CLIENT, Endpoint("2001:db8::2", 7471))


def test_a_view_of_wider_items_is_recorded_as_its_octets() -> None:
    file = io.BytesIO()
    PcapWriter(file).tap(CLIENT, SERVER).sent(memoryview(b"12345678").cast("I"))
    file.seek(0)
    assert tcp_streams(file)[0].sent == b"12345678"


def test_no_packet_holds_more_than_the_mss() -> None:
    assert max(len(packet.octets) for packet in packets_of(capture(mss=100))) == 14 + 20 + 20 + 100


@pytest.mark.parametrize("mss", [0, -1, 65496])
def test_an_mss_that_no_packet_can_have_is_refused(mss: int) -> None:
    with pytest.raises(ValueError, match="mss"):
        PcapWriter(io.BytesIO()).tap(CLIENT, SERVER, mss=mss)


def test_every_checksum_written_adds_up_to_all_ones() -> None:
    def folded(octets: bytes) -> int:  # RFC 1071 section 1, word by word
        total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return total

    for packet in packets_of(capture(mss=99)):
        ip, tcp = packet.octets[14:34], packet.octets[34:]
        pseudo = ip[12:20] + struct.pack("!BBH", 0, 6, len(tcp))
        assert folded(ip) == 0xFFFF
        assert folded(pseudo + tcp + b"\0" * (len(tcp) % 2)) == 0xFFFF


def test_the_checksum_over_ipv6_adds_up_to_all_ones() -> None:
    file = io.BytesIO()
    PcapWriter(file).tap(Endpoint("2001:db8::1", 1), Endpoint("2001:db8::2", 2)).sent(b"odd")
    for packet in packets_of(file.getvalue()):
        ip, tcp = packet.octets[14:54], packet.octets[54:]
        whole = ip[8:40] + struct.pack("!II", len(tcp), 6) + tcp + b"\0" * (len(tcp) % 2)
        assert sum(struct.unpack(f"!{len(whole) // 2}H", whole)) % 0xFFFF == 0


def test_packets_out_of_order_and_sent_twice_reassemble() -> None:
    packets = packets_of(capture(mss=200))
    shuffled = packets[:2] + random.Random(1).sample(packets[2:] * 2, 2 * len(packets[2:]))
    assert tcp_streams(rebuilt(shuffled)) == [WHOLE]


def test_sequence_numbers_that_wrap_reassemble() -> None:
    packets = packets_of(capture(mss=200))

    def shifted(packet: Packet) -> Packet:
        octets = bytearray(packet.octets)
        (seq,) = struct.unpack_from("!I", octets, 38)
        struct.pack_into("!I", octets, 38, (seq - 2000) & 0xFFFFFFFF)
        return Packet(packet.time_ns, bytes(octets), packet.length, packet.linktype)

    assert tcp_streams(rebuilt([shifted(packet) for packet in packets])) == [WHOLE]


def test_a_lost_packet_ends_the_stream_there() -> None:
    packets = packets_of(capture(mss=200))
    del packets[4]  # after the handshake: the second packet of data
    (stream,) = tcp_streams(rebuilt(packets))
    assert (stream.sent, stream.complete) == (WHOLE.sent[:200], False)
    assert stream.received == WHOLE.received


def test_a_packet_cut_by_the_snap_length_ends_the_stream_there() -> None:
    packets = packets_of(capture(mss=200, close=False))
    last = packets[-1]
    packets[-1] = Packet(last.time_ns, last.octets[:-3], last.length, last.linktype)
    (stream,) = tcp_streams(rebuilt(packets))
    assert (stream.sent, stream.complete) == (WHOLE.sent[:-3], False)


def test_a_second_connection_between_the_same_ports_is_its_own() -> None:
    packets = packets_of(capture())

    def later(packet: Packet) -> Packet:
        octets = bytearray(packet.octets)
        (seq,) = struct.unpack_from("!I", octets, 38)
        struct.pack_into("!I", octets, 38, seq + 100_000)
        return Packet(packet.time_ns, bytes(octets), packet.length, packet.linktype)

    assert tcp_streams(rebuilt(packets + [later(packet) for packet in packets])) == [WHOLE, WHOLE]


def test_a_capture_that_begins_in_mid_connection_reads_from_there() -> None:
    packets = packets_of(capture(mss=200))[4:]
    (stream,) = tcp_streams(rebuilt(packets))
    assert (stream.sent, stream.complete) == (WHOLE.sent[200:], True)


def test_raw_ip_captures_read_like_ethernet_ones() -> None:
    packets = [
        Packet(packet.time_ns, packet.octets[14:], packet.length - 14, 101)
        for packet in packets_of(capture())
    ]
    assert tcp_streams(rebuilt(packets)) == [WHOLE]


@pytest.mark.parametrize(
    ("order", "magic", "fraction"),
    [("<", 0xA1B2C3D4, 250_000), (">", 0xA1B2C3D4, 250_000), (">", 0xA1B23C4D, 250_000_000)],
)
def test_both_byte_orders_and_both_units_of_time_are_read(
    order: str, magic: int, fraction: int
) -> None:
    octets = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    octets += struct.pack(order + "IIII", 7, fraction, 3, 9) + b"abc"
    assert packets_of(octets) == [Packet(7_250_000_000, b"abc", 9, 1)]


def test_time_stamps_are_the_clocks() -> None:
    file = io.BytesIO()
    PcapWriter(file, clock=lambda: 1_700_000_000.5).write_packet(b"abc", b"def")
    (packet,) = packets_of(file.getvalue())
    assert (packet.time, packet.octets) == (1_700_000_000.5, b"abcdef")


@pytest.mark.parametrize(
    ("octets", "says"),
    [
        (b"", "too few"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", "magic number"),
        (capture()[:-1], "ends after"),
        (capture()[:30], "cut short"),
        (capture()[:24] + struct.pack("<IIII", 0, 0, MAX_SNAPLEN + 1, 1), "262145"),
    ],
)
def test_a_file_that_is_no_capture_is_a_wire_error(octets: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        packets_of(octets)
