"""Socket options of level IPPROTO_TCP (do_tcp_setsockopt, do_tcp_getsockopt)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from steertag.errors import os_error
from steertag.family.const import TcpState
from steertag.family.sock import Sock
from steertag.family.sockopt import as_asked, int_value
from steertag.inet.const import (
    IPPROTO_TCP,
    TCP_CONGESTION,
    TCP_CORK,
    TCP_DEFER_ACCEPT,
    TCP_FASTOPEN,
    TCP_FASTOPEN_CONNECT,
    TCP_FASTOPEN_NO_COOKIE,
    TCP_INFO,
    TCP_INQ,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_LINGER2,
    TCP_MAXSEG,
    TCP_NODELAY,
    TCP_NOTSENT_LOWAT,
    TCP_QUICKACK,
    TCP_SAVE_SYN,
    TCP_SAVED_SYN,
    TCP_SYNCNT,
    TCP_USER_TIMEOUT,
    TCP_WINDOW_CLAMP,
)
from steertag.inet.sockopt import ip_getsockopt, ip_setsockopt
from steertag.inet.tcp import calls, output, timer
from steertag.inet.tcp.cong.registry import tcp_set_congestion_control
from steertag.inet.tcp.info import tcp_info_octets
from steertag.inet.tcp.sock import TCP_NAGLE_CORK, TCP_NAGLE_OFF, TCP_TIMEOUT_INIT, TcpSock, tcp_sk

Value = int | bytes | None

_LEAST_MSS: Final = 88
_MOST_WINDOW: Final = 32767
_CLOSED_OR_LISTENING: Final = (TcpState.TCP_CLOSE, TcpState.TCP_LISTEN)


def _within(value: Value, low: int, high: int) -> int:
    number = int_value(value)
    if not low <= number <= high:
        raise os_error(errno.EINVAL)
    return number


def _set_maxseg(sk: TcpSock, value: Value) -> None:
    number = int_value(value)
    if number and not _LEAST_MSS <= number <= _MOST_WINDOW:
        raise os_error(errno.EINVAL)
    sk.user_mss = number


def _set_keepidle(sk: TcpSock, value: Value) -> None:
    sk.keepalive_time = float(_within(value, 1, 32767))
    if sk.keepalive_on and sk.sk_state not in _CLOSED_OR_LISTENING:
        idle = sk.sk_stack.clock() - max(sk.lrcvtime, sk.rcv_tstamp)
        timer.tcp_reset_keepalive_timer(sk, max(sk.keepalive_time - idle, 0.0))


def _set_keepintvl(sk: TcpSock, value: Value) -> None:
    sk.keepalive_intvl = float(_within(value, 1, 32767))


def _set_keepcnt(sk: TcpSock, value: Value) -> None:
    sk.keepalive_probes = _within(value, 1, 127)


def _set_syncnt(sk: TcpSock, value: Value) -> None:
    sk.syn_retries = _within(value, 1, 127)


def _set_linger2(sk: TcpSock, value: Value) -> None:
    number = int_value(value)
    sk.linger2 = -1.0 if number < 0 else float(min(number, 120))


def _set_defer_accept(sk: TcpSock, value: Value) -> None:
    """Seconds become retransmissions of the SYN-ACK (secs_to_retrans)."""
    seconds = int_value(value)
    retrans = 0
    if seconds > 0:
        timeout = TCP_TIMEOUT_INIT
        period, retrans = timeout, 1
        while seconds > period and retrans < 255:
            retrans += 1
            timeout = min(timeout * 2, 120.0)
            period += timeout
    sk.defer_accept = retrans


def _get_defer_accept(sk: TcpSock) -> int:
    period, timeout = 0.0, TCP_TIMEOUT_INIT
    for _ in range(sk.defer_accept):
        period += timeout
        timeout = min(timeout * 2, 120.0)
    return int(period)


def _set_window_clamp(sk: TcpSock, value: Value) -> None:
    number = int_value(value)
    if not number:
        if sk.sk_state != TcpState.TCP_CLOSE:
            raise os_error(errno.EINVAL)
        sk.window_clamp = 0
        return
    sk.window_clamp = max(number, 2304 // 2)
    if sk.sk_state != TcpState.TCP_CLOSE:
        sk.rcv_ssthresh = min(sk.rcv_ssthresh, sk.window_clamp)


def _set_quickack(sk: TcpSock, value: Value) -> None:
    number = int_value(value)
    if not number & 1:
        sk.pingpong = True
        return
    sk.pingpong = False
    if sk.sk_state in (TcpState.TCP_ESTABLISHED, TcpState.TCP_CLOSE_WAIT) and sk.ack_pending:
        output.tcp_send_ack(sk)
        if not number & ~1:
            sk.pingpong = True


def _set_user_timeout(sk: TcpSock, value: Value) -> None:
    """Milliseconds; 0 for the system's."""
    number = int_value(value)
    if number < 0:
        raise os_error(errno.EINVAL)
    sk.user_timeout = number / 1000.0


def _set_fastopen(sk: TcpSock, value: Value) -> None:
    number = int_value(value)
    if number < 0 or sk.sk_state not in _CLOSED_OR_LISTENING:
        raise os_error(errno.EINVAL)
    sk.fastopen_qmax = number


def _set_fastopen_connect(sk: TcpSock, value: Value) -> None:
    number = _within(value, 0, 1)
    if not sk.sk_stack.sysctl["net.ipv4.tcp_fastopen"] & 1:
        raise os_error(errno.EOPNOTSUPP)
    if sk.sk_state != TcpState.TCP_CLOSE:
        raise os_error(errno.EINVAL)
    sk.fastopen_connect = bool(number)


