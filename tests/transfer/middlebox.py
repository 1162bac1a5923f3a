"""A TCP middlebox between client and server, in a thread, that breaks connections on purpose."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

from tests.processes import PATIENCE

Filter = Callable[[bytes, bool], bytes | None]
"""Given octets and whether the client sent them; gives what goes on, None to reset both sides."""

_RESET: Final = struct.pack("ii", 1, 0)


def straight(octets: bytes, from_client: bool) -> bytes:
    return octets


class Middlebox:
    """Listens on a port of its own and forwards to `port`.

    Args:
        port: the server's.
        control: filters connections of the stag protocol.
        rdma: filters connections that begin with an MPA Request.
    """

    def __init__(self, port: int, control: Filter = straight, rdma: Filter = straight) -> None:
        self._server = ("127.0.0.1", port)
        self._filters = {False: control, True: rdma}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stop, self._stopped = socket.socketpair()
        self._threads: list[threading.Thread] = []
        self.seen = bytearray()
        """Every octet that passed, in both directions."""
        self.rdma_connections = 0
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=run, args=arguments)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Middlebox:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.close()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listener.close()
        self._stopped.close()

    def _accept(self) -> None:
        while self._wait(self._listener):
            client, _ = self._listener.accept()
            self._start(self._forward, client)

    def _wait(self, *sockets: socket.socket) -> list[socket.socket]:
        """Those that are ready; none when it is time to stop."""
        ready, _, _ = select.select([*sockets, self._stopped], [], [])
        return [] if self._stopped in ready else ready

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            if not self._wait(client):
                return
            is_rdma = client.recv(1, socket.MSG_PEEK) == b"M"
            self.rdma_connections += is_rdma
            change = self._filters[is_rdma]
            while ready := self._wait(client, server):
                for sock in ready:
                    other = server if sock is client else client
                    if not self._pass(sock, other, change, sock is client):
                        return

    def _pass(
        self, sock: socket.socket, other: socket.socket, change: Filter, from_client: bool
    ) -> bool:
        try:
            octets = sock.recv(65536)
            self.seen += octets[:4096]
            changed = change(octets, from_client) if octets else b""
            if changed is None:
                for each in (sock, other):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return False
            other.sendall(changed)
        except OSError:
            return False
        return bool(octets)


class HoldAfter:
    """A filter that passes `count` octets of file data's direction, then nothing any more.

    Attributes:
        held: set when the first octets were held back.
    """

    def __init__(self, count: int) -> None:
        self._left = count
        self.held = threading.Event()

    def __call__(self, octets: bytes, from_client: bool) -> bytes:
        passed = octets[: self._left]
        self._left -= len(passed)
        if len(passed) < len(octets):
            self.held.set()
        return passed


class FlipAt:
    """A filter that inverts one bit of the octet at `position` of what the client sends or gets."""

    def __init__(self, position: int, from_client: bool) -> None:
        self._left = position
        self._from_client = from_client

    def __call__(self, octets: bytes, from_client: bool) -> bytes:
        if from_client is not self._from_client:
            return octets
        position, self._left = self._left, self._left - len(octets)
        if not 0 <= position < len(octets):
            return octets
        changed = bytearray(octets)
        changed[position] ^= 1
        return bytes(changed)
