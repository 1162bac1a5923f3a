"""Receiving: a segment of a connection, from the header's checks to the receive queue.

After net/ipv4/tcp_input.c and RFC 9293 section 3.10.7. What an acknowledgement means to the sender
is in ack.py; segments for listeners, opening connections and TIME-WAIT are in listen.py, connect.py
and timewait.py.
"""

from __future__ import annotations

import errno
from typing import Final

from steertag.family.const import (
    RCV_SHUTDOWN,
    SEND_SHUTDOWN,
    SK_MEM_RECV,
    SOCK_DEAD,
    TcpState,
)
from steertag.family.memory import sk_schedule
from steertag.inet.ip.packet import Packet
from steertag.inet.tcp import ack, close, connect, cwnd, output, reset, rtt, timer, timewait, window
from steertag.inet.tcp.net import TcpNet
from steertag.inet.tcp.ofo import RcvSkb
from steertag.inet.tcp.rmem import skb_set_owner_r, tcp_try_rmem_schedule
from steertag.inet.tcp.sock import (
    TCP_ECN_DEMAND_CWR,
    TCP_ECN_OK,
    TCP_ECN_SEEN,
    TcpSock,
)
from steertag.inet.tcp.urgent import tcp_urg
from steertag.wire.seq import add, after, before, diff
from steertag.wire.tcp import ACK, CWR, FIN, RST, SYN, URG, Segment

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_ECN_MASK: Final = 3
_ECT0: Final = 2
_CE: Final = 3
_NOT_PREDICTED: Final = FIN | SYN | RST | URG | CWR
_PAWS_24DAYS: Final = 24 * 86400.0
_PAWS_WINDOW: Final = 1
_ATO_MIN: Final = 0.04
_DELACK_MAX: Final = 0.2
_QUICK_SEGMENTS: Final = 16


# -- the usual case -----------------------------------------------------------------------------


