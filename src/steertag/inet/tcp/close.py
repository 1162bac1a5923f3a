"""How connections end: by the user, by the peer, by neither (net/ipv4/tcp.c)."""

from __future__ import annotations

import errno
from typing import Final

from steertag.errors import StateError
from steertag.family.const import (
    SEND_SHUTDOWN,
    SHUTDOWN_MASK,
    SOCK_DEAD,
    SOCK_FREED,
    SOCK_LINGER,
    TcpState,
)
from steertag.family.inet import inet_csk_destroy_sock, inet_csk_orphan
from steertag.family.sock import Sock
from steertag.inet.tcp import fastopen, hash, listen, output, timer, timewait
from steertag.inet.tcp.ofo import OfoQueue
from steertag.inet.tcp.rtx import RtxQueue
from steertag.inet.tcp.sock import INFINITE_SSTHRESH, TcpSock, tcp_sk
from steertag.wire.seq import add

TCP_TIMEWAIT_LEN: Final = 60.0

_FIN_NEXT: Final = {
    TcpState.TCP_ESTABLISHED: TcpState.TCP_FIN_WAIT1,
    TcpState.TCP_SYN_RECV: TcpState.TCP_FIN_WAIT1,
    TcpState.TCP_CLOSE_WAIT: TcpState.TCP_LAST_ACK,
}
"""What `close` and `shutdown` do to a state in which a FIN is due (tcp_close_state's new_state)."""

_NEEDS_RST: Final = frozenset(
    (
        TcpState.TCP_ESTABLISHED,
        TcpState.TCP_CLOSE_WAIT,
        TcpState.TCP_FIN_WAIT1,
        TcpState.TCP_FIN_WAIT2,
        TcpState.TCP_SYN_RECV,
    )
)
_COUNTED: Final = (TcpState.TCP_ESTABLISHED, TcpState.TCP_CLOSE_WAIT)


def tcp_set_state(sk: TcpSock, state: TcpState) -> None:
    """Every change of `sk_state` goes through here, and into the counters of RFC 4022."""
    old = sk.sk_state
    if state == TcpState.TCP_ESTABLISHED and old != state:
        sk.mib["TcpCurrEstab"] += 1
    elif state == TcpState.TCP_CLOSE:
        if old in _COUNTED:
            sk.mib["TcpEstabResets"] += 1
        hash.inet_unhash(sk)
        if not sk.port_locked:
            hash.inet_put_port(sk)
    if old in _COUNTED and state not in _COUNTED:
        sk.mib["TcpCurrEstab"] -= 1
    sk.sk_state = state


def tcp_write_queue_purge(sk: TcpSock) -> None:
    """Give up all that was to be sent, and what was and isn't acknowledged."""
    for skb in sk.send_queue:
        output.tcp_wmem_free_skb(sk, skb)
    sk.send_queue.clear()
    for skb in sk.rtx:
        output.tcp_wmem_free_skb(sk, skb)
    sk.rtx.clear()
    sk.sacked_out = sk.lost_out = sk.retrans_out = 0
    sk.backoff = 0
    sk.snd_una = sk.snd_nxt = sk.write_seq


def tcp_done(sk: TcpSock) -> None:
    """The connection is over. The sock stays while the user holds its socket."""
    if sk.sk_state in (TcpState.TCP_SYN_SENT, TcpState.TCP_SYN_RECV):
        sk.mib["TcpAttemptFails"] += 1
    timer.tcp_clear_xmit_timers(sk)
    tcp_set_state(sk, TcpState.TCP_CLOSE)
    if sk.fastopen_rsk is not None:
        fastopen.reqsk_fastopen_remove(sk, reset=False)
    sk.sk_shutdown = SHUTDOWN_MASK
    if not sk.sk_flags & SOCK_DEAD:
        sk.sk_state_change(sk)
    else:
        inet_csk_destroy_sock(sk)


