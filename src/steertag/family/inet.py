"""Stock `ProtoOps` members for families with hosts and ports (net/ipv4/af_inet.c).

They hold what every such family has in common: the checks, the order of the calls, and
`struct socket`'s state. What the protocol does is in its `Proto`.
"""

from __future__ import annotations

import errno
import socket as host
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steertag.errors import os_error
from steertag.family.const import (
    PEER_OF_ACCEPTED,
    RCV_SHUTDOWN,
    SHUTDOWN_MASK,
    SOCK_LINGER,
    SOCK_ORPHAN,
    SocketState,
    TcpState,
)
from steertag.family.inet_hash import inet_sk
from steertag.family.sock import (
    Sock,
    sk_acceptq_removed,
    sk_alloc,
    sk_free,
    sock_error,
    sock_graft,
    sock_init_data,
    sock_orphan,
)
from steertag.family.sock_common import sk_common_release, sock_common_recvmsg
from steertag.family.sockopt import sock_of

if TYPE_CHECKING:
    from steertag.family.msg import Address, MsgHdr
    from steertag.family.proto import Proto
    from steertag.family.proto_ops import ProtoOps
    from steertag.family.socket import Socket
    from steertag.family.stack import Stack

_CONNECTING = (TcpState.TCP_SYN_SENT, TcpState.TCP_SYN_RECV)

inet_recvmsg = sock_common_recvmsg


@dataclass(frozen=True, slots=True)
class InetProtosw:
    """One row of a family's table (`struct inet_protosw`): what a type and protocol lead to.

    Protocol 0 in a row takes any number that is asked for, as raw sockets do.
    """

    type: int
    protocol: int
    prot: Proto
    ops: ProtoOps


def inet_create(rows: Sequence[InetProtosw]) -> Callable[[Stack, Socket, int], None]:
    """A family's `create` out of its table: the first row of the type that has the protocol.

    It raises ESOCKTNOSUPPORT if no row has the type and EPROTONOSUPPORT if none the protocol.
    """

    def create(stack: Stack, sock: Socket, protocol: int) -> None:
        of_type = [row for row in rows if row.type == sock.type]
        if not of_type:
            raise os_error(errno.ESOCKTNOSUPPORT)
        for row in of_type:
            if protocol in (0, row.protocol) or row.protocol == 0:
                break
        else:
            raise os_error(errno.EPROTONOSUPPORT)
        sock.ops = row.ops
        sock.protocol = protocol or row.protocol
        sk = sk_alloc(stack, sock.family, row.prot)
        sock_init_data(sock, sk)
        sk.sk_protocol = sock.protocol
        sk_init(sk)

    return create


def sk_init(sk: Sock) -> None:
    """Call the protocol's `init`; a sock that it refuses is released."""
    if sk.sk_prot.init is None:
        return
    try:
        sk.sk_prot.init(sk)
    except BaseException:
        sk_free(sk)
        raise


def sk_clone(parent: Sock) -> Sock:
    """A sock like its listener, without a socket, for a connection that comes in."""
    child = sk_alloc(parent.sk_stack, parent.sk_family, parent.sk_prot)
    sock_init_data(None, child)
    child.sk_type = parent.sk_type
    child.sk_protocol = parent.sk_protocol
    child.sk_reuse = parent.sk_reuse
    child.sk_rcvlowat = parent.sk_rcvlowat
    sk_init(child)
    return child


def inet_autobind(sk: Sock) -> None:
    """A port for a sock that was not bound. Raises EADDRNOTAVAIL if there is none left."""
    get_port = sk.sk_prot.get_port
    if get_port is None or sk.sk_prot.no_autobind or inet_sk(sk).inet_num:
        return
    try:
        get_port(sk, 0)
    except OSError as exc:
        raise os_error(errno.EADDRNOTAVAIL, "no port is free") from exc


