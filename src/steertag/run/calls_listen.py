"""bind(2), listen(2), accept(2).

A listener's end of the pair holds one octet for each connection that nobody accepted yet, so that
poll, select and epoll in all their ways see it natively; whoever accepts one takes one out. It is
kept full in the other direction: a listener is not writable.
"""

from __future__ import annotations

import errno
import socket as std
from typing import Any, Final

from steertag.errors import os_error
from steertag.run.calls_socket import cloexec, renew
from steertag.run.decide import decide
from steertag.run.emulated import Emulated, State, Waiting
from steertag.run.notify import Notification
from steertag.run.sockaddr import parse, unspecified
from steertag.run.supervisor import ARG0, ID, PROCEED, TID, Supervisor, trips_next

RCVTIMEO: Final = (20, 66)
SNDTIMEO: Final = (21, 67)
_TIMES: Final = (*RCVTIMEO, *SNDTIMEO)
_MOST: Final = 0x7FFF_FFFF
_MANY: Final = 16
_SMALL: Final = 1


def bind(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    raw = sup.address(call, call[ARG0 + 1], call[ARG0 + 2])
    parse(sock.domain, raw)  # EINVAL, EAFNOSUPPORT
    if sock.local is not None or sock.state is not State.NEW:
        raise os_error(errno.EINVAL)
    if not decide(sup, sock, call, "server", raw):
        return PROCEED
    if sock.own is None and sock.connectable:
        renew(sup, sock, call)
    address = sup.plan.mapped(sock.domain, raw)

    def finish(error: int, local: Any) -> int:  # noqa: ANN401 - the channel's
        if not error:
            sock.local = local
        return -error

    return sup.ask(sock, call, lambda then: sup.data.bind(sock.ident, address, then), finish)


def listen(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    backlog = call[ARG0 + 1] & 0xFFFF_FFFF
    sock.backlog = backlog if backlog <= _MOST else 0
    if not sock.connectable:
        raise os_error(errno.EOPNOTSUPP)
    if sock.state not in (State.NEW, State.LISTENING):
        raise os_error(errno.EINVAL)
    if not decide(sup, sock, call, "server", sock.local or unspecified(sock.domain)):
        return PROCEED
    if sock.own is None:  # it was shut down, and listens again
        renew(sup, sock, call)
        if sock.local is not None:
            sup.data.bind(sock.ident, sock.local, trips_next)

    def finish(error: int, local: Any) -> int:  # noqa: ANN401 - the channel's
        if not error:
            sock.local = local
        elif sock.state is State.LISTENING:
            sock.state = State.NEW
        return -error

    if sock.state is State.NEW:
        with sup.theirs(sock, call) as theirs:
            theirs.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, _SMALL)
            sock.fill(theirs)
        sock.state = State.LISTENING
    return sup.ask(sock, call, lambda then: sup.data.listen(sock.ident, sock.backlog, then), finish)


def arrived(sup: Supervisor, sock: Emulated, token: int, local: bytes, peer: bytes) -> None:
    """A connection waits: for the first accept() that does, or for the next."""
    sock.pending.append((token, local, peer))
    _announce(sock)
    while sock.accepters and sock.pending:
        call = sock.accepters.popleft().call
        if not sup.listener.alive(call[ID]):
            continue
        try:
            _accept(sup, sock, call)
        except OSError as exc:
            sup.listener.reply(call[ID], -(exc.errno or errno.EIO))


def _announce(sock: Emulated) -> None:
    """An octet for each that waits, as far as there is room for them."""
    assert sock.own is not None  # a listener's is ours
    try:
        while sock.announced < len(sock.pending):
            sock.own.send(b"\0", std.MSG_DONTWAIT)
            sock.announced += 1
    except (BlockingIOError, BrokenPipeError):
        # Those behind are announced when these are accepted; of a listener that is closed, none.
        return


def accept(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    return accept4(sup, sock, (*call[: ARG0 + 3], 0, 0, 0))


def accept4(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    if call[ARG0 + 3] & ~(std.SOCK_NONBLOCK | std.SOCK_CLOEXEC):
        raise os_error(errno.EINVAL)
    if not sock.connectable:
        raise os_error(errno.EOPNOTSUPP)
    if sock.state is not State.LISTENING:
        raise os_error(errno.EINVAL)
    if sock.accepters:
        _clear(sup, sock, call[TID])
    if sock.pending:
        _accept(sup, sock, call)
        return None
    if sup.nonblocking(call):
        return -errno.EAGAIN
    waiting = Waiting(call)
    sock.accepters.append(waiting)

    def late() -> None:
        if waiting in sock.accepters:
            sock.accepters.remove(waiting)
            sup.listener.reply(call[ID], -errno.EAGAIN)

    sup.limit(sock, RCVTIMEO, late)
    return None


def _clear(sup: Supervisor, sock: Emulated, tid: int) -> None:
    """A thread that calls again does not wait any more; nor do those that died."""
    alive = sup.listener.alive if len(sock.accepters) >= _MANY else _always
    for waiting in list(sock.accepters):
        if waiting.call[TID] == tid or not alive(waiting.call[ID]):
            sock.accepters.remove(waiting)


def _always(ident: int) -> bool:
    return True


def _accept(sup: Supervisor, sock: Emulated, call: Notification) -> None:
    """Give the caller the first connection; if that comes too late it stays the first.

    Raises:
        OSError: EFAULT, EBADF, EMFILE; it stays the first as well.
    """
    token, local, peer = sock.pending[0]
    flags = call[ARG0 + 3]
    with sup.theirs(sock, call) as listening:
        sup.write_address(call, call[ARG0 + 1], call[ARG0 + 2], peer)
        child = Emulated(sock.domain, sock.kind, sock.protocol, sock.family)
        child.state, child.local, child.peer = State.CONNECTED, local, peer
        child.use = sock.use
        with sup.pair(child, bool(flags & std.SOCK_NONBLOCK)) as theirs:
            _inherit(sock, child, theirs)
            listening.recv(1, std.MSG_DONTWAIT)
            sock.announced -= 1
            number = None
            try:
                number = sup.listener.give(call[ID], theirs.fileno(), cloexec(flags))
            finally:
                if number is None:
                    sup.forget(child)
                    _announce(sock)
    if number is not None:
        sock.pending.popleft()
        _announce(sock)
        child.where = (call[TID], number)
        child.opened = True
        assert child.own is not None  # made by `pair`
        sup.data.accept(sock.ident, token, child.ident, child.own.detach())
        child.own = None


def _inherit(sock: Emulated, child: Emulated, theirs: std.socket) -> None:
    """Options of a listener are its connections' too."""
    if sock.options:
        child.options = dict(sock.options)
        for name in _TIMES:
            value = sock.options.get((std.SOL_SOCKET, name))
            if value:
                theirs.setsockopt(std.SOL_SOCKET, name, value)
