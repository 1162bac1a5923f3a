"""What ss(8) -i and -o tell of a socket (net/ipv4/inet_diag.c, tcp_diag.c; iproute2's ss.c)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from steertag.family.const import TcpState
from steertag.family.proto import DiagInfo, MiniSock
from steertag.inet.const import AF_INET_NEW_TCP
from steertag.inet.sock import address_text
from steertag.inet.tcp.info import tcp_info
from steertag.inet.tcp.net import tcp_net
from steertag.inet.tcp.sock import (
    ICSK_TIME_LOSS_PROBE,
    ICSK_TIME_PROBE0,
    ICSK_TIME_REO_TIMEOUT,
    ICSK_TIME_RETRANS,
    INFINITE_SSTHRESH,
    TcpSock,
    tcp_sk,
)
from steertag.inet.tcp.timewait import TimeWaitSock
from steertag.inet.udp_table import udp_sk

if TYPE_CHECKING:
    from steertag.family.sock import Sock
    from steertag.family.stack import Stack
    from steertag.family.timer import Timer

_SENDING: Final = (ICSK_TIME_RETRANS, ICSK_TIME_LOSS_PROBE, ICSK_TIME_REO_TIMEOUT)
_OPTIONS: Final = ((1, "ts"), (2, "sack"), (8, "ecn"), (16, "ecnseen"), (32, "fastopen"))
# as ss calls them, of what tcp_info has; those that are zero are left out, as ss does
_NUMBERS: Final = (
    ("mss", "snd_mss"),
    ("pmtu", "pmtu"),
    ("rcvmss", "rcv_mss"),
    ("advmss", "advmss"),
    ("cwnd", "snd_cwnd"),
    ("bytes_sent", "bytes_sent"),
    ("bytes_retrans", "bytes_retrans"),
    ("bytes_acked", "bytes_acked"),
    ("bytes_received", "bytes_received"),
    ("segs_out", "segs_out"),
    ("segs_in", "segs_in"),
    ("data_segs_out", "data_segs_out"),
    ("data_segs_in", "data_segs_in"),
    ("lastsnd", "last_data_sent"),
    ("lastrcv", "last_data_recv"),
    ("lastack", "last_ack_recv"),
    ("delivery_rate", "delivery_rate"),
    ("delivered", "delivered"),
    ("unacked", "unacked"),
    ("lost", "lost"),
    ("sacked", "sacked"),
    ("dsack_dups", "dsack_dups"),
    ("reord_seen", "reord_seen"),
    ("rcv_space", "rcv_space"),
    ("rcv_ssthresh", "rcv_ssthresh"),
    ("notsent", "notsent_bytes"),
)


def tcp_diag_info(sk: Sock) -> DiagInfo:
    """`Proto.diag_info`: times in ms (rto, rtt, lastsnd, ...), windows in segments, the rest in
    octets."""
    tp = tcp_sk(sk)
    found = _timer_info(tp)
    if tp.sk_state == TcpState.TCP_LISTEN:
        return found
    info = tcp_info(tp)
    found["options"] = " ".join(name for bit, name in _OPTIONS if info["options"] & bit)
    found["cong"] = tp.ca.name
    if tp.wnd_scale_ok:
        found["wscale"] = f"{tp.snd_wscale},{tp.rcv_wscale}"
    found["rto"] = round(tp.rto * 1000)
    if info["rtt"]:
        found["rtt"] = f"{info['rtt'] / 1000:g}/{info['rttvar'] / 1000:g}"
        found["minrtt"] = f"{info['min_rtt'] / 1000:g}"
    found.update((name, info[field]) for name, field in _NUMBERS if info[field])
    if tp.ssthresh < INFINITE_SSTHRESH:
        found["ssthresh"] = info["snd_ssthresh"]
    if info["total_retrans"]:
        found["retrans"] = f"{info['retrans']}/{info['total_retrans']}"
    return {name: value for name, value in found.items() if value != ""}


def _timer_info(sk: TcpSock) -> DiagInfo:
    """The timer that will end first what is going on: its kind, time left, and how many tries."""
    if sk.retrans_timer.pending and sk.pending in _SENDING:
        return {"timer": _timer_text(sk, "on", sk.retrans_timer, sk.retransmits)}
    if sk.retrans_timer.pending and sk.pending == ICSK_TIME_PROBE0:
        return {"timer": _timer_text(sk, "persist", sk.retrans_timer, sk.probes_out)}
    if sk.keepalive_timer.pending:
        return {"timer": _timer_text(sk, "keepalive", sk.keepalive_timer, sk.probes_out)}
    return {}


def _timer_text(sk: TcpSock, kind: str, timer: Timer, tries: int) -> str:
    return f"({kind},{_left(timer, sk.sk_stack)}ms,{tries})"


def _left(timer: Timer | None, stack: Stack) -> int:
    """Milliseconds; 0 for a timer that is not set."""
    expires = timer.expires if timer is not None else None
    return 0 if expires is None else max(round((expires - stack.clock()) * 1000), 0)


def tcp_minisocks(stack: Stack) -> Iterator[MiniSock]:
    """`Proto.diag_minisocks`: connections without a sock: SYN-RECV requests, and TIME-WAIT."""
    for key, one in tuple(tcp_net(stack).hash.ehash.items()):
        if isinstance(one, TcpSock):
            continue
        laddr, lport, raddr, rport = key
        if isinstance(one, TimeWaitSock):
            state = one.substate
            kind, tries = "timewait", 0
        else:
            state = TcpState.TCP_SYN_RECV
            kind, tries = "on", one.num_timeout
        names = address_text(laddr, lport), address_text(raddr, rport)
        timer = f"({kind},{_left(one.timer, stack)}ms,{tries})"
        yield MiniSock(AF_INET_NEW_TCP, state, *names, {"timer": timer})


def udp_diag_info(sk: Sock) -> DiagInfo:
    """`Proto.diag_info`: buffers as ss -m has them, and datagrams that there was no room for."""
    up = udp_sk(sk)
    found: DiagInfo = {
        "rmem_alloc": up.sk_rmem_alloc,
        "rcvbuf": up.sk_rcvbuf,
        "wmem_alloc": up.sk_wmem_alloc,
        "sndbuf": up.sk_sndbuf,
        "drops": up.drops,
    }
    return {name: value for name, value in found.items() if value}
