"""TCP Fast Open (RFC 7413), both sides: data in the SYN, for those who hold a cookie.

The server's part is in `tcp_try_fastopen`: a SYN with a good cookie makes the child at once, which
may be accepted, read and written before the last ACK. The client's is in `tcp_sendmsg_fastopen`
and `tcp_send_syn_data`; cookies are kept per destination.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family.const import TcpState
from steertag.family.sock import sk_acceptq_added
from steertag.family.timer import Timer
from steertag.inet.tcp import hash, input, listen, output, request, retransmit, timeout, timer
from steertag.inet.tcp.isn import keyed_hash
from steertag.inet.tcp.sock import (
    ICSK_TIME_RETRANS,
    TCP_CA_OPEN,
    TCP_TIMEOUT_INIT,
)
from steertag.wire.seq import add
from steertag.wire.tcp import PSH, SYN

if TYPE_CHECKING:
    from steertag.family.msg import MsgHdr
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.request import RequestSock
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Options, Segment

# sysctl tcp_fastopen
TFO_CLIENT_ENABLE: Final = 1
TFO_SERVER_ENABLE: Final = 2
TFO_CLIENT_NO_COOKIE: Final = 4
TFO_SERVER_COOKIE_NOT_REQD: Final = 0x200
TFO_SERVER_WO_SOCKOPT: Final = 0x400

# tcpi_fastopen_client_fail
TFO_COOKIE_UNAVAILABLE: Final = 1
TFO_DATA_NOT_ACKED: Final = 2
TFO_SYN_RETRANSMITTED: Final = 3

_CACHE_SIZE: Final = 1024
_COOKIE_LEN: Final = 8
_MAX_TCP_OPTIONS: Final = 40
_RST_WAIT: Final = 60.0
"""Seconds that a child which was reset counts against the queue: a defence against spoofing."""


class FastopenMetrics:
    """What is known of one server: its cookie (b"": none), and the MSS that it offered."""

    __slots__ = ("cookie", "mss")

    def __init__(self) -> None:
        self.cookie = b""
        self.mss = 0


# -- client: what is known ------------------------------------------------------------------------


def _metrics(sk: TcpSock) -> FastopenMetrics | None:
    return sk.net.fastopen_cache.get(sk.inet_daddr)


def _remember(sk: TcpSock, mss: int, cookie: bytes | None, *, dropped: bool) -> None:
    """The oldest destination is forgotten when there are too many (tcp_fastopen_cache_set)."""
    cache = sk.net.fastopen_cache
    known = cache.pop(sk.inet_daddr, None) or FastopenMetrics()
    if mss:
        known.mss = mss
    if cookie:
        known.cookie = cookie
    if dropped:
        known.cookie = b""  # somebody on the way does not like SYNs with data
    cache[sk.inet_daddr] = known
    if len(cache) > _CACHE_SIZE:
        del cache[next(iter(cache))]


def tcp_fastopen_active_disable(sk: TcpSock, now: float) -> None:
    """Something on the way swallows Fast Open: none for a while, twice as long each time, up to 64
    times sysctl tcp_fastopen_blackhole_timeout_sec; 0 there means never mind."""
    net = sk.net
    seconds = sk.sk_stack.sysctl["net.ipv4.tcp_fastopen_blackhole_timeout_sec"]
    if not seconds:
        return
    net.fastopen_off_until = now + seconds * (1 << min(net.fastopen_off_times, 6))
    net.fastopen_off_times += 1
    sk.mib["TcpExtTCPFastOpenBlackhole"] += 1


def tcp_fastopen_active_detect_blackhole(sk: TcpSock, expired: bool, now: float) -> None:
    """A time-out of a connection of ours with Fast Open: the third in a row, or the last, says that
    the way does not bear it."""
    used = sk.syn_fastopen or sk.syn_data or sk.syn_data_acked
    if used and (sk.retransmits == 2 or (sk.retransmits < 2 and expired)):
        tcp_fastopen_active_disable(sk, now)


def _cookie_check(sk: TcpSock) -> tuple[bool, bytes | None]:
    """May data go with the SYN, and the SYN's option: None for none, b"" to ask for a cookie."""
    if sk.sk_stack.clock() < sk.net.fastopen_off_until:
        return False, None
    if sk.fastopen_no_cookie or (
        sk.sk_stack.sysctl["net.ipv4.tcp_fastopen"] & TFO_CLIENT_NO_COOKIE
    ):
        return True, None
    known = _metrics(sk)
    if known is not None and known.cookie:
        return True, known.cookie
    sk.fastopen_client_fail = TFO_COOKIE_UNAVAILABLE
    return False, b""


