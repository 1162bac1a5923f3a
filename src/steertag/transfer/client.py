"""The client: `connect`, then `fetch`, `store` and `list`.

with connect("127.0.0.1", 7824) as client:
    report = client.fetch("movie.mkv", Path("movie.mkv"))
    print(report.path, report.gb_per_s)
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from steertag.errors import WireError
from steertag.family.stack import Stack
from steertag.transfer import rdma
from steertag.transfer.auth import NONCE_OCTETS, SESSION_OCTETS, Challenge, same
from steertag.transfer.control import Control
from steertag.transfer.digest import DEFAULT_DIGEST, new_digest
from steertag.transfer.errors import (
    ConnectionLost,
    ExitCode,
    PathCode,
    PathFailed,
    TransferError,
)
from steertag.transfer.exchange import Outcome, Receiving, Sending
from steertag.transfer.names import printable
from steertag.transfer.paths import (
    AUTO,
    PREFERRED_RDMA,
    PREFERRED_TCP,
    Capability,
    PathName,
    choose,
)
from steertag.transfer.progress import Progress
from steertag.transfer.protocol import (
    MAX_NAME,
    VERSION,
    Auth,
    AuthReply,
    Entry,
    File,
    Get,
    Hello,
    HelloReply,
    List,
    Listing,
    Put,
    Ready,
    Start,
    Started,
)
from steertag.transfer.report import DigestReport, Fallback, Meter, TransferReport
from steertag.transfer.store import open_local_sink, open_local_source
from steertag.transfer.stream import HOST_TCP, Stream, dial
from steertag.transfer.url import DEFAULT_PORT, Url, format_address

CONNECT_TIMEOUT: Final = 10.0
IDLE_TIMEOUT: Final = 30.0
RDMA_TIMEOUT: Final = 3.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a client behaves. Times in seconds.

    Attributes:
        connect_timeout: for the TCP connection and the server's greeting, each.
        idle_timeout: how long the server may be silent once connected.
        rdma_timeout: for an RDMA connection's set-up, before falling back to TCP.
        require_auth: refuse a server that does not ask for the token that we have.
        family: HOST_TCP, or a family whose addresses are IP's.
        stack: where the sockets live; None is the default Stack.
    """

    connect_timeout: float = CONNECT_TIMEOUT
    idle_timeout: float = IDLE_TIMEOUT
    rdma_timeout: float = RDMA_TIMEOUT
    require_auth: bool = True
    family: int = HOST_TCP
    stack: Stack | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What to use for one transfer.

    Attributes:
        path: "auto" or the name of a path.
        digest: one of `digest.DIGESTS`.
        replace: whether an existing destination may go.
    """

    path: str = AUTO
    digest: str = DEFAULT_DIGEST
    replace: bool = True


class Client:
    """A connection to a server, from `connect`. Not for two threads at once.

    Attributes:
        server: what the server said of itself.
    """

    def __init__(self, url: Url, control: Control, options: Options, token: bytes | None) -> None:
        self._url = url
        self._control = control
        self._options = options
        self._capability = partial(rdma.capability, options.stack)
        self._token = token
        self.server, self._challenge = self._greet()
        control.stream.use_kernel_limits()

    def close(self) -> None:
        self._control.stream.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # The greeting

    def _greet(self) -> tuple[HelloReply, Challenge]:
        deadline = time.monotonic() + self._options.connect_timeout
        nonce = secrets.token_bytes(NONCE_OCTETS)
        try:
            self._control.send_magic()
            self._control.send(Hello(VERSION, nonce))
            self._control.expect_magic(deadline)
        except (WireError, ConnectionLost) as error:
            raise TransferError(
                ExitCode.NOT_A_STAG_SERVER,
                f"{self._control.stream.peer} is no stag server ({error}); check host and port",
            ) from error
        reply = self._control.expect(HelloReply)
        if (len(reply.nonce), len(reply.session)) != (NONCE_OCTETS, SESSION_OCTETS):
            raise WireError("its nonce or its session has the wrong length")
        challenge = Challenge(nonce, reply.nonce, reply.session)
        self._authenticate(reply, challenge)
        return reply, challenge

    def _authenticate(self, reply: HelloReply, challenge: Challenge) -> None:
        peer = self._control.stream.peer
        if not reply.auth:
            if self._token is not None and self._options.require_auth:
                raise TransferError(
                    ExitCode.AUTHENTICATION,
                    f"{peer} asks for no token, so it cannot prove that it is the server you mean; "
                    "leave out the token file to talk to it all the same",
                )
            return
        if self._token is None:
            raise TransferError(
                ExitCode.AUTHENTICATION,
                f"{peer} asks for a token; pass --token-file with the file that `stag serve` named",
            )
        self._control.send(Auth(challenge.client_proof(self._token)))
        answer = self._control.expect(AuthReply)
        if not same(answer.proof, challenge.server_proof(self._token)):
            raise TransferError(
                ExitCode.AUTHENTICATION, f"{peer} does not know the token; it is another server"
            )

    # Requests

    @contextmanager
    def _request(self) -> Iterator[None]:
        """What a server that breaks the protocol in the middle of a request means to a person."""
        try:
            yield
        except WireError as error:
            peer = self._control.stream.peer
            raise ConnectionLost(f"{peer} does not keep to the stag protocol: {error}") from error

    def list(self, name: str = "") -> Iterator[Entry]:
        """The entries of directory `name`, or the one of file `name`, in the server's order."""
        with self._request():
            self._control.send(List(self._next_serial(), name))
            last = False
            while not last:
                listing = self._control.expect(Listing)
                last = listing.last
                yield from listing.entries

    def fetch(
        self,
        name: str,
        destination: Path,
        request: Request | None = None,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Fetch file `name` into `destination` (a file's name).

        Raises:
            TransferError: nothing was changed at `destination`.
        """
        request, progress = request or Request(), progress or Progress()
        with self._request():
            return self._fetch(name, destination, request, progress)

    def _fetch(
        self, name: str, destination: Path, request: Request, progress: Progress
    ) -> TransferReport:
        new_digest(request.digest)
        meter = self._new_meter()
        self._control.send(Get(self._next_serial(), name, request.digest))
        file = self._control.expect(File)
        try:
            sink = open_local_sink(destination, file.size, request.replace)
        except TransferError as error:
            self._control.tell(error)
            raise
        with sink:
            progress.begin(name, file.size)
            attributes = (file.mode, file.mtime_ns)
            transfer = Receiving(self._control, sink, attributes, request.digest, meter, progress)
            return self._move(transfer, "get", name, destination, file.size, request, progress)

    def store(
        self,
        source: Path,
        name: str,
        request: Request | None = None,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Send file `source` as `name`.

        Raises:
            TransferError: nothing was changed at the server.
        """
        request, progress = request or Request(), progress or Progress()
        with self._request():
            return self._store(source, name, request, progress)

    def _store(
        self, source: Path, name: str, request: Request, progress: Progress
    ) -> TransferReport:
        new_digest(request.digest)
        with open_local_source(source) as file:
            meter = self._new_meter()
            put = Put(
                serial=self._next_serial(),
                name=name,
                size=file.size,
                mode=file.mode,
                mtime_ns=file.mtime_ns,
                digest=request.digest,
                replace=request.replace,
            )
            self._control.send(put)
            self._control.expect(Ready)
            progress.begin(name, file.size)
            transfer = Sending(self._control, file, request.digest, meter, progress)
            return self._move(transfer, "put", name, source, file.size, request, progress)

    def _new_meter(self) -> Meter:
        meter = self._control.stream.meter
        meter.restart()
        return meter

    def _next_serial(self) -> int:
        self._control.serial += 1
        return self._control.serial

    # Attempts

    def _move(
        self,
        transfer: Sending | Receiving,
        direction: str,
        name: str,
        file: Path,
        size: int,
        request: Request,
        progress: Progress,
    ) -> TransferReport:
        try:
            path, why, outcome, fallback = self._attempts(transfer, request.path, progress)
        finally:
            progress.end()
        return TransferReport(
            direction=direction,
            url=str(Url(self._url.host, self._url.port, name)),
            file=str(file),
            asked=request.path,
            path=path,
            why=why,
            bytes=size,
            seconds=outcome.seconds,
            sync_s=outcome.sync_s,
            own=outcome.own,
            peer=outcome.peer,
            digest=DigestReport(request.digest, outcome.digest.hex(), ok=True),
            fallback=fallback,
        )

    def _attempts(
        self, transfer: Sending | Receiving, asked: str, progress: Progress
    ) -> tuple[PathName, str, Outcome, Fallback | None]:
        first = PREFERRED_RDMA if asked == AUTO else PathName(asked)
        try:
            peer = Capability(self.server.rdma, printable(self.server.rdma_reason))
            choice = choose(asked, self._capability, peer)
            self._start(first)
            if asked == AUTO:
                progress.picked(choice.path, choice.why)
            return first, choice.why, self._attempt(transfer, first), None
        except PathFailed as error:
            if not first.is_rdma:
                raise WireError(f"the server gave up {first}: {error.reason}") from error
            # What ended the path may have ended the transfer; then the server has said so.
            with suppress(PathFailed):
                self._control.listen()
            fallback = Fallback(first, PREFERRED_TCP, error.reason, error.code)
        self._start(PREFERRED_TCP, fallback)
        progress.fell_back(fallback)
        progress.restart()
        outcome = self._attempt(transfer, PREFERRED_TCP)
        return PREFERRED_TCP, f"fell back from {first}: {fallback.reason}", outcome, fallback

    def _start(self, path: PathName, after: Fallback | None = None) -> None:
        code, reason = (after.code, after.reason[:MAX_NAME]) if after else ("", "")
        self._control.send(Start(self._next_serial(), path, code, reason))
        self._control.expect(Started)

    def _attempt(self, transfer: Sending | Receiving, path: PathName) -> Outcome:
        if not path.is_rdma:
            return transfer.run(path, None)
        with self._dial() as end:
            return transfer.run(path, end)

    def _dial(self) -> rdma.End:
        """An RDMA connection to the server, bound to this session and attempt."""
        timeout = self._options.rdma_timeout
        begin = time.monotonic()
        try:
            sock = self._control.stream.sibling(timeout)
        except TimeoutError as error:
            raise PathFailed(
                PathCode.TIMEOUT, f"no second connection to the server in {timeout:g} s"
            ) from error
        except OSError as error:
            raise PathFailed(
                PathCode.REFUSED, f"no second connection to the server: {error.strerror or error}"
            ) from error
        end = rdma.End(sock)
        ticket = rdma.Ticket(
            session=self._challenge.session,
            serial=self._control.serial,
            binding=self._challenge.rdma_binding(self._token or b"", self._control.serial),
        )
        try:
            end.connect(ticket.pack(), max(timeout - (time.monotonic() - begin), 0.01))
        except BaseException:
            end.close()
            raise
        return end


def connect(
    host: str,
    port: int = DEFAULT_PORT,
    token: bytes | None = None,
    options: Options | None = None,
) -> Client:
    """Connect to the server at `host`:`port`.

    Raises:
        TransferError: CANNOT_CONNECT, NOT_A_STAG_SERVER, AUTHENTICATION, BUSY.
    """
    options = options or Options()
    peer = format_address(host, port)
    sock = dial(host, port, options.connect_timeout, options.family, options.stack)
    stream = Stream(sock, options.idle_timeout, peer, Meter())
    try:
        return Client(Url(host, port, ""), Control(stream, serves=False), options, token)
    except WireError as error:
        stream.close()
        raise TransferError(
            ExitCode.NOT_A_STAG_SERVER, f"{peer} does not keep to the stag protocol: {error}"
        ) from error
    except BaseException:
        stream.close()
        raise
