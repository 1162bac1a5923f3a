"""Patterns of servers: queues of connections, loops that never block, storms of short visits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket as std
import struct
from typing import cast

import pytest

from steertag.socket import socket
from tests.sdp.world import (
    FROM_PLAIN,
    HOST,
    NEW_TCP,
    PATIENCE,
    SDP,
    SDP_NEW_TCP,
    TO_PLAIN,
    Task,
    World,
    octets,
    read_exactly,
    read_to_end,
    readable,
    together,
    writable,
)

SUBJECTS = (HOST, NEW_TCP, SDP, SDP_NEW_TCP, FROM_PLAIN)

LINGER = struct.Struct("ii")
STORM = int(os.environ.get("STEERTAG_STORM", "300"))
"""Connections of a storm; `STEERTAG_STORM=10000` makes it a large one."""
LARGE_STORM = 10_000 if "STEERTAG_CI" in os.environ else STORM
"""Connections of a storm over SDP: half a minute's, where there is time."""


def test_connections_wait_to_be_accepted_with_their_data(world: World) -> None:
    with world.listening(backlog=16) as server:
        clients: list[socket] = []
        for number in range(12):
            client = world.connect(server)
            client.sendall(b"I am %d" % number)
            client.shutdown(std.SHUT_WR)
            clients.append(client)
        names = []
        for _ in clients:
            conn, peer = server.accept()
            with conn:
                conn.settimeout(PATIENCE)
                assert peer == conn.getpeername()
                names.append(read_to_end(conn))
        assert sorted(names) == sorted(b"I am %d" % number for number in range(12))
        for client in clients:
            client.close()


def test_who_has_left_before_being_accepted_is_read_to_the_end(world: World) -> None:
    with world.listening() as server:
        with world.connect(server) as client:
            client.sendall(b"gone already")
        conn, _ = server.accept()
        with conn:
            conn.settimeout(PATIENCE)
            assert read_to_end(conn) == b"gone already"


def test_a_listener_closes_with_connections_in_its_queue(world: World) -> None:
    with world.listening() as server:
        clients: list[socket] = [world.connect(server) for _ in range(5)]
    for client in clients:
        with client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_a_port_is_free_again_after_its_listener(world: World) -> None:
    if world.kind == TO_PLAIN:
        pytest.skip("not possible here: the attempt over SDP, refused, keeps the host's port")
    with world.listening() as server:
        address = server.getsockname()
    with world.client_socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(address)
    with world.server_socket() as server:
        server.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen()


def test_a_connection_is_made_without_blocking(world: World) -> None:
    with world.listening() as server, world.client_socket() as client:
        client.setblocking(False)
        server.setblocking(False)
        assert client.connect_ex(server.getsockname()) in (0, errno.EINPROGRESS)
        assert writable(client)
        assert client.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0
        client.send(b"hello")
        assert readable(server)
        conn, _ = server.accept()
        with conn:
            conn.setblocking(False)
            assert readable(conn)
            assert conn.recv(100) == b"hello"
            with pytest.raises(BlockingIOError):
                conn.recv(100)


def test_a_refusal_is_found_without_blocking(world: World) -> None:
    with world.server_socket() as nobody, world.client_socket() as client:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        client.setblocking(False)
        error = client.connect_ex(nobody.getsockname())
        if error == errno.EINPROGRESS:
            assert writable(client)
            error = client.getsockopt(std.SOL_SOCKET, std.SO_ERROR)
        assert error == errno.ECONNREFUSED


class StateMachine:
    """An echo server's connection that never blocks: reads while it may, writes what it owes."""

    def __init__(self, conn: socket) -> None:
        conn.setblocking(False)
        self.conn = conn
        self.owed = bytearray()
        self.ended = False

    def advance(self) -> None:
        """Go on until neither reading nor writing is possible: what an edge asks for."""
        moved = True
        while moved:
            moved = False
            if not self.ended and len(self.owed) < 1 << 20:
                with contextlib.suppress(BlockingIOError):
                    part = self.conn.recv(1 << 16)
                    self.owed += part
                    self.ended = not part
                    moved = True
            if self.owed:
                with contextlib.suppress(BlockingIOError):
                    del self.owed[: self.conn.send(bytes(self.owed))]
                    moved = True

    @property
    def finished(self) -> bool:
        return self.ended and not self.owed


