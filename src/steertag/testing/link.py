"""A byte stream in memory between two engines of the RNIC, repeatable from a seed.

An engine (`steertag.rdma.connection`) is sans-I/O: it says what it wants to send and where the
stream's next octets go. `Link` is a stream for two of them, with a socket's habits: a send takes
part of what it is given, a read gives some of what is on its way, a full stream takes nothing, FIN
comes behind the last octet. Given an `rng` it chooses at every step who moves and how much, so
that one seed is one interleaving::

    link = Link(client, server, random.Random(7))
    link.run()

`feed` and `drain` are for a test that plays one of the two ends itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, Protocol

from steertag.rdma.connection import Engine

LEFT: Final = 0
RIGHT: Final = 1
CAPACITY: Final = 65536


class Endpoint(Protocol):
    """Whoever has the engine that the stream belongs to for now: a `Connection`."""

    @property
    def engine(self) -> Engine: ...


class _Direction:
    """Octets on their way from one end to the other."""

    def __init__(self) -> None:
        self.octets = bytearray()
        self.shut = False  # FIN is behind the last octet
        self.ended = False  # ... and was delivered


class Link:
    """Args:
    left, right: what the stream joins, known as LEFT and RIGHT.
    rng: chooses who moves and how many octets; None moves all there is, left first.
    capacity: octets on their way at most, in each direction.
    on_octets: called with the sender (LEFT or RIGHT) and each piece that it sends.

    Attributes:
        lost: the stream was cut.
    """

    def __init__(
        self,
        left: Endpoint,
        right: Endpoint,
        rng: random.Random | None = None,
        *,
        capacity: int = CAPACITY,
        on_octets: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self.lost = False
        self._ends = (left, right)
        self._ways = (_Direction(), _Direction())  # by sender
        self._rng = rng
        self._capacity = capacity
        self._on_octets = on_octets

    def step(self) -> bool:
        """One send, delivery or end of stream. False where nothing can move."""
        moves = [self._send, self._deliver]
        turns = [(move, side) for side in (LEFT, RIGHT) for move in moves]
        if self._rng is not None:
            self._rng.shuffle(turns)
        return any(move(side) for move, side in turns)

    def run(self, limit: int = 1_000_000) -> int:
        """Step until nothing can move; gives the number of steps.

        Raises RuntimeError where octets still move after `limit` steps.
        """
        for steps in range(limit):
            if not self.step():
                return steps
        raise RuntimeError(f"the link isn't quiet after {limit} steps")

    def in_flight(self, sender: int) -> int:
        """Octets that `sender` has sent and that have not arrived."""
        return len(self._ways[sender].octets)

    def shut(self, side: int) -> None:
        """`side` closes its end: FIN goes out behind what is on its way, and it reads no more."""
        self._ways[side].shut = True

    def cut(self, reason: str = "connection reset") -> None:
        """Lose the stream, with what is on its way, as a reset does."""
        if self.lost:
            return
        self.lost = True
        for way in self._ways:
            way.octets.clear()
        for end in self._ends:
            end.engine.stream_lost(reason)

    # -- inside --------------------------------------------------------------------------------

    def _choose(self, most: int) -> int:
        return most if self._rng is None else self._rng.randint(1, most)

    def _send(self, side: int) -> bool:
        way, engine = self._ways[side], self._ends[side].engine
        if self.lost or way.shut:
            return False
        if engine.closing:
            way.shut = True
            return True
        room = self._capacity - len(way.octets)
        if room <= 0 or not engine.wants_to_send:
            return False
        offered = b"".join(engine.data_to_send())
        if not offered:
            return False
        octets = offered[: self._choose(min(room, len(offered)))]
        way.octets += octets
        if self._on_octets is not None:
            self._on_octets(side, octets)
        engine.sent(len(octets))
        return True

    def _deliver(self, side: int) -> bool:
        """Bring `side` what its peer has sent."""
        way, engine = self._ways[1 - side], self._ends[side].engine
        if self.lost:
            return False
        if way.octets:
            if self._ways[side].shut:
                way.octets.clear()
                return True
            octets = _fill(engine, memoryview(way.octets), self._choose)
            del way.octets[:octets]
            if octets:
                engine.received(octets)
            return bool(octets)
        if way.shut and not way.ended:
            way.ended = True
            engine.eof()
            return True
        return False


def feed(endpoint: Endpoint, octets: bytes, rng: random.Random | None = None) -> int:
    """Give an end octets as its stream would, cut anywhere if `rng` is given.

    Gives how many it took: fewer than there are when it stopped to read.
    """
    rest = memoryview(octets)
    while rest:
        engine = endpoint.engine
        taken = _fill(engine, rest, lambda most: most if rng is None else rng.randint(1, most))
        if not taken:
            break
        engine.received(taken)
        rest = rest[taken:]
    return len(octets) - len(rest)


def drain(endpoint: Endpoint) -> bytes:
    """All that an end sends as long as its stream takes everything."""
    sent = bytearray()
    while endpoint.engine.wants_to_send:
        engine = endpoint.engine
        octets = b"".join(engine.data_to_send())
        if not octets:
            break
        sent += octets
        engine.sent(len(octets))
    return bytes(sent)


def _fill(engine: Engine, octets: memoryview, choose: Callable[[int], int]) -> int:
    """Write the first octets into the engine's buffers; how many is chosen."""
    buffers = engine.buffers()
    most = min(len(octets), sum(map(len, buffers)))
    if not most:
        return 0
    size = choose(most)
    position = 0
    for buffer in buffers:
        part = octets[position : min(size, position + len(buffer))]
        buffer[: len(part)] = part
        position += len(part)
    return size
