"""A peer's process dies, in every state: who talked to it is told, and nothing is left of it."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable
from contextlib import suppress

import pytest

from steertag.socket import socket
from tests.sdp.peer import FILLING
from tests.sdp.world import (
    HOST,
    PATIENCE,
    SDP,
    SDP_ZCOPY,
    Peer,
    Task,
    World,
    read_exactly,
    readable,
    together,
)

SUBJECTS = (HOST, SDP, SDP_ZCOPY)

GONE = (errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED)
MIB = 1 << 20


def to_the_end(sock: socket) -> bytes:
    """What still comes, up to the end or the reset."""
    parts = []
    with suppress(ConnectionError):
        while part := sock.recv(1 << 18):
            parts.append(part)
    return b"".join(parts)


def sending_fails(call: Callable[[], object]) -> None:
    """Sooner or later; as at the kernel's sockets it may take a send or two."""
    try:
        for _ in range(10_000):
            call()
    except OSError as exc:
        if exc.errno not in GONE:
            raise
        return
    raise AssertionError("a peer that is gone takes everything")


def test_before_the_connection_is_made(neighbours: World) -> None:
    with (
        Peer(neighbours.kind.server, "listen", 1) as peer,
        neighbours.client_socket() as client,
    ):
        address = ("127.0.0.1", int(peer.line()))
        with peer.stopped():
            client.setblocking(False)
            error = client.connect_ex(address)
            assert error in (0, errno.EINPROGRESS)
            peer.kill()
        client.settimeout(PATIENCE)
        # A kernel may have made the connection for the one who had died.
        error = client.connect_ex(address)
        assert error in (0, errno.EISCONN, errno.ECONNREFUSED, errno.ECONNRESET), error
        if error in (0, errno.EISCONN):
            assert to_the_end(client) == b""


def test_before_it_is_accepted(neighbours: World) -> None:
    with neighbours.listening() as server:
        with Peer(neighbours.kind.client, "idle", server.getsockname()[1]) as peer:
            assert peer.line() == "connected"
            peer.kill()
        conn, _ = server.accept()
        with conn:
            conn.settimeout(PATIENCE)
            assert to_the_end(conn) == b""


def test_while_nothing_moves(neighbours: World) -> None:
    with neighbours.visited("idle") as (conn, peer):
        assert peer.line() == "connected"
        waiting = Task(to_the_end, conn)
        peer.kill()
        assert waiting.result() == b""
        sending_fails(lambda: conn.send(b"x"))


def test_who_waits_in_poll_is_told(neighbours: World) -> None:
    with neighbours.visited("idle") as (conn, peer), select.epoll() as epoll:
        assert peer.line() == "connected"
        conn.setblocking(False)
        epoll.register(conn.fileno(), select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        assert not epoll.poll(0)
        peer.kill()
        assert epoll.poll(PATIENCE)
        assert to_the_end(conn) == b""


@pytest.mark.parametrize("size", [1000, 100_000, 32 * MIB], ids=["small", "medium", "large"])
def test_while_it_sends(neighbours: World, size: int) -> None:
    """What came before is good, up to the last octet."""
    with neighbours.visited("send", size) as (conn, peer):
        got = bytes(read_exactly(conn, 3 * MIB, 300_000))
        reading = Task(to_the_end, conn)
        peer.kill()
        got += reading.result()
        whole = FILLING * (size // len(FILLING)) + FILLING[: size % len(FILLING)]
        assert got == (whole * (len(got) // size + 1))[: len(got)]


@pytest.mark.parametrize("size", [1000, 100_000, 32 * MIB], ids=["small", "medium", "large"])
def test_while_it_sends_and_nobody_reads(neighbours: World, size: int) -> None:
    with neighbours.visited("send", size) as (conn, peer):
        assert readable(conn)
        peer.kill()
        got = to_the_end(conn)
        whole = FILLING * (size // len(FILLING)) + FILLING[: size % len(FILLING)]
        assert got == (whole * (len(got) // size + 1))[: len(got)]


@pytest.mark.parametrize("size", [1000, 100_000, 32 * MIB], ids=["small", "medium", "large"])
def test_while_it_receives(neighbours: World, size: int) -> None:
    with neighbours.visited("receive", 8 * MIB) as (conn, peer):
        data = bytearray(size)
        conn.sendall(data)
        conn.sendall(data)
        sending = Task(sending_fails, lambda: conn.sendall(data))
        peer.kill()
        sending.result()
        data.append(0)  # nobody has a view of it


@pytest.mark.parametrize("size", [1000, 32 * MIB], ids=["small", "large"])
def test_while_it_hangs_and_a_send_waits_for_it(neighbours: World, size: int) -> None:
    with neighbours.visited("receive", 8 * MIB) as (conn, peer):
        conn.sendall(b"hello")
        data = bytearray(size)
        with peer.stopped():
            sending = Task(sending_fails, lambda: conn.sendall(data))
            peer.kill()
            sending.result()
        data.append(0)


def test_while_both_send(neighbours: World) -> None:
    with neighbours.visited("send", 4 * MIB) as (conn, peer):
        data = bytes(4 * MIB)
        reading = Task(to_the_end, conn)
        sending = Task(sending_fails, lambda: conn.sendall(data))
        peer.kill()
        together(reading.result, sending.result)


def test_while_it_closes(neighbours: World) -> None:
    with neighbours.visited("close") as (conn, peer):
        assert peer.line() == "closing"
        assert read_exactly(conn, 10) == b"last words"
        assert conn.recv(1) == b""
        peer.kill()
        sending_fails(lambda: conn.send(b"anybody?"))


def test_after_we_have_closed_our_half(neighbours: World) -> None:
    with neighbours.visited("idle") as (conn, peer):
        assert peer.line() == "connected"
        conn.shutdown(1)
        peer.kill()
        assert to_the_end(conn) == b""


def test_many_at_once(neighbours: World) -> None:
    """A machine with ten clients on it goes away."""
    with neighbours.listening() as server:
        port = server.getsockname()[1]
        with Peer(neighbours.kind.client, "idle", port) as other:
            survivor, _ = server.accept()
            assert other.line() == "connected"
            with Peer(neighbours.kind.client, "many", port, 10) as peer:
                conns = [server.accept()[0] for _ in range(10)]
                assert peer.line() == "connected"
                peer.kill()
            for conn in conns:
                with conn:
                    conn.settimeout(PATIENCE)
                    assert to_the_end(conn) == b""
            with survivor:
                survivor.settimeout(PATIENCE)
                other.tell("send an octet")
                assert survivor.recv(10) == b"x"
