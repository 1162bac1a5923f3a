"""Options at the levels of IP and IPv6, and what SOL_SOCKET has for this family (ip_sockglue.c).

IPv4's and IPv6's option of one meaning set the same field: a sock speaks both.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family.const import SOCK_BROADCAST, SOCK_URGINLINE, TcpState
from steertag.family.sockopt import as_asked, int_value
from steertag.inet import const as c
from steertag.inet.ip.net import inet_net
from steertag.inet.sock import IpSock, ip_sk

if TYPE_CHECKING:
    from steertag.family.sock import Sock

Value = int | bytes | None
Setter = Callable[[IpSock, Value], None]
Getter = Callable[[IpSock], int | bytes]

# cmsg_flags: ancillary data that the receiver asked for
CMSG_PKTINFO: Final = 1 << 0
CMSG_TTL: Final = 1 << 1
CMSG_TOS: Final = 1 << 2
CMSG_ORIGDSTADDR: Final = 1 << 3
CMSG_PKTINFO6: Final = 1 << 4
CMSG_HOPLIMIT: Final = 1 << 5
CMSG_TCLASS: Final = 1 << 6
CMSG_ORIGDSTADDR6: Final = 1 << 7
CMSG_RXQ_OVFL: Final = 1 << 8

_ECN_MASK: Final = 3
_IN_ADDR: Final = struct.Struct("=4s")
_MREQN: Final = struct.Struct("=4s4si")


def ip_value(value: Value) -> int:
    """An int, or the one octet that IPv4's options may also be given as."""
    if isinstance(value, bytes) and 0 < len(value) < 4:
        return value[0]
    return int_value(value)


