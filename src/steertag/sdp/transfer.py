"""A transfer out of, or into, memory that its owner goes on using afterwards."""

from __future__ import annotations

from collections.abc import Callable


class Transfer:
    """What `Engine.send_in_place` and `recv_in_place` give.

    Attributes:
        octets: moved so far.
        done: the peer touches the memory no more; nothing more is moved.
        cancelled: `cancel` was called.
        error: errno where the stream ended it; 0 else.
    """

    __slots__ = ("_cancel", "cancelled", "done", "error", "octets")

    def __init__(self, cancel: Callable[[Transfer], None]) -> None:
        self.octets = 0
        self.done = False
        self.cancelled = False
        self.error = 0
        self._cancel = cancel

    def cancel(self) -> None:
        """Give up: nothing more is begun. `done` becomes true, now or after the peer has
        answered; `octets` may still grow until then."""
        if not (self.done or self.cancelled):
            self.cancelled = True
            self._cancel(self)
