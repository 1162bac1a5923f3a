"""Thousands of worlds: whatever a link does, the octets arrive, and nothing is left over.

`STEERTAG_SEEDS` says how many seeds are run; a few hundred unless told.
"""

from __future__ import annotations

import errno
import os

import pytest

from steertag.device import FaultDevice
from steertag.device.fault import FaultStats
from steertag.family.net import kernel_bind, sock_release
from steertag.family.socket import Socket
from steertag.testing.applications import (
    Octets,
    accept,
    connect,
    digest_of,
    half_close,
    octets_of,
    recv_to_end,
    send_all,
    sender,
)
from steertag.testing.simulator import App, Node, Task, World
from tests.inet.scenarios import client_isn, expected, play, scenario_of, start_of

SEEDS = int(os.environ.get("STEERTAG_SEEDS", "200"))
BATCH = 20
QUIET = 2000.0
"""Seconds in which everything has ended: TIME-WAIT is 60, a lost last ACK some time-outs more."""


def ends_well(seed: int) -> None:
    scenario = scenario_of(seed)
    world = play(scenario, start_of(scenario))
    received = [task.result() for task in scenario.ends]
    assert received == expected(scenario), scenario
    world.run_until_quiet(QUIET)
    assert world.left_over() == [], scenario


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_every_octet_arrives_and_nothing_is_left_over(first: int) -> None:
    for seed in range(first, min(first + BATCH, SEEDS)):
        ends_well(seed)


def test_the_same_seed_gives_the_same_packets_at_the_same_times() -> None:
    for seed in range(5):
        first, second = (play(scenario_of(seed)) for _ in range(2))
        assert (first.packets, first.digest()) == (second.packets, second.digest())


def test_another_seed_gives_other_packets() -> None:
    assert play(scenario_of(0)).digest() != play(scenario_of(1)).digest()


def pair(seed: int, **link: float) -> tuple[World, Node, Node]:
    world = World(seed)
    left, right = world.node("left"), world.node("right")
    world.link(left, right, **link)  # type: ignore[arg-type]  # names and numbers
    return world, left, right


def serve(world: World, listener: Socket, tasks: list[Task[Octets]], count: int) -> App[None]:
    """Accept so many, and read each to its end."""

    def read(sock: Socket) -> App[Octets]:
        received = yield from recv_to_end(sock)
        sock_release(sock)
        return received

    for _ in range(count):
        sock = yield from accept(listener)
        tasks.append(world.spawn(read(sock)))


def finished(world: World, listener: Socket) -> None:
    """Close the listener; everything ends."""
    sock_release(listener)
    world.run_until_quiet(QUIET)
    assert all(task.error is None for task in world.tasks), world.report()
    assert world.left_over() == []


def test_a_hundred_connections_at_once_each_have_their_own_octets() -> None:
    world, left, right = pair(3, latency=0.01, rate=5_000_000)
    listener = right.listen(80, backlog=256)
    tasks: list[Task[Octets]] = []
    world.spawn(serve(world, listener, tasks, 100))
    contents = [octets_of(2000 + 37 * number, number) for number in range(100)]
    for octets in contents:
        world.spawn(sender(left.socket(), right.address(80), octets))
    world.run_until(lambda: len(tasks) == 100 and all(task.done for task in tasks), 600)
    received = sorted(task.result().digest for task in tasks)
    assert received == sorted(digest_of(octets).digest for octets in contents)
    finished(world, listener)


def test_a_thousand_short_connections_one_after_the_other() -> None:
    world, left, right = pair(4, latency=0.001)
    listener = right.listen(80)
    tasks: list[Task[Octets]] = []
    world.spawn(serve(world, listener, tasks, 1000))

    def client() -> App[None]:
        for number in range(1000):
            yield from sender(left.socket(), right.address(80), octets_of(100, number))

    world.spawn(client())
    world.run_until(lambda: len(tasks) == 1000 and tasks[-1].done, 600)
    assert all(task.result().count == 100 for task in tasks)
    finished(world, listener)


