"""One client's session at a server: the greeting, then one request after another."""

from __future__ import annotations

import dataclasses
import os
import resource
import secrets
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from steertag import socket
from steertag.errors import WireError
from steertag.transfer import rdma
from steertag.transfer.auth import NONCE_OCTETS, SESSION_OCTETS, Challenge, same
from steertag.transfer.control import Control, Restart, failure
from steertag.transfer.digest import new_digest
from steertag.transfer.errors import (
    ConnectionLost,
    ExitCode,
    PathCode,
    PathFailed,
    TransferError,
)
from steertag.transfer.exchange import Outcome, Receiving, Sending
from steertag.transfer.names import escape
from steertag.transfer.paths import PathName
from steertag.transfer.progress import Progress
from steertag.transfer.protocol import (
    MAX_BODY,
    VERSION,
    Auth,
    AuthReply,
    Entry,
    Failed,
    File,
    Get,
    Hello,
    HelloReply,
    List,
    Listing,
    Message,
    PathDown,
    Put,
    Ready,
    Start,
    Started,
)
from steertag.transfer.report import Meter
from steertag.transfer.stream import Stream

if TYPE_CHECKING:
    from steertag.transfer.server import Server

_STRANGER_BODY: Final = 1024
_OFFERS: Final = 2
"""RDMA connections of a client that wait for the attempt they are for: the one that it gave up last
may still be there when the next one comes."""
_ENTRY_OCTETS: Final = 6 * 255 + 200  # a name of escapes only, and the rest of an entry
_ENTRIES_PER_FRAME: Final = MAX_BODY // _ENTRY_OCTETS


