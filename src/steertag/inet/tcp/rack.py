"""RACK: loss found by time (RFC 8985; net/ipv4/tcp_recovery.c).

What was sent before something that has been delivered meanwhile, by more than the reordering
window, is lost. Pieces are looked at in the order they were sent, which is two orders: that of
their first transmission, the queue's own, and that of retransmissions (`RtxQueue.resent`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.inet.tcp.skb import (
    TCPCB_EVER_RETRANS,
    TCPCB_LOST,
    TCPCB_SACKED_ACKED,
    TCPCB_SACKED_RETRANS,
)
from steertag.inet.tcp.sock import ICSK_TIME_REO_TIMEOUT, TCP_CA_RECOVERY
from steertag.inet.tcp.timer import TCP_TIMEOUT_MIN, tcp_reset_xmit_timer

if TYPE_CHECKING:
    from steertag.inet.tcp.skb import TcpSkb
    from steertag.inet.tcp.sock import TcpSock

TCP_RACK_RECOVERY_THRESH: Final = 16
_MOST_STEPS: Final = 255
_NO_DUPTHRESH: Final = 4
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_TAGS: Final = TCPCB_SACKED_ACKED | TCPCB_LOST | TCPCB_SACKED_RETRANS
_IN_FLIGHT: Final = (0, TCPCB_SACKED_RETRANS, TCPCB_LOST | TCPCB_SACKED_RETRANS)
_SEEN: Final = TCPCB_SACKED_ACKED | TCPCB_LOST | TCPCB_EVER_RETRANS


def tcp_rack_advance(sk: TcpSock, sacked: int, end_seq: int, sent_at: float, now: float) -> None:
    """A piece was delivered: is it the one that was sent last? (section 6.2, steps 1 and 2)

    One that was retransmitted and comes back sooner than the least round trip is the answer to its
    first transmission.
    """
    rtt = now - sent_at
    if sacked & TCPCB_EVER_RETRANS and rtt < sk.rtt_min:
        return
    sk.rack_advanced = True
    sk.rack_rtt = rtt
    latest = sk.rack_xmit_at
    if sent_at > latest or (sent_at == latest and (sk.rack_end_seq - end_seq) & _MASK >= _HALF):
        sk.rack_xmit_at = sent_at
        sk.rack_end_seq = end_seq


def tcp_rack_reo_wnd(sk: TcpSock) -> float:
    """Seconds that reordering may delay a segment (section 6.2, step 4).

    None while no reordering was seen and there is other evidence of loss: recovery has begun, or
    as many segments as `reordering` says (3) were delivered behind the gap.
    """
    if not sk.reord_seen:
        if sk.ca_state >= TCP_CA_RECOVERY:
            return 0.0
        if (
            sk.sacked_out >= sk.reordering * sk.mss_cache
            and not sk.sk_stack.sysctl["net.ipv4.tcp_recovery"] & _NO_DUPTHRESH
        ):
            return 0.0
    window = sk.rtt_min * 0.25 * sk.rack_reo_steps
    return window if window < sk.srtt else sk.srtt


def tcp_rack_skb_timeout(sk: TcpSock, skb: TcpSkb, reo_wnd: float, now: float) -> float:
    """Seconds until the piece counts as lost; not positive: it does."""
    return sk.rack_rtt + reo_wnd - (now - skb.sent_at)


def tcp_rack_detect_loss(sk: TcpSock, now: float) -> float:
    """Mark what is lost by now (step 5).

    Returns seconds until more may be lost, 0.0 if nothing waits for that.
    """
    sk.rtx.trim()
    overdue = now - sk.rack_rtt - tcp_rack_reo_wnd(sk)
    waits = _originals(sk, overdue)
    waits = _resent(sk, overdue) or waits
    if not waits:
        return 0.0
    # All that waits was sent by rack_xmit_at: one timer for the last of them, as the RFC has it.
    return max(sk.rack_xmit_at - overdue, TCP_TIMEOUT_MIN)


def _sent_before_rack(sk: TcpSock, sent_at: float, end_seq: int) -> bool:
    latest = sk.rack_xmit_at
    return sent_at < latest or (sent_at == latest and (end_seq - sk.rack_end_seq) & _MASK >= _HALF)


def _originals(sk: TcpSock, overdue: float) -> bool:
    """Those sent once, from the cursor on. True: some wait for the reordering window."""
    rtx = sk.rtx
    skbs = rtx.skbs
    if not skbs:
        return False
    at = rtx.index(rtx.rack_seq)
    count = len(skbs)
    waits = False
    while at < count:
        skb = skbs[at]
        if not skb.sacked & _SEEN:
            if not _sent_before_rack(sk, skb.sent_at, skb.end_seq):
                break
            if skb.sent_at > overdue:
                waits = True
                break
            rtx.mark_lost(skb)
        at += 1
    rtx.rack_seq = skbs[at].seq if at < count else sk.snd_nxt
    return waits


def _resent(sk: TcpSock, overdue: float) -> bool:
    """Retransmissions, oldest first. True: some wait for the reordering window."""
    rtx = sk.rtx
    resent = rtx.resent
    skbs = rtx.skbs
    una = sk.snd_una
    while resent:
        sent_at, start, end = resent[0]
        if (una - end) & _MASK >= _HALF and skbs:
            waiting = [
                skb
                for skb in _pieces(sk, start, end)
                if skb.sent_at == sent_at and skb.sacked & _TAGS in _IN_FLIGHT
            ]
            if waiting:
                if not _sent_before_rack(sk, sent_at, waiting[0].end_seq):
                    return False
                if sent_at > overdue:
                    return True
                for skb in waiting:
                    rtx.mark_lost(skb)
        resent.popleft()
    return False


def _pieces(sk: TcpSock, start: int, end: int) -> list[TcpSkb]:
    """What of start..end is in the queue."""
    rtx = sk.rtx
    skbs = rtx.skbs
    at = rtx.find(start)
    found = []
    while at < len(skbs) and (skbs[at].seq - end) & _MASK >= _HALF:
        if (start - skbs[at].end_seq) & _MASK >= _HALF:
            found.append(skbs[at])
        at += 1
    return found


def tcp_rack_mark_lost(sk: TcpSock, now: float) -> bool:
    """After an acknowledgement that delivered something. True: the reordering timer was set."""
    if not sk.rack_advanced:
        return False
    sk.rack_advanced = False
    timeout = tcp_rack_detect_loss(sk, now)
    if timeout:
        tcp_reset_xmit_timer(sk, ICSK_TIME_REO_TIMEOUT, timeout + TCP_TIMEOUT_MIN, now)
        return True
    return False


def tcp_rack_update_reo_wnd(sk: TcpSock, prior_delivered: int) -> None:
    """Adapt the reordering window to D-SACKs (section 6.2, step 4): a quarter of the least round
    trip more for each round trip with one; back to one after 16 recoveries without.
    """
    if prior_delivered < sk.rack_last_delivered:
        sk.rack_dsack_seen = False  # one widening a round trip
    if sk.rack_dsack_seen:
        sk.rack_reo_steps = min(_MOST_STEPS, sk.rack_reo_steps + 1)
        sk.rack_dsack_seen = False
        sk.rack_last_delivered = sk.delivered
        sk.rack_reo_persist = TCP_RACK_RECOVERY_THRESH
    elif not sk.rack_reo_persist:
        sk.rack_reo_steps = 1


def tcp_newreno_mark_lost(sk: TcpSock, advanced: bool) -> None:
    """Without SACK the head's first segment is lost, after three duplicates or a partial ACK.

    RFC 6582 section 3.2.
    """
    rtx = sk.rtx
    recovering = sk.ca_state == TCP_CA_RECOVERY
    if not (
        (sk.ca_state < TCP_CA_RECOVERY and sk.sacked_out >= sk.reordering * sk.mss_cache)
        or (recovering and advanced)
    ):
        return
    rtx.trim()
    skb = rtx.skbs[0]
    if skb.sacked & TCPCB_LOST:
        return
    if skb.length > sk.mss_cache:
        rtx.split(0, sk.mss_cache)
    rtx.mark_lost(skb)