def _set_fastopen_no_cookie(sk: TcpSock, value: Value) -> None:
    number = _within(value, 0, 1)
    if sk.sk_state not in _CLOSED_OR_LISTENING:
        raise os_error(errno.EINVAL)
    sk.fastopen_no_cookie = bool(number)


def _set_congestion(sk: TcpSock, value: Value) -> None:
    if not isinstance(value, bytes):
        raise os_error(errno.EINVAL, "TCP_CONGESTION takes a name")
    tcp_set_congestion_control(sk, value.rstrip(b"\0").decode("ascii", "replace"))


def _set_save_syn(sk: TcpSock, value: Value) -> None:
    sk.save_syn = _within(value, 0, 2)


def _set_notsent_lowat(sk: TcpSock, value: Value) -> None:
    sk.notsent_lowat = int_value(value) & 0xFFFFFFFF
    sk.sk_write_space(sk)


def _set_inq(sk: TcpSock, value: Value) -> None:
    sk.recvmsg_inq = bool(_within(value, 0, 1))


_SET: Final[dict[int, Callable[[TcpSock, Value], None]]] = {
    TCP_NODELAY: lambda sk, value: calls.tcp_nodelay_set(sk, bool(int_value(value))),
    TCP_CORK: lambda sk, value: calls.tcp_cork_set(sk, bool(int_value(value))),
    TCP_MAXSEG: _set_maxseg,
    TCP_KEEPIDLE: _set_keepidle,
    TCP_KEEPINTVL: _set_keepintvl,
    TCP_KEEPCNT: _set_keepcnt,
    TCP_SYNCNT: _set_syncnt,
    TCP_LINGER2: _set_linger2,
    TCP_DEFER_ACCEPT: _set_defer_accept,
    TCP_WINDOW_CLAMP: _set_window_clamp,
    TCP_QUICKACK: _set_quickack,
    TCP_USER_TIMEOUT: _set_user_timeout,
    TCP_FASTOPEN: _set_fastopen,
    TCP_FASTOPEN_CONNECT: _set_fastopen_connect,
    TCP_FASTOPEN_NO_COOKIE: _set_fastopen_no_cookie,
    TCP_CONGESTION: _set_congestion,
    TCP_SAVE_SYN: _set_save_syn,
    TCP_NOTSENT_LOWAT: _set_notsent_lowat,
    TCP_INQ: _set_inq,
}


def _get_maxseg(sk: TcpSock) -> int:
    if sk.sk_state in _CLOSED_OR_LISTENING and sk.user_mss:
        return sk.user_mss
    return sk.mss_cache


def _take_saved_syn(sk: TcpSock) -> bytes:
    saved, sk.saved_syn = sk.saved_syn or b"", None
    return saved


_GET: Final[dict[int, Callable[[TcpSock], int | bytes]]] = {
    TCP_NODELAY: lambda sk: int(bool(sk.nonagle & TCP_NAGLE_OFF)),
    TCP_CORK: lambda sk: int(bool(sk.nonagle & TCP_NAGLE_CORK)),
    TCP_MAXSEG: _get_maxseg,
    TCP_KEEPIDLE: lambda sk: int(sk.keepalive_time_of),
    TCP_KEEPINTVL: lambda sk: int(sk.keepalive_intvl_of),
    TCP_KEEPCNT: lambda sk: sk.keepalive_probes_of,
    TCP_SYNCNT: lambda sk: sk.syn_retries or sk.sk_stack.sysctl["net.ipv4.tcp_syn_retries"],
    TCP_LINGER2: lambda sk: (
        -1 if sk.linger2 < 0 else int(sk.linger2 or sk.sk_stack.sysctl["net.ipv4.tcp_fin_timeout"])
    ),
    TCP_DEFER_ACCEPT: _get_defer_accept,
    TCP_WINDOW_CLAMP: lambda sk: sk.window_clamp,
    TCP_QUICKACK: lambda sk: int(not sk.pingpong),
    TCP_USER_TIMEOUT: lambda sk: int(sk.user_timeout * 1000),
    TCP_FASTOPEN: lambda sk: sk.fastopen_qmax,
    TCP_FASTOPEN_CONNECT: lambda sk: int(sk.fastopen_connect),
    TCP_FASTOPEN_NO_COOKIE: lambda sk: int(sk.fastopen_no_cookie),
    TCP_CONGESTION: lambda sk: sk.ca.name.encode().ljust(16, b"\0"),
    TCP_SAVE_SYN: lambda sk: sk.save_syn,
    TCP_SAVED_SYN: _take_saved_syn,
    TCP_NOTSENT_LOWAT: lambda sk: sk.notsent_lowat,
    TCP_INQ: lambda sk: int(sk.recvmsg_inq),
    TCP_INFO: tcp_info_octets,
}


def tcp_setsockopt(sk: Sock, level: int, name: int, value: Value) -> None:
    """`Proto.setsockopt`. Raises ENOPROTOOPT for what is not there, EINVAL for a wrong value."""
    if level != IPPROTO_TCP:
        ip_setsockopt(sk, level, name, value)
        return
    setter = _SET.get(name)
    if setter is None:
        raise os_error(errno.ENOPROTOOPT)
    setter(tcp_sk(sk), value)


def tcp_getsockopt(sk: Sock, level: int, name: int, size: int) -> int | bytes:
    """`Proto.getsockopt`."""
    if level != IPPROTO_TCP:
        return ip_getsockopt(sk, level, name, size)
    getter = _GET.get(name)
    if getter is None:
        raise os_error(errno.ENOPROTOOPT)
    return as_asked(getter(tcp_sk(sk)), size)
