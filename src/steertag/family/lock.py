"""One lock per Stack, and the work that waits for it.

Law: every member of `ProtoOps` and `Proto`, every receive handler and every `sk_*` callback
runs with its Stack's lock held. Nobody waits while holding it, and nobody who holds one Stack's
lock waits for another's: work for a Stack that is busy is left to whoever holds it (`raise_work`),
like the kernel's soft interrupts. So two Stacks joined by a link can't deadlock, and a frame
never enters a protocol that is in the middle of sending one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType


class StackLock:
    """A re-entrant lock which runs the raised work when it is let go for the last time."""

    __slots__ = ("_depth", "_lock", "_work")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._work: deque[Callable[[], None]] = deque()

    def __enter__(self) -> StackLock:
        self._lock.acquire()
        self._depth += 1
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._depth == 1:
                self._run()
        finally:
            self._depth -= 1
            outermost = self._depth == 0
            self._lock.release()
        if outermost and self._work:
            self._run_if_free()

    def raise_work(self, work: Callable[[], None]) -> None:
        """Have `work()` called with the lock held: now if the lock is free, else by its holder."""
        self._work.append(work)
        self._run_if_free()

    def _run(self) -> None:
        while self._work:
            self._work.popleft()()

    def _run_if_free(self) -> None:
        # The holder looks at the work again after it has let go, so what was appended before a
        # failed acquire here is always seen by one of the two.
        while self._work and self._lock.acquire(blocking=False):
            if self._depth:  # this very thread, further out: it runs the work when it lets go
                self._lock.release()
                return
            self._depth = 1
            try:
                self._run()
            finally:
                self._depth = 0
                self._lock.release()
