"""Active opens (tcp_v4_connect, tcp_rcv_synsent_state_process; RFC 9293 section 3.10.7.3)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family.const import SOCK_DEAD, TcpState
from steertag.family.inet import inet_stream_connect
from steertag.family.sockopt import sock_of
from steertag.inet.sock import (
    ANY6,
    BROADCAST,
    is_link_local,
    is_multicast,
    is_wildcard,
)
from steertag.inet.tcp import ack, close, fastopen, hash, input, output, reset, timer
from steertag.inet.tcp.isn import secure_tcp_seq, secure_tcp_ts_off
from steertag.inet.tcp.sock import ICSK_TIME_RETRANS, TCP_ECN_OK, tcp_sk
from steertag.wire.seq import add, after, between, diff
from steertag.wire.tcp import ACK, CWR, ECE, RST, SYN

if TYPE_CHECKING:
    from steertag.family.msg import Address
    from steertag.family.sock import Sock
    from steertag.family.socket import Socket
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Options, Segment

_LOOPBACK4: Final = b"\x7f\0\0\1"
_LOOPBACK6: Final = bytes(15) + b"\1"
MSS_DEFAULT: Final = {4: 536, 16: 1220}
"""What a peer without the MSS option takes, by octets of its address (RFC 9293 section 3.7.1)."""
_DELACK_MAX: Final = 0.2


# -- connect ------------------------------------------------------------------------------------


def tcp_v_connect(sk: Sock, address: Address) -> None:
    """`Proto.connect`: route, port, SYN. With TCP_FASTOPEN_CONNECT and a cookie the SYN waits for
    data (`defer_connect`).

    Raises:
        OSError: ENETUNREACH, EHOSTUNREACH: no route, multicast and broadcast included.
            EADDRNOTAVAIL: no port is free, or the connection exists. EAFNOSUPPORT: bound to the
            other version of IP. EINVAL: link-local without a scope.
    """
    tp = tcp_sk(sk)
    daddr, port, flowinfo, scope = tp.parse_address(address)
    if is_wildcard(daddr):  # as everywhere: this host
        daddr = _LOOPBACK6 if daddr == ANY6 or len(tp.inet_saddr) == 16 else _LOOPBACK4
    _check_families(tp, daddr)
    before = (tp.inet_saddr, tp.bound_dev_if)
    if is_link_local(daddr):
        _use_scope(tp, scope)
    tp.flowlabel = flowinfo
    try:
        _route(tp, daddr)
        tp.inet_daddr, tp.inet_dport = daddr, port
        _enter_and_send(tp)
    except OSError:
        tp.inet_saddr, tp.bound_dev_if = before
        tp.inet_daddr, tp.inet_dport = tp.ANY, 0
        tp.dst = None
        raise


def tcp_stream_connect(sock: Socket, address: Address, flags: int) -> None:
    """`ProtoOps.connect`: as `inet_stream_connect`, but a connect whose SYN waits for data
    (TCP_FASTOPEN_CONNECT) has succeeded for now."""
    sk = tcp_sk(sock_of(sock))
    again = sk.defer_connect
    try:
        inet_stream_connect(sock, address, flags)
    except BlockingIOError:
        if not sk.defer_connect:
            raise
        if again:
            raise os_error(errno.EISCONN) from None


def _check_families(sk: TcpSock, daddr: bytes) -> None:
    bound = sk.inet_saddr
    if bound and len(bound) != len(daddr):
        code = errno.ENETUNREACH if len(bound) == 16 else errno.EAFNOSUPPORT
        raise os_error(code, "bound to an address of the other version of IP")
    if sk.v6only and len(daddr) == 4:
        raise os_error(errno.ENETUNREACH, "IPV6_V6ONLY is set")
    if is_multicast(daddr) or daddr == BROADCAST:
        raise os_error(errno.ENETUNREACH, "TCP connects two hosts")


def _use_scope(sk: TcpSock, scope: int) -> None:
    """A link-local address means something on one link only."""
    if scope:
        if sk.bound_dev_if and sk.bound_dev_if != scope:
            raise os_error(errno.EINVAL, "bound to another interface")
        sk.bound_dev_if = scope
    if not sk.bound_dev_if:
        raise os_error(errno.EINVAL, "a link-local address needs its interface")


def _route(sk: TcpSock, daddr: bytes) -> None:
    bound = b"" if is_wildcard(sk.inet_saddr) else sk.inet_saddr
    dst = sk.net.ip.route_output(daddr, bound, sk.bound_dev_if)
    sk.dst = dst
    sk.inet_saddr = bound or dst.saddr


def _enter_and_send(sk: TcpSock) -> None:
    stack = sk.sk_stack
    net = sk.net.ip
    sysctl = stack.sysctl
    now = stack.clock()
    sk.write_seq = 0
    sk.ts_recent, sk.ts_recent_at = 0, 0.0
    # SYN-SENT before it can be found: our own SYN may come back to us.
    close.tcp_set_state(sk, TcpState.TCP_SYN_SENT)
    try:
        hash.inet_hash_connect(sk)
    except OSError:
        close.tcp_set_state(sk, TcpState.TCP_CLOSE)
        raise
    laddr, raddr = sk.inet_saddr, sk.inet_daddr
    if not sk.write_seq:  # TIME-WAIT left none to go on from
        sk.write_seq = secure_tcp_seq(net.secret, laddr, sk.inet_num, raddr, sk.inet_dport, now)
    sk.ts_offset = 0
    if sysctl["net.ipv4.tcp_timestamps"] == 1:
        sk.ts_offset = secure_tcp_ts_off(net.secret, laddr, raddr)
    asks = sysctl["net.ipv4.tcp_ecn"] == 1 or sk.ca.needs_ecn
    sk.ecn_flags = TCP_ECN_OK if asks else 0
    if fastopen.tcp_fastopen_defer_connect(sk):
        return
    tcp_connect(sk, now)


def tcp_connect(sk: TcpSock, now: float) -> None:
    """Send the SYN, with data where Fast Open has some (tcp_connect)."""
    output.tcp_connect_init(sk)
    if sk.fastopen_data is not None:
        fastopen.tcp_send_syn_data(sk, now)
    else:
        output.tcp_send_syn(sk, now)


# -- SYN-SENT -----------------------------------------------------------------------------------


def tcp_rcv_synsent_state_process(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    """A segment in SYN-SENT: the answer to our SYN, or the peer's own SYN crossing it."""
    flags = seg.flags
    if flags & ACK:
        if not _acceptable_ack(sk, seg, now):
            if not sk.retransmits:  # of an old connection, whose end may be answered to soon
                timer.tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, timer.TCP_TIMEOUT_MIN, now)
            reset.tcp_send_reset(sk.net.ip, packet, seg)
        elif flags & RST:
            input.tcp_reset(sk)
        elif flags & SYN:
            _synack_received(sk, packet, seg, now)
        return
    if flags & RST:
        return
    if _paws_reject(sk, seg):
        sk.mib["TcpExtPAWSActive"] += 1
        return
    if flags & SYN:
        _crossing_syn(sk, packet, seg, now)


