"""Peers that are slow to say that they speak SDP, and were called plain before, are believed."""

from __future__ import annotations

import logging
import select
import socket as std
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from steertag import Stack, socket
from steertag.sdp.fallback import Reason
from steertag.wire.mpa import StartFrame
from tests.unit.test_sdp_conformance import LOOPBACK, close_stacks
from tests.unit.test_sdp_fallback import PATIENCE, TEXT, fabric, info, listening, new_stack, sdp

__all__ = ["close_stacks"]


@contextmanager
def held_back(server: socket.socket) -> Iterator[tuple[tuple[str, int], threading.Event]]:
    """The way to `server` of one who is slow: its octets are passed on once the event is set."""
    go = threading.Event()
    with std.create_server(LOOPBACK) as door, std.create_connection(server.getsockname()) as out:

        def copy(source: std.socket, to: std.socket) -> None:
            with suppress(OSError):
                while part := source.recv(65536):
                    to.sendall(part)
                to.shutdown(std.SHUT_WR)

        def work() -> None:
            inner, _ = door.accept()
            with inner:
                go.wait(PATIENCE)
                back = threading.Thread(target=copy, args=(out, inner))
                back.start()
                copy(inner, out)
                back.join(PATIENCE)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield door.getsockname(), go
        finally:
            go.set()
            thread.join(PATIENCE)


def receives(conn: socket.socket, go: threading.Event) -> None:
    """Waits in the call when the peer begins."""
    threading.Timer(0.05, go.set).start()
    assert conn.recv(5) == b"hello"


def finds_nothing_first(conn: socket.socket, go: threading.Event) -> None:
    conn.setblocking(False)
    with pytest.raises(BlockingIOError):
        conn.recv(5)
    conn.settimeout(PATIENCE)
    receives(conn, go)


def waits_for_readiness(conn: socket.socket, go: threading.Event) -> None:
    conn.setblocking(False)
    with select.epoll() as epoll:
        epoll.register(conn.fileno(), select.EPOLLIN | select.EPOLLET)
        go.set()
        got = b""
        while got != b"hello":
            assert epoll.poll(PATIENCE)
            with suppress(BlockingIOError):
                while part := conn.recv(5 - len(got)):
                    got += part
    conn.settimeout(PATIENCE)


def looks_until_they_are_there(conn: socket.socket, go: threading.Event) -> None:
    """The peer begins between two looks."""
    go.set()
    ready = False
    while not ready:
        with conn.kernel.stack.lock:
            ready = bool(conn.kernel.ops.poll(conn.kernel) & select.POLLIN)
    assert conn.recv(5) == b"hello"


LATE = pytest.mark.parametrize(
    "use", [receives, finds_nothing_first, waits_for_readiness, looks_until_they_are_there]
)


@contextmanager
def called_silent(stack: Stack) -> Iterator[tuple[socket.socket, std.socket]]:
    """A connection whose peer, a socket of the host's, has said nothing, and that peer."""
    stack.sysctl["net.sdp.listen_grace"] = 1
    with listening(stack) as server, std.socket() as client:
        client.settimeout(PATIENCE)
        client.connect(server.getsockname())
        conn, _ = server.accept()
        with conn:
            yield conn, client


@LATE
def test_a_peer_that_is_slow_to_say_that_it_speaks_sdp_is_believed(
    use: Callable[[socket.socket, threading.Event], None], caplog: pytest.LogCaptureFixture
) -> None:
    """However long it took, and though the program has its connection: nothing was said on it."""
    stack, other = new_stack(), new_stack()
    stack.sysctl["net.sdp.listen_grace"] = 1
    other.sysctl["net.sdp.hello_timeout"] = 60000
    caplog.set_level(logging.INFO)
    with listening(stack) as server, held_back(server) as (address, go), sdp(other) as client:

        def speak() -> None:
            client.connect(address)
            client.sendall(b"hello" + TEXT)
            client.shutdown(std.SHUT_WR)

        thread = threading.Thread(target=speak)
        thread.start()
        conn, _ = server.accept()
        with conn:
            assert info(conn)["fallback"] == Reason.SILENT_PEER
            use(conn, go)
            assert info(conn)["path"] == "sdp"
            with conn.makefile("rb") as file:
                assert file.read() == TEXT
            conn.sendall(TEXT)
            thread.join(PATIENCE)
            assert info(client)["path"] == "sdp"
            conn.shutdown(std.SHUT_WR)
            with client.makefile("rb") as file:
                assert file.read() == TEXT
    counters = fabric(stack).counters
    assert (counters.sdp_late, counters.sdp_passive) == (1, 1)
    assert "speaks SDP after all" in caplog.text


@pytest.mark.parametrize("first", [b"hello", b"M", b"MPA ID Rep Frame"])
def test_a_plain_peer_that_is_slow_loses_no_octet(first: bytes) -> None:
    stack = new_stack()
    with called_silent(stack) as (conn, client):
        conn.setblocking(False)
        with pytest.raises(BlockingIOError):
            conn.recv(100)
        conn.settimeout(PATIENCE)
        client.sendall(first)
        assert conn.recv(100) == first
        conn.sendall(TEXT)
        conn.shutdown(std.SHUT_WR)
        with client.makefile("rb") as file:
            assert file.read() == TEXT
        client.sendall(TEXT)
        client.shutdown(std.SHUT_WR)
        with conn.makefile("rb") as file:
            assert file.read() == TEXT
        assert info(conn)["fallback"] == Reason.SILENT_PEER


@pytest.mark.parametrize("shut", [False, True])
def test_a_slow_peer_that_was_sent_something_is_reset_when_it_speaks_sdp(
    shut: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The program never gets an MPA Request as if it were data."""
    stack = new_stack()
    with called_silent(stack) as (conn, client):
        if shut:
            conn.shutdown(std.SHUT_WR)
        else:
            conn.sendall(b"220 ready\r\n")
        client.sendall(StartFrame(reply=False, enhanced=True, private_data=bytes(32)).emit())
        with pytest.raises(ConnectionResetError):
            conn.recv(100)
    assert fabric(stack).counters.by_reason[Reason.LATE_REQUEST] == 1
    assert "is reset" in caplog.text


@pytest.mark.parametrize("private_data", [bytes(4), bytes(4) + b"no SDP"])
def test_a_slow_peer_with_another_protocol_over_rdma_is_refused(private_data: bytes) -> None:
    stack = new_stack()
    with called_silent(stack) as (conn, client):
        client.sendall(StartFrame(reply=False, enhanced=True, private_data=private_data).emit())
        with pytest.raises(ConnectionResetError):
            conn.recv(100)
        assert client.recv(4096).startswith(b"MPA ID Rep Frame")


def test_a_slow_peer_whose_request_never_ends_leaves_nothing_when_the_program_does() -> None:
    stack = new_stack()
    with called_silent(stack) as (conn, client):
        conn.setblocking(False)
        client.sendall(b"MPA ID Req Frame")
        while conn.kernel.ops is not fabric(stack).ops:
            with pytest.raises(BlockingIOError):
                conn.recv(100)
        conn.close()
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert len(fabric(stack).reactor.handlers()) == 1  # the listener
