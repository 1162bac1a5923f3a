"""What we offer to receive: the window, and the buffer behind it (tcp_output.c, tcp_input.c).

A buffer's octets are charged with their bookkeeping (`truesize`), the window counts payload:
`scaling_ratio`, in 256ths, says how much of the one is the other, and follows what arrives.
"""

from __future__ import annotations

from typing import Final

from steertag.family.const import SKB_OVERHEAD, SOCK_RCVBUF_LOCK
from steertag.family.memory import sk_under_memory_pressure
from steertag.inet.tcp.sock import TcpSock
from steertag.wire.seq import add, diff

_RATIO_START: Final = 128
_RATIO_MOST: Final = 255
_MAX_WSCALE: Final = 14
_MAX_UNSCALED: Final = 65535


def tcp_win_from_space(sk: TcpSock, space: int) -> int:
    """Octets of payload that `space` octets of buffer hold."""
    return space * sk.scaling_ratio >> 8


def tcp_space_from_win(sk: TcpSock, window: int) -> int:
    """Octets of buffer that `window` octets of payload need."""
    return (window << 8) // sk.scaling_ratio


def tcp_full_space(sk: TcpSock) -> int:
    return tcp_win_from_space(sk, sk.sk_rcvbuf)


def tcp_receive_window(sk: TcpSock) -> int:
    """Octets that the peer may still send of what was offered last."""
    left = diff(add(sk.rcv_wup, sk.rcv_wnd), sk.rcv_nxt)
    return left if left > 0 else 0


def tcp_initial_window(sk: TcpSock, advmss: int) -> tuple[int, int, int]:
    """The window of a SYN, the shift for later ones (RFC 7323 section 2.2), and the window clamp.

    `sk` is the connection, or the listener that it comes to.
    """
    sysctl = sk.sk_stack.sysctl
    space = sk.sk_rcvbuf * _RATIO_START >> 8
    clamp = sk.window_clamp
    shift = 0
    if sysctl["net.ipv4.tcp_window_scaling"]:
        limits = sk.sk_prot.sysctl_rmem
        most = max(space, sysctl["net.core.rmem_max"], limits[2] if limits else 0)
        if clamp:
            most = min(most, clamp)
        shift = min(max((most - 1).bit_length() - 16, 0), _MAX_WSCALE)
    if clamp:
        space = min(space, clamp)
    if space > advmss:
        space = space // advmss * advmss
    window = min(space, _MAX_UNSCALED)
    return window, shift, min(clamp or _MAX_UNSCALED << _MAX_WSCALE, _MAX_UNSCALED << shift)


def tcp_select_initial_window(sk: TcpSock) -> None:
    """Choose them for a connection of ours."""
    sk.scaling_ratio = _RATIO_START
    sk.rcv_wnd, sk.rcv_wscale, sk.window_clamp = tcp_initial_window(sk, sk.advmss)
    sk.rcv_ssthresh = sk.rcv_wnd


def tcp_init_buffer_space(sk: TcpSock) -> None:
    """A connection begins: the clamps, and where measuring the reader's speed starts."""
    full = tcp_full_space(sk)
    sk.window_clamp = min(sk.window_clamp, max(full, 1)) if sk.window_clamp else full
    sk.rcv_ssthresh = min(sk.rcv_ssthresh or sk.rcv_wnd, sk.window_clamp)
    sk.rcvq_at = sk.sk_stack.clock()
    sk.rcvq_seq = sk.copied_seq
    sk.rcvq_space = min(sk.rcv_wnd, 10 * sk.advmss)


def tcp_select_window(sk: TcpSock) -> int:
    """The window field of a segment that goes out now; the offer is remembered.

    What was offered is never taken back (RFC 9293 section 3.8.6.2.1).
    """
    current = diff(add(sk.rcv_wup, sk.rcv_wnd), sk.rcv_nxt)
    if current < 0:
        current = 0
    old = sk.rcv_wnd
    shift = sk.rcv_wscale
    new = _choose_window(sk)
    if new < current:
        if not new:
            sk.mib["TcpExtTCPWantZeroWindowAdv"] += 1
        new = -(-current >> shift) << shift
    most = _MAX_UNSCALED << shift
    if new > most:
        new = most
    sk.rcv_wnd = new
    sk.rcv_wup = sk.rcv_nxt
    field = new >> shift
    if not field:
        sk.pred_ok = False
        if old:
            sk.mib["TcpExtTCPToZeroWindowAdv"] += 1
    elif not old:
        sk.mib["TcpExtTCPFromZeroWindowAdv"] += 1
    return field


