"""Patterns of programs that talk: key-value stores, mail, chat, the web, remote calls."""

from __future__ import annotations

import http.client
import http.server
import io
import pickle
import random
import selectors
import socket as std
import socketserver
import struct
from collections.abc import Callable
from typing import Any, cast

import pytest

from steertag.socket import socket
from tests.sdp.world import (
    ANY,
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
    together,
)

SUBJECTS = (HOST, NEW_TCP, SDP, SDP_NEW_TCP, TO_PLAIN, FROM_PLAIN)

LENGTH = struct.Struct("!I")


def test_requests_and_responses_take_turns(world: World) -> None:
    """A key-value store: small questions, answers of every size."""
    rng = random.Random(1)
    sizes = [rng.choice((1, 64, 1000, 20_000, 400_000)) for _ in range(150)]
    store = octets(400_000)

    def serve(conn: socket) -> None:
        for _ in sizes:
            (size,) = LENGTH.unpack(read_exactly(conn, LENGTH.size))
            conn.sendall(store[:size])

    with world.connected() as (client, conn):
        client.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        serving = Task(serve, conn)
        for size in sizes:
            client.sendall(LENGTH.pack(size))
            assert read_exactly(client, size) == store[:size]
        serving.result()


def test_requests_in_a_pipeline_are_answered_in_order(world: World) -> None:
    def serve(conn: socket) -> None:
        with conn.makefile("rb") as requests:
            for request in requests:
                conn.sendall(request.upper())
        conn.shutdown(std.SHUT_WR)

    def ask(client: socket) -> None:
        for number in range(2000):
            client.sendall(f"get key-{number}\n".encode())
        client.shutdown(std.SHUT_WR)

    with world.connected() as (client, conn):
        _, _, answers = together(
            lambda: serve(conn), lambda: ask(client), lambda: read_to_end(client)
        )
    assert answers.decode().splitlines() == [f"GET KEY-{number}" for number in range(2000)]


def test_framed_objects_arrive_as_they_were(world: World) -> None:
    """multiprocessing's habit: a length, then a pickle, in two sends."""
    rng = random.Random(4)
    objects = [{"id": n, "body": rng.randbytes(rng.choice((0, 10, 90_000)))} for n in range(80)]

    def write(client: socket) -> None:
        for each in objects:
            body = pickle.dumps(each)
            client.sendall(LENGTH.pack(len(body)))
            client.sendall(body)

    def read(conn: socket) -> list[Any]:
        found = []
        for _ in objects:
            (size,) = LENGTH.unpack(read_exactly(conn, LENGTH.size))
            found.append(pickle.loads(read_exactly(conn, size)))
        return found

    with world.connected() as (client, conn):
        assert together(lambda: write(client), lambda: read(conn))[1] == objects


def test_a_dialogue_in_lines(world: World) -> None:
    """A mail client's: the server speaks first, and text goes through file objects."""

    def serve(conn: socket) -> list[str]:
        body = []
        with conn.makefile("rw", encoding="utf-8", newline="\r\n") as file:

            def say(text: str) -> None:
                file.write(text + "\n")
                file.flush()

            say("220 ready")
            while (line := file.readline().strip()) != "QUIT":
                if line == "DATA":
                    say("354 go ahead")
                    while (line := file.readline().rstrip("\r\n")) != ".":
                        body.append(line)
                say("250 fine")
            say("221 bye")
        return body

    lines = [f"Zeile {number}: größer" for number in range(3000)]
    with world.connected() as (client, conn):
        serving = Task(serve, conn)
        with client.makefile("rwb") as file:

            def ask(text: str, code: bytes) -> None:
                file.write(text.encode() + b"\r\n")
                file.flush()
                assert file.readline().startswith(code), text

            assert file.readline() == b"220 ready\r\n"
            for _ in range(3):
                ask("MAIL FROM:<a@example.org>", b"250")
            ask("DATA", b"354")
            ask("\r\n".join([*lines, "."]), b"250")
            ask("QUIT", b"221")
        assert serving.result() == lines


