"""sendmsg, recvmsg, poll and ioctl of TCP (net/ipv4/tcp.c)."""

from __future__ import annotations

import errno
from typing import Final

from steertag.errors import os_error
from steertag.family.const import (
    RCV_SHUTDOWN,
    SEND_SHUTDOWN,
    SHUTDOWN_MASK,
    SK_MEM_SEND,
    SKB_OVERHEAD,
    SOCK_MIN_SNDBUF,
    SOCK_NOMEM,
    SOCK_NOSPACE,
    SOCK_SNDBUF_LOCK,
    SOCK_URGINLINE,
    TcpState,
)
from steertag.family.memory import sk_mem_charge, sk_schedule, wait_for_memory
from steertag.family.msg import MsgHdr
from steertag.family.skbuff import Buffer
from steertag.family.sock import (
    POLLRDHUP,
    Sock,
    sk_stream_is_writeable,
    sock_raise_error,
)
from steertag.family.socket import Socket
from steertag.family.sockopt import sock_of
from steertag.inet.const import (
    MSG_ERRQUEUE,
    MSG_FASTOPEN,
    MSG_MORE,
    MSG_OOB,
    MSG_PEEK,
    MSG_TRUNC,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLPRI,
    SIOCATMARK,
    SIOCINQ,
    SIOCOUTQ,
    SIOCOUTQNSD,
)
from steertag.inet.errqueue import recv_error
from steertag.inet.tcp import cwnd, fastopen, output, window
from steertag.inet.tcp.ofo import RcvSkb
from steertag.inet.tcp.skb import TcpSkb
from steertag.inet.tcp.sock import TCP_NAGLE_CORK, TCP_NAGLE_OFF, TCP_NAGLE_PUSH, TcpSock, tcp_sk
from steertag.wire.seq import add, diff
from steertag.wire.tcp import PSH

_SENDING: Final = (TcpState.TCP_ESTABLISHED, TcpState.TCP_CLOSE_WAIT)
_OPENING: Final = (TcpState.TCP_SYN_SENT, TcpState.TCP_SYN_RECV)
_LARGE: Final = 16384
"""Octets from which a pooled buffer is better than fresh memory."""
_PUSH_EVERY: Final = 4
"""Super-segments that are copied before they are sent: few enough to be in the cache still."""
_MOST_PARTS: Final = 64
"""Small pieces that one super-segment is gathered of, before they are joined."""


# -- sending ------------------------------------------------------------------------------------


def tcp_sendmsg(sk: Sock, msg: MsgHdr) -> int:
    """Octets taken, at least one of a message that has some.

    Raises:
        OSError: EAGAIN: no room, or not connected yet; EPIPE; the connection's error; as connect
            with MSG_FASTOPEN.
    """
    tp = tcp_sk(sk)
    flags = msg.msg_flags
    total = msg.length
    done = 0
    if flags & MSG_FASTOPEN or tp.defer_connect:
        done = fastopen.tcp_sendmsg_fastopen(tp, msg)
        if done == total:
            return done
    state = tp.sk_state
    if state not in _SENDING and not (state == TcpState.TCP_SYN_RECV and tp.fastopen_rsk):
        if done:
            return done
        _not_sending(tp)
    if tp.sk_err or tp.sk_shutdown & SEND_SHUTDOWN:
        if done:
            return done
        sock_raise_error(tp)
        raise os_error(errno.EPIPE)
    nonagle = tp.nonagle | (TCP_NAGLE_CORK if flags & MSG_MORE else 0)
    start = done
    try:
        done = _append(tp, msg, done, total, nonagle)
    finally:
        if flags & MSG_OOB and done == total:
            _mark_urgent(tp)
        if tp.send_queue:
            if not flags & MSG_MORE:
                tp.send_queue[-1].flags |= PSH
            output.tcp_push_pending_frames(tp, nonagle)
    if done == start and total > start:
        if done:
            return done
        tp.sk_flags |= SOCK_NOSPACE
        sock_raise_error(tp)
        raise os_error(errno.EAGAIN)
    return done


