"""sendmsg, recvmsg, poll and cancel of AF_INET_SDP.

A connection that has fallen back is the transport's: its calls go straight there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family.const import (
    RCV_SHUTDOWN,
    SEND_SHUTDOWN,
    SHUTDOWN_MASK,
    SK_MEM_QUANTUM,
    SK_MEM_SEND,
    SOCK_NOSPACE,
    TcpState,
)
from steertag.family.memory import (
    sk_forced_mem_schedule,
    sk_mem_charge,
    sk_mem_uncharge,
    sk_schedule,
    wait_for_memory,
)
from steertag.family.msg import RecvMsg
from steertag.family.skbuff import Buffer
from steertag.family.sock import Sock, sock_raise_error
from steertag.sdp.options import (
    AF_INET,
    AF_INET6,
    MSG_ERRQUEUE,
    MSG_OOB,
    MSG_PEEK,
    MSG_TRUNC,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLPRI,
    POLLRDHUP,
)
from steertag.sdp.sock import SdpSock, sdp_sk
from steertag.sdp.source import KEPT

if TYPE_CHECKING:
    from steertag.family.msg import MsgHdr
    from steertag.family.socket import Socket
    from steertag.sdp.engine import Engine
    from steertag.sdp.fabric import Transport
    from steertag.sdp.transfer import Transfer

_IN_PLACE: Final = 16384
"""Octets of room from which a caller that waits lends its buffer."""
_OPENING: Final = (TcpState.TCP_SYN_SENT, TcpState.TCP_SYN_RECV)
_Write = Callable[[int, Buffer], int]


# -- receiving ------------------------------------------------------------------------------------


def sdp_recvmsg(sk: Sock, msg: MsgHdr, flags: int) -> int:
    """Octets of the stream; 0 at its end. MSG_PEEK leaves them, MSG_TRUNC throws them away.

    Raises:
        OSError: EAGAIN; ENOTCONN; the connection's error, once what came before it is read; with
            MSG_OOB EINVAL where there is no urgent data, or it was read, or stands in the stream.
    """
    sdp = sdp_sk(sk)
    plain = sdp.plain
    if plain is not None:
        try:
            return plain.recvmsg(msg, flags)
        except BlockingIOError:
            plain.watch(sdp, POLLIN | POLLPRI)
            raise
    engine = sdp.engine
    if engine is None:
        return _not_receiving(sdp, msg)
    msg.msg_flags = 0
    if flags & MSG_ERRQUEUE:
        raise os_error(errno.EAGAIN)
    if flags & MSG_OOB:
        return _recv_oob(sdp, engine, msg, flags)
    if sdp.receiving is not None:
        return _collect_received(sdp, msg, flags)
    room = msg.length
    if not room:
        return 0
    if not engine.unread and sdp.link is not None:
        sdp.link.take()
    if sdp.spare or flags:
        count = _recv_specially(sdp, engine, msg, flags, room)
    elif type(msg) is RecvMsg:
        # It keeps what it is given, and the engine's buffers are filled again.
        count = engine.recv_into(lambda offset, data: msg.write(offset, bytes(data)), room)
    else:
        count = engine.recv_into(msg.write, room)
    if count:
        _after_read(sdp, engine)
        return count
    return _nothing_there(sdp, engine, msg, flags, room)


def _not_receiving(sk: SdpSock, msg: MsgHdr) -> int:
    """There is no stream: not yet, or not any more."""
    if sk.sk_state in _OPENING:
        raise os_error(errno.EAGAIN)
    sock_raise_error(sk)
    if sk.sk_shutdown & RCV_SHUTDOWN and sk.inet_dport:
        return 0
    raise os_error(errno.ENOTCONN)


def _after_read(sk: SdpSock, engine: Engine) -> None:
    """Tell the peer of the room, where there is something to be told."""
    if sk.link is not None:
        sk.link.flush()
    sdp_charge(sk)


def _recv_specially(sk: SdpSock, engine: Engine, msg: MsgHdr, flags: int, room: int) -> int:
    """With flags, or where there is something that an earlier call has left."""
    peek = bool(flags & MSG_PEEK)
    write = _discard if flags & MSG_TRUNC and not peek else _copying(msg)
    count = 0
    if sk.spare:
        count = write(0, sk.spare[:room])
        if not peek:
            sk.spare = sk.spare[count:]
            return count
    return count + engine.recv_into(
        lambda offset, data: write(count + offset, data), room - count, peek=peek
    )


def _copying(msg: MsgHdr) -> _Write:
    return lambda offset, data: msg.write(offset, bytes(data))


def _discard(offset: int, data: Buffer) -> int:
    return len(data)


def _recv_oob(sk: SdpSock, engine: Engine, msg: MsgHdr, flags: int) -> int:
    if engine.oob_inline:
        raise os_error(errno.EINVAL)
    octet = engine.recv_oob(peek=bool(flags & MSG_PEEK))
    if octet is None:
        raise os_error(errno.EINVAL)
    if not octet:
        raise os_error(errno.EAGAIN)
    msg.msg_flags |= MSG_OOB
    if sk.link is not None:
        sk.link.flush()
    if not msg.length:
        msg.msg_flags |= MSG_TRUNC
        return 0
    return msg.write(0, octet)


def _nothing_there(sk: SdpSock, engine: Engine, msg: MsgHdr, flags: int, room: int) -> int:
    """Nothing was read: the end, an error, or a caller that waits and lends its buffer."""
    if engine.peer_shut and engine.eof:
        return 0  # the end was said: an abort that follows is the writers' to hear of (SOCK_DONE)
    sock_raise_error(sk)
    if sk.sk_shutdown & RCV_SHUTDOWN or engine.eof or sk.sk_state == TcpState.TCP_CLOSE:
        return 0
    if msg.msg_waits and room >= _IN_PLACE and not flags and len(iov := msg.msg_iov) == 1:
        transfer = engine.recv_in_place(iov[0])
        sk.receiving = msg, transfer
        if sk.link is not None:
            sk.link.flush()
        if transfer.done:
            return _collect_received(sk, msg, flags)
    else:
        engine.want()
    raise os_error(errno.EAGAIN)


def _collect_received(sk: SdpSock, msg: MsgHdr, flags: int) -> int:
    """A transfer is under way: the call it is for gets what it has moved."""
    assert sk.receiving is not None  # the caller looked
    whose, transfer = sk.receiving
    if whose is not msg or not transfer.done:
        raise os_error(errno.EAGAIN)
    sk.receiving = None
    sdp_charge(sk)
    if sk.sk_socket is not None:
        sk.sk_socket.wake(POLLIN)  # who else reads was kept waiting, or is about to wait
    if transfer.octets:
        if sk.link is not None:
            sk.link.flush()
        return transfer.octets
    return sdp_recvmsg(sk, msg, flags)


# -- sending --------------------------------------------------------------------------------------


def sdp_sendmsg(sk: Sock, msg: MsgHdr) -> int:
    """Octets taken, at least one of a message that has some.

    Raises:
        OSError: EAGAIN: no room, or not connected yet; EPIPE; the connection's error; EINVAL for
            ancillary data, of which a stream over SDP has none.
    """
    sdp = sdp_sk(sk)
    plain = sdp.plain
    if plain is not None:
        try:
            return plain.sendmsg(msg)
        except BlockingIOError:
            plain.watch(sdp, POLLOUT)
            raise
    sending = sdp.sending
    if sending is not None and sending[0] is msg:
        return _collect_sent(sdp, sending[1])
    engine, link = sdp.engine, sdp.link
    if engine is None or link is None:
        return _not_sending(sdp)
    if sdp.sk_err or sdp.sk_shutdown & SEND_SHUTDOWN or engine.error:
        _not_sending(sdp)
    if msg.msg_control:
        raise os_error(errno.EINVAL, "SDP has no ancillary data")
    if sending is not None:
        raise os_error(errno.EAGAIN)  # another call's memory is on its way
    iov = msg.msg_iov
    if msg.msg_waits and len(iov) == 1 and _to_be_lent(sdp, iov[0]) and not msg.msg_flags:
        transfer = engine.send_in_place(iov[0])
        sdp.sending = msg, transfer
        link.flush()
        return _collect_sent(sdp, transfer)
    if not _memory_for(sdp, engine):
        raise os_error(errno.EAGAIN, "protocol memory is exhausted")
    count = engine.sendmsg(iov, oob=True) if msg.msg_flags & MSG_OOB else engine.sendmsg(iov)
    if count:
        link.flush()
        sdp_charge(sdp)
        return count
    if not msg.length:
        return 0
    sdp.sk_flags |= SOCK_NOSPACE
    raise os_error(errno.EAGAIN)


def _not_sending(sk: SdpSock) -> int:
    """Raise what a sender finds without a stream to send on (sk_stream_wait_connect)."""
    sock_raise_error(sk)
    if sk.sk_state in _OPENING and not sk.sk_shutdown & SEND_SHUTDOWN:
        raise os_error(errno.EAGAIN)
    raise os_error(errno.EPIPE)


def _to_be_lent(sk: SdpSock, part: memoryview) -> bool:
    """Worth an advertisement, and of memory that the engine can't keep: it may change, or is more
    than there is room for."""
    least = sk.zcopy_thresh
    if not 0 < least <= len(part):
        return False
    if not part.readonly or type(part.obj) is not bytes:
        return True
    return sk.engine is not None and len(part) > sk.engine.tuning.snd_bytes * KEPT // 2


def _collect_sent(sk: SdpSock, transfer: Transfer) -> int:
    """A transfer is under way: the call it is for gets what it has moved, once it has its memory
    back, whatever has become of the stream."""
    if not transfer.done and sk.sk_shutdown & SEND_SHUTDOWN:
        transfer.cancel()
        if sk.link is not None:
            sk.link.flush()
    if not transfer.done:
        raise os_error(errno.EAGAIN)
    sk.sending = None
    sdp_charge(sk)
    if sk.sk_socket is not None:
        sk.sk_socket.wake(POLLOUT)  # who else sends was kept waiting, or is about to wait
    if transfer.octets:
        return transfer.octets
    if transfer.error and not sk.sk_err:
        raise os_error(transfer.error)
    return _not_sending(sk)


# -- giving up ------------------------------------------------------------------------------------


def sdp_cancel(sock: Socket, msg: MsgHdr) -> int:
    """`ProtoOps.cancel`: have the buffers of a call back. Raises BlockingIOError until they are."""
    sk = sdp_sk(sock.sk)
    for held in (sk.receiving, sk.sending):
        if held is None or held[0] is not msg:
            continue
        transfer = held[1]
        if not transfer.done:
            transfer.cancel()
            if sk.link is not None:
                sk.link.flush()
        if not transfer.done:
            raise os_error(errno.EAGAIN)
        if held is sk.receiving:
            sk.receiving = None
            if not msg.msg_waits:
                # Nobody can be told of them: the next call gets them.
                sk.spare += msg.read(0, transfer.octets)
                sock.wake(POLLIN)
                return 0
        else:
            sk.sending = None
        sock.wake(POLLIN | POLLOUT)  # who else was kept waiting
        return transfer.octets
    return 0


def drop_transfers(sk: SdpSock) -> None:
    """The socket goes: whose buffers they are is told by the end of their calls."""
    for held in (sk.receiving, sk.sending):
        if held is not None:
            held[1].cancel()
    sk.receiving = sk.sending = None


# -- state ----------------------------------------------------------------------------------------


def sdp_poll(sock: Socket) -> int:
    """POLL* bits that hold now (as tcp_poll)."""
    sk = sdp_sk(sock.sk)
    if sk.plain is not None:
        sk.plain.watch_edges(sk)
        return sk.plain.poll()
    state = sk.sk_state
    if state == TcpState.TCP_LISTEN:
        return POLLIN if sk.accept_queue else 0
    mask = 0
    shutdown, engine = sk.sk_shutdown, sk.engine
    if shutdown == SHUTDOWN_MASK or state == TcpState.TCP_CLOSE:
        mask |= POLLHUP
    if shutdown & RCV_SHUTDOWN:
        mask |= POLLIN | POLLRDHUP
    if state not in _OPENING:
        if shutdown & SEND_SHUTDOWN or engine is None or (sk.sending is None and engine.writable()):
            mask |= POLLOUT
        else:
            sk.sk_flags |= SOCK_NOSPACE
        if engine is not None:
            mask |= _readable(sk, engine)
    if sk.sk_err:
        mask |= POLLERR | POLLIN | POLLOUT
    return mask


def _readable(sk: SdpSock, engine: Engine) -> int:
    mask = POLLPRI if engine.oob_pending else 0
    if sk.receiving is not None:
        return mask | (POLLIN if sk.receiving[1].done else 0)
    least = sk.sk_rcvlowat
    if least <= 1:
        enough = engine.readable or bool(sk.spare)
    else:
        enough = engine.unread + len(sk.spare) >= least or engine.eof
    return mask | POLLIN if enough else mask


def sdp_busy_loop(sk: Sock) -> bool:
    """Look at the sock's own stream (sk_busy_loop)."""
    link = sdp_sk(sk).link
    return link is not None and link.look()


