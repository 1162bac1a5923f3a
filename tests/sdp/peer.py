"""The other process of a pattern: `python -m tests.sdp.peer FAMILY ROLE [ARGUMENT]...`.

It connects to 127.0.0.1:PORT or listens there, says in lines how far it is, and waits for lines of
its input to go on. It is killed, or ends when its input does.
"""

from __future__ import annotations

import os
import select
import socket as std
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from steertag.socket import socket

FILLING: Final = bytes(range(256)) * 4096
"""A MiB."""


def say(text: object) -> None:
    print(text, flush=True)


def hold() -> None:
    """Until told to go on."""
    sys.stdin.readline()


def connected(family: int, port: str) -> socket:
    sock = socket(family, std.SOCK_STREAM)
    sock.connect(("127.0.0.1", int(port)))
    return sock


def idle(family: int, port: str) -> None:
    """Connect, and do nothing. Each line of the input is an octet to send."""
    with connected(family, port) as sock:
        say("connected")
        while sys.stdin.readline():
            sock.sendall(b"x")


def many(family: int, port: str, count: str) -> None:
    """Connect so many times, and hold them."""
    conns = [connected(family, port) for _ in range(int(count))]
    say("connected")
    hold()
    for conn in conns:
        conn.close()


def send(family: int, port: str, size: str) -> None:
    """Send for ever, in calls of so many octets; say when the first is begun."""
    data = FILLING * (int(size) // len(FILLING)) + FILLING[: int(size) % len(FILLING)]
    with connected(family, port) as sock:
        say("sending")
        while True:
            sock.sendall(data)


def receive(family: int, port: str, size: str) -> None:
    """Receive for ever, in calls of so many octets; say what came first."""
    buffer = bytearray(int(size))
    with connected(family, port) as sock:
        say("receiving")
        while sock.recv_into(buffer):
            pass


def close(family: int, port: str) -> None:
    """Shut for sending, say so, and wait for the end of what the peer sends."""
    with connected(family, port) as sock:
        sock.sendall(b"last words")
        sock.shutdown(std.SHUT_WR)
        say("closing")
        hold()


def listen(family: int, count: str) -> None:
    """Listen, say where, accept so many, and hold them."""
    with socket(family, std.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        say(server.getsockname()[1])
        conns = [server.accept()[0] for _ in range(int(count))]
        say("accepted")
        hold()
        for conn in conns:
            conn.close()


def descriptor(family: int, fd: str) -> None:
    """A descriptor that a parent has passed on: wait on it, and write to it."""
    with std.socket(fileno=int(fd)) as sock:
        assert select.select([sock], [], [], 60.0)[0]
        say("readable")
        try:
            sock.sendall(b"from the child")
            say("sent")
        except OSError as exc:
            say(type(exc).__name__)


def fork(family: int, port: str) -> None:
    """Connect, fork, and send from both, the child first."""
    with connected(family, port) as sock:
        sock.sendall(b"before.")
        child = os.fork()
        if not child:
            with suppress(OSError):
                sock.settimeout(0.2)
                sock.send(b"child.")
            os._exit(0)
        os.waitpid(child, 0)
        sock.sendall(b"parent.")
        sock.shutdown(std.SHUT_WR)
        assert sock.recv(10) == b"and back"
        say("done")


ROLES: Final[dict[str, Callable[..., None]]] = {
    role.__name__: role for role in (idle, many, send, receive, close, listen, descriptor, fork)
}

if __name__ == "__main__":
    ROLES[sys.argv[2]](int(sys.argv[1]), *sys.argv[3:])
