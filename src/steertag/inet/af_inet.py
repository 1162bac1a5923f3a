"""The family itself: what its numbers lead to, and its sockets' calls (net/ipv4/af_inet.c)."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family import inet
from steertag.family.const import PEER_OF_ACCEPTED, TcpState
from steertag.family.inet import InetProtosw, inet_create
from steertag.family.proto_ops import NetProtoFamily, ProtoOps
from steertag.family.sock_common import sock_common_getsockopt, sock_common_setsockopt
from steertag.family.sockopt import sock_of
from steertag.inet import const as c
from steertag.inet.datagram import ip_datagram_poll
from steertag.inet.ip.addr import BROADCAST4
from steertag.inet.ip.net import inet_net, init_net
from steertag.inet.ping import ping_prot
from steertag.inet.raw import raw_prot
from steertag.inet.sock import (
    ANY,
    ANY4,
    ANY6,
    IpSock,
    address_text,
    ip_sk,
    is_link_local,
    is_multicast,
    is_wildcard,
)
from steertag.inet.tcp.calls import tcp_poll
from steertag.inet.tcp.connect import tcp_stream_connect
from steertag.inet.tcp.net import tcp_net
from steertag.inet.tcp.prot import tcp_prot
from steertag.inet.udp import udp_prot
from steertag.inet.udp_rx import UdpReceiver
from steertag.inet.udp_table import udp_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steertag.family.msg import Address
    from steertag.family.proto import Proto
    from steertag.family.socket import Socket
    from steertag.family.stack import Stack

_NAME: Final = "af_inet"
_CLOSED: Final = (TcpState.TCP_CLOSE, TcpState.TCP_SYN_SENT)


class _Registered:
    """What `register` entered, for `unregister`."""

    __slots__ = ("generic", "protos", "sysctls")

    def __init__(self, protos: Sequence[Proto], sysctls: set[str], generic: set[str]) -> None:
        self.protos = protos
        self.sysctls = sysctls
        self.generic = generic


def register(stack: Stack, *, secret: bytes | None = None) -> None:
    """Enter the family, its protocols, its network layer and the device "lo" into a Stack.

    Args:
        secret: 16 octets that sequence numbers, cookies and ports depend on; None: random ones.
            A run that is to be repeated gives its own.

    Raises:
        OSError: EEXIST, it is registered already.
    """
    with stack.lock:
        if _NAME in stack.generic:
            raise os_error(errno.EEXIST, f"family {c.AF_INET_NEW_TCP}")
        sysctls, generic = set(stack.sysctl), set(stack.generic)
        init_net(stack, secret)
        rows = inet_rows(stack)
        new = _Registered(
            [row.prot for row in rows[:-1]],  # the last two rows share one
            set(stack.sysctl) - sysctls,
            set(stack.generic) - generic | {_NAME},
        )
        stack.generic[_NAME] = new
        try:
            for prot in new.protos:
                stack.proto_register(prot)
            stack.sock_register(
                NetProtoFamily(family=c.AF_INET_NEW_TCP, create=inet_create(rows), owner=c.OWNER)
            )
        except OSError:
            _undo(stack, new)
            raise


def unregister(stack: Stack) -> None:
    """Take it out again, network layer and all.

    Raises:
        OSError: EBUSY: it has sockets, or closed ones with data to deliver; ENOENT: not there.
    """
    with stack.lock:
        found = stack.generic.get(_NAME)
        if not isinstance(found, _Registered):
            raise os_error(errno.ENOENT, f"family {c.AF_INET_NEW_TCP}")
        busy = [prot.name for prot in found.protos if prot.inuse]
        if busy:
            raise os_error(errno.EBUSY, f"{', '.join(busy)}: sockets are left")
        stack.sock_unregister(c.AF_INET_NEW_TCP)
        _undo(stack, found)


def _undo(stack: Stack, found: _Registered) -> None:
    for prot in found.protos:
        if prot.stack is stack:
            stack.proto_unregister(prot)
    tcp_net(stack).hash.purge()
    inet_net(stack).close()
    for name in found.sysctls:
        with suppress(OSError):  # the network layer took its own
            stack.sysctl.unregister(name)
    for name in found.generic:
        stack.generic.pop(name, None)


def inet_rows(stack: Stack) -> list[InetProtosw]:
    """The family's table (inetsw_array), and the handlers of its protocols with the IP layer."""
    net = inet_net(stack)
    receiver = UdpReceiver(net, udp_table(stack))
    net.inet_add_protocol(c.IPPROTO_UDP, receiver.rcv, receiver.err)
    pings = ping_prot()
    return [
        InetProtosw(c.SOCK_STREAM, c.IPPROTO_TCP, tcp_prot(stack), inet_stream_ops),
        InetProtosw(c.SOCK_DGRAM, c.IPPROTO_UDP, udp_prot(), inet_dgram_ops),
        InetProtosw(c.SOCK_RAW, 0, raw_prot(), inet_dgram_ops),
        InetProtosw(c.SOCK_DGRAM, c.IPPROTO_ICMP, pings, inet_dgram_ops),
        InetProtosw(c.SOCK_DGRAM, c.IPPROTO_ICMPV6, pings, inet_dgram_ops),
    ]