def transport_of(sk: SdpSock, family: int) -> Transport:
    """The transport's socket, made now where there is none; of AF_INET if it doesn't matter (0).

    One that was made for options alone is made again where its family is the wrong one.
    """
    transport = sk.transport
    if transport is not None:
        if not family or sk.bound or transport.family == family:
            return transport
        if {transport.family, family} != {AF_INET, AF_INET6}:
            return transport
        transport.close()
    sk.transport = transport = sk.fabric.transport(sk, family or AF_INET)
    return transport


# -- memory ---------------------------------------------------------------------------------------


def sdp_charge(sk: SdpSock) -> None:
    """Charge the sock what its engine holds now (family/memory.py).

    What came is held already: it is charged whatever the marks say, and bounded by credits.
    """
    engine = sk.engine
    sent, received = (0, 0) if engine is None else (engine.outq, engine.unread)
    more = sent + received - sk.sk_wmem_queued - sk.sk_rmem_alloc
    sk.sk_wmem_queued, sk.sk_rmem_alloc = sent, received
    if more > 0:
        sk_forced_mem_schedule(sk, more)
        sk_mem_charge(sk, more)
    elif more < 0:
        sk_mem_uncharge(sk, -more)


def _memory_for(sk: SdpSock, engine: Engine) -> bool:
    """May the sender have a quantum more? Else it hears when there is memory again."""
    if sk.sk_forward_alloc >= SK_MEM_QUANTUM or sk_schedule(sk, SK_MEM_QUANTUM, SK_MEM_SEND):
        return True
    sk.sk_flags |= SOCK_NOSPACE
    wait_for_memory(sk)
    return False
