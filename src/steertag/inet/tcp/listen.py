"""Passive opens: what a listener does with a SYN, and how often it answers it
(net/ipv4/tcp_input.c, inet_connection_sock.c).

Memory is bounded whoever floods: requests by the backlog and sysctl tcp_max_syn_backlog, beyond
which SYN cookies take over (syncookies.py); children by the accept queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.family.const import TcpState
from steertag.family.inet import inet_csk_accept, inet_csk_destroy_sock
from steertag.family.sock import sk_acceptq_is_full, sk_acceptq_removed, sock_orphan
from steertag.inet.sock import is_link_local
from steertag.inet.tcp import close, connect, fastopen, reset, syncookies
from steertag.inet.tcp.isn import secure_tcp_seq, secure_tcp_ts_off
from steertag.inet.tcp.request import (
    RequestSock,
    tcp_child_process,
    tcp_reqsk_tsval,
)
from steertag.inet.tcp.sock import tcp_sk
from steertag.inet.tcp.window import tcp_initial_window
from steertag.wire.seq import add
from steertag.wire.tcp import ACK, CWR, ECE, FIN, RST, SYN, Options, emit_options

if TYPE_CHECKING:
    from steertag.inet.ip.net import InetNet
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Segment


tcp_accept = inet_csk_accept
"""`Proto.accept`. Raises EINVAL if it does not listen, EAGAIN if no connection waits."""


# -- the end of a listener ----------------------------------------------------------------------


def inet_csk_listen_stop(sk: TcpSock) -> None:
    """The listener closes: requests are dropped, children that nobody accepted are reset."""
    for req in list(sk.syn_queue.values()):
        req.dequeue()
    while sk.accept_queue:
        child = tcp_sk(sk_acceptq_removed(sk))
        if child.fastopen_rsk is not None:
            fastopen.reqsk_fastopen_remove(child, reset=False)
        close.tcp_disconnect(child, 0)
        sock_orphan(child)
        inet_csk_destroy_sock(child)


# -- segments for a listener --------------------------------------------------------------------


def tcp_listen_rcv(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    """RFC 9293 section 3.10.7.2: RST is ignored, ACK is answered with RST, SYN begins a request."""
    flags = seg.flags
    if flags & RST:
        return
    if flags & ACK:
        if not flags & SYN:
            outcome = syncookies.cookie_check(sk, packet, seg, now)
            if outcome is not None:
                req, child = outcome
                if child is not None:
                    tcp_child_process(req, child, packet, seg, now)
                return
        reset.tcp_send_reset(sk.net.ip, packet, seg)
        return
    if flags & SYN and not flags & FIN:
        tcp_conn_request(sk, packet, seg)


def _listen_drop(net: InetNet) -> None:
    net.mib["TcpExtListenDrops"] += 1


def tcp_conn_request(sk: TcpSock, packet: Packet, seg: Segment, isn: int | None = None) -> None:
    """A SYN for a listener (tcp_conn_request).

    `isn`: the initial sequence number, where a connection in TIME-WAIT demands one; such a peer is
    known to be real, so the limits don't count.
    """
    net = sk.net.ip
    now = net.stack.clock()
    if not reset.is_for_us_alone(packet):
        _listen_drop(net)
        return
    cookies = net.stack.sysctl["net.ipv4.tcp_syncookies"]
    want_cookie = False
    if isn is None and (cookies == 2 or len(sk.syn_queue) > sk.sk_max_ack_backlog):
        if not cookies:
            net.mib["TcpExtTCPReqQFullDrop"] += 1
            _listen_drop(net)
            return
        net.mib["TcpExtTCPReqQFullDoCookies"] += 1
        want_cookie = True
    if sk_acceptq_is_full(sk):
        net.mib["TcpExtListenOverflows"] += 1
        _listen_drop(net)
        return
    if isn is None and not want_cookie and not cookies and _backlog_nearly_full(sk):
        _listen_drop(net)
        return
    options = _syn_options(sk, seg, len(packet.saddr))
    req = _new_request(sk, packet, seg, options, want_cookie)
    if req is None:
        _listen_drop(net)
        return
    if want_cookie:
        req.snt_isn = syncookies.cookie_init_sequence(req, seg, now)
        _send_synack(req, now, tsval=syncookies.cookie_init_timestamp(req, now))
        return
    laddr, lport, raddr, rport = req.hash_key
    req.snt_isn = (
        isn if isn is not None else secure_tcp_seq(net.secret, laddr, lport, raddr, rport, now)
    )
    if sk.save_syn:
        req.saved_syn = _syn_octets(packet, seg)
    if fastopen.tcp_try_fastopen(req, packet, seg, options, now):
        _send_synack(req, now)
        return
    req.enqueue(now)
    _send_synack(req, now)


def _backlog_nearly_full(sk: TcpSock) -> bool:
    """Without cookies the last quarter of the backlog is for peers known to be real; none is."""
    most = sk.sk_stack.sysctl["net.ipv4.tcp_max_syn_backlog"]
    return most - len(sk.syn_queue) < most >> 2


def _syn_options(sk: TcpSock, seg: Segment, addr_len: int) -> Options:
    """The SYN's options, those left out that a sysctl forbids."""
    options = seg.all_options()
    sysctl = sk.sk_stack.sysctl
    default = connect.MSS_DEFAULT[addr_len]
    mss = options.mss if options.mss else default
    options.mss = min(mss, sk.user_mss) if sk.user_mss else mss
    if not sysctl["net.ipv4.tcp_timestamps"]:
        options.tsval = None
    if not sysctl["net.ipv4.tcp_sack"]:
        options.sack_ok = False
    if not sysctl["net.ipv4.tcp_window_scaling"]:
        options.wscale = None
    return options


