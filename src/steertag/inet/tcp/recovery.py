"""Loss recovery: the states of RFC 6582, 6675 and 5682, and the way between them.

After tcp_fastretrans_alert, tcp_process_loss and tcp_enter_loss of net/ipv4/tcp_input.c:

    OPEN      nothing out of the ordinary
    DISORDER  the peer has gaps, or something was sent again; nothing is known lost
    CWR       the window comes down, for ECN or a full local queue
    RECOVERY  the window comes down, what is lost is sent again
    LOSS      a retransmission timeout; or the peer has dropped what it said it had
"""

from __future__ import annotations

from typing import Final

from steertag.family.const import TcpState
from steertag.inet.tcp import output
from steertag.inet.tcp.ackstate import (
    FLAG_DATA_SACKED,
    FLAG_ECE,
    FLAG_LOST_RETRANS,
    FLAG_ORIG_SACK_ACKED,
    FLAG_SACK_RENEGING,
    FLAG_SET_XMIT_TIMER,
    FLAG_SND_UNA_ADVANCED,
    REXMIT_LOST,
    REXMIT_NEW,
    REXMIT_NONE,
    AckState,
)
from steertag.inet.tcp.cong.ops import CA_EVENT_LOSS
from steertag.inet.tcp.cwnd import (
    tcp_current_ssthresh,
    tcp_cwnd_reduction,
    tcp_cwnd_restart,
    tcp_cwnd_validate,
    tcp_ecn_queue_cwr,
    tcp_end_cwnd_reduction,
    tcp_enter_cwr,
    tcp_in_cwnd_reduction,
    tcp_init_cwnd,
    tcp_init_cwnd_reduction,
    tcp_set_ca_state,
    tcp_slow_start_after_idle_check,
    tcp_try_keep_open,
)
from steertag.inet.tcp.rack import (
    tcp_newreno_mark_lost,
    tcp_rack_detect_loss,
    tcp_rack_mark_lost,
    tcp_rack_skb_timeout,
)
from steertag.inet.tcp.retransmit import (
    tcp_limit_reno_sacked,
    tcp_retransmit_skb,
    tcp_simple_retransmit,
    tcp_xmit_retransmit_queue,
)
from steertag.inet.tcp.rtx import tcp_any_retrans_done, tcp_packets_in_flight
from steertag.inet.tcp.skb import TCPCB_SACKED_ACKED
from steertag.inet.tcp.sock import (
    ICSK_TIME_RETRANS,
    TCP_CA_CWR,
    TCP_CA_DISORDER,
    TCP_CA_LOSS,
    TCP_CA_OPEN,
    TCP_CA_RECOVERY,
    TCP_NAGLE_OFF,
    TcpSock,
)
from steertag.inet.tcp.timer import tcp_rearm_rto, tcp_reset_xmit_timer
from steertag.inet.tcp.undo import (
    tcp_init_undo,
    tcp_try_undo_dsack,
    tcp_try_undo_loss,
    tcp_try_undo_partial,
    tcp_try_undo_recovery,
)
from steertag.wire.seq import add, after, before

_MASK: Final = 0xFFFFFFFF
_RENEGE_DELAY: Final = 0.01

__all__ = [
    "tcp_any_retrans_done",
    "tcp_current_ssthresh",
    "tcp_cwnd_restart",
    "tcp_cwnd_validate",
    "tcp_enter_cwr",
    "tcp_enter_loss",
    "tcp_enter_recovery",
    "tcp_fastretrans_alert",
    "tcp_init_cwnd",
    "tcp_packets_in_flight",
    "tcp_process_tlp_ack",
    "tcp_rack_reo_timeout",
    "tcp_retransmit_skb",
    "tcp_simple_retransmit",
    "tcp_slow_start_after_idle_check",
    "tcp_xmit_recovery",
    "tcp_xmit_retransmit_queue",
]


# -- into recovery ------------------------------------------------------------------------------


