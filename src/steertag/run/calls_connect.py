"""connect(2).

Until the handshake is over the program's end is kept full, so that it is not writable; exactly the
octets that fill it are taken out again, and from then on the data process has our end. A program
that waits in connect() sees nothing of that, so for it the filling is left out.
"""

from __future__ import annotations

import errno
import socket as std
import struct
from typing import Any, Final

from steertag.errors import os_error
from steertag.run.calls_listen import SNDTIMEO
from steertag.run.calls_option import tell
from steertag.run.calls_socket import renew
from steertag.run.decide import decide
from steertag.run.emulated import Emulated, State, Waiting
from steertag.run.notify import Notification
from steertag.run.sockaddr import AF_INET, AF_INET6, AF_UNSPEC, family_of, parse
from steertag.run.supervisor import ARG0, PROCEED, Supervisor, trips_next

_ABORT: Final = struct.pack("@ii", 1, 0)
"""struct linger: on, and no time."""


def connect(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    raw = sup.address(call, call[ARG0 + 1], call[ARG0 + 2])
    if not sock.connectable:
        return _fix_peer(sup, sock, call, raw)
    if family_of(raw) == AF_UNSPEC:
        return _dissolve(sup, sock)
    state = sock.state
    if state is State.CONNECTING:
        return _once_more(sup, sock, call)
    if not sock.reported and state is State.CONNECTED:
        sock.reported = True
        return 0
    if state in (State.CONNECTED, State.LISTENING):
        return -errno.EISCONN
    if state is State.FAILED:  # the first call after a failure reports it; the next one tries anew
        error, sock.error = sock.error or errno.ECONNABORTED, 0
        sock.state = State.NEW
        return -error
    parse(sock.domain, raw)  # EINVAL, EAFNOSUPPORT
    if sock.domain == AF_INET6 and family_of(raw) == AF_INET:
        raise os_error(errno.EAFNOSUPPORT)
    if not decide(sup, sock, call, "client", raw):
        return PROCEED
    if sock.own is None:
        renew(sup, sock, call)
    return _start(sup, sock, call, raw)


def _start(sup: Supervisor, sock: Emulated, call: Notification, raw: bytes) -> int | None:
    address = sup.plan.mapped(sock.domain, raw)
    sock.mapped = raw if address != raw else None
    nonblocking = sup.nonblocking(call)
    if nonblocking:
        with sup.theirs(sock, call) as theirs:
            sock.fill(theirs)
    sock.state = State.CONNECTING
    sock.error = 0
    _request(sup, sock, address)
    if nonblocking:
        return -errno.EINPROGRESS
    _park(sup, sock, call)
    return None


def _request(sup: Supervisor, sock: Emulated, address: bytes) -> None:
    ident = sock.ident

    def then(error: int, result: Any) -> None:  # noqa: ANN401 - the channel's
        if sock.ident == ident and sock.state is State.CONNECTING:
            if error:
                _failed(sup, sock, error)
            else:
                _connected(sup, sock, *result)

    sup.data.connect(ident, address, then)


def _park(sup: Supervisor, sock: Emulated, call: Notification) -> None:
    waiting = sock.connect = Waiting(call)

    def late() -> None:
        if sock.connect is waiting:
            sock.connect = None
            _keep_unwritable(sup, sock, waiting.call)
            sup.answer(sock, waiting.call, -errno.EINPROGRESS)

    sup.limit(sock, SNDTIMEO, late)


def _keep_unwritable(sup: Supervisor, sock: Emulated, call: Notification) -> None:
    """The program stops to wait in connect(), and may poll."""
    try:
        theirs = sup.theirs(sock, call)
    except OSError:
        return  # its thread has ended
    with theirs:
        sock.fill(theirs)


def _once_more(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    """A signal interrupted connect(), or it is another thread's: it waits for the same."""
    if sup.nonblocking(call):
        return -errno.EALREADY
    if sock.connect is None:
        _park(sup, sock, call)
    else:
        sock.connect.call = call
    return None


def _connected(sup: Supervisor, sock: Emulated, local: bytes, peer: bytes) -> None:
    sock.state, sock.local, sock.peer = State.CONNECTED, local, peer
    waiting, sock.connect = sock.connect, None
    sock.drain()
    sup.attach(sock)
    sock.reported = waiting is not None
    if waiting is not None:
        sup.answer(sock, waiting.call, 0)
    tell(sup, sock)


def _failed(sup: Supervisor, sock: Emulated, error: int) -> None:
    waiting, sock.connect = sock.connect, None
    sock.state = State.NEW
    if waiting is None or not sup.answer(sock, waiting.call, -error):
        sock.error = error
    tell(sup, sock)
    if not sock.filled:
        return  # it can be connected once more
    if waiting is None:
        sock.state = State.FAILED
    # What is unread in our end shows as POLLERR and POLLHUP in the program's.
    sup.let_go(sock)
    sup.data.close(sock.ident)
    sup.ended(sock)


def _dissolve(sup: Supervisor, sock: Emulated) -> int:
    """connect to AF_UNSPEC: a connection ends by a reset, and the socket can be used again."""
    if sock.state is State.NEW:
        return 0
    if sock.state is State.CONNECTING and sock.own is not None:
        sup.let_go(sock)
    sup.data.setsockopt(sock.ident, std.SOL_SOCKET, std.SO_LINGER, _ABORT, trips_next)
    sup.data.close(sock.ident)
    sup.ended(sock)
    sock.state, sock.local, sock.peer, sock.error = State.NEW, None, None, 0
    return 0


def _fix_peer(sup: Supervisor, sock: Emulated, call: Notification, raw: bytes) -> int | None:
    """Of a datagram socket: where its datagrams go, and whose it takes."""
    unspecified = family_of(raw) == AF_UNSPEC
    if not unspecified:
        parse(sock.domain, raw)
        if not decide(sup, sock, call, "client", raw):
            return PROCEED
    elif not sock.opened:
        return 0
    address = raw if unspecified else sup.plan.mapped(sock.domain, raw)

    def finish(error: int, result: Any) -> int:  # noqa: ANN401 - the channel's
        if error:
            return -error
        if unspecified:
            sock.state, sock.peer, sock.mapped = State.NEW, None, None
        else:
            sock.state = State.CONNECTED
            sock.local, sock.peer = result
            sock.mapped = raw if address != raw else None
        return 0

    return sup.ask(sock, call, lambda then: sup.data.connect(sock.ident, address, then), finish)
