"""SOL_SOCKET, the same for every family whose socks live here (net/core/sock.c)."""

from __future__ import annotations

import errno
import socket as host
import struct
from collections.abc import Callable
from typing import Final

from steertag.errors import StateError, os_error
from steertag.family.const import (
    SOCK_KEEPOPEN,
    SOCK_LINGER,
    SOCK_MIN_RCVBUF,
    SOCK_MIN_SNDBUF,
    SOCK_RCVBUF_LOCK,
    SOCK_SNDBUF_LOCK,
    TcpState,
)
from steertag.family.sock import Sock
from steertag.family.socket import Socket
from steertag.family.sysctl import INT_MAX

_INT: Final = struct.Struct("@i")
_LINGER: Final = struct.Struct("@ii")
_TIMEVAL: Final = struct.Struct("@ll")

# The standard library has no names for these (asm-generic/socket.h).
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33

Value = int | bytes | None


def sock_of(sock: Socket) -> Sock:
    """The protocol's side. Raises StateError before `create` made it."""
    if sock.sk is None:
        raise StateError("socket has no sock")
    return sock.sk


def int_value(value: Value) -> int:
    """An option's value as an int. Raises EINVAL for octets that are none."""
    if isinstance(value, int):
        return value
    if value is None or len(value) < _INT.size:
        raise os_error(errno.EINVAL, "the option takes an int")
    return int(_INT.unpack_from(value)[0])


def _set_reuse(sk: Sock, value: Value) -> None:
    sk.sk_reuse = bool(int_value(value))


def _set_sndbuf(sk: Sock, value: Value) -> None:
    _set_sndbuf_force(sk, min(int_value(value), sk.sk_stack.sysctl["net.core.wmem_max"]))


