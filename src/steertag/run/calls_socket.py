"""socket(2), getsockname(2), getpeername(2), shutdown(2); and a descriptor's file replaced."""

from __future__ import annotations

import errno
import os
import socket as std
from typing import Any, Final

from steertag.errors import os_error
from steertag.run.emulated import Emulated, State, Waiting
from steertag.run.notify import Notification
from steertag.run.plan import NATIVE, UNDECIDED
from steertag.run.sockaddr import unspecified
from steertag.run.supervisor import ARG0, ID, MOST_KNOWN, PROCEED, TID, Supervisor

_TYPE_MASK: Final = 0xF
_FLAGS: Final = std.SOCK_NONBLOCK | std.SOCK_CLOEXEC
_REFUSALS: Final = (errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPROTONOSUPPORT)
_INET: Final = (std.AF_INET, std.AF_INET6)
_INT: Final = 4
SHUT_RD: Final = int(std.SHUT_RD)
SHUT_RDWR: Final = int(std.SHUT_RDWR)


def socket(sup: Supervisor, none: Emulated, call: Notification) -> int | None:
    """The program gets one end of a pair; a kind of socket that the family refuses, the host's."""
    domain, kind, protocol = (argument & 0xFFFF_FFFF for argument in call[ARG0 : ARG0 + 3])
    if kind & ~(_TYPE_MASK | _FLAGS):
        return PROCEED  # EINVAL, says the kernel
    if not sup.target.visible(call[TID]):
        sup.refused(call[TID])
        return PROCEED
    program = sup.program(call) if sup.plan.needs_program() else ""
    family, use = sup.plan.at_socket(domain, kind & _TYPE_MASK, program)
    if family == NATIVE:
        return PROCEED
    if sup.dead:
        return -errno.ENETDOWN
    sock = Emulated(domain, kind & _TYPE_MASK, protocol, family)
    if family == UNDECIDED:
        return _give(sup, sock, call, kind)
    known = sup.known.get((family, domain, sock.kind, protocol))
    if known is None:
        return _probe(sup, sock, call, kind, use)
    if known:
        return _refused(domain, known)
    sup.open(sock, family, use)
    return _give(sup, sock, call, kind)


def _refused(domain: int, error: int) -> int:
    """AF_INET's, the host has as well, and what nobody registered; a family's own number not."""
    native = error == errno.EAFNOSUPPORT or (domain in _INET and error in _REFUSALS)
    return PROCEED if native else -error


def _probe(sup: Supervisor, sock: Emulated, call: Notification, kind: int, use: str) -> int | None:
    """The first of its kind: ask the data process whether the family makes such sockets."""
    sup.open(sock, sock.family, use)
    waiting = Waiting(call)

    def then(error: int, result: Any) -> None:  # noqa: ANN401 - the channel's
        answer: int | None
        if len(sup.known) >= MOST_KNOWN:
            sup.known.clear()
        if error and error != errno.ENETDOWN:
            sup.known[sock.family, sock.domain, sock.kind, sock.protocol] = error
            if sock.domain in _INET and error in _REFUSALS and _host_has(sock):
                sup.warn(
                    f"family {sock.family} has no sockets of type {sock.kind} and protocol"
                    f" {sock.protocol} ({os.strerror(error)}); the program's are the host's own"
                )
        if error:
            sup.data.close(sock.ident)
            answer = _refused(sock.domain, error)
        else:
            sup.known[sock.family, sock.domain, sock.kind, sock.protocol] = 0
            answer = _give(sup, sock, waiting.call, kind)
        if answer is not None:
            sup.answer(None, waiting.call, answer)

    sup.data.getsockopt(sock.ident, std.SOL_SOCKET, std.SO_TYPE, _INT, then)
    return None


def _host_has(sock: Emulated) -> bool:
    try:
        std.socket(sock.domain, sock.kind, sock.protocol).close()
    except OSError:
        return False  # so the program is refused as natively
    return True


def _give(sup: Supervisor, sock: Emulated, call: Notification, kind: int) -> int | None:
    theirs = sup.pair(sock, bool(kind & std.SOCK_NONBLOCK))
    answer: int | None = None
    try:
        number = sup.listener.give(call[ID], theirs.fileno(), cloexec(kind))
    except OSError as exc:
        number = None
        answer = -(exc.errno or errno.EIO)
    if number is None:
        sup.forget(sock)  # too late: the call comes again, or nobody wants it
    else:
        sock.where = (call[TID], number)
        if sock.connectable or sock.family == UNDECIDED:
            sup.watch(sock)
        else:
            sup.attach(sock)
    theirs.close()
    return answer


