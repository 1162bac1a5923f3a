"""Queue pairs of one process that connect with an address handle (`ibv_modify_qp`), without a CM.

An iWARP connection is made by the connection manager, over TCP. Programs written for other
transports also tell a queue pair the number of its peer and take it to RTR; where both are of this
process, they find each other here. They speak iWARP over a socket pair of the Stack.

Such programs rely on what other transports promise and iWARP does not: that a Write or Send has
completed only when the peer has dealt with it. Here it is so: each end tells the other how many
octets of the stream it has dealt with, beside the stream.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from steertag.family import Stack
    from steertag.runtime.stream import Stream

_NAME: Final = "rdma"


class Confirmations:
    """How many octets of what one end sent the other has dealt with.

    A handler of the sender's `Loop`; the receiver `report`s, from whatever thread.

    Args:
        on_report: called after reports, with the sender's lock held.
    """

    deadline = None

    def __init__(self, on_report: Callable[[], None]) -> None:
        self._on_report = on_report
        self._octets = 0
        self._lock = threading.Lock()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False

    def fileno(self) -> int:
        return self._fd

    def octets(self) -> int:
        """What was reported last."""
        return self._octets

    def report(self, octets: int) -> None:
        """The receiver has dealt with so many octets since the stream began."""
        with self._lock:
            if octets != self._octets and not self._closed:
                self._octets = octets
                os.eventfd_write(self._fd, 1)

    def pump(self) -> bool:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return False
        self._on_report()
        return True

    def block(self, timeout: float | None) -> bool | None:
        """It has nothing to block in."""
        return None

    def glance(self, timeout: float | None) -> bool:
        return self.pump()

    def handle_timer(self, now: float) -> None:
        """It has no deadline."""

    def close(self) -> None:
        """To be called when the loop doesn't have it any more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)


class End(Protocol):
    """A queue pair that waits for its peer."""

    @property
    def qp_num(self) -> int: ...

    @property
    def peer(self) -> int:
        """The number of the queue pair that it waits for."""
        ...

    def make_confirmations(self) -> Confirmations:
        """For what it sends."""
        ...

    def join(self, stream: Stream, mine: Confirmations, peers: Confirmations) -> None:
        """The peer is there: have the stream, or close it where it isn't wanted any more."""
        ...


class Fabric:
    """What the RNICs over one Stack share: the numbers of queue pairs, and who waits for whom.

    Args:
        stack: whose socket pairs connect them.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, End] = {}

    @classmethod
    def of(cls, stack: Stack) -> Fabric:
        fabric = stack.generic.setdefault(_NAME, cls(stack))
        assert isinstance(fabric, cls)
        return fabric

    def next_qp_num(self) -> int:
        return next(self._numbers)

    def wait(self, end: End) -> None:
        """Join the end with its peer, now or when that waits for it.

        Called without the lock of any Context: both ends' are taken, one after the other.

        Raises:
            OSError: there are no descriptors for a stream between them.
        """
        from steertag.socket import socketpair

        with self._lock:
            peer = self._waiting.get(end.peer)
            if peer is None or peer.peer != end.qp_num:
                self._waiting[end.qp_num] = end
                return
            with ExitStack() as made:
                ours, theirs = socketpair(stack=self._stack)
                made.callback(ours.close)
                made.callback(theirs.close)
                mine = end.make_confirmations()
                made.callback(mine.close)
                peers = peer.make_confirmations()
                made.pop_all()
            del self._waiting[end.peer]
            peer.join(theirs, peers, mine)
            end.join(ours, mine, peers)

    def leave(self, end: End) -> None:
        """The end waits no more. It may still be given a stream, by whoever found it before."""
        if self._waiting.get(end.qp_num) is end:
            self._waiting.pop(end.qp_num, None)
