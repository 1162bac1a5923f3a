"""What TCP keeps per Stack beside its sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.family.pool import BufferPool
from steertag.inet.ip.net import InetNet, inet_net
from steertag.inet.tcp.hash import TcpHash

if TYPE_CHECKING:
    from steertag.family.stack import Stack
    from steertag.inet.tcp.fastopen import FastopenMetrics
    from steertag.inet.tcp.sock import TcpSock

_NAME = "tcp"
_PIECE = 65536


class TcpNet:
    """One per Stack.

    Attributes:
        ip: the network layer below.
        pool: buffers for large pieces of what is sent.
        early_retrans: the parameter of that name, read for every piece that is sent.
        pending_acks: connections that acknowledge at the end of the device's turn.
        hash: who has which port and which connection; `Proto.h`.
        challenge_at, challenge_left: the second that challenge ACKs are counted in, and how many
            more may go out in it (reset.py).
        fastopen_cache: what is known of servers' Fast Open, by own and their address (fastopen.py).
        fastopen_off_until, fastopen_off_times: when our Fast Open is tried again after something
            on the way swallowed it, and how often that was in a row.
    """

    __slots__ = (
        "challenge_at",
        "challenge_left",
        "early_retrans",
        "fastopen_cache",
        "fastopen_off_times",
        "fastopen_off_until",
        "hash",
        "ip",
        "pending_acks",
        "pool",
    )

    def __init__(self, ip: InetNet) -> None:
        self.ip = ip
        self.early_retrans = ip.stack.sysctl.table("net.ipv4.tcp_early_retrans").data
        self.pool = BufferPool(_PIECE)
        self.pending_acks: list[TcpSock] = []
        self.hash = TcpHash()
        self.challenge_at = -1
        self.challenge_left = 0
        self.fastopen_cache: dict[bytes, FastopenMetrics] = {}
        self.fastopen_off_until = 0.0
        self.fastopen_off_times = 0


def tcp_net(stack: Stack) -> TcpNet:
    """The Stack's, made when first asked for."""
    found = stack.generic.get(_NAME)
    if not isinstance(found, TcpNet):
        found = TcpNet(inet_net(stack))
        stack.generic[_NAME] = found
    return found
