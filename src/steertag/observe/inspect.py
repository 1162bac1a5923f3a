"""A running process shows itself to its user: the socket behind `stag rdma`, `stag sockets`, ...

The first RNIC that a process opens starts it, or the first network device that is driven (`attach`
is announced in the entry-point group `steertag.observers`). A thread of its own waits for questions
on a Unix socket that only the same user and root can reach, and answers one at a time:

    {"version": 1, "want": ["rdma", "sockets", "sysctl"]}\\n      at most 4096 octets, in 2 seconds
    {"version": 1, "pid": ..., "comm": ..., "closed": {...}, "rdma": [...], ...}   then end of file

What can be wanted is in `WANTS`. `closed` has the counters of RNICs that are closed by now.

What doesn't keep to this is dropped without an answer. Under a Context's lock no more than a few
queue pairs are looked at in one go, and where the lock isn't to be had (a program that drives
progress itself holds it while it waits) the numbers are read without it.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket as host
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from weakref import ReferenceType, WeakSet, ref

from steertag.family.stack import Stack
from steertag.observe import links, netstat, processes, rendezvous, sockets, sysctl
from steertag.observe.resources import Numbers, contexts_json, named_counters
from steertag.rdma.counters import Counters
from steertag.runtime.netdev import NetDriver
from steertag.socket.default import default_stack
from steertag.verbs.device import Context

VERSION: Final = 1
MAX_REQUEST: Final = 4096
WANTS: Final = ("rdma", "sockets", "sysctl", "netstat", "links")
_REQUEST_SECONDS: Final = 2.0
_ANSWER_SECONDS: Final = 10.0
_PAUSE: Final = 0.1
_CHUNK: Final = 32768
_BACKLOG: Final = 8
_CREDENTIALS: Final = struct.Struct("@3i")
_LOG: Final = logging.getLogger("steertag.observe")


class Inspector:
    """Answers questions about the RNICs and the Stacks that it was shown, and the default Stack.

    Args:
        directory: where its socket goes; made if need be.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket: host.socket | None = None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._failed = False
        self._numbers = Numbers()
        self._contexts: dict[ReferenceType[Context], Counters] = {}
        self._stacks: WeakSet[Stack] = WeakSet()
        self._past = Counters()

    def watch(self, context: object) -> None:
        """Show an RNIC from now on, or a Stack whose network devices are driven; the first one
        opens the socket. Never raises."""
        with self._lock:
            if isinstance(context, NetDriver):
                self._stacks.add(context.stack)
            elif isinstance(context, Context):
                self._living()
                self._contexts[ref(context)] = context.rnic.closed_counters
                self._numbers.of(context)
            else:
                return
            if self._socket is None and not self._failed:
                self._open()

    def start(self) -> None:
        """Open the socket, RNIC or not. Never raises."""
        with self._lock:
            if self._socket is None and not self._failed:
                self._open()

    def close(self) -> None:
        """Remove the socket; at the end of the process."""
        with self._lock:
            listener, self._socket = self._socket, None
            self._failed = True
            if listener is None:
                return
            try:
                with rendezvous.opened(self._directory, create=False) as fd:
                    os.unlink(rendezvous.socket_name(os.getpid()), dir_fd=fd)
            except OSError as exc:
                _LOG.debug("the socket is gone already: %s", exc)
            listener.close()

    def forget(self) -> None:
        """In a child after a fork: the socket, and the RNICs whose threads are no more, are the
        parent's."""
        listener, self._socket = self._socket, None
        self._reset()
        if listener is not None:
            listener.close()

    def _living(self) -> list[Context]:
        """The RNICs that are open; what the others have counted is kept. With the lock held."""
        living = []
        for reference, counters in list(self._contexts.items()):
            context = reference()
            if context is not None and not context.closed:
                living.append(context)
            else:
                del self._contexts[reference]
                self._past.add(counters)
        return living

    # -- the socket ----------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self._socket = _listen(self._directory)
            thread = threading.Thread(
                target=self._serve, args=(self._socket,), name="steertag-inspect", daemon=True
            )
            thread.start()
        except (OSError, RuntimeError) as exc:  # RuntimeError: the interpreter is ending
            self._failed = True
            reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
            if isinstance(exc, OSError) and exc.filename is not None:
                reason = f"{exc.filename}: {reason}"
            _LOG.warning("steertag: this process can't be inspected: %s", reason)
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _serve(self, listener: host.socket) -> None:
        while self._socket is listener:
            try:
                peer, _ = listener.accept()
            except OSError:
                # No descriptor for it at the moment, or the end of the process.
                time.sleep(_PAUSE)
                continue
            with peer:
                try:
                    self._answer(peer)
                except OSError as exc:
                    _LOG.debug("a peer of the inspection socket left: %s", exc)
                except Exception:  # noqa: BLE001  # never the inspected program's affair
                    _LOG.debug("the answer could not be made", exc_info=True)

    def _answer(self, peer: host.socket) -> None:
        if _uid_of(peer) not in (os.geteuid(), 0):
            return
        want = _request_untrusted(_read_line(peer))
        if want is None:
            return
        deadline = time.monotonic() + _ANSWER_SECONDS
        waiting = bytearray()
        for part in self._document(want):
            waiting += part
            if len(waiting) >= _CHUNK:
                _send(peer, waiting, deadline)
                waiting.clear()
        _send(peer, waiting, deadline)

    def _document(self, want: list[str]) -> Iterator[bytes]:
        """The answer, in parts: no part keeps other threads from the interpreter for long."""
        head = {"version": VERSION, "pid": os.getpid(), "comm": processes.own_name()}
        yield json.dumps(head)[:-1].encode()
        if "rdma" in want:
            with self._lock:
                living, past = self._living(), named_counters(self._past)
            yield b', "closed": ' + json.dumps(past).encode() + b', "rdma": '
            yield from contexts_json(living, self._numbers)
        default = default_stack()
        with self._lock:
            stacks = [default, *(stack for stack in self._stacks if stack is not default)]
        if "sockets" in want:
            rows = [row for stack in stacks for row in sockets.as_json(stack)]
            yield b', "sockets": ' + json.dumps(rows).encode()
        if "sysctl" in want:
            yield b', "sysctl": ' + json.dumps(sysctl.as_json(default)).encode()
        if "netstat" in want:
            counters = [groups for stack in stacks if (groups := netstat.groups(stack))]
            yield b', "netstat": ' + json.dumps(counters).encode()
        if "links" in want:
            devices = [link for stack in stacks for link in links.links(stack)]
            yield b', "links": ' + json.dumps(devices).encode()
        yield b"}\n"


