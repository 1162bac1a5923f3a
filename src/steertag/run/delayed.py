"""A relay that takes its time: for tests with peers that are far away (`stag run --rtt`)."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from steertag.run.relay import MORE_OUT, READ, Relay
from steertag.run.sides import Urgent, Way

Octets = Urgent | memoryview | bytes
Next = Callable[[int], Urgent | memoryview | None]
_SIZE = 256 * 1024


class _Held:
    """What is on its way in one direction.

    Attributes:
        queue: what, and when it is due; b"" is the end, an error that of receiving.
        octets: how many they are.
        full: the source may have more, which nobody tells of.
    """

    __slots__ = ("full", "octets", "queue")

    def __init__(self) -> None:
        self.queue: deque[tuple[float, bytes | OSError]] = deque()
        self.octets = 0
        self.full = False

    def ended(self) -> bool:
        return bool(self.queue) and not self.queue[-1][1]


class DelayedRelay(Relay):
    """One whose octets arrive `delay` seconds later than they do, each way."""

    __slots__ = ("_held_in", "_held_out", "_woken")

    LIMIT: ClassVar[int] = 1 << 20
    """Octets on their way, at most."""

    def start(self) -> None:
        self._held_out = _Held()
        self._held_in = _Held()
        self._woken = 0.0
        super().start()

    def send_out(self, sure: bool = False) -> None:
        held, way = self._held_out, self.outgoing
        if way.fin and not way.eof and (self.refusing or not self._our_end):
            held.full = False
            if self.incoming.left is not None:
                self._refuse_more()
            return
        if way.left is not None and not self._flush_out(way):
            self._out_blocked()
            return
        if not way.eof:
            self._hold(held, self.next_out)
        if not self._arrived(held, way, self.put_out):
            if way.left is not None:
                self._out_blocked()
        elif isinstance(way.failure, OSError):
            self._our_end_failed(way.failure)
        elif way.eof:
            self._out_ended(way)

    def bring_in(self, sure: bool = False) -> None:
        held, way = self._held_in, self.incoming
        if way.left is not None and not self._flush_in(way):
            return
        if not way.eof and not (self.lost and self.hung_up):  # its peer is to find no room
            self._hold(held, self.next_in)
        if not self._arrived(held, way, self.put_in):
            if way.left is not None and self.outgoing.fin:
                self._more(MORE_OUT)  # the connection has failed, and the program doesn't read
            return
        if way.failure is not None:
            self.error = self.error or way.failure.errno or errno.ECONNRESET
            way.eof = True
        if way.eof:
            self._in_ended(way)

    def _in_on_its_way(self) -> bool:
        return bool(self._held_in.queue) or super()._in_on_its_way()

    def _urgent_out(self) -> None:
        self.send_out()

    def _urgent_in(self) -> None:
        self.bring_in()

    def _hold(self, held: _Held, receive: Next) -> None:
        """Take in what there is; it is due later."""
        if held.queue and not isinstance(held.queue[-1][1], bytes):
            return
        due = self._poller.clock() + self.delay
        held.full = held.octets >= self.LIMIT
        while not held.full and not held.ended():
            try:
                got = receive(_SIZE)
            except OSError as error:
                held.queue.append((due, error))
                return
            if got is None:
                return
            held.queue.append((due, got if isinstance(got, Urgent) else bytes(got)))
            held.octets += len(got)
            held.full = held.octets >= self.LIMIT

    def _arrived(self, held: _Held, way: Way, put: Callable[[Octets], bool]) -> bool:
        """Pass on what is due. True if nothing stands in its way."""
        now = self._poller.clock()
        queue = held.queue
        while queue and queue[0][0] <= now and not self.over:
            what = queue.popleft()[1]
            if isinstance(what, OSError):
                way.failure = what
                return True
            if not what:
                way.eof = True
                return True
            held.octets -= len(what)
            if not way.fin and not put(what):
                return False
        if queue and not self.over:
            self._wake_at(queue[0][0])
        elif held.full:
            self._more(READ | MORE_OUT)  # no news tell of what was left in the source
        return not self.over

    def _wake_at(self, when: float) -> None:
        if self._woken < when:
            self._woken = when
            self._poller.call_at(when, lambda: self._more(READ | MORE_OUT))
