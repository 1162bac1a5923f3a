"""A capture of a device has what passed, with the checksums that it would have had on a wire."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from steertag.device import FaultDevice, dev_queue_xmit, memory_link
from steertag.device.frame import NETIF_F_ALL
from steertag.device.pcap import PacketFile, PcapDevice
from steertag.family.timer import TimerBase
from steertag.observe.pcap import LINKTYPE_ETHERNET, LINKTYPE_RAW, read_pcap
from tests.unit.device_frames import (
    checksum_is_right,
    ethernet,
    super_datagram,
    super_segment,
    tcp_of,
)

MACS = (b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2")
PAYLOAD = bytes(range(250)) * 10


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("features", [0, NETIF_F_ALL])
def test_super_segments_are_recorded_whole_with_their_checksums(
    version: int, features: int
) -> None:
    file = io.BytesIO()
    inner, far = memory_link(features=features)
    device = PcapDevice(inner, file)
    dev_queue_xmit(device, *super_segment(version, PAYLOAD, 1000))
    dev_queue_xmit(far, *super_segment(version, PAYLOAD, 1000))
    while device.receive() is not None:
        pass
    device.close()
    file.seek(0)
    packets = list(read_pcap(file))
    assert all(checksum_is_right(packet.octets) for packet in packets)
    assert {packet.linktype for packet in packets} == {LINKTYPE_RAW}
    assert len(packets) == (2 if features else 6)
    assert sum(len(tcp_of(packet.octets).payload) for packet in packets) == 2 * len(PAYLOAD)


@pytest.mark.parametrize("build", [super_segment, super_datagram])
def test_super_segments_are_recorded_cut_if_so_asked(build: object) -> None:
    file = io.BytesIO()
    inner, far = memory_link(addresses=MACS)
    device = PcapDevice(inner, file, whole=False)
    for sender in (device, far):
        dev_queue_xmit(sender, *build(4, PAYLOAD, 1000, ethernet(4)))  # type: ignore[operator]
    frame = device.receive()
    assert frame is not None
    assert frame.gso_size == 1000  # what goes up is what came
    device.flush()
    file.seek(0)
    packets = list(read_pcap(file))
    assert len(packets) == 6
    assert all(checksum_is_right(packet.octets, 14) for packet in packets)
    assert {packet.linktype for packet in packets} == {LINKTYPE_ETHERNET}


def test_a_frame_that_was_refused_is_not_recorded() -> None:
    file = io.BytesIO()
    inner, _ = memory_link(backlog=1)
    device = PcapDevice(inner, file)
    device.transmit([b"\x45first"])
    with pytest.raises(OSError, match="buffer"):
        device.transmit([b"\x45second"])
    device.flush()
    file.seek(0)
    assert [packet.octets for packet in read_pcap(file)] == [b"\x45first"]


def test_where_the_capture_stands_says_what_it_sees() -> None:
    """Outside of the faults it has what the Stack sent; inside, what was left of that."""
    seen = []
    for outside in (True, False):
        file = io.BytesIO()
        inner, _ = memory_link()
        device = inner if outside else PcapDevice(inner, file)
        device = FaultDevice(
            device, rng=random.Random(1), clock=lambda: 0.0, timers=TimerBase(), loss=0.5
        )
        device = PcapDevice(device, file) if outside else device
        for _ in range(100):
            device.transmit([b"\x45"])
        device.close()
        file.seek(0)
        seen.append(len(list(read_pcap(file))))
    assert seen[0] == 100
    assert 25 < seen[1] < 75


def test_hostile_frames_are_recorded_as_they_are() -> None:
    file = io.BytesIO()
    inner, far = memory_link()
    device = PcapDevice(inner, file)
    rng = random.Random(3)
    sent = [rng.randbytes(rng.randrange(1, 90)) for _ in range(200)]
    for octets in sent:
        far.transmit([octets])
        assert device.receive() is not None
    device.flush()
    file.seek(0)
    assert [packet.octets for packet in read_pcap(file)] == sent


class FullDisk(io.BytesIO):
    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, octets: object) -> int:
        self.room -= len(octets)  # type: ignore[arg-type]  # a buffer
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return super().write(octets)  # type: ignore[arg-type]  # a buffer


def test_a_full_disk_ends_the_capture_and_not_the_traffic() -> None:
    inner, far = memory_link()
    device = PcapDevice(inner, FullDisk(100))
    for _ in range(5):
        device.transmit([bytes(40)])
    assert device.failure is not None
    assert device.failure.errno == 28
    assert sum(far.receive() is not None for _ in range(9)) == 5


def test_packets_have_the_time_of_a_clock_or_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    with PacketFile(path, LINKTYPE_RAW, clock=lambda: 1234.5) as file:
        file.write_packet(b"\x45", b"xy")
    assert [(packet.time_ns, packet.octets) for packet in read_pcap(path)] == [
        (1_234_500_000_000, b"\x45xy")
    ]
    with PacketFile(path, LINKTYPE_RAW) as file:
        for _ in range(3):
            file.write_packet(b"\x45")
    file.write_packet(b"behind the end")
    assert [packet.time_ns for packet in read_pcap(path)] == [0, 1000, 2000]
