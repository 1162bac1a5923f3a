"""Segments that no connection sends: RST and ACK in answer to a segment (RFC 9293 section 3.10.7);
and the limits on ACKs that an attacker can ask for (RFC 5961)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steertag.inet.ip.net import InetNet
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Segment


def tcp_send_reset(net: InetNet, packet: Packet, seg: Segment) -> None:
    """Answer with RST, unless the segment is one or was not sent to us alone (tcp_v4_send_reset)."""
    raise NotImplementedError


def tcp_oow_rate_limited(sk: TcpSock, seg: Segment, counter: str, now: float) -> bool:
    """Whether an ACK in answer to that unacceptable segment is too much (tcp_invalid_ratelimit).

    `counter`: the TcpExt counter to go up then, as "TCPACKSkippedSeq".
    """
    raise NotImplementedError


def tcp_send_challenge_ack(sk: TcpSock, now: float) -> None:
    """An ACK that makes a real peer show itself (RFC 5961), as often as the limits allow."""
    raise NotImplementedError
