"""What UDP, raw and ping sockets share (net/ipv4/datagram.c, net/core/datagram.c, ip_output.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family.const import (
    RCV_SHUTDOWN,
    SEND_SHUTDOWN,
    SKB_OVERHEAD,
    SOCK_BROADCAST,
    TcpState,
)
from steertag.family.skbuff import SkBuff
from steertag.family.sock import sock_queue_rcv_skb, sock_raise_error
from steertag.family.sock_common import datagram_poll
from steertag.family.sockopt import sock_of
from steertag.inet import const as c
from steertag.inet.cmsg import Cookie, cmsg_send, packet_cmsgs, put_cmsgs
from steertag.inet.errqueue import icmp_error, local_error, recv_error
from steertag.inet.ip.net import inet_net
from steertag.inet.ip.route import RTN_BROADCAST
from steertag.inet.sock import (
    ANY,
    ANY4,
    ANY6,
    IpSock,
    addr_covers,
    address_text,
    is_link_local,
    is_multicast,
    is_wildcard,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from steertag.device.base import Device, Offload
    from steertag.family.msg import Address, Ancillary, MsgHdr
    from steertag.family.skbuff import Buffer
    from steertag.family.sock import Sock
    from steertag.family.socket import Socket
    from steertag.inet.ip.dst import Dst
    from steertag.inet.ip.packet import IcmpError, Packet

_LOOPBACK: Final = {ANY: b"\x7f\0\0\1", ANY4: b"\x7f\0\0\1", ANY6: bytes(15) + b"\1"}
_SMALL: Final = 512
"""Octets that a datagram may keep alive of the frame around it, beside its own."""
_MAX_PACKET: Final = 65535


class DatagramSock(IpSock):
    """A sock that sends packets one by one.

    Attributes:
        dst: the route of the last datagram, with `dst_key` what it was looked up for.
        drops: datagrams that there was no room for (SO_RXQ_OVFL).
    """

    __slots__ = ("drops", "dst", "dst_key")

    def __init__(self) -> None:
        super().__init__()
        self.dst: Dst | None = None
        self.dst_key: tuple[bytes, bytes, int] | None = None
        self.drops = 0


class Datagram(SkBuff):
    """A received datagram in a receive queue: a view of the frame it came in.

    Attributes:
        sport, dport: ports; 0 where the protocol has none.
        gso_size: octets of payload of each of the datagrams that are joined in it; 0: one alone.
        The rest as of Packet.
    """

    __slots__ = (
        *("daddr", "device", "dport", "drops", "family", "flowlabel"),
        *("gso_size", "saddr", "sport", "tos", "ttl"),
    )

    def __init__(self, packet: Packet, payload: memoryview, sport: int, dport: int) -> None:
        # A datagram of few octets doesn't keep a frame of many alive uncharged.
        length = len(payload)
        if len(packet.network.obj) > 2 * length + _SMALL:  # type: ignore[arg-type]
            payload = memoryview(bytes(payload))
        self._room = payload
        self._data = 0
        self._tail = length
        self.truesize = length + SKB_OVERHEAD
        self.sk = None
        self.destructor = None
        self.address = None
        self.seq = 0
        self.family = packet.family
        self.saddr = packet.saddr
        self.daddr = packet.daddr
        self.ttl = packet.ttl
        self.tos = packet.tos
        self.flowlabel = packet.flowlabel
        self.device: Device = packet.device
        self.sport = sport
        self.dport = dport
        self.gso_size = 0
        self.drops = 0


# -- life ---------------------------------------------------------------------------------------


def datagram_keepalive(sk: Sock, on: bool) -> None:
    """SO_KEEPALIVE is remembered, as the kernel does for every socket; nothing is kept alive."""


def destination(sk: IpSock, address: Address) -> tuple[bytes, int, int, int]:
    """Where the user wants to send to: (packed, port, flow label, interface).

    A wildcard is this host. Raises what `parse_address` does, and EAFNOSUPPORT, ENETUNREACH: the
    sock is bound to the other version of IP; EINVAL: a link-local address without an interface.
    """
    daddr, port, flowinfo, scope = sk.parse_address(address)
    daddr = _LOOPBACK.get(daddr, daddr)
    bound = sk.inet_saddr
    if len(daddr) == 4:
        if len(bound) == 16 or sk.v6only:
            raise os_error(errno.ENETUNREACH)
        return daddr, port, 0, sk.bound_dev_if
    if len(bound) == 4:
        raise os_error(errno.EAFNOSUPPORT)
    oif = sk.bound_dev_if
    if is_link_local(daddr):
        if not is_multicast(daddr) and not (scope or oif):
            raise os_error(errno.EINVAL, "a link-local address needs its scope id")
        if scope and oif and scope != oif:
            raise os_error(errno.EINVAL)
        oif = oif or scope
    return daddr, port, flowinfo, oif


def source_of(sk: IpSock) -> bytes:
    """The address that the sock's packets come from; b"": the route decides."""
    bound = sk.inet_saddr
    if is_wildcard(bound) or is_multicast(bound):
        return b""
    return bound


