"""Raw sockets: a protocol of IP as the user writes it (net/ipv4/raw.c, net/ipv6/raw.c).

Every packet of the protocol is received as well, beside whoever else handles it: over IPv4 with its
IP header, over IPv6 without. No privilege is asked for, since nobody's host is at stake.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from steertag.errors import StateError, os_error
from steertag.family.const import TcpState
from steertag.family.proto import Counter, Proto
from steertag.family.sock import Sock
from steertag.family.sock_common import sk_common_release
from steertag.family.sockopt import as_asked, int_value
from steertag.inet import const as c
from steertag.inet.cmsg import Cookie
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
from steertag.inet.sockopt import Value, ip_getsockopt, ip_setsockopt
from steertag.inet.udp import datagram_ioctl
from steertag.wire.checksum import checksum, partial, pseudo_v6

if TYPE_CHECKING:
    from steertag.family.msg import Address, Ancillary, MsgHdr
    from steertag.family.skbuff import Buffer
    from steertag.family.stack import Stack
    from steertag.inet.ip.dst import Dst
    from steertag.inet.ip.packet import IcmpError, Packet

_NAME: Final = "raw"
_FILTER: Final = struct.Struct("=I")
_U16: Final = struct.Struct("!H")
_FILTER6_LEN: Final = 32
_ICMPV6_CHECKSUM_AT: Final = 2
_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
_MAX_LENGTH: Final = 65535


class RawSock(DatagramSock):
    """A raw sock; `inet_num` is its protocol.

    Attributes:
        icmp_filter: ICMP_FILTER: bit n: messages of type n are not received.
        icmp6_filter: ICMPV6_FILTER: likewise, 256 bits in words of 32.
        checksum_at: IPV6_CHECKSUM: where the checksum is, computed and checked; -1: nowhere.
    """

    __slots__ = ("checksum_at", "icmp6_filter", "icmp_filter")

    def __init__(self) -> None:
        super().__init__()
        self.icmp_filter = 0
        self.icmp6_filter = bytes(_FILTER6_LEN)
        self.checksum_at = -1


def raw_sk(sk: Sock) -> RawSock:
    """The sock as a raw one. Raises StateError: it is none."""
    if not isinstance(sk, RawSock):
        raise StateError(f"{sk!r} is no raw sock")
    return sk


def raw_prot() -> Proto:
    """A fresh `struct proto` of raw sockets."""
    return Proto(
        name="NEW-RAW",
        owner=c.OWNER,
        obj_size=RawSock,
        max_header=14 + 40,
        init=raw_init,
        close=raw_close,
        connect=raw_connect,
        disconnect=raw_disconnect,
        ioctl=datagram_ioctl,
        setsockopt=raw_setsockopt,
        getsockopt=raw_getsockopt,
        keepalive=datagram_keepalive,
        sendmsg=raw_sendmsg,
        recvmsg=raw_recvmsg,
        unhash=raw_unhash,
        sockets_allocated=Counter(),
        no_autobind=True,
    )


# -- who receives -----------------------------------------------------------------------------


class RawTable:
    """The raw socks of one Stack, by protocol. It looks at packets while there are any."""

    def __init__(self, net: InetNet) -> None:
        self._net = net
        self.socks: dict[int, list[RawSock]] = {}

    def add(self, sk: RawSock) -> None:
        if not self.socks:
            self._net.raw_deliver.append(self.rcv)
            self._net.raw_err.append(self.err)
        self.socks.setdefault(sk.inet_num, []).append(sk)

    def remove(self, sk: RawSock) -> None:
        same = self.socks.get(sk.inet_num)
        if same is None or sk not in same:
            return
        same.remove(sk)
        if not same:
            del self.socks[sk.inet_num]
        if not self.socks:
            self._net.raw_deliver.remove(self.rcv)
            self._net.raw_err.remove(self.err)

    def rcv(self, packet: Packet) -> bool:
        """Give a packet to all that are for it; whether there was any (raw_local_deliver)."""
        found = False
        for sk in tuple(self.socks.get(packet.protocol, ())):
            if hears(sk, packet.daddr, packet.saddr, packet.device.ifindex):
                found = True
                if not _filtered(sk, packet):
                    _receive(sk, packet)
        return found

    def err(self, error: IcmpError) -> None:
        """Tell all whose packet it may have been (raw_icmp_error)."""
        for sk in tuple(self.socks.get(error.protocol, ())):
            if hears(sk, error.saddr, error.daddr, error.device.ifindex):
                datagram_err(sk, error, 0, error.data)


def raw_table(stack: Stack) -> RawTable:
    """The Stack's, made when first asked for."""
    found = stack.generic.get(_NAME)
    if not isinstance(found, RawTable):
        found = stack.generic[_NAME] = RawTable(inet_net(stack))
    return found


