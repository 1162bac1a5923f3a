"""Sending again: one piece, what is lost, the tail (net/ipv4/tcp_output.c)."""

from __future__ import annotations

from typing import Final

from steertag.family.const import TcpState
from steertag.inet.tcp import output
from steertag.inet.tcp.cwnd import (
    tcp_current_ssthresh,
    tcp_in_cwnd_reduction,
    tcp_set_ca_state,
)
from steertag.inet.tcp.rate import tcp_rate_skb_sent
from steertag.inet.tcp.rtx import tcp_packets_in_flight
from steertag.inet.tcp.skb import (
    TCPCB_EVER_RETRANS,
    TCPCB_LOST,
    TCPCB_SACKED_ACKED,
    TCPCB_SACKED_RETRANS,
    TcpSkb,
)
from steertag.inet.tcp.sock import (
    ICSK_TIME_NONE,
    ICSK_TIME_REO_TIMEOUT,
    ICSK_TIME_RETRANS,
    TCP_CA_LOSS,
    TCP_NAGLE_OFF,
    TcpSock,
)
from steertag.inet.tcp.timer import tcp_rearm_rto, tcp_reset_xmit_timer
from steertag.wire.tcp import SYN

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_DONE: Final = TCPCB_SACKED_ACKED | TCPCB_SACKED_RETRANS