def _acceptable_ack(sk: TcpSock, seg: Segment, now: float) -> bool:
    """It acknowledges our SYN, and echoes a timestamp that we sent since."""
    if not after(seg.ack_seq, sk.snd_una) or after(seg.ack_seq, sk.snd_nxt):
        return False
    if seg.tsval is not None and seg.tsecr and _timestamps(sk):
        first = add(int(sk.retrans_stamp * 1000), sk.ts_offset)
        if not between(first, seg.tsecr, output.tcp_timestamp(sk, now)):
            sk.mib["TcpExtPAWSActive"] += 1
            return False
    return True


def _timestamps(sk: TcpSock) -> bool:
    return bool(sk.sk_stack.sysctl["net.ipv4.tcp_timestamps"])


def _paws_reject(sk: TcpSock, seg: Segment) -> bool:
    """Older than what a connection of these numbers in TIME-WAIT had seen."""
    return (
        sk.ts_recent_at != 0.0
        and seg.tsval is not None
        and sk.ts_recent != 0
        and diff(sk.ts_recent, seg.tsval) > 0
    )


def _synack_received(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    options = seg.all_options()
    if sk.ecn_flags & TCP_ECN_OK and seg.flags & (ECE | CWR) != ECE:
        sk.ecn_flags = 0
    sk.snd_wl1 = seg.seq
    _agree_timestamps(sk, seg, now)
    ack.tcp_ack(sk, seg, now, (), data=False)
    _agree_options(sk, options)
    _numbers_of_syn(sk, seg)
    sk.snd_wnd = seg.window  # that of a SYN is never scaled
    sk.max_window = max(sk.max_window, sk.snd_wnd)
    tcp_finish_connect(sk, now)
    failed = False
    if sk.syn_fastopen or sk.syn_data:
        failed = fastopen.tcp_rcv_fastopen_synack(sk, packet, seg, options, now)
    if not sk.sk_flags & SOCK_DEAD:
        sk.sk_state_change(sk)
    if failed or sk.sk_state == TcpState.TCP_CLOSE:
        return
    if sk.send_queue or sk.defer_accept or sk.pingpong:
        # The data that is about to go acknowledges as well.
        sk.ack_pending = True
        output.tcp_enter_quickack_mode(sk)
        sk.delack_timer.mod(now + _DELACK_MAX)
        output.tcp_push_pending_frames(sk)
        return
    output.tcp_send_ack(sk)


def _agree_timestamps(sk: TcpSock, seg: Segment, now: float) -> None:
    sk.ts_ok = seg.tsval is not None and _timestamps(sk)
    if sk.ts_ok and seg.tsval is not None:
        sk.ts_recent, sk.ts_recent_at = seg.tsval, now
    else:
        sk.ts_recent, sk.ts_recent_at = 0, 0.0


def _agree_options(sk: TcpSock, options: Options) -> None:
    """What both SYNs had."""
    sysctl = sk.sk_stack.sysctl
    sk.sack_ok = options.sack_ok and bool(sysctl["net.ipv4.tcp_sack"])
    shift = options.wscale
    if shift is not None and sysctl["net.ipv4.tcp_window_scaling"]:
        sk.wnd_scale_ok = True
        sk.snd_wscale = shift
    else:
        sk.wnd_scale_ok = False
        sk.snd_wscale = sk.rcv_wscale = 0
        sk.window_clamp = min(sk.window_clamp, 65535)
    mss = options.mss if options.mss else MSS_DEFAULT[len(sk.inet_daddr)]
    sk.mss_clamp = min(mss, sk.user_mss) if sk.user_mss else mss


def _numbers_of_syn(sk: TcpSock, seg: Segment) -> None:
    sk.rcv_nxt = sk.rcv_wup = sk.copied_seq = add(seg.seq, 1)
    dst = sk.dst
    if dst is not None:
        output.tcp_sync_mss(sk, dst.mtu)


def _crossing_syn(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    """Both opened at once (RFC 9293 figure 8), or a sock met its own SYN."""
    close.tcp_set_state(sk, TcpState.TCP_SYN_RECV)
    _agree_timestamps(sk, seg, now)
    _agree_options(sk, seg.all_options())
    _numbers_of_syn(sk, seg)
    sk.snd_wnd = sk.max_window = seg.window
    sk.snd_wl1 = seg.seq
    if sk.ecn_flags & TCP_ECN_OK and (seg.flags & (ECE | CWR) != ECE | CWR or packet.tos & 3):
        sk.ecn_flags = 0
    head = sk.rtx.head
    if head is not None:
        output.tcp_transmit_skb(sk, head, now)


def tcp_finish_connect(sk: TcpSock, now: float) -> None:
    """The handshake is done on our side."""
    close.tcp_set_state(sk, TcpState.TCP_ESTABLISHED)
    input.tcp_init_transfer(sk, now)
    sk.lsndtime = now  # the first data is not "after idling"