def inet_bind(sock: Socket, address: Address) -> None:
    """Raises EINVAL if it has a port already, EADDRINUSE, and what `check_address` raises."""
    sk = sock_of(sock)
    if sk.sk_prot.bind is not None:
        sk.sk_prot.bind(sk, address)
        return
    inet = inet_sk(sk)
    saddr, port = inet.check_address(address)
    if sk.sk_state != TcpState.TCP_CLOSE or inet.inet_num:
        raise os_error(errno.EINVAL)
    if sk.sk_prot.get_port is None:
        raise os_error(errno.EOPNOTSUPP)
    before, inet.inet_saddr = inet.inet_saddr, saddr
    try:
        sk.sk_prot.get_port(sk, port)
    except OSError:
        inet.inet_saddr = before
        raise


def inet_listen(sock: Socket, backlog: int) -> None:
    """Raises EINVAL unless it is a connection-oriented socket without a peer."""
    sk = sock_of(sock)
    prot = sk.sk_prot
    kinds = (host.SOCK_STREAM, host.SOCK_SEQPACKET)
    if sock.state != SocketState.SS_UNCONNECTED or sock.type not in kinds:
        raise os_error(errno.EINVAL)
    if sk.sk_state not in (TcpState.TCP_CLOSE, TcpState.TCP_LISTEN):
        raise os_error(errno.EINVAL)
    sk.sk_max_ack_backlog = backlog
    if sk.sk_state == TcpState.TCP_LISTEN:
        return
    sk.sk_state = TcpState.TCP_LISTEN
    try:
        if prot.get_port is not None:
            prot.get_port(sk, inet_sk(sk).inet_num)
        if prot.hash is not None:
            prot.hash(sk)
    except OSError:
        sk.sk_state = TcpState.TCP_CLOSE
        raise


def _disconnect(sock: Socket, sk: Sock, flags: int) -> None:
    sock.state = SocketState.SS_DISCONNECTING
    if sk.sk_prot.disconnect is None:
        raise os_error(errno.EOPNOTSUPP)
    sk.sk_prot.disconnect(sk, flags)
    sock.state = SocketState.SS_UNCONNECTED


def inet_stream_connect(sock: Socket, address: Address, flags: int) -> None:
    """Raises EINPROGRESS, EALREADY, EISCONN, and how the attempt ended (ECONNREFUSED, ...)."""
    sk = sock_of(sock)
    if address is None:
        _disconnect(sock, sk, flags)
        return
    if sock.state == SocketState.SS_CONNECTED:
        raise os_error(errno.EISCONN)
    if sock.state == SocketState.SS_CONNECTING:
        if sk.sk_state in _CONNECTING:
            raise os_error(errno.EALREADY)
    else:
        if sk.sk_state != TcpState.TCP_CLOSE:
            raise os_error(errno.EISCONN)
        if sk.sk_prot.connect is None:
            raise os_error(errno.EOPNOTSUPP)
        inet_autobind(sk)
        sk.sk_prot.connect(sk, address)
        sock.state = SocketState.SS_CONNECTING
        if sk.sk_state in _CONNECTING:
            raise os_error(errno.EINPROGRESS)
    if sk.sk_state == TcpState.TCP_CLOSE:
        failed = sock_error(sk) or os_error(errno.ECONNABORTED)
        _disconnect(sock, sk, flags)
        raise failed
    sock.state = SocketState.SS_CONNECTED


def inet_dgram_connect(sock: Socket, address: Address, flags: int) -> None:
    """Fix the peer of a datagram socket, or let it go."""
    sk = sock_of(sock)
    if address is None:
        _disconnect(sock, sk, flags)
        return
    if sk.sk_prot.connect is None:
        raise os_error(errno.EOPNOTSUPP)
    inet_autobind(sk)
    sk.sk_prot.connect(sk, address)


def inet_accept(sock: Socket, newsock: Socket, flags: int) -> None:
    sk = sock_of(sock)
    if sk.sk_prot.accept is None:
        raise os_error(errno.EOPNOTSUPP)
    sock_graft(sk.sk_prot.accept(sk, flags), newsock)
    newsock.state = SocketState.SS_CONNECTED