def serve_with_edges(server: socket, count: int) -> None:
    """An epoll server, edge-triggered, until `count` connections have ended."""
    server.setblocking(False)
    machines: dict[int, StateMachine] = {}
    with select.epoll() as epoll:
        epoll.register(server.fileno(), select.EPOLLIN | select.EPOLLET)
        edges = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
        while count:
            ready = epoll.poll(PATIENCE)
            assert ready, "no edge comes"
            for fd, _ in ready:
                if fd == server.fileno():
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            conn, _ = server.accept()
                            machines[conn.fileno()] = StateMachine(conn)
                            epoll.register(conn.fileno(), edges)
                    continue
                machine = machines[fd]
                machine.advance()
                if machine.finished:
                    epoll.unregister(fd)
                    machines.pop(fd).conn.close()
                    count -= 1


@pytest.mark.parametrize(("clients", "size"), [(12, 5_000), (3, 3_000_000)])
def test_an_edge_triggered_server_misses_nothing(world: World, clients: int, size: int) -> None:
    def visit(server: socket, seed: int) -> None:
        data = octets(size, seed)
        with world.connect(server) as client:

            def send() -> None:
                client.sendall(data)
                client.shutdown(std.SHUT_WR)

            assert together(send, lambda: read_to_end(client))[1] == data

    with world.listening() as server:
        serving = Task(serve_with_edges, server, clients)
        together(*(lambda seed=seed: visit(server, seed) for seed in range(clients)))
        serving.result()


@pytest.mark.parametrize(("clients", "size"), [(40, 2_000), (4, 3_000_000)])
def test_asyncio_streams_echo_for_many(world: World, clients: int, size: int) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def visit(address: object, seed: int) -> None:
        loop = asyncio.get_running_loop()
        data = octets(size, seed)
        sock = world.client_socket()
        sock.setblocking(False)
        plain = cast(std.socket, sock)
        await loop.sock_connect(plain, address)  # type: ignore[arg-type]
        reader, writer = await asyncio.open_connection(sock=plain)

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        _, got = await asyncio.gather(send(), reader.read(-1))
        assert got == data
        writer.close()
        await writer.wait_closed()

    async def serve_and_visit() -> None:
        sock = world.server_socket()
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
        server = await asyncio.start_server(echo, sock=cast(std.socket, sock))
        async with server:
            await asyncio.gather(*(visit(address, seed) for seed in range(clients)))
        await server.wait_closed()
        sock.close()

    asyncio.run(asyncio.wait_for(serve_and_visit(), PATIENCE))


# -- storms ---------------------------------------------------------------------------------------


def accept_all(server: socket, count: int, first_to_close: bool) -> int:
    """Accept and hang up, or wait for the peer's hang-up; how many said what they should."""
    good = 0
    for _ in range(count):
        conn, _ = server.accept()
        with conn:
            conn.settimeout(PATIENCE)
            if first_to_close:
                conn.sendall(b"bye")
                good += 1
                continue
            good += read_to_end(conn) == b"hello"
    return good


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_storm_of_connections(world: World, first: str) -> None:
    count = LARGE_STORM if world.kind == SDP else STORM
    with world.listening() as server:
        serving = Task(accept_all, server, count, first == "server")
        for _ in range(count):
            with world.connect(server) as client:
                if first == "client":
                    client.sendall(b"hello")
                else:
                    assert read_exactly(client, 3) == b"bye"
                    assert client.recv(1) == b""
        assert serving.result(4 * PATIENCE) == count


def test_a_storm_of_connections_that_nobody_uses(world: World) -> None:
    """A port scanner's: connected, and closed at once, from several threads."""
    with world.listening() as server:

        def scan() -> None:
            for _ in range(STORM // 5):
                world.connect(server).close()

        def accept() -> None:
            for _ in range(STORM // 5 * 3):
                server.accept()[0].close()

        together(accept, scan, scan, scan)


def test_a_storm_of_connections_that_are_torn_down(world: World) -> None:
    """SO_LINGER of 0: the peer finds a reset, or the end; never a wait."""
    with world.listening() as server:

        def accept() -> None:
            for _ in range(STORM // 3):
                try:
                    conn, _ = server.accept()
                except ConnectionAbortedError:  # as POSIX has it
                    continue
                with conn, contextlib.suppress(OSError):  # ENOTCONN too: it has gone already
                    conn.settimeout(PATIENCE)
                    conn.sendall(octets(1000))
                    read_to_end(conn)

        accepting = Task(accept)
        for _ in range(STORM // 3):
            with world.connect(server) as client:
                client.setsockopt(std.SOL_SOCKET, std.SO_LINGER, LINGER.pack(1, 0))
        accepting.result()


def test_sockets_that_were_never_connected_are_closed(world: World) -> None:
    for _ in range(STORM):
        world.client_socket().close()
