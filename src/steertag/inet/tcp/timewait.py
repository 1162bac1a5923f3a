"""TIME-WAIT and orphaned FIN-WAIT-2: what is left of a connection (net/ipv4/tcp_minisocks.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.family.const import TcpState

if TYPE_CHECKING:
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Segment


class TimeWaitSock:
    """A connection that is over, kept so that late segments find it (struct tcp_timewait_sock)."""

    __slots__ = ("sk_state",)

    def __init__(self) -> None:
        self.sk_state = TcpState.TCP_TIME_WAIT


def tcp_time_wait(sk: TcpSock, state: TcpState, timeout: float) -> None:
    """Replace the connection by a TimeWaitSock, and `tcp_done` it.

    `state`: TCP_TIME_WAIT or TCP_FIN_WAIT2 (an orphan). `timeout`: seconds it stays in FIN-WAIT-2.
    """
    raise NotImplementedError


def tcp_timewait_state_process(tw: TimeWaitSock, packet: Packet, seg: Segment) -> None:
    """A segment for a connection that is over."""
    raise NotImplementedError
