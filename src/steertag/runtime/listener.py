"""Accepts streams and sees them through the Request of their MPA set-up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from steertag.rdma.connection import REQUEST_TIMEOUT, Connection
from steertag.rdma.mpa_state import MpaState
from steertag.runtime.driver import StreamDriver, TapFor
from steertag.runtime.loop import READ, Registrar
from steertag.runtime.stream import Stream

_ACCEPTS: Final = 16
_PAUSE: Final = 0.1
"""Seconds to leave peers in the backlog when there is no descriptor for them."""


class ListeningSocket(Protocol):
    """A listening, non-blocking stream socket."""

    def fileno(self) -> int: ...
    def accept(self) -> tuple[Stream, object]: ...
    def close(self) -> None: ...


class Listener:
    """Args:
    loop: where it registers itself.
    socket: listening and non-blocking; closed with the listener.
    backlog: connections at most that are being set up or wait to be accepted. Where there is one
        more, the one that has been without a Request for longest makes room for it: a peer sends
        its Request at once, and one that doesn't must not keep others out. Where all have sent
        theirs and wait for the application, the new one is closed.
    timeout: seconds that a peer has to send its Request.
    tap_for: asked for what sees the octets of each connection.

    Attributes:
        socket: the listening socket.
        backlog: as given.
        requests: connections whose Request is here, oldest first.
        refused: connections closed because the backlog was full.
        dropped: those of them that made room for another one, their Request not having come.
        on_requests: called after `requests` has changed, where somebody set it; not for `take`.
    """

    def __init__(
        self,
        loop: Registrar,
        socket: ListeningSocket,
        backlog: int,
        timeout: float = REQUEST_TIMEOUT,
        tap_for: TapFor | None = None,
    ) -> None:
        self.requests: deque[tuple[Connection, StreamDriver]] = deque()
        self.refused = 0
        self.dropped = 0
        self.on_requests: Callable[[], None] | None = None
        self.deadline: float | None = None
        self.closed = False
        self._loop = loop
        self.socket = socket
        self._fd = socket.fileno()
        self.backlog = backlog
        self._timeout = timeout
        self._tap_for = tap_for
        self._half_open: dict[Connection, StreamDriver] = {}
        loop.add(self)

    def fileno(self) -> int:
        return self._fd

    def handle_timer(self, now: float) -> None:
        """Look again, after descriptors ran out."""
        self.deadline = None
        self._loop.wait_on(self, READ)

    def block(self, timeout: float | None) -> bool | None:
        """Its socket doesn't block."""
        return None

    def glance(self, timeout: float | None) -> bool:
        """There is no hurry."""
        return False

    def pump(self) -> bool:
        for accepted in range(_ACCEPTS):
            try:
                stream, _ = self.socket.accept()
            except BlockingIOError:
                return accepted > 0
            except ConnectionError:
                # A peer that was gone before it was taken.
                continue
            except OSError:
                # No descriptors or memory: the peers wait in the backlog until there are some.
                self.deadline = self._loop.clock() + _PAUSE
                self._loop.wait_on(self, 0)
                self._loop.schedule(self)
                return accepted > 0
            self._prune()
            if len(self._half_open) + len(self.requests) >= self.backlog:
                self.refused += 1
                if not self._half_open:
                    stream.close()
                    continue
                self.dropped += 1
                next(iter(self._half_open.values())).close()
            self._begin(stream)
        return True

    def take(self) -> tuple[Connection, StreamDriver] | None:
        """The oldest connection whose Request is here, unless it has waited too long."""
        while self.requests:
            connection, driver = self.requests.popleft()
            if connection.state is MpaState.REQUESTED:
                return connection, driver
        return None

    def close(self) -> None:
        """Stop listening; connections that nobody has taken are closed."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove(self)
        self.socket.close()
        for driver in [*self._half_open.values(), *(driver for _, driver in self.requests)]:
            driver.close()
        self._half_open.clear()
        self.requests.clear()

    def _begin(self, stream: Stream) -> None:
        connection = respond(self._loop, stream, self._changed, self._timeout, self._tap_for)
        self._half_open[connection[0]] = connection[1]
        self._changed()
        self._loop.notify()

    def _changed(self) -> None:
        for connection, driver in list(self._half_open.items()):
            if connection.state is MpaState.REQUESTED:
                del self._half_open[connection]
                self.requests.append((connection, driver))
                self._loop.notify()
        self._prune()
        if self.on_requests is not None:
            self.on_requests()

    def _prune(self) -> None:
        self._half_open = {c: d for c, d in self._half_open.items() if not d.closed}
        self.requests = deque(
            (c, d) for c, d in self.requests if c.state is MpaState.REQUESTED and not d.closed
        )


def respond(
    loop: Registrar,
    stream: Stream,
    on_change: Callable[[], None],
    timeout: float = REQUEST_TIMEOUT,
    tap_for: TapFor | None = None,
) -> tuple[Connection, StreamDriver]:
    """Wait for the MPA Request on a stream that is connected already."""
    connection = Connection.respond(loop.clock(), timeout, on_change)
    return connection, StreamDriver(loop, connection, stream, tap_for=tap_for)
