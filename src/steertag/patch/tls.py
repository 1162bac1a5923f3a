"""TLS over sockets that have no descriptor of the host's: an SSLSocket over memory BIOs.

The standard library's SSLSocket is kept whole, so that programs find the class they know and what
it does. Two things are put under it: `_Carrier`, in the place of the host's socket, passes calls on
to one of ours; and `_Engine`, in the place of OpenSSL's own socket object, moves records between
that socket and a memory BIO. Records are read one by one, header first: what select says of the
socket is then as true as it is of the host's.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, Final

from steertag.patch.sockets import PolicySocket, moved
from steertag.socket.base import HostSocket
from steertag.socket.base import socket as ours

_STREAM: Final = 1  # SOCK_STREAM
_BEFORE: Final = "Closed before TLS handshake with data in recv buffer."
_HEADER: Final = 5
"""Octets of a TLS record's header: type, version (2), length (2); RFC 8446 section 5.1."""
_RECORD: Final = 16 * 1024
_TICKETS: Final = 4096
"""Octets, at most, of session tickets that came while nobody read."""
_TURN: Final = 16 * _RECORD
"""Octets that are encrypted before they are sent, when the caller waits."""


class _Engine:
    """What SSLSocket calls `_sslobj`: the C object's methods, waiting on a socket of ours.

    Several threads may use it: one at a time in OpenSSL, one reading the socket, one writing it.
    """

    def __init__(self, owner: Any, sock: Any, context: ssl.SSLContext, session: Any) -> None:
        self._sock = sock
        self._owner = owner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._obj: Any = context._wrap_bio(  # type: ignore[attr-defined]
            self._incoming,
            self._outgoing,
            owner.server_side,
            owner.server_hostname,
            owner=owner,
            session=session,
        )
        self._lock = threading.RLock()
        self._reading, self._writing = threading.RLock(), threading.RLock()
        self._unsent = memoryview(b"")
        self._accepted = 0  # octets of the caller's in `_unsent`, who has to call again for them
        self._head = b""
        self._body = 0
        self._fed = 0

    def __getattr__(self, name: str) -> Any:
        """All that needs no socket: getpeercert, cipher, version, session, ..."""
        return getattr(self._obj, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("context", "session", "owner"):
            setattr(self._obj, name, value)
        else:
            object.__setattr__(self, name, value)

    # -- what SSLSocket calls -------------------------------------------------------------------

    def do_handshake(self) -> None:
        self._run(self._obj.do_handshake, what="The handshake operation timed out")

    def read(self, size: int, buffer: Any = None) -> Any:
        args = (size,) if buffer is None else (size, buffer)
        return self._run(self._obj.read, *args, what="The read operation timed out")

    def write(self, data: Any) -> int:
        """Octets taken: all, if the socket blocks."""
        with memoryview(data) as whole, whole.cast("B") as view, self._writing:
            waits = self._sock.gettimeout() != 0.0
            room = _TURN if waits else _RECORD
            done = 0
            while True:
                try:
                    self._flush("The write operation timed out")
                    done, self._accepted = done + self._accepted, 0
                    if done >= len(view):
                        return done
                except ssl.SSLWantWriteError:
                    if done:
                        return done
                    raise
                part = view[done : done + room]
                self._accepted = self._run(
                    self._obj.write, part, what="The write operation timed out", flush=False
                )

    def shutdown(self) -> Any:
        """close_notify both ways; the socket, which goes on without TLS."""
        self._run(self._obj.shutdown, what="The read operation timed out")
        return self._owner

    def verify_client_post_handshake(self) -> None:
        with self._lock:
            self._obj.verify_client_post_handshake()
        self._flush("The write operation timed out")

    # -- moving records ---------------------------------------------------------------------------

    def _run(self, call: Callable[..., Any], *args: Any, what: str, flush: bool = True) -> Any:
        while True:
            fed = self._fed
            try:
                with self._lock:
                    result = call(*args)
            except ssl.SSLWantReadError:
                self._flush(what)
                self._fill(fed, what)
                continue
            except ssl.SSLError:
                # An alert may have to go out; the error is what the caller hears of.
                try:
                    self._flush(what)
                except OSError:
                    self._unsent = memoryview(b"")
                raise
            if flush:
                self._flush(what)
            return result

    def _flush(self, what: str) -> None:
        """Send what there is. Raises SSLWantWriteError if it can't wait."""
        if not self._unsent and not self._outgoing.pending:
            return
        with self._writing:
            while self._unsent or self._outgoing.pending:
                if not self._unsent:
                    with self._lock:
                        self._unsent = memoryview(self._outgoing.read())
                try:
                    sent = self._sock.send(self._unsent)
                except TimeoutError:
                    raise TimeoutError(what) from None
                except BlockingIOError:
                    raise _want(ssl.SSLWantWriteError, ssl.SSL_ERROR_WANT_WRITE, "write") from None
                self._unsent = self._unsent[sent:]

    def _fill(self, fed: int, what: str) -> None:
        """Read on to the end of a record, unless another thread has fed some since."""
        with self._reading:
            if fed != self._fed:
                return
            while True:
                room = self._body or _HEADER - len(self._head)
                try:
                    data = self._sock.recv(room)
                except TimeoutError:
                    raise TimeoutError(what) from None
                except BlockingIOError:
                    raise _want(ssl.SSLWantReadError, ssl.SSL_ERROR_WANT_READ, "read") from None
                if not data:
                    self._feed(self._head, eof=True)
                    return
                if self._body:
                    self._body -= len(data)
                    self._feed(data)
                    if not self._body:
                        return
                    continue
                self._head += data
                if len(self._head) == _HEADER:
                    head, self._head = self._head, b""
                    self._body = int.from_bytes(head[3:])
                    self._feed(head)
                    if not self._body or not 20 <= head[0] <= 24 or head[1] != 3:
                        self._body = 0
                        return  # not TLS: OpenSSL says so

    def _feed(self, data: bytes, eof: bool = False) -> None:
        with self._lock:
            if data:
                self._incoming.write(data)
            if eof:
                self._incoming.write_eof()
        self._fed += 1


def _want(kind: type[ssl.SSLError], code: int, what: str) -> ssl.SSLError:
    return kind(code, f"The operation did not complete ({what})")


class _Carrier(HostSocket):
    """Stands below SSLSocket for the host's socket: every call goes to `_inner`."""

    _inner: Any

    @property
    def family(self) -> Any:
        return self._inner.family

    @property
    def type(self) -> Any:
        return self._inner.type

    @property
    def proto(self) -> int:
        proto: int = self._inner.proto
        return proto

    @property
    def timeout(self) -> float | None:
        timeout: float | None = self._inner.gettimeout()
        return timeout

    def accept(self) -> Any:
        return self._inner.accept()

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> Any:
        return self._inner.recvfrom_into(buffer, nbytes or 0, flags)

    def recv_into(self, buffer: Any, nbytes: int | None = 0, flags: int = 0) -> Any:
        return self._inner.recv_into(buffer, nbytes or 0, flags)

    def detach(self) -> int:
        self._closed = True
        fd: int = self._inner.detach()
        return fd

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        # Nothing was set up if the constructor raised.
        if not getattr(self, "_closed", True) and not sys.is_finalizing():
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)
            self._inner.close()

    def _real_close(self, *args: object) -> None:
        self._read_tickets()
        self._inner.close()

    def _read_tickets(self) -> None:
        """Take what servers send behind a handshake: left unread, it would reset the connection.

        A peer may not have read by then what we sent last. Of more than that, the reset tells.
        """
        with contextlib.suppress(OSError):
            self._inner.settimeout(0.0)
            self._inner.recv(_TICKETS)


