"""The family itself: AF_INET_SDP's table of calls, and its registration."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from steertag.errors import os_error
from steertag.family import inet
from steertag.family.const import PEER_OF_ACCEPTED, TcpState
from steertag.family.inet import InetProtosw, inet_create
from steertag.family.proto_ops import NetProtoFamily, ProtoOps
from steertag.family.sock_common import sock_common_getsockopt, sock_common_setsockopt
from steertag.family.sockopt import sock_of
from steertag.sdp import calls
from steertag.sdp.options import AF_INET_SDP, IPPROTO_TCP, OWNER, SOCK_STREAM
from steertag.sdp.proto import sdp_prot
from steertag.sdp.sock import sdp_sk
from steertag.sdp.sockopt import sdp_plain_getsockopt, sdp_plain_setsockopt

if TYPE_CHECKING:
    from steertag.family.msg import Address, MsgHdr
    from steertag.family.proto import Proto
    from steertag.family.socket import Socket
    from steertag.family.stack import Stack
    from steertag.sdp.fabric import Fabric


def sdp_getname(sock: Socket, peer: int) -> Address:
    """getsockname(2), getpeername(2). Raises ENOTCONN for the peer's of a socket that has none."""
    sk = sdp_sk(sock_of(sock))
    if peer:
        gone = sk.sk_state in (TcpState.TCP_CLOSE, TcpState.TCP_SYN_SENT, TcpState.TCP_LISTEN)
        if sk.peer is None or (gone and peer != PEER_OF_ACCEPTED):
            raise os_error(errno.ENOTCONN)
        if sk.plain is not None and peer != PEER_OF_ACCEPTED:
            return sk.plain.getpeername()
        return sk.peer
    return sk.local if sk.local is not None else ("0.0.0.0", 0)


def sdp_ops_sendmsg(sock: Socket, msg: MsgHdr) -> int:
    return calls.sdp_sendmsg(sock_of(sock), msg)


def sdp_ops_recvmsg(sock: Socket, msg: MsgHdr, flags: int) -> int:
    return calls.sdp_recvmsg(sock_of(sock), msg, flags)


def sdp_ops_accept(sock: Socket, newsock: Socket, flags: int) -> None:
    """accept(2) (`inet_accept`)."""
    inet.inet_accept(sock, newsock, flags)
    sk = sdp_sk(newsock.sk)
    newsock.ops = sk.fabric.ops if sk.plain is None else sk.fabric.plain_ops


def sdp_ops(fabric: Fabric) -> ProtoOps:
    return ProtoOps(
        family=AF_INET_SDP,
        owner=OWNER,
        release=inet.inet_release,
        bind=inet.inet_bind,
        connect=inet.inet_stream_connect,
        accept=sdp_ops_accept,
        getname=sdp_getname,
        poll=calls.sdp_poll,
        ioctl=inet.inet_ioctl,
        listen=inet.inet_listen,
        shutdown=inet.inet_shutdown,
        setsockopt=sock_common_setsockopt,
        getsockopt=sock_common_getsockopt,
        sendmsg=sdp_ops_sendmsg,
        recvmsg=sdp_ops_recvmsg,
        cancel=calls.sdp_cancel,
        resolve=fabric.resolve,
    )


def sdp_register(stack: Stack, fabric: Fabric) -> Proto:
    """Enter the protocol and the family. Raises EEXIST."""
    prot = sdp_prot(fabric)
    fabric.ops = ops = sdp_ops(fabric)
    fabric.plain_ops = replace(
        ops, direct=fabric.direct, setsockopt=sdp_plain_setsockopt, getsockopt=sdp_plain_getsockopt
    )
    rows = [InetProtosw(SOCK_STREAM, IPPROTO_TCP, prot, ops)]
    stack.proto_register(prot)
    try:
        stack.sock_register(
            NetProtoFamily(family=AF_INET_SDP, create=inet_create(rows), owner=OWNER)
        )
    except OSError:
        stack.proto_unregister(prot)
        raise
    return prot