# -- addresses ------------------------------------------------------------------------------------


def ip_bind(sock: Socket, address: Address) -> None:
    """bind(2) (inet_bind, inet6_bind).

    Raises:
        TypeError, OverflowError: no such address, as the standard library.
        OSError: EADDRNOTAVAIL: not one of this host's (but for IP_FREEBIND); EINVAL: bound or
            connected already, or a link-local address without its interface; ENODEV: no such
            interface; EADDRINUSE.
    """
    sk = ip_sk(sock_of(sock))
    addr, port, _, scope = sk.parse_address(address)
    named6 = addr == ANY6
    addr = _wildcard(sk, addr)
    if len(addr) == 4 and sk.v6only:
        raise os_error(errno.EINVAL)
    raw = sock.type == c.SOCK_RAW
    if sk.sk_state != TcpState.TCP_CLOSE or (sk.inet_num and not raw):
        raise os_error(errno.EINVAL)
    before = sk.inet_saddr, sk.bound_dev_if
    if is_link_local(addr):
        _bind_scope(sk, scope)
    _check_local(sk, addr)
    sk.inet_saddr = addr
    get_port = sk.sk_prot.get_port
    try:
        if get_port is not None and (port or not sk.bind_no_port):
            get_port(sk, port)
    except OSError:
        sk.inet_saddr, sk.bound_dev_if = before
        raise
    sk.named6 = named6
    sk.addr_locked = not is_wildcard(addr)
    sk.port_locked = bool(port)


def _wildcard(sk: IpSock, addr: bytes) -> bytes:
    """ "" and "::" stand for both versions of IP, but for IPV6_V6ONLY."""
    if addr in (ANY, ANY6):
        return ANY6 if sk.v6only else ANY
    return addr


def _bind_scope(sk: IpSock, scope: int) -> None:
    index = scope or sk.bound_dev_if
    if not index or (sk.bound_dev_if and sk.bound_dev_if != index):
        raise os_error(errno.EINVAL, "a link-local address needs its scope id")
    devices = sk.sk_stack.devices.values()
    if all(getattr(device, "ifindex", 0) != index for device in devices):
        raise os_error(errno.ENODEV)
    sk.bound_dev_if = index


def _check_local(sk: IpSock, addr: bytes) -> None:
    if is_wildcard(addr) or is_multicast(addr) or sk.freebind:
        return
    net = inet_net(sk.sk_stack)
    if not net.is_local(addr) and addr != BROADCAST4 and addr not in net.broadcasts:
        raise os_error(errno.EADDRNOTAVAIL)


def ip_getname(sock: Socket, peer: int) -> Address:
    """getsockname(2), getpeername(2). Raises ENOTCONN for the peer's of a socket that has none."""
    sk = ip_sk(sock_of(sock))
    if peer:
        if not sk.inet_dport or (sk.sk_state in _CLOSED and peer != PEER_OF_ACCEPTED):
            raise os_error(errno.ENOTCONN)
        return address_text(sk.inet_daddr, sk.inet_dport, sk.flowlabel, sk.bound_dev_if)
    addr = sk.inet_saddr
    if not addr and sk.named6:
        addr = ANY6
    return address_text(addr or ANY4, sk.inet_num, 0, sk.bound_dev_if)


# -- tables of calls ------------------------------------------------------------------------------

inet_stream_ops: Final = ProtoOps(
    family=c.AF_INET_NEW_TCP,
    owner=c.OWNER,
    release=inet.inet_release,
    bind=ip_bind,
    connect=tcp_stream_connect,
    accept=inet.inet_accept,
    getname=ip_getname,
    poll=tcp_poll,
    ioctl=inet.inet_ioctl,
    listen=inet.inet_listen,
    shutdown=inet.inet_shutdown,
    setsockopt=sock_common_setsockopt,
    getsockopt=sock_common_getsockopt,
    sendmsg=inet.inet_sendmsg,
    recvmsg=inet.inet_recvmsg,
)

inet_dgram_ops: Final = ProtoOps(
    family=c.AF_INET_NEW_TCP,
    owner=c.OWNER,
    release=inet.inet_release,
    bind=ip_bind,
    connect=inet.inet_dgram_connect,
    getname=ip_getname,
    poll=ip_datagram_poll,
    ioctl=inet.inet_ioctl,
    shutdown=inet.inet_shutdown,
    setsockopt=sock_common_setsockopt,
    getsockopt=sock_common_getsockopt,
    sendmsg=inet.inet_sendmsg,
    recvmsg=inet.inet_recvmsg,
)
