"""The congestion window: its states, its validation, its reduction.

After net/ipv4/tcp_input.c (tcp_cwnd_reduction, tcp_enter_cwr) and tcp_output.c (tcp_cwnd_validate,
tcp_cwnd_restart), in octets. The reduction is PRR's (RFC 6937bis).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.inet.tcp.cong.ops import (
    CA_EVENT_COMPLETE_CWR,
    CA_EVENT_CWND_RESTART,
    CA_EVENT_TX_START,
)
from steertag.inet.tcp.rtx import tcp_any_retrans_done, tcp_packets_in_flight
from steertag.inet.tcp.sock import (
    INFINITE_SSTHRESH,
    TCP_CA_CWR,
    TCP_CA_DISORDER,
    TCP_CA_OPEN,
    TCP_CA_RECOVERY,
    TCP_ECN_OK,
    TCP_ECN_QUEUE_CWR,
    TCP_INIT_CWND,
)

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock

_MASK = 0xFFFFFFFF
_HALF = 0x80000000


def tcp_in_cwnd_reduction(sk: TcpSock) -> bool:
    return sk.ca_state == TCP_CA_CWR or sk.ca_state == TCP_CA_RECOVERY


def tcp_init_cwnd(sk: TcpSock) -> int:
    """Ten segments (RFC 6928), octets."""
    return TCP_INIT_CWND * sk.mss_cache


def tcp_current_ssthresh(sk: TcpSock) -> int:
    """The threshold that the window as it is stands for."""
    if tcp_in_cwnd_reduction(sk):
        return sk.ssthresh
    return max(sk.ssthresh, (sk.cwnd >> 1) + (sk.cwnd >> 2))


def tcp_set_ca_state(sk: TcpSock, state: int) -> None:
    """Go to TCP_CA_* `state`; the algorithm hears of it first."""
    sk.ca.set_state(sk, state)
    sk.ca_state = state


# -- reduction ----------------------------------------------------------------------------------


def tcp_ecn_queue_cwr(sk: TcpSock) -> None:
    """The window was reduced: the next new data says so (RFC 3168 section 6.1.2)."""
    if sk.ecn_flags & TCP_ECN_OK:
        sk.ecn_flags |= TCP_ECN_QUEUE_CWR


def tcp_init_cwnd_reduction(sk: TcpSock) -> None:
    """The window is to come down to the algorithm's threshold, over what is in flight now."""
    sk.high_seq = sk.snd_nxt
    sk.tlp_high_seq = None
    sk.cwnd_cnt = 0
    sk.prior_cwnd = sk.cwnd
    sk.prr_delivered = sk.prr_out = 0
    sk.ssthresh = sk.ca.ssthresh(sk)
    tcp_ecn_queue_cwr(sk)


