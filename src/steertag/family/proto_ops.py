"""`struct proto_ops` and `struct net_proto_family`: how a family is entered (linux/net.h)."""

from __future__ import annotations

import socket as host
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from steertag.family import sock_no

if TYPE_CHECKING:
    from steertag.family.msg import Address, MsgHdr
    from steertag.family.socket import Socket
    from steertag.family.stack import Stack


Direct: TypeAlias = "Callable[[Socket], host.socket | None]"


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class ProtoOps:
    """What the socket layer calls, for one type of socket of one family.

    Functions are called with the Stack's lock held and never wait: one that can't go on raises
    `BlockingIOError` (EAGAIN, or EINPROGRESS and EALREADY from `connect`), and the socket object
    waits until `poll` says it can. Members left out refuse (`sock_no_*`).

    Attributes:
        family: the family's number.
        owner: the module that brings it.
        release: `(sock)`. The last holder closed the socket.
        bind: `(sock, address)`. bind(2).
        connect: `(sock, address, flags)`. connect(2); an address of None is AF_UNSPEC, which
            dissolves the connection.
        socketpair: `(sock1, sock2)`. Joins two fresh sockets. socketpair(2).
        accept: `(sock, newsock, flags)`. Ties the next connection to newsock. accept(2).
        getname: `(sock, peer) -> address`. getsockname(2), and with peer 1 getpeername(2);
            PEER_OF_ACCEPTED: the peer of what `accept` has just given, though the connection may be
            over by now.
        poll: `(sock) -> mask` of POLL* bits: what a call would find now. Evaluated again after
            every call and every `sk_*` call-back, for the descriptor that others wait on.
        ioctl: `(sock, cmd, arg) -> int`. ioctl(2), through the socket object's `ioctl`.
        listen: `(sock, backlog)`. listen(2); backlog is cut to sysctl net.core.somaxconn.
        shutdown: `(sock, how)`. shutdown(2); how is SHUT_RD, SHUT_WR or SHUT_RDWR.
        setsockopt: `(sock, level, name, value)`. setsockopt(2) for levels other than SOL_SOCKET.
        getsockopt: `(sock, level, name, size) -> int | bytes`. As above.
        sendmsg: `(sock, msg) -> octets taken`. send(2), sendto(2), sendmsg(2).
        recvmsg: `(sock, msg, flags) -> octets placed`. recv(2), recvfrom(2), recvmsg(2).
        cancel: `(sock, msg) -> octets done`. The caller gives up: a msg with `msg_waits` got a
            BlockingIOError, and won't come again (a time-out, a signal). The family lets go of
            its buffers before this returns; where a peer has them still it raises BlockingIOError
            and is called again after news, of which there has to be some within a stated time.
            What had been moved counts as moved: it is the call's answer. A caller that can't
            answer any more, because of an exception, has cleared `msg_waits`: a receiving family
            then keeps those octets for the next call. None: the family keeps no buffers.
        resolve: `(sock, address) -> address`. Called before bind and connect, without the Stack's
            lock, so that it may wait: names become addresses. None: the family has no names.
        direct: `(sock) -> socket.socket | None`. The host kernel's socket that this connection has
            turned out to be: data calls may go straight there, and its descriptor may be given
            out. A family that has this sets these ops when it has come to that; SOL_SOCKET's
            options are its own then too.
        passthrough: `(sock) -> socket.socket | None`. The host kernel's socket that this one is,
            for a family whose calls all end there: the socket object then binds its data and
            control calls straight to it, so that nothing lies between.
    """

    family: int
    owner: str
    release: Callable[[Socket], None]
    bind: Callable[[Socket, Address], None] = sock_no.sock_no_bind
    connect: Callable[[Socket, Address, int], None] = sock_no.sock_no_connect
    socketpair: Callable[[Socket, Socket], None] = sock_no.sock_no_socketpair
    accept: Callable[[Socket, Socket, int], None] = sock_no.sock_no_accept
    getname: Callable[[Socket, int], Address] = sock_no.sock_no_getname
    poll: Callable[[Socket], int] = sock_no.sock_no_poll
    ioctl: Callable[[Socket, int, object], int] = sock_no.sock_no_ioctl
    listen: Callable[[Socket, int], None] = sock_no.sock_no_listen
    shutdown: Callable[[Socket, int], None] = sock_no.sock_no_shutdown
    setsockopt: Callable[[Socket, int, int, int | bytes | None], None] = sock_no.sock_no_setsockopt
    getsockopt: Callable[[Socket, int, int, int], int | bytes] = sock_no.sock_no_getsockopt
    sendmsg: Callable[[Socket, MsgHdr], int] = sock_no.sock_no_sendmsg
    recvmsg: Callable[[Socket, MsgHdr, int], int] = sock_no.sock_no_recvmsg
    cancel: Callable[[Socket, MsgHdr], int] | None = None
    resolve: Callable[[Socket, Address], Address] | None = None
    direct: Direct | None = None
    passthrough: Callable[[Socket], host.socket | None] | None = None

    @property
    def has_own_options(self) -> bool:
        """SOL_SOCKET's options are the host's, or the family's, and not those of family/sockopt."""
        return self.passthrough is not None or self.direct is not None


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class NetProtoFamily:
    """A family: its number and how a socket of it comes to be.

    Attributes:
        family: 0..NPROTO-1.
        create: `(stack, sock, protocol)`. Picks by `sock.type` and protocol, then does what the
            kernel's does: `sk_alloc`, `sock_init_data`, `sock.ops`. Raises ESOCKTNOSUPPORT or
            EPROTONOSUPPORT.
        owner: the module that brings it; it can't be unregistered while it has sockets.
        adopt: `(stack, sock, native)`. Makes `sock` one around a socket of the host kernel that
            exists already (an inherited descriptor). For families with `passthrough`.
    """

    family: int
    create: Callable[[Stack, Socket, int], None]
    owner: str
    adopt: Callable[[Stack, Socket, host.socket], None] | None = None
