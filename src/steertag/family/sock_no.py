"""Stock `ProtoOps` members for what a family does not have (net/core/sock.c, sock_no_*)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from steertag.errors import os_error

if TYPE_CHECKING:
    from steertag.family.msg import Address, MsgHdr
    from steertag.family.socket import Socket


def sock_no_bind(sock: Socket, address: Address) -> None:
    raise os_error(errno.EOPNOTSUPP)


def sock_no_connect(sock: Socket, address: Address, flags: int) -> None:
    raise os_error(errno.EOPNOTSUPP)


def sock_no_socketpair(sock1: Socket, sock2: Socket) -> None:
    raise os_error(errno.EOPNOTSUPP)


def sock_no_accept(sock: Socket, newsock: Socket, flags: int) -> None:
    raise os_error(errno.EOPNOTSUPP)


def sock_no_getname(sock: Socket, peer: int) -> Address:
    raise os_error(errno.EOPNOTSUPP)


def sock_no_poll(sock: Socket) -> int:
    """Never ready: for a socket on which nothing ever happens."""
    return 0


def sock_no_ioctl(sock: Socket, cmd: int, arg: object) -> int:
    raise os_error(errno.ENOTTY)


def sock_no_listen(sock: Socket, backlog: int) -> None:
    raise os_error(errno.EOPNOTSUPP)


def sock_no_shutdown(sock: Socket, how: int) -> None:
    raise os_error(errno.EOPNOTSUPP)


def sock_no_setsockopt(sock: Socket, level: int, name: int, value: int | bytes | None) -> None:
    raise os_error(errno.ENOPROTOOPT)


def sock_no_getsockopt(sock: Socket, level: int, name: int, size: int) -> int | bytes:
    raise os_error(errno.ENOPROTOOPT)


def sock_no_sendmsg(sock: Socket, msg: MsgHdr) -> int:
    raise os_error(errno.EOPNOTSUPP)


def sock_no_recvmsg(sock: Socket, msg: MsgHdr, flags: int) -> int:
    raise os_error(errno.EOPNOTSUPP)
