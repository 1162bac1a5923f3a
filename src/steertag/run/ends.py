"""What relays are made of: the family's side as a stream, marks, resets, and what is counted."""

from __future__ import annotations

import errno
import fcntl
import socket as std
import struct
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from steertag.errors import os_error
from steertag.family.msg import MsgHdr
from steertag.family.net import kernel_setsockopt, kernel_sock_shutdown, sock_release
from steertag.run.poller import Poller

if TYPE_CHECKING:
    from steertag.family.socket import Socket

_LINGER: Final = struct.Struct("@ii")
ABORT: Final = _LINGER.pack(1, 0)
_INT: Final = struct.Struct("@i")
_NO_INT: Final = bytes(_INT.size)
SIOCATMARK: Final = 0x8905
_FIONREAD: Final = int(termios.FIONREAD)


class Counters:
    """What the data process's sockets have done; `stats` gives them by name."""

    __slots__ = ("accepted", "connected", "datagrams", "refused", "relays", "resets", "rx", "tx")

    def __init__(self) -> None:
        self.connected = self.accepted = self.refused = self.resets = 0
        self.relays = 0
        self.datagrams = 0
        self.tx = self.rx = 0

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


class Stream(Protocol):
    """The family's side: a socket of the host's, or a `FamilyStream`. Never waits."""

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0) -> int: ...
    def send(self, data: memoryview, flags: int = 0) -> int: ...
    def shutdown(self, how: int) -> None: ...


class FamilyStream:
    """A socket of a family of this process, with the methods of a socket of the host's.

    They are called with the Stack's lock held.
    """

    __slots__ = ("sock",)

    def __init__(self, sock: Socket) -> None:
        self.sock = sock

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0) -> int:
        sock = self.sock
        if sock.released:
            raise os_error(errno.EBADF)
        msg = MsgHdr((buffer,))
        return sock.ops.recvmsg(sock, msg, flags)

    def send(self, data: memoryview, flags: int = 0) -> int:
        sock = self.sock
        if sock.released:
            raise os_error(errno.EBADF)
        return sock.ops.sendmsg(sock, MsgHdr((data,), flags=flags))

    def shutdown(self, how: int) -> None:
        kernel_sock_shutdown(self.sock, how)


def at_mark(sock: Socket, native: std.socket | None) -> bool:
    """sockatmark(3)."""
    if native is None:
        return bool(sock.ops.ioctl(sock, SIOCATMARK, None))
    return at_mark_of(native)


def at_mark_of(end: std.socket) -> bool:
    return fcntl.ioctl(end.fileno(), SIOCATMARK, _NO_INT) != _NO_INT


def unread(end: std.socket) -> int:
    """Octets that can be received; of the host's TCP, before the mark."""
    return int(_INT.unpack(fcntl.ioctl(end.fileno(), _FIONREAD, _NO_INT))[0])


def abort(sock: Socket) -> None:
    """Have the socket's release reset the connection."""
    try:
        kernel_setsockopt(sock, std.SOL_SOCKET, std.SO_LINGER, ABORT)
    except OSError:
        return  # the family has no such thing: its end is an orderly one


def release(
    poller: Poller,
    sock: Socket,
    native: std.socket | None,
    news: Callable[[int], None] | None = None,
) -> None:
    """Close the family's socket."""
    if sock.released:
        return
    if native is not None:
        poller.forget(native.fileno())
    elif news is not None and news in sock.wait_queue:
        sock.wait_queue.remove(news)
    sock_release(sock)
