"""UDP: what the socket calls (net/ipv4/udp.c, udp_prot; RFC 768, RFC 8200 section 8.1)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family.proto import Counter, Proto
from steertag.family.sock import Sock
from steertag.family.sock_common import sk_common_release
from steertag.family.sockopt import as_asked, int_value
from steertag.inet import const as c
from steertag.inet.datagram import (
    datagram_connect,
    datagram_disconnect,
    datagram_keepalive,
    first_length,
)
from steertag.inet.diag import udp_diag_info
from steertag.inet.sockopt import Value, ip_getsockopt, ip_setsockopt, ip_value
from steertag.inet.udp_rx import udp_recvmsg
from steertag.inet.udp_table import UdpSock, udp_get_port, udp_sk, udp_table, udp_unhash
from steertag.inet.udp_tx import (
    udp_flush_pending_frames,
    udp_push_pending_frames,
    udp_sendmsg,
)
from steertag.wire.udp import HEADER_LEN

if TYPE_CHECKING:
    from steertag.family.msg import Address

_MAX_HEADER: Final = 14 + 40 + HEADER_LEN
_MEM: Final = [21654, 28872, 43308]
"""Low, pressure and high marks in quanta, what a host with 1 GiB has."""


def udp_prot() -> Proto:
    """A fresh `struct proto` of UDP, over IPv4 and IPv6."""
    return Proto(
        name="NEW-UDP",
        owner=c.OWNER,
        obj_size=UdpSock,
        max_header=_MAX_HEADER,
        close=udp_close,
        connect=udp_connect,
        disconnect=udp_disconnect,
        ioctl=datagram_ioctl,
        setsockopt=udp_setsockopt,
        getsockopt=udp_getsockopt,
        keepalive=datagram_keepalive,
        sendmsg=udp_sendmsg,
        recvmsg=udp_recvmsg,
        unhash=udp_unhash,
        get_port=udp_get_port,
        diag_info=udp_diag_info,
        sockets_allocated=Counter(),
        memory_allocated=Counter(),
        sysctl_mem=list(_MEM),
    )


def udp_close(sk: Sock, timeout: float) -> None:
    udp_flush_pending_frames(udp_sk(sk))
    sk_common_release(sk)


def udp_connect(sk: Sock, address: Address) -> None:
    """Fix the peer: others are not heard any more, and its ICMP errors are told of.

    Raises:
        OSError: ENETUNREACH, EACCES (broadcast), EINVAL, EAFNOSUPPORT, as `route`.
    """
    up = udp_sk(sk)
    datagram_connect(up, address)
    udp_table(sk.sk_stack).connect(up)


def udp_disconnect(sk: Sock, flags: int) -> None:
    up = udp_sk(sk)
    datagram_disconnect(up)
    table = udp_table(sk.sk_stack)
    if up.port_locked:
        table.disconnect(up)
    else:
        table.unbind(up)


def datagram_ioctl(sk: Sock, cmd: int, arg: object) -> int:
    if cmd == c.SIOCINQ:
        return first_length(sk)
    if cmd == c.SIOCOUTQ:
        return sk.sk_wmem_alloc
    raise os_error(errno.ENOTTY)


# -- options --------------------------------------------------------------------------------------


def _set_cork(sk: UdpSock, value: Value) -> None:
    sk.cork_on = bool(int_value(value))
    if not sk.cork_on:
        udp_push_pending_frames(sk)


def _set_segment(sk: UdpSock, value: Value) -> None:
    size = int_value(value)
    if not 0 <= size <= 65535:
        raise os_error(errno.EINVAL)
    sk.gso_size = size


def _set_gro(sk: UdpSock, value: Value) -> None:
    sk.gro = bool(int_value(value))


def _set_no_check(sk: UdpSock, value: Value) -> None:
    sk.no_check = bool(ip_value(value))


def _set_no_check6_tx(sk: UdpSock, value: Value) -> None:
    sk.no_check6_tx = bool(int_value(value))


def _set_no_check6_rx(sk: UdpSock, value: Value) -> None:
    sk.no_check6_rx = bool(int_value(value))


_SET: Final[dict[tuple[int, int], Callable[[UdpSock, Value], None]]] = {
    (c.SOL_SOCKET, c.SO_NO_CHECK): _set_no_check,
    (c.SOL_UDP, c.UDP_CORK): _set_cork,
    (c.SOL_UDP, c.UDP_SEGMENT): _set_segment,
    (c.SOL_UDP, c.UDP_GRO): _set_gro,
    (c.SOL_UDP, c.UDP_NO_CHECK6_TX): _set_no_check6_tx,
    (c.SOL_UDP, c.UDP_NO_CHECK6_RX): _set_no_check6_rx,
}

_GET: Final[dict[tuple[int, int], Callable[[UdpSock], int]]] = {
    (c.SOL_SOCKET, c.SO_NO_CHECK): lambda sk: int(sk.no_check),
    (c.SOL_UDP, c.UDP_CORK): lambda sk: int(sk.cork_on),
    (c.SOL_UDP, c.UDP_SEGMENT): lambda sk: sk.gso_size,
    (c.SOL_UDP, c.UDP_GRO): lambda sk: int(sk.gro),
    (c.SOL_UDP, c.UDP_NO_CHECK6_TX): lambda sk: int(sk.no_check6_tx),
    (c.SOL_UDP, c.UDP_NO_CHECK6_RX): lambda sk: int(sk.no_check6_rx),
}


def udp_setsockopt(sk: Sock, level: int, name: int, value: Value) -> None:
    setter = _SET.get((level, name))
    if setter is None:
        ip_setsockopt(sk, level, name, value)
    else:
        setter(udp_sk(sk), value)


def udp_getsockopt(sk: Sock, level: int, name: int, size: int) -> int | bytes:
    getter = _GET.get((level, name))
    if getter is None:
        return ip_getsockopt(sk, level, name, size)
    return as_asked(getter(udp_sk(sk)), size)
