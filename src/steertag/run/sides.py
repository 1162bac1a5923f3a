"""The two ends of a relay: what comes next at each, octets in line and out of band apart.

An octet out of band has a mark in its stream, and what is received in one go ends there. Our end
has such octets in line (SO_OOBINLINE); the family's side gives them for themselves.
"""

from __future__ import annotations

import socket as std
from typing import TYPE_CHECKING, Final

from steertag.run.ends import FamilyStream, Stream, at_mark, at_mark_of, unread

if TYPE_CHECKING:
    from steertag.family.socket import Socket

ROOM: Final = 256 * 1024
"""Octets that are received at a time, at most."""
FIRST: Final = 64 * 1024
"""... and at first, or where the other side was slow."""
SCRATCH: Final = memoryview(bytearray(ROOM))
"""Every relay's: what is not passed on at once is copied out of it."""
MSG_OOB: Final = int(std.MSG_OOB)


class Urgent(bytes):
    """The octet that was sent out of band."""


class Way:
    """One direction.

    Attributes:
        left: octets that were read and not taken yet.
        size: octets that are read at a time.
        eof: nothing more will be read.
        fin: the destination was told so, or takes nothing any more.
        failure: what its source ended with, where that is not passed on at once.
        moved: octets that the destination took.
    """

    __slots__ = ("eof", "failure", "fin", "left", "moved", "size")

    def __init__(self) -> None:
        self.left: memoryview | None = None
        self.failure: OSError | None = None
        self.size = FIRST
        self.moved = 0
        self.eof = self.fin = False


class Sides:
    """Args:
    ours: our end of the program's socketpair, non-blocking.
    sock: the family's socket.
    native: the host's socket that it is, if it is one.
    """

    __slots__ = ("_native", "_our_end", "_their_end", "_theirs", "ours", "sock")

    def __init__(self, ours: std.socket, sock: Socket, native: std.socket | None) -> None:
        self.ours = ours
        self.sock = sock
        self._native = native
        self._theirs: Stream = FamilyStream(sock) if native is None else native
        # Whether that side has said that its stream ends.
        self._our_end = self._their_end = False

    def next_out(self, size: int) -> Urgent | memoryview | None:
        """Octets of the program's; b"": their end; None: none now. Raises ECONNRESET."""
        if not unread(self.ours):
            return SCRATCH[: self.ours.recv_into(SCRATCH, size)] if self._our_end else None
        if not at_mark_of(self.ours):
            return SCRATCH[: self.ours.recv_into(SCRATCH, size)]
        return Urgent(self.ours.recv(1))

    def _sent_urgent(self, octet: bytes) -> bool:
        """Whether the family took it out of band."""
        try:
            return bool(self._theirs.send(memoryview(octet), MSG_OOB))
        except OSError:
            return False  # it has no such thing, or no room: in line, then

    def next_in(self, size: int) -> Urgent | memoryview | None:
        """Octets of the peer's; b"": their end; None: none now. Raises what receiving does."""
        native = self._native
        try:
            if native is None or not unread(native):
                if at_mark(self.sock, native):
                    octet = self._urgent_octet()
                    if octet is not None:
                        return octet  # else received before, and what is behind it comes next
                elif native is not None and not self._their_end:
                    return None
            return SCRATCH[: self._theirs.recv_into(SCRATCH[:size])]
        except BlockingIOError:
            return None

    def _urgent_octet(self) -> Urgent | None:
        """The one at the mark; None: it was received before. BlockingIOError: it is to come."""
        octet = bytearray(1)
        try:
            count = self._theirs.recv_into(memoryview(octet), 1, MSG_OOB)
        except BlockingIOError:
            raise
        except OSError:
            return None
        return Urgent(octet) if count else None
