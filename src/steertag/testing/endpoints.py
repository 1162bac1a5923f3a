"""What a conformance suite is told of a family, and what its checks are written with."""

from __future__ import annotations

import errno
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from steertag.family.msg import Address
from steertag.socket import socket

PATIENCE: Final = 30.0  # seconds until a check that should not wait gives up
BULK: Final = bytes(range(256)) * 2048  # half a MiB


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What a suite needs to know of a family.

    Attributes:
        make: a fresh socket of the type under test.
        address: where the server binds; a port of 0 gets any.
        make_client: a fresh socket for the other side, if that is another Stack's.
    """

    make: Callable[[], socket]
    address: Address
    make_client: Callable[[], socket] | None = None

    def client(self) -> socket:
        sock = (self.make_client or self.make)()
        sock.settimeout(PATIENCE)
        return sock

    @contextmanager
    def bound(self) -> Iterator[socket]:
        with self.make() as sock:
            sock.settimeout(PATIENCE)
            sock.bind(self.address)
            yield sock

    @contextmanager
    def connected(self) -> Iterator[tuple[socket, socket]]:
        """A client and what the server accepted for it."""
        with self.bound() as server, self.client() as client:
            server.listen()
            client.connect(server.getsockname())
            conn, _ = server.accept()
            conn.settimeout(PATIENCE)
            with conn:
                yield client, conn


def expect_errno(call: Callable[[], object], *codes: int) -> None:
    """`call()` raises an OSError with one of these errnos."""
    outcome = outcome_of(call)
    names = [errno.errorcode[code] for code in codes]
    code = outcome.errno if isinstance(outcome, OSError) else None
    assert code in codes, f"{outcome!r} and not one of {names}"


def outcome_of(call: Callable[[], object]) -> object:
    """What `call()` returned, or the OSError that it raised."""
    try:
        return call()
    except OSError as exc:
        return exc


def mask_of(sock: socket, events: int = select.POLLIN | select.POLLOUT) -> int:
    """What poll(2) says of the socket now."""
    poller = select.poll()
    poller.register(sock.fileno(), events)
    ready = poller.poll(0)
    return ready[0][1] if ready else 0


def wait_mask(sock: socket, event: int) -> None:
    """Wait until poll(2) says `event`."""
    poller = select.poll()
    poller.register(sock.fileno(), event)
    assert poller.poll(PATIENCE * 1000), "the descriptor did not become ready"


def read_exactly(sock: socket, count: int) -> bytes:
    parts = []
    while count:
        part = sock.recv(min(count, 65536))
        assert part, f"the stream ended {count} octets early"
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def fill(sock: socket) -> int:
    """Send without blocking until there is no room; returns octets taken."""
    sock.setblocking(False)
    total = 0
    while True:
        try:
            total += sock.send(BULK[:16384])
        except BlockingIOError:
            sock.settimeout(PATIENCE)
            return total


@contextmanager
def ends_quietly() -> Iterator[None]:
    """What a reset looks like depends on when it is found: EPIPE or ECONNRESET."""
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        return


class Calls:
    """A call in a thread of its own, beside what the check does meanwhile."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._outcome: object = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._call()
        except (OSError, AssertionError) as exc:
            self._outcome = exc

    def outcome(self) -> object:
        """What it returned, or the exception that it raised."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the call did not come back"
        return self._outcome