class Session:
    """The server's end of one control connection. Runs in a thread of its own."""

    def __init__(self, server: Server, sock: socket.socket, peer: str) -> None:
        self._server = server
        self._config = server.config
        self._meter = Meter(resource.RUSAGE_THREAD)
        self.id = secrets.token_bytes(SESSION_OCTETS)
        self.peer = peer
        self.stream = Stream(sock, self._config.idle_timeout, peer, self._meter)
        self._control = Control(self.stream, serves=True)
        self._offers: deque[tuple[int, rdma.End]] = deque()
        self._offers_lock = threading.Lock()
        self._offered = os.eventfd(0, os.EFD_CLOEXEC)
        self._closed = False
        self._end: rdma.End | None = None
        self._last_error: Failed | None = None

    def shutdown(self) -> None:
        """Make this session end soon; safe from another thread."""
        self.stream.shutdown()
        if self._end is not None:
            self._end.shutdown()

    def close(self) -> None:
        with self._offers_lock:
            self._closed = True
        while self._offers:
            self._offers.popleft()[1].close()
        os.close(self._offered)
        self.stream.close()

    # The greeting

    def greet(self, deadline: float) -> bool:
        """Find out who is there before `deadline`; whether there is a session to run."""
        try:
            self._control.expect_magic(deadline)
            self._control.send_magic()
            try:
                self._say_hello(deadline)
            except TransferError as error:
                self._control.tell(error)
                raise
        except WireError as error:
            self._refuse_octets(error)
        except TransferError as error:
            self._server.count("strangers_dropped")
            self._log("refused", reason=error.message)
        else:
            return True
        return False

    def _say_hello(self, deadline: float) -> None:
        hello = self._control.receive(deadline, _STRANGER_BODY)
        if not isinstance(hello, Hello):
            raise WireError(f"HELLO was due, {hello.KIND.name} came")
        if hello.version != VERSION:
            raise TransferError(
                ExitCode.FAILURE,
                f"this server speaks version {VERSION} of the protocol, you {hello.version}; "
                "install the same steertag on both sides",
            )
        if len(hello.nonce) != NONCE_OCTETS:
            raise WireError(f"a nonce of {len(hello.nonce)} octets, not {NONCE_OCTETS}")
        challenge = Challenge(hello.nonce, secrets.token_bytes(NONCE_OCTETS), self.id)
        token, rdma = self._config.token, self._server.rdma
        reply = HelloReply(
            version=VERSION,
            nonce=challenge.server_nonce,
            session=self.id,
            auth=token is not None,
            writable=self._config.writable,
            rdma=rdma.rdma,
            rdma_reason=rdma.reason,
        )
        self.challenge = challenge
        if token is None:
            self._server.enter(self)
            self._control.send(reply)
        else:
            self._control.send(reply)
            self._check_proof(token, deadline)
            self._server.enter(self)
            self._control.send(AuthReply(challenge.server_proof(token)))

    def _check_proof(self, token: bytes, deadline: float) -> None:
        auth = self._control.receive(deadline, _STRANGER_BODY)
        if not isinstance(auth, Auth):
            raise TransferError(ExitCode.AUTHENTICATION, "this server wants a token first")
        if not same(auth.proof, self.challenge.client_proof(token)):
            self._server.count("auth_failures")
            raise TransferError(
                ExitCode.AUTHENTICATION,
                "the token is not this server's; use the file that `stag serve` named",
            )

    # Requests

    def run(self) -> None:
        """Serve requests until the client leaves."""
        self.stream.use_kernel_limits()
        try:
            while True:
                self._one_request()
        except WireError as error:
            self._refuse_octets(error)
        except ConnectionLost as error:
            self._log("left", reason=error.message)

    def _one_request(self) -> None:
        message = self._control.receive()
        serial = getattr(message, "serial", 0)
        if serial <= self._control.serial:
            if isinstance(message, Hello | Auth):
                raise WireError(f"a second {message.KIND.name}")
            return  # belongs to a request that is over
        self._control.serial = serial
        try:
            self._dispatch(message)
        except ConnectionLost:
            raise
        except TransferError as error:
            self._server.count("failed")
            self._log("failed", code=int(error.code), reason=error.message)
            self._control.tell(error)
            self._last_error = failure(error, self._control.serial, in_words=True)

    def _dispatch(self, message: Message) -> None:
        if isinstance(message, List):
            self._list(message)
        elif isinstance(message, Get):
            self._get(message)
        elif isinstance(message, Put):
            self._put(message)
        elif isinstance(message, Start) and self._last_error is not None:
            # The client has not heard yet that the transfer is over; say it again.
            self._control.send(dataclasses.replace(self._last_error, serial=message.serial))
        elif not isinstance(message, Failed):
            raise WireError(f"a request was due, {message.KIND.name} came")

    def _list(self, request: List) -> None:
        batch: list[Entry] = []
        for entry in self._server.tree.entries(request.name):
            batch.append(entry)
            if len(batch) == _ENTRIES_PER_FRAME:
                self._control.send(Listing(request.serial, tuple(batch), last=False))
                batch.clear()
        self._control.send(Listing(request.serial, tuple(batch), last=True))
        self._server.count("lists")
        self._log("list", name=request.name)

    def _get(self, request: Get) -> None:
        self._meter.restart()
        new_digest(request.digest)
        with self._server.tree.open_source(request.name) as source:
            self._control.send(File(request.serial, source.size, source.mode, source.mtime_ns))
            transfer = Sending(self._control, source, request.digest, self._meter, Progress())
            self._move(transfer, "get", request.name, source.size)

    def _put(self, request: Put) -> None:
        self._meter.restart()
        new_digest(request.digest)
        if not self._config.writable:
            raise TransferError(
                ExitCode.PERMISSION_DENIED,
                f"{escape(request.name)}: this server is read-only; "
                "it takes files when started with --writable",
            )
        tree = self._server.tree
        with tree.open_sink(request.name, request.size, request.replace) as sink:
            self._control.send(Ready(request.serial))
            attributes = (request.mode, request.mtime_ns)
            transfer = Receiving(
                self._control, sink, attributes, request.digest, self._meter, Progress()
            )
            self._move(transfer, "put", request.name, request.size)

    def _move(self, transfer: Sending | Receiving, what: str, name: str, size: int) -> None:
        path, outcome = self._attempts(transfer)
        self._server.count(f"{what}s")
        self._log(what, name=name, bytes=size, path=path, seconds=outcome.seconds)

    def _attempts(self, transfer: Sending | Receiving) -> tuple[PathName, Outcome]:
        """Run attempts as the client asks for them, until one ends well or all is over."""
        start = self._control.expect(Start)
        while True:
            try:
                path = _known_path(start.path)
                if path.is_rdma and not self._server.rdma.rdma:
                    raise PathFailed(PathCode.PEER_NO_RDMA, self._server.rdma.reason)
                self._control.send(Started(start.serial))
                if not path.is_rdma:
                    return path, transfer.run(path, None)
                with self._rdma_end(start.serial) as end:
                    self._end = end
                    end.accept()
                    return path, transfer.run(path, end)
            except PathFailed as error:
                self._control.send(PathDown(start.serial, error.code, error.reason))
                start = self._control.expect(Start)
            except Restart as restart:
                start = restart.start
                self._control.serial = start.serial
            if start.code:
                self._log("fallback", path=start.path, code=start.code, reason=start.reason)

    # RDMA connections

    def offer(self, ticket: rdma.Ticket, end: rdma.End) -> bool:
        """Take over `end`, whose request came with `ticket`; False if it is none of ours."""
        binding = self.challenge.rdma_binding(self._config.token or b"", ticket.serial)
        if not same(binding, ticket.binding):
            return False
        with self._offers_lock:
            if self._closed:
                return False
            if len(self._offers) == _OFFERS:
                self._offers.popleft()[1].close()
            self._offers.append((ticket.serial, end))
            os.eventfd_write(self._offered, 1)
        return True

    def _rdma_end(self, serial: int) -> rdma.End:
        """Wait for the client's RDMA connection of attempt `serial`, or for it to give up."""
        poll = select.poll()
        poll.register(self._offered, select.POLLIN)
        poll.register(self.stream.fileno(), select.POLLIN)
        deadline = time.monotonic() + self._config.idle_timeout
        while (left := deadline - time.monotonic()) > 0:
            ready = [fd for fd, _ in poll.poll(left * 1000)]
            if self._offered in ready:
                os.eventfd_read(self._offered)
                if (end := self._take_offer(serial)) is not None:
                    return end
            elif ready:
                self._control.listen()
        raise PathFailed(PathCode.TIMEOUT, "the RDMA connection did not come")

    def _take_offer(self, serial: int) -> rdma.End | None:
        """The RDMA connection of attempt `serial`, if it is there; older ones are closed."""
        with self._offers_lock:
            while self._offers:
                offered, end = self._offers.popleft()
                if offered == serial:
                    return end
                end.close()
        return None

    # The log

    def _refuse_octets(self, error: WireError) -> None:
        """Tell a peer that sends garbage what was wrong, count it, and leave."""
        self._server.count("wire_errors")
        self._log("garbage", reason=str(error))
        try:
            self._control.tell(TransferError(ExitCode.FAILURE, f"protocol error: {error}"))
        except ConnectionLost:
            self._server.count("strangers_dropped")

    def _log(self, event: str, **values: object) -> None:
        self._server.report({"event": event, "peer": self.peer, **values})


def _known_path(name: str) -> PathName:
    try:
        return PathName(name)
    except ValueError:
        raise WireError(f"unknown path {escape(name)!r}") from None
