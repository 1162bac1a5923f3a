"""One direction of a TCP connection, put in order from the segments of a capture.

Octets are handed on as soon as they are in sequence. Of octets that were sent again the first copy
counts. What is behind a hole waits until the hole is filled, or until it is certain or likely that
it won't be: the peer has acknowledged it and a number of further acknowledgements went by, or more
waits behind it than the window holds, or the stream is over. So memory is bounded whatever the
capture holds.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import itemgetter
from typing import Final, Protocol

from steertag.observe.packet import FIN, SYN

WINDOW: Final = 1 << 22
"""Octets that may wait behind a hole, in one direction."""
PATIENCE: Final = 32
"""Acknowledgements behind a hole that go by before it counts as missing from the capture."""

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_FARTHEST: Final = 1 << 30  # the largest window that TCP has (RFC 7323 section 2.3)
_ENTRY: Final = 128  # octets that a waiting segment takes besides its payload

_offset = itemgetter(0)


def _distance(to: int, start: int) -> int:
    """From one sequence number to another, forwards or (negative) backwards."""
    return ((to - start + _HALF) & _MASK) - _HALF


class Receiver(Protocol):
    """Who takes the octets of a direction, in order."""

    def data(self, octets: bytes) -> None:
        """The next octets of the stream, from one segment."""
        ...

    def missing(self, octets: int, *, cut: bool) -> None:
        """The stream's next `octets` are not in the capture; `cut`: by its snap length."""
        ...


class _Nobody:
    def data(self, octets: bytes) -> None:
        """Whoever took them was let go of."""

    def missing(self, octets: int, *, cut: bool) -> None:
        """Likewise."""


_NOBODY: Final = _Nobody()


class HalfStream:
    """Args:
    receiver: takes the octets.

    Attributes:
        from_syn: the capture holds the direction's SYN, so its first octet is the stream's.
        held: octets of memory that wait behind a hole.
    """

    __slots__ = (
        "_acked",
        "_fin",
        "_next_seq",
        "_patience",
        "_position",
        "_receiver",
        "_waiting",
        "from_syn",
        "held",
    )

    def __init__(self, receiver: Receiver) -> None:
        self._receiver: Receiver = receiver
        self._next_seq: int | None = None
        # Positions are octets of the stream since the first seen; they don't wrap.
        self._position = 0
        self._acked = 0
        self._fin: int | None = None
        self._waiting: list[tuple[int, bytes, int]] = []  # position, octets, length on the wire
        self._patience = PATIENCE
        self.from_syn = False
        self.held = 0

    @property
    def started(self) -> bool:
        return self._next_seq is not None

    @property
    def stalled(self) -> bool:
        """The capture lacks octets so far: others wait behind them, or the peer has them."""
        return bool(self._waiting) or self._acked > self._position

    @property
    def ended(self) -> bool:
        """Everything up to the FIN was handed on."""
        return self._fin is not None and self._position >= self._fin

    def opens_anew(self, seq: int) -> bool:
        """Whether a SYN with this sequence number is another connection's than the one so far."""
        if self._next_seq is None:
            return False
        first = (self._next_seq - self._position) & _MASK
        return not self.from_syn or first != (seq + 1) & _MASK

    def begin(self, seq: int) -> None:
        """The peer's SYN says with which sequence number this direction's octets begin."""
        if self._next_seq is None:
            self._next_seq = seq
            self.from_syn = True

    def segment(self, seq: int, flags: int, payload: bytes, length: int) -> None:
        """Take a segment; `length` octets were on the wire, `payload` holds the first of them."""
        if flags & SYN:
            seq = (seq + 1) & _MASK
        if self._next_seq is None:
            self._next_seq = seq
            self.from_syn = bool(flags & SYN)
        position = self._position + _distance(seq, self._next_seq)
        if flags & FIN and self._fin is None and position + length >= self._position:
            self._fin = position + length
        if length == 0:
            return
        if position == self._position and not self._waiting:
            self._deliver(payload, length)
        else:
            self._sort_in(position, payload, length)

    def acknowledged(self, ack: int) -> None:
        """The peer has everything up to the sequence number `ack`."""
        if self._next_seq is None:
            return
        ahead = _distance(ack, self._next_seq)
        if ahead <= 0:
            return
        self._acked = max(self._acked, self._position + ahead)
        if self._waiting:
            self._patience -= 1
            if self._patience < 0:
                self.give_up()

    def give_up(self) -> None:
        """Treat the first hole as missing from the capture, and go on behind it."""
        if self._waiting:
            self._miss(self._waiting[0][0] - self._position)
            self._drain()

    def discard(self) -> None:
        """Forget what waits, and hand nothing on any more."""
        self._waiting.clear()
        self.held = 0
        self._receiver = _NOBODY

    def finish(self) -> None:
        """No more segments come: whatever waits is handed on, with the holes."""
        self._drain(over_holes=True)
        if self._fin is not None:
            rest = self._fin - self._position
        else:
            rest = self._acked - self._position
            if rest == 1:  # what was acknowledged is a FIN
                rest = 0
        if 0 < rest <= _FARTHEST:
            self._miss(rest)

    def _sort_in(self, position: int, payload: bytes, length: int) -> None:
        done = self._position - position
        if done >= length:
            return  # sent again
        if done > 0:
            position, payload, length = self._position, payload[done:], length - done
        if position == self._position:
            self._deliver(payload, length)
            self._drain()
            return
        if position - self._position > _FARTHEST:
            return  # no window reaches that far: it belongs to something else
        at = bisect_left(self._waiting, position, key=_offset)
        if at < len(self._waiting) and self._waiting[at][0] == position:
            if len(self._waiting[at][1]) >= len(payload):
                return
            self.held -= len(self._waiting.pop(at)[1]) + _ENTRY
        self._waiting.insert(at, (position, payload, length))
        self.held += len(payload) + _ENTRY
        if self.held > WINDOW:
            self.give_up()

    def _drain(self, *, over_holes: bool = False) -> None:
        """Hand on what waited and is in sequence now, or all of it."""
        done = 0
        for position, payload, length in self._waiting:
            overlap = self._position - position
            if overlap < 0:
                if not over_holes:
                    break
                self._miss(-overlap)
                overlap = 0
            done += 1
            self.held -= len(payload) + _ENTRY
            if overlap < length:
                self._deliver(payload[overlap:], length - overlap)
        del self._waiting[:done]
        self._patience = PATIENCE

    def _advance(self, octets: int) -> None:
        assert self._next_seq is not None, "nothing is handed on before the first segment"
        self._position += octets
        self._next_seq = (self._next_seq + octets) & _MASK

    def _deliver(self, payload: bytes, length: int) -> None:
        self._advance(length)
        if payload:
            self._receiver.data(payload)
        if len(payload) < length:
            self._receiver.missing(length - len(payload), cut=True)

    def _miss(self, octets: int) -> None:
        self._advance(octets)
        self._receiver.missing(octets, cut=False)
