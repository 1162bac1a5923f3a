"""A device that belongs to the event loop."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from steertag.rdma.rnic import RnicLimits
from steertag.verbs import cq as sync_cq
from steertag.verbs import device as sync_device
from steertag.verbs.aio.completion import CQ
from steertag.verbs.cm import cmid as sync
from steertag.verbs.cm.event import CMEventChannel
from steertag.verbs.device import DEVICE_NAME, Progress

if TYPE_CHECKING:
    from steertag.family import Stack
    from steertag.verbs.aio.cmid import CMID


class Context(sync_device.Context):
    """An opened RNIC that belongs to the running event loop.

    Args:
        progress: "caller": the event loop moves the octets, with no thread at all. "thread": a
            background thread does, and only what has come of it is the event loop's.
        name, stack, randbits, limits: as for `steertag.verbs.Context`.

    Raises:
        RuntimeError: there is no running event loop.
        OSError: ENODEV for another name.
    """

    def __init__(
        self,
        name: str = DEVICE_NAME,
        *,
        stack: Stack | None = None,
        progress: Progress = "caller",
        randbits: Callable[[int], int] = secrets.randbits,
        limits: RnicLimits | None = None,
    ) -> None:
        self._asyncio = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watched: list[int] = []
        self._ids: dict[sync.CMID, CMID] = {}
        super().__init__(name, stack=stack, progress=progress, randbits=randbits, limits=limits)
        self.cm_channel = CMEventChannel(self)
        self.comp_channel = sync_cq.CompChannel(self)
        self._watch(self.cm_channel.fileno(), self.take_cm_events)
        self._watch(self.comp_channel.fileno(), self._take_completions)
        if progress == "caller":
            self.loop.polled = True
            self._watch(self.loop.fileno(), self._move)

    def close(self) -> None:
        """Close it, with what was made from it; who waits for something of it gets an OSError."""
        if not self.closed:
            for aio_id in list(self._ids.values()):
                aio_id.close()
            watched, self._watched = self._watched, []
            for fd in watched:
                self._asyncio.remove_reader(fd)
            if self._timer is not None:
                self._timer.cancel()
        super().close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- for CMID and CQ -----------------------------------------------------------------------

    def register(self, cmid: sync.CMID, aio_id: CMID) -> None:
        """Events of `cmid` are for `aio_id`."""
        self._ids[cmid] = aio_id

    def unregister(self, cmid: sync.CMID) -> None:
        self._ids.pop(cmid, None)

    def take_cm_events(self) -> None:
        """Hand out the events that wait."""
        while self.cm_channel.pending:
            with self.cm_channel.get_event(0) as event:
                aio_id = self._ids.get(event.id)
                if aio_id is not None:
                    aio_id.on_event(event)

    # -- inside --------------------------------------------------------------------------------

    def _watch(self, fd: int, call: Callable[[], None]) -> None:
        self._asyncio.add_reader(fd, call)
        self._watched.append(fd)

    def _move(self) -> None:
        """Octets can be moved, or the next deadline is another one."""
        self.loop.run_ready()
        self._take_completions()
        self.take_cm_events()
        self._set_timer()

    def _set_timer(self) -> None:
        deadline = self.loop.deadline
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            left = max(0.0, deadline - self.loop.clock())
            self._timer = self._asyncio.call_later(left, self._move)

    def _take_completions(self) -> None:
        while True:
            try:
                cq = self.comp_channel.get_cq_event(timeout=0)
            except TimeoutError:
                return
            cq.ack_events(1)
            if isinstance(cq, CQ):
                cq.rearm()
