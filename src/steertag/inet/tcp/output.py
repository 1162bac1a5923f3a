"""Sending: what goes out, when, and with which header (net/ipv4/tcp_output.c)."""

from __future__ import annotations

from typing import Final

from steertag.device.frame import GSO_TCPV4, GSO_TCPV6, Offload
from steertag.family.const import TcpState
from steertag.family.memory import sk_forced_mem_schedule, sk_mem_charge, sk_mem_uncharge
from steertag.family.skbuff import Buffer
from steertag.inet.const import IP_PMTUDISC_DONT, IPPROTO_TCP
from steertag.inet.ip.dst import Dst
from steertag.inet.ip.net import inet_net
from steertag.inet.tcp import ack, cwnd, timer
from steertag.inet.tcp.rtx import tcp_packets_in_flight
from steertag.inet.tcp.skb import TcpSkb
from steertag.inet.tcp.sock import (
    ICSK_TIME_NONE,
    ICSK_TIME_PROBE0,
    ICSK_TIME_RETRANS,
    TCP_ECN_DEMAND_CWR,
    TCP_ECN_OK,
    TCP_ECN_QUEUE_CWR,
    TCP_MIN_MSS,
    TCP_NAGLE_CORK,
    TCP_NAGLE_OFF,
    TCP_NAGLE_PUSH,
    TcpSock,
)
from steertag.inet.tcp.window import tcp_select_initial_window, tcp_select_window
from steertag.wire.seq import add, after, before, diff
from steertag.wire.tcp import (
    ACK,
    CHECKSUM_AT,
    CWR,
    ECE,
    FIN,
    HEADER,
    HEADER_LEN,
    PSH,
    RST,
    SYN,
    URG,
    Options,
    emit_options,
    timestamps_option,
)

_MASK: Final = 0xFFFFFFFF
_MAX_PACKET: Final = 65535
_MAX_OPTIONS: Final = 40
_TS_LEN: Final = 12
_ECT0: Final = 2
_RECENTLY: Final = 0.001


# -- sizes ------------------------------------------------------------------------------------


def tcp_mtu_to_mss(sk: TcpSock, mtu: int) -> int:
    """Octets of payload, TCP options not counted, that a packet of `mtu` octets carries."""
    header = 20 if len(sk.inet_daddr) == 4 else 40
    least = sk.sk_stack.sysctl["net.ipv4.tcp_min_snd_mss"]
    return max(min(mtu - header - HEADER_LEN, sk.mss_clamp), least)


def tcp_sync_mss(sk: TcpSock, pmtu: int) -> int:
    """The path's MTU is `pmtu`: recompute the segment size; returns it."""
    mss = tcp_mtu_to_mss(sk, pmtu)
    if sk.ts_ok:
        mss -= _TS_LEN
    # Never more than half of the largest window ever seen (tcp_bound_to_half_wnd).
    if sk.max_window > TCP_MIN_MSS and mss > sk.max_window >> 1:
        mss = max(sk.max_window >> 1, 68 - _MAX_OPTIONS)
    sk.pmtu = pmtu
    sk.mss_cache = mss
    return mss


def tcp_current_mss(sk: TcpSock) -> int:
    """Octets of payload that a segment carries now."""
    dst = sk.dst
    if dst is not None and dst.mtu != sk.pmtu:
        tcp_sync_mss(sk, dst.mtu)
    sacks = sk.ofo.block_count
    return sk.mss_cache - (4 + 8 * sacks) if sacks else sk.mss_cache