def _filtered(sk: RawSock, packet: Packet) -> bool:
    if not len(packet.data):
        return False
    kind = packet.data[0]
    if packet.protocol == c.IPPROTO_ICMP:
        return kind < 32 and bool(sk.icmp_filter >> kind & 1)
    if packet.protocol == c.IPPROTO_ICMPV6:
        word = int.from_bytes(sk.icmp6_filter[kind >> 5 << 2 : (kind >> 5 << 2) + 4], "little")
        return bool(word >> (kind & 31) & 1)
    return False


def _receive(sk: RawSock, packet: Packet) -> None:
    if packet.family == 4:
        queue_datagram(sk, Datagram(packet, packet.network, 0, 0))
        return
    if sk.checksum_at >= 0:
        length = len(packet.data)
        total = pseudo_v6(packet.saddr, packet.daddr, packet.protocol, length)
        if (total + partial(packet.data)) % 0xFFFF:
            sk.drops += 1
            return
    queue_datagram(sk, Datagram(packet, packet.data, 0, 0))


# -- life -------------------------------------------------------------------------------------


def raw_init(sk: Sock) -> None:
    """Raises EPROTONOSUPPORT for protocol 0, which stands for none."""
    raw = raw_sk(sk)
    if not 0 < raw.sk_protocol <= c.IPPROTO_RAW:
        raise os_error(errno.EPROTONOSUPPORT if not raw.sk_protocol else errno.EINVAL)
    raw.inet_num = raw.sk_protocol
    raw.hdrincl = raw.sk_protocol == c.IPPROTO_RAW
    if raw.sk_protocol == c.IPPROTO_ICMPV6:
        raw.checksum_at = _ICMPV6_CHECKSUM_AT
    raw_table(sk.sk_stack).add(raw)


def raw_unhash(sk: Sock) -> None:
    raw_table(sk.sk_stack).remove(raw_sk(sk))


def raw_close(sk: Sock, timeout: float) -> None:
    sk_common_release(sk)


def raw_connect(sk: Sock, address: Address) -> None:
    datagram_connect(raw_sk(sk), address)


def raw_disconnect(sk: Sock, flags: int) -> None:
    datagram_disconnect(raw_sk(sk))


# -- sending ----------------------------------------------------------------------------------


def raw_sendmsg(sk: Sock, msg: MsgHdr) -> int:
    """One packet: its payload, or with IP_HDRINCL (and IPPROTO_RAW) the IP header too.

    Raises:
        OSError: EMSGSIZE, EDESTADDRREQ, EPIPE, EACCES; ENETUNREACH, EHOSTUNREACH; EINVAL: the
            header is none.
    """
    raw = raw_sk(sk)
    length = msg.length
    if length > _MAX_LENGTH:
        raise os_error(errno.EMSGSIZE)
    if msg.msg_flags & c.MSG_OOB:
        raise os_error(errno.EOPNOTSUPP)
    if msg.msg_name is None:
        if raw.sk_state != TcpState.TCP_ESTABLISHED:
            raise os_error(errno.EDESTADDRREQ)
        daddr, port, oif = raw.inet_daddr, raw.inet_dport, raw.bound_dev_if
        flowlabel = raw.flowlabel
    else:
        daddr, port, flowlabel, oif = destination(raw, msg.msg_name)
    cookie = cookie_of(raw, msg)
    cookie.flowlabel = flowlabel
    dst = route(raw, daddr, cookie, oif)
    if msg.msg_flags & c.MSG_DONTROUTE and dst.gateway:
        raise os_error(errno.ENETUNREACH)
    check_sendable(raw)
    if msg.msg_flags & c.MSG_PROBE:
        return length
    try:
        if raw.hdrincl:
            _send_whole(raw, dst, msg.read(0, length))
        else:
            _send(raw, dst, cookie, list(msg.msg_iov), length, port)
    except OSError as exc:
        if exc.errno != errno.ENOBUFS or raw.recverr:
            raise
    return length


def _send(
    sk: RawSock, dst: Dst, cookie: Cookie, parts: list[Buffer], length: int, port: int
) -> None:
    df = fits(sk, dst, cookie.dontfrag, length, port)
    if dst.family == 6 and sk.checksum_at >= 0:
        parts = [_summed(sk, dst, parts, length)]
    xmit(sk, dst, cookie, parts, sk.inet_num, df)


def _summed(sk: RawSock, dst: Dst, parts: list[Buffer], length: int) -> bytearray:
    """The payload with its checksum put in (rawv6_push_pending_frames)."""
    if sk.checksum_at + 2 > length:
        raise os_error(errno.EINVAL, "IPV6_CHECKSUM lies behind the end")
    octets = bytearray(b"".join(parts))
    _U16.pack_into(octets, sk.checksum_at, 0)
    value = checksum(octets, initial=dst.pseudo(sk.inet_num, length))
    if not value and sk.inet_num == c.IPPROTO_UDP:
        value = 0xFFFF
    _U16.pack_into(octets, sk.checksum_at, value)
    return octets


