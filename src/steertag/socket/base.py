"""What `steertag.socket.socket` is: the class that users name, and how it becomes one of two.

A family whose calls all end at the host's socket (`ProtoOps.passthrough`) gets an object that is
the host's socket: its methods are the host's own, so nothing lies between (passthrough.py). Every
other family gets one that calls the family and waits for it (process.py).
"""

from __future__ import annotations

import functools
import socket as std
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from steertag.family import net
from steertag.family.msg import Address, Ancillary
from steertag.family.socket import Socket
from steertag.family.stack import Stack
from steertag.socket.default import default_stack
from steertag.socket.file import File

if TYPE_CHECKING:
    from typing import Self

    from _typeshed import ReadableBuffer, WriteableBuffer


# Kept here: steertag.patch puts another class in its place.
HostSocket = std.socket


class _Class(type):
    def __getattr__(cls, name: str) -> Any:
        """What a socket has, asked of the class: programs look there which calls there are."""
        found = getattr(HostSocket, name)
        if not callable(found):
            return found

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(self, name)(*args, **kwargs)

        return functools.wraps(found)(call)


class socket(metaclass=_Class):  # the standard library's name
    """A socket of any family that `stack` knows; see the standard library's `socket.socket`.

    Args:
        family, type, proto: as for `Stack.sock_create`; left out, AF_INET and SOCK_STREAM.
        fileno: take this descriptor over instead: one of the host's, or one that a socket of
            this process gave with `fileno()` or `detach()`.
        stack: which Stack it lives in; left out, the default one.

    Beside the standard library's: `disconnect()`, `ioctl()`, and `kernel`, the `Socket` that
    families see.
    """

    __module__ = "steertag.socket"

    kernel: Socket
    _for_passthrough: ClassVar[type[socket]]
    _for_process: ClassVar[type[socket]]
    _combined: ClassVar[dict[tuple[type, type], type]] = {}

    def __new__(
        cls,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
        *,
        stack: Stack | None = None,
    ) -> Self:
        stack = stack if stack is not None else default_stack()
        if fileno is not None:
            return cls._open_fd(stack, fileno, family, type, proto)
        family = std.AF_INET if family == -1 else family
        kind = std.SOCK_STREAM if type == -1 else type
        self = cls._wrap(stack.sock_create(family, kind, 0 if proto == -1 else proto))
        if kind & std.SOCK_NONBLOCK:
            self.setblocking(False)
        return self

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Everything is set up by `__new__`, which decides what the object is."""

    @classmethod
    def _open_fd(cls, stack: Stack, fd: int, family: int, type: int, proto: int) -> Self:
        if fd < 0:
            raise ValueError("negative file descriptor")
        file = File.of_fd(stack, fd)
        if file is None:
            return cls._wrap(stack.sock_adopt(std.socket(family, type, proto, fileno=fd)))
        file.take_fd(fd)
        return cls._wrap(file.sock, file, fd)

    @classmethod
    def _wrap(cls, sock: Socket, file: File | None = None, fd: int = -1) -> Self:
        """The object for a socket of the family's: of the class that its ops ask for."""
        passthrough = sock.ops.passthrough
        native = passthrough(sock) if passthrough is not None else None
        made = cls._class_for(cls._for_process if native is None else cls._for_passthrough)
        self: Self = object.__new__(made) if native is None else HostSocket.__new__(made)
        self.kernel = sock
        self._setup(native, file, fd)
        return self

    @classmethod
    def _class_for(cls, implementation: type[socket]) -> type:
        """`implementation`, under whatever a user's subclass adds."""
        if cls is socket:
            return implementation
        if issubclass(cls, implementation):
            return cls
        made = cls._combined.get((cls, implementation))
        if made is None:
            made = type(cls.__name__, (cls, implementation), {"__module__": cls.__module__})
            cls._combined[cls, implementation] = made
        return made

    def disconnect(self) -> None:
        """Dissolve the connection, or forget the peer: connect(2) to AF_UNSPEC."""
        net.kernel_connect(self.kernel, None)

    def ioctl(self, cmd: int, arg: object = None) -> int:
        """ioctl(2) for requests that answer an int: termios.FIONREAD, termios.TIOCOUTQ."""
        return net.sock_ioctl(self.kernel, cmd, arg)

    if TYPE_CHECKING:
        # What both implementations have: the standard library's interface, and how they start.
        def _setup(self, native: std.socket | None, file: File | None, fd: int) -> None: ...
        @property
        def family(self) -> int: ...
        @property
        def type(self) -> int: ...
        @property
        def proto(self) -> int: ...
        @property
        def timeout(self) -> float | None: ...
        def __enter__(self) -> Self: ...
        def __exit__(
            self,
            exc_type: object,
            exc: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...
        def accept(self) -> tuple[socket, Any]: ...
        def bind(self, address: Address) -> None: ...
        def close(self) -> None: ...
        def connect(self, address: Address) -> None: ...
        def connect_ex(self, address: Address) -> int: ...
        def detach(self) -> int: ...
        def dup(self) -> Self: ...
        def fileno(self) -> int: ...
        def get_inheritable(self) -> bool: ...
        def getblocking(self) -> bool: ...
        def getpeername(self) -> Any: ...
        def getsockname(self) -> Any: ...
        def getsockopt(self, level: int, optname: int, buflen: int = 0) -> Any: ...
        def gettimeout(self) -> float | None: ...
        def listen(self, backlog: int = 128) -> None: ...
        def makefile(
            self,
            mode: str = "r",
            buffering: int | None = None,
            *,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
        ) -> Any: ...
        def recv(self, bufsize: int, flags: int = 0) -> bytes: ...
        def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int: ...
        def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, Any]: ...
        def recvfrom_into(
            self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0
        ) -> tuple[int, Any]: ...
        def recvmsg(
            self, bufsize: int, ancbufsize: int = 0, flags: int = 0
        ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]: ...
        def recvmsg_into(
            self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0
        ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]: ...
        def send(self, data: ReadableBuffer, flags: int = 0) -> int: ...
        def sendall(self, data: ReadableBuffer, flags: int = 0) -> None: ...
        def sendfile(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int: ...
        def sendmsg(
            self,
            buffers: Iterable[ReadableBuffer],
            ancdata: Iterable[Ancillary] = (),
            flags: int = 0,
            address: Address = None,
        ) -> int: ...
        def sendmsg_afalg(self, *args: object, **kwargs: object) -> int: ...
        def sendto(self, data: ReadableBuffer, *args: Any) -> int: ...
        def set_inheritable(self, inheritable: bool) -> None: ...
        def setblocking(self, flag: bool) -> None: ...
        def setsockopt(
            self,
            level: int,
            optname: int,
            value: int | ReadableBuffer | None,
            optlen: int | None = None,
        ) -> None: ...
        def settimeout(self, value: float | None) -> None: ...
        def shutdown(self, how: int) -> None: ...
