"""What a device does not do is done in software, and undone on the other side."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.device.frame import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Frame, Offload
from steertag.device.gro import Gro
from steertag.device.gso import segments
from steertag.wire import tcp
from steertag.wire.checksum import partial_parts, pseudo_v6

V4 = tuple(ipaddress.ip_address(a).packed for a in ("10.0.0.1", "10.0.0.2"))
V6 = tuple(ipaddress.ip_address(a).packed for a in ("fd00::1", "fd00::2"))


def ip_header(version: int, protocol: int, length: int) -> bytes:
    if version == 4:
        header = bytearray(bytes((0x45, 0)) + (20 + length).to_bytes(2, "big") + bytes(4))
        header += bytes((64, protocol, 0, 0)) + V4[0] + V4[1]
        header[10:12] = (partial_parts([bytes(header)]) ^ 0xFFFF).to_bytes(2, "big")
        return bytes(header)
    header6 = bytes((0x60, 0, 0, 0)) + length.to_bytes(2, "big") + bytes((protocol, 64))
    return header6 + V6[0] + V6[1]


def super_segment(
    version: int, payload: bytes, mss: int, l2: bytes = b"", *, flags: int = tcp.ACK, seq: int = 7
) -> tuple[list[bytes], Offload]:
    ends = V4 if version == 4 else V6
    options = tcp.timestamps_option(1, 2)
    length = 20 + len(options) + len(payload)
    pseudo = pseudo_v6(ends[0], ends[1], 6, length)
    header = tcp.emit(1000, 2000, seq, 9, flags, 512, options, checksum=pseudo)
    network = l2 + ip_header(version, 6, length)
    kind = GSO_TCPV4 if version == 4 else GSO_TCPV6
    offload = Offload(len(network), 16, kind, mss, len(network) + len(header))
    return [network + header, payload], offload


def checksum_is_right(packet: bytes, l3: int) -> bool:
    version = packet[l3] >> 4
    l4 = l3 + (20 if version == 4 else 40)
    addresses = packet[l3 + 12 : l4] if version == 4 else packet[l3 + 8 : l4]
    protocol = packet[l3 + 9] if version == 4 else packet[l3 + 6]
    pseudo = pseudo_v6(addresses, b"", protocol, len(packet) - l4)
    if version == 4 and partial_parts([packet[l3:l4]]) != 0xFFFF:
        return False
    return partial_parts([packet[l4:]], pseudo) == 0xFFFF


versions = st.sampled_from((4, 6))


@given(version=versions, payload=st.binary(min_size=1, max_size=5000), mss=st.integers(1, 1500))
def test_every_segment_has_its_own_lengths_and_checksums(
    version: int, payload: bytes, mss: int
) -> None:
    parts, offload = super_segment(version, payload, mss, flags=tcp.ACK | tcp.PSH | tcp.CWR)
    cut = [b"".join(piece) for piece in segments(parts, offload, 0)]
    assert len(cut) == -(-len(payload) // mss)
    at = 0
    for number, packet in enumerate(cut):
        assert checksum_is_right(packet, 0)
        l4 = 20 if version == 4 else 40
        segment = tcp.parse_untrusted(memoryview(packet)[l4:])
        assert segment.seq == 7 + at
        at += len(segment.payload)
        last = number == len(cut) - 1
        assert bool(segment.flags & tcp.PSH) == last
        assert bool(segment.flags & tcp.CWR) == (number == 0)
    assert at == len(payload)


@given(
    version=versions,
    payload=st.binary(min_size=1, max_size=9000),
    mss=st.integers(1, 1500),
    seq=st.sampled_from((7, 2**32 - 3)),
    ethernet=st.booleans(),
)
def test_what_was_cut_is_put_together_again(
    version: int, payload: bytes, mss: int, seq: int, ethernet: bool
) -> None:
    l2 = b""
    if ethernet:
        l2 = b"abcdefghijkl" + (b"\x08\x00" if version == 4 else b"\x86\xdd")
    parts, offload = super_segment(version, payload, mss, l2, flags=tcp.ACK | tcp.PSH, seq=seq)
    delivered: list[Frame] = []
    gro = Gro(delivered.append, len(l2))
    for piece in segments(parts, offload, len(l2)):
        gro.receive(Frame(memoryview(b"".join(piece))))
    gro.flush()
    assert len(delivered) == 1
    whole = delivered[0]
    l4 = len(l2) + (20 if version == 4 else 40)
    segment = tcp.parse_untrusted(whole.data[l4:])
    assert (bytes(segment.payload), segment.seq) == (payload, seq)
    assert segment.flags & tcp.PSH
    assert whole.gso_size in (0, mss)
    assert whole.csum or not whole.gso_size
    if version == 4:
        assert partial_parts([whole.data[len(l2) : l4]]) == 0xFFFF


@pytest.mark.parametrize("change", ["seq", "ack", "window", "options", "checksum", "flow"])
def test_what_does_not_follow_stays_by_itself(change: str) -> None:
    def packet(**fields: int) -> bytes:
        given = {"seq": 7, "ack": 9, "port": 1000, "tsval": 1, "window": 512} | fields
        options = tcp.timestamps_option(given["tsval"], 2)
        length = 20 + len(options) + 100
        pseudo = pseudo_v6(*V4, 6, length)
        body = bytes(100)
        header = tcp.emit(
            given["port"], 2000, given["seq"], given["ack"], tcp.ACK, given["window"], options
        )
        check = partial_parts([header, body], pseudo) ^ 0xFFFF ^ (change == "checksum" and 1)
        header = header[:16] + check.to_bytes(2, "big") + header[18:]
        return ip_header(4, 6, length) + header + body

    changed = {
        "seq": {"seq": 300},
        "ack": {"seq": 107, "ack": 10},
        "window": {"seq": 107, "window": 600},
        "options": {"seq": 107, "tsval": 5},
        "checksum": {"seq": 107},
        "flow": {"seq": 107, "port": 1001},
    }[change]
    delivered: list[Frame] = []
    gro = Gro(delivered.append)
    gro.receive(Frame(memoryview(packet())))
    gro.receive(Frame(memoryview(packet(**changed))))
    gro.flush()
    assert len(delivered) == 2
    if change == "checksum":
        assert not any(frame.csum for frame in delivered)


@given(st.lists(st.binary(max_size=120), max_size=10), st.sampled_from((0, 14)))
def test_hostile_frames_pass_unharmed(frames: list[bytes], l3: int) -> None:
    delivered: list[bytes] = []
    gro = Gro(lambda frame: delivered.append(bytes(frame.data)), l3)
    for octets in frames:
        gro.receive(Frame(memoryview(octets)))
    gro.flush()
    assert delivered == frames


def test_a_udp_super_datagram_is_cut_into_datagrams() -> None:
    payload = bytes(range(250))
    length = 8 + len(payload)
    pseudo = pseudo_v6(*V4, 17, length)
    header = b"".join(n.to_bytes(2, "big") for n in (1, 2, length, pseudo))
    parts = [ip_header(4, 17, length) + header, payload]
    cut = [b"".join(p) for p in segments(parts, Offload(20, 6, GSO_UDP_L4, 100, 28), 0)]
    assert [packet[28:] for packet in cut] == [payload[:100], payload[100:200], payload[200:]]
    assert all(checksum_is_right(packet, 0) for packet in cut)
    assert [int.from_bytes(packet[24:26], "big") for packet in cut] == [108, 108, 58]
