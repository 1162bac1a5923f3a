"""Calls that carry an address beside the data: sendto, sendmsg, recvfrom, recvmsg and their kin.

Those without one are native and never come here (`bpf`), or are handed back to the kernel. On a
stream an address is ignored, as TCP does; the pair would refuse it.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import signal
import socket as std
import struct
from collections.abc import Callable
from typing import Any, Final

from steertag.errors import os_error
from steertag.run.decide import decide
from steertag.run.emulated import Emulated, State
from steertag.run.notify import Notification
from steertag.run.supervisor import ARG0, ID, PROCEED, TID, Supervisor

MSG_FASTOPEN: Final = 0x2000_0000
_MSGHDR: Final = struct.Struct("@QI4xQQQQi4x")
_MMSGHDR: Final = _MSGHDR.size + 8
_IOVEC: Final = struct.Struct("@QQ")
_UINT: Final = struct.Struct("@I")
_MOST_PARTS: Final = 1024
_MOST_MESSAGES: Final = 1024
_LARGEST: Final = 1 << 16
_STREAM_PIECE: Final = 1 << 16
_NAMELEN, _CONTROLLEN, _FLAGS = 8, 40, 48  # where they are in a msghdr
RCVTIMEO: Final = (20, 66)

Parts = list[tuple[int, int]]
"""Address and length of pieces of the program's memory."""


# -- sending ---------------------------------------------------------------------------------------


