"""The error queue of a sock (net/ipv4/ip_sockglue.c, ip_icmp_error and ip_recv_error)."""

from __future__ import annotations

from typing import Final

ERRQUEUE_MAX: Final = 64
"""Errors that wait; the kernel's bound is the receive buffer, which these are too small to fill."""


class ErrorEntry:
    """One error, as MSG_ERRQUEUE gives it.

    Attributes:
        family: 4 or 6. errno, origin, type, code, info: struct sock_extended_err's.
        offender: who said so, packed; b"" for an error of our own.
        name: where the datagram went: (host, port) as the user sees addresses.
        data: the datagram's payload, as much as the ICMP message quoted.
    """

    __slots__ = ("code", "data", "errno", "family", "info", "name", "offender", "origin", "type")

    def __init__(
        self,
        family: int,
        errno: int,
        origin: int,
        type: int,
        code: int,
        info: int,
        offender: bytes,
        name: object,
        data: bytes,
    ) -> None:
        self.family = family
        self.errno = errno
        self.origin = origin
        self.type = type
        self.code = code
        self.info = info
        self.offender = offender
        self.name = name
        self.data = data
