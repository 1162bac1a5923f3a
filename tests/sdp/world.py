"""The families that the patterns of tests/sdp run over, and what none of them may leave behind.

A pattern is what some program does with its sockets; it asks a `World` for them and knows nothing
of the family. Its end is the World's: every sock gone, no timer set, no memory charged or
registered, and with the Stack closed no descriptor and no thread more than before.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import select
import signal
import socket as std
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from steertag import Stack
from steertag.inet import AF_INET_NEW_TCP
from steertag.runtime.sdp import fabric_of
from steertag.sdp.options import AF_INET_SDP, SDP_TRANSPORT, SDP_ZCOPY_THRESH, SOL_SDP
from steertag.socket import socket
from tests.support import PROJECT

PATIENCE: Final = float(os.environ.get("STEERTAG_PATIENCE", "60"))
"""Seconds until something that should happen counts as never happening."""
ANY: Final = ("127.0.0.1", 0)


@dataclass(frozen=True)
class Kind:
    """A pair of families.

    Attributes:
        server, client: the family numbers.
        processes: whether two processes can talk over it.
        zcopy_thresh: octets from which SDP doesn't copy; None: as it comes.
        carrier: what SDP is over.
    """

    name: str
    server: int
    client: int
    processes: bool = True
    zcopy_thresh: int | None = None
    carrier: str = "host"

    @property
    def sdp(self) -> bool:
        """Whether SDP carries its streams."""
        return self.server == self.client == AF_INET_SDP

    def __str__(self) -> str:
        return self.name


HOST: Final = Kind("host", std.AF_INET, std.AF_INET)
NEW_TCP: Final = Kind("new_tcp", AF_INET_NEW_TCP, AF_INET_NEW_TCP, processes=False)
SDP: Final = Kind("sdp", AF_INET_SDP, AF_INET_SDP)
SDP_ZCOPY: Final = Kind("sdp-zcopy", AF_INET_SDP, AF_INET_SDP, zcopy_thresh=1)
SDP_BCOPY: Final = Kind("sdp-bcopy", AF_INET_SDP, AF_INET_SDP, zcopy_thresh=0)
SDP_NEW_TCP: Final = Kind(
    "sdp-over-new_tcp", AF_INET_SDP, AF_INET_SDP, processes=False, carrier="new_tcp"
)
TO_PLAIN: Final = Kind("sdp-to-plain", std.AF_INET, AF_INET_SDP, processes=False)
FROM_PLAIN: Final = Kind("plain-to-sdp", AF_INET_SDP, std.AF_INET)
KINDS: Final[tuple[Kind, ...]] = (
    HOST,
    NEW_TCP,
    SDP,
    SDP_ZCOPY,
    SDP_BCOPY,
    SDP_NEW_TCP,
    TO_PLAIN,
    FROM_PLAIN,
)


class World:
    """Sockets of a kind, in a Stack of their own."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __enter__(self) -> Self:
        self._descriptors = descriptors()
        self._threads = set(threading.enumerate())
        self.stack = Stack(rng=random.Random(1), load_observers=None)
        if self.kind == FROM_PLAIN:
            self.server_socket().close()  # which brings the family, and its parameters
            self.stack.sysctl.write("net.sdp.listen_grace", "5")
        if self.kind.carrier == "new_tcp":
            socket(AF_INET_NEW_TCP, std.SOCK_STREAM, stack=self.stack).close()  # which brings it
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                eventually(gone(self.left), lambda: f"left over: {self.left()}")
        finally:
            self.stack.close()
        if error is None:
            more = self._more_than_before
            eventually(gone(more), lambda: f"left over: {more()}")

    def left(self) -> list[str]:
        """What a Stack has that no program has open any more."""
        with self.stack.lock:
            found = [repr(sk) for sk in self.stack.socks]
            fabric = fabric_of(self.stack)
            own = 0 if fabric is None else 1  # a reactor's, which has had nothing to do for a while
            if (
                self.kind not in (NEW_TCP, SDP_NEW_TCP) and self.stack.timers.pending > own
            ):  # else in TIME_WAIT
                found.append(f"{self.stack.timers.pending} timers")
            found += [
                f"{prot.memory_allocated.value} quanta of {prot.name}"
                for prot in self.stack.protocols
                if prot.memory_allocated is not None and prot.memory_allocated.value
            ]
            if fabric is not None:
                rnic, handlers = fabric.rnic, fabric.reactor.handlers()
                for each in (rnic.qps, rnic.pds, rnic.table.regions, handlers):
                    found += map(repr, each)
        return found

    def _more_than_before(self) -> list[str]:
        more = [f"{fd} {what}" for fd, what in descriptors().items() if fd not in self._descriptors]
        threads = [each for each in threading.enumerate() if each not in self._threads]
        return more + [repr(each) for each in threads]

    # -- sockets --------------------------------------------------------------------------------

    def server_socket(self) -> socket:
        return self._socket(self.kind.server)

    def client_socket(self) -> socket:
        sock = self._socket(self.kind.client)
        sock.settimeout(PATIENCE)
        return sock

    def _socket(self, family: int) -> socket:
        sock = socket(family, std.SOCK_STREAM, stack=self.stack)
        if family == AF_INET_SDP and self.kind.zcopy_thresh is not None:
            sock.setsockopt(SOL_SDP, SDP_ZCOPY_THRESH, self.kind.zcopy_thresh)
        if family == AF_INET_SDP and self.kind.carrier != "host":
            sock.setsockopt(SOL_SDP, SDP_TRANSPORT, self.kind.carrier.encode())
        return sock

    @contextmanager
    def listening(self, backlog: int = 128) -> Iterator[socket]:
        with self.server_socket() as server:
            server.settimeout(PATIENCE)
            server.bind(ANY)
            server.listen(backlog)
            if self.kind == TO_PLAIN:
                self._be_found_plain(server)
            yield server

    def _be_found_plain(self, server: socket) -> None:
        """Refuse a first attempt over SDP, so that clients remember to make none."""
        connecting = Task(self.connect, server)
        for _ in range(2):
            server.accept()[0].close()
        connecting.result().close()

    def connect(self, server: socket) -> socket:
        client = self.client_socket()
        try:
            client.connect(server.getsockname())
        except BaseException:
            client.close()
            raise
        return client

    @contextmanager
    def connected(self, timeout: float | None = PATIENCE) -> Iterator[tuple[socket, socket]]:
        """A client, and what the server accepted for it.

        The client connects in a thread: a server that tells plain TCP from SDP by the first octets
        may need them before `accept` returns.
        """
        with self.listening() as server:
            connecting = Task(self.connect, server)
            conn, _ = server.accept()
            with conn, connecting.result() as client:
                client.settimeout(timeout)
                conn.settimeout(timeout)
                yield client, conn

    @contextmanager
    def visited(self, role: str, *arguments: object) -> Iterator[tuple[socket, Peer]]:
        """Another process that connects (tests/sdp/peer.py), and what was accepted for it."""
        with self.listening() as server:
            port = server.getsockname()[1]
            with Peer(self.kind.client, role, port, *arguments) as peer:
                conn, _ = server.accept()
                with conn:
                    conn.settimeout(PATIENCE)
                    yield conn, peer


