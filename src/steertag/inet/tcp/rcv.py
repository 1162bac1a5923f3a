"""Segments come in here: lookup, checks, and on to whoever it is for (tcp_v4_rcv)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steertag.inet.ip.net import InetNet
    from steertag.inet.ip.packet import Packet


def tcp_rcv(net: InetNet, packet: Packet) -> None:
    """The handler of protocol 6."""
    raise NotImplementedError