def tcp_size_goal(sk: TcpSock, mss: int) -> int:
    """Octets that one super-segment may hold: a multiple of the segment size."""
    header = 20 if len(sk.inet_daddr) == 4 else 40
    most = _MAX_PACKET - header - HEADER_LEN - _MAX_OPTIONS
    # Half of the largest window, so that the peer's acknowledgements keep coming.
    if sk.max_window and most > sk.max_window >> 1:
        most = max(sk.max_window >> 1, mss)
    return max(most // mss * mss, mss)


# -- memory of the send queue -------------------------------------------------------------------


def tcp_wmem_charge(sk: TcpSock, octets: int) -> None:
    """Count `octets` into the send buffer; they were granted before."""
    sk.sk_wmem_queued += octets
    sk_mem_charge(sk, octets)


def tcp_wmem_free_skb(sk: TcpSock, skb: TcpSkb) -> None:
    """A piece was acknowledged or given up (sk_wmem_free_skb)."""
    octets = skb.truesize
    sk.sk_wmem_queued -= octets
    sk_mem_uncharge(sk, octets)


def tcp_fragment(sk: TcpSock, skb: TcpSkb, count: int) -> TcpSkb:
    """Split a piece after `count` octets of payload; the rest is the caller's to queue behind."""
    before_split = skb.truesize
    rest = skb.split(count)
    extra = skb.truesize + rest.truesize - before_split
    sk_forced_mem_schedule(sk, extra)
    tcp_wmem_charge(sk, extra)
    return rest


def tcp_queue_control(sk: TcpSock, skb: TcpSkb) -> None:
    """Charge a SYN or FIN, which goes whatever the marks say, and count its sequence number."""
    skb.end_seq = add(skb.seq, skb.length + 1)
    sk_forced_mem_schedule(sk, skb.truesize)
    tcp_wmem_charge(sk, skb.truesize)
    sk.write_seq = skb.end_seq


# -- one segment ------------------------------------------------------------------------------


def tcp_timestamp(sk: TcpSock, now: float) -> int:
    """TSval: milliseconds, from an offset of the connection's own."""
    return (int(now * 1000.0) + sk.ts_offset) & _MASK


def tcp_syn_options(sk: TcpSock, now: float) -> bytes:
    """The options of our SYN."""
    sysctl = sk.sk_stack.sysctl
    timestamps = bool(sysctl["net.ipv4.tcp_timestamps"])
    return emit_options(
        Options(
            mss=sk.advmss,
            wscale=sk.rcv_wscale if sysctl["net.ipv4.tcp_window_scaling"] else None,
            sack_ok=bool(sysctl["net.ipv4.tcp_sack"]),
            tsval=tcp_timestamp(sk, now) if timestamps else None,
            tsecr=sk.ts_recent,
            fast_open=sk.fast_open_cookie,
        )
    )


def tcp_established_options(sk: TcpSock, now: float) -> bytes:
    """The options of every other segment: timestamps, and what was received out of order."""
    blocks = sk.ofo.sack_blocks()
    if not blocks:
        if sk.ts_ok:
            return timestamps_option(tcp_timestamp(sk, now), sk.ts_recent)
        return b""
    return emit_options(
        Options(
            tsval=tcp_timestamp(sk, now) if sk.ts_ok else None,
            tsecr=sk.ts_recent,
            sacks=tuple(blocks),
        )
    )


def tcp_transmit_skb(sk: TcpSock, skb: TcpSkb, now: float) -> bool:
    """Send a piece of the stream as it is now. False: it could not leave this host.

    The acknowledgement, the window, the options and ECN's bits are those of the moment.
    """
    flags = skb.flags
    tos = 0
    if flags & SYN:
        options = tcp_syn_options(sk, now)
        if sk.sk_state != TcpState.TCP_SYN_SENT:
            flags |= ACK
        window = min(sk.rcv_wnd, 65535)
        if sk.ecn_flags & TCP_ECN_OK:
            flags |= ECE if flags & ACK else ECE | CWR
    else:
        if sk.ofo.block_count or not sk.ts_ok:
            options = tcp_established_options(sk, now)
        else:
            options = timestamps_option(tcp_timestamp(sk, now), sk.ts_recent)
        flags |= ACK
        window = tcp_select_window(sk)
        if sk.ecn_flags:
            flags, tos = _ecn_send(sk, skb, flags)
    urgent = 0
    if sk.urg_mode and not flags & SYN:
        ahead = diff(sk.snd_up, skb.seq)
        if ahead > 0:
            flags |= URG
            urgent = min(ahead, 0xFFFF)
    left = _send(sk, skb.seq, flags, window, options, skb.parts, skb.length, tos, urgent)
    skb.sent_at = now
    if not skb.first_sent_at:
        skb.first_sent_at = now
    if skb.length:
        sk.lsndtime = now
        if now - sk.lrcvtime < sk.ato:
            sk.pingpong = True  # an answer: the next request is acknowledged with the next answer
        mss = sk.mss_cache
        segments = 1 if skb.length <= mss else -(-skb.length // mss)
        sk.data_segs_out += segments
        sk.bytes_sent += skb.length
    if flags & ACK:
        tcp_event_ack_sent(sk)
    return left


def _ecn_send(sk: TcpSock, skb: TcpSkb, flags: int) -> tuple[int, int]:
    """Flags and the two bits of the IP header (RFC 3168 section 6.1)."""
    if not sk.ecn_flags & TCP_ECN_OK:
        return flags, 0
    tos = 0
    if skb.length and not skb.retrans:
        tos = _ECT0
        if sk.ecn_flags & TCP_ECN_QUEUE_CWR:
            sk.ecn_flags &= ~TCP_ECN_QUEUE_CWR
            flags |= CWR
    if sk.ecn_flags & TCP_ECN_DEMAND_CWR:
        flags |= ECE
    return flags, tos


def _send(
    sk: TcpSock,
    seq: int,
    flags: int,
    window: int,
    options: bytes,
    payload: list[Buffer],
    length: int,
    tos: int,
    urgent: int,
) -> bool:
    dst = sk.dst
    if dst is None or not dst.valid():
        dst = tcp_rebuild_header(sk)
        if dst is None:
            return False
    header_len = HEADER_LEN + len(options)
    total = header_len + length
    header = (
        HEADER.pack(
            sk.inet_num,
            sk.inet_dport,
            seq,
            sk.rcv_nxt if flags & ACK else 0,
            header_len << 10 | flags,
            window,
            dst.pseudo(IPPROTO_TCP, total),
            urgent,
        )
        + options
    )
    # SACK blocks take their room from the payload of each segment.
    mss = sk.mss_cache - len(options) + (_TS_LEN if sk.ts_ok else 0)
    mib = sk.mib
    if length > mss:
        kind = GSO_TCPV4 if len(sk.inet_daddr) == 4 else GSO_TCPV6
        offload = Offload(0, CHECKSUM_AT, kind, mss, header_len)
        mib["TcpOutSegs"] += -(-length // mss)
    else:
        offload = Offload(0, CHECKSUM_AT, 0, 0, header_len)
        mib["TcpOutSegs"] += 1
    try:
        dst.xmit(
            [header, *payload],
            IPPROTO_TCP,
            ttl=sk.ttl_for_send,
            tos=sk.tos & ~3 | tos,
            df=sk.mtu_discover != IP_PMTUDISC_DONT,
            offload=offload,
        )
    except OSError:
        return False  # as good as lost on the way: the timers see to it
    return True


def tcp_rebuild_header(sk: TcpSock) -> Dst | None:
    """Another route, the one in use being gone; None where there is none now."""
    try:
        sk.dst = inet_net(sk.sk_stack).route_output(sk.inet_daddr, sk.inet_saddr, sk.bound_dev_if)
    except OSError as exc:
        sk.sk_err_soft = exc.errno or 0
        sk.dst = None
    return sk.dst


# -- acknowledgements -----------------------------------------------------------------------------


def tcp_event_ack_sent(sk: TcpSock) -> None:
    """An acknowledgement of all that was received has gone out."""
    if sk.ack_quick:
        sk.ack_quick -= 1
    sk.ack_pushed = 0
    sk.ack_pending = False
    sk.ofo.forget_dsack()
    if sk.delack_timer.expires is not None:
        sk.delack_timer.delete()


def tcp_send_ack(sk: TcpSock) -> None:
    """Acknowledge at once, without data."""
    if sk.sk_state == TcpState.TCP_CLOSE:
        return
    now = sk.sk_stack.clock()
    flags = ACK
    if sk.ecn_flags & TCP_ECN_DEMAND_CWR:
        flags |= ECE
    options = tcp_established_options(sk, now)
    window = tcp_select_window(sk)
    _send(sk, sk.snd_nxt, flags, window, options, [], 0, 0, 0)
    tcp_event_ack_sent(sk)


def tcp_send_dupack(sk: TcpSock, seq: int, end_seq: int) -> None:
    """Answer what is outside the window, with D-SACK where it was received before."""
    if end_seq != seq and before(seq, sk.rcv_nxt):
        sk.mib["TcpExtDelayedACKLost"] += 1
        tcp_enter_quickack_mode(sk)
        if sk.sack_ok and sk.sk_stack.sysctl["net.ipv4.tcp_dsack"]:
            end = sk.rcv_nxt if after(end_seq, sk.rcv_nxt) else end_seq
            tcp_dsack_set(sk, seq, end)
    tcp_send_ack(sk)


def tcp_dsack_set(sk: TcpSock, seq: int, end_seq: int) -> None:
    """The next acknowledgement reports these octets as received twice (RFC 2883)."""
    sk.ofo.forget_dsack()
    tcp_dsack_extend(sk, seq, end_seq)


def tcp_dsack_extend(sk: TcpSock, seq: int, end_seq: int) -> None:
    """The same of octets that may be more of those that are to be reported."""
    if not sk.sack_ok or not sk.sk_stack.sysctl["net.ipv4.tcp_dsack"] or seq == end_seq:
        return
    old = before(seq, sk.rcv_nxt)
    sk.mib["TcpExtTCPDSACKOldSent" if old else "TcpExtTCPDSACKOfoSent"] += 1
    sk.ofo.extend_dsack(seq, end_seq)


def tcp_incr_quickack(sk: TcpSock, most: int = 16) -> None:
    """Acknowledge the next segments at once, unless the application answers anyway."""
    quick = sk.rcv_wnd // (2 * max(sk.rcv_mss, 1)) or 2
    sk.ack_quick = max(sk.ack_quick, min(quick, most))


def tcp_enter_quickack_mode(sk: TcpSock, most: int = 16) -> None:
    """Acknowledge the next segments at once."""
    tcp_incr_quickack(sk, most)
    sk.pingpong = False
    sk.ato = 0.04


def tcp_send_active_reset(sk: TcpSock) -> None:
    """RST for a connection that is given up."""
    sk.mib["TcpOutRsts"] += 1
    now = sk.sk_stack.clock()
    _send(sk, tcp_acceptable_seq(sk), ACK | RST, 0, _bare_options(sk, now), [], 0, 0, 0)


def tcp_acceptable_seq(sk: TcpSock) -> int:
    """A sequence number that the peer's window holds, even where it has shrunk."""
    end = add(sk.snd_una, sk.snd_wnd)
    return end if before(end, sk.snd_nxt) and not sk.wnd_scale_ok else sk.snd_nxt


def _bare_options(sk: TcpSock, now: float) -> bytes:
    return timestamps_option(tcp_timestamp(sk, now), sk.ts_recent) if sk.ts_ok else b""


def tcp_xmit_probe_skb(sk: TcpSock, urgent: bool) -> None:
    """A segment without data that has to be answered: of a sequence number that is used up."""
    now = sk.sk_stack.clock()
    seq = add(sk.snd_una, 0 if urgent else -1)
    flags = ACK
    pointer = 0
    if urgent and sk.urg_mode:
        flags |= URG
        pointer = min(max(diff(sk.snd_up, seq), 0), 0xFFFF)
    options = tcp_established_options(sk, now)
    _send(sk, seq, flags, tcp_select_window(sk), options, [], 0, 0, pointer)


# -- what goes when -------------------------------------------------------------------------------


def tcp_write_xmit(sk: TcpSock, now: float, nonagle: int, push_one: int = 0) -> bool:
    """Send of the queue what windows allow. True: nothing is in flight and something waits.

    Args:
        push_one: 1: one piece; 2: one segment, though the congestion window be full (a probe).
    """
    queue = sk.send_queue
    mss = tcp_current_mss(sk)
    sent = False
    cwnd_limited = False
    while queue:
        skb = queue[0]
        length = skb.length
        in_flight = tcp_packets_in_flight(sk)
        quota = sk.cwnd - in_flight
        first = length if length < mss else mss
        if quota < first and in_flight and not (skb.flags & FIN and length < mss):
            if push_one != 2:
                cwnd_limited = True
                break
            quota = mss
        elif quota < first:
            quota = first
        room = diff(add(sk.snd_una, sk.snd_wnd), skb.seq)
        if room < (first if length > mss else diff(skb.end_seq, skb.seq)):
            break
        if length <= mss:
            if not _nagle_test(sk, skb, mss, nonagle if len(queue) == 1 else TCP_NAGLE_PUSH):
                break
        else:
            limit = quota if quota < room else room
            if push_one == 2:
                limit = mss
            if limit < length:
                if not push_one and _tso_should_defer(sk, limit, in_flight, mss, now):
                    cwnd_limited = cwnd_limited or quota < room
                    break
                cwnd_limited = cwnd_limited or quota < length
                rest = tcp_fragment(sk, skb, max(limit // mss, 1) * mss)
                queue.insert(1, rest)
            elif length % mss and not _nagle_test(
                sk, skb, mss, nonagle if len(queue) == 1 else TCP_NAGLE_PUSH
            ):
                # Whole segments go; the short one at the end waits for more.
                rest = tcp_fragment(sk, skb, length // mss * mss)
                queue.insert(1, rest)
        if not tcp_transmit_skb(sk, skb, now):
            break
        queue.popleft()
        ack.tcp_event_new_data_sent(sk, skb, now)
        if skb.length < mss:
            sk.snd_sml = skb.end_seq  # tcp_minshall_update
        sent = True
        if push_one:
            break
    if sent:
        cwnd_limited = cwnd_limited or tcp_packets_in_flight(sk) + mss > sk.cwnd
        cwnd.tcp_cwnd_validate(sk, cwnd_limited)
        if push_one != 2:
            timer.tcp_schedule_loss_probe(sk, now)
        return False
    sk.is_cwnd_limited = sk.is_cwnd_limited or cwnd_limited
    return not sk.rtx and bool(queue)


def _nagle_test(sk: TcpSock, skb: TcpSkb, mss: int, nonagle: int) -> bool:
    """May a short segment go now? (RFC 896 with Minshall's change; tcp_nagle_test)"""
    if nonagle & TCP_NAGLE_PUSH or skb.flags & FIN or sk.urg_mode:
        return True
    if skb.length and skb.length % mss == 0:
        return True
    if nonagle & TCP_NAGLE_CORK:
        return False
    if nonagle & TCP_NAGLE_OFF or not sk.rtx:
        return True
    # Held while a short segment that was sent before is not acknowledged.
    return not (after(sk.snd_sml, sk.snd_una) and not after(sk.snd_sml, sk.snd_nxt))


def _tso_should_defer(sk: TcpSock, limit: int, in_flight: int, mss: int, now: float) -> bool:
    """Is it better to wait for an acknowledgement than to send a small super-segment?

    Only where one is to come soon (RTT / 2), and the last segment has just gone out.
    """
    if not in_flight or sk.ca_state >= 3 or now - sk.lsndtime > _RECENTLY:
        return False
    head = sk.rtx.head
    if head is None or now - head.sent_at < sk.srtt / 2:
        return False
    if limit >= tcp_size_goal(sk, mss):
        return False
    return limit < min(sk.snd_wnd, sk.cwnd) // 3


def tcp_push_pending_frames(sk: TcpSock, nonagle: int | None = None) -> None:
    """Send what may go; where a closed window holds it, see that it is probed."""
    if sk.send_queue and sk.sk_state != TcpState.TCP_CLOSE:
        now = sk.sk_stack.clock()
        if tcp_write_xmit(sk, now, sk.nonagle if nonagle is None else nonagle):
            tcp_check_probe_timer(sk, now)


def tcp_check_probe_timer(sk: TcpSock, now: float) -> None:
    """Nothing in flight, something to send: probe the window, if no timer runs yet."""
    if not sk.rtx and sk.pending == ICSK_TIME_NONE:
        timer.tcp_reset_xmit_timer(sk, ICSK_TIME_PROBE0, timer.tcp_probe0_base(sk), now)


def tcp_data_snd_check(sk: TcpSock, now: float) -> None:
    """After an acknowledgement: send what it made room for, and wake the user's writers."""
    if sk.send_queue and tcp_write_xmit(sk, now, sk.nonagle):
        tcp_check_probe_timer(sk, now)
    tcp_check_space(sk)


def tcp_check_space(sk: TcpSock) -> None:
    """Whoever was turned away for want of room may find some now (tcp_check_space)."""
    if sk.wants_space():
        tcp_new_space(sk)


def tcp_new_space(sk: TcpSock) -> None:
    """Let the send buffer follow the congestion window, and wake writers."""
    limits = sk.sk_prot.sysctl_wmem
    if limits is not None and sk.may_grow_sndbuf():
        wanted = 2 * max(sk.cwnd, 10 * sk.mss_cache)
        if wanted > sk.sk_sndbuf:
            sk.sk_sndbuf = min(wanted, limits[2])
    sk.sk_write_space(sk)


# -- SYN, FIN and probes ------------------------------------------------------------------------


def tcp_connect_init(sk: TcpSock) -> None:
    """What an active opener knows before its SYN: sizes and windows."""
    dst = sk.dst
    assert dst is not None  # the caller routed
    sk.mss_clamp = sk.user_mss or 65535
    sk.max_window = 0
    tcp_sync_mss(sk, dst.mtu)
    if not sk.advmss or sk.advmss == 536:
        sk.advmss = tcp_advmss(sk)
    tcp_select_initial_window(sk)
    sk.snd_wnd = 0
    sk.snd_wl1 = 0
    sk.snd_una = sk.snd_sml = sk.snd_up = sk.snd_nxt = sk.write_seq
    sk.rcv_nxt = sk.rcv_wup = sk.copied_seq = 0
    sk.rto = 1.0
    sk.retransmits = 0


def tcp_advmss(sk: TcpSock) -> int:
    """What our MSS option says: what the route's MTU carries, or less if TCP_MAXSEG says so."""
    dst = sk.dst
    assert dst is not None
    header = 20 if len(sk.inet_daddr) == 4 else 40
    mss = min(dst.mtu - header - HEADER_LEN, 65535 - HEADER_LEN - header)
    return min(mss, sk.user_mss) if sk.user_mss else mss


def tcp_send_syn(sk: TcpSock, now: float, data: list[Buffer] | None = None) -> None:
    """Send our SYN, with data of Fast Open if there is some, and start its timer."""
    skb = TcpSkb(sk.write_seq, SYN)
    if data:
        skb.parts = data
        skb.length = sum(map(len, data))
        skb.fast_open = True
    tcp_queue_control(sk, skb)
    sk.retrans_stamp = now
    tcp_transmit_skb(sk, skb, now)
    sk.rtx.append(skb)
    sk.snd_nxt = sk.write_seq
    sk.mib["TcpActiveOpens"] += 1
    timer.tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, sk.rto, now)


def tcp_send_fin(sk: TcpSock) -> None:
    """Queue a FIN: with the last data that waits, else by itself; and push everything."""
    tail = sk.send_queue[-1] if sk.send_queue else None
    if tail is not None:
        tail.flags |= FIN | PSH
        tail.end_seq = add(tail.end_seq, 1)
        sk.write_seq = tail.end_seq
    else:
        skb = TcpSkb(sk.write_seq, FIN)
        tcp_queue_control(sk, skb)
        sk.send_queue.append(skb)
    tcp_push_pending_frames(sk, TCP_NAGLE_OFF | TCP_NAGLE_PUSH)


def tcp_write_wakeup(sk: TcpSock) -> int:
    """Probe the peer's window, or its life: with data where one octet fits, else without.

    Returns 1 if data went, 0 for a bare probe, -1 if nothing can be sent any more.
    """
    if sk.sk_state == TcpState.TCP_CLOSE:
        return -1
    now = sk.sk_stack.clock()
    skb = sk.send_queue[0] if sk.send_queue else None
    end = add(sk.snd_una, sk.snd_wnd)
    if skb is not None and before(skb.seq, end):
        mss = tcp_current_mss(sk)
        room = min(diff(end, skb.seq), mss)
        if skb.length > room:
            sk.send_queue.insert(1, tcp_fragment(sk, skb, room))
        skb.flags |= PSH
        if tcp_transmit_skb(sk, skb, now):
            sk.send_queue.popleft()
            ack.tcp_event_new_data_sent(sk, skb, now)
        return 1
    if sk.urg_mode and after(sk.snd_up, sk.snd_una):
        tcp_xmit_probe_skb(sk, True)
    tcp_xmit_probe_skb(sk, False)
    return 0


def tcp_initial_sndbuf(sk: TcpSock) -> int:
    """A new connection's send buffer: twice the first window, unless SO_SNDBUF was set."""
    limits = sk.sk_prot.sysctl_wmem
    if limits is None or not sk.may_grow_sndbuf():
        return sk.sk_sndbuf
    return max(sk.sk_sndbuf, min(2 * 10 * (sk.mss_cache + 512), limits[2]))