def _new_request(
    sk: TcpSock, packet: Packet, seg: Segment, options: Options, want_cookie: bool
) -> RequestSock | None:
    """The request of a SYN, sequence number not chosen yet; None: there is no way back."""
    net = sk.net.ip
    if want_cookie:
        options.fast_open = None
        if options.tsval is None:  # there is nothing that could remember them
            options.sack_ok = False
            options.wscale = None
    key = (packet.daddr, seg.dest, packet.saddr, seg.source)
    req = RequestSock(sk, key, seg.seq, options)
    req.ifindex = reset.ifindex_of(packet)
    if req.ts_ok and net.stack.sysctl["net.ipv4.tcp_timestamps"] == 1:
        req.ts_offset = secure_tcp_ts_off(net.secret, packet.daddr, packet.saddr)
    _ecn_create_request(req, packet, seg)
    if want_cookie and not req.ts_ok:
        req.ecn_ok = False
    return req if reqsk_set_windows(req) else None


def reqsk_set_windows(req: RequestSock) -> bool:
    """What we offer to receive (tcp_openreq_init_rwin). False: there is no route to the peer."""
    advmss = _advmss(req)
    if not advmss:
        return False
    req.rcv_wnd, req.rcv_wscale, req.window_clamp = tcp_initial_window(req.listener, advmss)
    if not req.wscale_ok:
        req.rcv_wscale = 0
    return True


def _advmss(req: RequestSock) -> int:
    """What our MSS option says; 0 without a route."""
    laddr, _, raddr, _ = req.hash_key
    sk = req.listener
    try:
        dst = req.net.ip.route_output(raddr, laddr, _oif(req))
    except OSError:
        return 0
    mss = min(dst.mtu, 65535) - (40 if len(raddr) == 4 else 60)
    return min(mss, sk.user_mss) if sk.user_mss else mss


def _oif(req: RequestSock) -> int:
    return req.listener.bound_dev_if or (req.ifindex if is_link_local(req.hash_key[2]) else 0)


def _ecn_create_request(req: RequestSock, packet: Packet, seg: Segment) -> None:
    """RFC 3168 section 6.1.1: the SYN asks with ECE and CWR, and itself is not ECN-capable."""
    if seg.flags & (ECE | CWR) != ECE | CWR:
        return
    if (
        packet.tos & 3 == 0 and req.net.ip.stack.sysctl["net.ipv4.tcp_ecn"]
    ) or req.listener.ca.needs_ecn:
        req.ecn_ok = True


