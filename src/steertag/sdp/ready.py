"""Octets that are here, in the stream's order, with the mark of out-of-band data among them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from steertag.rdma.memory import Region
from steertag.sdp.pieces import Mark, Piece

if TYPE_CHECKING:
    from steertag.sdp.engine import Writer

COPY_MAX: Final = 2048
"""Octets of a message that are copied out of its receive buffer, so that it is free at once."""
TRUESIZE: Final = 128
"""What a queued piece costs besides its octets."""


class Ready:
    """Args:
    limit: octets that may lie outside the receive buffers for small messages to be copied.
    repost: takes the index of each receive buffer that is free.
    unstage: takes each region that was read into and is free.

    Attributes:
        unread: octets that are here.
        held: octets (and what they cost) that lie outside the receive buffers.
        oob_inline: see `Engine`.
        oob_told: out-of-band data has been told of, and is neither taken nor read past.
    """

    __slots__ = (
        "_head",
        "_limit",
        "_mark",
        "_pieces",
        "_repost",
        "_unstage",
        "held",
        "oob_inline",
        "oob_told",
        "unread",
    )

    def __init__(
        self, limit: int, repost: Callable[[int], None], unstage: Callable[[Region], None]
    ) -> None:
        self._limit, self._repost, self._unstage = limit, repost, unstage
        self._pieces: deque[Piece | Mark] = deque()
        self._head = 0
        """Octets of the first piece that are read."""
        self._mark: Mark | None = None
        self.unread = self.held = 0
        self.oob_inline = self.oob_told = False

    def __len__(self) -> int:
        return len(self._pieces)

    # -- what comes ----------------------------------------------------------------------------

    def received(self, index: int, view: memoryview) -> None:
        """`view`, in receive buffer `index`: copied where that is cheap, so that it is free."""
        count = len(view)
        self.unread += count
        cost = count + TRUESIZE
        if count <= COPY_MAX and self.held + cost <= self._limit:
            self.held += cost
            self._pieces.append(Piece(bytes(view), -1, cost))
            self._repost(index)
        else:
            self._pieces.append(Piece(view, index, 0))

    def copied(self, octets: bytes) -> None:
        self.unread += len(octets)
        cost = len(octets) + TRUESIZE
        self.held += cost
        self._pieces.append(Piece(octets, -1, cost))

    def fetched(self, region: Region, count: int) -> None:
        """The first `count` octets of `region`, which `held` counts since they were asked for."""
        self.unread += count
        view, cost = region.view[:count], count + TRUESIZE
        if count <= COPY_MAX:
            self._pieces.append(Piece(bytes(view), -1, cost))
            self._unstage(region)
        else:
            self._pieces.append(Piece(view, -1, cost, region))

    def marked(self, octet: bytes) -> None:
        """The out-of-band octet is here, and this is its place."""
        self.oob_told = True
        self._unmark()
        mark = self._mark = Mark(octet)
        self._pieces.append(mark)
        if self.oob_inline:
            self.copied(octet)

    def _unmark(self) -> None:
        """A new mark is coming: an octet that nobody took is an ordinary one, as in Linux."""
        mark, pieces = self._mark, self._pieces
        if mark is None or mark not in pieces:
            return
        at = pieces.index(mark)
        del pieces[at]
        if not mark.taken and not self.oob_inline:
            self.unread += 1
            self.held += 1 + TRUESIZE
            pieces.insert(at, Piece(mark.octet, -1, 1 + TRUESIZE))

    # -- what the application takes ------------------------------------------------------------

    def read(self, write: Writer, room: int, peek: bool) -> int:
        """See `Engine.recv_into`."""
        if peek:
            return self._peek(write, room)
        pieces = self._pieces
        placed = 0
        while pieces and placed < room:
            piece = pieces[0]
            if isinstance(piece, Mark):
                if placed or len(pieces) == 1:
                    break
                pieces.popleft()
                if piece is self._mark:
                    # Read past: who hasn't taken the octet won't get it any more.
                    self._mark = None
                    self.oob_told = False
                continue
            head = self._head
            view = piece.view
            left = len(view) - head
            take = min(left, room - placed)
            write(placed, view if take == len(view) else memoryview(view)[head : head + take])
            placed += take
            if take < left:
                self._head = head + take
                break
            pieces.popleft()
            self._head = 0
            self._release(piece)
        self.unread -= placed
        return placed

    def _peek(self, write: Writer, room: int) -> int:
        placed, head = 0, self._head
        for piece in self._pieces:
            if isinstance(piece, Mark):
                if placed:
                    break
                continue
            if placed == room:
                break
            view = memoryview(piece.view)[head : head + room - placed]
            head = 0
            write(placed, view)
            placed += len(view)
        return placed

    def _release(self, piece: Piece) -> None:
        """Its octets are taken, or not wanted."""
        if piece.index >= 0:
            self._repost(piece.index)
            return
        self.held -= piece.charge
        if piece.stage is not None:
            self._unstage(piece.stage)

    def recv_oob(self, peek: bool) -> bytes | None:
        """See `Engine.recv_oob`."""
        mark = self._mark
        if mark is None:
            return b"" if self.oob_told else None
        if mark.taken or self.oob_inline:
            return None
        if not peek:
            mark.taken = True
            self.oob_told = False
        return mark.octet

    @property
    def at_mark(self) -> bool:
        return bool(self._pieces) and isinstance(self._pieces[0], Mark)

    # -- the end -------------------------------------------------------------------------------

    def drop(self) -> None:
        """Nobody reads any more."""
        for piece in self._pieces:
            if isinstance(piece, Piece):
                self._release(piece)
        self._pieces.clear()
        self._head = self.unread = 0
        self._mark = None

    def regions(self) -> list[Region]:
        """Those in which octets lie."""
        return [
            piece.stage
            for piece in self._pieces
            if isinstance(piece, Piece) and piece.stage is not None
        ]
