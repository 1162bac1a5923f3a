"""Acknowledgements: what the peer's ACK means to the sender (tcp_ack, net/ipv4/tcp_input.c).

The usual one, which acknowledges more while nothing is lost, takes `_usual`: some microseconds. All
others are worked through by `_dubious`, step by step as the kernel does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.inet.tcp import output, recovery
from steertag.inet.tcp.ackstate import (
    FLAG_ACKED,
    FLAG_CA_ALERT,
    FLAG_DATA,
    FLAG_DATA_ACKED,
    FLAG_DSACKING_ACK,
    FLAG_ECE,
    FLAG_FORWARD_PROGRESS,
    FLAG_NOT_DUP,
    FLAG_ORIG_SACK_ACKED,
    FLAG_RETRANS_DATA_ACKED,
    FLAG_SACK_RENEGING,
    FLAG_SET_XMIT_TIMER,
    FLAG_SND_UNA_ADVANCED,
    FLAG_SYN_ACKED,
    FLAG_WIN_UPDATE,
    AckState,
)
from steertag.inet.tcp.cong.ops import CA_ACK_ECE, CA_ACK_SLOWPATH, CA_ACK_WIN_UPDATE
from steertag.inet.tcp.cwnd import tcp_cwnd_reduction, tcp_in_cwnd_reduction
from steertag.inet.tcp.rack import tcp_rack_advance, tcp_rack_update_reo_wnd
from steertag.inet.tcp.rate import (
    tcp_rate_check_app_limited,
    tcp_rate_gen,
    tcp_rate_skb_sent,
)
from steertag.inet.tcp.rtt import (
    tcp_rtt_estimator,
    tcp_set_rto,
    tcp_update_rtt,
    tcp_update_rtt_min,
)
from steertag.inet.tcp.rtx import tcp_packets_in_flight
from steertag.inet.tcp.sack import tcp_check_sack_reordering, tcp_sacktag_write_queue
from steertag.inet.tcp.skb import (
    TCPCB_EVER_RETRANS,
    TCPCB_SACKED_ACKED,
    TCPCB_SACKED_RETRANS,
    TcpSkb,
)
from steertag.inet.tcp.sock import (
    ICSK_TIME_LOSS_PROBE,
    ICSK_TIME_PROBE0,
    TCP_CA_CWR,
    TCP_CA_OPEN,
    TCP_CA_RECOVERY,
    TCP_ECN_OK,
    TcpSock,
)
from steertag.inet.tcp.timer import (
    tcp_clamp_probe0_to_user_timeout,
    tcp_clear_probe_timer,
    tcp_probe0_when,
    tcp_rearm_rto,
    tcp_reset_xmit_timer,
    tcp_schedule_loss_probe,
)
from steertag.wire.seq import after, before
from steertag.wire.tcp import ECE, SYN

if TYPE_CHECKING:
    from steertag.inet.tcp.sack import Block
    from steertag.wire.tcp import Segment

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_DEFAULT_REORDERING: Final = 3
_REDUCING: Final = (TCP_CA_CWR, TCP_CA_RECOVERY)
_LEAST_RTT: Final = 1e-6
"""Seconds: a round trip of no time at all, on a clock that stands still, is a sample too."""

__all__ = ["tcp_ack", "tcp_event_new_data_sent", "tcp_packets_in_flight"]


def tcp_event_new_data_sent(sk: TcpSock, skb: TcpSkb, now: float) -> None:
    """A piece was transmitted for the first time: it is in flight now, and timed."""
    rtx = sk.rtx
    fresh = not rtx.skbs
    tcp_rate_skb_sent(sk, skb, now)
    rtx.append(skb)
    sk.snd_nxt = skb.end_seq
    if sk.ca_state in _REDUCING:
        sk.prr_out += (skb.end_seq - skb.seq) & _MASK
    sk.mib["TcpExtTCPOrigDataSent"] += (
        1 if skb.length <= sk.mss_cache else (-(-skb.length // sk.mss_cache))
    )
    if fresh or sk.pending == ICSK_TIME_LOSS_PROBE:
        tcp_rearm_rto(sk, now)


def tcp_ack(
    sk: TcpSock, seg: Segment, now: float, sack_blocks: tuple[Block, ...], *, data: bool
) -> bool:
    """Take an acknowledgement: queue, round trip, scoreboard, congestion, timers, retransmissions.

    New data is the caller's to send (tcp_data_snd_check).

    Args:
        seg: with ACK. Its window is scaled here, unless it is a SYN.
        now: seconds.
        sack_blocks: of its SACK option, as they came.
        data: it carries data, so that it is no duplicate ACK (RFC 5681 section 2).

    Returns False for one that is not acceptable: older than the largest window, or of what was
    never sent (RFC 9293 section 3.10.7.4, RFC 5961 section 5.2).
    """
    una = sk.snd_una
    octets = (seg.ack_seq - una) & _MASK
    if octets >= _HALF:
        if before(seg.ack_seq, (una - min(sk.max_window, sk.bytes_acked)) & _MASK):
            return False
        if sack_blocks and sk.sack_ok:
            _old_ack(sk, seg, now, sack_blocks)
        return True
    if octets > (sk.snd_nxt - una) & _MASK:
        return False
    sk.rcv_tstamp = now
    if (
        octets
        and sk.ca_state == TCP_CA_OPEN
        and not sack_blocks
        and not sk.sacked_out
        and not sk.lost_out
        and not sk.retrans_out
        and sk.srtt
        and sk.tlp_high_seq is None
        and not (seg.flags & ECE and sk.ecn_flags)
        and not seg.flags & SYN
    ):
        _usual(sk, seg, now, octets)
    else:
        _dubious(sk, seg, now, sack_blocks if sk.sack_ok else (), data)
    return True


# -- the usual one ------------------------------------------------------------------------------


def _usual(sk: TcpSock, seg: Segment, now: float, octets: int) -> None:
    """More is acknowledged, and nothing is out of the ordinary.

    The head of the queue may be acknowledged in part: it is left as it is, with `snd_una` in its
    middle, which costs nothing (RtxQueue.trim is called before anything is tagged).
    """
    window = seg.window << sk.snd_wscale
    if window != sk.snd_wnd:
        sk.snd_wnd = window
        if window > sk.max_window:
            _larger_window(sk, window)
    sk.snd_wl1 = seg.seq
    ack = sk.snd_una = seg.ack_seq
    sk.bytes_acked += octets
    sk.delivered += octets
    sk.mib["TcpExtTCPHPAcks"] += 1
    sk.retransmits = sk.probes_out = sk.sk_err_soft = 0
    rtx = sk.rtx
    gone = rtx.pop_acked(ack)
    skbs = rtx.skbs
    first = gone[0] if gone else skbs[0]
    last = first
    if skbs and skbs[0].seq != ack and (ack - skbs[0].seq) & _MASK < _HALF:
        last = skbs[0]  # in part
    elif gone:
        last = gone[-1]
    rtt = -1.0
    if not (first.sacked | last.sacked) & TCPCB_EVER_RETRANS:
        rtt = now - last.sent_at or _LEAST_RTT
        tcp_update_rtt_min(sk, rtt, now)
        tcp_rtt_estimator(sk, now - first.sent_at or _LEAST_RTT)
        tcp_set_rto(sk)
        sk.backoff = 0
        sk.rack_advanced = True
        sk.rack_rtt = rtt
        sk.rack_xmit_at = last.sent_at
        sk.rack_end_seq = ack
    elif sk.ts_ok:
        tcp_update_rtt(sk, now, -1.0, -1.0, -1.0, seg.tsecr)
    if not sk.send_queue:
        tcp_rate_check_app_limited(sk)
    tcp_rate_gen(sk, last, now)
    ca = sk.ca
    ca.pkts_acked(sk, octets, rtt, now)
    ca.cong_avoid(sk, ack, octets, now)
    sk.cwnd_stamp = now
    if sk.dst is not None:
        sk.dst.confirm()
    if not skbs:
        tcp_rearm_rto(sk, now)
        if sk.send_queue:
            _ack_probe(sk, now)
    elif not tcp_schedule_loss_probe(sk, now, True):
        tcp_rearm_rto(sk, now)


# -- every other --------------------------------------------------------------------------------


def _old_ack(sk: TcpSock, seg: Segment, now: float, blocks: tuple[Block, ...]) -> None:
    """One that was overtaken may still tell of what arrived."""
    st = AckState(now, sk.snd_una, sk.delivered, sk.lost)
    sk.rtx.trim()
    tcp_sacktag_write_queue(sk, seg.ack_seq, blocks, st)
    recovery.tcp_fastretrans_alert(sk, st)
    _count_delivered(sk, st)
    recovery.tcp_xmit_recovery(sk, st)


def _dubious(sk: TcpSock, seg: Segment, now: float, blocks: tuple[Block, ...], data: bool) -> None:
    ack = seg.ack_seq
    st = AckState(now, sk.snd_una, sk.delivered, sk.lost)
    st.tsecr = seg.tsecr if seg.tsval is not None else None
    if data:
        st.flag |= FLAG_DATA
    in_queue = bool(sk.rtx.skbs)
    sk.rtx.trim()
    st.prior_fack = sk.rtx.highest_sack
    if ack != st.prior_una:
        st.flag |= FLAG_SND_UNA_ADVANCED
        sk.retransmits = 0
    _ack_update_window(sk, seg, st)
    if blocks:
        tcp_sacktag_write_queue(sk, ack, blocks, st)
    if sk.ecn_flags & TCP_ECN_OK and seg.flags & (ECE | SYN) == ECE:
        st.flag |= FLAG_ECE
    sk.ca.in_ack_event(sk, _ack_events(st.flag))
    sk.sk_err_soft = 0
    sk.probes_out = 0
    if not in_queue:
        _nothing_in_flight(sk, ack, st)
        return
    tcp_rate_check_app_limited(sk)
    _clean_rtx_queue(sk, ack, st)
    tcp_rack_update_reo_wnd(sk, st.prior_delivered)
    recovery.tcp_process_tlp_ack(sk, ack, st)
    if _is_dubious(sk, st.flag):
        if not st.flag & (FLAG_SND_UNA_ADVANCED | FLAG_NOT_DUP | FLAG_DSACKING_ACK):
            st.dup_acks = 1
        recovery.tcp_fastretrans_alert(sk, st)
    if st.flag & FLAG_SET_XMIT_TIMER and not tcp_schedule_loss_probe(sk, now, True):
        tcp_rearm_rto(sk, now)
    if st.flag & FLAG_FORWARD_PROGRESS and sk.dst is not None:
        sk.dst.confirm()
    _count_delivered(sk, st)
    if st.newest is not None:
        tcp_rate_gen(sk, st.newest, now)
    _cong_control(sk, ack, st)
    recovery.tcp_xmit_recovery(sk, st)
    if not sk.rtx.skbs and sk.send_queue:
        _ack_probe(sk, now)


def _ack_events(flag: int) -> int:
    events = CA_ACK_SLOWPATH
    if flag & FLAG_WIN_UPDATE:
        events |= CA_ACK_WIN_UPDATE
    if flag & FLAG_ECE:
        events |= CA_ACK_ECE
    return events


def _is_dubious(sk: TcpSock, flag: int) -> bool:
    return not flag & FLAG_NOT_DUP or flag & FLAG_CA_ALERT != 0 or sk.ca_state != TCP_CA_OPEN


def _ack_update_window(sk: TcpSock, seg: Segment, st: AckState) -> None:
    """Take the window, unless the segment was overtaken (RFC 9293 section 3.10.7.4, SND.WL1)."""
    window = seg.window
    if not seg.flags & SYN:
        window <<= sk.snd_wscale
    ack = seg.ack_seq
    if (
        after(ack, sk.snd_una)
        or after(seg.seq, sk.snd_wl1)
        or (seg.seq == sk.snd_wl1 and (window > sk.snd_wnd or not window))
    ):
        sk.snd_wl1 = seg.seq
        if window != sk.snd_wnd:
            st.flag |= FLAG_WIN_UPDATE
            sk.snd_wnd = window
            if window > sk.max_window:
                _larger_window(sk, window)
    sk.bytes_acked += (ack - sk.snd_una) & _MASK
    sk.snd_una = ack


def _larger_window(sk: TcpSock, window: int) -> None:
    # Segments are at most half of the largest window: are they held by it?
    held = sk.mss_cache >= sk.max_window >> 1
    sk.max_window = window
    if held and sk.pmtu:
        output.tcp_sync_mss(sk, sk.pmtu)


def _nothing_in_flight(sk: TcpSock, ack: int, st: AckState) -> None:
    """Nothing was out: an answer to a probe, or a window update."""
    if st.flag & FLAG_DSACKING_ACK:
        recovery.tcp_fastretrans_alert(sk, st)
        _count_delivered(sk, st)
    if sk.send_queue:
        _ack_probe(sk, st.now)
    recovery.tcp_process_tlp_ack(sk, ack, st)


def _ack_probe(sk: TcpSock, now: float) -> None:
    """Does the window take what waits now? If so no probes; if not the next one is due later."""
    end = (sk.snd_una + sk.snd_wnd) & _MASK
    if not after(sk.send_queue[0].end_seq, end):
        sk.backoff = 0
        sk.probes_since = 0.0
        tcp_clear_probe_timer(sk)
        return
    when = tcp_clamp_probe0_to_user_timeout(sk, tcp_probe0_when(sk), now)
    tcp_reset_xmit_timer(sk, ICSK_TIME_PROBE0, when, now)


# -- the queue ----------------------------------------------------------------------------------


def _clean_rtx_queue(sk: TcpSock, ack: int, st: AckState) -> None:
    """Take what is acknowledged off the queue, and the round trip from it."""
    rtx = sk.rtx
    now = st.now
    head_before = rtx.skbs[0]
    reord = st.prior_fack
    gone = rtx.pop_acked(ack)
    first_at = last_at = 0.0
    for skb in gone:
        first_at, last_at, reord = _acked_one(sk, skb, st, first_at, last_at, reord)
    partial = _partly_acked(sk, ack)
    if partial is not None:
        sacked = partial.sacked
        if sacked & (TCPCB_EVER_RETRANS | TCPCB_SACKED_RETRANS):
            st.flag |= FLAG_RETRANS_DATA_ACKED
        elif not sacked & TCPCB_SACKED_ACKED:
            last_at = partial.sent_at
            first_at = first_at or last_at
            if before(partial.seq, reord):
                reord = partial.seq
            if not after(ack, sk.high_seq):
                st.flag |= FLAG_ORIG_SACK_ACKED
        if not sacked & TCPCB_SACKED_ACKED:
            octets = (ack - partial.seq) & _MASK
            sk.delivered += octets - (partial.flags & SYN) // SYN
            tcp_rack_advance(sk, sacked, ack, partial.sent_at, now)
            st.delivered_one(partial)
        st.flag |= FLAG_DATA_ACKED
    rtx.trim()
    if rtx.skbs and rtx.skbs[0].sacked & TCPCB_SACKED_ACKED:
        st.flag |= FLAG_SACK_RENEGING
    rtt_ok = _update_rtt(sk, st, first_at, last_at)
    if st.flag & FLAG_ACKED:
        st.flag |= FLAG_SET_XMIT_TIMER
        if not sk.sack_ok:
            _remove_reno_sacks(sk, st)
        elif before(reord, st.prior_fack):
            tcp_check_sack_reordering(sk, reord, False)
    elif rtt_ok and st.first_sackt and st.first_sackt < head_before.sent_at:
        st.flag |= FLAG_SET_XMIT_TIMER  # the head was sent later than what was just measured
    latest = last_at or st.last_sackt
    sk.ca.pkts_acked(sk, sk.delivered - st.prior_delivered, now - latest if latest else -1.0, now)


def _acked_one(
    sk: TcpSock, skb: TcpSkb, st: AckState, first_at: float, last_at: float, reord: int
) -> tuple[float, float, int]:
    """A piece that is acknowledged as a whole: what it says of the path."""
    sacked = skb.sacked
    if sacked & (TCPCB_EVER_RETRANS | TCPCB_SACKED_RETRANS):
        if sacked & TCPCB_SACKED_RETRANS or not sacked & TCPCB_SACKED_ACKED:
            st.flag |= FLAG_RETRANS_DATA_ACKED
    elif not sacked & TCPCB_SACKED_ACKED:
        last_at = skb.sent_at
        first_at = first_at or last_at
        if before(skb.seq, reord):
            reord = skb.seq
        if not after(skb.end_seq, sk.high_seq):
            st.flag |= FLAG_ORIG_SACK_ACKED
    if not sacked & TCPCB_SACKED_ACKED:
        sk.delivered += ((skb.end_seq - skb.seq) & _MASK) - (skb.flags & SYN) // SYN
        if sk.sack_ok:
            tcp_rack_advance(sk, sacked, skb.end_seq, skb.sent_at, st.now)
        st.delivered_one(skb)
    if skb.flags & SYN:
        st.flag |= FLAG_SYN_ACKED
        sk.retrans_stamp = 0.0
        if skb.length:
            st.flag |= FLAG_DATA_ACKED
    else:
        st.flag |= FLAG_DATA_ACKED
    return first_at, last_at, reord


def _partly_acked(sk: TcpSock, ack: int) -> TcpSkb | None:
    skbs = sk.rtx.skbs
    if not skbs or skbs[0].seq == ack or not before(skbs[0].seq, ack):
        return None
    return skbs[0]


def _update_rtt(sk: TcpSock, st: AckState, first_at: float, last_at: float) -> bool:
    """The samples of this acknowledgement (Karn: of what was sent once only)."""
    now = st.now
    seq_rtt = ca_rtt = sack_rtt = -1.0
    if first_at and not st.flag & FLAG_RETRANS_DATA_ACKED:
        seq_rtt = max(now - first_at, _LEAST_RTT)
        ca_rtt = max(now - last_at, _LEAST_RTT)
    if st.first_sackt:
        sack_rtt = max(now - st.first_sackt, _LEAST_RTT)
        ca_rtt = max(now - st.last_sackt, _LEAST_RTT)
    tsecr = st.tsecr if st.flag & FLAG_ACKED else None
    return tcp_update_rtt(sk, now, seq_rtt, sack_rtt, ca_rtt, tsecr)


def _remove_reno_sacks(sk: TcpSock, st: AckState) -> None:
    """Without SACK: what is acknowledged now was counted when its duplicates came."""
    octets = (sk.snd_una - st.prior_una) & _MASK
    mss = sk.mss_cache
    counted = min(sk.sacked_out, max(octets - mss, 0))
    sk.delivered -= counted
    sk.sacked_out = 0 if octets - mss >= sk.sacked_out else sk.sacked_out - max(octets - mss, 0)
    recovery.tcp_check_reno_reordering(sk)


# -- congestion ---------------------------------------------------------------------------------


def _count_delivered(sk: TcpSock, st: AckState) -> None:
    delivered = sk.delivered - st.prior_delivered
    if delivered > 0:
        segments = -(-delivered // sk.mss_cache)
        sk.mib["TcpExtTCPDelivered"] += segments
        if st.flag & FLAG_ECE:
            sk.delivered_ce += delivered
            sk.mib["TcpExtTCPDeliveredCE"] += segments


def _cong_control(sk: TcpSock, ack: int, st: AckState) -> None:
    """Reduce, or grow, by what was delivered."""
    delivered = sk.delivered - st.prior_delivered
    if tcp_in_cwnd_reduction(sk):
        tcp_cwnd_reduction(
            sk, delivered, sk.lost - st.prior_lost, st.flag & FLAG_SND_UNA_ADVANCED != 0
        )
        return
    # With much reordering any progress counts, else only what is acknowledged in order.
    progress = FLAG_FORWARD_PROGRESS if sk.reordering > _DEFAULT_REORDERING else FLAG_DATA_ACKED
    if st.flag & progress and delivered > 0:
        sk.ca.cong_avoid(sk, ack, delivered, st.now)
        sk.cwnd_stamp = st.now