def _listen(directory: Path) -> host.socket:
    """A listening socket of mode 0600 under this process's name, which appears once it listens."""
    listener = host.socket(host.AF_UNIX, host.SOCK_STREAM)
    try:
        with rendezvous.opened(directory, create=True) as fd:
            rendezvous.sweep(fd)
            hidden = rendezvous.hidden_name()
            listener.bind(rendezvous.address(fd, hidden))
            try:
                os.chmod(rendezvous.address(fd, hidden), 0o600)
                listener.listen(_BACKLOG)
                name = rendezvous.socket_name(os.getpid())
                os.rename(hidden, name, src_dir_fd=fd, dst_dir_fd=fd)
            except OSError:
                os.unlink(hidden, dir_fd=fd)
                raise
    except OSError:
        listener.close()
        raise
    return listener


def _send(peer: host.socket, octets: bytearray, deadline: float) -> None:
    sent = 0
    while sent < len(octets):
        peer.settimeout(_left(deadline))
        with memoryview(octets) as view, view[sent:] as rest:
            sent += peer.send(rest)


def _uid_of(peer: host.socket) -> int:
    octets = peer.getsockopt(host.SOL_SOCKET, host.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(octets)[1])


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the peer is too slow")
    return left


def _read_line(peer: host.socket) -> bytes:
    """What the peer sends up to a line's end. Raises TimeoutError for one that takes its time."""
    deadline = time.monotonic() + _REQUEST_SECONDS
    line = bytearray()
    while len(line) <= MAX_REQUEST and not line.endswith(b"\n"):
        peer.settimeout(_left(deadline))
        octets = peer.recv(MAX_REQUEST + 1 - len(line))
        if not octets:
            break
        line += octets
    return bytes(line)


def _request_untrusted(line: bytes) -> list[str] | None:
    """What is asked for; None for what is no request."""
    if not line.endswith(b"\n") or len(line) > MAX_REQUEST:
        return None
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict) or request.get("version") != VERSION:
        return None
    want = request.get("want")
    if not isinstance(want, list) or not all(name in WANTS for name in want):
        return None
    return want


# The socket is the process's, named by its number, and so is what serves it.
_lock = threading.Lock()
_inspector: Inspector | None = None


def process_inspector() -> Inspector | None:
    """The inspector of this process; None where the environment says `off`."""
    global _inspector
    with _lock:
        if _inspector is None:
            directory = rendezvous.directory()
            if directory is None:
                return None
            _inspector = Inspector(directory)
            atexit.register(_inspector.close)
            os.register_at_fork(after_in_child=_forked)
        return _inspector


def _forked() -> None:
    global _lock
    _lock = threading.Lock()
    if _inspector is not None:
        _inspector.forget()


def start() -> None:
    """Have this process shown now, before it opens an RNIC, or without one. Never raises."""
    inspector = process_inspector()
    if inspector is not None:
        inspector.start()


def attach(stack: Stack) -> None:
    """Have the RNICs of `stack` shown by this process's inspector."""
    inspector = process_inspector()
    if inspector is not None:
        stack.observers.append(inspector.watch)
