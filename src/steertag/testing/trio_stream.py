"""A socket of any family as a trio stream, for trio's own conformance suite. Needs trio.

trio.run(check_trio_stream, Endpoints(make=..., address=...))
"""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import SHUT_WR
from typing import Final

import trio
from trio.testing import check_half_closeable_stream

from steertag.socket import socket
from steertag.testing.endpoints import BULK, Endpoints

_SETTLED: Final = 50.0
"""Milliseconds after which a stream that takes no more is clogged for good."""
_SIZE: Final = 65536


class TrioStream(trio.abc.HalfCloseableStream):
    """A connected SOCK_STREAM socket as `trio.SocketStream` has the standard library's.

    It waits on the socket's descriptor, so what it shows is what the descriptor says.
    """

    def __init__(self, sock: socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._busy: set[str] = set()
        self._sent_eof = False

    @contextmanager
    def _alone(self, direction: str) -> Iterator[None]:
        if direction in self._busy:
            raise trio.BusyResourceError(f"another task is {direction} already")
        self._busy.add(direction)
        try:
            yield
        except OSError as exc:
            if exc.errno == errno.EBADF or self.socket.fileno() == -1:
                raise trio.ClosedResourceError("this socket was already closed") from None
            raise trio.BrokenResourceError(f"socket connection broken: {exc}") from exc
        finally:
            self._busy.remove(direction)

    def _check_sending(self) -> None:
        if self.socket.fileno() == -1 or self._sent_eof:
            raise trio.ClosedResourceError("this stream is closed for sending")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._alone("sending"):
            await trio.lowlevel.checkpoint()
            self._check_sending()
            rest = memoryview(data)
            while rest:
                try:
                    rest = rest[self.socket.send(rest) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.socket.fileno())

    async def wait_send_all_might_not_block(self) -> None:
        with self._alone("sending"):
            await trio.lowlevel.checkpoint()
            self._check_sending()
            await trio.lowlevel.wait_writable(self.socket.fileno())

    async def send_eof(self) -> None:
        with self._alone("sending"):
            await trio.lowlevel.checkpoint()
            if self._sent_eof:
                return
            self._check_sending()
            self._sent_eof = True
            self.socket.shutdown(SHUT_WR)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        size = _SIZE if max_bytes is None else max_bytes
        if not isinstance(size, int):
            raise TypeError("max_bytes must be an integer")
        if size < 1:
            raise ValueError("max_bytes must be >= 1")
        with self._alone("receiving"):
            await trio.lowlevel.checkpoint()
            while True:
                try:
                    return self.socket.recv(size)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self.socket.fileno())

    async def aclose(self) -> None:
        if self.socket.fileno() != -1:
            trio.lowlevel.notify_closing(self.socket.fileno())
            self.socket.close()
        await trio.lowlevel.checkpoint()


def _pair(ends: Endpoints) -> tuple[TrioStream, TrioStream]:
    with ends.bound() as server:
        server.listen()
        client = ends.client()
        client.connect(server.getsockname())
        return TrioStream(client), TrioStream(server.accept()[0])


def _clog(*socks: socket) -> None:
    """Send on each until nothing more is taken, also after what is on its way has arrived."""
    taken = True
    while taken:
        taken = False
        for sock in socks:
            poller = select.poll()
            poller.register(sock.fileno(), select.POLLOUT)
            poller.poll(_SETTLED)
            for size in (_SIZE, 1):  # where many octets have no room, one may have
                with suppress(BlockingIOError):
                    while sock.send(BULK[:size]):
                        taken = True


async def check_trio_stream(ends: Endpoints) -> None:
    """trio's `check_half_closeable_stream` over a family's streams. Raises AssertionError."""

    async def streams() -> tuple[TrioStream, TrioStream]:
        await trio.lowlevel.checkpoint()
        return _pair(ends)

    async def clogged() -> tuple[TrioStream, TrioStream]:
        left, right = await streams()
        _clog(left.socket, right.socket)
        return left, right

    await check_half_closeable_stream(streams, clogged)