def tcp_rcv_established(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    """A segment for an established connection.

    The usual ones (in order, nothing special in the header, nothing out of order before) take the
    short way; whatever is odd goes through every check of `_slow_path`.
    """
    flags = seg.flags
    tsval = seg.tsval
    payload = seg.payload
    if (
        flags & ACK
        and not flags & _NOT_PREDICTED
        and seg.seq == sk.rcv_nxt
        and sk.pred_ok
        and not sk.ecn_flags
        and (tsval is not None) == sk.ts_ok
        and (tsval is None or (tsval - sk.ts_recent) & _MASK < _HALF)
        and not seg.sacks
        and (seg.ack_seq - sk.snd_una) & _MASK <= (sk.snd_nxt - sk.snd_una) & _MASK
        and len(payload) <= diff(add(sk.rcv_wup, sk.rcv_wnd), seg.seq)
    ):
        if not payload:
            sk.mib["TcpExtTCPPureAcks"] += 1
            _store_ts_recent(sk, seg, now)
            if ack.tcp_ack(sk, seg, now, (), data=False):
                output.tcp_data_snd_check(sk, now)
            else:
                reset.tcp_send_challenge_ack(sk, now)
            return
        if sk.sk_rmem_alloc + len(payload) <= sk.sk_rcvbuf and _charge_fast(sk, seg, packet):
            sk.mib["TcpExtTCPHPHits"] += 1
            _store_ts_recent(sk, seg, now)
            sk.rcv_nxt = seg.end_seq
            if sk.ofo.block_count:
                sk.ofo.forget_dsack()
            _event_data_recv(sk, seg, packet, now)
            if seg.ack_seq != sk.snd_una:
                ack.tcp_ack(sk, seg, now, (), data=True)
                output.tcp_data_snd_check(sk, now)
            _ack_snd_check(sk, now)
            sk.sk_data_ready(sk)
            return
    _slow_path(sk, packet, seg, now)


def _slow_path(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    if not seg.flags & (ACK | RST | SYN):
        return
    if not tcp_validate_incoming(sk, seg, now):
        return
    if not _accept_ack(sk, seg, now):
        return
    _store_ts_recent(sk, seg, now)
    tcp_urg(sk, seg)
    tcp_data_queue(sk, packet, seg, now)
    if sk.sk_state == TcpState.TCP_CLOSE:
        return
    sk.pred_ok = not len(sk.ofo) and sk.rcv_wnd > 0 and not sk.urg_wait and sk.urg_data is None
    output.tcp_data_snd_check(sk, now)
    _ack_snd_check(sk, now)


def _accept_ack(sk: TcpSock, seg: Segment, now: float) -> bool:
    """Step 5 of RFC 9293 section 3.10.7.4; False ends the segment's processing."""
    if not seg.flags & ACK:
        return False
    if ack.tcp_ack(sk, seg, now, seg.sacks, data=bool(seg.payload)):
        return True
    # Too old, or of what was never sent (RFC 5961 section 5).
    reset.tcp_send_challenge_ack(sk, now)
    return False


def _store_ts_recent(sk: TcpSock, seg: Segment, now: float) -> None:
    """RFC 7323 section 4.3: the timestamp of what fills the left edge of the window."""
    tsval = seg.tsval
    if tsval is None or not sk.ts_ok:
        return
    if (sk.rcv_wup - seg.seq) & _MASK < _HALF and (
        (tsval - sk.ts_recent) & _MASK < _HALF or now - sk.ts_recent_at >= _PAWS_24DAYS
    ):
        sk.ts_recent = tsval
        sk.ts_recent_at = now


# -- is it acceptable? ----------------------------------------------------------------------------


def tcp_validate_incoming(sk: TcpSock, seg: Segment, now: float) -> bool:
    """PAWS, the window, RST and SYN, in that order (RFC 9293 3.10.7.4, RFC 7323, RFC 5961).

    False: the segment is dealt with.
    """
    flags = seg.flags
    # A RST counts though its timestamp be old (RFC 7323 section 5.2).
    if not flags & RST and sk.ts_ok and _paws_discard(sk, seg, now):
        sk.mib["TcpExtPAWSEstab"] += 1
        if not reset.tcp_oow_rate_limited(sk, seg, "TCPACKSkippedPAWS", now):
            output.tcp_send_dupack(sk, seg.seq, seg.end_seq)
        return False
    if not _in_window(sk, seg):
        if not flags & RST:
            if flags & SYN:
                _syn_challenge(sk, now)
            elif not reset.tcp_oow_rate_limited(sk, seg, "TCPACKSkippedSeq", now):
                output.tcp_send_dupack(sk, seg.seq, seg.end_seq)
        elif _reset_check(sk, seg):
            tcp_reset(sk)
        return False
    if flags & RST:
        if seg.seq == sk.rcv_nxt or _reset_check(sk, seg) or seg.seq == sk.ofo.highest_end:
            tcp_reset(sk)
        else:
            reset.tcp_send_challenge_ack(sk, now)
        return False
    if flags & SYN and not _crossing_syn_ack(sk, seg):
        _syn_challenge(sk, now)
        return False
    return True


def _crossing_syn_ack(sk: TcpSock, seg: Segment) -> bool:
    """The peer's SYN-ACK where both opened at once: it acknowledges our SYN, and is no attack."""
    return (
        sk.sk_state == TcpState.TCP_SYN_RECV
        and sk.sk_socket is not None
        and seg.flags & ACK != 0
        and add(seg.seq, 1) == seg.end_seq == sk.rcv_nxt
        and seg.ack_seq == sk.snd_nxt
    )


def _syn_challenge(sk: TcpSock, now: float) -> None:
    sk.mib["TcpInErrs"] += 1
    sk.mib["TcpExtTCPSYNChallenge"] += 1
    reset.tcp_send_challenge_ack(sk, now)


def _paws_discard(sk: TcpSock, seg: Segment, now: float) -> bool:
    if seg.tsval is None:
        return False
    behind = diff(sk.ts_recent, seg.tsval)
    if behind <= _PAWS_WINDOW or now - sk.ts_recent_at >= _PAWS_24DAYS or not sk.ts_recent:
        return False
    return not _disordered_ack(sk, seg, behind)


def _disordered_ack(sk: TcpSock, seg: Segment, behind: int) -> bool:
    """A bare duplicate ACK that was overtaken on its way is no old duplicate."""
    return (
        seg.flags & ACK != 0
        and seg.seq == seg.end_seq == sk.rcv_nxt
        and seg.ack_seq == sk.snd_una
        and seg.window << sk.snd_wscale == sk.snd_wnd
        and behind <= sk.rto * 1000
    )


def _in_window(sk: TcpSock, seg: Segment) -> bool:
    """RFC 9293 section 3.10.7.4, first check, with `rcv_wup` as the left edge as Linux has it."""
    if before(seg.end_seq, sk.rcv_wup):
        return False
    return not after(seg.seq, add(sk.rcv_nxt, window.tcp_receive_window(sk)))


def _reset_check(sk: TcpSock, seg: Segment) -> bool:
    """A RST behind the FIN that was received, from peers that number it so."""
    return seg.seq == add(sk.rcv_nxt, -1) and sk.sk_state in (
        TcpState.TCP_CLOSE_WAIT,
        TcpState.TCP_LAST_ACK,
        TcpState.TCP_CLOSING,
    )


def tcp_reset(sk: TcpSock) -> None:
    """The peer has reset the connection."""
    if sk.sk_state == TcpState.TCP_SYN_SENT:
        sk.sk_err = errno.ECONNREFUSED
    elif sk.sk_state == TcpState.TCP_CLOSE_WAIT:
        sk.sk_err = errno.EPIPE
    elif sk.sk_state == TcpState.TCP_CLOSE:
        return
    else:
        sk.sk_err = errno.ECONNRESET
    close.tcp_write_queue_purge(sk)
    close.tcp_done(sk)
    if not sk.sk_flags & SOCK_DEAD:
        sk.sk_error_report(sk)


# -- every other state ----------------------------------------------------------------------------


def tcp_rcv_state_process(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    """A segment for a connection that is not established, or not any more."""
    state = sk.sk_state
    if state == TcpState.TCP_CLOSE:
        return
    if state == TcpState.TCP_SYN_SENT:
        connect.tcp_rcv_synsent_state_process(sk, packet, seg, now)
        return
    if not seg.flags & (ACK | RST | SYN) or not tcp_validate_incoming(sk, seg, now):
        return
    if not seg.flags & ACK:
        return
    if not ack.tcp_ack(sk, seg, now, seg.sacks, data=bool(seg.payload)):
        if state == TcpState.TCP_SYN_RECV:
            reset.tcp_send_reset(sk.net.ip, packet, seg)
        else:
            reset.tcp_send_challenge_ack(sk, now)
        return
    if not _ack_moves_state(sk, packet, seg, now):
        return
    _store_ts_recent(sk, seg, now)
    tcp_urg(sk, seg)
    if not _text(sk, packet, seg, now):
        return
    if sk.sk_state != TcpState.TCP_CLOSE:
        output.tcp_data_snd_check(sk, now)
        _ack_snd_check(sk, now)


def _ack_moves_state(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> bool:
    """What an acceptable acknowledgement does to the state; False: nothing is left to do."""
    state = sk.sk_state
    all_acked = sk.snd_una == sk.write_seq
    if state == TcpState.TCP_SYN_RECV:
        tcp_established(sk, seg, now)
    elif state == TcpState.TCP_FIN_WAIT1 and all_acked:
        return _fin_wait2(sk, packet, seg, now)
    elif state == TcpState.TCP_CLOSING and all_acked:
        timewait.tcp_time_wait(sk, TcpState.TCP_TIME_WAIT, 0.0)
        return False
    elif state == TcpState.TCP_LAST_ACK and all_acked:
        close.tcp_done(sk)
        return False
    return True


def tcp_established(sk: TcpSock, seg: Segment, now: float) -> None:
    """The last acknowledgement of the handshake has come, to a passive or simultaneous opener."""
    sk.snd_una = seg.ack_seq
    sk.snd_wnd = seg.window << sk.snd_wscale
    sk.max_window = max(sk.max_window, sk.snd_wnd)
    sk.snd_wl1 = seg.seq
    if sk.fastopen_rsk is None:  # else it was done with the SYN
        if not sk.srtt and sk.snt_synack:
            rtt.tcp_update_rtt(sk, now, now - sk.snt_synack, -1.0, now - sk.snt_synack, None)
        sk.retrans_stamp = 0.0
        tcp_init_transfer(sk, now)
    close.tcp_set_state(sk, TcpState.TCP_ESTABLISHED)
    sk.sk_state_change(sk)


def tcp_init_transfer(sk: TcpSock, now: float) -> None:
    """A connection is up: its buffers, its congestion control, its keepalive."""
    dst = sk.dst
    if dst is not None:
        output.tcp_sync_mss(sk, dst.mtu)
    sk.cwnd = cwnd.tcp_init_cwnd(sk)
    sk.cwnd_stamp = now
    sk.rcv_mss = max(min(sk.advmss, sk.mss_cache, max(sk.rcv_wnd >> 1, 1)), 536 - 40)
    window.tcp_init_buffer_space(sk)
    sk.sk_sndbuf = output.tcp_initial_sndbuf(sk)
    sk.ca.init(sk)
    sk.pred_ok = True
    sk.lrcvtime = now
    if sk.keepalive_on:
        timer.tcp_reset_keepalive_timer(sk, sk.keepalive_time_of)


def _fin_wait2(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> bool:
    """Our FIN is acknowledged; an orphan doesn't wait for the peer's for ever."""
    close.tcp_set_state(sk, TcpState.TCP_FIN_WAIT2)
    sk.sk_shutdown |= SEND_SHUTDOWN
    if not sk.sk_flags & SOCK_DEAD:
        sk.sk_state_change(sk)
        return True
    data_end = add(seg.end_seq, -(seg.flags & FIN))
    if sk.linger2 < 0 or (seg.end_seq != seg.seq and after(data_end, sk.rcv_nxt)):
        if sk.linger2 >= 0:
            _abort_on_data(sk, packet, seg)
            return False
        close.tcp_done(sk)
        return False
    if seg.flags & FIN:
        # It leads on to TIME-WAIT, unless it is early and what lies before it never comes.
        timer.tcp_reset_keepalive_timer(sk, close.tcp_fin_time(sk))
        return True
    close.tcp_fin_wait2_orphan(sk, now)
    return sk.sk_state != TcpState.TCP_CLOSE


def _text(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> bool:
    """Steps seven and eight, by state. False: the connection is gone."""
    state = sk.sk_state
    if (
        (state in (TcpState.TCP_FIN_WAIT1, TcpState.TCP_FIN_WAIT2) or before(seg.seq, sk.rcv_nxt))
        and sk.sk_shutdown & RCV_SHUTDOWN
        and seg.end_seq != seg.seq
        and after(add(seg.end_seq, -(seg.flags & FIN)), sk.rcv_nxt)
    ):
        # Nobody is there any more to read it (RFC 2525 section 2.17).
        _abort_on_data(sk, packet, seg)
        return False
    if state in (
        TcpState.TCP_ESTABLISHED,
        TcpState.TCP_FIN_WAIT1,
        TcpState.TCP_FIN_WAIT2,
    ) or before(seg.seq, sk.rcv_nxt):
        tcp_data_queue(sk, packet, seg, now)
    return True


def _abort_on_data(sk: TcpSock, packet: Packet, seg: Segment) -> None:
    sk.mib["TcpExtTCPAbortOnData"] += 1
    reset.tcp_send_reset(sk.net.ip, packet, seg)
    tcp_reset(sk)


# -- data -------------------------------------------------------------------------------------


def _charge_fast(sk: TcpSock, seg: Segment, packet: Packet) -> bool:
    """Queue a payload that is in order. False: there is no memory for it."""
    skb = RcvSkb(seg.payload, seg.seq, seg.end_seq, False)
    truesize = skb.truesize
    if truesize > sk.sk_forward_alloc and not sk_schedule(sk, truesize, SK_MEM_RECV):
        return False
    skb_set_owner_r(sk, skb)
    sk.sk_receive_queue.append(skb)
    return True


def tcp_data_queue(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    """Put a segment's octets where they belong: the receive queue, or that of what is early."""
    if seg.seq == seg.end_seq:
        return
    _ecn_accept_cwr(sk, seg)
    sk.ofo.forget_dsack()
    rcv_nxt = sk.rcv_nxt
    skb = RcvSkb(seg.payload, seg.seq, seg.end_seq, bool(seg.flags & FIN))
    if seg.seq != rcv_nxt:
        if not after(seg.end_seq, rcv_nxt):
            # All of it is there already: our acknowledgement was lost.
            sk.mib["TcpExtDelayedACKLost"] += 1
            output.tcp_dsack_set(sk, seg.seq, seg.end_seq)
            _out_of_window(sk)
            return
        if not before(seg.seq, add(rcv_nxt, window.tcp_receive_window(sk))):
            _out_of_window(sk)
            return
        if after(seg.seq, rcv_nxt):
            _queue_ofo(sk, packet, skb, seg, now)
            return
        output.tcp_dsack_set(sk, seg.seq, rcv_nxt)
        skb.trim_head(diff(rcv_nxt, seg.seq))
    if not window.tcp_receive_window(sk) and len(skb):
        sk.mib["TcpExtTCPZeroWindowDrop"] += 1
        _out_of_window(sk)
        return
    if not tcp_try_rmem_schedule(sk, skb):
        sk.mib["TcpExtTCPRcvQDrop"] += 1
        sk.ack_now = True
        sk.ack_pending = True
        sk.sk_data_ready(sk)
        return
    _queue_in_order(sk, packet, skb, seg, now)


def _out_of_window(sk: TcpSock) -> None:
    output.tcp_enter_quickack_mode(sk)
    sk.ack_pending = sk.ack_now = True


def _queue_in_order(sk: TcpSock, packet: Packet, skb: RcvSkb, seg: Segment, now: float) -> None:
    if len(skb):
        skb_set_owner_r(sk, skb)
        sk.sk_receive_queue.append(skb)
    if len(seg.payload):
        _event_data_recv(sk, seg, packet, now)
    sk.rcv_nxt = skb.end_seq
    if skb.fin:
        _fin(sk, now)
    elif len(sk.ofo):
        _drain_ofo(sk, now)
        # Fills a gap: the sender is waiting for this.
        sk.ack_now = True
    if sk.ofo.block_count:
        sk.ofo.acked(sk.rcv_nxt)
    if not sk.sk_flags & SOCK_DEAD:
        sk.sk_data_ready(sk)


def _drain_ofo(sk: TcpSock, now: float) -> None:
    while (skb := sk.ofo.pop_ready(sk.rcv_nxt)) is not None:
        overlap = diff(sk.rcv_nxt, skb.seq)
        if not after(skb.end_seq, sk.rcv_nxt):
            output.tcp_dsack_extend(sk, skb.seq, skb.end_seq)
            skb.free()
            continue
        if overlap:
            output.tcp_dsack_extend(sk, skb.seq, sk.rcv_nxt)
            skb.trim_head(overlap)
        sk.rcv_nxt = skb.end_seq
        fin = skb.fin
        if len(skb):
            sk.sk_receive_queue.append(skb)
        else:
            skb.free()
        if fin:
            _fin(sk, now)
            return


def _queue_ofo(sk: TcpSock, packet: Packet, skb: RcvSkb, seg: Segment, now: float) -> None:
    """Keep what is early, and acknowledge at once: the duplicate ACK says that something lacks."""
    sk.ack_pending = sk.ack_now = True
    if not tcp_try_rmem_schedule(sk, skb):
        sk.mib["TcpExtTCPOFODrop"] += 1
        return
    skb_set_owner_r(sk, skb)
    if sk.ofo.insert(skb, lambda seq, end: output.tcp_dsack_extend(sk, seq, end)):
        sk.mib["TcpExtTCPOFOQueue"] += 1
        sk.rcv_ooopack += 1
        if not sk.sack_ok:
            sk.ofo.forget_blocks()
        _ecn_check_ce(sk, packet)
        window.tcp_grow_window(sk, len(skb))
    else:
        sk.mib["TcpExtTCPOFOMerge"] += 1
        skb.free()
        if not sk.sack_ok:
            sk.ofo.forget_blocks()


def _event_data_recv(sk: TcpSock, seg: Segment, packet: Packet, now: float) -> None:
    """Data came in order: learn from it, and have it acknowledged (tcp_event_data_recv)."""
    length = len(seg.payload)
    sk.bytes_received += length
    mss = packet.gso_size or length
    sk.data_segs_in += -(-length // mss)
    window.tcp_measure_rcv_mss(sk, mss, length)
    if sk.ts_ok:
        if length >= sk.rcv_mss:
            window.tcp_rcv_rtt_measure_ts(sk, seg.tsecr, now)
    else:
        window.tcp_rcv_rtt_measure(sk, now)
    sk.ack_pending = True
    since = now - sk.lrcvtime
    sk.lrcvtime = now
    if not sk.ato:
        output.tcp_incr_quickack(sk, _QUICK_SEGMENTS)
        sk.ato = _ATO_MIN
    elif since <= _ATO_MIN / 2:
        sk.ato = sk.ato / 2 + _ATO_MIN / 2
    elif since < sk.ato:
        sk.ato = min(sk.ato / 2 + since, sk.rto)
    elif since > sk.rto:
        output.tcp_incr_quickack(sk, _QUICK_SEGMENTS)
    if sk.ecn_flags:
        _ecn_check_ce(sk, packet)
    if length >= 128:
        window.tcp_grow_window(sk, length)


# -- FIN, ECN ------------------------------------------------------------------------


def _fin(sk: TcpSock, now: float) -> None:
    """The peer sends no more (RFC 9293 section 3.10.7.4, eighth)."""
    sk.ack_pending = True
    sk.sk_shutdown |= RCV_SHUTDOWN
    sk.done = True
    state = sk.sk_state
    if state in (TcpState.TCP_SYN_RECV, TcpState.TCP_ESTABLISHED):
        close.tcp_set_state(sk, TcpState.TCP_CLOSE_WAIT)
        sk.pingpong = True
    elif state == TcpState.TCP_FIN_WAIT1:
        output.tcp_send_ack(sk)
        close.tcp_set_state(sk, TcpState.TCP_CLOSING)
    elif state == TcpState.TCP_FIN_WAIT2:
        output.tcp_send_ack(sk)
        timewait.tcp_time_wait(sk, TcpState.TCP_TIME_WAIT, 0.0)
    sk.ofo.purge()
    if not sk.sk_flags & SOCK_DEAD:
        sk.sk_state_change(sk)


def _ecn_accept_cwr(sk: TcpSock, seg: Segment) -> None:
    if seg.flags & CWR:
        sk.ecn_flags &= ~TCP_ECN_DEMAND_CWR
        if seg.payload:
            sk.ack_pending = True


def _ecn_check_ce(sk: TcpSock, packet: Packet) -> None:
    """A router marked the packet: tell the sender until it says it has heard (RFC 3168)."""
    if not sk.ecn_flags & TCP_ECN_OK:
        return
    codepoint = packet.tos & _ECN_MASK
    if codepoint == _CE:
        if not sk.ecn_flags & TCP_ECN_DEMAND_CWR:
            output.tcp_enter_quickack_mode(sk, 2)
            sk.ecn_flags |= TCP_ECN_DEMAND_CWR
        sk.ecn_flags |= TCP_ECN_SEEN
    elif codepoint == _ECT0:
        sk.ecn_flags |= TCP_ECN_SEEN


# -- when to acknowledge --------------------------------------------------------------------------


def _ack_snd_check(sk: TcpSock, now: float) -> None:
    """Acknowledge now, at the end of the device's turn, or a little later (RFC 9293 3.8.6.3).

    With more than a segment unacknowledged it is to be soon; "at the end of the turn" lets one
    acknowledgement do for all the frames that came at once.
    """
    if not sk.ack_pending:
        return
    if sk.ack_now or len(sk.ofo):
        sk.ack_now = False
        output.tcp_send_ack(sk)
        return
    unacked = (sk.rcv_nxt - sk.rcv_wup) & _MASK
    if (sk.ack_quick and not sk.pingpong) or (unacked > sk.rcv_mss and _window_moves(sk)):
        if unacked > sk.rcv_wnd >> 1:
            output.tcp_send_ack(sk)
        else:
            sk.net.pending_acks.append(sk)
        return
    timer_at = sk.delack_timer.expires
    if timer_at is None:
        sk.delack_timer.mod(now + _delay(sk))
    elif timer_at <= now + sk.ato / 4:  # it is about to expire
        output.tcp_send_ack(sk)


def _delay(sk: TcpSock) -> float:
    """Seconds that an acknowledgement may wait: a round trip at most (tcp_send_delayed_ack)."""
    most = _DELACK_MAX
    if sk.srtt:
        most = min(max(sk.srtt, _ATO_MIN), most)
    return min(sk.ato, most)


def _window_moves(sk: TcpSock) -> bool:
    """The acknowledgement would give the sender new room; if not, reading will send one."""
    waiting = diff(sk.rcv_nxt, sk.copied_seq)
    return waiting < sk.sk_rcvlowat or window.tcp_would_offer(sk) >= sk.rcv_wnd


def tcp_complete(net: TcpNet) -> None:
    """A device's turn is over: send the acknowledgements that waited for it."""
    pending = net.pending_acks
    if pending:
        for sk in pending:
            if sk.ack_pending and sk.sk_state != TcpState.TCP_CLOSE:
                output.tcp_send_ack(sk)
        pending.clear()
