"""Stock `ProtoOps` members that go straight on to the protocol (net/core/sock.c), and `poll`s."""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING

from steertag.errors import os_error
from steertag.family.const import (
    RCV_SHUTDOWN,
    SEND_SHUTDOWN,
    SHUTDOWN_MASK,
    SOCK_NOSPACE,
    TcpState,
)
from steertag.family.sock import (
    POLLRDHUP,
    Sock,
    sk_free,
    sk_stream_is_writeable,
    sock_orphan,
)
from steertag.family.sockopt import sock_of

if TYPE_CHECKING:
    from steertag.family.msg import MsgHdr
    from steertag.family.socket import Socket


def sock_common_setsockopt(sock: Socket, level: int, name: int, value: int | bytes | None) -> None:
    sk = sock_of(sock)
    if sk.sk_prot.setsockopt is None:
        raise os_error(errno.ENOPROTOOPT)
    sk.sk_prot.setsockopt(sk, level, name, value)


def sock_common_getsockopt(sock: Socket, level: int, name: int, size: int) -> int | bytes:
    sk = sock_of(sock)
    if sk.sk_prot.getsockopt is None:
        raise os_error(errno.ENOPROTOOPT)
    return sk.sk_prot.getsockopt(sk, level, name, size)


def sock_common_recvmsg(sock: Socket, msg: MsgHdr, flags: int) -> int:
    sk = sock_of(sock)
    if sk.sk_prot.recvmsg is None:
        raise os_error(errno.EOPNOTSUPP)
    return sk.sk_prot.recvmsg(sk, msg, flags)


def sk_common_release(sk: Sock) -> None:
    """A protocol's `close` when nothing is left to deliver: not findable any more, and freed."""
    if sk.sk_prot.unhash is not None:
        sk.sk_prot.unhash(sk)
    sock_orphan(sk)
    sk_free(sk)


def datagram_poll(sock: Socket) -> int:
    """Readable when a datagram waits, writable while the send buffer has room."""
    sk = sock_of(sock)
    mask = _common_mask(sk)
    if len(sk.sk_receive_queue):
        mask |= select.POLLIN
    if sk.sk_wmem_alloc < sk.sk_sndbuf:
        mask |= select.POLLOUT
    else:
        sk.sk_flags |= SOCK_NOSPACE
    return mask


def stream_poll(sock: Socket) -> int:
    """As tcp_poll: a listener is readable when a connection waits; a stream by SO_RCVLOWAT."""
    sk = sock_of(sock)
    if sk.sk_state == TcpState.TCP_LISTEN:
        return select.POLLIN if sk.accept_queue else 0
    mask = _common_mask(sk)
    if sk.sk_state == TcpState.TCP_SYN_SENT:
        return mask
    if len(sk.sk_receive_queue) and sk.sk_receive_queue.octets >= sk.sk_rcvlowat:
        mask |= select.POLLIN
    # A sender that was shut down finds out at once, so it counts as writable.
    if sk.sk_shutdown & SEND_SHUTDOWN or sk_stream_is_writeable(sk):
        mask |= select.POLLOUT
    else:
        sk.sk_flags |= SOCK_NOSPACE
    return mask


def _common_mask(sk: Sock) -> int:
    mask = 0
    if sk.sk_err:
        mask |= select.POLLERR | select.POLLIN | select.POLLOUT
    if sk.sk_shutdown & RCV_SHUTDOWN:
        mask |= select.POLLIN | POLLRDHUP
    if sk.sk_shutdown == SHUTDOWN_MASK:
        mask |= select.POLLHUP
    return mask