def tcp_fastopen_defer_connect(sk: TcpSock) -> bool:
    """TCP_FASTOPEN_CONNECT: with a cookie at hand the SYN waits for the first data; True then."""
    if not sk.fastopen_connect or sk.fastopen_data is not None:
        return False
    if _cookie_check(sk)[0]:
        sk.defer_connect = True
        return True
    sk.fastopen_data = []  # have the SYN ask for a cookie
    return False


# -- client: sending ------------------------------------------------------------------------------


def tcp_sendmsg_fastopen(sk: TcpSock, msg: MsgHdr) -> int:
    """`sendmsg` with MSG_FASTOPEN, or the first after TCP_FASTOPEN_CONNECT: octets that went with
    the SYN; what does not fit is the caller's to queue. 0 for a connection that was begun so.

    Raises:
        OSError: EOPNOTSUPP, sysctl tcp_fastopen forbids it; EINPROGRESS, a SYN without data is
            out; what connect(2) raises.
    """
    if not sk.sk_stack.sysctl["net.ipv4.tcp_fastopen"] & TFO_CLIENT_ENABLE:
        raise os_error(errno.EOPNOTSUPP, "sysctl net.ipv4.tcp_fastopen is without bit 1")
    sock = sk.sk_socket
    if sk.fastopen_data is not None or (sk.syn_fastopen and sk.sk_state != TcpState.TCP_CLOSE):
        return 0
    sk.fastopen_data = [msg.read(0, min(msg.length, 65535))]
    if sk.defer_connect:
        sk.defer_connect = False
        output.tcp_connect_init(sk)
        tcp_send_syn_data(sk, sk.sk_stack.clock())
        if not sk.syn_data:
            raise os_error(errno.EINPROGRESS)
    else:
        assert sock is not None  # somebody called sendmsg
        try:
            sock.ops.connect(sock, msg.msg_name, 0)
        except BlockingIOError:
            if not sk.syn_data:
                raise
        except OSError:
            sk.fastopen_data = None
            raise
    head = next((skb for skb in sk.rtx if skb.fast_open and skb.length), None)
    return head.length if head is not None and sk.syn_data else 0


def tcp_send_syn_data(sk: TcpSock, now: float) -> None:
    """Send the SYN with as much of `fastopen_data` as one segment holds, where a cookie allows it;
    else the SYN alone, which asks for one (tcp_send_syn_data)."""
    data = b"".join(sk.fastopen_data or ())
    allowed, cookie = _cookie_check(sk)
    sk.fast_open_cookie = cookie
    sk.syn_fastopen = cookie is not None or allowed
    payload = b""
    if allowed:
        known = _metrics(sk)
        mss = known.mss if known is not None and known.mss else sk.advmss
        sk.mss_clamp = min(mss, sk.advmss)
        output.tcp_sync_mss(sk, sk.pmtu)
        space = output.tcp_mtu_to_mss(sk, sk.pmtu) - _MAX_TCP_OPTIONS
        payload = data[: max(space, 0)]
    sk.syn_data = bool(payload)
    output.tcp_send_syn(sk, now, [payload] if payload else None)
    sk.fastopen_data = None
    sk.fast_open_cookie = None  # a SYN that is sent again goes without
    if payload:
        _part_syn_from_data(sk)


