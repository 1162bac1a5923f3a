"""The error queue of a sock (net/ipv4/ip_sockglue.c: ip_icmp_error, ip_local_error, ip_recv_error).

With IP_RECVERR every ICMP error about what a sock sent is kept here, payload and all, until
recvmsg with MSG_ERRQUEUE takes it; without, the user gets one errno for the hard ones of a
connected sock.
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.inet.cmsg import packet_cmsgs, put_cmsgs, sockaddr
from steertag.inet.const import (
    IP_RECVERR,
    IPV6_RECVERR,
    MSG_ERRQUEUE,
    MSG_PEEK,
    MSG_TRUNC,
    SO_EE_ORIGIN_ICMP,
    SO_EE_ORIGIN_ICMP6,
    SO_EE_ORIGIN_LOCAL,
    SOL_IP,
    SOL_IPV6,
)

if TYPE_CHECKING:
    from steertag.family.msg import Ancillary, MsgHdr
    from steertag.inet.ip.packet import IcmpError, Packet
    from steertag.inet.sock import IpSock, Name

ERRQUEUE_MAX: Final = 64
"""Errors that wait; more are dropped (the kernel's bound is the receive buffer)."""
_EXTENDED: Final = struct.Struct("=IBBBxII")
"""struct sock_extended_err: errno, origin, type, code, info, data."""


class ErrorEntry:
    """One error, as MSG_ERRQUEUE gives it.

    Attributes:
        family: 4 or 6. errno, origin, type, code, info: struct sock_extended_err's.
        offender: who said so, packed; b"" for an error of our own.
        name: where the datagram went: as the user sees addresses.
        data: the datagram's payload, as much as the ICMP message quoted.
        packet: the ICMP message; None for an error of our own.
    """

    __slots__ = (
        *("code", "data", "errno", "family", "info"),
        *("name", "offender", "origin", "packet", "type"),
    )

    def __init__(self, family: int, errno: int, origin: int, name: Name) -> None:
        self.family = family
        self.errno = errno
        self.origin = origin
        self.type = self.code = self.info = 0
        self.offender = b""
        self.name = name
        self.data = b""
        self.packet: Packet | None = None


def icmp_error(sk: IpSock, error: IcmpError, err: int, name: Name, payload: memoryview) -> None:
    """Queue what an ICMP message says about a datagram that `sk` sent to `name`."""
    origin = SO_EE_ORIGIN_ICMP if error.family == 4 else SO_EE_ORIGIN_ICMP6
    entry = ErrorEntry(error.family, err, origin, name)
    entry.type, entry.code, entry.info = error.type, error.code, error.info
    entry.offender = error.offender
    entry.data = bytes(payload)
    entry.packet = error.packet
    _queue(sk, entry)


def local_error(sk: IpSock, family: int, err: int, name: Name, info: int) -> None:
    """Queue an error that was found before the datagram left: EMSGSIZE, `info` the path's MTU."""
    if sk.recverr:
        entry = ErrorEntry(family, err, SO_EE_ORIGIN_LOCAL, name)
        entry.info = info
        _queue(sk, entry)
        sk.sk_error_report(sk)


def _queue(sk: IpSock, entry: ErrorEntry) -> None:
    if sk.error_queue is None:
        sk.error_queue = deque()
    if len(sk.error_queue) < ERRQUEUE_MAX:
        sk.error_queue.append(entry)


def recv_error(sk: IpSock, msg: MsgHdr, flags: int) -> int:
    """recvmsg with MSG_ERRQUEUE: the oldest error. Raises EAGAIN if there is none."""
    queue = sk.error_queue
    if not queue:
        raise os_error(errno.EAGAIN)
    entry = queue[0]
    placed = msg.write(0, entry.data)
    msg.msg_name = entry.name
    msg.msg_flags = MSG_ERRQUEUE | (MSG_TRUNC if placed < len(entry.data) else 0)
    level, kind = (SOL_IP, IP_RECVERR) if entry.family == 4 else (SOL_IPV6, IPV6_RECVERR)
    extended = _EXTENDED.pack(entry.errno, entry.origin, entry.type, entry.code, entry.info, 0)
    control: list[Ancillary] = [(level, kind, extended + sockaddr(entry.offender, 0, entry.family))]
    if entry.packet is not None:
        control += packet_cmsgs(sk, entry.packet)
    put_cmsgs(msg, control)
    if not flags & MSG_PEEK:
        queue.popleft()
        sk.sk_err = queue[0].errno if queue else 0
    return placed
