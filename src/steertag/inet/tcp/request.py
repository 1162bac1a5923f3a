"""A connection of which only the SYN is there: its request, and how it becomes a child
(net/ipv4/tcp_minisocks.c; RFC 9293 section 3.10.7.4 for SYN-RECEIVED).

A request costs a few hundred octets and a timer; the TcpSock is made when the handshake's last
ACK has shown that the peer is where it says it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.family.const import (
    SOCK_KEEPOPEN,
    SOCK_LINGER,
    SOCK_RCVBUF_LOCK,
    SOCK_SNDBUF_LOCK,
    SOCK_URGINLINE,
    TcpState,
)
from steertag.family.inet import sk_clone
from steertag.family.sock import sk_acceptq_added, sk_acceptq_is_full, sk_free
from steertag.family.timer import Timer
from steertag.inet.sock import is_link_local
from steertag.inet.tcp import fastopen, hash, input, listen, output, reset
from steertag.inet.tcp.isn import tcp_clock_ms
from steertag.inet.tcp.sock import TCP_ECN_OK, TCP_RTO_MAX, TCP_TIMEOUT_INIT, tcp_sk
from steertag.wire.seq import add, after, between, diff
from steertag.wire.tcp import ACK, RST, SYN

if TYPE_CHECKING:
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.hash import Key
    from steertag.inet.tcp.net import TcpNet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Options, Segment

TCP_NEW_SYN_RECV: Final = 12
"""sk_state of a RequestSock."""
_INHERITED_FLAGS: Final = (
    SOCK_LINGER | SOCK_SNDBUF_LOCK | SOCK_RCVBUF_LOCK | SOCK_KEEPOPEN | SOCK_URGINLINE
)
_INHERITED: Final = (
    "sk_rcvbuf",
    "sk_sndbuf",
    "sk_lingertime",
    "sk_rcvtimeo",
    "sk_sndtimeo",
    "ca",
    "keepalive_intvl",
    "keepalive_on",
    "keepalive_probes",
    "keepalive_time",
    "linger2",
    "nonagle",
    "notsent_lowat",
    "recvmsg_inq",
    "syn_retries",
    "user_mss",
    "user_timeout",
)
"""What the kernel's child has of its listener because the whole struct is copied."""


