"""Setting a connection's timers (inet_connection_sock.c); what they do is in timeout.py.

One timer serves everything that has to do with sending: `sk.pending` (ICSK_TIME_*) says for what.
It is put off with every acknowledgement, which costs an assignment (family/timer.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from steertag.family.const import TcpState
from steertag.family.timer import Timer
from steertag.inet.tcp.sock import (
    ICSK_TIME_LOSS_PROBE,
    ICSK_TIME_NONE,
    ICSK_TIME_PROBE0,
    ICSK_TIME_REO_TIMEOUT,
    ICSK_TIME_RETRANS,
    TCP_CA_CWR,
    TCP_CA_OPEN,
    TCP_RTO_MAX,
    TCP_RTO_MIN,
    TCP_TIMEOUT_INIT,
)

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock

TCP_TIMEOUT_MIN: Final = 0.002
"""Seconds that a timer which is finer than the RTO is given at least."""
_LEAST: Final = 0.001
_MASK: Final = 0xFFFFFFFF


def tcp_init_xmit_timers(sk: TcpSock) -> None:
    """Make the three timers."""
    from steertag.inet.tcp import timeout  # what expires acts on everything, which sets timers

    base = sk.sk_stack.timers
    sk.retrans_timer = Timer(base, partial(timeout.tcp_write_timer, sk))
    sk.delack_timer = Timer(base, partial(timeout.tcp_delack_timer, sk))
    sk.keepalive_timer = Timer(base, partial(timeout.tcp_keepalive_timer, sk))


def tcp_clear_xmit_timers(sk: TcpSock) -> None:
    """None of them is set any more."""
    sk.pending = ICSK_TIME_NONE
    sk.ack_pending = False
    sk.retrans_timer.delete()
    sk.delack_timer.delete()
    sk.keepalive_timer.delete()


def tcp_reset_xmit_timer(sk: TcpSock, what: int, delay: float, now: float) -> None:
    """Have the timer expire for `what` in `delay` seconds, 120 at most."""
    sk.pending = what
    sk.retrans_timer.mod(now + (delay if delay < TCP_RTO_MAX else TCP_RTO_MAX))


def tcp_clear_retrans_timer(sk: TcpSock) -> None:
    sk.pending = ICSK_TIME_NONE
    sk.retrans_timer.delete()


def tcp_clear_probe_timer(sk: TcpSock) -> None:
    if sk.pending == ICSK_TIME_PROBE0:
        tcp_clear_retrans_timer(sk)


def tcp_rto_delta(sk: TcpSock, now: float) -> float:
    """Seconds from now until the oldest unacknowledged octets time out; may be negative."""
    return sk.rtx.skbs[0].sent_at + sk.rto - now


def tcp_rearm_rto(sk: TcpSock, now: float) -> None:
    """Restart the retransmission timer, or stop it if nothing is in flight (RFC 6298 section 5).

    Where it takes the place of a probe's or a reordering timer it counts from when the head was
    sent.
    """
    if sk.fastopen_rsk is not None:  # the SYN-ACK's timer runs
        return
    if not sk.rtx.skbs:
        sk.pending = ICSK_TIME_NONE
        sk.retrans_timer.delete()
        return
    rto = sk.rto
    if sk.pending == ICSK_TIME_REO_TIMEOUT or sk.pending == ICSK_TIME_LOSS_PROBE:
        rto = tcp_rto_delta(sk, now)
        if rto < _LEAST:
            rto = _LEAST
    tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, rto, now)


def tcp_schedule_loss_probe(sk: TcpSock, now: float, advancing_rto: bool = False) -> bool:
    """Set the timer for a tail loss probe in two round trips (RFC 8985 section 7.2).

    Not without SACK, not in recovery; not when the RTO would come first anyway: then it is set for
    the RTO's time. With one segment in flight the peer's delayed acknowledgement is waited for.

    Args:
        advancing_rto: the RTO counts from now on (an acknowledgement came).
    """
    state = sk.ca_state
    if not sk.sack_ok or (state != TCP_CA_OPEN and state != TCP_CA_CWR):
        return False
    skbs = sk.rtx.skbs
    if not skbs or sk.fastopen_rsk is not None:
        return False
    if sk.net.early_retrans[0] < 3:
        return False
    srtt = sk.srtt
    if srtt:
        delay = 2.0 * srtt
        if (sk.snd_nxt - sk.snd_una) & _MASK <= sk.mss_cache:
            delay += TCP_RTO_MIN
        else:
            delay += TCP_TIMEOUT_MIN
    else:
        delay = TCP_TIMEOUT_INIT
    rto = sk.rto if advancing_rto else skbs[0].sent_at + sk.rto - now
    if 0.0 < rto < delay:
        delay = rto
    sk.pending = ICSK_TIME_LOSS_PROBE
    sk.retrans_timer.mod(now + (delay if delay < TCP_RTO_MAX else TCP_RTO_MAX))
    return True


# -- zero windows -------------------------------------------------------------------------------


def tcp_probe0_base(sk: TcpSock) -> float:
    """Seconds until the first probe of a closed window."""
    return max(sk.rto, TCP_RTO_MIN)


def tcp_probe0_when(sk: TcpSock) -> float:
    """Seconds until the next: twice as long each time, 120 at most."""
    return min(tcp_probe0_base(sk) * (1 << min(sk.backoff, 16)), TCP_RTO_MAX)


def tcp_clamp_probe0_to_user_timeout(sk: TcpSock, when: float, now: float) -> float:
    """Not later than TCP_USER_TIMEOUT."""
    if not sk.user_timeout or not sk.probes_since:
        return when
    remaining = sk.user_timeout - max(now - sk.probes_since, 0.0)
    return min(max(remaining, TCP_TIMEOUT_MIN), when)


# -- keepalive ----------------------------------------------------------------------------------


def tcp_reset_keepalive_timer(sk: TcpSock, seconds: float) -> None:
    sk.keepalive_timer.mod(sk.sk_stack.clock() + seconds)


def tcp_set_keepalive(sk: TcpSock, on: bool) -> None:
    """SO_KEEPALIVE was set or cleared; `sk.keepalive_on` follows."""
    was, sk.keepalive_on = sk.keepalive_on, on
    if sk.sk_state in (TcpState.TCP_CLOSE, TcpState.TCP_LISTEN):
        return
    if on and not was:
        tcp_reset_keepalive_timer(sk, sk.keepalive_time_of)
    elif not on:
        sk.keepalive_timer.delete()
