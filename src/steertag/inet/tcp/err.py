"""ICMP errors about segments that we sent (tcp_v4_err, tcp_v6_err; RFC 5927, 5461, 6069, 1191)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steertag.inet.ip.net import InetNet
    from steertag.inet.ip.packet import IcmpError


def tcp_err(net: InetNet, error: IcmpError) -> None:
    """The error handler of protocol 6."""
    raise NotImplementedError