def test_a_peer_that_vanishes_ends_in_etimedout_and_leaves_nothing() -> None:
    world, left, right = pair(5)
    left.set(tcp_retries2=6)
    wire = world.wires[0]
    listener = right.listen(80)
    tasks: list[Task[Octets]] = []
    world.spawn(serve(world, listener, tasks, 1))

    def client() -> App[int]:
        sock = left.socket()
        yield from connect(sock, right.address(80))
        wire.cut = world.wires[1].cut = True
        try:
            yield from send_all(sock, bytes(10_000_000))
        except OSError as error:
            sock_release(sock)
            return error.errno or 0
        return 0

    task = world.spawn(client())
    world.run_until(lambda: task.done, 2000)
    assert task.result() == errno.ETIMEDOUT
    assert left.left_over() == []


def test_two_that_connect_to_each_other_at_once_have_one_connection() -> None:
    world, left, right = pair(6, latency=0.05)
    octets = [octets_of(30_000, number) for number in range(2)]

    def side(node: Node, other: Node, mine: bytes) -> App[Octets]:
        sock = node.socket()
        kernel_bind(sock, (node.address(0)[0], 7000))
        yield from connect(sock, other.address(7000))
        yield from send_all(sock, mine)
        half_close(sock)
        received = yield from recv_to_end(sock)
        sock_release(sock)
        return received

    tasks = [world.spawn(side(left, right, octets[0])), world.spawn(side(right, left, octets[1]))]
    world.run_until(lambda: all(task.done for task in tasks), 60)
    assert [task.result() for task in tasks] == [digest_of(octets[1]), digest_of(octets[0])]
    world.run_until_quiet(QUIET)
    assert world.left_over() == []


def test_a_reader_that_stops_stops_the_sender_and_nothing_is_lost() -> None:
    world, left, right = pair(7, latency=0.02)
    octets = octets_of(1_000_000, 7)
    listener = right.listen(80)

    def slow() -> App[Octets]:
        sock = yield from accept(listener)
        yield 300.0
        received = yield from recv_to_end(sock, 10_000, 0.01)
        sock_release(sock)
        return received

    task = world.spawn(slow())
    world.spawn(sender(left.socket(), right.address(80), octets))
    world.run_until(lambda: task.done, 3000)
    assert task.result() == digest_of(octets)
    finished(world, listener)


def test_little_memory_for_the_protocol_makes_it_slow_and_not_wrong() -> None:
    world, left, right = pair(8, latency=0.01)
    right.stack.sysctl.write("net.ipv4.tcp_mem", "40 60 90")
    listener = right.listen(80)
    tasks: list[Task[Octets]] = []
    world.spawn(serve(world, listener, tasks, 10))
    contents = [octets_of(200_000, number) for number in range(10)]
    for octets in contents:
        world.spawn(sender(left.socket(), right.address(80), octets))
    world.run_until(lambda: len(tasks) == 10 and all(task.done for task in tasks), 10_000)
    received = sorted(task.result().digest for task in tasks)
    assert received == sorted(digest_of(octets).digest for octets in contents)
    finished(world, listener)


def test_the_scenarios_links_do_what_they_say() -> None:
    done = FaultStats()
    for seed in range(40):
        world = play(scenario_of(seed))
        for node in world.nodes:
            for device in node.stack.devices.values():
                if isinstance(device, FaultDevice):
                    for name in ("lost", "duplicated", "corrupted", "reordered"):
                        setattr(done, name, getattr(done, name) + getattr(device.sent, name))
    assert min(done.lost, done.duplicated, done.corrupted, done.reordered) > 50


def test_scenarios_that_wrap_begin_just_before_the_end_of_the_sequence_space() -> None:
    wrapping = [scenario for seed in range(20) if (scenario := scenario_of(seed)).wrap]
    assert len(wrapping) > 3
    for scenario in wrapping[:3]:
        assert scenario.wrap is not None
        isn = client_isn(scenario, start_of(scenario))
        assert abs(2**32 - scenario.wrap - isn) < 50
