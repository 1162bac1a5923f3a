"""What happens when a connection's timers expire (net/ipv4/tcp_timer.c).

Errors reach the user as `tcp_write_err` has it: the soft error that ICMP reported meanwhile, if
there was one, else ETIMEDOUT.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.family.const import SOCK_DEAD, TcpState
from steertag.inet.tcp import close, fastopen, output, recovery, retransmit, timewait
from steertag.inet.tcp.sock import (
    ICSK_TIME_LOSS_PROBE,
    ICSK_TIME_NONE,
    ICSK_TIME_PROBE0,
    ICSK_TIME_REO_TIMEOUT,
    ICSK_TIME_RETRANS,
    TCP_CA_DISORDER,
    TCP_CA_LOSS,
    TCP_CA_RECOVERY,
    TCP_RTO_MAX,
    TCP_RTO_MIN,
    TCP_TIMEOUT_INIT,
)
from steertag.inet.tcp.timer import (
    tcp_clamp_probe0_to_user_timeout,
    tcp_probe0_base,
    tcp_probe0_when,
    tcp_reset_keepalive_timer,
    tcp_reset_xmit_timer,
)

if TYPE_CHECKING:
    from steertag.inet.tcp.skb import TcpSkb
    from steertag.inet.tcp.sock import TcpSock

TCP_RESOURCE_PROBE_INTERVAL: Final = 0.5
"""Seconds after which what could not leave this host is tried again."""
TCP_TIMEWAIT_LEN: Final = 60.0
_ATO_MIN: Final = 0.04
_LEAST: Final = 0.001
_OPENING: Final = (TcpState.TCP_SYN_SENT, TcpState.TCP_SYN_RECV)
_IDLE: Final = (TcpState.TCP_CLOSE, TcpState.TCP_LISTEN)


# -- sending ------------------------------------------------------------------------------------


def tcp_write_timer(sk: TcpSock) -> None:
    """The one timer of everything that has to do with sending."""
    event = sk.pending
    if sk.sk_state in _IDLE or event == ICSK_TIME_NONE:
        return
    now = sk.sk_stack.clock()
    if event == ICSK_TIME_REO_TIMEOUT:
        recovery.tcp_rack_reo_timeout(sk, now)
    elif event == ICSK_TIME_LOSS_PROBE:
        retransmit.tcp_send_loss_probe(sk, now)
    elif event == ICSK_TIME_RETRANS:
        sk.pending = ICSK_TIME_NONE
        tcp_retransmit_timer(sk, now)
    elif event == ICSK_TIME_PROBE0:
        sk.pending = ICSK_TIME_NONE
        tcp_probe_timer(sk, now)


def tcp_retransmit_timer(sk: TcpSock, now: float) -> None:
    """The retransmission timeout (RFC 6298 section 5.4 to 5.7)."""
    if sk.fastopen_rsk is not None:
        fastopen.tcp_fastopen_synack_timer(sk, now)
        return
    skbs = sk.rtx.skbs
    if not skbs:
        return
    if not sk.snd_wnd and not sk.sk_flags & SOCK_DEAD and sk.sk_state not in _OPENING:
        _shrunk_window(sk, now)
        return
    sk.mib["TcpExtTCPTimeouts"] += 1
    if tcp_write_timeout(sk, now):
        return
    if not sk.retransmits:
        _count_failure(sk)
    recovery.tcp_enter_loss(sk)
    sk.retransmits += 1
    if not retransmit.tcp_retransmit_skb(sk, skbs[0], now, sk.mss_cache):
        tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, TCP_RESOURCE_PROBE_INTERVAL, now)
        return
    _back_off(sk, now)


def _shrunk_window(sk: TcpSock, now: float) -> None:
    """The peer took back window that was in use: its answers, not their content, keep us going."""
    skb = sk.rtx.skbs[0]
    if _probe0_timed_out(sk, skb, now):
        tcp_write_err(sk)
        return
    recovery.tcp_enter_loss(sk)
    retransmit.tcp_retransmit_skb(sk, sk.rtx.skbs[0], now, sk.mss_cache)
    _back_off(sk, now)


def _probe0_timed_out(sk: TcpSock, skb: TcpSkb, now: float) -> bool:
    """Has the peer with the closed window said nothing for too long?

    With TCP_USER_TIMEOUT answers alone don't do: what was sent is to be acknowledged by then.
    """
    waiting = now - (sk.retrans_stamp or skb.sent_at)
    limit = 2.0 * TCP_RTO_MAX
    if sk.user_timeout:
        if waiting > sk.user_timeout:
            return True
        limit = min(limit, sk.user_timeout)
    return now - sk.rcv_tstamp > limit and waiting > limit


def _back_off(sk: TcpSock, now: float) -> None:
    linear = sk.sk_stack.sysctl["net.ipv4.tcp_syn_linear_timeouts"]
    if sk.sk_state != TcpState.TCP_SYN_SENT or sk.retransmits > linear:
        sk.backoff += 1
        sk.rto = min(sk.rto * 2.0, TCP_RTO_MAX)
    tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, _clamp_to_user_timeout(sk, now), now)
    if retransmits_timed_out(sk, sk.sk_stack.sysctl["net.ipv4.tcp_retries1"] + 1, 0.0, now):
        _doubt_route(sk)


def _clamp_to_user_timeout(sk: TcpSock, now: float) -> float:
    if not sk.user_timeout or not sk.retrans_stamp:
        return sk.rto
    remaining = sk.user_timeout - (now - sk.retrans_stamp)
    return min(max(remaining, _LEAST), sk.rto)


def _doubt_route(sk: TcpSock) -> None:
    """The route may be what fails: look it up again with the next segment."""
    if output.tcp_rebuild_header(sk) is None:
        return  # sk_err_soft says why; what is sent meanwhile is as good as lost


def _count_failure(sk: TcpSock) -> None:
    """What was it that ended in a timeout?"""
    state = sk.ca_state
    kind = "Sack" if sk.sack_ok else "Reno"
    if state == TCP_CA_RECOVERY:
        name = f"TCP{kind}RecoveryFail"
    elif state == TCP_CA_LOSS:
        name = "TCPLossFailures"
    elif state == TCP_CA_DISORDER or sk.sacked_out:
        name = f"TCP{kind}Failures"
    else:
        return
    sk.mib["TcpExt" + name] += 1


# -- giving up ----------------------------------------------------------------------------------


def tcp_model_timeout(boundary: int, rto_base: float) -> float:
    """Seconds that `boundary` retransmissions, the first after `rto_base`, would take."""
    doublings = int(TCP_RTO_MAX / rto_base).bit_length() - 1
    if boundary <= doublings:
        return ((2 << boundary) - 1) * rto_base
    return ((2 << doublings) - 1) * rto_base + (boundary - doublings) * TCP_RTO_MAX


def retransmits_timed_out(sk: TcpSock, boundary: int, timeout: float, now: float) -> bool:
    """Has it been retransmitted for `timeout` seconds; or, 0.0, for as long as `boundary` times
    take? Time counts, not how often: a slow path has a longer RTO and the same patience.
    """
    if not sk.retransmits:
        return False
    if not timeout:
        base = TCP_TIMEOUT_INIT if sk.sk_state in _OPENING else TCP_RTO_MIN
        timeout = tcp_model_timeout(boundary, base)
    return now - sk.retrans_stamp >= timeout


def tcp_write_timeout(sk: TcpSock, now: float) -> bool:
    """Before another retransmission: is it enough? True: the connection is over."""
    sysctl = sk.sk_stack.sysctl
    expired = False
    if sk.sk_state in _OPENING:
        if sk.retransmits:
            _doubt_route(sk)
        retry_until = sk.syn_retries or sysctl["net.ipv4.tcp_syn_retries"]
        most = retry_until
        if sk.sk_state == TcpState.TCP_SYN_SENT:
            most += sysctl["net.ipv4.tcp_syn_linear_timeouts"]
        expired = sk.retransmits >= most
    else:
        if retransmits_timed_out(sk, sysctl["net.ipv4.tcp_retries1"], 0.0, now):
            _doubt_route(sk)
        retry_until = sysctl["net.ipv4.tcp_retries2"]
        if sk.sk_flags & SOCK_DEAD:
            alive = sk.rto < TCP_RTO_MAX
            retry_until = tcp_orphan_retries(sk, alive)
            do_reset = alive or not retransmits_timed_out(sk, retry_until, 0.0, now)
            if tcp_out_of_resources(sk, do_reset):
                return True
    if not expired:
        expired = retransmits_timed_out(sk, retry_until, sk.user_timeout, now)
    fastopen.tcp_fastopen_active_detect_blackhole(sk, expired, now)
    if expired:
        tcp_write_err(sk)
    return expired


def tcp_write_err(sk: TcpSock) -> None:
    """The peer doesn't answer: the connection ends, with ETIMEDOUT or what ICMP said."""
    sk.sk_err = sk.sk_err_soft or errno.ETIMEDOUT
    sk.mib["TcpExtTCPAbortOnTimeout"] += 1
    if not sk.sk_flags & SOCK_DEAD:
        sk.sk_error_report(sk)
    close.tcp_write_queue_purge(sk)
    close.tcp_done(sk)


