"""`ProtoOps` of the host families, and their registration."""

from __future__ import annotations

import errno
import select
import socket as std

from steertag.errors import os_error
from steertag.family.const import SocketState, TcpState
from steertag.family.inet import (
    inet_accept,
    inet_ioctl,
    inet_recvmsg,
    inet_release,
    inet_sendmsg,
    sk_init,
)
from steertag.family.msg import Address
from steertag.family.proto import Proto
from steertag.family.proto_ops import NetProtoFamily, ProtoOps
from steertag.family.sock import POLLRDHUP, sk_alloc, sock_init_data
from steertag.family.sock_common import sock_common_getsockopt, sock_common_setsockopt
from steertag.family.sock_no import sock_no_socketpair
from steertag.family.socket import Socket
from steertag.family.sockopt import sock_of
from steertag.family.stack import Stack
from steertag.host.proto import host_proto, replace_native
from steertag.host.sock import host_sk, native_of

OWNER = "steertag.host"

# family -> type -> name of the protocol, as `stag protocols` lists it
FAMILIES: dict[int, dict[int, str]] = {
    std.AF_UNIX: {
        std.SOCK_STREAM: "HOST-UNIX",
        std.SOCK_DGRAM: "HOST-UNIX-DGRAM",
        std.SOCK_SEQPACKET: "HOST-UNIX-SEQ",
    },
    std.AF_INET: {
        std.SOCK_STREAM: "HOST-TCP",
        std.SOCK_DGRAM: "HOST-UDP",
        std.SOCK_RAW: "HOST-RAW",
    },
    std.AF_INET6: {
        std.SOCK_STREAM: "HOST-TCPv6",
        std.SOCK_DGRAM: "HOST-UDPv6",
        std.SOCK_RAW: "HOST-RAWv6",
    },
}
_EVERYTHING = select.POLLIN | select.POLLOUT | select.POLLPRI | POLLRDHUP


def register(stack: Stack) -> None:
    """Register those of the host's families that the Stack does not have yet."""
    present = stack.families
    for number, names in FAMILIES.items():
        if number not in present:
            _register_family(stack, number, names)


def _register_family(stack: Stack, number: int, names: dict[int, str]) -> None:
    protocols = {kind: host_proto(name, OWNER) for kind, name in names.items()}
    ops = host_ops(number)
    for prot in protocols.values():
        stack.proto_register(prot)

    def adopt(stack: Stack, sock: Socket, native: std.socket) -> None:
        prot = protocols.get(sock.type)
        if prot is None:
            raise os_error(errno.ESOCKTNOSUPPORT)
        _tie(stack, sock, prot, ops, native)

    def create(stack: Stack, sock: Socket, protocol: int) -> None:
        if sock.type not in protocols:
            raise os_error(errno.ESOCKTNOSUPPORT)
        # The protocol is the host's to judge: EPROTONOSUPPORT, or EPERM for raw sockets.
        native = std.socket(sock.family, sock.type, protocol)
        try:
            adopt(stack, sock, native)
        except BaseException:
            native.close()
            raise

    stack.sock_register(NetProtoFamily(family=number, create=create, adopt=adopt, owner=OWNER))


def _tie(stack: Stack, sock: Socket, prot: Proto, ops: ProtoOps, native: std.socket) -> None:
    sock.ops = ops
    sock.protocol = native.proto
    sk = sk_alloc(stack, sock.family, prot)
    sock_init_data(sock, sk)
    sk.sk_protocol = native.proto
    host_sk(sk).native = native
    sk_init(sk)


def host_ops(family: int) -> ProtoOps:
    """The same functions for every type; the host's kernel knows the differences."""
    return ProtoOps(
        family=family,
        owner=OWNER,
        release=inet_release,
        bind=_bind,
        connect=_connect,
        socketpair=_socketpair if family == std.AF_UNIX else sock_no_socketpair,
        accept=inet_accept,
        getname=_getname,
        poll=_poll,
        ioctl=inet_ioctl,
        listen=_listen,
        shutdown=_shutdown,
        setsockopt=sock_common_setsockopt,
        getsockopt=sock_common_getsockopt,
        sendmsg=inet_sendmsg,
        recvmsg=inet_recvmsg,
        passthrough=native_of,
    )


def _bind(sock: Socket, address: Address) -> None:
    sk = sock_of(sock)
    assert sk.sk_prot.bind is not None  # host_proto sets it
    sk.sk_prot.bind(sk, address)


def _connect(sock: Socket, address: Address, flags: int) -> None:
    sk = sock_of(sock)
    prot = sk.sk_prot
    assert prot.connect is not None  # host_proto sets both
    assert prot.disconnect is not None
    if address is None:
        prot.disconnect(sk, flags)
        sock.state = SocketState.SS_UNCONNECTED
        return
    try:
        prot.connect(sk, address)
    except BlockingIOError:
        sock.state = SocketState.SS_CONNECTING
        raise
    sock.state = SocketState.SS_CONNECTED


def _socketpair(sock1: Socket, sock2: Socket) -> None:
    native1, native2 = std.socketpair(sock1.family, sock1.type, sock1.protocol)
    for sock, native in ((sock1, native1), (sock2, native2)):
        replace_native(sock_of(sock), native)
        sock.state = SocketState.SS_CONNECTED


def _getname(sock: Socket, peer: int) -> Address:
    native = native_of(sock)
    name: Address = native.getpeername() if peer else native.getsockname()
    return name


def _poll(sock: Socket) -> int:
    poller = select.poll()
    poller.register(native_of(sock), _EVERYTHING)
    ready = poller.poll(0)
    return ready[0][1] if ready else 0


def _listen(sock: Socket, backlog: int) -> None:
    native_of(sock).listen(backlog)
    sock_of(sock).sk_state = TcpState.TCP_LISTEN


def _shutdown(sock: Socket, how: int) -> None:
    sk = sock_of(sock)
    assert sk.sk_prot.shutdown is not None  # host_proto sets it
    sk.sk_prot.shutdown(sk, how)