class RequestSock:
    """A connection of which we have seen the SYN only (struct tcp_request_sock).

    Attributes:
        listener: whose connection it will be.
        hash_key: own address and port, the peer's.
        rcv_isn, snt_isn: sequence numbers of the SYN, and of our SYN-ACK.
        rcv_nxt: behind the SYN, and the data that a Fast Open child took from it.
        mss: what the peer's option allows. rcv_wnd, window_clamp: octets that we offer.
        ts_recent, ts_offset: the peer's timestamp, and what is added to our clock.
        tsval_first, tsval_last: our timestamps in the first and the latest SYN-ACK.
        acked: the last ACK came and could not be used yet (TCP_DEFER_ACCEPT, full queue).
        num_timeout, num_retrans: expiries of the timer, SYN-ACKs sent again.
        child: of Fast Open; it is the sock that segments find.
        fastopen_cookie: option of the SYN-ACK.
        saved_syn: network and TCP header of the SYN, for TCP_SAVED_SYN.
    """

    __slots__ = (
        "__weakref__",
        "acked",
        "child",
        "ecn_ok",
        "fastopen_cookie",
        "hash_key",
        "ifindex",
        "last_oow_ack_time",
        "listener",
        "mss",
        "net",
        "num_retrans",
        "num_timeout",
        "rcv_isn",
        "rcv_nxt",
        "rcv_wnd",
        "rcv_wscale",
        "sack_ok",
        "saved_syn",
        "sk_state",
        "snd_wscale",
        "snt_isn",
        "snt_synack",
        "timer",
        "ts_offset",
        "ts_ok",
        "ts_recent",
        "tsval_first",
        "tsval_last",
        "window_clamp",
        "wscale_ok",
    )

    def __init__(self, listener: TcpSock, key: Key, rcv_isn: int, options: Options) -> None:
        self.sk_state = TCP_NEW_SYN_RECV
        self.listener = listener
        self.net: TcpNet = listener.net
        self.hash_key = key
        self.ifindex = 0
        self.rcv_isn = rcv_isn
        self.rcv_nxt = add(rcv_isn, 1)
        self.snt_isn = 0
        self.snt_synack = 0.0
        self.mss = options.mss or 0
        self.ts_ok = options.tsval is not None
        self.ts_recent = options.tsval or 0
        self.ts_offset = 0
        self.tsval_first: int | None = None
        self.tsval_last = 0
        self.sack_ok = options.sack_ok
        self.wscale_ok = options.wscale is not None
        self.snd_wscale = options.wscale or 0
        self.ecn_ok = False
        self.rcv_wnd = self.rcv_wscale = self.window_clamp = 0
        self.acked = False
        self.num_timeout = self.num_retrans = 0
        self.last_oow_ack_time = 0.0
        self.saved_syn: bytes | None = None
        self.child: TcpSock | None = None
        self.fastopen_cookie: bytes | None = None
        self.timer: Timer | None = None

    def enqueue(self, now: float) -> None:
        """Findable, counted in the listener's queue, and its timer started."""
        listener = self.listener
        self.net.hash.ehash[self.hash_key] = self
        listener.syn_queue[self.hash_key] = self
        listener.syn_young += 1
        self.timer = Timer(self.net.ip.stack.timers, self._expired)
        self.timer.mod(now + TCP_TIMEOUT_INIT)

    def dequeue(self) -> None:
        """Not waited for any more (inet_csk_reqsk_queue_unlink). Calling it again is harmless."""
        if self.timer is not None:
            self.timer.delete()
        listener = self.listener
        if listener.syn_queue.get(self.hash_key) is self:
            del listener.syn_queue[self.hash_key]
            if not self.num_timeout:
                listener.syn_young -= 1
        if self.net.hash.ehash.get(self.hash_key) is self:
            del self.net.hash.ehash[self.hash_key]

    def timeout(self) -> float:
        """Seconds until the SYN-ACK is to be sent again (reqsk_timeout)."""
        return min(TCP_TIMEOUT_INIT * (1 << min(self.num_timeout, 8)), TCP_RTO_MAX)

    def _expired(self) -> None:
        listen.reqsk_timer_handler(self)


# -- segments -----------------------------------------------------------------------------------


def tcp_check_req(req: RequestSock, packet: Packet, seg: Segment, now: float) -> None:
    """A segment for a request (tcp_check_req): the last ACK makes a child, and is fed to it."""
    if not _paws_and_retransmission(req, seg, now):
        return
    flags = seg.flags
    if flags & RST and seg.seq != req.rcv_nxt:
        # Perhaps a guess: whoever meant it sends it again where it should be (RFC 5961).
        if _acceptable(req, seg, now) and not _rate_limited(req, seg, now):
            listen.tcp_reqsk_send_ack(req, now)
        return
    if flags & ACK and seg.ack_seq != add(req.snt_isn, 1):
        # For a SYN-ACK that we never sent; the listener knows about cookies.
        listen.tcp_listen_rcv(req.listener, packet, seg, now)
        return
    if not _acceptable(req, seg, now):
        return
    if _embryonic_reset(req, seg):
        if not flags & RST:
            reset.tcp_send_reset(req.net.ip, packet, seg)
        req.dequeue()
        req.net.ip.mib["TcpExtEmbryonicRsts"] += 1
        return
    if not flags & ACK:
        return
    if req.num_timeout < req.listener.defer_accept and seg.end_seq == req.rcv_nxt:
        req.acked = True  # TCP_DEFER_ACCEPT: the ACK alone wakes nobody
        req.net.ip.mib["TcpExtTCPDeferAcceptDrop"] += 1
        return
    child = tcp_syn_recv_sock(req, packet, seg)
    if child is None:
        _overflow(req, packet, seg)
        return
    tcp_child_process(req, child, packet, seg, now)


