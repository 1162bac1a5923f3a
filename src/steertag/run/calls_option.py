"""setsockopt(2) and getsockopt(2): who answers which option says the table in `options`."""

from __future__ import annotations

import errno
import socket as std
import struct
from typing import Any, Final

from steertag.errors import os_error
from steertag.run.emulated import Emulated, State
from steertag.run.notify import Notification
from steertag.run.options import How, getting, setting
from steertag.run.supervisor import ARG0, ID, MOST_KNOWN, PROCEED, TID, Supervisor

_INT: Final = struct.Struct("@i")
_LONGEST: Final = 1 << 16
_TIMES: Final = (20, 21, 66, 67)
SOL_SOCKET: Final = int(std.SOL_SOCKET)
SO_ERROR: Final = int(std.SO_ERROR)
_INET: Final = (std.AF_INET, std.AF_INET6)


def setsockopt(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    level, name, size = (call[ARG0 + index] & 0xFFFF_FFFF for index in (1, 2, 4))
    how, error = setting(level, name)
    if how is How.REFUSE or how is How.CONTROL:
        return -(error or errno.ENOPROTOOPT)
    if size > _LONGEST:
        raise os_error(errno.EINVAL)
    value = sup.target.peek(call[TID], call[ARG0 + 3], size)
    _refuse_ipv6(sock, level, errno.ENOPROTOOPT)
    if how is How.NATIVE:
        if level == SOL_SOCKET and name in _TIMES:
            sock.options[level, name] = value  # for accept and connect
        return PROCEED
    if not sock.opened:
        return _set_later(sock, level, name, value)
    known = (sock.family, sock.domain, sock.kind, sock.state, level, name, value)
    if known in sup.taken:
        sock.options[level, name] = value
        sup.data.setsockopt(sock.ident, level, name, value, _taken_before)
        return 0

    def finish(error: int, result: Any) -> int:  # noqa: ANN401 - the channel's
        if not error:
            sock.options[level, name] = value
            if size == _INT.size and len(sup.taken) < MOST_KNOWN:
                sup.taken.add(known)
        return -error

    return sup.ask(
        sock,
        call,
        lambda then: sup.data.setsockopt(sock.ident, level, name, value, then),
        finish,
    )


def _refuse_ipv6(sock: Emulated, level: int, error: int) -> None:
    """A socket of AF_INET has no option of IPv6, whatever family serves it."""
    if level == std.IPPROTO_IPV6 and sock.domain == std.AF_INET:
        raise os_error(error)


def _set_later(sock: Emulated, level: int, name: int, value: bytes) -> int:
    """Rules have not chosen a family yet: judged by the host's, and set once there is one."""
    with std.socket(sock.domain, sock.kind, sock.protocol) as native:
        native.setsockopt(level, name, value)
    sock.options[level, name] = value
    return 0


def _taken_before(error: int, result: object) -> None:
    """The same value, on a socket of the same kind in the same state."""


def getsockopt(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    level, name = (call[ARG0 + index] & 0xFFFF_FFFF for index in (1, 2))
    how, error = getting(level, name)
    _refuse_ipv6(sock, level, errno.EOPNOTSUPP)
    if how is How.NATIVE:
        return PROCEED
    if how is How.REFUSE:
        return -error
    size = sup.target.peek_int(call[TID], call[ARG0 + 4])
    if size < 0:
        raise os_error(errno.EINVAL)
    if how is How.CONTROL:
        if name == SO_ERROR:
            return _error(sup, sock, call)
        return _give(sup, call, size, _INT.pack(_fact(sock, name)))
    if not sock.opened or sock.ident not in sup.by_ident:
        return _give(sup, call, size, _of_host(sock, level, name, min(size, _LONGEST)))

    def finish(error: int, result: Any) -> int:  # noqa: ANN401 - the channel's
        return -error if error else _give(sup, call, size, bytes(result))

    return sup.ask(
        sock,
        call,
        lambda then: sup.data.getsockopt(sock.ident, level, name, min(size, _LONGEST), then),
        finish,
    )


def _give(sup: Supervisor, call: Notification, size: int, value: bytes) -> int:
    value = value[:size]
    tid = call[TID]
    sup.target.poke(tid, call[ARG0 + 3], value)
    sup.target.poke(tid, call[ARG0 + 4], _INT.pack(len(value)))
    return 0


def _fact(sock: Emulated, name: int) -> int:
    if name == std.SO_TYPE:
        return sock.kind
    if name == std.SO_DOMAIN:
        return sock.domain
    if name == std.SO_PROTOCOL:
        return sock.protocol or sock.usual
    return int(sock.state is State.LISTENING)  # SO_ACCEPTCONN


def _of_host(sock: Emulated, level: int, name: int, size: int) -> bytes:
    """What was set, or what a fresh socket of the host's says: there is none of the family's."""
    value = sock.options.get((level, name))
    if value is not None:
        return value
    if sock.domain not in _INET:
        raise os_error(errno.ENOTCONN)
    with std.socket(sock.domain, sock.kind, sock.protocol) as native:
        return native.getsockopt(level, name, size)


# -- SO_ERROR --------------------------------------------------------------------------------------


def _error(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    """Of connecting; afterwards it is the pair's own, which a reset reaches as well."""
    if sock.peer is not None and sock.connectable:
        return PROCEED
    if sock.state is State.CONNECTING and not sock.filled and _given_up(sup, sock):
        # A signal ended connect(), and the program, whose end looks writable since it is not
        # filled, asks how it went.
        sock.asking.append(call)
        return None
    return _give_error(sup, sock, call)


def _given_up(sup: Supervisor, sock: Emulated) -> bool:
    return sock.connect is None or not sup.listener.alive(sock.connect.call[ID])


def _give_error(sup: Supervisor, sock: Emulated, call: Notification) -> int:
    size = sup.target.peek_int(call[TID], call[ARG0 + 4])
    result = _give(sup, call, size, _INT.pack(sock.error))
    if sock.error and sock.own is None:
        with sup.theirs(sock, call) as theirs:
            theirs.getsockopt(SOL_SOCKET, SO_ERROR)  # the pair's own, for poll
    sock.error = 0
    return result


def tell(sup: Supervisor, sock: Emulated) -> None:
    """Connecting has ended: answer those who asked how."""
    asking, sock.asking = sock.asking, []
    for call in asking:
        if not sup.listener.alive(call[ID]):
            continue
        try:
            result = _give_error(sup, sock, call)
        except OSError as exc:
            result = -(exc.errno or errno.EFAULT)
        sup.answer(sock, call, result)
