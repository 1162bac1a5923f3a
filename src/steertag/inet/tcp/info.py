"""TCP_INFO: `struct tcp_info` as include/uapi/linux/tcp.h lays it out up to tcpi_rcv_wnd."""

from __future__ import annotations

import struct
from typing import Final

from steertag.family.const import TcpState
from steertag.inet.tcp.rate import tcp_delivery_rate
from steertag.inet.tcp.sock import INFINITE_SSTHRESH, TCP_ECN_OK, TCP_ECN_SEEN, TcpSock
from steertag.wire.seq import diff

_OPT_TIMESTAMPS: Final = 1
_OPT_SACK: Final = 2
_OPT_WSCALE: Final = 4
_OPT_ECN: Final = 8
_OPT_ECN_SEEN: Final = 16
_OPT_SYN_DATA: Final = 32
_LAYOUT: Final = struct.Struct("@8B24I4Q6I4Q2I2Q5I")
_U32: Final = 0xFFFFFFFF


def _micro(seconds: float) -> int:
    return min(int(seconds * 1e6), _U32)


def _milli(seconds: float) -> int:
    return min(max(int(seconds * 1e3), 0), _U32)


def tcp_info(sk: TcpSock) -> dict[str, int]:
    """The fields by their names without "tcpi_": times in us or ms, windows in segments, as
    Linux's."""
    now = sk.sk_stack.clock()
    mss = max(sk.mss_cache, 1)
    options = 0
    if sk.ts_ok:
        options |= _OPT_TIMESTAMPS
    if sk.sack_ok:
        options |= _OPT_SACK
    if sk.wnd_scale_ok:
        options |= _OPT_WSCALE
    if sk.ecn_flags & TCP_ECN_OK:
        options |= _OPT_ECN
    if sk.ecn_flags & TCP_ECN_SEEN:
        options |= _OPT_ECN_SEEN
    if sk.syn_data_acked:
        options |= _OPT_SYN_DATA
    listening = sk.sk_state == TcpState.TCP_LISTEN
    ssthresh = sk.ssthresh
    return {
        "state": int(sk.sk_state),
        "ca_state": sk.ca_state,
        "retransmits": min(sk.retransmits, 255),
        "probes": min(sk.probes_out, 255),
        "backoff": min(sk.backoff, 255),
        "options": options,
        "wscale": (sk.snd_wscale & 15) | (sk.rcv_wscale & 15) << 4,
        "flags": sk.rate_app_limited | sk.fastopen_client_fail << 1,
        "rto": _micro(sk.rto),
        "ato": _micro(sk.ato),
        "snd_mss": sk.mss_cache,
        "rcv_mss": sk.rcv_mss,
        "unacked": sk.sk_ack_backlog if listening else _segments(diff(sk.snd_nxt, sk.snd_una), mss),
        "sacked": sk.sk_max_ack_backlog if listening else _segments(sk.sacked_out, mss),
        "lost": _segments(sk.lost_out, mss),
        "retrans": _segments(sk.retrans_out, mss),
        "fackets": 0,
        "last_data_sent": _milli(now - sk.lsndtime) if sk.lsndtime else 0,
        "last_ack_sent": 0,
        "last_data_recv": _milli(now - sk.lrcvtime) if sk.lrcvtime else 0,
        "last_ack_recv": _milli(now - sk.rcv_tstamp) if sk.rcv_tstamp else 0,
        "pmtu": sk.pmtu,
        "rcv_ssthresh": sk.rcv_ssthresh,
        "rtt": _micro(sk.srtt),
        "rttvar": _micro(sk.mdev),
        "snd_ssthresh": ssthresh if ssthresh >= INFINITE_SSTHRESH else _segments(ssthresh, mss),
        "snd_cwnd": max(sk.cwnd // mss, 1),
        "advmss": sk.advmss,
        "reordering": sk.reordering,
        "rcv_rtt": _micro(sk.rcv_rtt),
        "rcv_space": sk.rcvq_space,
        "total_retrans": sk.total_retrans,
        "pacing_rate": 0xFFFFFFFFFFFFFFFF,
        "max_pacing_rate": 0xFFFFFFFFFFFFFFFF,
        "bytes_acked": sk.bytes_acked,
        "bytes_received": sk.bytes_received,
        "segs_out": sk.segs_out,
        "segs_in": sk.segs_in,
        "notsent_bytes": max(diff(sk.write_seq, sk.snd_nxt), 0),
        "min_rtt": _micro(sk.rtt_min),
        "data_segs_in": sk.data_segs_in,
        "data_segs_out": sk.data_segs_out,
        "delivery_rate": int(tcp_delivery_rate(sk)),
        "busy_time": 0,
        "rwnd_limited": 0,
        "sndbuf_limited": 0,
        "delivered": _segments(sk.delivered, mss),
        "delivered_ce": _segments(sk.delivered_ce, mss),
        "bytes_sent": sk.bytes_sent,
        "bytes_retrans": sk.bytes_retrans,
        "dsack_dups": sk.dsack_dups,
        "reord_seen": sk.reord_seen,
        "rcv_ooopack": sk.rcv_ooopack,
    }


def _segments(octets: int, mss: int) -> int:
    return -(-octets // mss)


def tcp_info_octets(sk: TcpSock) -> bytes:
    """`struct tcp_info`."""
    return _LAYOUT.pack(*tcp_info(sk).values(), sk.snd_wnd & _U32, sk.rcv_wnd & _U32)
