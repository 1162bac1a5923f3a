"""Events of a device that belong to no completion queue (`ibv_get_async_event`)."""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from typing import Final

from steertag.errors import os_error
from steertag.runtime.loop import Loop
from steertag.verbs import enums as e

EVENT_NUMBERS: Final[dict[str, int]] = {
    name: number for name, number in vars(e).items() if name.startswith("IBV_EVENT_")
}
EVENT_NAMES: Final = {number: name for name, number in EVENT_NUMBERS.items()}


class AsyncEvent:
    """One asynchronous event.

    Attributes:
        event_type: IBV_EVENT_*.
        element: the `CQ`, `QP` or `SRQ` that it is of.
    """

    __slots__ = ("element", "event_type")

    def __init__(self, event_type: int, element: object = None) -> None:
        self.event_type = event_type
        self.element = element

    @property
    def name(self) -> str:
        return EVENT_NAMES.get(self.event_type, f"event {self.event_type}")

    def ack(self) -> None:
        """`ibv_ack_async_event`: the program is done with it; it holds its element no longer."""
        self.element = None

    def __repr__(self) -> str:
        return f"<AsyncEvent {self.name} {self.element!r}>"


class AsyncEvents:
    """The events that wait, and a descriptor for them, made when it is asked for.

    Args:
        loop: the Context's; its lock guards the events.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[AsyncEvent] = deque()
        self._fd = -1

    def __len__(self) -> int:
        return len(self._waiting)

    def fileno(self) -> int:
        with self._loop.lock:
            if self._fd < 0:
                self._fd = os.eventfd(len(self._waiting), os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
            return self._fd

    def post(self, event_type: int, element: object) -> None:
        """Something happened to `element`. Called with the lock held.

        An event that waits already says it: what waits is bounded by the objects that there are.
        """
        if any(e.event_type == event_type and e.element is element for e in self._waiting):
            return
        self._waiting.append(AsyncEvent(event_type, element))
        if self._fd >= 0:
            os.eventfd_write(self._fd, 1)
        self._loop.notify()

    def get(self, timeout: float | None) -> AsyncEvent:
        """See `Context.get_async_event`."""
        taken: list[AsyncEvent] = []

        def take() -> bool:
            if self._waiting:
                taken.append(self._waiting.popleft())
                if self._fd >= 0:
                    os.eventfd_read(self._fd)
            return bool(taken)

        if self._fd >= 0 and not blocks(self._fd):
            with self._loop.lock:
                if not take():
                    raise os_error(errno.EAGAIN, "no asynchronous event")
        elif not self._loop.wait_for(take, timeout) or not taken:
            raise TimeoutError("no asynchronous event")
        return taken[0]

    def forget(self, element: object) -> None:
        """The element is being closed: its events go with it. Called with the lock held."""
        kept = [event for event in self._waiting if event.element is not element]
        for _ in range(len(self._waiting) - len(kept)):
            if self._fd >= 0:
                os.eventfd_read(self._fd)
        self._waiting = deque(kept)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def blocks(fd: int) -> bool:
    """Whether whoever reads the descriptor is to wait: what the program has set it to."""
    return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