def tcp_destroy(sk: Sock) -> None:
    """`Proto.destroy`: the last call on a sock."""
    tp = tcp_sk(sk)
    timer.tcp_clear_xmit_timers(tp)
    tcp_write_queue_purge(tp)
    tp.ofo.purge()
    tp.ca.release(tp)
    tp.dst = None


def tcp_shutdown(sk: Sock, how: int) -> None:
    """`Proto.shutdown`: SEND_SHUTDOWN sends a FIN behind what is queued."""
    tp = tcp_sk(sk)
    if not how & SEND_SHUTDOWN:
        return
    state = _FIN_NEXT.get(tp.sk_state)
    if state is not None and tp.sk_state != TcpState.TCP_SYN_SENT:
        tcp_set_state(tp, state)
        output.tcp_send_fin(tp)


def tcp_close(sk: Sock, timeout: float) -> None:
    """`Proto.close`: the user let go (tcp_close, RFC 9293 section 3.10.4, RFC 2525 2.17).

    What was not read makes it an abort; SO_LINGER with a time of 0 too. Waiting for delivery is
    the socket layer's business.
    """
    tp = tcp_sk(sk)
    tp.sk_shutdown = SHUTDOWN_MASK
    if tp.sk_state == TcpState.TCP_LISTEN:
        tcp_set_state(tp, TcpState.TCP_CLOSE)
        listen.inet_csk_listen_stop(tp)
        _orphan(tp)
        return
    unread = tp.readable_octets() > 0
    tp.sk_receive_queue.purge()
    state = tp.sk_state
    if state == TcpState.TCP_CLOSE:
        pass
    elif unread:
        tp.mib["TcpExtTCPAbortOnClose"] += 1
        tcp_set_state(tp, TcpState.TCP_CLOSE)
        output.tcp_send_active_reset(tp)
    elif tp.sk_flags & SOCK_LINGER and not tp.sk_lingertime:
        tp.mib["TcpExtTCPAbortOnLinger"] += 1
        tcp_disconnect(tp, 0)
    elif state == TcpState.TCP_SYN_SENT:
        tcp_done(tp)
    elif (new := _FIN_NEXT.get(state)) is not None:
        tcp_set_state(tp, new)
        output.tcp_send_fin(tp)
    _orphan(tp)


def _orphan(sk: TcpSock) -> None:
    """The user is gone. What is still to be delivered is; then, or at once, the sock is freed."""
    state = sk.sk_state
    within_limits = inet_csk_orphan(sk)
    if state == TcpState.TCP_CLOSE:
        if sk.fastopen_rsk is not None:
            fastopen.reqsk_fastopen_remove(sk, reset=False)
        timer.tcp_clear_xmit_timers(sk)
        inet_csk_destroy_sock(sk)
        return
    if state == TcpState.TCP_FIN_WAIT2:
        tcp_fin_wait2_orphan(sk, sk.sk_stack.clock())
        if sk.sk_flags & SOCK_FREED:
            return
    if not within_limits or _too_many_orphans(sk):
        sk.mib["TcpExtTCPAbortOnMemory"] += 1
        output.tcp_send_active_reset(sk)
        tcp_done(sk)


def _too_many_orphans(sk: TcpSock) -> bool:
    """Orphans die first: above their limit, or above the highest mark with memory of their own."""
    orphans = sk.sk_prot.orphan_count
    if orphans is not None and orphans.value > sk.sk_stack.sysctl["net.ipv4.tcp_max_orphans"]:
        return True
    marks, account = sk.sk_prot.sysctl_mem, sk.sk_prot.memory_allocated
    return (
        marks is not None
        and account is not None
        and sk.sk_wmem_queued > 4096
        and account.value > marks[2]
    )


def tcp_fin_time(sk: TcpSock) -> float:
    """Seconds that an orphan waits for the peer's FIN: TCP_LINGER2, at least 3.5 RTOs."""
    timeout = sk.linger2 or float(sk.sk_stack.sysctl["net.ipv4.tcp_fin_timeout"])
    return max(timeout, 3.5 * sk.rto)


