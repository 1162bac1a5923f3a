"""`Proto` of the host families: every member is one call on the host's socket."""

from __future__ import annotations

import fcntl
import socket as std
import struct

from steertag.errors import os_error
from steertag.family.inet import sk_clone
from steertag.family.msg import Address, MsgHdr
from steertag.family.proto import Proto
from steertag.family.sock import Sock, sk_free, sock_orphan
from steertag.host.sock import HostSock, host_sk, refresh

_INT = struct.Struct("@i")
# struct sockaddr with sa_family AF_UNSPEC; the socket module has no form for it.
_AF_UNSPEC = bytes(16)


def host_proto(name: str, owner: str) -> Proto:
    """A protocol whose memory is the host's, so that it has no account here."""
    return Proto(
        name=name,
        owner=owner,
        obj_size=HostSock,
        close=_close,
        connect=_connect,
        disconnect=_disconnect,
        accept=_accept,
        ioctl=_ioctl,
        shutdown=_shutdown,
        setsockopt=_setsockopt,
        getsockopt=_getsockopt,
        sendmsg=_sendmsg,
        recvmsg=_recvmsg,
        bind=_bind,
        diag=refresh,
    )


def _close(sk: Sock, timeout: float) -> None:
    # Lingering, and what is still to be delivered, are the host kernel's business.
    host_sk(sk).native.close()
    sock_orphan(sk)
    sk_free(sk)


def _bind(sk: Sock, address: Address) -> None:
    host_sk(sk).native.bind(address)  # type: ignore[arg-type]  # judged by the callee


def _connect(sk: Sock, address: Address) -> None:
    host_sk(sk).nonblocking().connect(address)  # type: ignore[arg-type]  # judged by the callee


def _disconnect(sk: Sock, flags: int) -> None:
    # Imported here: it is slow to load, and few programs disconnect a socket.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(host_sk(sk).native.fileno(), _AF_UNSPEC, len(_AF_UNSPEC)):
        raise os_error(ctypes.get_errno())


def _accept(sk: Sock, flags: int) -> Sock:
    native, _ = host_sk(sk).nonblocking().accept()
    child = sk_clone(sk)
    host_sk(child).native = native
    return child


def _ioctl(sk: Sock, cmd: int, arg: object) -> int:
    """Requests that read an int, such as SIOCINQ and SIOCOUTQ."""
    answer = fcntl.ioctl(host_sk(sk).native.fileno(), cmd, bytes(_INT.size))
    return int(_INT.unpack(answer)[0])


def _shutdown(sk: Sock, how: int) -> None:
    host_sk(sk).native.shutdown(how)


def _setsockopt(sk: Sock, level: int, name: int, value: int | bytes | None) -> None:
    native = host_sk(sk).native
    if value is None:
        native.setsockopt(level, name, None, 0)
    else:
        native.setsockopt(level, name, value)


def _getsockopt(sk: Sock, level: int, name: int, size: int) -> int | bytes:
    native = host_sk(sk).native
    return native.getsockopt(level, name, size) if size else native.getsockopt(level, name)


def _sendmsg(sk: Sock, msg: MsgHdr) -> int:
    flags = msg.msg_flags | std.MSG_DONTWAIT
    native = host_sk(sk).nonblocking()
    if msg.msg_name is None:
        return native.sendmsg(msg.msg_iov, msg.msg_control, flags)
    name = msg.msg_name
    return native.sendmsg(msg.msg_iov, msg.msg_control, flags, name)  # type: ignore[arg-type]


def _recvmsg(sk: Sock, msg: MsgHdr, flags: int) -> int:
    native = host_sk(sk).nonblocking()
    count, control, msg.msg_flags, msg.msg_name = native.recvmsg_into(
        msg.msg_iov, msg.msg_controllen, flags | std.MSG_DONTWAIT
    )
    msg.msg_control = control
    return count


def replace_native(sk: Sock, native: std.socket) -> None:
    """Put another of the host's sockets behind a fresh sock, as socketpair does."""
    host = host_sk(sk)
    host.native.close()
    host.native = native
