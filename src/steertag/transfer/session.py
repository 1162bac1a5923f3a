"""One client's session at a server: the greeting, then one request after another."""

from __future__ import annotations

import resource
import secrets
import socket
from typing import TYPE_CHECKING, Final

from steertag.errors import WireError
from steertag.transfer.auth import NONCE_OCTETS, SESSION_OCTETS, Challenge, same
from steertag.transfer.control import Control, Restart
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

    def close(self) -> None:
        self.stream.close()

    # The greeting

    def greet(self, deadline: float) -> bool:
        """Find out who is there before `deadline`; whether there is a session to run."""
        try:
            self._control.expect_magic(deadline)
            self._control.send_magic()
            try:
                self._say_hello(deadline)
                self._server.enter(self)
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
        self._control.send(reply)
        if token is not None:
            self._authenticate(token, challenge, deadline)
        self.challenge = challenge

    def _authenticate(self, token: bytes, challenge: Challenge, deadline: float) -> None:
        auth = self._control.receive(deadline, _STRANGER_BODY)
        if not isinstance(auth, Auth):
            raise TransferError(ExitCode.AUTHENTICATION, "this server wants a token first")
        if not same(auth.proof, challenge.client_proof(token)):
            self._server.count("auth_failures")
            raise TransferError(
                ExitCode.AUTHENTICATION,
                "the token is not this server's; use the file that `stag serve` named",
            )
        self._control.send(AuthReply(challenge.server_proof(token)))

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

    def _dispatch(self, message: Message) -> None:
        if isinstance(message, List):
            self._list(message)
        elif isinstance(message, Get):
            self._get(message)
        elif isinstance(message, Put):
            self._put(message)
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
                self._control.send(Started(start.serial))
                if path.is_rdma:
                    raise PathFailed(PathCode.PEER_NO_RDMA, "the server has no RDMA")
                return path, transfer.run(path)
            except PathFailed as error:
                self._control.send(PathDown(start.serial, error.code, error.reason))
                start = self._control.expect(Start)
            except Restart as restart:
                start = restart.start
                self._control.serial = start.serial

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