class Task:
    """A call in a thread of its own, whose result or exception is asked for later."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:  # noqa: ANN401
        self._outcome: list[Any] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call, *arguments), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[..., Any], *arguments: Any) -> None:  # noqa: ANN401
        try:
            self._outcome.append(call(*arguments))
        except BaseException as exc:  # noqa: BLE001 - `result` raises it
            self._error = exc

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, timeout: float = PATIENCE) -> Any:  # noqa: ANN401
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "it waits and waits"
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # a cycle otherwise, which keeps what the frames of its traceback had
        return self._outcome.pop()


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Run the calls at once, each in a thread; what they returned."""
    tasks = [Task(call) for call in calls]
    return [task.result() for task in tasks]


def eventually(holds: Callable[[], bool], otherwise: Callable[[], str] = str) -> None:
    """Wait for what becomes true by itself, and has no descriptor to wait on."""
    pause, wait = threading.Event(), 0.001
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(otherwise())
        pause.wait(wait)
        wait = min(2 * wait, 0.1)


def gone(left: Callable[[], list[str]]) -> Callable[[], bool]:
    """Whether nothing is left but garbage, if anything."""

    def holds() -> bool:
        if left():
            gc.collect()
        return not left()

    return holds


def descriptors() -> dict[int, str]:
    """This process's open descriptors, and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the directory's own
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


class Peer:
    """Another process at the other end; killed, if need be, where its `with` block ends."""

    def __init__(
        self, family: int, role: str, *arguments: object, pass_fds: tuple[int, ...] = ()
    ) -> None:
        words = [sys.executable, "-m", "tests.sdp.peer", family, role, *arguments]
        self.process = subprocess.Popen(
            list(map(str, words)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            pass_fds=pass_fds,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "the peer says nothing"
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """As a machine that hangs: nothing in it moves, but its kernel."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)


# -- octets ---------------------------------------------------------------------------------------


@functools.lru_cache(64)
def octets(size: int, seed: int = 1) -> bytes:
    """Contents of a stream, the same for the same arguments."""
    return random.Random(seed).randbytes(size)


def read_exactly(sock: socket, count: int, step: int = 1 << 18) -> bytearray:
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        part = sock.recv_into(view[got : got + step])
        assert part, f"the stream ended {count - got} octets early"
        got += part
    return data


def read_to_end(sock: socket, step: int = 1 << 18) -> bytes:
    parts = []
    while part := sock.recv(step):
        parts.append(part)
    return b"".join(parts)


def send_and_shut(sock: socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(std.SHUT_WR)


def readable(sock: socket, timeout: float = PATIENCE) -> bool:
    return _ready(sock, select.POLLIN, timeout)


def writable(sock: socket, timeout: float = PATIENCE) -> bool:
    return _ready(sock, select.POLLOUT, timeout)


def _ready(sock: socket, event: int, timeout: float) -> bool:
    poller = select.poll()
    poller.register(sock.fileno(), event)
    return bool(poller.poll(timeout * 1000))
