"""What the standard library checks of a call's arguments, in its words."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from steertag.family.msg import Ancillary

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def octets_of(data: ReadableBuffer) -> memoryview:
    """What is to be sent. Raises TypeError in the standard library's words."""
    try:
        return memoryview(data).cast("B")
    except TypeError:
        kind = type(data).__name__
        raise TypeError(f"a bytes-like object is required, not {kind!r}") from None


def checked_control(item: Ancillary) -> Ancillary:
    """One of sendmsg's control messages. Raises TypeError."""
    if not isinstance(item, tuple | list) or len(item) != 3:
        raise TypeError("[sendmsg() argument 2] must be an iterable of (level, type, data)")
    level, kind, data = item
    c_int(operator.index(level))
    c_int(operator.index(kind))
    memoryview(data)
    return (level, kind, data)


def c_int(value: int) -> int:
    """What a C function's `int` takes. Raises OverflowError."""
    if not -(1 << 31) <= value < 1 << 31:
        raise OverflowError("signed integer is out of the range of a C int")
    return value


def rest_of(iov: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of the parts after `done` octets."""
    rest = []
    for part in iov:
        if done >= len(part):
            done -= len(part)
            continue
        rest.append(part[done:])
        done = 0
    return rest
