"""Taking data out of a receive queue (net/core/datagram.c, and the heart of tcp_recvmsg)."""

from __future__ import annotations

import errno
import socket as host

from steertag.errors import os_error
from steertag.family.const import RCV_SHUTDOWN, TcpState
from steertag.family.msg import MsgHdr
from steertag.family.sock import Sock, sock_raise_error


def datagram_recv(sk: Sock, msg: MsgHdr, flags: int) -> int:
    """One datagram: what does not fit is lost, and MSG_TRUNC says so. MSG_PEEK leaves it.

    Returns octets placed, or with MSG_TRUNC in `flags` the length that it had.

    Raises:
        OSError: the pending error; EAGAIN if none waits.
    """
    sock_raise_error(sk)
    skb = sk.sk_receive_queue.peek()
    if skb is None:
        if sk.sk_shutdown & RCV_SHUTDOWN:
            return 0
        raise os_error(errno.EAGAIN)
    placed = msg.write(0, skb.data)
    msg.msg_name = skb.address
    msg.msg_flags = host.MSG_TRUNC if placed < len(skb) else 0
    length = len(skb) if flags & host.MSG_TRUNC else placed
    if not flags & host.MSG_PEEK:
        sk.sk_receive_queue.popleft().free()
    return length


def stream_recv(sk: Sock, msg: MsgHdr, flags: int) -> int:
    """Octets of a stream, as many as there are and fit. MSG_PEEK leaves them.

    Returns 0 at the end of the stream.

    Raises:
        OSError: the pending error, once the data before it is read; ENOTCONN; EAGAIN.
    """
    room = msg.length
    placed = 0
    msg.msg_flags = 0
    if flags & host.MSG_PEEK:
        for skb in sk.sk_receive_queue:
            placed += msg.write(placed, skb.data)
            if placed == room:
                break
    else:
        placed = _take(sk, msg, room)
    if placed or not room:
        return placed
    sock_raise_error(sk)
    if sk.sk_shutdown & RCV_SHUTDOWN:
        return 0
    if sk.sk_state in (TcpState.TCP_CLOSE, TcpState.TCP_LISTEN):
        raise os_error(errno.ENOTCONN)
    raise os_error(errno.EAGAIN)


def _take(sk: Sock, msg: MsgHdr, room: int) -> int:
    placed = 0
    while placed < room and (skb := sk.sk_receive_queue.peek()) is not None:
        count = msg.write(placed, skb.data)
        placed += count
        skb.pull(count)
        if len(skb):
            break
        sk.sk_receive_queue.popleft().free()
    return placed
