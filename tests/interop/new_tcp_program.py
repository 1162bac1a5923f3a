"""One end of connections, as a process: `new_tcp_program.py host|new_tcp COMMAND ARGUMENT...`.

Over the host's TCP or over AF_INET_NEW_TCP the commands are the same, so that each side of a test
can be either. What a command has to say are JSON objects, a line each.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import http.server
import json
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import xxhash

from steertag import socket
from steertag.inet.const import AF_INET_NEW_TCP

BLOCK: Final = bytes(number * 151 % 256 for number in range(1 << 20))
STEP: Final = 256 * 1024
TCP_USER_TIMEOUT: Final = 18
_PATIENCE: Final = 150.0
_RESET: Final = struct.pack("ii", 1, 0)

NEW_TCP = sys.argv[1:2] == ["new_tcp"]


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def family_of(address: str) -> int:
    if NEW_TCP:
        return AF_INET_NEW_TCP
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connect(address: str, port: int) -> socket.socket:
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    sock.settimeout(_PATIENCE)
    sock.connect((address, port))
    return sock


def listen(address: str, port: int, backlog: int = 128) -> socket.socket:
    """A listener, which says where it is."""
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(backlog)
    sock.settimeout(_PATIENCE)
    say(port=sock.getsockname()[1])
    return sock


def meet(role: str, address: str, port: int) -> socket.socket:
    """The connection of a command that may listen or connect."""
    if role == "connect":
        return connect(address, port)
    with listen(address, port) as listener:
        sock, _ = listener.accept()
    sock.settimeout(_PATIENCE)
    return sock


# --- bulk, and half-close ---------------------------------------------------------------------


def send(role: str, address: str, port: int, octets: int) -> None:
    """Send so many octets and the end; the peer answers with what it has got."""
    with meet(role, address, port) as sock:
        digest = xxhash.xxh3_128()
        started = time.perf_counter()
        left = octets
        while left:
            part = memoryview(BLOCK)[: min(left, STEP)]
            digest.update(part)
            sock.sendall(part)
            left -= len(part)
        sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock).decode()
        seconds = time.perf_counter() - started
        say(octets=octets, digest=digest.hexdigest(), answer=answer, seconds=seconds)


def take(role: str, address: str, port: int) -> None:
    """Read to the peer's end; answer with the digest of it all."""
    with meet(role, address, port) as sock:
        digest, octets = xxhash.xxh3_128(), 0
        view = memoryview(bytearray(STEP))
        while count := sock.recv_into(view):
            digest.update(view[:count])
            octets += count
        sock.sendall(digest.hexdigest().encode())
        say(octets=octets, digest=digest.hexdigest())


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


# --- many connections -------------------------------------------------------------------------


def echo(address: str, port: int) -> None:
    """Echo whatever comes on any number of connections, until standard input ends."""
    listener = listen(address, port, 1024)
    served = [0]

    def serve(sock: socket.socket) -> None:
        with sock:
            while part := sock.recv(65536):
                sock.sendall(part)
        served[0] += 1

    def accept_all() -> None:
        while True:
            sock, _ = listener.accept()
            sock.settimeout(_PATIENCE)
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept_all, daemon=True).start()
    sys.stdin.read()
    say(served=served[0])


