"""`struct msghdr`: one call's worth of data, address and ancillary data (linux/socket.h)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from steertag.family.skbuff import Buffer

# Whatever form a family's addresses have: a tuple, a path, octets.
Address: TypeAlias = object
Ancillary: TypeAlias = tuple[int, int, Buffer]


class MsgHdr:
    """Arguments and results of sendmsg and recvmsg.

    Attributes:
        msg_name: destination, or after recvmsg the source; None for none.
        msg_iov: the octets to send, or the writable places to fill, in order.
        msg_control: ancillary data `(level, type, data)`.
        msg_controllen: octets of ancillary data that the receiver has room for.
        msg_flags: MSG_* of the call, or after recvmsg what happened (MSG_TRUNC, ...).
        msg_waits: after a BlockingIOError the caller waits and calls again with this very object,
            its buffers staying where they are, until the call is answered or it gives up
            (`ProtoOps.cancel`). So a family may let a peer or a device have them meanwhile.
    """

    __slots__ = (
        "msg_control",
        "msg_controllen",
        "msg_flags",
        "msg_iov",
        "msg_name",
        "msg_waits",
    )

    def __init__(
        self,
        iov: Sequence[memoryview],
        *,
        name: Address = None,
        control: Sequence[Ancillary] = (),
        controllen: int = 0,
        flags: int = 0,
    ) -> None:
        self.msg_name = name
        self.msg_iov = iov
        self.msg_control: Sequence[Ancillary] = control
        self.msg_controllen = controllen
        self.msg_flags = flags
        self.msg_waits = False

    @property
    def length(self) -> int:
        """Octets of data, or of room."""
        return sum(len(part) for part in self.msg_iov)

    def read(self, offset: int, count: int) -> bytes:
        """A copy of up to `count` octets of the data from `offset` on (memcpy_from_msg)."""
        taken: list[memoryview] = []
        for part in self.msg_iov:
            if offset >= len(part):
                offset -= len(part)
                continue
            piece = part[offset : offset + count]
            offset = 0
            taken.append(piece)
            count -= len(piece)
            if not count:
                break
        return taken[0].tobytes() if len(taken) == 1 else b"".join(taken)

    def read_into(self, offset: int, place: memoryview) -> None:
        """Copy what lies from `offset` on into `place`, and fill it."""
        filled = 0
        for part in self.msg_iov:
            if offset >= len(part):
                offset -= len(part)
                continue
            count = min(len(part) - offset, len(place) - filled)
            place[filled : filled + count] = part[offset : offset + count]
            offset = 0
            filled += count
            if filled == len(place):
                break

    def write(self, offset: int, data: Buffer) -> int:
        """Place `data` from `offset` on; returns how many octets there was room for."""
        view = memoryview(data)
        placed = 0
        for part in self.msg_iov:
            if offset >= len(part):
                offset -= len(part)
                continue
            count = min(len(part) - offset, len(view) - placed)
            part[offset : offset + count] = view[placed : placed + count]
            offset = 0
            placed += count
            if placed == len(view):
                break
        return placed


class RecvMsg(MsgHdr):
    """A msghdr to receive octets of one's own (recv(2)), without a buffer that is filled first.

    What the family `write`s is taken as it is, and copied once, by `data`; so it may not change
    before recvmsg returns. A family that asks for `msg_iov` gets a buffer to fill.

    Args:
        room: octets, at most.
    """

    __slots__ = ("_buffer", "_placed", "_room", "_views")

    def __init__(self, room: int) -> None:
        self.msg_name = None
        self.msg_control = ()
        self.msg_controllen = 0
        self.msg_flags = 0
        self.msg_waits = False
        self._room = room
        self._buffer: bytearray | None = None
        self._views: list[Buffer] = []
        self._placed = 0

    @property
    def msg_iov(self) -> Sequence[memoryview]:  # type: ignore[override]  # a slot of MsgHdr
        if self._buffer is None:
            self._buffer = bytearray(self._room)
            views, self._views = self._views, []
            placed = 0
            for view in views:
                self._buffer[placed : placed + len(view)] = view
                placed += len(view)
        return (memoryview(self._buffer),)

    @property
    def length(self) -> int:
        return self._room

    def write(self, offset: int, data: Buffer) -> int:
        if self._buffer is not None or offset != self._placed:
            return super().write(offset, data)
        count = len(data)
        if offset + count > self._room:
            count = self._room - offset
            data = memoryview(data)[:count]
        if count:
            self._views.append(data)
            self._placed = offset + count
        return count

    def data(self, count: int) -> bytes:
        """The first `count` octets received."""
        if self._buffer is not None:
            return bytes(memoryview(self._buffer)[:count])
        if self._placed > count:
            return b"".join(self._views)[:count]
        return b"".join(self._views)