def _not_sending(sk: TcpSock) -> None:
    """Raise what a sender finds in a state that isn't for sending (sk_stream_wait_connect)."""
    sock_raise_error(sk)
    if sk.sk_state in _OPENING and not sk.sk_shutdown & SEND_SHUTDOWN:
        raise os_error(errno.EAGAIN)
    raise os_error(errno.EPIPE)


def _append(sk: TcpSock, msg: MsgHdr, done: int, total: int, nonagle: int) -> int:
    """Copy into the send queue what there is room for; returns how far it came."""
    queue = sk.send_queue
    if not queue:
        cwnd.tcp_slow_start_after_idle_check(sk, sk.sk_stack.clock())
    goal = output.tcp_size_goal(sk, output.tcp_current_mss(sk))
    pool = sk.net.pool
    while done < total:
        tail = queue[-1] if queue else None
        if tail is None or tail.length >= goal:
            if sk.sk_wmem_queued >= sk.sk_sndbuf:
                return done
            tail = None
        count = goal - (tail.length if tail is not None else 0)
        if count > total - done:
            count = total - done
        cost = count if tail is not None else count + SKB_OVERHEAD
        if cost > sk.sk_forward_alloc and not _wmem_schedule(sk, cost):
            return done
        if count >= _LARGE:
            room = memoryview(pool.take())[:count]
            msg.read_into(done, room)
            data: Buffer = room
        else:
            data = msg.read(done, count)
        if tail is None:
            tail = TcpSkb(sk.write_seq)
            queue.append(tail)
        else:
            tail.flags &= ~PSH
            if len(tail.parts) >= _MOST_PARTS:
                tail.parts = [b"".join(tail.parts)]
        tail.parts.append(data)
        tail.length += count
        tail.end_seq = sk.write_seq = (sk.write_seq + count) & 0xFFFFFFFF
        sk.sk_wmem_queued += cost
        sk_mem_charge(sk, cost)
        done += count
        if tail.length >= goal and done < total and len(queue) >= _PUSH_EVERY:
            # On their way while the next are copied.
            tail.flags |= PSH
            output.tcp_push_pending_frames(sk, TCP_NAGLE_PUSH)
    return done


def _wmem_schedule(sk: TcpSock, cost: int) -> bool:
    if sk_schedule(sk, cost, SK_MEM_SEND):
        return True
    sk.sk_flags |= SOCK_NOSPACE | SOCK_NOMEM
    wait_for_memory(sk)
    if not sk.sk_flags & SOCK_SNDBUF_LOCK:  # sk_stream_moderate_sndbuf
        sk.sk_sndbuf = max(min(sk.sk_sndbuf, sk.sk_wmem_queued >> 1), SOCK_MIN_SNDBUF)
    return False


def _mark_urgent(sk: TcpSock) -> None:
    """All that is queued is urgent up to its last octet (tcp_mark_urg)."""
    sk.snd_up = sk.write_seq
    sk.urg_mode = True


# -- receiving ------------------------------------------------------------------------------------


def tcp_recvmsg(sk: Sock, msg: MsgHdr, flags: int) -> int:
    """Octets of the stream; 0 at its end. MSG_PEEK leaves them, MSG_TRUNC throws them away.

    With MSG_ERRQUEUE what IP_RECVERR has queued, as of a datagram socket.

    Raises:
        OSError: EAGAIN; ENOTCONN; the connection's error once what came before it is read; with
            MSG_OOB EINVAL where there is no urgent data, or it was read, or stands in the stream.
    """
    tp = tcp_sk(sk)
    if flags & MSG_ERRQUEUE:
        return recv_error(tp, msg, flags)
    if tp.sk_state == TcpState.TCP_LISTEN:
        raise os_error(errno.ENOTCONN)
    msg.msg_flags = 0
    if flags & MSG_OOB:
        return _recv_urg(tp, msg, flags)
    room = msg.length
    if flags & MSG_PEEK:
        placed = _peek(tp, msg, room)
    else:
        placed = _take(tp, msg, room, bool(flags & MSG_TRUNC))
        if placed:
            tcp_after_read(tp, placed)
    if placed or not room:
        return placed
    if tp.done:
        return 0
    sock_raise_error(tp)
    if tp.sk_shutdown & RCV_SHUTDOWN:
        return 0
    if tp.sk_state == TcpState.TCP_CLOSE:
        raise os_error(errno.ENOTCONN)
    raise os_error(errno.EAGAIN)


