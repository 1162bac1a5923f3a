"""The socket object of families that live in this process.

Its methods do what the C library and the kernel's system calls do together: they call the family,
which never waits, and wait for it on the socket's descriptor.

An OSError of a call that was given a buffer leaves its traceback here (`__traceback__ = None`), as
the standard library's, whose calls are C: the frames below hold views of the buffer, which its
owner may want to resize in the handler. asyncio's transports do.
"""

from __future__ import annotations

import errno
import io
import operator
import os
import socket as std
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

from steertag.errors import os_error
from steertag.family import net
from steertag.family.const import PEER_OF_ACCEPTED
from steertag.family.msg import Address, Ancillary, MsgHdr, RecvMsg
from steertag.family.socket import Socket
from steertag.runtime.netdev import ensure_driver
from steertag.runtime.sleep import READ, WRITE
from steertag.runtime.wait import deadline_after
from steertag.socket.arguments import c_int, checked_control, octets_of, rest_of
from steertag.socket.base import socket
from steertag.socket.file import File
from steertag.socket.linger import linger

if TYPE_CHECKING:
    from typing import Self

    from _typeshed import ReadableBuffer, WriteableBuffer

T = TypeVar("T")
# Plain ints: an operation on the standard library's IntFlag costs more than the call around it.
MSG_DONTWAIT: Final = int(std.MSG_DONTWAIT)
MSG_ERRQUEUE: Final = int(std.MSG_ERRQUEUE)
MSG_PEEK: Final = int(std.MSG_PEEK)
MSG_WAITALL: Final = int(std.MSG_WAITALL)
SOCK_STREAM: Final = int(std.SOCK_STREAM)
_CHUNK: Final = 256 * 1024
_TURN: Final = 1024 * 1024
"""Octets that sendall hands over, in one call or in several, before it looks what came meanwhile:
of many acknowledgements the last is enough."""
_BULK: Final = 64 * 1024
"""Octets of a sendall from which it looks at all."""


