"""`struct proto` of SDP: connections, their states, and how they end.

The data calls are in `calls`; what opens streams is the fabric's.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family.const import (
    RCV_SHUTDOWN,
    SEND_SHUTDOWN,
    SHUTDOWN_MASK,
    SOCK_DEAD,
    SOCK_FREED,
    SOCK_LINGER,
    TcpState,
)
from steertag.family.inet import inet_csk_accept, inet_csk_destroy_sock, inet_csk_orphan
from steertag.family.proto import Counter, DiagInfo, Proto
from steertag.family.sock import Sock, sk_acceptq_added, sk_acceptq_removed, sk_wake
from steertag.sdp import calls
from steertag.sdp.options import (
    OWNER,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLRDHUP,
    SIOCATMARK,
    SIOCINQ,
    SIOCOUTQ,
)
from steertag.sdp.sock import SdpSock, sdp_sk
from steertag.sdp.sockopt import sdp_getsockopt, sdp_info, sdp_keepalive, sdp_setsockopt

if TYPE_CHECKING:
    from steertag.family.msg import Address
    from steertag.sdp.fabric import Fabric, Link, Transport
    from steertag.sdp.fallback import Reason

_EVERYTHING: Final = POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP
_SENDING: Final = (TcpState.TCP_ESTABLISHED, TcpState.TCP_CLOSE_WAIT)


def sdp_prot(fabric: Fabric) -> Proto:
    """A fresh `struct proto`; its socks' streams are the fabric's."""

    def init(sk: Sock) -> None:
        sdp = sdp_sk(sk)
        sdp.fabric = fabric
        sdp.carrier = fabric.carrier
        sdp.zcopy_thresh = fabric.zcopy_thresh

    return Proto(
        name="SDP",
        owner=OWNER,
        obj_size=SdpSock,
        no_autobind=True,
        init=init,
        close=sdp_close,
        connect=sdp_connect,
        disconnect=sdp_disconnect,
        accept=sdp_accept,
        ioctl=sdp_ioctl,
        shutdown=sdp_shutdown,
        setsockopt=sdp_setsockopt,
        getsockopt=sdp_getsockopt,
        keepalive=sdp_keepalive,
        sendmsg=calls.sdp_sendmsg,
        recvmsg=calls.sdp_recvmsg,
        busy_loop=calls.sdp_busy_loop,
        bind=sdp_bind,
        hash=sdp_hash,
        unhash=sdp_unhash,
        destroy=sdp_destroy,
        diag_info=sdp_diag_info,
        sockets_allocated=Counter(),
        memory_allocated=Counter(),
        memory_pressure=Counter(),
        orphan_count=Counter(),
        sysctl_mem=[65536, 98304, 131072],
        sysctl_wmem=[16384, 1 << 20, 4 << 20],
        sysctl_rmem=[16384, 1 << 20, 4 << 20],
    )


# -- names ----------------------------------------------------------------------------------------


def sdp_bind(sk: Sock, address: Address) -> None:
    """bind(2): the port is the transport's. Raises EINVAL where it has one, or as that does."""
    sdp = sdp_sk(sk)
    if sdp.sk_state != TcpState.TCP_CLOSE or sdp.bound:
        raise os_error(errno.EINVAL)
    transport = calls.transport_of(sdp, sdp.fabric.family_of(sdp, address))
    if sdp.sk_reuse:
        transport.setsockopt(1, 2, 1)  # SOL_SOCKET, SO_REUSEADDR
    transport.bind(address)
    sdp.bound = True
    remember_names(sdp)


def remember_names(sk: SdpSock) -> None:
    """The transport's names are the sock's, for those who ask when it is gone."""
    transport = sk.transport
    if transport is None:
        return
    sk.local = name = transport.getsockname()
    if isinstance(name, tuple):
        sk.inet_saddr, sk.inet_num = name[0], name[1]
    if sk.sk_state in (TcpState.TCP_CLOSE, TcpState.TCP_LISTEN, TcpState.TCP_SYN_SENT):
        return
    try:
        name = transport.getpeername()
    except OSError:
        return  # it is gone already; the name that connect was given stays
    sk.peer = name
    if isinstance(name, tuple):
        sk.inet_daddr, sk.inet_dport = name[0], name[1]


# -- connecting -----------------------------------------------------------------------------------


def sdp_connect(sk: Sock, address: Address) -> None:
    """Begin to connect (`inet_stream_connect`)."""
    sdp = sdp_sk(sk)
    sdp.fabric.family_of(sdp, address)  # raises before anything has changed
    sdp.sk_state = TcpState.TCP_SYN_SENT
    sdp.peer = address
    try:
        sdp.attempt = sdp.fabric.connect(sdp, address)
    except BaseException:
        sdp.sk_state = TcpState.TCP_CLOSE
        raise
    if sdp.sk_state != TcpState.TCP_SYN_SENT:
        sdp.attempt = None


