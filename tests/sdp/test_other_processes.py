"""Descriptors in other processes, and processes that hang: what is promised, and what is held."""

from __future__ import annotations

import gc
import socket as std
import tracemalloc
from contextlib import suppress

import pytest

from steertag.socket import socket
from tests.sdp.world import (
    HOST,
    NEW_TCP,
    PATIENCE,
    SDP,
    Peer,
    World,
    octets,
    read_exactly,
    read_to_end,
    readable,
    writable,
)

SUBJECTS = (HOST, NEW_TCP, SDP)

MIB = 1 << 20
MOST = 12 * MIB
"""Octets that a connection may hold in this process, both directions, whoever reads."""
STUCK = 1.0
"""Seconds without room after which there won't be any."""


# -- descriptors ------------------------------------------------------------------------------


def test_a_child_can_wait_on_a_descriptor_and_no_more(neighbours: World) -> None:
    """The host's descriptor is the socket; that of a family of this process only tells of it."""
    with neighbours.connected() as (client, conn):
        fd = conn.fileno()
        with Peer(neighbours.kind.server, "descriptor", fd, pass_fds=(fd,)) as child:
            client.sendall(b"hello")
            assert child.line() == "readable"
            assert child.line() in ("sent", "BrokenPipeError")
            child.process.wait(PATIENCE)
        conn.sendall(b"from the parent")
        conn.shutdown(std.SHUT_WR)
        # One that has fallen back is the host's again.
        plain = HOST.server in (neighbours.kind.server, neighbours.kind.client)
        by_child = b"from the child" if plain else b""
        assert read_to_end(client) == by_child + b"from the parent"
        assert conn.recv(100) == b"hello"
        client.shutdown(std.SHUT_WR)
        assert readable(conn)
        assert conn.recv(1) == b""


def test_a_fork_does_not_disturb_the_parent(neighbours: World) -> None:
    with neighbours.visited("fork") as (conn, peer):
        conn.sendall(b"and back")
        by_child = b"child." if neighbours.kind.client == HOST.client else b""
        assert read_to_end(conn) == b"before." + by_child + b"parent."
        assert peer.line() == "done"


# -- memory -----------------------------------------------------------------------------------


def traced() -> int:
    """Octets that Python's objects have taken since tracemalloc was started."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def send_until_stuck(sock: socket, data: bytes) -> int:
    """Send without blocking until there is no room for long; octets taken."""
    sock.setblocking(False)
    total = 0
    while writable(sock, STUCK):
        with suppress(BlockingIOError):
            while True:
                total += sock.send(data)
    return total


@pytest.mark.parametrize("size", [500, 60_000, 2 * MIB])
def test_a_peer_that_hangs_does_not_fill_our_memory(neighbours: World, size: int) -> None:
    with neighbours.visited("receive", 8 * MIB) as (conn, peer):
        assert peer.line() == "receiving"
        data = octets(size)
        tracemalloc.start()
        try:
            before = traced()
            with peer.stopped():
                sent = send_until_stuck(conn, data)
                grown = traced() - before
            assert grown < MOST
            assert 0 < sent < 4 * MOST
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("size", [500, 60_000, 2 * MIB])
def test_a_reader_that_never_reads_does_not_fill_our_memory(world: World, size: int) -> None:
    data = octets(size)
    with world.connected() as (client, conn):
        tracemalloc.start()
        try:
            before = traced()
            sent = send_until_stuck(client, data)
            grown = traced() - before
        finally:
            tracemalloc.stop()
        assert grown < MOST
        client.close()
        got = 0
        while part := conn.recv(MIB):
            got += len(part)
        assert got == sent


def test_a_flood_that_nobody_reads_does_not_fill_our_memory(neighbours: World) -> None:
    """The peer sends for ever, into the sockets of a program that does something else."""
    with neighbours.listening() as server:
        port = server.getsockname()[1]
        tracemalloc.start()
        try:
            before = traced()
            with Peer(neighbours.kind.client, "send", port, 50_000) as peer:
                conn, _ = server.accept()
                with conn:
                    conn.settimeout(PATIENCE)
                    assert peer.line() == "sending"
                    assert readable(conn)
                    read_exactly(conn, 20 * MIB)
                    assert not readable(server, STUCK)  # it goes on sending meanwhile
                    assert traced() - before < MOST
                    read_exactly(conn, 20 * MIB)
        finally:
            tracemalloc.stop()


def test_many_connections_that_hang_hold_little_each(world: World) -> None:
    count = 12
    with world.listening() as server:
        pairs = []
        for _ in range(count):
            client = world.connect(server)
            pairs.append((client, server.accept()[0]))
        tracemalloc.start()
        try:
            before = traced()
            for client, _ in pairs:
                client.setblocking(False)
                with suppress(BlockingIOError):
                    while True:
                        client.send(octets(100_000))
            assert traced() - before < count * MOST
        finally:
            tracemalloc.stop()
        for client, conn in pairs:
            conn.close()
            client.close()
