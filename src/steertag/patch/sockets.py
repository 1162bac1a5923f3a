"""The socket objects that a patched program has in place of the host's."""

from __future__ import annotations

import errno
import logging
import os
import socket as std
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from steertag.errors import os_error
from steertag.family.msg import Address, Ancillary
from steertag.family.rules import CLIENT, SERVER
from steertag.family.stack import Stack
from steertag.patch.policy import HOST, Choice, Policy
from steertag.sdp.options import AF_INET_SDP, SDP_FALLBACK, SOL_SDP
from steertag.socket.arguments import octets_of
from steertag.socket.base import HostSocket, socket
from steertag.socket.file import File
from steertag.socket.process import ProcessSocket

if TYPE_CHECKING:
    from typing import Self

    from _typeshed import ReadableBuffer

_LOG: Final = logging.getLogger("steertag.patch")
INTERNET: Final = (int(std.AF_INET), int(std.AF_INET6))
_LACKING: Final = (errno.ESOCKTNOSUPPORT, errno.EPROTONOSUPPORT)
_WILDCARD: Final = {int(std.AF_INET): "0.0.0.0", int(std.AF_INET6): "::"}


class PatchedSocket(ProcessSocket):
    """A socket of a family of this process that says it is one of AF_INET or AF_INET6.

    Addresses are of the form that the program's family has, and hosts may be named.
    """

    __module__ = "socket"
    __qualname__ = "socket"
    _domain: int = int(std.AF_INET)
    _asked: int | None = None  # the protocol that it was made with

    @property
    def family(self) -> int:
        return std.AddressFamily(self._domain)

    @property
    def proto(self) -> int:
        return super().proto if self._asked is None else self._asked

    def accept(self) -> tuple[socket, Any]:
        conn, peer = super().accept()
        if isinstance(conn, ProcessSocket):
            conn.__class__ = PatchedSocket
            assert isinstance(conn, PatchedSocket)
            conn._domain, conn._asked = self._domain, self._asked
        return conn, self._form(peer)

    def dup(self) -> Self:
        copy = super().dup()
        copy._domain, copy._asked = self._domain, self._asked
        return copy

    def bind(self, address: Address) -> None:
        super().bind(resolve(self._domain, self.kernel.type, address))

    def connect(self, address: Address) -> None:
        super().connect(resolve(self._domain, self.kernel.type, address))

    def sendmsg(
        self,
        buffers: Iterable[ReadableBuffer],
        ancdata: Iterable[Ancillary] = (),
        flags: int = 0,
        address: Address = None,
    ) -> int:
        if address is not None:
            address = resolve(self._domain, self.kernel.type, address)
        return super().sendmsg(buffers, ancdata, flags, address)

    def sendto(self, data: Any, *args: Any) -> int:
        data = octets_of(data)
        if 0 < len(args) < 3:
            args = (*args[:-1], resolve(self._domain, self.kernel.type, args[-1]))
        return super().sendto(data, *args)

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        self._refuse_other_version(level)
        super().setsockopt(level, optname, value, optlen)

    def getsockopt(self, level: int, optname: int, buflen: int = 0) -> Any:
        self._refuse_other_version(level)
        return super().getsockopt(level, optname, buflen)

    def _refuse_other_version(self, level: int) -> None:
        """A family of both versions may take an option that the program's has not."""
        if level == std.IPPROTO_IPV6 and self._domain == std.AF_INET:
            raise os_error(errno.ENOPROTOOPT)

    def getsockname(self) -> Any:
        return self._form(super().getsockname())

    def getpeername(self) -> Any:
        return self._form(super().getpeername())

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, Any]:
        data, name = super().recvfrom(bufsize, flags)
        return data, self._form(name)

    def _form(self, name: Any) -> Any:
        """An address as the program's family writes it."""
        if self._domain != std.AF_INET6 or not isinstance(name, tuple) or len(name) != 2:
            return name
        host, port = name
        return ("::" if host == "0.0.0.0" else f"::ffff:{host}", port, 0, 0)


def resolve(domain: int, kind: int, address: Address) -> Address:
    """An address whose host is a number; names are looked up, and "" is the wildcard.

    Raises:
        TypeError, gaierror: as the standard library's bind and connect.
    """
    if not isinstance(address, tuple):
        name = std.AddressFamily(domain).name
        raise TypeError(f"{name} address must be tuple, not {type(address).__name__}")
    if not address or not isinstance(address[0], str):
        return address
    host = address[0]
    if not host:
        return (_WILDCARD[domain], *address[1:])
    try:
        std.inet_pton(domain, host)
    except OSError:
        found = std.getaddrinfo(host, None, domain, kind)[0][4]
        # An IPv6 name may come with its scope.
        return (found[0], address[1], *(address[2:] or found[2:]))
    return address