def _part_syn_from_data(sk: TcpSock) -> None:
    """What is in flight is kept as two pieces: so the SYN can be repeated without the data, and the
    data without the SYN."""
    head = sk.rtx.head
    assert head is not None  # it was sent just now
    rest = sk.rtx.split(0, 0)
    rest.flags |= PSH
    rest.fast_open = True
    head.fast_open = False
    sk.mib["TcpExtTCPOrigDataSent"] += 1


# -- client: the answer ---------------------------------------------------------------------------


def tcp_rcv_fastopen_synack(
    sk: TcpSock, packet: Packet, seg: Segment, options: Options, now: float
) -> bool:
    """The SYN-ACK of a SYN with Fast Open: learn its cookie, and send again what it did not
    acknowledge. True: it did not acknowledge the data."""
    unacked = [skb for skb in sk.rtx if skb.length] if sk.syn_data else []
    cookie = options.fast_open if sk.syn_fastopen else None
    dropped = bool(sk.total_retrans and not cookie and unacked)
    _remember(sk, options.mss or 0, cookie, dropped=dropped)
    if unacked:
        sk.fastopen_client_fail = TFO_SYN_RETRANSMITTED if sk.total_retrans else TFO_DATA_NOT_ACKED
        sk.mib["TcpExtTCPFastOpenActiveFail"] += 1
        for skb in unacked:
            sk.rtx.mark_lost(skb)
        retransmit.tcp_non_congestion_loss_retransmit(sk, now)
        return True
    sk.syn_data_acked = sk.syn_data
    if sk.syn_data_acked:
        sk.mib["TcpExtTCPFastOpenActive"] += 1
        sk.net.fastopen_off_times = 0
    _add_syn_data(sk, packet, seg, now)
    return False