def _pass_on(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._inner, name)(*args, **kwargs)

    call.__name__ = name
    return call


for _name in (
    "bind", "connect", "connect_ex", "fileno", "get_inheritable", "getblocking", "getpeername",
    "getsockname", "getsockopt", "gettimeout", "listen", "recv", "recvfrom", "send", "sendall",
    "sendfile", "sendto", "set_inheritable", "setblocking", "setsockopt", "settimeout",
    "shutdown",
):  # fmt: skip
    setattr(_Carrier, _name, _pass_on(_name))


class TlsSocket(ssl.SSLSocket, _Carrier):
    """An SSLSocket over a socket of this process."""

    __module__ = "ssl"
    __qualname__ = "SSLSocket"
    _context: ssl.SSLContext
    _session: Any
    do_handshake_on_connect: bool

    def _real_connect(self, addr: Any, connect_ex: bool) -> Any:
        if self.server_side:
            raise ValueError("can't connect in server-side mode")
        if self._connected or self._sslobj is not None:
            raise ValueError("attempt to connect already-connected SSLSocket!")
        result = None
        if connect_ex:
            result = self._inner.connect_ex(addr)
        else:
            self._inner.connect(addr)
        if not result:
            self._begin()
        return result

    def _begin(self) -> None:
        """The socket is connected: TLS may start, and does if it was asked to."""
        self._connected = True
        self._sslobj: Any = _Engine(self, self._inner, self._context, self._session)
        if not self.do_handshake_on_connect:
            return
        try:
            if self.gettimeout() == 0.0:
                raise ValueError(
                    "do_handshake_on_connect should not be specified for non-blocking sockets"
                )
            self.do_handshake()
        except (OSError, ValueError):
            self._sslobj = None
            raise

    def do_handshake(self, block: bool = False) -> None:
        self._check_connected()  # type: ignore[attr-defined]
        if self._sslobj is None:
            # connect_ex said that it is on its way, and it has arrived
            self._sslobj = _Engine(self, self._inner, self._context, self._session)
            self._connected = True
        super().do_handshake(block)


