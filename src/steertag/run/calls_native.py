"""--map for sockets that are the host's own: the call is made here, with the other address.

The program's open file is used, by a duplicate of its descriptor, so that nothing of ours is left
in its way afterwards.
"""

from __future__ import annotations

import errno
import select
import socket as std
from typing import Final

from steertag.run.notify import Notification
from steertag.run.plan import host_and_port
from steertag.run.supervisor import ARG0, PROCEED, TID, Supervisor
from steertag.run.target import set_nonblocking

_LARGEST: Final = 1 << 16


def mapped(sup: Supervisor, call: Notification) -> int | None:
    """bind, connect and sendto to an address that is replaced; anything else proceeds."""
    name = sup.name_of(call)
    if name not in ("bind", "connect", "sendto"):
        return PROCEED
    first = ARG0 + (4 if name == "sendto" else 1)
    raw = sup.address(call, call[first], call[first + 1])
    if host_and_port(raw)[0] is None:
        return PROCEED
    domain = int.from_bytes(raw[:2], "little")
    address = sup.plan.mapped(domain, raw)
    if address == raw:
        return PROCEED
    theirs = sup.target.socket(call[TID], call[ARG0] & 0xFFFF_FFFF)
    try:
        result = _make(sup, call, name, theirs, address)
    except BaseException:
        theirs.close()
        raise
    if result is not None:
        theirs.close()
    return result


def _make(
    sup: Supervisor, call: Notification, name: str, theirs: std.socket, address: bytes
) -> int | None:
    if theirs.family not in (std.AF_INET, std.AF_INET6):
        return PROCEED
    if name == "bind":
        theirs.bind(_tuple(theirs, address))
        return 0
    if name == "sendto":
        count = min(call[ARG0 + 2], _LARGEST)
        data = sup.target.peek(call[TID], call[ARG0 + 1], count)
        flags = call[ARG0 + 3] & 0xFFFF_FFFF
        return theirs.sendto(data, flags | std.MSG_DONTWAIT, _tuple(theirs, address))
    return _connect(sup, call, theirs, address)


def _tuple(theirs: std.socket, address: bytes) -> tuple[str, int]:
    """As the host's socket takes it: IPv4 addresses are mapped for one of AF_INET6."""
    host, port = host_and_port(address)
    assert host is not None  # made by `Plan.mapped`
    six = theirs.family == std.AF_INET6
    return f"::ffff:{host}" if six and ":" not in host else host, port


def _connect(sup: Supervisor, call: Notification, theirs: std.socket, address: bytes) -> int | None:
    """Made without waiting, also for a program that waits: then its answer is."""
    where = _tuple(theirs, address)
    if sup.nonblocking(call):
        return -theirs.connect_ex(where)
    set_nonblocking(theirs.fileno(), True)
    try:
        error = theirs.connect_ex(where)
    finally:
        set_nonblocking(theirs.fileno(), False)
    if error not in (errno.EINPROGRESS, errno.EALREADY):
        return -error

    def ready() -> bool:
        error = theirs.getsockopt(std.SOL_SOCKET, std.SO_ERROR)
        sup.answer(None, call, -error)
        return True

    sup.when_ready(theirs, select.EPOLLOUT, call, ready)
    return None
