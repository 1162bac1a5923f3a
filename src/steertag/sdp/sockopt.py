"""Options of AF_INET_SDP.

What SDP has itself it answers itself; what is TCP's or IP's is the transport's to judge: it is set
there at once, and again on the socket of a connection that falls back. Nothing is ignored.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family.const import TcpState
from steertag.family.sockopt import as_asked, int_value, sock_setsockopt
from steertag.sdp import calls
from steertag.sdp.options import (
    AF_INET6,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    SDP_FALLBACK,
    SDP_INFO,
    SDP_TRANSPORT,
    SDP_ZCOPY_THRESH,
    SO_DOMAIN,
    SO_KEEPALIVE,
    SO_LINGER,
    SO_OOBINLINE,
    SO_RCVTIMEO,
    SO_SNDTIMEO,
    SOL_SDP,
    SOL_SOCKET,
    TCP_NODELAY,
)
from steertag.sdp.sock import SdpSock, sdp_sk

if TYPE_CHECKING:
    from steertag.family.sock import Sock
    from steertag.family.socket import Socket

Value = int | bytes | None

FALLBACKS: Final = ("never", "auto")
CARRIERS: Final = ("host", "new_tcp")
_MOST: Final = 1 << 30


def sdp_setsockopt(sk: Sock, level: int, name: int, value: Value) -> None:
    """Raises ENOPROTOOPT, EINVAL, EISCONN, and what the transport raises."""
    sdp = sdp_sk(sk)
    if level == SOL_SDP:
        _set_own(sdp, name, value)
    elif (level, name) == (IPPROTO_TCP, TCP_NODELAY):
        sdp.nodelay = bool(int_value(value))
        if sdp.plain is not None:
            sdp.plain.setsockopt(level, name, value)
    elif (level, name) == (SOL_SOCKET, SO_OOBINLINE):
        sdp.oob_inline = bool(int_value(value))
        if sdp.engine is not None:
            sdp.engine.oob_inline = sdp.oob_inline
        if sdp.plain is not None:
            sdp.plain.setsockopt(level, name, value)
    else:
        _pass_on(sdp, level, name, value)


def _pass_on(sk: SdpSock, level: int, name: int, value: Value) -> None:
    calls.transport_of(sk, _family(level)).setsockopt(level, name, value)
    sk.replay = [one for one in sk.replay if one[:2] != (level, name)]
    sk.replay.append((level, name, value))


def _set_own(sk: SdpSock, name: int, value: Value) -> None:
    if name == SDP_ZCOPY_THRESH:
        octets = int_value(value)
        if not 0 <= octets <= _MOST:
            raise os_error(errno.EINVAL, f"SDP_ZCOPY_THRESH is 0 to {_MOST} octets")
        sk.zcopy_thresh = octets
        if sk.link is not None:
            sk.link.tuning.zcopy_threshold = octets
    elif name == SDP_FALLBACK:
        sk.fallback = _word(value, FALLBACKS, "SDP_FALLBACK")
    elif name == SDP_TRANSPORT:
        carrier = _word(value, CARRIERS, "SDP_TRANSPORT")
        if sk.sk_state != TcpState.TCP_CLOSE or sk.bound:
            raise os_error(errno.EISCONN, "SDP_TRANSPORT is set before bind and connect")
        sk.fabric.check_carrier(carrier)
        transport, sk.transport = sk.transport, None
        if transport is not None:
            transport.close()
        sk.carrier = carrier
    else:
        raise os_error(errno.ENOPROTOOPT)


def _word(value: Value, words: tuple[str, ...], name: str) -> str:
    text = value.rstrip(b"\0").decode("ascii", "replace") if isinstance(value, bytes) else ""
    if text not in words:
        raise os_error(errno.EINVAL, f"{name} is {' or '.join(map(repr, words))}, as octets")
    return text


def sdp_getsockopt(sk: Sock, level: int, name: int, size: int) -> int | bytes:
    """Raises ENOPROTOOPT, and what the transport raises."""
    sdp = sdp_sk(sk)
    if level == SOL_SDP:
        return _get_own(sdp, name, size)
    if (level, name) == (IPPROTO_TCP, TCP_NODELAY):
        return as_asked(int(sdp.nodelay), size)
    if (level, name) == (SOL_SOCKET, SO_OOBINLINE):
        return as_asked(int(sdp.oob_inline), size)
    return calls.transport_of(sdp, _family(level)).getsockopt(level, name, size)


def _family(level: int) -> int:
    """The transport's that a level needs; 0 where it doesn't matter."""
    return AF_INET6 if level == IPPROTO_IPV6 else 0


def sdp_plain_setsockopt(sock: Socket, level: int, name: int, value: Value) -> None:
    """Of a connection that has fallen back, SOL_SOCKET's included: the transport's."""
    sk = sdp_sk(sock.sk)
    if level != SOL_SOCKET or sk.plain is None:
        sdp_setsockopt(sk, level, name, value)
        return
    sk.plain.setsockopt(level, name, value)
    if name in (SO_RCVTIMEO, SO_SNDTIMEO, SO_LINGER):
        sock_setsockopt(sock, name, value)  # who waits is the socket object


def sdp_plain_getsockopt(sock: Socket, level: int, name: int, size: int) -> int | bytes:
    """As above."""
    sk = sdp_sk(sock.sk)
    if (level, name) == (SOL_SOCKET, SO_DOMAIN):
        return as_asked(int(sk.sk_family), size)
    if level != SOL_SOCKET or sk.plain is None:
        return sdp_getsockopt(sk, level, name, size)
    return sk.plain.getsockopt(level, name, size)


def _get_own(sk: SdpSock, name: int, size: int) -> int | bytes:
    if name == SDP_ZCOPY_THRESH:
        return as_asked(sk.zcopy_thresh, size)
    if name == SDP_FALLBACK:
        text = sk.fallback or sk.fabric.fallback
    elif name == SDP_TRANSPORT:
        text = sk.carrier
    elif name == SDP_INFO:
        text = "".join(f"{key} {value}\n" for key, value in sdp_info(sk).items())
    else:
        raise os_error(errno.ENOPROTOOPT)
    if not size:
        raise os_error(errno.EINVAL, "the option is text: say how many octets there is room for")
    return text.encode()[:size]


def sdp_info(sk: SdpSock) -> dict[str, int | str]:
    """Which way a connection goes, and why; what its engine holds."""
    info: dict[str, int | str] = {"transport": sk.carrier}
    if sk.plain is not None:
        info["path"] = "tcp"
    elif sk.engine is not None:
        info["path"] = "sdp"
    if sk.reason is not None:
        info["fallback"] = str(sk.reason)
    if sk.link is not None:
        info |= sk.link.figures()
    return info


def sdp_keepalive(sk: Sock, on: bool) -> None:
    """SO_KEEPALIVE is the transport's, with TCP_KEEPIDLE and so on: a dead peer ends its stream."""
    _pass_on(sdp_sk(sk), SOL_SOCKET, SO_KEEPALIVE, int(on))
