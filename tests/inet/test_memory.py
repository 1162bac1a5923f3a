"""Memory of the protocol: who pays, what pressure does, and who dies first."""

from __future__ import annotations

import pytest

from steertag.family.const import TcpState
from steertag.family.net import sock_release
from steertag.inet.tcp.sock import TcpSock
from steertag.testing.applications import accept, octets_of, sender
from steertag.testing.simulator import App, Node, World


def pair(seed: int) -> tuple[World, Node, Node]:
    world = World(seed)
    left, right = world.node("left"), world.node("right")
    world.link(left, right, latency=0.005)
    return world, left, right


def socks(node: Node, state: TcpState) -> list[TcpSock]:
    return [sk for sk in node.stack.socks if isinstance(sk, TcpSock) and sk.sk_state == state]


def account(node: Node) -> int:
    return node.charged().get("NEW-TCP", 0)


def held_open(world: World, right: Node, port: int) -> list[object]:
    """A server that accepts and never reads."""
    listener = right.listen(port)
    accepted: list[object] = []

    def serve() -> App[None]:
        while True:
            accepted.append((yield from accept(listener)))

    world.spawn(serve())
    return accepted


def test_what_nobody_reads_is_charged_to_the_protocol_on_both_sides() -> None:
    world, left, right = pair(1)
    held_open(world, right, 80)
    world.spawn(sender(left.socket(), right.address(80), octets_of(5_000_000, 1)))
    world.run(60.0)
    waiting = sum(sk.sk_rmem_alloc for sk in right.stack.socks)
    queued = sum(sk.sk_wmem_queued for sk in left.stack.socks)
    assert waiting > 0
    assert queued > 0
    assert 0 <= account(right) * 4096 - waiting < 8192 * len(right.stack.socks)
    assert 0 <= account(left) * 4096 - queued < 8192 * len(left.stack.socks)


def test_under_pressure_windows_are_smaller_than_without() -> None:
    offered = []
    for marks in ("40 60 100000", "20000 30000 100000"):
        world, left, right = pair(2)
        right.stack.sysctl.write("net.ipv4.tcp_mem", marks)
        held_open(world, right, 80)
        for number in range(6):
            octets = octets_of(300_000, number)
            world.spawn(sender(left.socket(), right.address(80), octets))
        world.run(30.0)
        children = socks(right, TcpState.TCP_ESTABLISHED)
        assert len(children) == 6
        offered.append(max(sk.sk_rmem_alloc for sk in children))
        pressed = right.net.mib["TcpExtTCPMemoryPressures"]
        assert bool(pressed) == (marks == "40 60 100000")
    assert offered[0] < offered[1]


def test_above_the_highest_mark_orphans_die_first() -> None:
    world, left, right = pair(3)
    held_open(world, right, 80)
    for number in range(4):
        octets = octets_of(400_000, number)
        world.spawn(sender(left.socket(), right.address(80), octets))
    world.run(20.0)
    # Each sender is full: its reader doesn't read. One user lets go, and then memory is short.
    users = socks(left, TcpState.TCP_ESTABLISHED)
    assert len(users) == 4
    left.stack.sysctl.write("net.ipv4.tcp_mem", "1 2 4")
    orphan = users[0]
    assert orphan.sk_socket is not None
    sock_release(orphan.sk_socket)
    world.run(1.0)
    assert left.net.mib["TcpExtTCPAbortOnMemory"] == 1
    assert orphan.sk_state == TcpState.TCP_CLOSE
    assert all(sk.sk_state == TcpState.TCP_ESTABLISHED for sk in users[1:])


@pytest.mark.parametrize("most", [0, 3])
def test_no_more_orphans_than_allowed_stay(most: int) -> None:
    world, left, right = pair(4)
    left.set(tcp_max_orphans=most)
    held_open(world, right, 80)
    for number in range(6):
        world.spawn(sender(left.socket(), right.address(80), octets_of(400_000, number)))
    world.run(20.0)
    for sk in socks(left, TcpState.TCP_ESTABLISHED):
        assert sk.sk_socket is not None
        sock_release(sk.sk_socket)
    assert len(socks(left, TcpState.TCP_FIN_WAIT1)) == most
    assert left.net.mib["TcpExtTCPAbortOnMemory"] == 6 - most
