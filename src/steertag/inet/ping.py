"""Ping sockets: ICMP echo without a raw socket, socket(..., SOCK_DGRAM, IPPROTO_ICMP)
(net/ipv4/ping.c, net/ipv6/ping.c).

The user writes and reads ICMP messages, header included; the identifier is the socket's port, the
checksum is put in here, and only answers to this socket's requests come back.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from steertag.device.base import CHECKSUM_NONE
from steertag.errors import StateError, os_error
from steertag.family.const import TcpState
from steertag.family.proto import Counter, Proto
from steertag.family.sock import Sock
from steertag.family.sock_common import sk_common_release
from steertag.inet import const as c
from steertag.inet.datagram import (
    Datagram,
    DatagramSock,
    check_sendable,
    cookie_of,
    datagram_connect,
    datagram_disconnect,
    datagram_err,
    datagram_keepalive,
    destination,
    fits,
    hears,
    queue_datagram,
    recv_datagram,
    route,
    xmit,
)
from steertag.inet.ip.net import InetNet, inet_net
from steertag.inet.ip.packet import l4_checksum_ok
from steertag.inet.sockopt import ip_getsockopt, ip_setsockopt
from steertag.inet.udp import datagram_ioctl
from steertag.wire.checksum import checksum, partial

if TYPE_CHECKING:
    from steertag.family.msg import Address, Ancillary, MsgHdr
    from steertag.family.stack import Stack
    from steertag.inet.ip.packet import IcmpError, Packet

_NAME: Final = "ping"
_HEADER: Final = struct.Struct("!BBHHH")
"""Type, code, checksum, identifier, sequence number (RFC 792, RFC 4443 section 4)."""
_REQUEST: Final = {c.IPPROTO_ICMP: 8, c.IPPROTO_ICMPV6: 128}
_REPLY: Final = {c.IPPROTO_ICMP: 0, c.IPPROTO_ICMPV6: 129}
_MAX_LENGTH: Final = 65535


class PingSock(DatagramSock):
    """A ping sock; `inet_num` is its identifier."""

    __slots__ = ()


def ping_sk(sk: Sock) -> PingSock:
    """The sock as a ping one. Raises StateError: it is none."""
    if not isinstance(sk, PingSock):
        raise StateError(f"{sk!r} is no ping sock")
    return sk


def ping_prot() -> Proto:
    """A fresh `struct proto` of ping sockets, of ICMP and of ICMPv6."""
    return Proto(
        name="NEW-PING",
        owner=c.OWNER,
        obj_size=PingSock,
        max_header=14 + 40,
        close=ping_close,
        connect=ping_connect,
        disconnect=ping_disconnect,
        ioctl=datagram_ioctl,
        setsockopt=ip_setsockopt,
        getsockopt=ip_getsockopt,
        keepalive=datagram_keepalive,
        sendmsg=ping_sendmsg,
        recvmsg=ping_recvmsg,
        unhash=ping_unhash,
        get_port=ping_get_port,
        sockets_allocated=Counter(),
    )


class PingTable:
    """The ping socks of one Stack, by protocol and identifier. It looks at packets while there
    are any."""

    def __init__(self, net: InetNet) -> None:
        self._net = net
        self.socks: dict[tuple[int, int], list[PingSock]] = {}

    def add(self, sk: PingSock) -> None:
        if not self.socks:
            self._net.raw_deliver.append(self.rcv)
            self._net.raw_err.append(self.err)
        self.socks.setdefault((sk.sk_protocol, sk.inet_num), []).append(sk)

    def remove(self, sk: PingSock) -> None:
        key = sk.sk_protocol, sk.inet_num
        same = self.socks.get(key)
        if same is None or sk not in same:
            return
        same.remove(sk)
        if not same:
            del self.socks[key]
        if not self.socks:
            self._net.raw_deliver.remove(self.rcv)
            self._net.raw_err.remove(self.err)

    def rcv(self, packet: Packet) -> bool:
        """An echo reply; whether it was one of ours (ping_rcv)."""
        reply = _REPLY.get(packet.protocol)
        if reply is None or len(packet.data) < _HEADER.size:
            return False
        kind, _, _, ident, _ = _HEADER.unpack_from(packet.data)
        if kind != reply or not _checksum_ok(packet):
            return False
        for sk in self.socks.get((packet.protocol, ident), ()):
            if hears(sk, packet.daddr, packet.saddr, packet.device.ifindex):
                queue_datagram(sk, Datagram(packet, packet.data, 0, 0))
                return True
        return False

    def err(self, error: IcmpError) -> None:
        """An ICMP error about an echo request (ping_err)."""
        if error.protocol not in _REQUEST or len(error.data) < _HEADER.size:
            return
        kind, _, _, ident, _ = _HEADER.unpack_from(error.data)
        if kind != _REQUEST.get(error.protocol):
            return
        for sk in self.socks.get((error.protocol, ident), ()):
            if hears(sk, error.saddr, error.daddr, error.device.ifindex):
                datagram_err(sk, error, 0, error.data)
                return


def _checksum_ok(packet: Packet) -> bool:
    if packet.family == 4:  # without a pseudo header
        return packet.csum != CHECKSUM_NONE or partial(packet.data) % 0xFFFF == 0
    return l4_checksum_ok(packet)


def ping_table(stack: Stack) -> PingTable:
    """The Stack's, made when first asked for."""
    found = stack.generic.get(_NAME)
    if not isinstance(found, PingTable):
        found = stack.generic[_NAME] = PingTable(inet_net(stack))
    return found