def tcp_orphan_retries(sk: TcpSock, alive: bool) -> int:
    """How often a connection without a user may try."""
    retries = sk.sk_stack.sysctl["net.ipv4.tcp_orphan_retries"]
    if sk.sk_err_soft and not alive:
        retries = 0
    if not retries and alive:
        retries = 8  # some 100 seconds at an RTO of 200 ms
    return retries


def tcp_out_of_resources(sk: TcpSock, do_reset: bool) -> bool:
    """Are there too many orphans, or is memory gone? Then this one ends. True: it did.

    One that has been silent for long, or has data it can't deliver, counts double.
    """
    prot = sk.sk_prot
    orphans = prot.orphan_count.value if prot.orphan_count is not None else 0
    now = sk.sk_stack.clock()
    shift = 0
    if now - sk.lsndtime > 2 * TCP_RTO_MAX or not do_reset:
        shift += 1
    if sk.sk_err_soft:
        shift += 1
    most = sk.sk_stack.sysctl["net.ipv4.tcp_max_orphans"]
    memory = prot.memory_allocated
    exhausted = (
        memory is not None and prot.sysctl_mem is not None and memory.value > prot.sysctl_mem[2]
    )
    if orphans << shift <= most and not exhausted:
        return False
    # A reset where the peer may still be there: it need not wait for what will not come.
    if do_reset or now - sk.lsndtime <= TCP_TIMEWAIT_LEN or sk.snd_wnd:
        output.tcp_send_active_reset(sk)
    close.tcp_write_queue_purge(sk)
    close.tcp_done(sk)
    sk.mib["TcpExtTCPAbortOnMemory"] += 1
    return True