_combined: dict[type, type] = {ssl.SSLSocket: TlsSocket}


def wrap_socket(
    context: ssl.SSLContext,
    sock: Any,
    server_side: bool = False,
    do_handshake_on_connect: bool = True,
    suppress_ragged_eofs: bool = True,
    server_hostname: str | None = None,
    session: Any = None,
) -> ssl.SSLSocket:
    """`SSLContext.wrap_socket` for a socket of this process; `sock` itself is closed by it.

    What comes is an `ssl.SSLSocket`, of a subclass of `context.sslsocket_class`.
    """
    _check(context, sock, server_side, server_hostname, session)
    named: Any = context.sslsocket_class
    cls: Any = _combined.get(named)
    if cls is None:
        cls = type(named.__name__, (named, TlsSocket), {"__module__": named.__module__})
        _combined[named] = cls
    self: Any = HostSocket.__new__(cls)
    self._inner = _moved(sock)
    self._io_refs, self._closed = 0, False
    self._context, self._session, self._sslobj = context, session, None
    self.server_side = server_side
    self.server_hostname = context._encode_hostname(server_hostname)  # type: ignore[attr-defined]
    self.do_handshake_on_connect = do_handshake_on_connect
    self.suppress_ragged_eofs = suppress_ragged_eofs
    self._connected = False
    try:
        self.getpeername()
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:
            raise
        _refuse_what_came_before(self)
        return self  # type: ignore[no-any-return]
    try:
        self._begin()
    except (OSError, ValueError):
        self.close()
        raise
    return self  # type: ignore[no-any-return]


def _check(
    context: ssl.SSLContext, sock: Any, server_side: bool, hostname: str | None, session: Any
) -> None:
    if sock.type != _STREAM:
        raise NotImplementedError("only stream sockets are supported")
    if server_side and hostname:
        raise ValueError("server_hostname can only be specified in client mode")
    if server_side and session is not None:
        raise ValueError("session can only be specified in client mode")
    if context.check_hostname and not hostname:
        raise ValueError("check_hostname requires server_hostname")


def _refuse_what_came_before(self: Any) -> None:
    """A connection that is over by now may have left octets: they are nobody's TLS."""
    timeout = self._inner.gettimeout()
    self._inner.settimeout(0.0)
    try:
        left = self._inner.recv(1)
    except OSError:
        left = b""
    finally:
        self._inner.settimeout(timeout)
    if left:
        self.close()
        error = ssl.SSLError(errno.ENOTCONN, _BEFORE)
        vars(error).update(reason=_BEFORE, library=None)  # which is not of OpenSSL's
        raise error


def _moved(sock: Any) -> Any:
    """The socket in a new object; the one that the caller has is closed, as after detach()."""
    if isinstance(sock, TlsSocket):
        inner = sock._inner
        new = _moved(inner)
        sock._closed, sock._sslobj = True, None
        return new
    return moved(sock)


def patched_wrap_socket(native: Callable[..., ssl.SSLSocket]) -> Callable[..., ssl.SSLSocket]:
    """`SSLContext.wrap_socket` that knows sockets of this process too."""

    def wrap(
        self: ssl.SSLContext,
        sock: Any,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: Any = None,
        session: Any = None,
    ) -> ssl.SSLSocket:
        made = native
        if isinstance(sock, PolicySocket) and sock.settled:
            sock = sock.real
        if isinstance(sock, TlsSocket) or (
            isinstance(sock, ours) and not isinstance(sock, HostSocket)
        ):
            made = wrap_socket
        return made(
            self,
            sock,
            server_side=server_side,
            do_handshake_on_connect=do_handshake_on_connect,
            suppress_ragged_eofs=suppress_ragged_eofs,
            server_hostname=server_hostname,
            session=session,
        )

    wrap.__name__ = "wrap_socket"
    wrap.__doc__ = native.__doc__
    return wrap
