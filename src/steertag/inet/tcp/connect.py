"""Active opens (tcp_v4_connect, tcp_rcv_synsent_state_process)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.family.msg import Address
from steertag.family.sock import Sock

if TYPE_CHECKING:
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Segment


def tcp_v_connect(sk: Sock, address: Address) -> None:
    """`Proto.connect`: route, port, SYN.

    Raises:
        OSError: ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL, EADDRINUSE, EINVAL, EAFNOSUPPORT.
    """
    raise NotImplementedError


def tcp_rcv_synsent_state_process(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    """A segment in SYN-SENT (RFC 9293 section 3.10.7.3)."""
    raise NotImplementedError


def tcp_finish_connect(sk: TcpSock, now: float) -> None:
    """The handshake is done on our side."""
    raise NotImplementedError
