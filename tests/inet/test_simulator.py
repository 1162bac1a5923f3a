"""The simulator itself: time, order, and what it says when nothing happens any more."""

from __future__ import annotations

import pytest

from steertag.device import Faults
from steertag.family.net import sock_release
from steertag.testing.applications import (
    Octets,
    connect,
    digest_of,
    echo,
    half_close,
    octets_of,
    receiver,
    recv_to_end,
    send_all,
    sender,
)
from steertag.testing.simulator import App, World, WorldError, WorldHangs, WorldTimeout


def sleeper(seconds: float, log: list[str], name: str) -> App[str]:
    yield seconds
    log.append(name)
    return name


def test_time_passes_only_where_somebody_waits_for_it() -> None:
    world = World(1)
    log: list[str] = []
    tasks = [world.spawn(sleeper(wait, log, str(wait))) for wait in (3600.0, 60.0, 0.5)]
    world.run_until(lambda: all(task.done for task in tasks), 4000)
    assert log == ["0.5", "60.0", "3600.0"]
    assert world.now - world.start == 3600.0
    assert tasks[0].result() == "3600.0"


def test_a_world_where_nothing_can_happen_hangs_and_says_so() -> None:
    world = World(1)
    with pytest.raises(WorldHangs, match="seed 1"):
        world.run_until(lambda: False, 100)


def test_a_world_that_takes_too_long_says_so() -> None:
    world = World(1)
    log: list[str] = []
    world.spawn(sleeper(50.0, log, "late"), "a sleeper")
    with pytest.raises(WorldTimeout, match="a sleeper: sleeps"):
        world.run_until(lambda: bool(log), 10)


def test_a_task_gives_what_it_returned_or_raises_what_it_raised() -> None:
    world = World(1)
    left, right = world.node("left"), world.node("right")
    world.link(left, right)
    task = world.spawn(connect(left.socket(), right.address(9)))
    with pytest.raises(WorldError, match="runs still"):
        task.result()
    world.run_until(lambda: task.done, 10)
    with pytest.raises(ConnectionRefusedError):
        task.result()


@pytest.mark.parametrize("family", [4, 6])
def test_a_stream_crosses_a_link(family: int) -> None:
    world = World(1)
    left, right = world.node("left"), world.node("right")
    world.link(left, right, latency=0.05)
    octets = octets_of(10_000, 1)
    received = world.spawn(receiver(right.listen(80)))
    world.spawn(sender(left.socket(), right.address(80, family), octets))
    world.run_until(lambda: received.done, 10)
    assert received.result() == digest_of(octets)
    assert world.now - world.start > 0.1499  # SYN, SYN-ACK, data


def test_an_echo_comes_back() -> None:
    world = World(1)
    left, right = world.node("left"), world.node("right")
    world.link(left, right)
    octets = octets_of(100_000, 1)

    def client() -> App[Octets]:
        sock = left.socket()
        yield from connect(sock, right.address(7))
        reading = world.spawn(recv_to_end(sock))
        yield from send_all(sock, octets)
        half_close(sock)
        while not reading.done:
            yield 0.01
        sock_release(sock)
        return reading.result()

    served = world.spawn(echo(right.listen(7)))
    got = world.spawn(client())
    world.run_until(lambda: got.done and served.done, 60)
    assert (got.result(), served.result()) == (digest_of(octets), 100_000)


def test_a_wire_that_is_cut_carries_nothing() -> None:
    world = World(1)
    left, right = world.node("left"), world.node("right")
    wire, _ = world.link(left, right)
    wire.cut = True
    task = world.spawn(connect(left.socket(), right.address(9)))
    with pytest.raises(WorldTimeout, match="waits for"):
        world.run_until(lambda: task.done, 5)


def test_a_rate_and_a_buffer_bound_what_gets_through() -> None:
    world = World(1)
    left, right = world.node("left"), world.node("right")
    world.link(left, right, latency=0.01, rate=100_000, buffer=20_000)
    octets = octets_of(200_000, 1)
    received = world.spawn(receiver(right.listen(80)))
    world.spawn(sender(left.socket(), right.address(80), octets))
    world.run_until(lambda: received.done, 60)
    assert received.result() == digest_of(octets)
    assert world.now - world.start >= 2.0


def test_what_is_left_over_is_named() -> None:
    world = World(1)
    left, right = world.node("left"), world.node("right")
    world.link(left, right, faults=Faults(loss=0.1))
    assert world.left_over() == []
    listener = right.listen(80)
    assert any("right" in line for line in world.left_over())
    sock_release(listener)
    del listener
    assert world.left_over() == []