def burst(address: str, port: int, count: int, at_once: int) -> None:
    """`count` connections, `at_once` of them at a time: each sends a line and wants it back."""
    done = [0] * at_once
    errors: list[str] = []

    def run(worker: int) -> None:
        for number in range(worker, count, at_once):
            text = b"connection %d\n" % number
            try:
                with connect(address, port) as sock:
                    sock.sendall(text)
                    sock.shutdown(socket.SHUT_WR)
                    answer = read_all(sock)
            except OSError as exc:
                errors.append(f"connection {number}: {exc!r}")
                return
            if answer != text:
                errors.append(f"connection {number} gave back {answer!r}")
                return
            done[worker] += 1

    workers = [threading.Thread(target=run, args=(worker,)) for worker in range(at_once)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    say(connections=sum(done), **({"errors": errors} if errors else {}))


def hold(address: str, port: int, count: int) -> None:
    """`count` connections open at once; then all of them are used, and closed."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(address, port)) for _ in range(count)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%d\n" % number)
        for number, sock in enumerate(socks):
            expected = b"%d\n" % number
            got = b""
            while len(got) < len(expected):
                got += sock.recv(64)
            if got != expected:
                raise AssertionError(f"connection {number} gave back {got!r}")
    say(connections=count)


# --- ends that are not good ones --------------------------------------------------------------


def reset(role: str, address: str, port: int) -> None:
    """Read one octet, then end the connection by RST."""
    sock = meet(role, address, port)
    sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
    say(reset=True)
    sys.stdin.read()


def suffer(role: str, address: str, port: int) -> None:
    """Send an octet, then wait; say which error ends the connection."""
    with meet(role, address, port) as sock:
        sock.sendall(b"x")
        say_error(lambda: sock.recv(1))
        say_error(lambda: sock.send(b"y"))


def vanish(role: str, address: str, port: int, milliseconds: int) -> None:
    """Send until the peer has acknowledged nothing for so long; say which error that is."""
    with meet(role, address, port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, milliseconds)
        say(connected=True)
        sys.stdin.readline()
        sock.sendall(b"nobody hears this")
        say_error(lambda: sock.recv(1))


def refused(address: str, port: int) -> None:
    """Connect where nobody listens."""
    say_error(lambda: connect(address, port))


def say_error(call: Callable[[], object]) -> None:
    try:
        value = call()
    except OSError as exc:
        say(error=errno.errorcode.get(exc.errno or 0, type(exc).__name__))
    else:
        say(value=repr(value))


# --- programs ---------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


class HttpServer(http.server.ThreadingHTTPServer):
    """The standard library's, over a socket of ours: nothing else is different."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Callable[..., Any]) -> None:
        super().__init__(address, handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(family_of(address[0]), self.socket_type)  # type: ignore[assignment]
        self.server_bind()
        self.server_activate()

    def server_bind(self) -> None:
        # HTTPServer's looks its own name up, which takes a resolver.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]


def serve_http(address: str, port: int, directory: str) -> None:
    """http.server, of a directory, until standard input ends."""
    server = HttpServer((address, port), functools.partial(Quiet, directory=directory))
    say(port=server.server_port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


def fetch_http(address: str, port: int, path: str) -> None:
    """http.client, over a socket of ours."""
    connection = http.client.HTTPConnection(address, port)
    connection.sock = connect(address, port)  # type: ignore[assignment]
    connection.request("GET", path)
    with connection.getresponse() as response:
        body = response.read()
    connection.close()
    say(status=response.status, octets=len(body), digest=xxhash.xxh3_128(body).hexdigest())


def relay(address: str, port: int, to: str, to_port: int) -> None:
    """Pass connections on to a server of the host's, both ways, until standard input ends."""
    listener = listen(address, port)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        view = memoryview(bytearray(STEP))
        with contextlib.suppress(OSError):
            while count := source.recv_into(view):
                sink.sendall(view[:count])
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve(near: socket.socket) -> None:
        with near, socket.create_connection((to, to_port)) as far:
            back = threading.Thread(target=pump, args=(far, near))
            back.start()
            pump(near, far)
            back.join()

    def accept_all() -> None:
        while True:
            sock, _ = listener.accept()
            sock.settimeout(None)
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept_all, daemon=True).start()
    sys.stdin.read()


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "send": send,
    "take": take,
    "echo": echo,
    "burst": burst,
    "hold": hold,
    "reset": reset,
    "suffer": suffer,
    "vanish": vanish,
    "refused": refused,
    "http": serve_http,
    "fetch": fetch_http,
    "relay": relay,
}


if __name__ == "__main__":
    numbers = [int(word) if word.isdecimal() else word for word in sys.argv[3:]]
    COMMANDS[sys.argv[2]](*numbers)
