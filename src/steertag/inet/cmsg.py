"""Ancillary data of datagrams (ip(7), ipv6(7); net/ipv4/ip_sockglue.c, net/ipv6/datagram.c)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from steertag.errors import os_error
from steertag.inet import const as c
from steertag.inet.sock import MAPPED
from steertag.inet.sockopt import (
    CMSG_HOPLIMIT,
    CMSG_ORIGDSTADDR,
    CMSG_ORIGDSTADDR6,
    CMSG_PKTINFO,
    CMSG_PKTINFO6,
    CMSG_TCLASS,
    CMSG_TOS,
    CMSG_TTL,
)

if TYPE_CHECKING:
    from steertag.device.base import Device
    from steertag.family.msg import Ancillary, MsgHdr
    from steertag.inet.sock import IpSock

_INT: Final = struct.Struct("=i")
_U16: Final = struct.Struct("=H")
_PKTINFO: Final = struct.Struct("=i4s4s")
"""struct in_pktinfo: interface, local address, destination of the header."""
_PKTINFO6: Final = struct.Struct("=16sI")
_SOCKADDR_IN: Final = struct.Struct("=H2s4s8x")
_SOCKADDR_IN6: Final = struct.Struct("=H2sI16sI")
_PORT: Final = struct.Struct("!H")
_HEADER: Final = 16
"""Octets of struct cmsghdr, of which each is aligned to 8."""
_ALIGN: Final = 8


class Received(Protocol):
    """What is known of a packet that came in."""

    family: int
    saddr: bytes
    daddr: bytes
    ttl: int
    tos: int
    device: Device


def sockaddr(addr: bytes, port: int, family: int, scope: int = 0) -> bytes:
    """struct sockaddr_in or sockaddr_in6, as the kernel's headers lay them out."""
    if not addr:
        return bytes(_SOCKADDR_IN.size if family == 4 else _SOCKADDR_IN6.size)
    if family == 4:
        return _SOCKADDR_IN.pack(c.AF_INET, _PORT.pack(port), addr)
    return _SOCKADDR_IN6.pack(c.AF_INET6, _PORT.pack(port), 0, addr, scope)


def packet_cmsgs(sk: IpSock, packet: Received, dport: int = 0) -> list[Ancillary]:
    """What the receiver asked to be told of a packet (ip_cmsg_recv, ip6_datagram_recv_ctl)."""
    flags = sk.cmsg_flags
    found: list[Ancillary] = []
    if packet.family == 4:
        if flags & CMSG_PKTINFO:
            info = _PKTINFO.pack(packet.device.ifindex, packet.daddr, packet.daddr)
            found.append((c.SOL_IP, c.IP_PKTINFO, info))
        if flags & CMSG_TTL:
            found.append((c.SOL_IP, c.IP_TTL, _INT.pack(packet.ttl)))
        if flags & CMSG_TOS:
            found.append((c.SOL_IP, c.IP_TOS, bytes((packet.tos,))))
        if flags & CMSG_ORIGDSTADDR:
            name = sockaddr(packet.daddr, dport, 4)
            found.append((c.SOL_IP, c.IP_ORIGDSTADDR, name))
        return found
    if flags & CMSG_PKTINFO6:
        info = _PKTINFO6.pack(packet.daddr, packet.device.ifindex)
        found.append((c.SOL_IPV6, c.IPV6_PKTINFO, info))
    if flags & CMSG_HOPLIMIT:
        found.append((c.SOL_IPV6, c.IPV6_HOPLIMIT, _INT.pack(packet.ttl)))
    if flags & CMSG_TCLASS:
        found.append((c.SOL_IPV6, c.IPV6_TCLASS, _INT.pack(packet.tos)))
    if flags & CMSG_ORIGDSTADDR6:
        name = sockaddr(packet.daddr, dport, 6)
        found.append((c.SOL_IPV6, c.IPV6_ORIGDSTADDR, name))
    return found