def route(sk: DatagramSock, daddr: bytes, cookie: Cookie, oif: int) -> Dst:
    """The way to `daddr`, the one of last time if it still holds.

    Raises:
        OSError: ENETUNREACH, EHOSTUNREACH, EINVAL; EACCES: a broadcast without SO_BROADCAST.
    """
    if is_multicast(daddr):
        oif = oif or sk.mc_index
        cookie.ttl = sk.mc_ttl
    key = (daddr, cookie.saddr or source_of(sk), cookie.oif or oif)
    dst = sk.dst
    if dst is None or sk.dst_key != key or not dst.valid():
        dst = inet_net(sk.sk_stack).route_output(*key, any_source=sk.freebind)
        sk.dst, sk.dst_key = dst, key
    if dst.type == RTN_BROADCAST and not sk.sk_flags & SOCK_BROADCAST:
        raise os_error(errno.EACCES, "a broadcast address needs SO_BROADCAST")
    return dst


def datagram_connect(sk: DatagramSock, address: Address) -> None:
    """Fix the peer, and with it the source (__ip4_datagram_connect). Raises as `route`."""
    daddr, port, flowlabel, oif = destination(sk, address)
    if is_link_local(daddr) and oif:
        sk.bound_dev_if = oif
    dst = route(sk, daddr, Cookie(sk), oif)
    if source_of(sk) == b"":
        sk.inet_saddr = dst.saddr
    sk.inet_daddr, sk.inet_dport = daddr, port
    sk.flowlabel = flowlabel
    sk.sk_state = TcpState.TCP_ESTABLISHED


def datagram_disconnect(sk: DatagramSock) -> None:
    """No peer any more; what `bind` named stays (__udp_disconnect)."""
    sk.sk_state = TcpState.TCP_CLOSE
    sk.inet_daddr, sk.inet_dport = ANY, 0
    sk.flowlabel = 0
    sk.dst = None
    sk.sk_err = 0
    if not sk.addr_locked:
        sk.inet_saddr = ANY
        sk.named6 = False


# -- sending ------------------------------------------------------------------------------------


def check_sendable(sk: IpSock) -> None:
    """Raise the pending error; EPIPE after a shutdown for sending."""
    if sk.sk_err:
        sock_raise_error(sk)
    if sk.sk_shutdown & SEND_SHUTDOWN:
        raise os_error(errno.EPIPE)


def cookie_of(sk: IpSock, msg: MsgHdr) -> Cookie:
    cookie = Cookie(sk)
    if msg.msg_control:
        cmsg_send(cookie, msg.msg_control)
    return cookie


def fits(sk: DatagramSock, dst: Dst, dontfrag: bool, length: int, port: int) -> bool:
    """May a packet with `length` octets behind the IP header go, and with Don't Fragment set?

    Returns whether it is set; if not, the packet may be cut here or on the way.

    Raises:
        OSError: EMSGSIZE, and the path's MTU in the error queue (IP_RECVERR).
    """
    how = sk.mtu_discover
    header = 20 if dst.family == 4 else 40
    mtu = dst.device.mtu if how >= c.IP_PMTUDISC_PROBE else dst.mtu
    whole = header + length <= mtu
    may_cut = (how < c.IP_PMTUDISC_DO or how == c.IP_PMTUDISC_OMIT) and not dontfrag
    limit = _MAX_PACKET if dst.family == 4 else _MAX_PACKET + header
    if header + length > limit or not (whole or may_cut):
        local_error(sk, dst.family, errno.EMSGSIZE, address_text(dst.daddr, port), mtu)
        raise os_error(errno.EMSGSIZE)
    if how in (c.IP_PMTUDISC_DO, c.IP_PMTUDISC_PROBE):
        return True
    return whole and how == c.IP_PMTUDISC_WANT


def xmit(
    sk: DatagramSock,
    dst: Dst,
    cookie: Cookie,
    parts: list[Buffer],
    protocol: int,
    df: bool,
    offload: Offload | None = None,
) -> None:
    """Hand a packet to the IP layer. Raises what `Dst.xmit` does."""
    learnt = dst.mtu
    if sk.mtu_discover >= c.IP_PMTUDISC_PROBE:
        dst.mtu = dst.device.mtu  # as if nothing had been learnt of the path
    try:
        dst.xmit(
            parts,
            protocol,
            ttl=cookie.ttl,
            tos=cookie.tos,
            df=df,
            offload=offload,
            flowlabel=cookie.flowlabel,
        )
    finally:
        dst.mtu = learnt