def tcp_after_read(sk: TcpSock, count: int) -> None:
    """Octets were read: tune the buffer, and tell the peer of the room (tcp_cleanup_rbuf)."""
    window.tcp_rcv_space_adjust(sk, sk.sk_stack.clock())
    tcp_cleanup_rbuf(sk, count)


def tcp_cleanup_rbuf(sk: TcpSock, copied: int) -> None:
    """Acknowledge after reading, where it tells something: a window twice as large, or data that
    the reader answers to."""
    if sk.ack_pending and (
        (sk.rcv_nxt - sk.rcv_wup) & 0xFFFFFFFF > sk.rcv_mss
        # A sender that waits with the next small segment (Nagle) waits for this.
        or (copied > 0 and sk.ack_pushed > sk.pingpong and not sk.sk_rmem_alloc)
    ):
        output.tcp_send_ack(sk)
        return
    if copied > 0 and not sk.sk_shutdown & RCV_SHUTDOWN:
        now_offered = window.tcp_receive_window(sk)
        if 2 * now_offered <= sk.window_clamp:
            could_offer = window.tcp_would_offer(sk)
            if could_offer and could_offer >= 2 * now_offered:
                output.tcp_send_ack(sk)


def _urgent_ahead(sk: TcpSock) -> int | None:
    """Octets before the urgent one, which isn't in the stream; None if there is none."""
    if sk.urg_data is None and not sk.urg_wait and not sk.urg_taken:
        return None
    ahead = diff(sk.urg_seq, sk.copied_seq)
    return ahead if ahead >= 0 else None


def _take(sk: TcpSock, msg: MsgHdr, room: int, discard: bool) -> int:
    queue = sk.sk_receive_queue
    placed = 0
    while placed < room and (skb := queue.peek()) is not None:
        count = min(len(skb), room - placed)
        mark = _urgent_ahead(sk)
        if mark is not None:
            if mark == 0:
                if placed:
                    break  # a read ends before the mark
                if sk.sk_flags & SOCK_URGINLINE:
                    sk.urg_data, sk.urg_wait, sk.urg_taken = None, False, False
                    continue
                _skip_urgent(sk)
                skb.pull(1)
                if not len(skb):
                    queue.popleft().free()
                continue
            count = min(count, mark)
        view = skb.data
        if not discard:
            msg.write(placed, view if count == len(view) else view[:count])
        placed += count
        sk.copied_seq = (sk.copied_seq + count) & 0xFFFFFFFF
        if count == len(view):
            queue.popleft().free()
        else:
            skb.pull(count)
            if isinstance(skb, RcvSkb):
                skb.seq = (skb.seq + count) & 0xFFFFFFFF
    return placed


def _skip_urgent(sk: TcpSock) -> None:
    sk.copied_seq = add(sk.copied_seq, 1)
    sk.urg_taken = False
    sk.urg_data = None


def _peek(sk: TcpSock, msg: MsgHdr, room: int) -> int:
    mark = _urgent_ahead(sk)
    if mark == 0:
        mark = None  # it is passed over
        skip = 0 if sk.sk_flags & SOCK_URGINLINE else 1
    else:
        skip = 0
    placed = 0
    for skb in sk.sk_receive_queue:
        view = skb.data[skip:]
        skip = 0
        count = min(len(view), room - placed, room if mark is None else mark - placed)
        placed += msg.write(placed, view[:count])
        if placed in (room, mark):
            break
    return placed