def cloexec(kind: int) -> int:
    return os.O_CLOEXEC if kind & std.SOCK_CLOEXEC else 0


# -- a descriptor's file replaced ------------------------------------------------------------------


def renew(sup: Supervisor, sock: Emulated, call: Notification) -> None:
    """A fresh pair in the place of one that has ended; the data process's socket is fresh too.

    The caller's descriptors for it are replaced, all of them; those of other processes are not.

    Raises:
        OSError: EINTR: a signal has ended the call; when it comes again, all is as it was.
    """
    nonblocking = sup.nonblocking(call)
    old = sock.key
    sup.by_ident.pop(sock.ident, None)
    sock.rename()
    with sup.pair(sock, nonblocking) as theirs:
        try:
            _replace(sup, call, {old, *sock.former}, theirs)
        except OSError:
            sup.let_go(sock)
            sup.by_ident.pop(sock.ident, None)
            sock.former.append(sock.key)
            sock.key = old
            raise
    sock.filled = 0
    sock.state = State.NEW
    if sock.family != UNDECIDED:
        sup.open(sock, sock.family, sock.use)
        sup.set_again(sock)
    sup.watch(sock)
    sock.former.append(old)
    sup.drop_former(sock)


def make_native(sup: Supervisor, sock: Emulated, call: Notification) -> None:
    """The host kernel's own socket in the place of the pair: rules want it so.

    What was set on it is set again. A copy of the descriptor that another process got meanwhile
    (by fork) stays what it was.
    """
    with std.socket(sock.domain, sock.kind, sock.protocol) as native:
        native.setblocking(not sup.nonblocking(call))
        for (level, name), value in sock.options.items():
            native.setsockopt(level, name, value)
        _replace(sup, call, {sock.key}, native)
    sup.forget(sock)


def _replace(sup: Supervisor, call: Notification, keys: set[str], new: std.socket) -> None:
    """Put it into the caller, in the place of each of its descriptors that is one of `keys`.

    Raises:
        OSError: EINTR: the call has ended, and the descriptor that it is about is what it was;
            others may be replaced.
    """
    tid, about = call[TID], call[ARG0] & 0xFFFF_FFFF
    for number in sorted(sup.target.holding(tid, keys), key=about.__eq__):  # that one last
        flags = sup.target.flags(tid, number) & os.O_CLOEXEC
        if not sup.listener.put(call[ID], new.fileno(), number, flags):
            raise os_error(errno.EINTR)


# -- names and ends --------------------------------------------------------------------------------


def getsockname(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    if sock.local is not None and sock.connectable:
        sup.write_address(call, call[ARG0 + 1], call[ARG0 + 2], sock.local)
        return 0
    if not sock.opened or (sock.connectable and sock.domain in _INET):
        sup.write_address(call, call[ARG0 + 1], call[ARG0 + 2], unspecified(sock.domain))
        return 0

    def finish(error: int, result: Any) -> int:  # noqa: ANN401 - the channel's
        if error:
            return -error
        sup.write_address(call, call[ARG0 + 1], call[ARG0 + 2], result)
        return 0

    return sup.ask(sock, call, lambda then: sup.data.getsockname(sock.ident, then), finish)


def getpeername(sup: Supervisor, sock: Emulated, call: Notification) -> int:
    peer = sock.mapped or sock.peer
    if sock.state is not State.CONNECTED or peer is None:
        raise os_error(errno.ENOTCONN)
    sup.write_address(call, call[ARG0 + 1], call[ARG0 + 2], peer)
    return 0


def shutdown(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    """Of a connection, the pair's own; a listener has ended with it."""
    how = call[ARG0 + 1] & 0xFFFF_FFFF
    if how > SHUT_RDWR:
        return -errno.EINVAL
    if sock.state is State.LISTENING:
        if how == std.SHUT_WR:
            return 0  # a listener never sends
        for waiting in sock.accepters:
            sup.listener.reply(waiting.call[ID], -errno.EINVAL)
        sock.accepters.clear()
        sock.pending.clear()
        sup.data.close(sock.ident)
        sup.gone(sock.ident, 0)
        sock.state = State.NEW
        return 0
    if sock.state is State.CONNECTED:
        return PROCEED
    return -errno.ENOTCONN