def sendto(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    flags = call[ARG0 + 3] & 0xFFFF_FFFF
    raw = sup.address(call, call[ARG0 + 4], call[ARG0 + 5])
    parts = [(call[ARG0 + 1], call[ARG0 + 2])]
    return _send(sup, sock, call, raw, parts, flags)


def sendmsg(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    return _sendmsg(sup, sock, call, call[ARG0 + 1], call[ARG0 + 2] & 0xFFFF_FFFF, 0)


def sendmmsg(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    """All of them, one after the other, up to one that fails; the kernel's if none has an address.

    On a stream, the first, which is a result that the call may have.
    """
    headers, count = call[ARG0 + 1], min(call[ARG0 + 2] & 0xFFFF_FFFF, _MOST_MESSAGES)
    if not count or not _any_name(sup, call, headers, count):
        return PROCEED
    flags = call[ARG0 + 3] & 0xFFFF_FFFF
    if sock.stream:
        return _sendmsg(sup, sock, call, headers, flags, headers + _MSGHDR.size)
    messages = []
    for header in range(headers, headers + count * _MMSGHDR, _MMSGHDR):
        name, namelen, parts = _header(sup, call, header)
        raw = sup.address(call, name, namelen) if name else sock.mapped or sock.peer or b""
        if not decide(sup, sock, call, "client", raw):
            return PROCEED
        address = sup.plan.mapped(sock.domain, raw)
        messages.append((header, address, _gather(sup, call, parts, _LARGEST)))
    return _send_all(sup, sock, call, messages, flags)


def _send_all(
    sup: Supervisor,
    sock: Emulated,
    call: Notification,
    messages: list[tuple[int, bytes, bytes]],
    flags: int,
) -> int | None:
    """The data process sends them in their order; the answer to the last answers the call."""
    sent = 0
    failed = 0

    def counted(header: int, error: int, result: Any) -> None:  # noqa: ANN401 - the channel's
        nonlocal sent, failed
        failed = failed or error
        if not failed:
            sup.target.poke(call[TID], header + _MSGHDR.size, _UINT.pack(result))
            sent += 1

    def start(then: Callable[[int, Any], None]) -> int:
        for header, address, data in messages[:-1]:
            note = functools.partial(counted, header)
            sup.data.sendto(sock.ident, address, data, flags, note)
        _, address, data = messages[-1]
        return sup.data.sendto(sock.ident, address, data, flags, then)

    def finish(error: int, result: Any) -> int:  # noqa: ANN401 - the channel's
        counted(messages[-1][0], error, result)
        return sent or -failed

    return sup.ask(sock, call, start, finish)


def _any_name(sup: Supervisor, call: Notification, headers: int, count: int) -> bool:
    vector = sup.target.peek(call[TID], headers, count * _MMSGHDR)
    return any(vector[at : at + 8] != bytes(8) for at in range(0, len(vector), _MMSGHDR))


def _sendmsg(
    sup: Supervisor, sock: Emulated, call: Notification, header: int, flags: int, length: int
) -> int | None:
    """`length`: where of an mmsghdr the count goes; 0: it is the result."""
    name, namelen, parts = _header(sup, call, header)
    if not name and not length:
        return PROCEED
    raw = sup.address(call, name, namelen) if name else sock.peer or b""
    return _send(sup, sock, call, raw, parts, flags, length)


def _header(sup: Supervisor, call: Notification, header: int) -> tuple[int, int, Parts]:
    tid = call[TID]
    fields = _MSGHDR.unpack(sup.target.peek(tid, header, _MSGHDR.size))
    name, namelen, vector, count = fields[:4]
    if count > _MOST_PARTS:
        raise os_error(errno.EMSGSIZE)
    table = sup.target.peek(tid, vector, count * _IOVEC.size)
    return name, namelen, list(_IOVEC.iter_unpack(table))


def _send(
    sup: Supervisor,
    sock: Emulated,
    call: Notification,
    raw: bytes,
    parts: Parts,
    flags: int,
    length: int = 0,
) -> int | None:
    def counted(count: int) -> int:
        if not length or count < 0:
            return count
        sup.target.poke(call[TID], length, _UINT.pack(count))
        return 1

    if sock.stream:
        return _send_stream(sup, sock, call, parts, flags, counted)
    if not decide(sup, sock, call, "client", raw):
        return PROCEED
    data = _gather(sup, call, parts, _LARGEST)
    address = sup.plan.mapped(sock.domain, raw)

    def finish(error: int, result: Any) -> int:  # noqa: ANN401 - the channel's
        return -error if error else counted(int(result))

    return sup.ask(
        sock,
        call,
        lambda then: sup.data.sendto(sock.ident, address, data, flags, then),
        finish,
    )


def _gather(sup: Supervisor, call: Notification, parts: Parts, most: int) -> bytes:
    """Octets of one datagram. Raises EMSGSIZE: more than any has."""
    if sum(count for _, count in parts) > most:
        raise os_error(errno.EMSGSIZE)
    return b"".join(sup.target.peek(call[TID], address, count) for address, count in parts)


def _send_stream(
    sup: Supervisor,
    sock: Emulated,
    call: Notification,
    parts: Parts,
    flags: int,
    counted: Callable[[int], int],
) -> int | None:
    """Send into the pair on the program's behalf; waits for room as the program would."""
    if flags & MSG_FASTOPEN:
        return -errno.EOPNOTSUPP
    if sock.state is not State.CONNECTED:
        return _broken(sup, call, flags)
    data = _first(sup, call, parts)
    theirs = sup.theirs(sock, call)

    def attempt() -> int:
        try:
            return counted(theirs.send(data, flags | std.MSG_DONTWAIT | std.MSG_NOSIGNAL))
        except BrokenPipeError:
            return _broken(sup, call, flags)
        except OSError as exc:
            return -(exc.errno or errno.EIO)

    result = attempt()
    waits = not flags & std.MSG_DONTWAIT and not sup.nonblocking(call)
    if result != -errno.EAGAIN or not waits:
        theirs.close()
        return result

    def ready() -> bool:
        result = attempt()
        return result != -errno.EAGAIN and (sup.answer(sock, call, result) or True)

    sup.when_ready(theirs, select.EPOLLOUT, call, ready)
    return None


def _first(sup: Supervisor, call: Notification, parts: Parts) -> bytes:
    """As much as one send takes."""
    taken, room = [], _STREAM_PIECE
    for address, count in parts:
        taken.append(sup.target.peek(call[TID], address, min(count, room)))
        room -= len(taken[-1])
        if not room:
            break
    return b"".join(taken)


def _broken(sup: Supervisor, call: Notification, flags: int) -> int:
    if not flags & std.MSG_NOSIGNAL:
        os.kill(sup.target.process(call[TID]), signal.SIGPIPE)
    return -errno.EPIPE


# -- receiving -------------------------------------------------------------------------------------


def _no_errors(flags: int) -> None:
    """A family's error queue does not reach the program, whose own is empty; nobody waits."""
    if flags & std.MSG_ERRQUEUE:
        raise os_error(errno.EAGAIN)


def recvfrom(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    _no_errors(call[ARG0 + 3])
    if sock.stream:
        return PROCEED

    def place(source: bytes, data: bytes, size: int, flags: int) -> int:
        sup.target.poke(call[TID], call[ARG0 + 1], data)
        sup.write_address(call, call[ARG0 + 4], call[ARG0 + 5], source)
        return size if flags & std.MSG_TRUNC else len(data)

    return _receive(sup, sock, call, call[ARG0 + 2], call[ARG0 + 3] & 0xFFFF_FFFF, place)


def recvmsg(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    return _recvmsg(sup, sock, call, call[ARG0 + 1], call[ARG0 + 2] & 0xFFFF_FFFF, 0)


def recvmmsg(sup: Supervisor, sock: Emulated, call: Notification) -> int | None:
    """One of them, which is a result that the call may have."""
    headers = call[ARG0 + 1]
    _no_errors(call[ARG0 + 3])
    if not call[ARG0 + 2] & 0xFFFF_FFFF or not _any_name(sup, call, headers, 1):
        return PROCEED
    flags = call[ARG0 + 3] & 0xFFFF_FFFF & ~int(getattr(std, "MSG_WAITFORONE", 0x10000))
    return _recvmsg(sup, sock, call, headers, flags, headers + _MSGHDR.size)


def _recvmsg(
    sup: Supervisor, sock: Emulated, call: Notification, header: int, flags: int, length: int
) -> int | None:
    _no_errors(flags)
    if sock.stream:
        return PROCEED
    name, namelen, parts = _header(sup, call, header)
    if not name:
        return PROCEED

    def place(source: bytes, data: bytes, size: int, flags: int) -> int:
        tid, poke = call[TID], sup.target.poke
        _scatter(sup, tid, parts, data)
        poke(tid, name, source[:namelen])
        poke(tid, header + _NAMELEN, _UINT.pack(len(source)))
        poke(tid, header + _CONTROLLEN, bytes(8))
        truncated = std.MSG_TRUNC if size > len(data) else 0
        poke(tid, header + _FLAGS, _UINT.pack(truncated))
        count = size if flags & std.MSG_TRUNC else len(data)
        if not length:
            return count
        poke(tid, length, _UINT.pack(count))
        return 1

    room = sum(count for _, count in parts)
    return _receive(sup, sock, call, room, flags, place)


def _scatter(sup: Supervisor, tid: int, parts: Parts, data: bytes) -> None:
    at = 0
    for address, count in parts:
        if at >= len(data):
            break
        sup.target.poke(tid, address, data[at : at + count])
        at += count


def _receive(
    sup: Supervisor,
    sock: Emulated,
    call: Notification,
    room: int,
    flags: int,
    place: Callable[[bytes, bytes, int, int], int],
) -> int | None:
    """Take a datagram out of the program's end, as it would, and say whom it is from.

    `place(source, data, size, flags)` gives it to the program; size is the datagram's.
    """
    if flags & (std.MSG_OOB | std.MSG_ERRQUEUE):
        return PROCEED
    theirs = sup.theirs(sock, call)

    def attempt() -> int:
        try:
            size = len(theirs.recv(_LARGEST, std.MSG_PEEK | std.MSG_DONTWAIT))
            sup.data.dispatch()  # what it was told before the datagram says whom that is from
            keep = std.MSG_PEEK if flags & std.MSG_PEEK else 0
            data = theirs.recv(min(room, _LARGEST), std.MSG_DONTWAIT | keep)
            source = sock.peer if sock.state is State.CONNECTED else sock.source
            return place(source or b"", data, size, flags)
        except OSError as exc:
            return -(exc.errno or errno.EIO)

    result = attempt()
    waits = not flags & std.MSG_DONTWAIT and not sup.nonblocking(call)
    if result != -errno.EAGAIN or not waits:
        theirs.close()
        return result
    return _wait(sup, sock, call, theirs, attempt)


def _wait(
    sup: Supervisor,
    sock: Emulated,
    call: Notification,
    theirs: std.socket,
    attempt: Callable[[], int],
) -> int | None:
    over = False

    def late() -> None:
        nonlocal over
        if not over:
            over = True
            sup.answer(None, call, -errno.EAGAIN)

    def ready() -> bool:
        nonlocal over
        if over or not sup.listener.alive(call[ID]):
            return True  # whoever calls again takes it
        result = attempt()
        if result == -errno.EAGAIN:
            return False
        over = True
        sup.answer(sock, call, result)
        return True

    sup.when_ready(theirs, select.EPOLLIN, call, ready)
    sup.limit(sock, RCVTIMEO, late)
    return None
