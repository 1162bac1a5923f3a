"""Completion queues and channels (pyverbs: `cq`)."""

from __future__ import annotations

import errno
import os
import time
from collections import deque

from steertag.errors import os_error
from steertag.rdma.cq import WC, CompletionQueue
from steertag.verbs.attr import MAX_CQ
from steertag.verbs.device import Context
from steertag.verbs.enums import IBV_EVENT_CQ_ERR
from steertag.verbs.events import blocks
from steertag.verbs.managed import Managed

__all__ = ["CQ", "WC", "CompChannel"]


class CompChannel(Managed):
    """A completion channel (`ibv_create_comp_channel`).

    `fileno()` is a real descriptor: readable while an event waits, for select, poll, epoll and
    asyncio.
    """

    close_rank = 2

    def __init__(self, creator: Context) -> None:
        self.context = creator
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._events: deque[CQ] = deque()
        self.users = 0
        super().__init__(creator)

    def fileno(self) -> int:
        return self._fd

    @property
    def fd(self) -> int:
        """The descriptor, under the name that `struct ibv_comp_channel` has for it."""
        return self._fd

    def get_cq_event(self, expected_cq: CQ | None = None, timeout: float | None = None) -> CQ:
        """Wait for the next event, give the CQ that it is of.

        Raises:
            TimeoutError: none came within `timeout` seconds.
            BlockingIOError: none is there, and the descriptor was made non-blocking.
            OSError: EINVAL where it is of another CQ than `expected_cq`; the event stays.
        """
        taken: list[CQ] = []

        def take() -> bool:
            if not self._events:
                return False
            cq = self._events[0]
            if expected_cq is not None and cq is not expected_cq:
                raise os_error(errno.EINVAL, "the event is of another completion queue")
            os.eventfd_read(self._fd)
            cq.unacknowledged += 1
            taken.append(self._events.popleft())
            return True

        if not blocks(self._fd):
            with self.context.loop.lock:
                if not take():
                    raise os_error(errno.EAGAIN, "no completion event")
        elif not self.context.wait_for(take, timeout) or not taken:
            raise TimeoutError("no completion event")
        return taken[0]

    def post(self, cq: CQ) -> None:
        """An armed queue got its completion. Called with the lock held."""
        self._events.append(cq)
        os.eventfd_write(self._fd, 1)
        self.context.loop.notify()

    def forget(self, cq: CQ) -> None:
        """The queue is being closed: its events go with it. Called with the lock held."""
        self.users -= 1
        for _ in range(self._events.count(cq)):
            self._events.remove(cq)
            os.eventfd_read(self._fd)

    def _close(self) -> None:
        with self.context.loop.lock:
            if self.users:
                raise os_error(errno.EBUSY, f"{self.users} completion queues use the channel")
            os.close(self._fd)


class CQ(Managed):
    """A completion queue (`ibv_create_cq`).

    Args:
        creator: its Context.
        cqe: completions it holds at most; one more is lost, and `overrun` says so.
        cq_context: anything; kept.
        channel: where its events go.
        comp_vector: 0; there is one.

    Attributes:
        cqe: completions it holds.
        comp_channel: where its events go, or None.

    Raises:
        OSError: EINVAL for a size or vector that the device doesn't have, ENOMEM for too many.
    """

    close_rank = 1

    def __init__(
        self,
        creator: Context,
        cqe: int,
        cq_context: object = None,
        channel: CompChannel | None = None,
        comp_vector: int = 0,
    ) -> None:
        if not 0 < cqe <= creator.rnic.limits.max_cqe:
            raise os_error(errno.EINVAL, f"a completion queue of {cqe} entries")
        if comp_vector:
            raise os_error(errno.EINVAL, f"completion vector {comp_vector}; there is only 0")
        if creator.completion_queues >= MAX_CQ:
            raise os_error(errno.ENOMEM, f"{MAX_CQ} completion queues exist")
        creator.completion_queues += 1
        self.context = creator
        self.cq_context = cq_context
        self.channel = channel
        self.unacknowledged = 0
        loop = creator.loop
        self.queue = CompletionQueue(
            cqe, self._event, self._overrun, loop.notify if loop.threaded else None
        )
        if channel is not None:
            with loop.lock:
                channel.users += 1
        super().__init__(creator)

    @property
    def cqe(self) -> int:
        return self.queue.depth

    @property
    def comp_channel(self) -> CompChannel | None:
        return self.channel

    @property
    def overrun(self) -> bool:
        """Completions were lost."""
        return self.queue.overrun

    def resize(self, cqe: int) -> None:
        """Hold `cqe` completions from now on (`ibv_resize_cq`).

        Raises:
            OSError: EINVAL for a size that the device doesn't have, or that what waits doesn't
                fit into.
        """
        if not 0 < cqe <= self.context.rnic.limits.max_cqe:
            raise os_error(errno.EINVAL, f"a completion queue of {cqe} entries")
        with self.context.loop.lock:
            self.queue.resize(cqe)

    def poll(self, num_entries: int = 1) -> tuple[int, list[WC]]:
        """Take up to `num_entries` completions: how many, and they. Never waits.

        Where the program itself drives progress, an empty queue drives it one step. Where a
        thread does, an empty queue lets it run: who polls in a loop would hold the interpreter
        for milliseconds.
        """
        entries = self.queue.entries
        if not entries:
            if self.context.loop.threaded:
                time.sleep(0)
            else:
                self.context.loop.run_once(0.0)
        if not entries:
            return 0, []
        with self.context.loop.lock:
            taken = self.queue.poll(num_entries)
        return len(taken), taken

    def wait(self, num_entries: int = 1, timeout: float | None = None) -> list[WC]:
        """Wait for at least one completion, take up to `num_entries`; empty after `timeout`."""
        taken: list[WC] = []

        def take() -> bool:
            taken.extend(self.queue.poll(num_entries))
            return bool(taken)

        # Taken with the lock held: another thread that polls can't be faster.
        self.context.wait_for(take, timeout)
        return taken

    def req_notify(self, solicited_only: bool = False) -> None:
        """`ibv_req_notify_cq`: the next completion posts an event to the channel."""
        with self.context.loop.lock:
            self.queue.arm(solicited_only)

    def ack_events(self, num_events: int) -> None:
        """`ibv_ack_cq_events`. Raises ValueError for more than were taken."""
        if num_events > self.unacknowledged:
            raise ValueError(f"{num_events} events, {self.unacknowledged} were taken")
        self.unacknowledged -= num_events

    def discard(self, qp_num: int) -> None:
        """Forget completions of a queue pair that is reset. Called with the lock held."""
        entries = self.queue.entries
        kept = [wc for wc in entries if wc.qp_num != qp_num]
        entries.clear()
        entries.extend(kept)

    def _event(self) -> None:
        if self.channel is not None:
            self.channel.post(self)

    def _overrun(self) -> None:
        self.context.events.post(IBV_EVENT_CQ_ERR, self)
        for qp in list(self.context.rnic.qps.values()):
            if qp.uses(self.queue):
                qp.stream_lost("completion queue overrun")

    def _close(self) -> None:
        with self.context.loop.lock:
            if any(qp.uses(self.queue) for qp in self.context.rnic.qps.values()):
                raise os_error(errno.EBUSY, "queue pairs use the completion queue")
            if self.channel is not None:
                self.channel.forget(self)
            self.context.events.forget(self)
            self.context.completion_queues -= 1