def put_cmsgs(msg: MsgHdr, control: Sequence[Ancillary]) -> None:
    """Give what there is room for; MSG_CTRUNC says that there was more (put_cmsg)."""
    room = msg.msg_controllen
    given: list[Ancillary] = []
    for level, kind, data in control:
        if room < _HEADER:
            msg.msg_flags |= c.MSG_CTRUNC
            break
        if room < _HEADER + len(data):
            msg.msg_flags |= c.MSG_CTRUNC
            data = data[: room - _HEADER]
        given.append((level, kind, data))
        room -= min(room, _HEADER + -(-len(data) // _ALIGN) * _ALIGN)
    msg.msg_control = given


class Cookie:
    """How one datagram is to be sent: what the sock says, and ancillary data over it
    (struct ipcm_cookie).

    Attributes:
        saddr: b"": the sock's, or the route's. oif: 0: the sock's.
        ttl: 0: the default. tos; dontfrag; flowlabel; gso_size: UDP_SEGMENT, 0 for none.
    """

    __slots__ = ("dontfrag", "flowlabel", "gso_size", "oif", "saddr", "tos", "ttl")

    def __init__(self, sk: IpSock) -> None:
        self.saddr = b""
        self.oif = 0
        self.ttl = sk.ttl_for_send
        self.tos = sk.tos
        self.dontfrag = sk.dontfrag
        self.flowlabel = sk.flowlabel
        self.gso_size = 0


def cmsg_send(cookie: Cookie, control: Sequence[Ancillary]) -> None:
    """Ancillary data of sendmsg. Raises EINVAL for one that is not known or has a wrong value."""
    for level, kind, data in control:
        octets = bytes(data)
        try:
            if level == c.SOL_IP:
                _ip_cmsg(cookie, kind, octets)
            elif level == c.SOL_IPV6:
                _ipv6_cmsg(cookie, kind, octets)
            elif level == c.SOL_UDP:
                if kind != c.UDP_SEGMENT:
                    raise os_error(errno.EINVAL)
                (cookie.gso_size,) = _U16.unpack(octets)
            elif level == c.SOL_SOCKET:
                raise os_error(errno.EINVAL)
        except struct.error:
            raise os_error(errno.EINVAL, f"ancillary data of {len(octets)} octets") from None


def _ip_cmsg(cookie: Cookie, kind: int, octets: bytes) -> None:
    if kind == c.IP_PKTINFO:
        oif, saddr, _ = _PKTINFO.unpack(octets)
        cookie.oif = oif or cookie.oif
        cookie.saddr = saddr if any(saddr) else b""
    elif kind == c.IP_TTL:
        cookie.ttl = _within(_INT.unpack(octets)[0], 1, 255)
    elif kind == c.IP_TOS:
        tos = octets[0] if len(octets) == 1 else _INT.unpack(octets)[0]
        cookie.tos = _within(tos, 0, 255)
    else:
        raise os_error(errno.EINVAL)


def _ipv6_cmsg(cookie: Cookie, kind: int, octets: bytes) -> None:
    if kind == c.IPV6_PKTINFO:
        saddr, oif = _PKTINFO6.unpack(octets)
        cookie.oif = oif or cookie.oif
        if saddr[:12] == MAPPED:
            saddr = saddr[12:]
        cookie.saddr = saddr if any(saddr) else b""
    elif kind == c.IPV6_HOPLIMIT:
        cookie.ttl = max(_within(_INT.unpack(octets)[0], -1, 255), 0)
    elif kind == c.IPV6_TCLASS:
        cookie.tos = max(_within(_INT.unpack(octets)[0], -1, 255), 0)
    elif kind == c.IPV6_DONTFRAG:
        cookie.dontfrag = bool(_within(_INT.unpack(octets)[0], 0, 1))
    else:
        raise os_error(errno.EINVAL)


def _within(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise os_error(errno.EINVAL)
    return value