def tcp_enter_recovery(sk: TcpSock, ece: bool) -> None:
    """Something is lost: begin to bring the window down."""
    sk.mib["TcpExtTCPSackRecovery" if sk.sack_ok else "TcpExtTCPRenoRecovery"] += 1
    sk.prior_ssthresh = 0
    tcp_init_undo(sk)
    if not tcp_in_cwnd_reduction(sk):
        if not ece:
            sk.prior_ssthresh = tcp_current_ssthresh(sk)
        tcp_init_cwnd_reduction(sk)
    tcp_set_ca_state(sk, TCP_CA_RECOVERY)


def tcp_enter_loss(sk: TcpSock) -> None:
    """The retransmission timer has expired, or the peer reneged: begin again with one segment."""
    now = sk.sk_stack.clock()
    state = sk.ca_state
    new_recovery = state < TCP_CA_RECOVERY
    reordered = sk.sacked_out
    _timeout_mark_lost(sk, now)
    if (
        state <= TCP_CA_DISORDER
        or not after(sk.high_seq, sk.snd_una)
        or (state == TCP_CA_LOSS and not sk.retransmits)
    ):
        sk.prior_ssthresh = tcp_current_ssthresh(sk)
        sk.prior_cwnd = sk.cwnd
        sk.ssthresh = sk.ca.ssthresh(sk)
        sk.ca.cwnd_event(sk, CA_EVENT_LOSS)
        tcp_init_undo(sk)
    sk.cwnd = tcp_packets_in_flight(sk) + sk.mss_cache
    sk.cwnd_cnt = 0
    sk.cwnd_stamp = now
    # A timeout in DISORDER: the reordering that was assumed was too much.
    initial = sk.sk_stack.sysctl["net.ipv4.tcp_reordering"]
    if state <= TCP_CA_DISORDER and reordered >= initial * sk.mss_cache:
        sk.reordering = min(sk.reordering, initial)
    tcp_set_ca_state(sk, TCP_CA_LOSS)
    sk.high_seq = sk.snd_nxt
    sk.tlp_high_seq = None
    tcp_ecn_queue_cwr(sk)
    # F-RTO (RFC 5682): for a new timeout, or a repeated one of the same octets.
    sk.frto = bool(sk.sk_stack.sysctl["net.ipv4.tcp_frto"]) and (new_recovery or sk.retransmits > 0)


def _timeout_mark_lost(sk: TcpSock, now: float) -> None:
    """All is lost but what the peer has, and what was sent too lately to say (RACK)."""
    rtx = sk.rtx
    rtx.trim()
    skbs = rtx.skbs
    if not skbs:
        return
    head = skbs[0]
    renege = head.sacked & TCPCB_SACKED_ACKED != 0
    if renege:
        sk.mib["TcpExtTCPSACKReneging"] += 1
        sk.is_sack_reneg = True
        rtx.renege()
    elif not sk.sack_ok:
        sk.sacked_out = 0
    by_time = sk.sack_ok and not renege
    for skb in skbs:
        if by_time and skb is not head and tcp_rack_skb_timeout(sk, skb, 0.0, now) > 0.0:
            continue
        rtx.mark_lost(skb)
    rtx.retransmit_seq = rtx.rack_seq = head.seq


# -- an acknowledgement that is not the usual one -----------------------------------------------


def tcp_fastretrans_alert(sk: TcpSock, st: AckState) -> None:
    """What a dubious acknowledgement means to the state; `st.rexmit` says what to send."""
    if not sk.rtx and sk.sacked_out:
        sk.sacked_out = 0
    if st.flag & FLAG_ECE:
        sk.prior_ssthresh = 0
    if _check_sack_reneging(sk, st):
        return
    state = sk.ca_state
    if state == TCP_CA_OPEN:
        sk.retrans_stamp = 0.0
    elif not before(sk.snd_una, sk.high_seq):
        if state == TCP_CA_CWR:
            # CWR is held until something beyond high_seq is acknowledged.
            if sk.snd_una != sk.high_seq:
                tcp_end_cwnd_reduction(sk, st.now)
                tcp_set_ca_state(sk, TCP_CA_OPEN)
        elif state == TCP_CA_RECOVERY:
            if not sk.sack_ok:
                sk.sacked_out = 0
            if tcp_try_undo_recovery(sk, st):
                return
            tcp_end_cwnd_reduction(sk, st.now)
    state = sk.ca_state
    if state == TCP_CA_RECOVERY:
        if not _in_recovery(sk, st):
            return
    elif state == TCP_CA_LOSS:
        _process_loss(sk, st)
        _identify_packet_loss(sk, st)
        if not (sk.ca_state == TCP_CA_OPEN or st.flag & FLAG_LOST_RETRANS):
            return
        if not _is_recovery_due(sk, st):
            return
    elif not _is_recovery_due(sk, st):
        return
    st.rexmit = REXMIT_LOST