def test_a_chat_room_hears_everybody(world: World) -> None:
    """One thread, a selector, and everything said goes to everybody else."""
    guests, said = 8, 20
    with world.listening() as server:
        room = Task(chat_room, server, guests)
        clients: list[socket] = [world.connect(server) for _ in range(guests)]

        def talk(number: int) -> list[bytes]:
            client = clients[number]
            for turn in range(said):
                client.sendall(b"%d says %d\n" % (number, turn))
            with client.makefile("rb") as lines:
                heard = [lines.readline() for _ in range(said * (guests - 1))]
            client.shutdown(std.SHUT_WR)
            return heard

        heard = together(*(lambda n=n: talk(n) for n in range(guests)))
        room.result()
        for client in clients:
            client.close()
    for number, lines in enumerate(heard):
        for other in set(range(guests)) - {number}:
            theirs = [line for line in lines if line.startswith(b"%d " % other)]
            assert theirs == [b"%d says %d\n" % (other, turn) for turn in range(said)]


def chat_room(server: socket, guests: int) -> None:
    server.setblocking(False)
    # Who enters late should hear what was said before: nothing is read until all are there.
    present: list[socket] = []
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(present) < guests:
            assert selector.select(PATIENCE)
            try:
                conn, _ = server.accept()
            except BlockingIOError:
                continue
            conn.setblocking(False)
            present.append(conn)
        selector.unregister(server)
        unsent = {conn: bytearray() for conn in present}
        partial = {conn: bytearray() for conn in present}
        for conn in present:
            selector.register(conn, selectors.EVENT_READ)
        while unsent:
            ready = selector.select(PATIENCE)
            assert ready, "nobody says anything"
            for key, events in ready:
                conn = cast(socket, key.fileobj)
                if events & selectors.EVENT_READ:
                    hear(conn, unsent, partial, selector)
                if unsent.get(conn):
                    flush(conn, unsent[conn])
            for conn, data in unsent.items():
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if data else 0)
                selector.modify(conn, wanted)
    for conn in present:
        conn.close()


def hear(
    conn: socket,
    unsent: dict[socket, bytearray],
    partial: dict[socket, bytearray],
    selector: selectors.BaseSelector,
) -> None:
    try:
        data = conn.recv(4096)
    except BlockingIOError:
        return
    if not data:
        selector.unregister(conn)
        assert not unsent.pop(conn), "it left before it was told everything"
        return
    partial[conn] += data
    whole, _, rest = partial[conn].rpartition(b"\n")
    partial[conn] = rest
    if whole:
        for other in unsent:
            if other is not conn:
                unsent[other] += whole + b"\n"
                flush(other, unsent[other])


def flush(conn: socket, data: bytearray) -> None:
    try:
        sent = conn.send(bytes(data))
    except BlockingIOError:
        return
    del data[:sent]