# -- probing ------------------------------------------------------------------------------------


def tcp_probe_timer(sk: TcpSock, now: float) -> None:
    """The peer's window is closed: ask (RFC 9293 section 3.8.6.1).

    A peer that answers is asked for ever; one that does not, as often as retransmissions would be,
    or for TCP_USER_TIMEOUT.
    """
    if sk.rtx or not sk.send_queue:
        sk.probes_out = 0
        sk.probes_since = 0.0
        return
    if not sk.probes_since:
        sk.probes_since = now
    elif sk.user_timeout and now - sk.probes_since >= sk.user_timeout:
        tcp_write_err(sk)
        return
    most = sk.sk_stack.sysctl["net.ipv4.tcp_retries2"]
    if sk.sk_flags & SOCK_DEAD:
        alive = tcp_probe0_when(sk) < TCP_RTO_MAX
        most = tcp_orphan_retries(sk, alive)
        if not alive and sk.backoff >= most:
            tcp_write_err(sk)
            return
        if tcp_out_of_resources(sk, True):
            return
    if sk.probes_out >= most:
        tcp_write_err(sk)
    else:
        tcp_send_probe0(sk, now)


def tcp_send_probe0(sk: TcpSock, now: float) -> None:
    """Probe, and set the timer for the next."""
    sk.mib["TcpExtTCPWinProbe"] += 1
    sent = output.tcp_write_wakeup(sk)
    if sk.rtx or not sk.send_queue:
        sk.probes_out = sk.backoff = 0
        sk.probes_since = 0.0
        return
    sk.probes_out += 1
    if sent >= 0:
        if sk.backoff < sk.sk_stack.sysctl["net.ipv4.tcp_retries2"]:
            sk.backoff += 1
        delay = tcp_probe0_when(sk)
    else:
        delay = TCP_RESOURCE_PROBE_INTERVAL
    delay = tcp_clamp_probe0_to_user_timeout(sk, delay, now)
    tcp_reset_xmit_timer(sk, ICSK_TIME_PROBE0, max(delay, 0.0) or tcp_probe0_base(sk), now)