def inet_getname(sock: Socket, peer: int) -> Address:
    """Raises ENOTCONN for the peer's of a socket that has none."""
    sk = inet_sk(sock_of(sock))
    if not peer:
        return (sk.inet_saddr, sk.inet_num)
    gone = sk.sk_state in (TcpState.TCP_CLOSE, TcpState.TCP_SYN_SENT)
    if not sk.inet_dport or (gone and peer != PEER_OF_ACCEPTED):
        raise os_error(errno.ENOTCONN)
    return (sk.inet_daddr, sk.inet_dport)


def inet_shutdown(sock: Socket, how: int) -> None:
    """Raises EINVAL for another `how` than SHUT_RD, SHUT_WR, SHUT_RDWR; ENOTCONN."""
    sk = sock_of(sock)
    if how not in (host.SHUT_RD, host.SHUT_WR, host.SHUT_RDWR):
        raise os_error(errno.EINVAL)
    mask = (how + 1) & SHUTDOWN_MASK
    if sk.sk_state == TcpState.TCP_LISTEN:
        if mask & RCV_SHUTDOWN:
            _disconnect(sock, sk, 0)
    elif sk.sk_state == TcpState.TCP_SYN_SENT:
        _disconnect(sock, sk, 0)
    else:
        sk.sk_shutdown |= mask
        unconnected = sk.sk_state == TcpState.TCP_CLOSE
        if sk.sk_prot.shutdown is not None:
            sk.sk_prot.shutdown(sk, mask)
        if unconnected:
            # Whoever waits finds out all the same, as in the kernel.
            sk.sk_state_change(sk)
            raise os_error(errno.ENOTCONN)
    sk.sk_state_change(sk)


def inet_sendmsg(sock: Socket, msg: MsgHdr) -> int:
    sk = sock_of(sock)
    if sk.sk_prot.sendmsg is None:
        raise os_error(errno.EOPNOTSUPP)
    inet_autobind(sk)
    return sk.sk_prot.sendmsg(sk, msg)


def inet_ioctl(sock: Socket, cmd: int, arg: object) -> int:
    sk = sock_of(sock)
    if sk.sk_prot.ioctl is None:
        raise os_error(errno.ENOTTY)
    return sk.sk_prot.ioctl(sk, cmd, arg)


def inet_release(sock: Socket) -> None:
    """Let the protocol close; SO_LINGER's time goes with it."""
    sk = sock_of(sock)
    timeout = sk.sk_lingertime if sk.sk_flags & SOCK_LINGER else 0.0
    if sk.sk_prot.close is None:
        sk_common_release(sk)
    else:
        sk.sk_prot.close(sk, timeout)


# -- for connection-oriented protocols (net/ipv4/inet_connection_sock.c) ------------------------


def inet_csk_accept(sk: Sock, flags: int) -> Sock:
    """Stock `accept`. Raises EINVAL if it does not listen, EAGAIN if no connection waits."""
    if sk.sk_state != TcpState.TCP_LISTEN:
        raise os_error(errno.EINVAL)
    if not sk.accept_queue:
        raise os_error(errno.EAGAIN)
    return sk_acceptq_removed(sk)


def inet_csk_orphan(sk: Sock) -> bool:
    """The user is gone and there is data to deliver: count it among the orphans.

    False: there are more than sysctl net.core.max_orphans, so the protocol is to abort.
    """
    sock_orphan(sk)
    orphans = sk.sk_prot.orphan_count
    if orphans is None:
        return True
    sk.sk_flags |= SOCK_ORPHAN
    orphans.value += 1
    return orphans.value <= sk.sk_stack.sysctl["net.core.max_orphans"]


def inet_csk_destroy_sock(sk: Sock) -> None:
    """The end of a connection's sock, orphan or not."""
    if sk.sk_flags & SOCK_ORPHAN:
        sk.sk_flags &= ~SOCK_ORPHAN
        if sk.sk_prot.orphan_count is not None:
            sk.sk_prot.orphan_count.value -= 1
    sk_common_release(sk)