def _syn_octets(packet: Packet, seg: Segment) -> bytes:
    """Network and TCP header of a SYN, as TCP_SAVED_SYN gives them."""
    size = len(packet.network) - len(seg.payload)
    return bytes(packet.network[:size])


# -- SYN-ACKs -----------------------------------------------------------------------------------


def _send_synack(req: RequestSock, now: float, *, tsval: int | None = None) -> bool:
    """Send the SYN-ACK (tcp_make_synack). False: it could not leave."""
    stamp = None
    if req.ts_ok:
        stamp = tsval if tsval is not None else tcp_reqsk_tsval(req, now)
        if req.tsval_first is None:
            req.tsval_first = stamp
        req.tsval_last = stamp
    options = emit_options(
        Options(
            mss=_advmss(req),
            wscale=req.rcv_wscale if req.wscale_ok else None,
            sack_ok=req.sack_ok,
            tsval=stamp,
            tsecr=req.ts_recent,
            fast_open=req.fastopen_cookie,
        )
    )
    sk = req.listener
    if not req.snt_synack:
        req.snt_synack = now
    return reset.tcp_send_control(
        req.net.ip,
        req.hash_key,
        seq=req.snt_isn,
        ack_seq=req.rcv_nxt,
        flags=SYN | ACK | (ECE if req.ecn_ok else 0),
        window=min(req.rcv_wnd, 65535),
        options=options,
        tos=sk.tos & ~3,
        ttl=sk.ttl_for_send,
        oif=_oif(req),
    )


def inet_rtx_syn_ack(req: RequestSock, now: float) -> bool:
    """Send the SYN-ACK again, and count it. False: it could not leave."""
    if not _send_synack(req, now):
        return False
    mib = req.net.ip.mib
    mib["TcpRetransSegs"] += 1
    mib["TcpExtTCPSynRetrans"] += 1
    req.num_retrans += 1
    if req.child is not None:
        req.child.total_retrans += 1
        req.fastopen_cookie = None
    return True


def tcp_reqsk_send_ack(req: RequestSock, now: float) -> None:
    """Acknowledge what is not acceptable, for a connection that is not there yet."""
    child = req.child
    reset.tcp_send_control(
        req.net.ip,
        req.hash_key,
        seq=add(req.snt_isn, 1) if child is None else child.snd_nxt,
        ack_seq=req.rcv_nxt,
        flags=ACK,
        window=min(req.rcv_wnd >> req.rcv_wscale, 65535),
        stamps=(tcp_reqsk_tsval(req, now), req.ts_recent) if req.ts_ok else None,
        tos=req.listener.tos & ~3,
        oif=_oif(req),
    )


def reqsk_timer_handler(req: RequestSock) -> None:
    """No ACK came: the SYN-ACK again, or the end of the attempt (reqsk_timer_handler)."""
    sk = req.listener
    if sk.sk_state != TcpState.TCP_LISTEN:
        req.dequeue()
        return
    now = req.net.ip.stack.clock()
    most = _most_retries(sk)
    deferring = sk.defer_accept
    expired = req.num_timeout >= most and (
        not deferring or not req.acked or req.num_timeout >= deferring
    )
    # While data is waited for the ACK was all right: ask again near the end only.
    resend = not deferring or not req.acked or req.num_timeout >= deferring - 1
    req.net.ip.mib["TcpExtTCPTimeouts"] += 1
    if not expired and (not resend or inet_rtx_syn_ack(req, now) or req.acked):
        if not req.num_timeout:
            sk.syn_young -= 1
        req.num_timeout += 1
        if req.timer is not None:
            req.timer.mod(now + req.timeout())
        return
    req.dequeue()


def _most_retries(sk: TcpSock) -> int:
    """How often: less when the queue is more than half full of what has been asked already."""
    most = sk.syn_retries or sk.sk_stack.sysctl["net.ipv4.tcp_synack_retries"]
    queued = len(sk.syn_queue)
    if queued << 1 > max(8, sk.sk_max_ack_backlog):
        young = sk.syn_young << 1
        while most > 2 and queued >= young:
            most -= 1
            young <<= 1
    return most