def _between(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise os_error(errno.EINVAL, f"{value} is not in {low}..{high}")
    return value


# -- setting ------------------------------------------------------------------------------------


def _flag(field: str) -> Setter:
    def set_flag(sk: IpSock, value: Value) -> None:
        setattr(sk, field, bool(ip_value(value)))

    return set_flag


def _cmsg_flag(bit: int) -> Setter:
    def set_flag(sk: IpSock, value: Value) -> None:
        sk.cmsg_flags = sk.cmsg_flags | bit if ip_value(value) else sk.cmsg_flags & ~bit

    return set_flag


def _sk_flag(bit: int) -> Setter:
    def set_flag(sk: IpSock, value: Value) -> None:
        sk.sk_flags = sk.sk_flags | bit if int_value(value) else sk.sk_flags & ~bit

    return set_flag


def _set_tos(sk: IpSock, value: Value) -> None:
    tos = ip_value(value)
    if sk.sk_type == c.SOCK_STREAM:
        tos = tos & ~_ECN_MASK | sk.tos & _ECN_MASK  # ECN is TCP's own affair
    sk.tos = tos & 0xFF


def _set_tclass(sk: IpSock, value: Value) -> None:
    tclass = _between(int_value(value), -1, 255)
    _set_tos(sk, max(tclass, 0))


def _set_ttl_of(sk: IpSock, ttl: int) -> None:
    sk.uc_ttl = ttl
    sk.ttl_for_send = max(ttl, 0)


def _set_ttl(sk: IpSock, value: Value) -> None:
    ttl = ip_value(value)
    if ttl != -1:
        _between(ttl, 1, 255)
    _set_ttl_of(sk, ttl)


def _set_hops(sk: IpSock, value: Value) -> None:
    # 0 is allowed: such a packet does not leave the host, so it is as good as 1 here.
    hops = _between(int_value(value), -1, 255)
    _set_ttl_of(sk, 1 if hops == 0 else hops)


def _set_mtu_discover(sk: IpSock, value: Value) -> None:
    sk.mtu_discover = _between(ip_value(value), c.IP_PMTUDISC_DONT, c.IP_PMTUDISC_OMIT)


def _set_recverr(sk: IpSock, value: Value) -> None:
    sk.recverr = bool(ip_value(value))
    if not sk.recverr:
        sk.error_queue = None


def _set_min_ttl(sk: IpSock, value: Value) -> None:
    sk.min_ttl = _between(ip_value(value), 0, 255)


def _set_hdrincl(sk: IpSock, value: Value) -> None:
    if sk.sk_type != c.SOCK_RAW:
        raise os_error(errno.ENOPROTOOPT)
    sk.hdrincl = bool(ip_value(value))


def _set_mc_ttl(sk: IpSock, value: Value) -> None:
    if sk.sk_type == c.SOCK_STREAM:
        raise os_error(errno.EINVAL)
    ttl = _between(ip_value(value), -1, 255)
    sk.mc_ttl = 1 if ttl == -1 else ttl


def _set_mc_if(sk: IpSock, value: Value) -> None:
    """An interface index; or for IPv4 an address of one, or struct ip_mreqn."""
    index = 0
    if isinstance(value, bytes) and len(value) >= _MREQN.size:
        index = _MREQN.unpack_from(value)[2]
    elif isinstance(value, bytes) and len(value) == _IN_ADDR.size:
        index = _interface_of(sk, value)
    else:
        raise os_error(errno.EINVAL)
    sk.mc_index = index


def _set_mc_if6(sk: IpSock, value: Value) -> None:
    index = int_value(value)
    if index and not _device_name(sk, index):
        raise os_error(errno.ENODEV)
    sk.mc_index = index


def _interface_of(sk: IpSock, addr: bytes) -> int:
    if not any(addr):
        return 0
    try:
        dst = inet_net(sk.sk_stack).route_output(addr, addr)
    except OSError:
        raise os_error(errno.EADDRNOTAVAIL) from None
    return int(dst.device.ifindex)


def _set_v6only(sk: IpSock, value: Value) -> None:
    if sk.inet_num:
        raise os_error(errno.EINVAL)
    sk.v6only = bool(int_value(value))


def _set_reuseport(sk: IpSock, value: Value) -> None:
    sk.sk_reuseport = bool(int_value(value))


def _set_device(sk: IpSock, value: Value) -> None:
    """SO_BINDTODEVICE: the name, b"" for none. Raises ENODEV."""
    if not isinstance(value, bytes):
        raise os_error(errno.EINVAL, "SO_BINDTODEVICE takes a name")
    name = value.split(b"\0", 1)[0][:15].decode("ascii", "replace")
    if not name:
        sk.bound_dev_if = 0
        return
    device = sk.sk_stack.devices.get(name)
    if device is None:
        raise os_error(errno.ENODEV, name)
    sk.bound_dev_if = int(getattr(device, "ifindex", 0))


def _set_ifindex(sk: IpSock, value: Value) -> None:
    index = int_value(value)
    if index < 0:
        raise os_error(errno.EINVAL)
    sk.bound_dev_if = index  # the kernel does not ask whether there is one either


def _device_name(sk: IpSock, ifindex: int) -> str:
    for name, device in sk.sk_stack.devices.items():
        if getattr(device, "ifindex", 0) == ifindex:
            return name
    return ""


# -- reading ------------------------------------------------------------------------------------


def _field(field: str) -> Getter:
    return lambda sk: int(getattr(sk, field))


def _has_cmsg(bit: int) -> Getter:
    return lambda sk: int(bool(sk.cmsg_flags & bit))


def _has_flag(bit: int) -> Getter:
    return lambda sk: int(bool(sk.sk_flags & bit))


def _get_ttl(sk: IpSock) -> int:
    return sk.uc_ttl if sk.uc_ttl != -1 else sk.sk_stack.sysctl["net.ipv4.ip_default_ttl"]


def _get_mtu(sk: IpSock) -> int:
    """Of the path to the peer. Raises ENOTCONN without one."""
    if not sk.inet_daddr or sk.sk_state in (TcpState.TCP_CLOSE, TcpState.TCP_LISTEN):
        raise os_error(errno.ENOTCONN)
    net = inet_net(sk.sk_stack)
    return net.route_output(sk.inet_daddr, sk.inet_saddr, sk.bound_dev_if).mtu


def _get_device(sk: IpSock) -> bytes:
    name = _device_name(sk, sk.bound_dev_if) if sk.bound_dev_if else ""
    return name.encode() + b"\0" if name else b""


_SET: Final[dict[tuple[int, int], Setter]] = {
    (c.SOL_SOCKET, c.SO_BROADCAST): _sk_flag(SOCK_BROADCAST),
    (c.SOL_SOCKET, c.SO_OOBINLINE): _sk_flag(SOCK_URGINLINE),
    (c.SOL_SOCKET, c.SO_REUSEPORT): _set_reuseport,
    (c.SOL_SOCKET, c.SO_BINDTODEVICE): _set_device,
    (c.SOL_SOCKET, c.SO_BINDTOIFINDEX): _set_ifindex,
    (c.SOL_SOCKET, c.SO_RXQ_OVFL): _cmsg_flag(CMSG_RXQ_OVFL),
    (c.SOL_IP, c.IP_TOS): _set_tos,
    (c.SOL_IP, c.IP_TTL): _set_ttl,
    (c.SOL_IP, c.IP_HDRINCL): _set_hdrincl,
    (c.SOL_IP, c.IP_PKTINFO): _cmsg_flag(CMSG_PKTINFO),
    (c.SOL_IP, c.IP_RECVTTL): _cmsg_flag(CMSG_TTL),
    (c.SOL_IP, c.IP_RECVTOS): _cmsg_flag(CMSG_TOS),
    (c.SOL_IP, c.IP_RECVORIGDSTADDR): _cmsg_flag(CMSG_ORIGDSTADDR),
    (c.SOL_IP, c.IP_MTU_DISCOVER): _set_mtu_discover,
    (c.SOL_IP, c.IP_RECVERR): _set_recverr,
    (c.SOL_IP, c.IP_FREEBIND): _flag("freebind"),
    (c.SOL_IP, c.IP_MINTTL): _set_min_ttl,
    (c.SOL_IP, c.IP_BIND_ADDRESS_NO_PORT): _flag("bind_no_port"),
    (c.SOL_IP, c.IP_MULTICAST_TTL): _set_mc_ttl,
    (c.SOL_IP, c.IP_MULTICAST_IF): _set_mc_if,
    (c.SOL_IPV6, c.IPV6_UNICAST_HOPS): _set_hops,
    (c.SOL_IPV6, c.IPV6_TCLASS): _set_tclass,
    (c.SOL_IPV6, c.IPV6_V6ONLY): _set_v6only,
    (c.SOL_IPV6, c.IPV6_MTU_DISCOVER): _set_mtu_discover,
    (c.SOL_IPV6, c.IPV6_RECVERR): _set_recverr,
    (c.SOL_IPV6, c.IPV6_DONTFRAG): _flag("dontfrag"),
    (c.SOL_IPV6, c.IPV6_FREEBIND): _flag("freebind"),
    (c.SOL_IPV6, c.IPV6_MINHOPCOUNT): _set_min_ttl,
    (c.SOL_IPV6, c.IPV6_RECVPKTINFO): _cmsg_flag(CMSG_PKTINFO6),
    (c.SOL_IPV6, c.IPV6_RECVHOPLIMIT): _cmsg_flag(CMSG_HOPLIMIT),
    (c.SOL_IPV6, c.IPV6_RECVTCLASS): _cmsg_flag(CMSG_TCLASS),
    (c.SOL_IPV6, c.IPV6_RECVORIGDSTADDR): _cmsg_flag(CMSG_ORIGDSTADDR6),
    (c.SOL_IPV6, c.IPV6_MULTICAST_HOPS): _set_mc_ttl,
    (c.SOL_IPV6, c.IPV6_MULTICAST_IF): _set_mc_if6,
}

_GET: Final[dict[tuple[int, int], Getter]] = {
    (c.SOL_SOCKET, c.SO_BROADCAST): _has_flag(SOCK_BROADCAST),
    (c.SOL_SOCKET, c.SO_OOBINLINE): _has_flag(SOCK_URGINLINE),
    (c.SOL_SOCKET, c.SO_REUSEPORT): _field("sk_reuseport"),
    (c.SOL_SOCKET, c.SO_BINDTODEVICE): _get_device,
    (c.SOL_SOCKET, c.SO_BINDTOIFINDEX): _field("bound_dev_if"),
    (c.SOL_SOCKET, c.SO_RXQ_OVFL): _has_cmsg(CMSG_RXQ_OVFL),
    (c.SOL_IP, c.IP_TOS): _field("tos"),
    (c.SOL_IP, c.IP_TTL): _get_ttl,
    (c.SOL_IP, c.IP_HDRINCL): _field("hdrincl"),
    (c.SOL_IP, c.IP_PKTINFO): _has_cmsg(CMSG_PKTINFO),
    (c.SOL_IP, c.IP_RECVTTL): _has_cmsg(CMSG_TTL),
    (c.SOL_IP, c.IP_RECVTOS): _has_cmsg(CMSG_TOS),
    (c.SOL_IP, c.IP_RECVORIGDSTADDR): _has_cmsg(CMSG_ORIGDSTADDR),
    (c.SOL_IP, c.IP_MTU_DISCOVER): _field("mtu_discover"),
    (c.SOL_IP, c.IP_MTU): _get_mtu,
    (c.SOL_IP, c.IP_RECVERR): _field("recverr"),
    (c.SOL_IP, c.IP_FREEBIND): _field("freebind"),
    (c.SOL_IP, c.IP_MINTTL): _field("min_ttl"),
    (c.SOL_IP, c.IP_BIND_ADDRESS_NO_PORT): _field("bind_no_port"),
    (c.SOL_IP, c.IP_MULTICAST_TTL): _field("mc_ttl"),
    (c.SOL_IPV6, c.IPV6_UNICAST_HOPS): _get_ttl,
    (c.SOL_IPV6, c.IPV6_TCLASS): _field("tos"),
    (c.SOL_IPV6, c.IPV6_V6ONLY): _field("v6only"),
    (c.SOL_IPV6, c.IPV6_MTU_DISCOVER): _field("mtu_discover"),
    (c.SOL_IPV6, c.IPV6_MTU): _get_mtu,
    (c.SOL_IPV6, c.IPV6_RECVERR): _field("recverr"),
    (c.SOL_IPV6, c.IPV6_DONTFRAG): _field("dontfrag"),
    (c.SOL_IPV6, c.IPV6_FREEBIND): _field("freebind"),
    (c.SOL_IPV6, c.IPV6_MINHOPCOUNT): _field("min_ttl"),
    (c.SOL_IPV6, c.IPV6_RECVPKTINFO): _has_cmsg(CMSG_PKTINFO6),
    (c.SOL_IPV6, c.IPV6_RECVHOPLIMIT): _has_cmsg(CMSG_HOPLIMIT),
    (c.SOL_IPV6, c.IPV6_RECVTCLASS): _has_cmsg(CMSG_TCLASS),
    (c.SOL_IPV6, c.IPV6_RECVORIGDSTADDR): _has_cmsg(CMSG_ORIGDSTADDR6),
    (c.SOL_IPV6, c.IPV6_MULTICAST_HOPS): _field("mc_ttl"),
    (c.SOL_IPV6, c.IPV6_MULTICAST_IF): _field("mc_index"),
}


def ip_setsockopt(sk: Sock, level: int, name: int, value: Value) -> None:
    """Set an option of SOL_IP or SOL_IPV6, or one of SOL_SOCKET that this family has.

    Raises:
        OSError: ENOPROTOOPT for one that would change nothing here; EINVAL for a wrong value.
    """
    setter = _SET.get((level, name))
    if setter is None:
        raise os_error(errno.ENOPROTOOPT)
    setter(ip_sk(sk), value)


def ip_getsockopt(sk: Sock, level: int, name: int, size: int) -> int | bytes:
    """Read such an option: an int when `size` is 0, else up to `size` octets."""
    getter = _GET.get((level, name))
    if getter is None:
        raise os_error(errno.ENOPROTOOPT)
    return as_asked(getter(ip_sk(sk)), size)
