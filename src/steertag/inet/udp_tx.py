"""UDP: sending (net/ipv4/udp.c, udp_sendmsg, udp_send_skb; net/ipv6/udp.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.device.frame import GSO_NONE, GSO_UDP_L4, Offload
from steertag.errors import os_error
from steertag.family.const import TcpState
from steertag.inet import const as c
from steertag.inet.cmsg import Cookie
from steertag.inet.datagram import check_sendable, cookie_of, destination, fits, route, xmit
from steertag.inet.ip.net import inet_net
from steertag.inet.udp_table import UdpSock, udp_sk
from steertag.wire.udp import CHECKSUM_AT, HEADER, HEADER_LEN

if TYPE_CHECKING:
    from steertag.family.msg import MsgHdr
    from steertag.family.skbuff import Buffer
    from steertag.family.sock import Sock
    from steertag.inet.ip.dst import Dst

UDP_MAX_SEGMENTS: Final = 128
_MAX_LENGTH: Final = 65535


class Cork:
    """A datagram that waits for more of its payload.

    Attributes:
        dport, dst, cookie: as its first part was sent. parts: copies of the payload.
        length: octets of it, charged to the sock's `sk_wmem_alloc`.
    """

    __slots__ = ("cookie", "dport", "dst", "length", "parts")

    def __init__(self, dport: int, dst: Dst, cookie: Cookie) -> None:
        self.dport = dport
        self.dst = dst
        self.cookie = cookie
        self.parts: list[bytes] = []
        self.length = 0


def udp_sendmsg(sk: Sock, msg: MsgHdr) -> int:
    """One datagram, or with UDP_SEGMENT many of one size.

    Raises:
        OSError: EMSGSIZE; EDESTADDRREQ: neither connected nor an address; EINVAL: port 0, or
            segments that can't be; EACCES: broadcast; EPIPE; ENETUNREACH, EHOSTUNREACH; what an
            ICMP error left behind.
    """
    up = udp_sk(sk)
    length = msg.length
    flags = msg.msg_flags
    if length > _MAX_LENGTH:
        raise os_error(errno.EMSGSIZE)
    if flags & c.MSG_OOB:
        raise os_error(errno.EOPNOTSUPP)
    if up.cork is not None:
        check_sendable(up)
        return _append(up, msg, length)
    if msg.msg_name is None:
        if up.sk_state != TcpState.TCP_ESTABLISHED:
            raise os_error(errno.EDESTADDRREQ)
        daddr, dport, oif = up.inet_daddr, up.inet_dport, up.bound_dev_if
        flowlabel = up.flowlabel
    else:
        daddr, dport, flowlabel, oif = destination(up, msg.msg_name)
        if not dport:
            raise os_error(errno.EINVAL, "port 0")
    cookie = cookie_of(up, msg)
    if not cookie.gso_size:
        cookie.gso_size = up.gso_size
    cookie.flowlabel = flowlabel
    dst = route(up, daddr, cookie, oif)
    if flags & c.MSG_DONTROUTE and dst.gateway:
        raise os_error(errno.ENETUNREACH)
    check_sendable(up)
    if flags & c.MSG_CONFIRM:
        dst.confirm()
        if flags & c.MSG_PROBE and not length:
            return 0
    if up.cork_on or flags & c.MSG_MORE:
        up.cork = Cork(dport, dst, cookie)
        return _append(up, msg, length)
    _send(up, dport, dst, cookie, list(msg.msg_iov), length)
    return length


# -- MSG_MORE and UDP_CORK ------------------------------------------------------------------------


def _append(sk: UdpSock, msg: MsgHdr, length: int) -> int:
    """Hold back; and send when this was the last of it."""
    cork = sk.cork
    assert cork is not None  # the caller looked
    if cork.length + length > _MAX_LENGTH - HEADER_LEN:
        udp_flush_pending_frames(sk)
        raise os_error(errno.EMSGSIZE)
    cork.parts.append(msg.read(0, length))
    cork.length += length
    sk.sk_wmem_alloc += length
    if not (sk.cork_on or msg.msg_flags & c.MSG_MORE):
        udp_push_pending_frames(sk)
    return length


def udp_push_pending_frames(sk: UdpSock) -> None:
    """Send what was held back. Raises as `udp_sendmsg`."""
    cork = sk.cork
    if cork is None:
        return
    udp_flush_pending_frames(sk)
    parts: list[Buffer] = list(cork.parts)
    _send(sk, cork.dport, cork.dst, cork.cookie, parts, cork.length)


def udp_flush_pending_frames(sk: UdpSock) -> None:
    """Throw away what was held back."""
    if sk.cork is not None:
        sk.sk_wmem_alloc -= sk.cork.length
        sk.cork = None


# -- onto the wire --------------------------------------------------------------------------------


def _send(
    sk: UdpSock,
    dport: int,
    dst: Dst,
    cookie: Cookie,
    parts: list[Buffer],
    length: int,
) -> None:
    total = HEADER_LEN + length
    offload: Offload | None
    if cookie.gso_size and length > cookie.gso_size:
        _check_segments(sk, dst, cookie.gso_size, length)
        df = True
        offload = Offload(0, CHECKSUM_AT, GSO_UDP_L4, cookie.gso_size, HEADER_LEN)
    else:
        df = fits(sk, dst, cookie.dontfrag, total, dport)
        offload = Offload(0, CHECKSUM_AT, GSO_NONE, 0, HEADER_LEN)
    value = 0
    if _no_checksum(sk, dst):
        offload = None
    else:
        value = dst.pseudo(c.IPPROTO_UDP, total)
    # The length of a super-segment's header is put right in each of its datagrams.
    parts.insert(0, HEADER.pack(sk.inet_num, dport, total, value))
    mib = inet_net(sk.sk_stack).mib
    group = "Udp" if dst.family == 4 else "Udp6"
    try:
        xmit(sk, dst, cookie, parts, c.IPPROTO_UDP, df, offload)
    except OSError as exc:
        if exc.errno != errno.ENOBUFS or sk.recverr:
            raise
        # As lost as one that is dropped further on: the kernel does not tell either.
        mib[group + "SndbufErrors"] += 1
        return
    mib[group + "OutDatagrams"] += 1


def _no_checksum(sk: UdpSock, dst: Dst) -> bool:
    return sk.no_check if dst.family == 4 else sk.no_check6_tx


def _check_segments(sk: UdpSock, dst: Dst, gso_size: int, length: int) -> None:
    """Raise EINVAL for segments larger than the path carries, or too many; EIO without checksum."""
    header = (20 if dst.family == 4 else 40) + HEADER_LEN
    if header + gso_size > dst.mtu or length > gso_size * UDP_MAX_SEGMENTS:
        raise os_error(errno.EINVAL)
    if header + length > _MAX_LENGTH:
        raise os_error(errno.EMSGSIZE)
    if _no_checksum(sk, dst):
        raise os_error(errno.EINVAL)