# -- receiving ----------------------------------------------------------------------------------


def queue_datagram(sk: DatagramSock, skb: Datagram) -> int:
    """Queue for the receiver; returns 0, or the errno for which it was dropped."""
    skb.drops = sk.drops
    try:
        sock_queue_rcv_skb(sk, skb)
    except OSError as exc:
        sk.drops += 1
        return exc.errno or errno.ENOMEM
    return 0


def next_datagram(sk: Sock) -> Datagram | None:
    """The first of the queue; None at the end. Raises the pending error, or EAGAIN."""
    if sk.sk_err:
        sock_raise_error(sk)
    skb = sk.sk_receive_queue.peek()
    if skb is None:
        if sk.sk_shutdown & RCV_SHUTDOWN:
            return None
        raise os_error(errno.EAGAIN)
    assert isinstance(skb, Datagram)  # nothing else is queued here
    return skb


def recv_datagram(
    sk: DatagramSock, msg: MsgHdr, flags: int, more: Callable[[Datagram], list[Ancillary]]
) -> int:
    """recvmsg: one datagram, and the ancillary data asked for; `more` gives the protocol's own.

    What does not fit is lost, and MSG_TRUNC says so. Returns octets placed, or with MSG_TRUNC in
    `flags` the length that it had.
    """
    if flags & c.MSG_ERRQUEUE:
        return recv_error(sk, msg, flags)
    msg.msg_flags = 0
    skb = next_datagram(sk)
    if skb is None:
        return 0
    length = len(skb)
    placed = msg.write(0, skb.data)
    if placed < length:
        msg.msg_flags = c.MSG_TRUNC
    msg.msg_name = address_text(skb.saddr, skb.sport, 0, skb.device.ifindex)
    control = more(skb)
    if sk.cmsg_flags:
        control += packet_cmsgs(sk, skb, skb.dport)
    if control:
        put_cmsgs(msg, control)
    if not flags & c.MSG_PEEK:
        sk.sk_receive_queue.popleft().free()
    return length if flags & c.MSG_TRUNC else placed


def ip_datagram_poll(sock: Socket) -> int:
    """`datagram_poll`, and POLLERR while there are queued errors."""
    mask = datagram_poll(sock)
    sk = sock_of(sock)
    if isinstance(sk, IpSock) and sk.error_queue:
        mask |= c.POLLERR
    return mask


def first_length(sk: Sock) -> int:
    """SIOCINQ: octets of the first datagram."""
    skb = sk.sk_receive_queue.peek()
    return len(skb) if skb is not None else 0


# -- errors -------------------------------------------------------------------------------------


def datagram_err(sk: DatagramSock, error: IcmpError, dport: int, payload: memoryview) -> None:
    """Tell a sock of an ICMP error about what it sent (__udp4_lib_err, raw_err, ping_err)."""
    err, hard = error.errno, error.fatal
    if err == errno.EMSGSIZE:
        if sk.mtu_discover < c.IP_PMTUDISC_INTERFACE:
            _learn_mtu(sk, error)
        if sk.mtu_discover == c.IP_PMTUDISC_DONT:
            return
        hard = True
    if not err:
        return
    if sk.recverr:
        name = address_text(error.daddr, dport, 0, error.device.ifindex)
        icmp_error(sk, error, err, name, payload)
    elif not hard or sk.sk_state != TcpState.TCP_ESTABLISHED:
        return
    sk.sk_err = err
    sk.sk_error_report(sk)


def _learn_mtu(sk: DatagramSock, error: IcmpError) -> None:
    """ipv4_sk_update_pmtu, ip6_sk_update_pmtu."""
    net = inet_net(sk.sk_stack)
    try:
        dst = net.route_output(error.daddr, error.saddr, sk.bound_dev_if)
    except OSError:
        return  # the route is gone, and with it what is known of it
    dst.update_pmtu(error.info)


def hears(sk: IpSock, laddr: bytes, raddr: bytes, ifindex: int) -> bool:
    """Is what comes from `raddr` to `laddr` over that interface for a sock without ports?"""
    if sk.inet_daddr and sk.inet_daddr != raddr:
        return False
    if sk.bound_dev_if and sk.bound_dev_if != ifindex:
        return False
    return addr_covers(sk.inet_saddr, laddr)
