"""The way into a socket from above: system calls without the waiting (net/socket.c).

Each takes the Stack's lock, calls the family's `ProtoOps`, and lets whoever waits on the socket
look again, since the call itself changes what can be done next. The names are the kernel's own
for sockets used from within (`kernel_bind`, `sock_sendmsg`, ...).
"""

from __future__ import annotations

import errno
import socket as host
from select import POLLNVAL

from steertag.errors import os_error
from steertag.family.const import SocketState
from steertag.family.msg import Address, MsgHdr
from steertag.family.socket import POLL_LOOK, Socket
from steertag.family.sockopt import sock_getsockopt, sock_setsockopt


def _alive(sock: Socket) -> None:
    if sock.released:
        raise os_error(errno.EBADF)


def kernel_bind(sock: Socket, address: Address) -> None:
    with sock.stack.lock:
        _alive(sock)
        sock.ops.bind(sock, address)


def kernel_listen(sock: Socket, backlog: int) -> None:
    """listen(2): the backlog is at least 0 and at most sysctl net.core.somaxconn."""
    with sock.stack.lock:
        _alive(sock)
        sock.ops.listen(sock, min(max(backlog, 0), sock.stack.sysctl["net.core.somaxconn"]))
        sock.wake(POLL_LOOK)


def kernel_accept(sock: Socket, flags: int = 0) -> Socket:
    """The next connection. Raises BlockingIOError if none waits."""
    with sock.stack.lock:
        _alive(sock)
        newsock = sock.stack.sock_alloc(sock)
        try:
            sock.ops.accept(sock, newsock, flags)
        except BaseException:
            sock.stack.sock_put(newsock)
            raise
        finally:
            sock.wake(0)
        return newsock


def kernel_connect(sock: Socket, address: Address, flags: int = 0) -> None:
    """Start a connection; None dissolves it. Raises BlockingIOError (EINPROGRESS, EALREADY)."""
    with sock.stack.lock:
        _alive(sock)
        try:
            sock.ops.connect(sock, address, flags)
        finally:
            sock.wake(0)


def kernel_socketpair(sock1: Socket, sock2: Socket) -> None:
    with sock1.stack.lock:
        sock1.ops.socketpair(sock1, sock2)


def kernel_getname(sock: Socket, peer: int) -> Address:
    with sock.stack.lock:
        _alive(sock)
        return sock.ops.getname(sock, peer)


def kernel_sock_shutdown(sock: Socket, how: int) -> None:
    with sock.stack.lock:
        _alive(sock)
        try:
            sock.ops.shutdown(sock, how)
        finally:
            sock.wake(POLL_LOOK)


def kernel_setsockopt(sock: Socket, level: int, name: int, value: int | bytes | None) -> None:
    with sock.stack.lock:
        _alive(sock)
        if level == host.SOL_SOCKET and not sock.ops.has_own_options:
            sock_setsockopt(sock, name, value)
        else:
            sock.ops.setsockopt(sock, level, name, value)
        sock.wake(POLL_LOOK)


def kernel_getsockopt(sock: Socket, level: int, name: int, size: int = 0) -> int | bytes:
    """An option: an int when `size` is 0, else up to `size` octets."""
    with sock.stack.lock:
        _alive(sock)
        if level == host.SOL_SOCKET and not sock.ops.has_own_options:
            return sock_getsockopt(sock, name, size)
        return sock.ops.getsockopt(sock, level, name, size)


def sock_sendmsg(sock: Socket, msg: MsgHdr) -> int:
    """Octets taken. Raises BlockingIOError if none could be."""
    with sock.stack.lock:
        if sock.released:
            raise os_error(errno.EBADF)
        try:
            return sock.ops.sendmsg(sock, msg)
        finally:
            if sock.wait_queue:
                sock.wake(0)


def sock_recvmsg(sock: Socket, msg: MsgHdr, flags: int = 0) -> int:
    """Octets placed. Raises BlockingIOError if there is nothing."""
    with sock.stack.lock:
        if sock.released:
            raise os_error(errno.EBADF)
        try:
            return sock.ops.recvmsg(sock, msg, flags)
        finally:
            if sock.wait_queue:
                sock.wake(0)


def sock_cancel(sock: Socket, msg: MsgHdr) -> int:
    """Give a call up that was to be waited for (`ProtoOps.cancel`); octets that it has done.

    Raises BlockingIOError while somebody has its buffers still. A socket that was released
    meanwhile has let go of them, and so has a family without `cancel`: 0.
    """
    with sock.stack.lock:
        cancel = sock.ops.cancel
        if cancel is None or sock.released:
            return 0
        return cancel(sock, msg)


def sock_ioctl(sock: Socket, cmd: int, arg: object = None) -> int:
    with sock.stack.lock:
        _alive(sock)
        return sock.ops.ioctl(sock, cmd, arg)


def sock_poll(sock: Socket) -> int:
    """POLL* bits that hold now; POLLNVAL after the release."""
    with sock.stack.lock:
        if sock.released:
            return POLLNVAL
        return sock.ops.poll(sock)


def sock_release(sock: Socket) -> None:
    """The last holder closed it. Calling it again does nothing."""
    with sock.stack.lock:
        if sock.released:
            return
        try:
            sock.ops.release(sock)
        finally:
            sock.sk = None
            sock.state = SocketState.SS_FREE
            sock.stack.sock_put(sock)
            sock.wake(POLLNVAL)