def made_by(
    stack: Stack, choice: Choice, domain: int, kind: int, proto: int, cls: type[socket]
) -> PatchedSocket | None:
    """A socket of the chosen family, of `cls`; None if that is the host's to make."""
    if choice.number is None:
        return None
    try:
        sock = stack.sock_create(choice.number, kind, proto)
    except OSError as exc:
        if exc.errno in _LACKING:
            return None  # no datagrams in SDP, for one
        raise
    made = cls._wrap(sock)
    assert isinstance(made, PatchedSocket)
    made._domain, made._asked = domain, proto
    if choice.fallback is not None and choice.number == AF_INET_SDP:
        made.setsockopt(SOL_SDP, SDP_FALLBACK, choice.fallback.encode())
    return made


class PolicySocket(socket):
    """A socket whose family is chosen when its address is known, at bind or connect.

    Until then it is one of the host's, so that options and names are what they would be; what was
    set is set again on the one that takes its place. Its descriptor keeps its number.
    """

    __module__ = "socket"
    __qualname__ = "socket"
    _real: socket
    _choice: Choice
    _stack: Stack
    _policy: Policy
    _domain: int
    _kind: int
    _proto: int
    _replay: list[tuple[Any, ...]]
    _bound: Address
    _fd_given: bool

    def __new__(cls, stack: Stack, policy: Policy, domain: int, kind: int, proto: int) -> Self:
        self: Self = object.__new__(cls)
        self._stack, self._policy = stack, policy
        self._domain, self._kind, self._proto = domain, kind, proto
        self._choice = HOST
        self._replay = []
        self._bound = None
        self._fd_given = False
        self._real = HostSocket(domain, kind, proto)  # type: ignore[assignment]
        return self

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Everything is set up by `__new__`."""

    @property
    def settled(self) -> bool:
        """Whether its family has been chosen for good."""
        return "recv" in self.__dict__

    @property
    def real(self) -> object:
        """The socket that it is."""
        return self._real

    @property
    def native(self) -> std.socket | None:
        """The host's socket that it is; None if it is one of this process."""
        real: object = self._real
        return real if isinstance(real, HostSocket) else None

    # -- choosing -------------------------------------------------------------------------------

    def _decide(self, role: str, address: Address) -> None:
        """Become a socket of the family that is chosen for this address."""
        if not isinstance(address, tuple) or len(address) < 2:
            return  # the host says what is wrong with it
        where = resolve(self._domain, self._kind, address)
        assert isinstance(where, tuple)
        choice = self._policy.choose(role, where[0], where[1], self._kind)
        _LOG.info("%s of %s:%s: %s", role, where[0] or "*", where[1], choice)
        if choice != self._choice:
            self._become(choice)

    def _become(self, choice: Choice) -> None:
        old: Any = self._real
        made: Any = made_by(
            self._stack, choice, self._domain, self._kind, self._proto, PatchedSocket
        )
        if made is None:
            if self.native is not None:
                return
            made = HostSocket(self._domain, self._kind, self._proto)
        try:
            made.settimeout(old.gettimeout())
            for option in self._replay:
                made.setsockopt(*option)
        except BaseException:
            made.close()
            raise
        name = old.getsockname() if self._bound is not None else None
        inheritable = self._fd_given and old.get_inheritable()
        if self._fd_given:
            made = _renumbered(made, old, self._domain)
            made.set_inheritable(inheritable)
        else:
            old.close()
        self._real, self._choice = made, choice
        if name is not None:
            made.bind(name)

    def bind(self, address: Address) -> None:
        if self._bound is None:
            self._decide(SERVER, address)
        self._real.bind(address)
        self._bound = address

    def listen(self, backlog: int = 128) -> None:
        if self._bound is None:
            self._decide(SERVER, ("", 0))
        self._real.listen(backlog)
        self._settle()

    def connect(self, address: Address) -> None:
        self._choose_peer(address)
        self._real.connect(address)

    def connect_ex(self, address: Address) -> int:
        self._choose_peer(address)
        return self._real.connect_ex(address)

    def _choose_peer(self, address: Address) -> None:
        if not self.settled:
            self._decide(CLIENT, address)
            self._settle()

    def sendto(self, data: Any, *args: Any) -> int:
        if args and not self.settled and self._bound is None:
            self._decide(CLIENT, args[-1])
            self._bound = args[-1]  # a datagram socket has its family from its first one on
        return self._real.sendto(data, *args)

    def _settle(self) -> None:
        """It stays what it is: nothing of ours lies between any more."""
        for name in _CALLS:
            if name in ("connect", "connect_ex", "listen", "bind"):
                continue
            setattr(self, name, getattr(self._real, name))

    # -- the rest -------------------------------------------------------------------------------

    @property
    def family(self) -> int:
        return std.AddressFamily(self._domain)

    @property
    def type(self) -> int:
        return std.SocketKind(self._kind)

    @property
    def proto(self) -> int:
        return self._real.proto

    @property
    def timeout(self) -> float | None:
        return self._real.gettimeout()

    @property
    def kernel(self) -> Any:  # type: ignore[override]  # the real one's
        return self._real.kernel

    @property
    def _io_refs(self) -> int:
        refs: int = self._real._io_refs  # type: ignore[attr-defined]
        return refs

    @property
    def _closed(self) -> bool:
        closed: bool = self._real._closed  # type: ignore[attr-defined]
        return closed

    def setsockopt(self, *args: Any) -> None:
        self._real.setsockopt(*args)
        if not self.settled:
            self._replay.append(args)

    def fileno(self) -> int:
        self._fd_given = True
        return self._real.fileno()

    def dup(self) -> Any:
        return self._real.dup()

    def disconnect(self) -> None:
        if self.native is not None:
            raise os_error(errno.EOPNOTSUPP)
        self._real.disconnect()

    def ioctl(self, cmd: int, arg: object = None) -> int:
        if self.native is not None:
            raise os_error(errno.EOPNOTSUPP)
        return self._real.ioctl(cmd, arg)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._real.close()

    def __repr__(self) -> str:
        return repr(self._real)

    def __getstate__(self) -> object:
        raise TypeError(f"cannot pickle {self.__class__.__name__!r} object")


