"""Faults: what a seeded link does, and that nothing else does it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from steertag import Stack
from steertag.device import (
    FaultDevice,
    Faults,
    Frame,
    MemoryDevice,
    dev_queue_xmit,
    memory_link,
    register_netdevice,
)
from steertag.device.frame import CHECKSUM_PARTIAL, NETIF_F_ALL
from steertag.errors import StateError
from steertag.family.timer import TimerBase
from tests.unit.device_frames import checksum_is_right, segment, super_segment, tcp_of

COUNT = 2000


class Line:
    """A link whose left end has faults; time passes when it is told to."""

    def __init__(self, seed: int = 7, *, features: int = NETIF_F_ALL, **faults: object) -> None:
        self.now = 100.0
        self.timers = TimerBase()
        self.inner, self.far = memory_link(features=features)
        self.device = FaultDevice(
            self.inner,
            rng=random.Random(seed),
            clock=lambda: self.now,
            timers=self.timers,
            **faults,  # type: ignore[arg-type]  # as each test gives them
        )

    def send(self, count: int = COUNT, size: int = 20) -> None:
        for number in range(count):
            self.device.transmit([number.to_bytes(4, "big") + bytes(size - 4)])

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.timers.deadline) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.timers.run(self.now)
        self.now = end

    def arrived(self) -> list[int]:
        return [int.from_bytes(octets[:4], "big") for octets in self.octets()]

    def octets(self) -> list[bytes]:
        return [bytes(frame.data) for frame in frames_of(self.far.receive)]


def frames_of(receive: Callable[[], Frame | None]) -> list[Frame]:
    found = []
    while (frame := receive()) is not None:
        found.append(frame)
    return found


def test_without_faults_everything_passes_at_once() -> None:
    line = Line()
    line.send(10)
    assert line.arrived() == list(range(10))
    assert line.timers.deadline is None


EVERYTHING = {
    "loss": 0.1,
    "duplicate": 0.1,
    "corrupt": 0.1,
    "reorder": 0.1,
    "delay": 0.01,
    "jitter": 0.01,
}


def test_the_same_seed_does_the_same() -> None:
    def run(seed: int) -> list[bytes]:
        line = Line(
            seed, loss=0.1, duplicate=0.1, corrupt=0.1, reorder=0.1, delay=0.01, jitter=0.01
        )
        line.send(300)
        line.pass_time(1)
        return line.octets()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_loss_loses_its_share() -> None:
    line = Line(loss=0.2)
    line.send()
    arrived = line.arrived()
    lost = line.device.sent.lost
    assert lost + len(arrived) == COUNT
    assert 0.15 < lost / COUNT < 0.25
    assert arrived == sorted(set(arrived))
    assert line.device.received.lost == 0


def test_everything_can_be_lost() -> None:
    line = Line(loss=1.0)
    line.send(50)
    assert line.arrived() == []
    assert line.device.sent.lost == 50


def test_losses_in_bursts_come_in_bursts() -> None:
    line = Line(loss=0.02, burst_exit=0.2, limit=COUNT)
    line.send()
    arrived = set(line.arrived())
    runs = "".join("." if number in arrived else "x" for number in range(COUNT)).split(".")
    bursts = [len(run) for run in runs if run]
    assert 3 < sum(bursts) / len(bursts) < 8  # 1 / burst_exit is 5


def test_a_burst_may_lose_a_part_only() -> None:
    lost = []
    for burst_loss in (1.0, 0.5, 0.0):
        line = Line(loss=0.05, burst_exit=0.1, burst_loss=burst_loss)
        line.send()
        lost.append(line.device.sent.lost)
    assert lost[0] > lost[1] > lost[2] == 0


def test_duplicates_arrive_twice() -> None:
    line = Line(duplicate=0.25)
    line.send()
    arrived = line.arrived()
    twice = line.device.sent.duplicated
    assert len(arrived) == COUNT + twice
    assert set(arrived) == set(range(COUNT))
    assert 0.2 < twice / COUNT < 0.3


def test_corruption_flips_one_bit() -> None:
    line = Line(corrupt=0.5)
    line.send(400)
    damaged = 0
    for number, octets in enumerate(line.octets()):
        sent = number.to_bytes(4, "big") + bytes(16)
        flipped = (int.from_bytes(octets, "big") ^ int.from_bytes(sent, "big")).bit_count()
        assert flipped in (0, 1)
        damaged += flipped
    assert damaged == line.device.sent.corrupted
    assert 150 < damaged < 250


def test_reordered_packets_are_overtaken_and_none_is_lost() -> None:
    line = Line(reorder=0.1, delay=0.001)
    for number in range(200):
        line.device.transmit([number.to_bytes(4, "big")])
        line.pass_time(0.001)
    line.pass_time(1)
    arrived = line.arrived()
    assert sorted(arrived) == list(range(200))
    late = [n for at, n in enumerate(arrived) if any(m > n for m in arrived[:at])]
    assert 0 < len(late) <= line.device.sent.reordered


def test_a_delayed_packet_arrives_in_its_time() -> None:
    line = Line(delay=0.05)
    line.send(3)
    line.pass_time(0.049)
    assert line.arrived() == []
    line.pass_time(0.0011)
    assert line.arrived() == [0, 1, 2]
    assert line.timers.deadline is None


def test_jitter_keeps_the_order_and_its_bounds() -> None:
    line = Line(delay=0.05, jitter=0.02)
    line.send(100)
    line.pass_time(0.0299)
    assert line.arrived() == []
    line.pass_time(0.0402)
    assert line.arrived() == list(range(100))


def test_a_rate_spaces_packets() -> None:
    line = Line(rate=8000.0)  # 1000 octets a second
    line.send(5, size=100)
    for expected in range(5):
        line.pass_time(0.1 + 1e-9)
        assert line.arrived() == [expected]


def test_what_does_not_fit_on_the_way_is_lost() -> None:
    line = Line(delay=1.0, limit=10)
    line.send(15)
    assert line.device.sent.overlimits == 5
    line.pass_time(1.1)
    assert line.arrived() == list(range(10))


def test_packets_longer_than_a_hidden_mtu_vanish() -> None:
    line = Line(mtu=100)
    for size in (99, 100, 101):
        line.device.transmit([bytes(size)])
    assert [len(octets) for octets in line.octets()] == [99, 100]
    assert line.device.sent.too_long == 1
    assert line.device.mtu == line.inner.mtu


def test_each_way_has_its_own_faults() -> None:
    line = Line(transmit=Faults(loss=1.0), receive=Faults(duplicate=1.0))
    line.send(5)
    line.far.transmit([b"hello"])
    assert line.octets() == []
    assert [bytes(frame.data) for frame in frames_of(line.device.receive)] == [b"hello", b"hello"]
    assert (line.device.sent.lost, line.device.received.duplicated) == (5, 1)


def test_traffic_one_way_changes_nothing_on_the_other() -> None:
    def lost(backwards: int) -> list[int]:
        line = Line(loss=0.5)
        for _ in range(backwards):
            line.far.transmit([b"x"])
        frames_of(line.device.receive)
        line.send(100)
        return line.arrived()

    assert lost(0) == lost(77)


@pytest.mark.parametrize("features", [0, NETIF_F_ALL])
def test_super_segments_are_cut_and_each_packet_has_its_own_fate(features: int) -> None:
    line = Line(loss=0.5, features=features)
    payload = bytes(range(250)) * 200
    dev_queue_xmit(line.device, *super_segment(4, payload, 1000))
    sent = line.octets()
    assert 10 < len(sent) < 40
    assert all(checksum_is_right(packet) for packet in sent)
    assert {len(tcp_of(packet).payload) for packet in sent} == {1000}
    dev_queue_xmit(line.far, *super_segment(4, payload, 1000))
    received = frames_of(line.device.receive)
    assert 10 < len(received) < 40
    assert all(checksum_is_right(bytes(frame.data)) for frame in received)
    assert {frame.csum for frame in received} == {0}


def test_faults_of_time_alone_leave_super_segments_whole() -> None:
    line = Line(delay=0.01)
    parts, offload = super_segment(4, bytes(50000), 1000)
    dev_queue_xmit(line.device, parts, offload)
    offload.csum_start = 0  # the caller's again
    dev_queue_xmit(line.far, *super_segment(4, bytes(50000), 1000))
    assert frames_of(line.device.receive) == []
    line.pass_time(0.02)
    for frames in (frames_of(line.far.receive), frames_of(line.device.receive)):
        assert [(len(one), one.csum, one.gso_size) for one in frames] == [
            (50052, CHECKSUM_PARTIAL, 1000)
        ]


def test_super_segments_may_share_one_fate() -> None:
    line = Line(loss=0.5, whole=True)
    for _ in range(100):
        dev_queue_xmit(line.device, *super_segment(4, bytes(5000), 1000))
    frames = frames_of(line.far.receive)
    assert len(frames) + line.device.sent.lost == 100
    assert {frame.gso_size for frame in frames} == {1000}


@pytest.mark.parametrize("whole", [None, True])
def test_a_flipped_bit_does_not_escape_the_checksum(whole: bool | None) -> None:
    """Whatever was left to the device is summed up before it is damaged."""
    line = Line(corrupt=1.0, whole=whole)
    for _ in range(200):
        dev_queue_xmit(line.device, *super_segment(4, bytes(20), 0))
        dev_queue_xmit(line.far, *super_segment(4, bytes(20), 0))
    frames = frames_of(line.far.receive) + frames_of(line.device.receive)
    assert len(frames) == 400
    undetected = [
        frame for frame in frames if frame.data[0] == 0x45 and checksum_is_right(bytes(frame.data))
    ]
    assert undetected == []
    assert {frame.csum for frame in frames} == {0}


def test_a_delayed_frame_wakes_the_stack_that_receives_it() -> None:
    line = Line(delay=0.5)
    stack = Stack(clock=lambda: line.now)
    frames: list[bytes] = []
    register_netdevice(stack, line.device, lambda frame: frames.append(bytes(frame.data)))
    line.far.transmit([b"slow"])
    assert frames == []
    with stack.lock:
        line.pass_time(0.6)
    assert frames == [b"slow"]
    assert stack.devices == {"mem0": line.device}


def test_more_frames_than_one_go_takes_all_arrive() -> None:
    line = Line(duplicate=0.01)
    for number in range(1000):
        line.far.transmit([number.to_bytes(4, "big")])
    frames: list[bytes] = []
    register_netdevice(Stack(), line.device, lambda frame: frames.append(bytes(frame.data)))
    assert len(frames) == 1000 + line.device.received.duplicated


def test_what_the_inner_device_refuses_is_counted() -> None:
    line = Line(loss=0.0)
    line.far.close()
    line.send(3)
    assert line.device.sent.refused == 3
    with pytest.raises(OSError, match="too long"):
        line.device.transmit([bytes(70000)])


def test_closing_ends_what_was_on_its_way() -> None:
    line = Line(delay=1.0)
    line.send(3)
    line.far.transmit([b"x"])
    assert line.device.receive() is None
    line.device.close()
    line.pass_time(5)
    assert line.timers.pending == 0
    assert line.octets() == []
    assert not line.inner.up


def test_faults_nest_and_count_once() -> None:
    line = Line(loss=0.5)
    outer = FaultDevice(
        line.device,
        rng=random.Random(1),
        clock=lambda: line.now,
        timers=line.timers,
        duplicate=1.0,
    )
    for _ in range(100):
        outer.transmit([segment(bytes(10))])
    assert line.device.sent.lost + line.device.sent.passed == 200
    assert outer.stats.tx_packets == line.device.sent.passed


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": 1.1},
        {"corrupt": -0.1},
        {"delay": -1.0},
        {"rate": 0.0},
        {"limit": 0},
        {"mtu": 0},
        {"burst_loss": 2.0},
    ],
    ids=str,
)
def test_faults_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(StateError):
        Faults(**wrong)  # type: ignore[arg-type]  # on purpose
    device = MemoryDevice("mem0")
    with pytest.raises(StateError):
        FaultDevice(
            device,
            rng=random.Random(1),
            clock=lambda: 0.0,
            timers=TimerBase(),
            **wrong,  # type: ignore[arg-type]  # on purpose
        )
