"""The host's side of a TUN or TAP: up, with its MTU and addresses, without a program to do it.

rtnetlink(7) by hand: RTM_NEWLINK and RTM_NEWADDR, each acknowledged. It takes CAP_NET_ADMIN in the
network namespace, as making the interface did.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterable
from typing import Final

from steertag.errors import os_error

_NLMSG: Final = struct.Struct("=IHHII")
_NLMSG_ERROR: Final = 2
_RTM_NEWLINK: Final = 16
_RTM_NEWADDR: Final = 20
_RTM_NEWROUTE: Final = 24
_RTM_GETROUTE: Final = 26
_NLM_F_REQUEST: Final = 0x1
_NLM_F_ACK: Final = 0x4
_NLM_F_REPLACE: Final = 0x100
_NLM_F_CREATE: Final = 0x400

_IFINFO: Final = struct.Struct("=BxHiII")
_IFADDR: Final = struct.Struct("=BBBBI")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_RTN_LOCAL: Final = 2
_RTA_DST: Final = 1
_RTATTR: Final = struct.Struct("=HH")
_IFF_UP: Final = 1
_IFLA_MTU: Final = 4
_IFLA_TXQLEN: Final = 13
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_F_NODAD: Final = 2

_SETTLES: Final = 1.0
"""Seconds to wait, at most, for the kernel to take packets for an address that it was given."""
_LOOK: Final = 1e-3

TX_QUEUE_LEN: Final = 10000
"""Frames that wait for us: a burst of the kernel's should not be lost while we are not looking."""


def configure(
    name: str,
    addresses: Iterable[str] = (),
    *,
    mtu: int | None = None,
    up: bool = True,
    txqueuelen: int | None = TX_QUEUE_LEN,
) -> None:
    """Set up an interface of the host kernel's, in the network namespace of this process.

    Args:
        addresses: with their prefix lengths, as "10.9.0.1/24"; IPv6 ones are used at once, without
            duplicate address detection. When this returns the kernel takes packets for them.
        mtu: octets; None leaves it.

    Raises:
        OSError: ENODEV: no such interface; EPERM: it takes CAP_NET_ADMIN; EINVAL.
    """
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        raise os_error(errno.ENODEV, f"no interface {name}") from None
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        _set_link(netlink, name, index, mtu, txqueuelen, up)
        added = [_add_address(netlink, name, index, address) for address in addresses]
        if up:
            deadline = time.monotonic() + _SETTLES
            for packed in added:
                _settle(netlink, packed, deadline)


def loopback_up() -> None:
    """Have the host's own loopback carry packets: in a fresh network namespace it doesn't."""
    configure("lo", txqueuelen=None)


def _set_link(
    netlink: socket.socket,
    name: str,
    index: int,
    mtu: int | None,
    txqueuelen: int | None,
    up: bool,
) -> None:
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, _IFF_UP if up else 0, _IFF_UP)
    if mtu is not None:
        body += _attribute(_IFLA_MTU, struct.pack("=I", mtu))
    if txqueuelen is not None:
        body += _attribute(_IFLA_TXQLEN, struct.pack("=I", txqueuelen))
    _request(netlink, _RTM_NEWLINK, 0, body, f"interface {name}")


def _add_address(netlink: socket.socket, name: str, index: int, address: str) -> bytes:
    interface = ipaddress.ip_interface(address)
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    packed = interface.ip.packed
    body = _IFADDR.pack(family, interface.network.prefixlen, _IFA_F_NODAD, 0, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    flags = _NLM_F_CREATE | _NLM_F_REPLACE
    _request(netlink, _RTM_NEWADDR, flags, body, f"address {address} of {name}")
    return packed


def _settle(netlink: socket.socket, packed: bytes, deadline: float) -> None:
    """Wait until an address is local: of IPv6 the kernel sees to that later, in a work queue."""
    if len(packed) == 4:
        return
    family, bits = socket.AF_INET6, 8 * len(packed)
    body = _ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, 0) + _attribute(_RTA_DST, packed)
    length = _NLMSG.size + len(body)
    while time.monotonic() < deadline:
        netlink.send(_NLMSG.pack(length, _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body)
        answer = netlink.recv(65536)
        is_route = _NLMSG.unpack_from(answer)[1] == _RTM_NEWROUTE
        if is_route and _ROUTE.unpack_from(answer, _NLMSG.size)[7] == _RTN_LOCAL:
            return
        time.sleep(_LOOK)


def _attribute(kind: int, value: bytes) -> bytes:
    padded = value + bytes(-len(value) % 4)
    return _RTATTR.pack(_RTATTR.size + len(value), kind) + padded


def _request(netlink: socket.socket, kind: int, flags: int, body: bytes, what: str) -> None:
    header = _NLMSG.pack(_NLMSG.size + len(body), kind, flags | _NLM_F_REQUEST | _NLM_F_ACK, 1, 0)
    netlink.send(header + body)
    answer = netlink.recv(65536)
    kind_of_answer = _NLMSG.unpack_from(answer)[1]
    if kind_of_answer != _NLMSG_ERROR:
        raise os_error(errno.EPROTO, f"{what}: the kernel answered with {kind_of_answer}")
    code = -struct.unpack_from("=i", answer, _NLMSG.size)[0]
    if code:
        hint = "it takes CAP_NET_ADMIN" if code == errno.EPERM else os.strerror(code)
        raise os_error(code, f"{what}: {hint}")