class ProcessSocket(socket):
    """A socket of a family that lives in this process."""

    __module__ = "steertag.socket"

    def _setup(self, native: std.socket | None, file: File | None, fd: int) -> None:
        self._io_refs = 0
        self._unserviced = 0
        self._closed = False
        self._fd = fd
        self._timeout = std.getdefaulttimeout()
        self._file: File | None = file if file is not None else File(self.kernel)
        self._driver = ensure_driver(self.kernel.stack)
        self._native: std.socket | None = None
        if self.kernel.ops.direct is not None:
            self._find_native()

    def _find_native(self) -> None:
        """Whether data calls can go straight to the host's socket that this one is by now.

        Such a call has no more between than it has in the standard library's, nor does closing
        wake it.
        """
        sock = self._live().sock
        with sock.stack.lock:
            native = self._live().native()
            if native is not None and self._native is None:
                self._native = std.socket(native.family, native.type, native.proto, native.fileno())
                self._native.settimeout(self._timeout)

    # -- what it is ---------------------------------------------------------------------------

    @property
    def family(self) -> int:
        """The standard library's AddressFamily where it has the number, else the number."""
        try:
            return std.AddressFamily(self.kernel.family)
        except ValueError:
            return self.kernel.family

    @property
    def type(self) -> int:
        try:
            return std.SocketKind(self.kernel.type)
        except ValueError:
            return self.kernel.type

    @property
    def proto(self) -> int:
        return self.kernel.protocol

    @property
    def timeout(self) -> float | None:
        return self.gettimeout()

    def __repr__(self) -> str:
        closed = " [closed]" if self._closed else ""
        text = f"fd={self._fd}, family={self.family!s}, type={self.type!s}, proto={self.proto}"
        for label, name in (("laddr", self.getsockname), ("raddr", self.getpeername)):
            with suppress(OSError):
                if address := name():
                    text += f", {label}={address}"
        return f"<{self.__class__.__module__}.{self.__class__.__qualname__}{closed} {text}>"

    def __getstate__(self) -> object:
        raise TypeError(f"cannot pickle {self.__class__.__name__!r} object")

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,  # type: ignore[valid-type]  # the builtin
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._closed:
            self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        # Nothing was set up if the constructor raised. While the interpreter ends, a daemon thread
        # may have been stopped with the Stack's lock in its hands.
        if not getattr(self, "_closed", True) and not sys.is_finalizing():
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)
            self._io_refs = 0
            self.close()

    def close(self) -> None:
        """Close; with open files from `makefile`, when the last of them is closed.

        Another thread that waits in a call on this socket gets EBADF.
        """
        self._closed = True
        if self._io_refs <= 0:
            self._real_close()

    def _real_close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        kept = linger(self._driver, file, waits=self._timeout != 0.0)
        self._forget_native()
        fd, self._fd = self._fd, -1
        if fd != -1:
            file.forget_fd(fd)
            os.close(fd)
        file.put()
        if kept is not None:
            kept.close()

    def _forget_native(self) -> None:
        if self._native is not None:
            self._native.detach()  # the descriptor is the family's
            self._native = None

    def disconnect(self) -> None:
        """Dissolve the connection, or forget the peer: connect(2) to AF_UNSPEC."""
        self._forget_native()
        super().disconnect()

    def _decref_socketios(self) -> None:
        if self._io_refs > 0:
            self._io_refs -= 1
        if self._closed:
            self.close()

    def detach(self) -> int:
        """Give the descriptor away: this object is closed, the socket is not.

        Closing a descriptor with os.close is not seen by a family of this process: give it to
        `socket(fileno=...)` and close that.
        """
        self._closed = True
        fd, file = self.fileno(), self._live()
        file.detach_fd(fd)
        self._forget_native()
        self._file, self._fd = None, -1
        return fd

    def dup(self) -> Self:
        """Another socket object of the same socket."""
        file = self._live().get()
        copy = self._wrap(file.sock, file)
        copy.settimeout(self.gettimeout())
        return copy

    def fileno(self) -> int:
        """A descriptor that select, poll, epoll and asyncio can wait on; -1 when closed."""
        if self._file is None:
            return -1
        with self.kernel.stack.lock:
            if self._fd == -1:
                self._fd = self._file.new_fd()
            return self._fd

    def get_inheritable(self) -> bool:
        return os.get_inheritable(self.fileno())

    def set_inheritable(self, inheritable: bool) -> None:
        os.set_inheritable(self.fileno(), inheritable)

    # -- waiting ------------------------------------------------------------------------------

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self.gettimeout() != 0.0

    def settimeout(self, value: float | None) -> None:
        if value is not None:
            value = float(value)
            if value < 0.0:
                raise ValueError("Timeout value out of range")
        self._timeout = value
        if self._native is not None:
            self._native.settimeout(value)

    def gettimeout(self) -> float | None:
        return self._timeout

    def _live(self) -> File:
        if self._file is None:
            raise os_error(errno.EBADF)
        return self._file

    def _retry(
        self, call: Callable[[], T], events: int, flags: int = 0, msg: MsgHdr | None = None
    ) -> T:
        """The family's answer, waiting for it as long as this socket's timeout says.

        `msg` is what the call is about, if its buffers may be the family's meanwhile.
        """
        file = self._live()
        sock = file.sock
        if sock.ops.direct is not None and file.native() is not None:
            self._find_native()  # for the next call: this one is on its way
        seen = sock.news
        try:
            return call()
        except BlockingIOError:
            # As in the standard library, MSG_DONTWAIT does not shorten a timeout. For the error
            # queue nobody waits: recvmsg(2) never blocks on it.
            unwilling = self._timeout is None and flags & MSG_DONTWAIT
            if self._timeout == 0.0 or unwilling or flags & MSG_ERRQUEUE:
                raise
        try:
            return self._patiently(call, sock, seen, events)
        except BaseException as exc:
            # An answer, however bad, has let go of the buffers: then this finds nothing.
            done = 0 if msg is None or not msg.msg_waits else self._give_up(sock, msg, exc)
            if not done or not isinstance(exc, TimeoutError | BlockingIOError):
                raise
            return cast(T, done)

    def _patiently(self, call: Callable[[], T], sock: Socket, seen: int, events: int) -> T:
        """The family's answer; TimeoutError or BlockingIOError where there is none in time."""
        limit = self._timeout
        if limit is None:
            # A socket that was closed meanwhile has none: the next call says so.
            sk = sock.sk
            limit = None if sk is None else sk.sk_rcvtimeo if events == READ else sk.sk_sndtimeo
        deadline = deadline_after(limit)
        while True:
            self._wait(sock, seen, events, deadline)
            seen = sock.news
            try:
                return call()
            except BlockingIOError:
                continue

    def _give_up(self, sock: Socket, msg: MsgHdr, exc: BaseException) -> int:
        """Have the family let go of the msg's buffers; octets that it has done after all.

        They answer a call whose time is over. Where an exception ends it there is no answer, and
        the family is told so.
        """
        if not isinstance(exc, TimeoutError | BlockingIOError):
            msg.msg_waits = False
        while True:
            seen = sock.news
            try:
                return net.sock_cancel(sock, msg)
            except BlockingIOError:
                self._driver.wait(sock, seen, READ | WRITE, None)

    def _wait(self, sock: Socket, seen: int, events: int, deadline: float | None) -> None:
        """Wait for news since `sock.news` was `seen`."""
        try:
            self._driver.wait(sock, seen, events, deadline)
        except TimeoutError:
            if self._timeout is None:  # it was SO_RCVTIMEO or SO_SNDTIMEO
                raise os_error(errno.EAGAIN) from None
            raise

    # -- connecting ---------------------------------------------------------------------------

    def bind(self, address: Address) -> None:
        sock = self._live().sock
        if (resolve := sock.ops.resolve) is not None:
            address = resolve(sock, address)
        net.kernel_bind(sock, address)

    def listen(self, backlog: int = 128) -> None:
        net.kernel_listen(self._live().sock, c_int(backlog))

    def accept(self) -> tuple[socket, Any]:
        """The next connection and its peer's address."""
        sock = self._live().sock
        newsock = self._retry(lambda: net.kernel_accept(sock), READ)
        conn = socket._wrap(newsock)
        try:
            return conn, net.kernel_getname(newsock, PEER_OF_ACCEPTED)
        except OSError as exc:
            conn.close()
            raise os_error(errno.ECONNABORTED) from exc

    def connect(self, address: Address) -> None:
        sock = self._live().sock
        if (resolve := sock.ops.resolve) is not None:
            address = resolve(sock, address)
        self._retry(lambda: self._connect(sock, address), WRITE)
        if sock.ops.direct is not None:
            self._find_native()

    @staticmethod
    def _connect(sock: Socket, address: Address) -> None:
        net.kernel_connect(sock, address)

    def connect_ex(self, address: Address) -> int:
        """As `connect`, but the errno instead of an OSError; 0 if it is done."""
        try:
            self.connect(address)
        except TimeoutError as exc:
            return exc.errno or errno.EAGAIN
        except OSError as exc:
            if exc.errno is None:
                raise
            return exc.errno
        return 0

    def shutdown(self, how: int) -> None:
        net.kernel_sock_shutdown(self._live().sock, c_int(how))

    def getsockname(self) -> Any:
        return net.kernel_getname(self._live().sock, False)

    def getpeername(self) -> Any:
        return net.kernel_getname(self._live().sock, True)

    # -- options ------------------------------------------------------------------------------

    def setsockopt(
        self,
        level: int,
        optname: int,
        value: int | ReadableBuffer | None,
        optlen: int | None = None,
    ) -> None:
        if value is None and optlen is None:
            raise TypeError("setsockopt with None needs optlen")
        plain = value if isinstance(value, int) or value is None else bytes(value)
        net.kernel_setsockopt(self._live().sock, level, optname, plain)

    def getsockopt(self, level: int, optname: int, buflen: int = 0) -> Any:
        """An int, or with `buflen` up to so many octets."""
        if not 0 <= buflen <= 1024:
            raise OSError("getsockopt buflen out of range")
        return net.kernel_getsockopt(self._live().sock, level, optname, buflen)

    # -- receiving ----------------------------------------------------------------------------

    def _receive(self, msg: MsgHdr, flags: int) -> int:
        sock = self._live().sock
        msg.msg_waits = self._timeout != 0.0
        if not flags:
            return self._retry(lambda: net.sock_recvmsg(sock, msg, 0), READ, 0, msg)
        flags = int(flags)
        if flags & MSG_DONTWAIT and self._timeout is None:
            msg.msg_waits = False
        call_flags = flags & ~(MSG_WAITALL | MSG_DONTWAIT)
        count = self._retry(lambda: net.sock_recvmsg(sock, msg, call_flags), READ, flags, msg)
        wait_all = flags & MSG_WAITALL and not flags & MSG_PEEK
        if not wait_all or sock.type != SOCK_STREAM:
            return count
        room = msg.length
        while 0 < count < room:
            rest = MsgHdr(rest_of(msg.msg_iov, count))
            rest.msg_waits = msg.msg_waits
            try:
                more = self._retry(lambda m=rest: net.sock_recvmsg(sock, m, 0), READ, flags, rest)  # type: ignore[misc]
            except OSError:
                break  # what came is reported; the error is found by the next call
            if not more:
                break
            count += more
        return count

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        if (native := self._native) is not None:
            return native.recv(bufsize, flags)
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        msg = RecvMsg(bufsize)
        return msg.data(self._receive(msg, flags))

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, Any]:
        if (native := self._native) is not None:
            return native.recvfrom(bufsize, flags)
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        msg = RecvMsg(bufsize)
        data = msg.data(self._receive(msg, flags))
        return data, msg.msg_name

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        if (native := self._native) is not None:
            return native.recv_into(buffer, nbytes, flags)
        return self.recvfrom_into(buffer, nbytes, flags)[0]

    def recvfrom_into(
        self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, Any]:
        if (native := self._native) is not None:
            return native.recvfrom_into(buffer, nbytes, flags)
        try:
            return self._recv_into(buffer, nbytes, flags)
        except OSError as exc:
            exc.__traceback__ = None
            raise

    def _recv_into(self, buffer: WriteableBuffer, nbytes: int, flags: int) -> tuple[int, Any]:
        view = memoryview(buffer).cast("B")
        if nbytes < 0:
            raise ValueError("negative buffersize in recv_into")
        if nbytes > len(view):
            raise ValueError("buffer too small for requested bytes")
        msg = MsgHdr((view[:nbytes] if nbytes else view,))
        return self._receive(msg, flags), msg.msg_name

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        if (native := self._native) is not None:
            return native.recvmsg(bufsize, ancbufsize, flags)
        if bufsize < 0:
            raise ValueError("negative buffer size in recvmsg()")
        buffer = bytearray(bufsize)
        count, control, out, name = self.recvmsg_into([buffer], ancbufsize, flags)
        return bytes(memoryview(buffer)[: min(count, bufsize)]), control, out, name

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        if (native := self._native) is not None:
            return native.recvmsg_into(buffers, ancbufsize, flags)
        if ancbufsize < 0:
            raise ValueError("invalid ancillary data buffer length")
        try:
            count, msg = self._recvmsg_into(buffers, ancbufsize, flags)
        except OSError as exc:
            exc.__traceback__ = None
            raise
        control = [(level, kind, bytes(data)) for level, kind, data in msg.msg_control]
        return count, control, msg.msg_flags, msg.msg_name

    def _recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int, flags: int
    ) -> tuple[int, MsgHdr]:
        msg = MsgHdr([memoryview(buffer).cast("B") for buffer in buffers], controllen=ancbufsize)
        return self._receive(msg, flags), msg

    # -- sending ------------------------------------------------------------------------------

    def _send(self, msg: MsgHdr) -> int:
        """Octets taken: all of a stream's if the socket blocks without a timeout, as the kernel."""
        sock = self._live().sock
        flags = int(msg.msg_flags)
        msg.msg_flags = flags & ~MSG_DONTWAIT
        patient = self._timeout is None and not flags & MSG_DONTWAIT
        msg.msg_waits = patient or bool(self._timeout)
        sent = self._retry(lambda: net.sock_sendmsg(sock, msg), WRITE, flags, msg)
        total = msg.length
        while sent < total and patient and sock.type == SOCK_STREAM:
            rest = MsgHdr(rest_of(msg.msg_iov, sent), flags=msg.msg_flags)
            rest.msg_waits = True
            try:
                sent += self._retry(lambda m=rest: net.sock_sendmsg(sock, m), WRITE, 0, rest)  # type: ignore[misc]
            except OSError:
                break  # what went is reported; the error is found by the next call
        return sent

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        if (native := self._native) is not None:
            return native.send(data, flags)
        try:
            return self._send(MsgHdr((memoryview(data).cast("B"),), flags=flags))
        except OSError as exc:
            exc.__traceback__ = None
            raise

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        """Send all of it; the timeout is for the whole. After an error nobody knows how much."""
        if (native := self._native) is not None:
            native.sendall(data, flags)
            return
        try:
            self._send_all(memoryview(data).cast("B"), flags)
        except OSError as exc:
            exc.__traceback__ = None
            raise

    def _send_all(self, view: memoryview, flags: int) -> None:
        sock = self._live().sock
        impatient = self._timeout is None and flags & MSG_DONTWAIT
        deadline = deadline_after(self._timeout)
        sent = 0
        waits = self._timeout != 0.0 and not impatient
        # A family that is lent memory moves it without us.
        turn = _TURN if not waits or sock.ops.cancel is None else max(len(view), 1)
        part = MsgHdr((view[:turn],), flags=flags)
        part.msg_waits = waits
        while True:
            seen = sock.news
            try:
                taken = net.sock_sendmsg(sock, part)
                sent += taken
                if len(view) >= _BULK:
                    self._unserviced += taken
                    if self._unserviced >= _TURN:
                        self._unserviced = 0
                        self._driver.service()
            except BlockingIOError:
                if self._timeout == 0.0 or impatient:
                    raise
                if self._timeout is None and sock.sk is not None:
                    deadline = deadline_after(sock.sk.sk_sndtimeo)
            else:
                if sent >= len(view):
                    return
                part = MsgHdr((view[sent : sent + turn],), flags=flags)
                part.msg_waits = waits
                continue
            try:
                self._wait(sock, seen, WRITE, deadline)
            except BaseException as exc:
                self._give_up(sock, part, exc)
                raise

    def sendto(self, data: ReadableBuffer, *args: Any) -> int:
        """`sendto(data, address)` or `sendto(data, flags, address)`."""
        if not 1 <= len(args) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(args) + 1} given)")
        flags, address = args if len(args) == 2 else (0, args[0])
        flags = operator.index(flags)
        try:
            return self._send(MsgHdr((octets_of(data),), name=address, flags=flags))
        except OSError as exc:
            exc.__traceback__ = None
            raise

    def sendmsg(
        self,
        buffers: Iterable[ReadableBuffer],
        ancdata: Iterable[Ancillary] = (),
        flags: int = 0,
        address: Address = None,
    ) -> int:
        if (native := self._native) is not None and address is None:
            return native.sendmsg(buffers, ancdata, flags)
        try:
            return self._sendmsg(buffers, ancdata, flags, address)
        except OSError as exc:
            exc.__traceback__ = None
            raise

    def _sendmsg(
        self,
        buffers: Iterable[ReadableBuffer],
        ancdata: Iterable[Ancillary],
        flags: int,
        address: Address,
    ) -> int:
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        control = tuple(checked_control(item) for item in ancdata)
        return self._send(MsgHdr(views, name=address, control=control, flags=flags))

    def sendmsg_afalg(self, *args: object, **kwargs: object) -> int:
        """For the host's AF_ALG alone. Raises EOPNOTSUPP."""
        raise os_error(errno.EOPNOTSUPP)

    # -- files --------------------------------------------------------------------------------

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """A file object over the socket, as the standard library's."""
        # Python code over recv_into, send and _io_refs, which this class has too.
        return std.socket.makefile(
            cast(std.socket, self),
            cast(Any, mode),
            cast(Any, buffering),
            encoding=encoding,
            errors=errors,
            newline=newline,
        )

    def sendfile(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int:
        """Send a file from `offset` to its end, or `count` octets; its position moves along."""
        if (native := self._native) is not None:
            return native.sendfile(file, offset, count)
        self._check_sendfile_params(file, offset, count)
        if self.gettimeout() == 0.0:
            raise ValueError("non-blocking sockets are not supported")
        if offset:
            file.seek(offset)
        total = 0
        try:
            while count is None or total < count:
                data = file.read(_CHUNK if count is None else min(_CHUNK, count - total))
                if not data:
                    break
                self.sendall(data)
                total += len(data)
            return total
        finally:
            if total and hasattr(file, "seek"):
                file.seek(offset + total)

    # The standard library's two ways by their names, which some call: here they are one.
    _check_sendfile_params = cast(Any, std.socket)._check_sendfile_params

    def _sendfile_use_send(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int:
        return self.sendfile(file, offset, count)

    def _sendfile_use_sendfile(
        self, file: BinaryIO, offset: int = 0, count: int | None = None
    ) -> int:
        try:
            os.fstat(file.fileno())
        except (AttributeError, io.UnsupportedOperation, OSError) as exc:
            raise cast(Any, std)._GiveupOnSendfile(exc) from exc
        return self.sendfile(file, offset, count)
