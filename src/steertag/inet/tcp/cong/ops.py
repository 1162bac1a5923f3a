"""What a congestion control algorithm is (struct tcp_congestion_ops, net/tcp.h).

An algorithm is an object of a subclass of `CongestionOps`; one object serves every connection of a
Stack, and keeps what it knows of a connection in `sk.ca_priv`. It reads and sets `sk.cwnd` and
`sk.ssthresh`, octets both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock

# cwnd_event (enum tcp_ca_event)
CA_EVENT_TX_START: Final = 0
"""New data, and nothing in flight: `sk.lsndtime` says since when."""
CA_EVENT_CWND_RESTART: Final = 1
"""The window is reduced after idling."""
CA_EVENT_COMPLETE_CWR: Final = 2
"""A reduction of the window is done."""
CA_EVENT_LOSS: Final = 3
"""A retransmission timeout."""

# in_ack_event
CA_ACK_SLOWPATH: Final = 1
CA_ACK_WIN_UPDATE: Final = 2
CA_ACK_ECE: Final = 4


class CongestionOps:
    """An algorithm. What is not overridden is Reno's (RFC 5681), or nothing.

    Attributes:
        name: what TCP_CONGESTION calls it: at most 15 octets.
        needs_ecn: connections that use it ask for ECN.

    Methods are called with the Stack's lock held, `now` in seconds of its clock, and never raise.
    """

    name: str = ""
    needs_ecn: bool = False

    def init(self, sk: TcpSock) -> None:
        """The connection begins to use it; may set `sk.ca_priv`."""

    def release(self, sk: TcpSock) -> None:
        """The connection does not use it any more."""

    def ssthresh(self, sk: TcpSock) -> int:
        """Congestion was found: the slow start threshold, octets."""
        return max(sk.cwnd >> 1, 2 * sk.mss_cache)

    def cong_avoid(self, sk: TcpSock, ack: int, acked: int, now: float) -> None:
        """`acked` octets were delivered, the last acknowledged up to `ack`: grow `sk.cwnd`."""
        raise NotImplementedError

    def set_state(self, sk: TcpSock, new: int) -> None:
        """The connection goes to TCP_CA_* `new`; `sk.ca_state` is the old one still."""

    def cwnd_event(self, sk: TcpSock, event: int) -> None:
        """Something of CA_EVENT_*."""

    def in_ack_event(self, sk: TcpSock, flags: int) -> None:
        """An acknowledgement with CA_ACK_* `flags` came; before anything else is done with it."""

    def pkts_acked(self, sk: TcpSock, acked: int, rtt: float, now: float) -> None:
        """`acked` octets left the network; `rtt`: seconds, negative if it is not known."""

    def undo_cwnd(self, sk: TcpSock) -> int:
        """The reduction was a mistake: the window to go back to, octets."""
        return max(sk.cwnd, sk.prior_cwnd)


def tcp_slow_start(sk: TcpSock, acked: int) -> int:
    """Grow by what was acknowledged (RFC 5681 section 3.1), no further than the threshold.

    Returns the octets that are left for congestion avoidance. There is no limit per
    acknowledgement (RFC 3465's L): one covers a whole super-segment where it would otherwise have
    been twenty.
    """
    cwnd = sk.cwnd
    grown = cwnd + acked
    if grown > sk.ssthresh:
        grown = sk.ssthresh
    left = acked - (grown - cwnd)
    sk.cwnd = grown if grown < sk.cwnd_clamp else sk.cwnd_clamp
    return left


def tcp_cong_avoid_ai(sk: TcpSock, window: int, acked: int) -> None:
    """One segment more for every `window` octets that are acknowledged (additive increase)."""
    mss = sk.mss_cache
    count = sk.cwnd_cnt
    if count >= window:  # credit of a larger window is not spent at once
        count = 0
        sk.cwnd += mss
    count += acked
    if count >= window:
        times = count // window
        count -= times * window
        sk.cwnd += times * mss
    sk.cwnd_cnt = count
    if sk.cwnd > sk.cwnd_clamp:
        sk.cwnd = sk.cwnd_clamp


def tcp_is_cwnd_limited(sk: TcpSock) -> bool:
    """Was the window what held the sender back? If not it is not to grow (RFC 7661).

    In slow start a sender that used more than half of it counts as held back.
    """
    if sk.is_cwnd_limited:
        return True
    return sk.cwnd < sk.ssthresh and sk.cwnd < 2 * sk.max_out