def _recv_urg(sk: TcpSock, msg: MsgHdr, flags: int) -> int:
    """MSG_OOB (tcp_recv_urg)."""
    if sk.sk_flags & SOCK_URGINLINE or (sk.urg_data is None and not sk.urg_wait):
        raise os_error(errno.EINVAL)
    if sk.sk_state == TcpState.TCP_CLOSE and not sk.done:
        raise os_error(errno.ENOTCONN)
    if sk.urg_data is None:
        if sk.sk_shutdown & RCV_SHUTDOWN or sk.sk_state == TcpState.TCP_CLOSE:
            return 0
        raise os_error(errno.EAGAIN)
    octet = bytes((sk.urg_data,))
    msg.msg_flags |= MSG_OOB
    if not flags & MSG_PEEK:
        sk.urg_data = None
        sk.urg_taken = True
    if msg.length:
        return msg.write(0, octet)
    msg.msg_flags |= MSG_TRUNC
    return 0


# -- readiness and ioctl --------------------------------------------------------------------------


def tcp_poll(sock: Socket) -> int:
    """POLL* bits that hold now (tcp_poll)."""
    tp = tcp_sk(sock_of(sock))
    state = tp.sk_state
    if state == TcpState.TCP_LISTEN:
        return POLLIN if tp.accept_queue else 0
    mask = 0
    shutdown = tp.sk_shutdown
    if shutdown == SHUTDOWN_MASK or state == TcpState.TCP_CLOSE:
        mask |= POLLHUP
    if shutdown & RCV_SHUTDOWN:
        mask |= POLLIN | POLLRDHUP
    if state not in _OPENING or (state == TcpState.TCP_SYN_RECV and tp.fastopen_rsk):
        if tp.readable_octets() >= tp.sk_rcvlowat:
            mask |= POLLIN
        if shutdown & SEND_SHUTDOWN or _is_writeable(tp):
            mask |= POLLOUT
        else:
            tp.sk_flags |= SOCK_NOSPACE
        if tp.urg_data is not None:
            mask |= POLLPRI
    elif state == TcpState.TCP_SYN_SENT and tp.defer_connect:
        mask |= POLLOUT
    if tp.sk_err or tp.error_queue:
        mask |= POLLERR
        if tp.sk_err:
            mask |= POLLIN | POLLOUT
    return mask


def _is_writeable(sk: TcpSock) -> bool:
    if not sk_stream_is_writeable(sk):
        return False
    lowat = sk.notsent_lowat or sk.sk_stack.sysctl["net.ipv4.tcp_notsent_lowat"]
    return diff(sk.write_seq, sk.snd_nxt) < lowat


def tcp_ioctl(sk: Sock, cmd: int, arg: object) -> int:
    """SIOCINQ, SIOCOUTQ, SIOCOUTQNSD, SIOCATMARK. Raises EINVAL for a listener, ENOTTY."""
    tp = tcp_sk(sk)
    if tp.sk_state == TcpState.TCP_LISTEN and cmd != SIOCATMARK:
        raise os_error(errno.EINVAL)
    if cmd == SIOCINQ:
        return tp.readable_octets()
    if cmd == SIOCATMARK:
        return int(_urgent_ahead(tp) == 0)
    connected = tp.sk_state not in (TcpState.TCP_SYN_SENT, TcpState.TCP_SYN_RECV)
    if cmd == SIOCOUTQ:
        return diff(tp.write_seq, tp.snd_una) if connected else 0
    if cmd == SIOCOUTQNSD:
        return diff(tp.write_seq, tp.snd_nxt) if connected else 0
    raise os_error(errno.ENOTTY)


def tcp_nodelay_set(sk: TcpSock, on: bool) -> None:
    """TCP_NODELAY: send what Nagle's rule holds, now and from now on."""
    if on:
        sk.nonagle |= TCP_NAGLE_OFF
        output.tcp_push_pending_frames(sk, sk.nonagle | TCP_NAGLE_PUSH)
    else:
        sk.nonagle &= ~TCP_NAGLE_OFF


def tcp_cork_set(sk: TcpSock, on: bool) -> None:
    """TCP_CORK: short segments wait until it is taken out."""
    if on:
        sk.nonagle |= TCP_NAGLE_CORK
    else:
        sk.nonagle &= ~TCP_NAGLE_CORK
        output.tcp_push_pending_frames(sk, sk.nonagle | TCP_NAGLE_PUSH)