def _choose_window(sk: TcpSock) -> int:
    """What could be offered now (__tcp_select_window): nothing silly, see RFC 9293 3.8.6.2.2."""
    mss = sk.rcv_mss
    ratio = sk.scaling_ratio
    rcvbuf = sk.sk_rcvbuf
    free = (rcvbuf - sk.sk_rmem_alloc) * ratio >> 8
    full = rcvbuf * ratio >> 8
    if sk.window_clamp < full:
        full = sk.window_clamp
    if mss > full:
        mss = full
        if mss <= 0:
            return 0
    if free < full >> 1:
        sk.ack_quick = 0
        if sk_under_memory_pressure(sk):
            sk.rcv_ssthresh = min(sk.rcv_ssthresh, 4 * sk.advmss)
        if free < full >> 4 or free < mss:
            return 0
    if free > sk.rcv_ssthresh:
        free = sk.rcv_ssthresh
    shift = sk.rcv_wscale
    if shift:
        return -(-free >> shift) << shift
    window = sk.rcv_wnd
    if window <= free - mss or window > free:
        return free // mss * mss
    if mss == full and free > window + (full >> 1):
        return free
    return window


def tcp_grow_window(sk: TcpSock, length: int) -> None:
    """Data arrived, and the buffer bears it: offer more next time."""
    room = min(sk.window_clamp, (sk.sk_rcvbuf - sk.sk_rmem_alloc) * sk.scaling_ratio >> 8)
    if sk.rcv_ssthresh < room and not sk_under_memory_pressure(sk):
        sk.rcv_ssthresh = min(sk.rcv_ssthresh + 2 * max(length, sk.advmss), sk.window_clamp)


def tcp_measure_rcv_mss(sk: TcpSock, mss: int, length: int) -> None:
    """Learn the peer's segment size, and how much of a buffer of `length` octets is payload."""
    if mss < sk.rcv_mss:
        sk.ack_pushed += 1
        return
    sk.rcv_mss = min(mss, sk.advmss)
    ratio = min((length << 8) // (length + SKB_OVERHEAD), _RATIO_MOST)
    if ratio != sk.scaling_ratio:
        # At once up, slowly down: one short piece is not the rule.
        sk.scaling_ratio = ratio if ratio > sk.scaling_ratio else (sk.scaling_ratio + ratio) >> 1
        if not sk.sk_flags & SOCK_RCVBUF_LOCK:
            sk.window_clamp = min(tcp_full_space(sk), _MAX_UNSCALED << sk.rcv_wscale)


def tcp_rcv_rtt_measure_ts(sk: TcpSock, tsecr: int, now: float) -> None:
    """The round trip as a receiver sees it, from the timestamp that came back."""
    if not tsecr or tsecr == sk.rcv_tsecr_seen:
        return
    sk.rcv_tsecr_seen = tsecr
    ticks = (int(now * 1000.0) + sk.ts_offset - tsecr) & 0xFFFFFFFF
    if ticks < 1 << 22:
        _rcv_rtt_update(sk, max(ticks, 1) / 1000.0)


def tcp_rcv_rtt_measure(sk: TcpSock, now: float) -> None:
    """Without timestamps: how long one window takes to arrive."""
    if sk.rcv_rtt_at:
        if diff(sk.rcv_nxt, sk.rcv_rtt_seq) < 0:
            return
        _rcv_rtt_update(sk, max(now - sk.rcv_rtt_at, 0.001))
    sk.rcv_rtt_seq = add(sk.rcv_nxt, sk.rcv_wnd)
    sk.rcv_rtt_at = now


def _rcv_rtt_update(sk: TcpSock, sample: float) -> None:
    sk.rcv_rtt = sample if not sk.rcv_rtt else min(sample, sk.rcv_rtt + (sample - sk.rcv_rtt) / 8)


def tcp_rcv_space_adjust(sk: TcpSock, now: float) -> None:
    """The user has read: once a round trip, let the buffer follow how fast (DRS)."""
    if now - sk.rcvq_at < sk.rcv_rtt or not sk.rcv_rtt:
        return
    copied = diff(sk.copied_seq, sk.rcvq_seq)
    if copied > sk.rcvq_space:
        if (
            sk.sk_stack.sysctl["net.ipv4.tcp_moderate_rcvbuf"]
            and not sk.sk_flags & SOCK_RCVBUF_LOCK
        ):
            _grow_rcvbuf(sk, copied)
        sk.rcvq_space = copied
    sk.rcvq_seq = sk.copied_seq
    sk.rcvq_at = now


def _grow_rcvbuf(sk: TcpSock, copied: int) -> None:
    """Twice what was read in a round trip, and more while that grows; up to tcp_rmem[2]."""
    limits = sk.sk_prot.sysctl_rmem
    if limits is None or sk_under_memory_pressure(sk):
        return
    window = 2 * copied + 16 * sk.advmss
    window += 2 * window * max(copied - sk.rcvq_space, 0) // max(sk.rcvq_space, 1)
    rcvbuf = min(tcp_space_from_win(sk, window), limits[2])
    if rcvbuf > sk.sk_rcvbuf:
        sk.sk_rcvbuf = rcvbuf
        sk.window_clamp = min(tcp_win_from_space(sk, rcvbuf), _MAX_UNSCALED << sk.rcv_wscale)


def tcp_would_offer(sk: TcpSock) -> int:
    """The window that an acknowledgement would offer if it went now."""
    return _choose_window(sk)