def _send_whole(sk: RawSock, dst: Dst, packet: bytes) -> None:
    """The header is the user's, but for what the kernel fills in too (raw_send_hdrinc).

    Of IPv4: the total length and the checksum always; the source and the identification where
    they are zero. Of IPv6: nothing.
    """
    if len(packet) > dst.device.mtu:
        raise os_error(errno.EMSGSIZE)
    if dst.family == 6:
        if len(packet) < _IPV6_HEADER:
            raise os_error(errno.EINVAL)
        dst.xmit_raw([packet])
        return
    if len(packet) < _IPV4_HEADER:
        raise os_error(errno.EINVAL)
    size = (packet[0] & 15) * 4
    if not _IPV4_HEADER <= size <= len(packet):
        raise os_error(errno.EINVAL)
    whole = bytearray(packet)
    _U16.pack_into(whole, 2, len(packet))
    if not any(whole[4:6]):
        _U16.pack_into(whole, 4, sk.sk_stack.rng.randrange(1, 65536))
    if not any(whole[12:16]):
        whole[12:16] = dst.saddr
    _U16.pack_into(whole, 10, 0)
    _U16.pack_into(whole, 10, checksum(bytes(whole[:size])))
    dst.xmit_raw([bytes(whole)])


# -- receiving --------------------------------------------------------------------------------


def raw_recvmsg(sk: Sock, msg: MsgHdr, flags: int) -> int:
    """One packet. Raises EAGAIN if none waits, or the pending error; EOPNOTSUPP with MSG_OOB."""
    if flags & c.MSG_OOB:
        raise os_error(errno.EOPNOTSUPP)
    return recv_datagram(raw_sk(sk), msg, flags, _own_cmsgs)


def _own_cmsgs(skb: Datagram) -> list[Ancillary]:
    return []


# -- options ----------------------------------------------------------------------------------


def _set_icmp_filter(sk: RawSock, value: Value) -> None:
    if sk.inet_num != c.IPPROTO_ICMP:
        raise os_error(errno.EOPNOTSUPP)
    sk.icmp_filter = int_value(value) & 0xFFFFFFFF


def _set_icmp6_filter(sk: RawSock, value: Value) -> None:
    if sk.inet_num != c.IPPROTO_ICMPV6:
        raise os_error(errno.EOPNOTSUPP)
    if not isinstance(value, bytes):
        raise os_error(errno.EINVAL, "ICMPV6_FILTER takes 32 octets")
    given = value[:_FILTER6_LEN]
    sk.icmp6_filter = given + sk.icmp6_filter[len(given) :]


def _set_checksum_at(sk: RawSock, value: Value) -> None:
    """Raises EINVAL for an odd offset, and for ICMPv6, whose checksum is where it is."""
    at = int_value(value)
    if sk.inet_num == c.IPPROTO_ICMPV6 or (at > 0 and at & 1):
        raise os_error(errno.EINVAL)
    sk.checksum_at = max(at, -1)


def _get_icmp_filter(sk: RawSock) -> bytes:
    if sk.inet_num != c.IPPROTO_ICMP:
        raise os_error(errno.EOPNOTSUPP)
    return _FILTER.pack(sk.icmp_filter)


def _get_icmp6_filter(sk: RawSock) -> bytes:
    if sk.inet_num != c.IPPROTO_ICMPV6:
        raise os_error(errno.EOPNOTSUPP)
    return sk.icmp6_filter


_SET: Final[dict[tuple[int, int], Callable[[RawSock, Value], None]]] = {
    (c.SOL_RAW, c.ICMP_FILTER): _set_icmp_filter,
    (c.SOL_ICMPV6, c.ICMPV6_FILTER): _set_icmp6_filter,
    (c.SOL_IPV6, c.IPV6_CHECKSUM): _set_checksum_at,
}

_GET: Final[dict[tuple[int, int], Callable[[RawSock], int | bytes]]] = {
    (c.SOL_RAW, c.ICMP_FILTER): _get_icmp_filter,
    (c.SOL_ICMPV6, c.ICMPV6_FILTER): _get_icmp6_filter,
    (c.SOL_IPV6, c.IPV6_CHECKSUM): lambda sk: sk.checksum_at,
}


def raw_setsockopt(sk: Sock, level: int, name: int, value: Value) -> None:
    setter = _SET.get((level, name))
    if setter is None:
        ip_setsockopt(sk, level, name, value)
    else:
        setter(raw_sk(sk), value)


def raw_getsockopt(sk: Sock, level: int, name: int, size: int) -> int | bytes:
    getter = _GET.get((level, name))
    if getter is None:
        return ip_getsockopt(sk, level, name, size)
    return as_asked(getter(raw_sk(sk)), size)
