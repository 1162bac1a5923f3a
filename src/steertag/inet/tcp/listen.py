"""Passive opens: requests, SYN-ACKs, children (net/ipv4/tcp_minisocks.c, tcp_input.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.family.sock import Sock

if TYPE_CHECKING:
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Segment

TCP_NEW_SYN_RECV: Final = 12
"""sk_state of a RequestSock."""


class RequestSock:
    """A connection of which we have seen the SYN only (struct tcp_request_sock)."""

    __slots__ = ("sk_state",)

    def __init__(self) -> None:
        self.sk_state = TCP_NEW_SYN_RECV


def tcp_accept(sk: Sock, flags: int) -> Sock:
    """`Proto.accept`. Raises EINVAL if it does not listen, EAGAIN if no connection waits."""
    raise NotImplementedError


def inet_csk_listen_stop(sk: TcpSock) -> None:
    """The listener closes: requests are dropped, children that nobody accepted are reset."""
    raise NotImplementedError


def tcp_conn_request(sk: TcpSock, packet: Packet, seg: Segment, isn: int | None = None) -> None:
    """A SYN for a listener."""
    raise NotImplementedError
