"""Reno (RFC 5681), as tcp_reno_* of net/ipv4/tcp_cong.c, in octets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.inet.tcp.cong.ops import (
    CongestionOps,
    tcp_cong_avoid_ai,
    tcp_is_cwnd_limited,
    tcp_slow_start,
)

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock


class Reno(CongestionOps):
    """Slow start below the threshold, then a segment for every window; half of it when it fails."""

    name = "reno"

    def cong_avoid(self, sk: TcpSock, ack: int, acked: int, now: float) -> None:
        if not tcp_is_cwnd_limited(sk):
            return
        if sk.cwnd < sk.ssthresh:
            acked = tcp_slow_start(sk, acked)
            if not acked:
                return
        tcp_cong_avoid_ai(sk, sk.cwnd, acked)