def tcp_check_fastopen_req(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> bool:
    """The same for a child of Fast Open whose SYN-ACK is not acknowledged yet; True: it is
    acceptable, and the child's to process."""
    req = sk.fastopen_rsk
    assert req is not None  # the caller looked
    if not _paws_and_retransmission(req, seg, now) or not _acceptable(req, seg, now):
        return False
    if _embryonic_reset(req, seg):
        if seg.flags & RST:
            fastopen.reqsk_fastopen_remove(sk, reset=True)
            input.tcp_reset(sk)
        else:
            reset.tcp_send_reset(req.net.ip, packet, seg)
        return False
    return bool(seg.flags & ACK)


def _paws_and_retransmission(req: RequestSock, seg: Segment, now: float) -> bool:
    """False: it was the SYN again, which the SYN-ACK answers again."""
    if seg.seq != req.rcv_isn or seg.flags & (SYN | ACK | RST) != SYN or _paws_reject(req, seg):
        return True
    if not _rate_limited(req, seg, now) and listen.inet_rtx_syn_ack(req, now) and req.timer:
        req.timer.mod(now + req.timeout())
    return False


def _acceptable(req: RequestSock, seg: Segment, now: float) -> bool:
    """PAWS and the window; what is neither is acknowledged, and dropped."""
    reject = _paws_reject(req, seg)
    echo_reject = _tsecr_reject(req, seg)
    end = add(req.rcv_nxt, req.rcv_wnd)
    if reject or echo_reject or not reset.in_window(seg, req.rcv_nxt, end):
        if not seg.flags & RST and not _rate_limited(req, seg, now):
            listen.tcp_reqsk_send_ack(req, now)
        if reject:
            req.net.ip.mib["TcpExtPAWSEstab"] += 1
        elif echo_reject:
            req.net.ip.mib["TcpExtTSEcrRejected"] += 1
        return False
    if seg.tsval is not None and req.ts_ok and not after(seg.seq, req.rcv_nxt):
        req.ts_recent = seg.tsval
    return True


def _embryonic_reset(req: RequestSock, seg: Segment) -> bool:
    """RST, or a SYN in the window: the attempt has failed."""
    flags = seg.flags
    if flags & RST or (flags & SYN and seg.seq != req.rcv_isn):
        req.net.ip.mib["TcpAttemptFails"] += 1
        return True
    return False


def _paws_reject(req: RequestSock, seg: Segment) -> bool:
    return (
        seg.tsval is not None
        and req.ts_ok
        and req.ts_recent != 0
        and diff(req.ts_recent, seg.tsval) > 0
    )


def _tsecr_reject(req: RequestSock, seg: Segment) -> bool:
    """It echoes a timestamp that no SYN-ACK of ours had."""
    return (
        seg.tsval is not None
        and seg.tsecr != 0
        and req.ts_ok
        and req.child is None
        and req.tsval_first is not None
        and not between(req.tsval_first, seg.tsecr, req.tsval_last)
    )


def _rate_limited(req: RequestSock, seg: Segment, now: float) -> bool:
    last = req.last_oow_ack_time
    if reset.oow_rate_limited(req.net, seg, "TCPACKSkippedSynRecv", last, now):
        return True
    if not reset.takes_room(seg):
        req.last_oow_ack_time = now
    return False


def _overflow(req: RequestSock, packet: Packet, seg: Segment) -> None:
    """The accept queue is full: the ACK is forgotten and the SYN-ACK will ask for it again; with
    sysctl tcp_abort_on_overflow the peer hears RST."""
    if not req.net.ip.stack.sysctl["net.ipv4.tcp_abort_on_overflow"]:
        req.acked = True
        return
    reset.tcp_send_reset(req.net.ip, packet, seg)
    req.dequeue()
    req.net.ip.mib["TcpExtEmbryonicRsts"] += 1


# -- the child ------------------------------------------------------------------------------------


def tcp_child_process(
    req: RequestSock, child: TcpSock, packet: Packet, seg: Segment, now: float
) -> None:
    """Into the accept queue with the child, and the segment into the child."""
    req.dequeue()
    hash.inet_ehash_insert(child)
    sk_acceptq_added(req.listener, child)
    input.tcp_rcv_state_process(child, packet, seg, now)


def tcp_syn_recv_sock(req: RequestSock, packet: Packet, seg: Segment) -> TcpSock | None:
    """The child of a request (tcp_v4_syn_recv_sock); None: no room for it, which is counted."""
    listener = req.listener
    mib = req.net.ip.mib
    if sk_acceptq_is_full(listener):
        mib["TcpExtListenOverflows"] += 1
        mib["TcpExtListenDrops"] += 1
        return None
    laddr, _, raddr, _ = req.hash_key
    bound = listener.bound_dev_if or (req.ifindex if is_link_local(raddr) else 0)
    try:
        dst = req.net.ip.route_output(raddr, laddr, bound)
        child = tcp_sk(sk_clone(listener))
    except OSError:
        mib["TcpExtListenDrops"] += 1
        return None
    try:
        child.dst = dst
        child.bound_dev_if = bound
        tcp_create_openreq_child(req, child, seg)
        hash.inet_inherit_port(listener, child)
    except BaseException:
        sk_free(child)
        raise
    mib["TcpPassiveOpens"] += 1
    return child


def tcp_create_openreq_child(req: RequestSock, child: TcpSock, seg: Segment) -> None:
    """Fill in what listener, request and the handshake's last segment say (tcp_minisocks.c)."""
    listener = req.listener
    bound = child.bound_dev_if
    child.inherit(listener)
    child.bound_dev_if = bound
    for name in _INHERITED:
        setattr(child, name, getattr(listener, name))
    child.sk_flags |= listener.sk_flags & _INHERITED_FLAGS
    laddr, lport, raddr, rport = req.hash_key
    child.inet_saddr, child.inet_num = laddr, lport
    child.inet_daddr, child.inet_dport = raddr, rport
    child.listener = listener
    child.sk_state = TcpState.TCP_SYN_RECV
    _child_numbers(req, child)
    _child_options(req, child, seg)


def _child_numbers(req: RequestSock, child: TcpSock) -> None:
    seq = add(req.snt_isn, 1)
    child.rcv_nxt = child.rcv_wup = child.copied_seq = add(req.rcv_isn, 1)
    child.snd_una = child.snd_sml = child.snd_nxt = child.snd_up = child.write_seq = seq
    child.snd_wl1 = req.rcv_isn
    child.total_retrans = req.num_retrans
    child.snt_synack = req.snt_synack if not req.num_retrans else 0.0
    child.saved_syn, req.saved_syn = req.saved_syn, None


def _child_options(req: RequestSock, child: TcpSock, seg: Segment) -> None:
    child.ts_ok = req.ts_ok
    child.ts_offset = req.ts_offset
    if req.ts_ok:
        child.ts_recent = req.ts_recent
        child.ts_recent_at = req.net.ip.stack.clock()
    child.sack_ok = req.sack_ok
    child.wnd_scale_ok = req.wscale_ok
    child.snd_wscale = req.snd_wscale if req.wscale_ok else 0
    child.rcv_wscale = req.rcv_wscale if req.wscale_ok else 0
    child.window_clamp = req.window_clamp if req.wscale_ok else min(req.window_clamp, 65535)
    child.rcv_wnd = child.rcv_ssthresh = req.rcv_wnd
    child.snd_wnd = child.max_window = seg.window << child.snd_wscale
    child.ecn_flags = TCP_ECN_OK if req.ecn_ok else 0
    child.mss_clamp = req.mss
    child.advmss = output.tcp_advmss(child)
    dst = child.dst
    if dst is not None:
        output.tcp_sync_mss(child, dst.mtu)


def tcp_reqsk_tsval(req: RequestSock, now: float) -> int:
    """Our timestamp for that peer."""
    return (tcp_clock_ms(now) + req.ts_offset) & 0xFFFFFFFF