def sdp_connected(sk: SdpSock, link: Link) -> None:
    """The fabric's: SDP is spoken on the stream."""
    sk.attempt = None
    sk.link, sk.engine = link, link.engine
    sk.sk_state = TcpState.TCP_ESTABLISHED
    remember_names(sk)
    sk.sk_state_change(sk)


def sdp_fell_back(sk: SdpSock, transport: Transport, reason: Reason) -> None:
    """The fabric's: the connection is the transport's alone."""
    sk.attempt = None
    sk.transport = sk.plain = transport
    sk.reason = reason
    if sk.sk_socket is not None:
        sk.sk_socket.ops = sk.fabric.plain_ops
    sk.sk_state = TcpState.TCP_ESTABLISHED
    remember_names(sk)
    sk.sk_state_change(sk)


def sdp_failed(sk: SdpSock, code: int) -> None:
    """The fabric's: there is no connection, and why (an errno)."""
    sk.attempt = None
    _forget_stream(sk)
    sk.sk_err = code
    sk.sk_state = TcpState.TCP_CLOSE
    sk.sk_error_report(sk)


def sdp_disconnect(sk: Sock, flags: int) -> None:
    """Back to what a fresh one is; connections that nobody has accepted are ended."""
    sdp = sdp_sk(sk)
    attempt, sdp.attempt = sdp.attempt, None
    if attempt is not None:
        attempt.cancel()
    while sdp.accept_queue:
        child = sdp_sk(sk_acceptq_removed(sdp))
        _forget_stream(child)
        child.sk_state = TcpState.TCP_CLOSE
        inet_csk_destroy_sock(child)
    _forget_stream(sdp)
    sdp.sk_state = TcpState.TCP_CLOSE
    sdp.sk_shutdown = sdp.sk_err = 0
    sdp.bound = False
    sdp.local = sdp.peer = None
    sdp.inet_num = sdp.inet_dport = 0
    sdp.inet_saddr = sdp.inet_daddr = sdp.ANY
    sdp.reason = None
    if sdp.sk_socket is not None:
        sdp.sk_socket.ops = sdp.fabric.ops
    sdp.spare = b""


def _forget_stream(sk: SdpSock) -> None:
    """End the stream, if there is one, and let go of it."""
    calls.drop_transfers(sk)
    link, sk.link, sk.engine = sk.link, None, None
    transport, sk.transport, sk.plain = sk.transport, None, None
    if link is not None:
        link.close()
    if transport is not None:
        transport.close()


# -- listening ------------------------------------------------------------------------------------


def sdp_hash(sk: Sock) -> None:
    """listen(2): the transport listens (`inet_listen`)."""
    sdp = sdp_sk(sk)
    if sdp.sk_state != TcpState.TCP_LISTEN:
        return
    transport = calls.transport_of(sdp, 0)
    transport.listen(max(sdp.sk_max_ack_backlog, 1))
    sdp.attempt = sdp.fabric.listen(sdp)
    remember_names(sdp)


def sdp_unhash(sk: Sock) -> None:
    """Whatever was begun is given up."""
    sdp = sdp_sk(sk)
    attempt, sdp.attempt = sdp.attempt, None
    if attempt is not None:
        attempt.cancel()


def sdp_accept(sk: Sock, flags: int) -> Sock:
    """The next connection, of either kind. Raises EINVAL, EAGAIN (`inet_csk_accept`)."""
    sdp = sdp_sk(sk)
    try:
        return inet_csk_accept(sk, flags)
    finally:
        sdp.fabric.accepted(sdp)  # there may be room now, also since the backlog is another


def sdp_accepted(listener: SdpSock, child: SdpSock) -> None:
    """The fabric's: a connection came in, and waits for `accept`."""
    child.sk_state = TcpState.TCP_ESTABLISHED
    remember_names(child)
    sk_acceptq_added(listener, child)


# -- the end --------------------------------------------------------------------------------------


def sdp_shutdown(sk: Sock, how: int) -> None:
    """shutdown(2) (`inet_shutdown`, which has set `sk_shutdown`)."""
    sdp = sdp_sk(sk)
    if sdp.plain is not None:
        sdp.plain.shutdown(how - 1)
        return
    engine = sdp.engine
    if engine is None or sdp.link is None:
        return
    if how & RCV_SHUTDOWN:
        engine.shutdown_recv()
    if how & SEND_SHUTDOWN and sdp.sk_state in _SENDING:
        closing = sdp.sk_state == TcpState.TCP_CLOSE_WAIT
        sdp.sk_state = TcpState.TCP_LAST_ACK if closing else TcpState.TCP_FIN_WAIT1
        engine.shutdown_send()
    sdp.link.flush()