def _check_sack_reneging(sk: TcpSock, st: AckState) -> bool:
    """The head of the queue is something that the peer said it had: it dropped it, most likely.

    A little time is given to an acknowledgement that is on its way (RFC 2018 section 8).
    """
    if not (st.flag & FLAG_SACK_RENEGING and st.flag & FLAG_SND_UNA_ADVANCED):
        return False
    delay = max(sk.srtt / 2.0, _RENEGE_DELAY)
    tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, delay, st.now)
    st.flag &= ~FLAG_SET_XMIT_TIMER
    return True


def _in_recovery(sk: TcpSock, st: AckState) -> bool:
    """An acknowledgement in RECOVERY. False: nothing is to be sent again."""
    if not st.flag & FLAG_SND_UNA_ADVANCED:
        if not sk.sack_ok:
            _add_reno_sack(sk, st)
    elif tcp_try_undo_partial(sk, st):
        return False
    if tcp_try_undo_dsack(sk, st.now):
        _try_to_open(sk, st)
    _identify_packet_loss(sk, st)
    if sk.ca_state != TCP_CA_RECOVERY:
        if not sk.lost_out:
            return False
        tcp_enter_recovery(sk, st.flag & FLAG_ECE != 0)
    return True


def _is_recovery_due(sk: TcpSock, st: AckState) -> bool:
    """An acknowledgement in another state. True: recovery has begun."""
    if not sk.sack_ok:
        if st.flag & FLAG_SND_UNA_ADVANCED:
            sk.sacked_out = 0
        _add_reno_sack(sk, st)
    if sk.ca_state <= TCP_CA_DISORDER:
        tcp_try_undo_dsack(sk, st.now)
    _identify_packet_loss(sk, st)
    if not sk.lost_out:
        _try_to_open(sk, st)
        return False
    tcp_enter_recovery(sk, st.flag & FLAG_ECE != 0)
    return True


def _try_to_open(sk: TcpSock, st: AckState) -> None:
    if not tcp_any_retrans_done(sk):
        sk.retrans_stamp = 0.0
    if st.flag & FLAG_ECE:
        tcp_enter_cwr(sk)
    if sk.ca_state != TCP_CA_CWR:
        tcp_try_keep_open(sk)


def _identify_packet_loss(sk: TcpSock, st: AckState) -> None:
    if not sk.rtx:
        return
    if not sk.sack_ok:
        tcp_newreno_mark_lost(sk, st.flag & FLAG_SND_UNA_ADVANCED != 0)
        return
    resent = sk.retrans_out
    if tcp_rack_mark_lost(sk, st.now):
        st.flag &= ~FLAG_SET_XMIT_TIMER
    if resent > sk.retrans_out:
        st.flag |= FLAG_LOST_RETRANS


def _add_reno_sack(sk: TcpSock, st: AckState) -> None:
    """Without SACK a duplicate ACK says that one segment more has left the network."""
    if not st.dup_acks:
        return
    before_it = sk.sacked_out
    sk.sacked_out += st.dup_acks * sk.mss_cache
    tcp_check_reno_reordering(sk)
    sk.delivered += max(sk.sacked_out - before_it, 0)


