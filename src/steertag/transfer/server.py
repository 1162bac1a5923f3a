"""The server: one listening port, a thread for each client.

    with Server(ServerConfig(Path("/srv/files"))) as server:
        print(server.url)
        server.wait()

A connection is classified by its first octets: an MPA Request is RDMA's, anything else has to be
the stag protocol. What strangers can cost is bounded: in connections (`max_clients`,
`max_strangers`), in time (`hello_timeout`, `idle_timeout`) and in memory (frames are small, a
session's buffers fixed).
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from steertag import socket
from steertag.errors import WireError
from steertag.family.stack import Stack
from steertag.transfer import rdma
from steertag.transfer.errors import ExitCode, PathFailed, TransferError
from steertag.transfer.names import escape
from steertag.transfer.paths import Capability
from steertag.transfer.session import Session
from steertag.transfer.store import Tree
from steertag.transfer.stream import HOST_TCP, is_loopback, is_rdma, listen, shut
from steertag.transfer.url import DEFAULT_PORT, SCHEME, format_address

Event = dict[str, Any]
"""What happened, for a log: `event` names it."""

_ACCEPT_PAUSE: Final = 0.1


def _unheard(_: Event) -> None:
    """The log that nobody reads."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What to serve, to whom, and how much of it. Times in seconds.

    Attributes:
        directory: what is served.
        host, port: where; port 0 lets the kernel choose.
        family: HOST_TCP, or a family whose addresses are IP's.
        stack: where its sockets live; None is the default Stack.
        writable: whether clients may put files.
        token: what clients have to know; without one everybody gets in.
        no_auth: said on purpose: no token although the address is no loopback one.
        rdma: whether to offer the RDMA paths.
        max_clients: sessions at once; one more is told that the server is busy.
        max_strangers: connections that have not yet said who they are.
        hello_timeout: for a connection to say who it is, all in all.
        idle_timeout: how long a client may be silent.
        on_event: called with each event, from the session's thread.
    """

    directory: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    family: int = HOST_TCP
    stack: Stack | None = None
    writable: bool = False
    token: bytes | None = None
    no_auth: bool = False
    rdma: bool = True
    max_clients: int = 64
    max_strangers: int = 32
    hello_timeout: float = 10.0
    idle_timeout: float = 60.0
    on_event: Callable[[Event], None] = _unheard


class Server:
    """Serves from construction on, until `close`.

    Attributes:
        host, port: where it listens.
        counters: connections, refused, strangers_dropped, wire_errors, gets, puts, lists, failed.

    Raises:
        TransferError: the directory cannot be served or the address not be bound.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.counters: Counter[str] = Counter()
        self.rdma = (
            rdma.capability(config.stack) if config.rdma else Capability(False, "off by --no-rdma")
        )
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, Callable[[], None]] = {}
        """Each connection's thread, and what wakes it when the server closes."""
        self._sessions: dict[bytes, Session] = {}
        self._strangers = 0
        self._closing = False
        self.tree = Tree(config.directory)
        try:
            self._listener = listen(config.host, config.port, config.family, config.stack)
        except TransferError:
            self.tree.close()
            raise
        self.host, self.port = self._listener.getsockname()[:2]
        if not (config.token or config.no_auth or is_loopback(self.host)):
            self._listener.close()
            self.tree.close()
            raise TransferError(
                ExitCode.USAGE,
                f"{self.host} can be reached by others: give a token, or say that anybody may come",
            )
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._acceptor = threading.Thread(target=self._accept_all, name="stag-accept")
        self._acceptor.start()

    @property
    def url(self) -> str:
        """The served directory's URL."""
        return f"{SCHEME}{format_address(self.host, self.port)}/"

    def wait(self) -> None:
        """Block until `close` is called from another thread or a signal handler raises."""
        self._acceptor.join()

    def close(self) -> None:
        """Stop listening, end every session, wait for their threads."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        os.eventfd_write(self._wake_fd, 1)
        self._acceptor.join()
        with self._lock:
            threads = dict(self._threads)
        for wake in threads.values():
            wake()
        for thread in threads:
            thread.join()
        self._listener.close()
        os.close(self._wake_fd)
        self.tree.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def report(self, event: Event) -> None:
        """Log `event`."""
        self.config.on_event(event)

    def count(self, name: str) -> None:
        """Count one more `name`."""
        with self._lock:
            self.counters[name] += 1

    # Accepting

    def _accept_all(self) -> None:
        poll = select.poll()
        poll.register(self._listener.fileno(), select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        while not self._closing:
            ready = [fd for fd, _ in poll.poll()]
            if self._wake_fd in ready:
                return
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                continue  # the client left before we came
            except OSError as error:
                # Out of descriptors or memory, or the client left: the listener lives on.
                self.report({"event": "accept-failed", "reason": error.strerror or str(error)})
                time.sleep(_ACCEPT_PAUSE)
                continue
            self._admit(sock, address)

    def _admit(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        peer = format_address(str(address[0]), int(address[1]))
        with self._lock:
            self.counters["connections"] += 1
            room = self._strangers < self.config.max_strangers and not self._closing
            if room:
                self._strangers += 1
                thread = threading.Thread(
                    target=self._serve, args=(sock, peer), name=f"stag-{peer}"
                )
                self._threads[thread] = lambda: shut(sock)
            else:
                self.counters["refused"] += 1
        if room:
            thread.start()
        else:
            sock.close()
            self.report({"event": "refused", "peer": peer, "reason": "too many connections"})

    def _serve(self, sock: socket.socket, peer: str) -> None:
        """A connection's thread: find out what it is, then run it."""
        try:
            if is_rdma(sock, self.config.hello_timeout):
                self._take_rdma(sock, peer)
            else:
                self._run_session(sock, peer)
        finally:
            with self._lock:
                del self._threads[threading.current_thread()]

    def _run_session(self, sock: socket.socket, peer: str) -> None:
        session = Session(self, sock, peer)
        try:
            with self._lock:
                self._threads[threading.current_thread()] = session.shutdown
                closing = self._closing
            try:
                known = not closing and session.greet(time.monotonic() + self.config.hello_timeout)
            finally:
                self._no_stranger()
            if known:
                session.run()
        finally:
            with self._lock:
                self._sessions.pop(session.id, None)
            session.close()

    def _take_rdma(self, sock: socket.socket, peer: str) -> None:
        """Read an MPA Request and hand the connection to the session that it names."""
        end = rdma.End(sock)
        try:
            ticket = rdma.Ticket.parse(end.request(self.config.hello_timeout))
            with self._lock:
                session = self._sessions.get(ticket.session)
            if self.rdma.rdma and session is not None and session.offer(ticket, end):
                return
            # Before the answer: what a peer has been told, the counters tell already.
            self.count("wire_errors")
            reason = "no such session"
            end.reject()
        except (PathFailed, WireError) as error:
            self.count("wire_errors")
            reason = str(error)
        finally:
            self._no_stranger()
        end.close()
        self.report({"event": "rdma-refused", "peer": peer, "reason": reason})

    def _no_stranger(self) -> None:
        with self._lock:
            self._strangers -= 1

    def enter(self, session: Session) -> None:
        """Make room for a session that has shown that it may be here.

        Raises:
            TransferError: BUSY.
        """
        with self._lock:
            if len(self._sessions) >= self.config.max_clients:
                self.counters["refused"] += 1
                raise TransferError(
                    ExitCode.BUSY,
                    f"the server already serves {self.config.max_clients} clients; try again later",
                )
            self._sessions[session.id] = session

    def describe(self) -> str:
        """The line that tells a person where and what is served."""
        mode = "writable" if self.config.writable else "read-only"
        rdma = "yes" if self.rdma.rdma else f"no, {self.rdma.reason}"
        return f"serving {escape(str(self.config.directory))} on {self.url} ({mode}, rdma: {rdma})"