def ping_get_port(sk: Sock, port: int) -> None:
    """`Proto.get_port`: an identifier, 0 for a random free one. Raises EADDRINUSE."""
    ping = ping_sk(sk)
    table = ping_table(sk.sk_stack)
    socks, proto = table.socks, sk.sk_protocol
    if not port:
        start = sk.sk_stack.rng.randrange(1, 65536)
        for step in range(65535):
            port = (start + step - 1) % 65535 + 1
            if (proto, port) not in socks:
                break
        else:
            raise os_error(errno.EADDRINUSE)
    elif any(not (sk.sk_reuse and other.sk_reuse) for other in socks.get((proto, port), ())):
        raise os_error(errno.EADDRINUSE)
    ping.inet_num = port
    table.add(ping)


def ping_unhash(sk: Sock) -> None:
    ping = ping_sk(sk)
    ping_table(sk.sk_stack).remove(ping)
    ping.inet_num = 0


def ping_close(sk: Sock, timeout: float) -> None:
    sk_common_release(sk)


def ping_connect(sk: Sock, address: Address) -> None:
    ping = ping_sk(sk)
    _check_version(ping, ping.check_address(address)[0])
    datagram_connect(ping, address)


def ping_disconnect(sk: Sock, flags: int) -> None:
    ping = ping_sk(sk)
    datagram_disconnect(ping)
    if not ping.port_locked:
        ping_unhash(sk)


def _check_version(sk: PingSock, daddr: bytes) -> None:
    """Raise EAFNOSUPPORT: ICMP goes over IPv4, ICMPv6 over IPv6."""
    if daddr and (len(daddr) == 4) != (sk.sk_protocol == c.IPPROTO_ICMP):
        raise os_error(errno.EAFNOSUPPORT)


def ping_sendmsg(sk: Sock, msg: MsgHdr) -> int:
    """One echo request, header and all; its identifier and checksum are put in.

    Raises:
        OSError: EINVAL: fewer than 8 octets, or no echo request; the rest as UDP's.
    """
    ping = ping_sk(sk)
    length = msg.length
    if length > _MAX_LENGTH:
        raise os_error(errno.EMSGSIZE)
    if length < _HEADER.size:
        raise os_error(errno.EINVAL)
    if msg.msg_flags & c.MSG_OOB:
        raise os_error(errno.EOPNOTSUPP)
    octets = bytearray(msg.read(0, length))
    kind, code, _, _, number = _HEADER.unpack_from(octets)
    if kind != _REQUEST[sk.sk_protocol] or code:
        raise os_error(errno.EINVAL, "a ping socket sends echo requests alone")
    if msg.msg_name is None:
        if ping.sk_state != TcpState.TCP_ESTABLISHED:
            raise os_error(errno.EDESTADDRREQ)
        daddr, oif, flowlabel = ping.inet_daddr, ping.bound_dev_if, ping.flowlabel
    else:
        daddr, _, flowlabel, oif = destination(ping, msg.msg_name)
    _check_version(ping, daddr)
    cookie = cookie_of(ping, msg)
    cookie.flowlabel = flowlabel
    dst = route(ping, daddr, cookie, oif)
    check_sendable(ping)
    df = fits(ping, dst, cookie.dontfrag, length, 0)
    _HEADER.pack_into(octets, 0, kind, 0, 0, ping.inet_num, number)
    pseudo = 0 if dst.family == 4 else dst.pseudo(c.IPPROTO_ICMPV6, length)
    value = checksum(octets, initial=pseudo)
    _HEADER.pack_into(octets, 0, kind, 0, value, ping.inet_num, number)
    try:
        xmit(ping, dst, cookie, [octets], sk.sk_protocol, df)
    except OSError as exc:
        if exc.errno != errno.ENOBUFS or ping.recverr:
            raise
    return length


def ping_recvmsg(sk: Sock, msg: MsgHdr, flags: int) -> int:
    """One echo reply, ICMP header and all. Raises EAGAIN, or the pending error."""
    if flags & c.MSG_OOB:
        raise os_error(errno.EOPNOTSUPP)
    return recv_datagram(ping_sk(sk), msg, flags, _own_cmsgs)


def _own_cmsgs(skb: Datagram) -> list[Ancillary]:
    return []