def tcp_check_reno_reordering(sk: TcpSock) -> None:
    """More duplicates than segments that can be missing: they come of reordering."""
    if not tcp_limit_reno_sacked(sk):
        return
    mss = sk.mss_cache
    out = (sk.snd_nxt - sk.snd_una) & _MASK
    most = sk.sk_stack.sysctl["net.ipv4.tcp_max_reordering"]
    sk.reordering = min(-(-out // mss) + sk.reordering, most)
    sk.reord_seen += 1
    sk.mib["TcpExtTCPRenoReorder"] += 1


def _process_loss(sk: TcpSock, st: AckState) -> None:
    """An acknowledgement in LOSS: F-RTO first, then slow start over what is lost."""
    recovered = not before(sk.snd_una, sk.high_seq)
    advanced = st.flag & FLAG_SND_UNA_ADVANCED
    if advanced and tcp_try_undo_loss(sk, st, False):
        return
    if sk.frto and _frto(sk, st, recovered):
        return
    if recovered:
        tcp_try_undo_recovery(sk, st)
        return
    if not sk.sack_ok:
        if after(sk.snd_nxt, sk.high_seq) and st.dup_acks:
            _add_reno_sack(sk, st)
        elif advanced:
            sk.sacked_out = 0
    st.rexmit = REXMIT_LOST


def _frto(sk: TcpSock, st: AckState, recovered: bool) -> bool:
    """RFC 5682 section 3.1: was the timeout spurious? True: this acknowledgement is dealt with."""
    # What was sent before the timeout and not again since is delivered: it was.
    if st.flag & FLAG_ORIG_SACK_ACKED and tcp_try_undo_loss(sk, st, True):
        return True
    if after(sk.snd_nxt, sk.high_seq):
        if st.flag & FLAG_DATA_SACKED or st.dup_acks:
            sk.frto = False  # step 3.a: the loss was real
    elif st.flag & FLAG_SND_UNA_ADVANCED and not recovered:
        sk.high_seq = sk.snd_nxt
        # Step 2.b: send new data and see what its acknowledgements say.
        if sk.send_queue and after(add(sk.snd_una, sk.snd_wnd), sk.snd_nxt):
            st.rexmit = REXMIT_NEW
            return True
        sk.frto = False
    return False


def tcp_xmit_recovery(sk: TcpSock, st: AckState) -> None:
    """Send what the acknowledgement asks for."""
    rexmit = st.rexmit
    # In SYN-SENT it isn't known yet what there is to acknowledge with.
    if rexmit == REXMIT_NONE or sk.sk_state == TcpState.TCP_SYN_SENT:
        return
    if rexmit == REXMIT_NEW:
        output.tcp_write_xmit(sk, st.now, TCP_NAGLE_OFF)
        if after(sk.snd_nxt, sk.high_seq):
            return
        sk.frto = False
    tcp_xmit_retransmit_queue(sk, st.now)


# -- timers and probes --------------------------------------------------------------------------


def tcp_rack_reo_timeout(sk: TcpSock, now: float) -> None:
    """The reordering window has passed (RFC 8985 section 6.3)."""
    in_flight = tcp_packets_in_flight(sk)
    tcp_rack_detect_loss(sk, now)
    if in_flight != tcp_packets_in_flight(sk):
        if sk.ca_state != TCP_CA_RECOVERY:
            tcp_enter_recovery(sk, False)
            tcp_cwnd_reduction(sk, sk.mss_cache, 0, False)
        tcp_xmit_retransmit_queue(sk, now)
    if sk.pending != ICSK_TIME_RETRANS:
        tcp_rearm_rto(sk, now)


def tcp_process_tlp_ack(sk: TcpSock, ack: int, st: AckState) -> None:
    """What does the acknowledgement say of the tail loss probe (RFC 8985 section 7.4)?"""
    high = sk.tlp_high_seq
    if high is None or before(ack, high):
        return
    if not sk.tlp_retrans:
        sk.tlp_high_seq = None  # the probe was new data
    elif st.is_tlp_dsack():
        sk.tlp_high_seq = None  # both the original and the probe arrived
    elif after(ack, high):
        # The probe repaired a loss that nobody has noticed: the window comes down for it.
        tcp_init_cwnd_reduction(sk)
        tcp_set_ca_state(sk, TCP_CA_CWR)
        tcp_end_cwnd_reduction(sk, st.now)
        tcp_try_keep_open(sk)
        sk.mib["TcpExtTCPLossProbeRecovery"] += 1
    elif st.is_pure_dupack():
        sk.tlp_high_seq = None  # the probe has arrived, and the original before it