def tcp_fin_wait2_orphan(sk: TcpSock, now: float) -> None:
    """An orphan's FIN is acknowledged: wait for the peer's for a while, mostly without a sock."""
    if sk.linger2 < 0:
        output.tcp_send_active_reset(sk)
        sk.mib["TcpExtTCPAbortOnLinger"] += 1
        tcp_done(sk)
        return
    wait = tcp_fin_time(sk)
    if wait > TCP_TIMEWAIT_LEN:
        timer.tcp_reset_keepalive_timer(sk, wait - TCP_TIMEWAIT_LEN)
    else:
        timewait.tcp_time_wait(sk, TcpState.TCP_FIN_WAIT2, wait)


def tcp_disconnect(sk: Sock, flags: int) -> None:
    """`Proto.disconnect`: back to an unconnected sock; where it is due, the peer is told by RST."""
    tp = tcp_sk(sk)
    old = tp.sk_state
    if old != TcpState.TCP_CLOSE:
        tcp_set_state(tp, TcpState.TCP_CLOSE)
    if old == TcpState.TCP_LISTEN:
        listen.inet_csk_listen_stop(tp)
    elif old in _NEEDS_RST or (
        tp.snd_nxt != tp.write_seq and old in (TcpState.TCP_CLOSING, TcpState.TCP_LAST_ACK)
    ):
        output.tcp_send_active_reset(tp)
        tp.sk_err = errno.ECONNRESET
    elif old == TcpState.TCP_SYN_SENT:
        tp.sk_err = errno.ECONNRESET
    timer.tcp_clear_xmit_timers(tp)
    tp.sk_receive_queue.purge()
    tcp_write_queue_purge(tp)
    if tp.fastopen_rsk is not None:
        fastopen.reqsk_fastopen_remove(tp, reset=False)
    tp.ofo.purge()
    _start_over(tp)
    if tp.sk_socket is not None:
        tp.sk_error_report(tp)


def _start_over(sk: TcpSock) -> None:
    """A sock as new, but for what the user has set; sequence numbers go on from far behind."""
    if not sk.addr_locked:
        sk.inet_saddr = sk.ANY
    sk.inet_daddr = sk.ANY
    sk.inet_dport = 0
    if sk.bind_bucket is None:
        sk.inet_num = 0  # only now: the RST had to come from it
    sk.sk_shutdown = 0
    sk.done = False
    sk.sk_err_soft = 0
    sk.srtt = sk.rcv_rtt = 0.0
    sk.rto = 1.0
    sk.write_seq = add(sk.write_seq, sk.max_window + 2)
    sk.snd_una = sk.snd_nxt = sk.write_seq
    sk.cwnd_cnt = sk.backoff = sk.probes_out = sk.retransmits = 0
    sk.ssthresh = INFINITE_SSTHRESH
    sk.ca_state = 0
    sk.ca.release(sk)
    sk.ca_priv = None
    sk.window_clamp = 0
    sk.ts_recent = 0
    sk.ecn_flags = 0
    sk.ato = 0.0
    sk.ack_pending = sk.ack_now = False
    sk.ofo, sk.rtx = OfoQueue(), RtxQueue(sk)
    sk.urg_mode = sk.urg_wait = False
    sk.urg_data = None
    sk.dst = None
    sk.pred_ok = False
    sk.total_retrans = 0
    sk.bytes_sent = sk.bytes_acked = sk.bytes_received = sk.bytes_retrans = 0


def tcp_abort(sk: Sock, code: int) -> None:
    """End a connection from outside, with RST and that errno (tcp_abort; `ss -K`)."""
    tp = tcp_sk(sk)
    if tp.sk_state == TcpState.TCP_CLOSE:
        raise StateError("the connection is closed already")
    tp.sk_err = code
    if tp.sk_state in _NEEDS_RST:
        output.tcp_send_active_reset(tp)
    tcp_write_queue_purge(tp)
    tcp_done(tp)
    tp.sk_error_report(tp)