def _renumbered(made: Any, old: Any, domain: int) -> Any:
    """`made` under the number of `old`'s descriptor; `old` is closed by that."""
    fd = old.fileno()
    if isinstance(made, HostSocket):
        kind, proto, timeout = made.type, made.proto, made.gettimeout()
        _replace(made.detach(), fd, old)
        native = HostSocket(domain, kind, proto, fd)
        native.settimeout(timeout)
        return native
    fresh = made.detach()
    assert isinstance(made, PatchedSocket)
    stack = made.kernel.stack
    file = File.of_fd(stack, fresh)
    assert file is not None
    _replace(os.dup(fresh), fd, old)
    timeout = made.gettimeout()
    sock = PatchedSocket._wrap(file.sock, file.get(), fd)
    file.readiness().adopt_fd(fd)
    sock._domain = domain
    sock.settimeout(timeout)
    # The one under its first number leaves.
    socket(fileno=fresh, stack=stack).close()
    return sock


def _replace(fresh: int, fd: int, old: Any) -> None:
    """Another descriptor's file under the number `fd`."""
    if isinstance(old, ProcessSocket):
        keep = os.dup(fd)  # what the socket object closes in its place
        old._file.readiness().adopt_fd(keep)  # type: ignore[union-attr]
        old._file.readiness().forget_fd(fd)  # type: ignore[union-attr]
        old._fd = keep
        old.close()
    else:
        old.detach()
    os.dup2(fresh, fd, inheritable=False)
    os.close(fresh)


def moved(sock: Any) -> Any:
    """The socket in a new object of its class; `sock` itself is closed, its socket is not."""
    new: Any = object.__new__(type(sock))
    new.__dict__.update(sock.__dict__)
    if isinstance(sock, PolicySocket):
        closed = HostSocket()
        closed.close()
        sock._real = closed  # type: ignore[assignment]
        sock._settle()
    else:
        sock._closed, sock._file, sock._fd, sock._native = True, None, -1, None
    return new


_CALLS: Final = (
    "accept", "bind", "close", "connect", "connect_ex", "detach", "get_inheritable",
    "getblocking", "getpeername", "getsockname", "getsockopt", "gettimeout", "listen",
    "makefile", "recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into",
    "send", "sendall", "sendfile", "sendmsg", "set_inheritable", "setblocking", "settimeout",
    "shutdown", "_decref_socketios",
)  # fmt: skip


def _delegate(name: str) -> Callable[..., Any]:
    def call(self: PolicySocket, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._real, name)(*args, **kwargs)

    call.__name__ = name
    return call


for _name in _CALLS:
    if _name not in PolicySocket.__dict__:
        setattr(PolicySocket, _name, _delegate(_name))