def _add_syn_data(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    """Take the data of a SYN or SYN-ACK that `rcv_nxt` stands behind (tcp_fastopen_add_skb)."""
    if not seg.payload:
        return
    seg.seq = add(seg.seq, 1)
    seg.flags &= ~SYN
    input.tcp_data_queue(sk, packet, seg, now)


# -- server -------------------------------------------------------------------------------------


def tcp_fastopen_cookie(secret: bytes, laddr: bytes, raddr: bytes) -> bytes:
    """The cookie of a client: nobody at another address can know it (RFC 7413 section 4.1.2)."""
    return keyed_hash(secret, b"tfo", laddr, raddr).to_bytes(_COOKIE_LEN, "big")


def _queue_check(sk: TcpSock) -> bool:
    """The listener wants Fast Open, and not too many children wait for their last ACK."""
    most = sk.fastopen_qmax
    if not most and sk.sk_stack.sysctl["net.ipv4.tcp_fastopen"] & TFO_SERVER_WO_SOCKOPT:
        most = sk.sk_max_ack_backlog
    if not most:
        return False
    if sk.fastopen_qlen >= most:
        sk.mib["TcpExtTCPFastOpenListenOverflow"] += 1
        return False
    return True


def tcp_try_fastopen(
    req: RequestSock, packet: Packet, seg: Segment, options: Options, now: float
) -> bool:
    """A SYN with Fast Open's option, or data (tcp_try_fastopen). True: there is a child now, in
    the accept queue; the SYN-ACK is left to be sent."""
    sk = req.listener
    cookie = options.fast_open
    mib = sk.mib
    if cookie == b"":
        mib["TcpExtTCPFastOpenCookieReqd"] += 1
    flags = sk.sk_stack.sysctl["net.ipv4.tcp_fastopen"]
    if not flags & TFO_SERVER_ENABLE or (cookie is None and not seg.payload):
        return False
    if not _queue_check(sk):
        return False
    free = bool(flags & TFO_SERVER_COOKIE_NOT_REQD) or sk.fastopen_no_cookie
    laddr, _, raddr, _ = req.hash_key
    valid = tcp_fastopen_cookie(sk.net.ip.secret, laddr, raddr)
    if not free and (cookie is None or cookie != valid):
        if cookie:
            mib["TcpExtTCPFastOpenPassiveFail"] += 1
        if cookie is not None:
            req.fastopen_cookie = valid
        return False
    if _create_child(req, packet, seg, now):
        mib["TcpExtTCPFastOpenPassive"] += 1
        return True
    mib["TcpExtTCPFastOpenPassiveFail"] += 1
    if cookie is not None:
        req.fastopen_cookie = valid
    return False


def _create_child(req: RequestSock, packet: Packet, seg: Segment, now: float) -> bool:
    """The child, with the SYN's data, before its handshake is done (tcp_fastopen_create_child)."""
    child = request.tcp_syn_recv_sock(req, packet, seg)
    if child is None:
        return False
    listener = req.listener
    req.child = child
    child.fastopen_rsk = req
    listener.fastopen_qlen += 1
    child.snd_wnd = child.max_window = seg.window  # that of a SYN is never scaled
    hash.inet_ehash_insert(child)
    timer.tcp_reset_xmit_timer(child, ICSK_TIME_RETRANS, TCP_TIMEOUT_INIT, now)
    input.tcp_init_transfer(child, now)
    child.syn_data_acked = bool(seg.payload)
    _add_syn_data(child, packet, seg, now)
    # The SYN-ACK acknowledges it.
    req.rcv_nxt = child.rcv_wup = child.rcv_nxt
    child.ack_pending = child.ack_now = False
    sk_acceptq_added(listener, child)
    return True


def tcp_fastopen_synack_timer(sk: TcpSock, now: float) -> None:
    """The retransmit timer of a child whose SYN-ACK is not acknowledged (`sk.fastopen_rsk`): it
    goes again, one time more than others, and nothing else does."""
    req = sk.fastopen_rsk
    assert req is not None  # the caller looked
    most = sk.syn_retries or sk.sk_stack.sysctl["net.ipv4.tcp_synack_retries"] + 1
    sk.mib["TcpExtTCPTimeouts"] += 1
    if req.num_timeout >= most:
        timeout.tcp_write_err(sk)
        return
    if sk.retransmits == 1 and sk.ca_state == TCP_CA_OPEN:
        sk.ssthresh = max(sk.cwnd >> 1, 2 * sk.mss_cache)
        sk.cwnd = sk.mss_cache
    listen.inet_rtx_syn_ack(req, now)
    req.num_timeout += 1
    sk.retransmits += 1
    if not sk.retrans_stamp:
        sk.retrans_stamp = now
    timer.tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, req.timeout(), now)


def tcp_rcv_synrecv_state_fastopen(sk: TcpSock, now: float) -> None:
    """The SYN-ACK is acknowledged: from now on the child is like any other."""
    sk.retrans_stamp = 0.0
    sk.retransmits = 0
    reqsk_fastopen_remove(sk, reset=False)
    timer.tcp_rearm_rto(sk, now)


def reqsk_fastopen_remove(sk: TcpSock, *, reset: bool) -> None:
    """The child's handshake is over: by its ACK, by a time-out, or (reset) by RST, which keeps its
    place in the queue for a minute."""
    req = sk.fastopen_rsk
    if req is None:
        return
    sk.fastopen_rsk = None
    req.child = None
    listener = req.listener
    if reset and listener.sk_state == TcpState.TCP_LISTEN:
        stack = sk.sk_stack
        Timer(stack.timers, lambda: _leave_queue(listener)).mod(stack.clock() + _RST_WAIT)
    else:
        _leave_queue(listener)


def _leave_queue(listener: TcpSock) -> None:
    listener.fastopen_qlen -= 1