def _set_sndbuf_force(sk: Sock, value: Value) -> None:
    """SO_SNDBUFFORCE: above the sysctl too; nobody's memory but the process's own is at stake."""
    # Doubled, as in the kernel: the bookkeeping counts, and a user thinks of payload.
    sk.sk_sndbuf = max(min(int_value(value), INT_MAX // 2) * 2, SOCK_MIN_SNDBUF)
    sk.sk_flags |= SOCK_SNDBUF_LOCK
    sk.sk_write_space(sk)


def _set_rcvbuf(sk: Sock, value: Value) -> None:
    _set_rcvbuf_force(sk, min(int_value(value), sk.sk_stack.sysctl["net.core.rmem_max"]))


def _set_rcvbuf_force(sk: Sock, value: Value) -> None:
    sk.sk_rcvbuf = max(min(int_value(value), INT_MAX // 2) * 2, SOCK_MIN_RCVBUF)
    sk.sk_flags |= SOCK_RCVBUF_LOCK


def _set_keepalive(sk: Sock, value: Value) -> None:
    if sk.sk_prot.keepalive is None:
        raise os_error(errno.ENOPROTOOPT)
    on = bool(int_value(value))
    sk.sk_prot.keepalive(sk, on)
    sk.sk_flags = sk.sk_flags | SOCK_KEEPOPEN if on else sk.sk_flags & ~SOCK_KEEPOPEN


def _get_keepalive(sk: Sock) -> int:
    if sk.sk_prot.keepalive is None:
        raise os_error(errno.ENOPROTOOPT)
    return int(bool(sk.sk_flags & SOCK_KEEPOPEN))


def _set_rcvlowat(sk: Sock, value: Value) -> None:
    sk.sk_rcvlowat = max(int_value(value), 1)


def _set_linger(sk: Sock, value: Value) -> None:
    if not isinstance(value, bytes) or len(value) < _LINGER.size:
        raise os_error(errno.EINVAL, "SO_LINGER takes a struct linger")
    onoff, seconds = _LINGER.unpack_from(value)
    sk.sk_flags = sk.sk_flags | SOCK_LINGER if onoff else sk.sk_flags & ~SOCK_LINGER
    sk.sk_lingertime = float(max(seconds, 0))


def _timeout(value: Value) -> float | None:
    if not isinstance(value, bytes) or len(value) < _TIMEVAL.size:
        raise os_error(errno.EINVAL, "the option takes a struct timeval")
    seconds, micro = _TIMEVAL.unpack_from(value)
    if not 0 <= micro < 1_000_000:
        raise os_error(errno.EDOM)
    return float(seconds + micro / 1e6) or None


def _set_rcvtimeo(sk: Sock, value: Value) -> None:
    sk.sk_rcvtimeo = _timeout(value)


def _set_sndtimeo(sk: Sock, value: Value) -> None:
    sk.sk_sndtimeo = _timeout(value)


def _timeval(timeout: float | None) -> bytes:
    seconds, rest = divmod(timeout or 0.0, 1.0)
    return _TIMEVAL.pack(int(seconds), int(rest * 1e6))


def _take_error(sk: Sock) -> int:
    if sk.sk_err:
        code, sk.sk_err = sk.sk_err, 0
    else:
        code, sk.sk_err_soft = sk.sk_err_soft, 0
    return code


_SET: Final[dict[int, Callable[[Sock, Value], None]]] = {
    host.SO_REUSEADDR: _set_reuse,
    host.SO_SNDBUF: _set_sndbuf,
    host.SO_RCVBUF: _set_rcvbuf,
    SO_SNDBUFFORCE: _set_sndbuf_force,
    SO_RCVBUFFORCE: _set_rcvbuf_force,
    host.SO_KEEPALIVE: _set_keepalive,
    host.SO_RCVLOWAT: _set_rcvlowat,
    host.SO_LINGER: _set_linger,
    host.SO_RCVTIMEO: _set_rcvtimeo,
    host.SO_SNDTIMEO: _set_sndtimeo,
}

_GET: Final[dict[int, Callable[[Sock], int | bytes]]] = {
    host.SO_REUSEADDR: lambda sk: int(sk.sk_reuse),
    host.SO_SNDBUF: lambda sk: sk.sk_sndbuf,
    host.SO_RCVBUF: lambda sk: sk.sk_rcvbuf,
    host.SO_KEEPALIVE: _get_keepalive,
    host.SO_RCVLOWAT: lambda sk: sk.sk_rcvlowat,
    host.SO_LINGER: lambda sk: _LINGER.pack(
        int(bool(sk.sk_flags & SOCK_LINGER)), int(sk.sk_lingertime)
    ),
    host.SO_RCVTIMEO: lambda sk: _timeval(sk.sk_rcvtimeo),
    host.SO_SNDTIMEO: lambda sk: _timeval(sk.sk_sndtimeo),
    host.SO_ERROR: _take_error,
    host.SO_TYPE: lambda sk: sk.sk_type,
    host.SO_PROTOCOL: lambda sk: sk.sk_protocol,
    host.SO_DOMAIN: lambda sk: sk.sk_family,
    host.SO_ACCEPTCONN: lambda sk: int(sk.sk_state == TcpState.TCP_LISTEN),
}


def sock_setsockopt(sock: Socket, name: int, value: Value) -> None:
    """Set a SOL_SOCKET option. Raises ENOPROTOOPT for one that would change nothing here.

    One that is not common to all families is the protocol's to know (`Proto.setsockopt`).
    """
    setter = _SET.get(name)
    if setter is not None:
        setter(sock_of(sock), value)
    else:
        sock.ops.setsockopt(sock, host.SOL_SOCKET, name, value)


def sock_getsockopt(sock: Socket, name: int, size: int) -> int | bytes:
    """Read a SOL_SOCKET option: an int when `size` is 0, else up to `size` octets."""
    getter = _GET.get(name)
    if getter is None:
        return sock.ops.getsockopt(sock, host.SOL_SOCKET, name, size)
    return as_asked(getter(sock_of(sock)), size)


def as_asked(value: int | bytes, size: int) -> int | bytes:
    """An option's value in the form that getsockopt's caller asked for."""
    if size == 0:
        return value if isinstance(value, int) else int_value(value)
    octets = _INT.pack(value) if isinstance(value, int) else value
    return octets[:size]