# -- the web --------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = int(self.path.strip("/"))
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(octets(size, size))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(body), 100_000):
            part = body[start : start + 100_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


def serving(
    world: World,
    handler: type[socketserver.BaseRequestHandler],
    base: type[socketserver.TCPServer],
) -> socketserver.TCPServer:
    """A server of the standard library's with a socket of the World's."""

    class Server(base):  # type: ignore[valid-type, misc]
        daemon_threads = False
        block_on_close = True

        def __init__(self) -> None:
            socketserver.BaseServer.__init__(self, ANY, handler)
            self.socket = world.server_socket()
            self.socket.bind(ANY)
            self.server_address = self.socket.getsockname()
            self.socket.listen(self.request_queue_size)

    return cast(socketserver.TCPServer, Server())


def visit(world: World, address: Any, requests: Callable[[socket], None]) -> None:  # noqa: ANN401
    with world.client_socket() as client:
        client.connect(address)
        requests(client)


def test_a_web_connection_is_kept_alive(world: World) -> None:
    sizes = [0, 1, 700, 10_000, 300_000, 5_000_000] * 4

    def browse(client: socket) -> None:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = cast(std.socket, client)
        for size in sizes:
            connection.request("GET", f"/{size}")
            assert connection.getresponse().read() == octets(size, size)
            connection.request("POST", "/", body=octets(size // 4, 7))
            assert connection.getresponse().read() == octets(size // 4, 7)
        connection.close()

    with serving(world, Handler, socketserver.TCPServer) as server:
        running = Task(server.serve_forever, 0.01)
        together(lambda: visit(world, server.server_address, browse))
        server.shutdown()
        running.result()


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


def test_a_threading_server_serves_many(world: World) -> None:
    text = b"".join(b"line %d\n" % number for number in range(500))

    def ask(client: socket) -> None:
        client.sendall(text)
        client.shutdown(std.SHUT_WR)
        assert read_to_end(client) == text

    with serving(world, Echo, socketserver.ThreadingTCPServer) as server:
        running = Task(server.serve_forever, 0.01)
        together(*[lambda: visit(world, server.server_address, ask)] * 10)
        server.shutdown()
        running.result()


# -- half-close -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_a_question_ends_with_a_half_close(world: World, size: int) -> None:
    """wc's habit: the answer comes when the input has ended."""
    data = octets(size)
    with world.connected() as (client, conn):

        def count() -> None:
            got = read_to_end(conn)
            conn.sendall(LENGTH.pack(len(got)) + got[::-1])
            conn.shutdown(std.SHUT_WR)

        counting = Task(count)
        client.sendall(data)
        client.shutdown(std.SHUT_WR)
        assert read_to_end(client) == LENGTH.pack(size) + data[::-1]
        counting.result()


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_the_server_may_be_first_to_say_that_it_has_done(world: World, size: int) -> None:
    """And the other direction goes on for long."""
    data = octets(size)
    with world.connected() as (client, conn):
        conn.sendall(b"220 goodbye")
        conn.shutdown(std.SHUT_WR)
        assert read_to_end(client) == b"220 goodbye"
        for start in range(3):
            _, got = together(lambda: client.sendall(data), lambda: bytes(read_exactly(conn, size)))
            assert got == data, start
        client.shutdown(std.SHUT_WR)
        assert conn.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            conn.send(b"more")


def test_both_sides_close_at_once_with_data_on_the_way(world: World) -> None:
    there, back = octets(30_000, 1), octets(30_000, 2)
    for _ in range(20):
        with world.connected() as (client, conn):

            def talk(sock: socket, data: bytes) -> bytes:
                sock.sendall(data)
                sock.shutdown(std.SHUT_WR)
                return read_to_end(sock)

            assert together(lambda: talk(client, there), lambda: talk(conn, back)) == [back, there]


def test_what_was_sent_before_a_close_arrives(world: World) -> None:
    """The sender has closed long before the reader begins."""
    for size in (1, 50_000, 150_000):
        data = octets(size)
        with world.listening() as server:
            connecting = Task(world.connect, server)
            conn, _ = server.accept()
            with connecting.result() as client:
                client.sendall(data)
            with conn:
                conn.settimeout(PATIENCE)
                assert read_to_end(conn) == data


def test_reading_is_shut_and_writing_goes_on(world: World) -> None:
    with world.connected() as (client, conn):
        client.shutdown(std.SHUT_RD)
        assert client.recv(1) == b""
        client.sendall(b"still here")
        assert read_exactly(conn, 10) == b"still here"


def test_a_file_object_buffers_what_is_read_in_pieces(world: World) -> None:
    """An unpickler's and a tar reader's way: small reads of a buffered file."""
    data = octets(1_000_000)
    with world.connected() as (client, conn):
        sending = Task(client.sendall, data)
        with io.BufferedReader(conn.makefile("rb", buffering=0), 1 << 16) as file:
            got = b"".join(file.read(997) for _ in range(len(data) // 997))
            assert got + file.read(len(data) % 997) == data
        sending.result()
