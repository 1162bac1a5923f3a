"""Opens a stream to a peer without anybody waiting for it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from steertag.errors import os_error
from steertag.runtime.loop import READ, WRITE, Registrar
from steertag.runtime.stream import Stream

_UNDER_WAY: Final = (errno.EINPROGRESS, errno.EAGAIN, errno.EALREADY, errno.EINTR)


class ConnectingSocket(Stream, Protocol):
    """A stream socket of any family, non-blocking and not connected yet."""

    def connect_ex(self, address: object, /) -> int: ...
    def getpeername(self) -> object: ...
    def getsockopt(self, level: int, option: int, /) -> int: ...


Target = tuple[int, object]
"""An address family and an address of it."""


class Connector:
    """Tries the addresses of a peer, one after the other, until one takes the connection.

    Args:
        loop: where it registers itself while it waits.
        targets: the peer's addresses.
        make: a socket for one of them, non-blocking; raises OSError where there is none to be had.
        timeout: seconds for all of them together.
        on_done: called once, with the lock held: the open stream, or the last address's error
            (ETIMEDOUT after `timeout`).
    """

    def __init__(
        self,
        loop: Registrar,
        targets: Sequence[Target],
        make: Callable[[Target], ConnectingSocket],
        timeout: float,
        on_done: Callable[[Stream | None, OSError | None], None],
    ) -> None:
        self.deadline: float | None = loop.clock() + timeout
        self._loop = loop
        self._targets = list(targets)
        self._make = make
        self._on_done = on_done
        self._socket: ConnectingSocket | None = None
        self._fd = -1
        self._error = os_error(errno.EADDRNOTAVAIL, "the peer has no address")

    def start(self) -> None:
        """Begin with the first address. To be called once, with the lock held."""
        while self._targets:
            try:
                self._socket = self._make(self._targets[0])
            except OSError as exc:
                self._error = exc
                del self._targets[0]
                continue
            self._fd = self._socket.fileno()
            number = self._socket.connect_ex(self._targets.pop(0)[1])
            if number in _UNDER_WAY:
                self._loop.add(self, READ | WRITE)
                return
            if not number:
                self._succeed()
                return
            self._error = os_error(number)
            self._socket.close()
        self._socket = None
        self._on_done(None, self._error)

    def cancel(self) -> None:
        """Give up: `on_done` is not called any more. With the lock held."""
        self._targets.clear()
        self._on_done = _nobody
        self._drop()

    # -- what the loop asks --------------------------------------------------------------------

    def fileno(self) -> int:
        return self._fd

    def block(self, timeout: float | None) -> bool | None:
        """Its socket doesn't block."""
        return None

    def glance(self, timeout: float | None) -> bool:
        """There is no hurry."""
        return False

    def pump(self) -> bool:
        """Has the handshake ended?"""
        sock = self._socket
        assert sock is not None
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._error = os_error(number)
            self._drop()
            self.start()
            return True
        try:
            sock.getpeername()
        except OSError:
            # Looked at before the descriptor was ready.
            return False
        self._loop.remove(self)
        self._succeed()
        return True

    def close(self) -> None:
        self.cancel()

    def handle_timer(self, now: float) -> None:
        self._targets.clear()
        self._error = os_error(errno.ETIMEDOUT, "the peer's host doesn't answer")
        self._drop()
        self.start()

    # -- inside --------------------------------------------------------------------------------

    def _succeed(self) -> None:
        stream, self._socket = self._socket, None
        self.deadline = None
        self._on_done(stream, None)

    def _drop(self) -> None:
        if self._socket is not None:
            self._loop.remove(self)
            self._socket.close()
            self._socket = None


def _nobody(stream: Stream | None, error: OSError | None) -> None:
    """Nobody waits any more."""