def sdp_close(sk: Sock, timeout: float) -> None:
    """The user let go. What was sent is delivered still, unless SO_LINGER is on with no time.

    As with TCP, octets that came and were not read mean that the peer is told of an abort.
    """
    sdp = sdp_sk(sk)
    if sdp.sk_state == TcpState.TCP_LISTEN or sdp.attempt is not None:
        sdp_disconnect(sdp, 0)
    reset = bool(sdp.sk_flags & SOCK_LINGER) and not timeout
    sending = sdp.sending
    calls.drop_transfers(sdp)
    # Memory that the peer may read, and whose owner gets it back with this close.
    reset = reset or (sending is not None and not sending[1].done)
    if sdp.plain is not None:
        sk_wake(sdp, _EVERYTHING)  # who waits in a call is to find the socket closed
        _close_plain(sdp, reset=reset)
    elif sdp.engine is not None and sdp.link is not None and not sdp.engine.ended:
        if reset or sdp.engine.unread or sdp.spare:
            sdp.engine.abort()
        else:
            sdp.sk_shutdown = SHUTDOWN_MASK
            sdp.sk_state = TcpState.TCP_FIN_WAIT1
            sdp.engine.close()
        sdp.link.flush()
        if not sdp.engine.ended and inet_csk_orphan(sdp):
            return  # `sdp_event` frees it
    _forget_stream(sdp)
    sdp.sk_state = TcpState.TCP_CLOSE
    inet_csk_destroy_sock(sdp)


def _close_plain(sk: SdpSock, *, reset: bool) -> None:
    """The host's kernel goes on delivering by itself; who lingers for it does so afterwards."""
    transport, sk.transport, sk.plain = sk.plain, None, None
    if transport is not None:
        if reset:
            transport.abort()
        else:
            transport.close()


def sdp_destroy(sk: Sock) -> None:
    """Nothing is left behind, whichever way it came here."""
    sdp = sdp_sk(sk)
    _forget_stream(sdp)
    calls.sdp_charge(sdp)


# -- what the engine tells ------------------------------------------------------------------------


def sdp_event(sk: SdpSock, mask: int) -> None:
    """`on_event` of the sock's engine: POLL* bits are news."""
    engine = sk.engine
    if engine is None:
        return
    if sk.sk_flags & (SOCK_DEAD | SOCK_FREED):
        if engine.ended:
            _forget_stream(sk)
            sk.sk_state = TcpState.TCP_CLOSE
            inet_csk_destroy_sock(sk)
        return
    if engine.peer_shut and not sk.sk_shutdown & RCV_SHUTDOWN:
        sk.sk_shutdown |= RCV_SHUTDOWN
        if sk.sk_state == TcpState.TCP_ESTABLISHED:
            sk.sk_state = TcpState.TCP_CLOSE_WAIT
        elif sk.sk_state == TcpState.TCP_FIN_WAIT1:
            sk.sk_state = TcpState.TCP_LAST_ACK
    if engine.ended and sk.sk_state != TcpState.TCP_CLOSE:
        if engine.error:
            sk.sk_err = engine.error
        sk.sk_shutdown = SHUTDOWN_MASK
        sk.sk_state = TcpState.TCP_CLOSE
        mask |= _EVERYTHING if engine.error else POLLIN | POLLOUT | POLLHUP | POLLRDHUP
    calls.sdp_charge(sk)
    sk_wake(sk, mask)


def sdp_drained(sk: SdpSock) -> None:
    """Something left: who lingers until everything has is told."""
    calls.sdp_charge(sk)
    if not sk.sk_wmem_queued:
        sk_wake(sk, POLLOUT)


# -- looking --------------------------------------------------------------------------------------


def sdp_ioctl(sk: Sock, cmd: int, arg: object) -> int:
    """SIOCINQ, SIOCOUTQ, SIOCATMARK. Raises EINVAL for a listener, ENOTTY."""
    sdp = sdp_sk(sk)
    if sdp.plain is not None:
        return sdp.plain.ioctl(cmd, arg)
    engine = sdp.engine
    if sdp.sk_state == TcpState.TCP_LISTEN and cmd in (SIOCINQ, SIOCOUTQ):
        raise os_error(errno.EINVAL)
    if cmd == SIOCINQ:
        return len(sdp.spare) + (0 if engine is None else engine.unread)
    if cmd == SIOCOUTQ:
        return 0 if engine is None else engine.outq
    if cmd == SIOCATMARK:
        return int(engine is not None and not sdp.spare and engine.at_mark)
    raise os_error(errno.ENOTTY)


def sdp_diag_info(sk: Sock) -> DiagInfo:
    """`stag sockets -i`."""
    sdp = sdp_sk(sk)
    return dict(sdp_info(sdp))