# -- acknowledging ------------------------------------------------------------------------------


def tcp_delack_timer(sk: TcpSock) -> None:
    """A delayed acknowledgement is due (RFC 9293 section 3.8.6.3).

    The delay was in vain, no data went the other way to carry it: longer next time, unless the
    connection is a conversation, which it seems to be no more.
    """
    if sk.sk_state in _IDLE or not sk.ack_pending:
        return
    if sk.pingpong:
        sk.pingpong = False
        sk.ato = _ATO_MIN
    else:
        sk.ato = min(max(sk.ato, _ATO_MIN) * 2.0, sk.rto)
    output.tcp_send_ack(sk)
    sk.mib["TcpExtDelayedACKs"] += 1


# -- keepalive, and orphans in FIN-WAIT-2 -------------------------------------------------------


def tcp_keepalive_timer(sk: TcpSock) -> None:
    """Is the peer still there? And: how long may an orphan wait for the peer's FIN?"""
    state = sk.sk_state
    if state == TcpState.TCP_LISTEN:
        return
    if state == TcpState.TCP_FIN_WAIT2 and sk.sk_flags & SOCK_DEAD:
        _fin_wait2_over(sk)
        return
    if not sk.keepalive_on or state in (TcpState.TCP_CLOSE, TcpState.TCP_SYN_SENT):
        return
    idle_time = sk.keepalive_time_of
    if sk.rtx or sk.send_queue:  # the retransmission timer sees to it
        tcp_reset_keepalive_timer(sk, idle_time)
        return
    now = sk.sk_stack.clock()
    elapsed = now - max(sk.lrcvtime, sk.rcv_tstamp)
    if elapsed < idle_time - _LEAST:  # not by a rounding error
        tcp_reset_keepalive_timer(sk, idle_time - elapsed)
        return
    if _keepalive_failed(sk, elapsed):
        output.tcp_send_active_reset(sk)
        tcp_write_err(sk)
        return
    sk.mib["TcpExtTCPKeepAlive"] += 1
    if output.tcp_write_wakeup(sk) >= 0:
        sk.probes_out += 1
        tcp_reset_keepalive_timer(sk, sk.keepalive_intvl_of)
    else:
        tcp_reset_keepalive_timer(sk, TCP_RESOURCE_PROBE_INTERVAL)


def _keepalive_failed(sk: TcpSock, elapsed: float) -> bool:
    if sk.user_timeout:
        return elapsed >= sk.user_timeout and sk.probes_out > 0
    return sk.probes_out >= sk.keepalive_probes_of


def _fin_wait2_over(sk: TcpSock) -> None:
    """An orphan has waited for as long as a full sock may: what is left of its time a small one
    waits (tcp_time_wait); or with a negative TCP_LINGER2 the connection is reset.
    """
    if sk.linger2 >= 0:
        left = close.tcp_fin_time(sk) - TCP_TIMEWAIT_LEN
        if left > 0:
            timewait.tcp_time_wait(sk, TcpState.TCP_FIN_WAIT2, left)
            return
    output.tcp_send_active_reset(sk)
    close.tcp_done(sk)
