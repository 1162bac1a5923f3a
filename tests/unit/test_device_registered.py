"""A registered device: turns, counters, and what its protocol is given."""

from __future__ import annotations

import pytest

from steertag import Stack
from steertag.device import (
    Frame,
    MemoryDevice,
    dev_queue_xmit,
    loopback,
    memory_link,
    netdev_poll,
    register_netdevice,
    unregister_netdevice,
)
from steertag.device.frame import ARPHRD_ETHER, ARPHRD_LOOPBACK, ARPHRD_NONE
from steertag.errors import ProtocolError, WireError
from tests.unit.device_frames import ethernet, segment, super_segment, tcp_of


class Receiver:
    """Args:
    fail: what to raise on every frame.
    """

    def __init__(self, fail: Exception | None = None) -> None:
        self.frames: list[Frame] = []
        self.turns: list[int] = []
        self._fail = fail

    def receive(self, frame: Frame) -> None:
        self.frames.append(frame)
        if self._fail is not None:
            raise self._fail

    def complete(self) -> None:
        self.turns.append(len(self.frames))


def registered(
    device: MemoryDevice, receiver: Receiver, stack: Stack | None = None, *, budget: int = 300
) -> Stack:
    stack = stack or Stack()
    stack.sysctl.write("net.core.netdev_budget", str(budget))
    register_netdevice(stack, device, receiver.receive, receiver.complete)
    return stack


def test_what_came_before_the_registration_is_received() -> None:
    ours, theirs = memory_link()
    ours.transmit([b"early"])
    receiver = Receiver()
    registered(theirs, receiver)
    assert [bytes(frame.data) for frame in receiver.frames] == [b"early"]


def test_a_turn_has_a_budget_and_is_completed_once() -> None:
    ours, theirs = memory_link(features=0)
    for number in range(7):
        ours.transmit([bytes((number,))])
    receiver = Receiver()
    registered(theirs, receiver, budget=3)
    assert receiver.turns == [3, 6, 7]
    assert theirs.stats.rx_packets == 7


def test_a_turn_without_frames_is_not_completed() -> None:
    _, theirs = memory_link()
    receiver = Receiver()
    stack = registered(theirs, receiver)
    assert not netdev_poll(stack, theirs)
    assert receiver.turns == []


def test_segments_of_one_turn_are_joined_where_checksums_are_not_verified() -> None:
    for features, count in ((0, 1), (31, 4)):
        ours, theirs = memory_link(features=features)
        for number in range(4):
            ours.transmit([segment(bytes(100), seq=7 + 100 * number)])
        receiver = Receiver()
        registered(theirs, receiver)
        assert len(receiver.frames) == count
        assert sum(len(tcp_of(frame.data).payload) for frame in receiver.frames) == 400
        assert receiver.turns == [count]
        assert theirs.stats.rx_packets == 4


def test_a_device_may_leave_segments_as_they_came() -> None:
    ours, theirs = memory_link(features=0)
    theirs.gro = False
    for number in range(4):
        ours.transmit([segment(bytes(100), seq=7 + 100 * number)])
    receiver = Receiver()
    registered(theirs, receiver)
    assert len(receiver.frames) == 4


@pytest.mark.parametrize("error", [WireError("x"), ProtocolError(0, 0, 0, "x")])
@pytest.mark.parametrize("features", [0, 31])
def test_invalid_frames_are_counted_and_the_next_is_taken(error: Exception, features: int) -> None:
    ours, theirs = memory_link(features=features)
    ours.transmit([segment(bytes(9))])
    ours.transmit([b"\x45 nonsense"])
    receiver = Receiver(error)
    registered(theirs, receiver)
    assert theirs.stats.rx_errors == 2
    assert len(receiver.frames) == 2


def test_what_comes_while_it_is_down_is_dropped() -> None:
    ours, theirs = memory_link()
    receiver = Receiver()
    registered(theirs, receiver)
    theirs.up = False
    ours.transmit([b"lost"])
    assert receiver.frames == []
    assert (theirs.stats.rx_dropped, theirs.stats.rx_packets) == (1, 0)
    theirs.up = True
    ours.transmit([b"heard"])
    assert len(receiver.frames) == 1


def test_frames_to_a_group_are_counted_where_there_are_link_addresses() -> None:
    ours, theirs = memory_link(addresses=(b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"))
    assert (theirs.type, theirs.hard_header_len) == (ARPHRD_ETHER, 14)
    registered(theirs, Receiver())
    ours.transmit([ethernet(6, b"\x33\x33\0\0\0\1")])
    ours.transmit([ethernet(6)])
    assert theirs.stats.multicast == 1


def test_an_interface_number_is_never_given_twice() -> None:
    stack = Stack()
    first, second, third = (MemoryDevice(f"mem{number}") for number in range(3))
    register_netdevice(stack, first, Receiver().receive)
    register_netdevice(stack, second, Receiver().receive)
    unregister_netdevice(stack, second)
    register_netdevice(stack, third, Receiver().receive)
    assert [first.ifindex, second.ifindex, third.ifindex] == [1, 2, 3]


def test_a_name_is_given_once() -> None:
    stack = Stack()
    register_netdevice(stack, MemoryDevice("mem0"), Receiver().receive)
    with pytest.raises(FileExistsError):
        register_netdevice(stack, MemoryDevice("mem0"), Receiver().receive)


def test_a_frame_lives_as_long_as_somebody_holds_it() -> None:
    ours, theirs = memory_link()
    octets = bytearray(b"first")
    ours.transmit([octets])
    held = theirs.receive()
    octets[:] = b"other"
    ours.transmit([octets])
    assert theirs.receive() is not None
    assert held is not None
    assert bytes(held.data) == b"first"


def test_the_loopback_receives_super_segments_whole() -> None:
    device = loopback()
    receiver = Receiver()
    registered(device, receiver)
    dev_queue_xmit(device, *super_segment(4, bytes(60000), 1000))
    (frame,) = receiver.frames
    assert (len(frame), frame.gso_size, device.type) == (60052, 1000, ARPHRD_LOOPBACK)
    assert MemoryDevice("mem0").type == ARPHRD_NONE


def test_a_super_segment_may_be_longer_than_the_mtu_and_nothing_else() -> None:
    ours, theirs = memory_link(mtu=1500)
    dev_queue_xmit(ours, *super_segment(4, bytes(60000), 1000))
    longest, of_longest = super_segment(4, bytes(65000), 1000)
    for parts, offload in (
        super_segment(4, bytes(1500), 0),
        ([*longest, bytes(600)], of_longest),
        ([bytes(1501)], None),
    ):
        with pytest.raises(OSError, match="too long"):
            dev_queue_xmit(ours, parts, offload)
    assert (ours.stats.tx_packets, ours.stats.tx_errors) == (1, 3)
    assert theirs.receive() is not None
    assert theirs.receive() is None