def tcp_cwnd_reduction(sk: TcpSock, delivered: int, lost: int, advanced: bool) -> None:
    """Proportional rate reduction: what may be sent for `delivered` octets (RFC 6937bis).

    Above the threshold in proportion, ssthresh / prior_cwnd; below it what was delivered, and a
    segment more with each acknowledgement that advances and finds nothing new `lost` (safeACK):
    slow start back up to the threshold.
    """
    if delivered <= 0 or not sk.prior_cwnd:
        return
    mss = sk.mss_cache
    in_flight = tcp_packets_in_flight(sk)
    below = sk.ssthresh - in_flight
    sk.prr_delivered += delivered
    if below < 0:
        # Rounded up to whole segments, as it would be if segments were counted.
        share = -(-sk.ssthresh * sk.prr_delivered // (sk.prior_cwnd * mss)) * mss
        count = share - sk.prr_out
    else:
        count = max(sk.prr_delivered - sk.prr_out, delivered)
        if advanced and not lost:
            count += mss
        count = min(below, count)
    # The first retransmission goes whatever the sums say.
    count = max(count, 0 if sk.prr_out else mss)
    sk.cwnd = in_flight + count


def tcp_end_cwnd_reduction(sk: TcpSock, now: float) -> None:
    """The reduction is done: the window is at the threshold."""
    if sk.ssthresh < INFINITE_SSTHRESH and (
        sk.ca_state == TCP_CA_CWR or sk.undo_marker is not None
    ):
        sk.cwnd = sk.ssthresh
        sk.cwnd_stamp = now
    sk.ca.cwnd_event(sk, CA_EVENT_COMPLETE_CWR)


def tcp_enter_cwr(sk: TcpSock) -> None:
    """Congestion without loss: ECN's echo, or a full queue of our own (CWR)."""
    sk.prior_ssthresh = 0
    if sk.ca_state < TCP_CA_CWR:
        sk.undo_marker = None
        tcp_init_cwnd_reduction(sk)
        tcp_set_ca_state(sk, TCP_CA_CWR)


def tcp_try_keep_open(sk: TcpSock) -> None:
    """OPEN, or DISORDER while the peer has gaps."""
    state = TCP_CA_OPEN
    if sk.sacked_out or sk.lost_out or tcp_any_retrans_done(sk):
        state = TCP_CA_DISORDER
    if sk.ca_state != state:
        tcp_set_ca_state(sk, state)
        sk.high_seq = sk.snd_nxt


# -- validation ---------------------------------------------------------------------------------


def tcp_cwnd_validate(sk: TcpSock, is_cwnd_limited: bool) -> None:
    """After sending: was the window used? One that is not does not stand (RFC 2861, RFC 7661).

    What was most in flight of a round trip counts, or that the window was the limit at any time
    of it.
    """
    out = (sk.snd_nxt - sk.snd_una) & _MASK
    if (
        (sk.snd_una - sk.cwnd_usage_seq) & _MASK < _HALF
        or is_cwnd_limited
        or (not sk.is_cwnd_limited and out > sk.max_out)
    ):
        sk.is_cwnd_limited = is_cwnd_limited
        sk.max_out = out
        sk.cwnd_usage_seq = sk.snd_nxt
    if sk.is_cwnd_limited or (sk.cwnd < sk.ssthresh and sk.cwnd < 2 * sk.max_out):
        sk.cwnd_used = 0
        sk.cwnd_stamp = sk.lsndtime
        return
    if out > sk.cwnd_used:
        sk.cwnd_used = out
    if (
        sk.lsndtime - sk.cwnd_stamp >= sk.rto
        and sk.sk_stack.sysctl["net.ipv4.tcp_slow_start_after_idle"]
    ):
        _application_limited(sk)


def _application_limited(sk: TcpSock) -> None:
    """A whole RTO long the application did not fill the window: halfway to what it used."""
    if sk.ca_state == TCP_CA_OPEN and not sk.send_queue:
        used = max(sk.cwnd_used, tcp_init_cwnd(sk))
        if used < sk.cwnd:
            sk.ssthresh = tcp_current_ssthresh(sk)
            sk.cwnd = (sk.cwnd + used) >> 1
        sk.cwnd_used = 0
    sk.cwnd_stamp = sk.lsndtime


def tcp_cwnd_restart(sk: TcpSock, now: float) -> None:
    """The sender was idle: half the window for every RTO of it, no less than the initial one."""
    idle = now - sk.lsndtime
    restart = min(tcp_init_cwnd(sk), sk.cwnd)
    sk.ca.cwnd_event(sk, CA_EVENT_CWND_RESTART)
    sk.ssthresh = tcp_current_ssthresh(sk)
    rto = max(sk.rto, 0.001)
    cwnd = sk.cwnd
    idle -= rto
    while idle > 0.0 and cwnd > restart:
        cwnd >>= 1
        idle -= rto
    sk.cwnd = max(cwnd, restart)
    sk.cwnd_stamp = now
    sk.cwnd_used = 0


def tcp_slow_start_after_idle_check(sk: TcpSock, now: float) -> None:
    """Before new data is queued behind nothing: restart after more than an RTO of idleness."""
    if sk.rtx.skbs or not sk.lsndtime:
        return
    sk.ca.cwnd_event(sk, CA_EVENT_TX_START)
    if now - sk.lsndtime > sk.rto and sk.sk_stack.sysctl["net.ipv4.tcp_slow_start_after_idle"]:
        tcp_cwnd_restart(sk, now)