def _send_again(sk: TcpSock, skb: TcpSkb, now: float, limit: int | None) -> bool:
    """Transmit a piece of the queue once more, `limit` octets of it at most (None: all).

    Only what the peer's window takes, but a segment at the left edge of one that has shrunk. The
    rest of a piece that goes in part stays in the queue behind it. False: nothing left.
    """
    rtx = sk.rtx
    if skb is rtx.skbs[0]:
        rtx.trim()
    mss = output.tcp_current_mss(sk)
    room = (sk.snd_una + sk.snd_wnd - skb.seq) & _MASK
    if room >= _HALF or not room:
        if skb.seq != sk.snd_una:
            return False
        room = mss
    most = skb.length if limit is None else min(limit, skb.length)
    if most > room:
        most = room // mss * mss or room
    if 0 < most < skb.length:
        rtx.split(rtx.find(skb.seq), most)
    segments = max(-(-skb.length // mss), 1)
    sk.mib["TcpRetransSegs"] += segments
    if skb.flags & SYN:
        sk.mib["TcpExtTCPSynRetrans"] += 1
        if sk.sk_stack.sysctl["net.ipv4.tcp_ecn_fallback"]:
            sk.ecn_flags = 0  # perhaps somebody on the way dropped it for that (RFC 3168 6.1.1.1)
    sk.total_retrans += segments
    sk.bytes_retrans += skb.length
    tcp_rate_skb_sent(sk, skb, now)
    skb.retrans += 1
    left = output.tcp_transmit_skb(sk, skb, now)
    skb.sacked |= TCPCB_EVER_RETRANS
    if left:
        rtx.resent.append((skb.sent_at, skb.seq, skb.end_seq))
    else:
        sk.mib["TcpExtTCPRetransFail"] += segments
    return left


def tcp_retransmit_skb(sk: TcpSock, skb: TcpSkb, now: float, limit: int | None = None) -> bool:
    """Send a lost piece again, and count it. False: it could not leave this host."""
    left = _send_again(sk, skb, now, limit)
    if left:
        sk.rtx.mark_resent(skb)
    # The first attempt counts: patience with a host that can't send ends as with a silent peer.
    if not sk.retrans_stamp:
        sk.retrans_stamp = now
    if sk.undo_retrans < 0:
        sk.undo_retrans = 0
    sk.undo_retrans += (skb.end_seq - skb.seq) & _MASK
    return left


def tcp_xmit_retransmit_queue(sk: TcpSock, now: float) -> None:
    """Send again what is lost, as far as the congestion window goes."""
    rtx = sk.rtx
    skbs = rtx.skbs
    if not skbs or sk.lost_out <= 0:
        return
    rtx.trim()
    mss = output.tcp_current_mss(sk)
    rearm = False
    at = rtx.index(rtx.retransmit_seq)
    while at < len(skbs):
        skb = skbs[at]
        sacked = skb.sacked
        if sacked & _DONE or not sacked & TCPCB_LOST:
            at += 1
            continue
        quota = sk.cwnd - tcp_packets_in_flight(sk)
        if quota < (mss if mss < skb.length else skb.length) or quota <= 0:
            break
        name = "TCPSlowStartRetrans" if sk.ca_state == TCP_CA_LOSS else "TCPFastRetrans"
        limit = max(quota // mss, 1) * mss
        if not tcp_retransmit_skb(sk, skb, now, limit):
            break
        sk.mib["TcpExt" + name] += max(-(-skb.length // mss), 1)
        if tcp_in_cwnd_reduction(sk):
            sk.prr_out += (skb.end_seq - skb.seq) & _MASK
        if skb is skbs[0] and sk.pending != ICSK_TIME_REO_TIMEOUT:
            rearm = True
        at += 1
    rtx.retransmit_seq = skbs[at].seq if at < len(skbs) else sk.snd_nxt
    if rearm:
        tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, sk.rto, now)


def tcp_simple_retransmit(sk: TcpSock) -> None:
    """The path's MTU has shrunk: what was sent in segments larger than now is lost (RFC 1191).

    Called after `tcp_sync_mss`. The window isn't reduced: it was no congestion.
    """
    rtx = sk.rtx
    if not rtx or sk.sk_state == TcpState.TCP_SYN_SENT:
        return
    rtx.trim()
    now = sk.sk_stack.clock()
    mss = output.tcp_current_mss(sk)
    lost = sk.lost_out
    for skb in rtx.skbs:
        if skb.length > mss:
            rtx.mark_lost(skb)
    if sk.lost_out == lost and not sk.lost_out > sk.retrans_out:
        return
    if not sk.sack_ok:
        tcp_limit_reno_sacked(sk)
    tcp_non_congestion_loss_retransmit(sk, now)


def tcp_non_congestion_loss_retransmit(sk: TcpSock, now: float) -> None:
    """Send again what was marked lost and wasn't lost to congestion: the window isn't reduced."""
    if sk.ca_state != TCP_CA_LOSS:
        sk.high_seq = sk.snd_nxt
        sk.ssthresh = tcp_current_ssthresh(sk)
        sk.prior_ssthresh = 0
        sk.undo_marker = None
        tcp_set_ca_state(sk, TCP_CA_LOSS)
    tcp_xmit_retransmit_queue(sk, now)


def tcp_limit_reno_sacked(sk: TcpSock) -> bool:
    """Without SACK duplicates are only counted: never more than is out. True: it was cut."""
    out = (sk.snd_nxt - sk.snd_una) & _MASK
    holes = min(max(sk.lost_out, sk.mss_cache), out)
    if sk.sacked_out + holes > out:
        sk.sacked_out = max(out - holes, 0)
        return True
    return False


def tcp_send_loss_probe(sk: TcpSock, now: float) -> None:
    """Nothing came for two round trips: probe the tail (RFC 8985 section 7.3).

    With new data if there is some and the window takes it, else with the last segment sent.
    """
    if sk.tlp_high_seq is None and sk.rtx:
        sk.tlp_retrans = False
        if _probe_new(sk, now) or _probe_tail(sk, now):
            sk.tlp_high_seq = sk.snd_nxt
            sk.mib["TcpExtTCPLossProbes"] += 1
            sk.pending = ICSK_TIME_NONE  # the RTO counts from now
    tcp_rearm_rto(sk, now)


def _probe_new(sk: TcpSock, now: float) -> bool:
    if not sk.send_queue:
        return False
    skb = sk.send_queue[0]
    end = (sk.snd_una + sk.snd_wnd) & _MASK
    room = (end - skb.seq) & _MASK
    if room >= _HALF or room < min(skb.length, sk.mss_cache):
        return False
    before = sk.snd_nxt
    output.tcp_write_xmit(sk, now, TCP_NAGLE_OFF, 2)
    return sk.snd_nxt != before


def _probe_tail(sk: TcpSock, now: float) -> bool:
    rtx = sk.rtx
    rtx.trim()
    skb = rtx.skbs[-1]
    mss = output.tcp_current_mss(sk)
    if skb.length > mss:
        keep = (skb.length - 1) // mss * mss
        skb = rtx.split(len(rtx.skbs) - 1, keep)
    if not _send_again(sk, skb, now, mss):
        return False
    sk.tlp_retrans = True
    return True
