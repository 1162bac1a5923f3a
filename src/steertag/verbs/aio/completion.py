"""Completions that are waited for: queues, and a future for each request."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Self

from steertag.errors import os_error
from steertag.rdma.constants import SEND_SIGNALED
from steertag.rdma.cq import WC
from steertag.rdma.wr import RecvWR, SendWR
from steertag.verbs import cq as sync_cq
from steertag.verbs.qp import QP

if TYPE_CHECKING:
    from steertag.verbs.aio.context import Context

_BATCH: Final = 64


class Ticket(int):
    """A request's `wr_id`, which brings its completion to who waits for it."""

    future: asyncio.Future[WC]


class CQ(sync_cq.CQ):
    """A completion queue whose completions are waited for.

    A completion belongs to whom `submit` gave a future for it, as long as that isn't cancelled;
    every other one to the next `get`. `async for` goes on until the queue is closed.

    Args:
        creator: an `aio.Context`.
        cqe: completions it holds at most.
        cq_context: anything; kept.
    """

    def __init__(self, creator: Context, cqe: int, cq_context: object = None) -> None:
        self._unclaimed: deque[WC] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._submitted: set[asyncio.Future[WC]] = set()
        super().__init__(creator, cqe, cq_context, creator.comp_channel)
        self.req_notify()

    async def get(self) -> WC:
        """The next completion that no `submit` has claimed.

        Raises OSError: EBADF when the queue is closed, ENOBUFS when it has lost completions.
        """
        while not self._unclaimed:
            self._check()
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except BaseException:
                if getter in self._getters:
                    self._getters.remove(getter)
                elif self._unclaimed:
                    self._wake_one()  # it was woken, and can't take what it was woken for
                raise
        return self._unclaimed.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WC:
        try:
            return await self.get()
        except OSError as exc:
            if exc.errno == errno.EBADF:
                raise StopAsyncIteration from None
            raise

    def ticket(self, wr_id: int) -> Ticket:
        """A `wr_id` whose completion its future gets. For `submit`."""
        ticket = Ticket(wr_id)
        ticket.future = asyncio.get_running_loop().create_future()
        self._submitted.add(ticket.future)
        ticket.future.add_done_callback(self._submitted.discard)
        return ticket

    def rearm(self) -> None:
        """Its event was taken: ask for the next, then hand out what is there."""
        if self.closed:
            return
        self.req_notify()
        self.hand_out()

    def hand_out(self) -> None:
        """Give every completion to whom it belongs."""
        while True:
            number, taken = self.poll(_BATCH)
            for wc in taken:
                ticket = wc.wr_id
                if isinstance(ticket, Ticket) and not ticket.future.done():
                    ticket.future.set_result(wc)
                else:
                    self._unclaimed.append(wc)
                    self._wake_one()
            if not number:
                break
        if self.overrun:
            self._fail(os_error(errno.ENOBUFS, "the completion queue was full: some are lost"))

    def _wake_one(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    def _check(self) -> None:
        if self.closed:
            raise os_error(errno.EBADF, "the completion queue is closed")
        if self.overrun:
            raise os_error(errno.ENOBUFS, "the completion queue was full: some are lost")

    def _fail(self, reason: OSError) -> None:
        getters, self._getters = self._getters, deque()
        waiting: list[asyncio.Future[None] | asyncio.Future[WC]] = [*getters, *self._submitted]
        for future in waiting:
            if not future.done():
                future.set_exception(reason)

    def _close(self) -> None:
        self.hand_out()
        super()._close()
        self._fail(os_error(errno.EBADF, "the completion queue is closed"))


def submit(qp: QP, wr: SendWR | RecvWR) -> asyncio.Future[WC]:
    """Post a request now; await what this gives for its completion, whatever its status.

    It always completes visibly. A completion whose future was cancelled is `CQ.get`'s. Raises
    OSError as `post_send` and `post_recv` do; EINVAL where the queue pair's completion queue is no
    `aio.CQ`, or for a request that others are linked behind.
    """
    return submit_all(qp, [wr])[0]


def submit_all(qp: QP, wrs: Iterable[SendWR | RecvWR]) -> list[asyncio.Future[WC]]:
    """`submit` for requests of one kind, posted with one doorbell."""
    requests = list(wrs)
    sends = [wr for wr in requests if isinstance(wr, SendWR)]
    receives = [wr for wr in requests if isinstance(wr, RecvWR)]
    cq = aio_cq(qp.scq if sends else qp.rcq)
    if (sends and receives) or any(wr.next_wr is not None for wr in requests):
        raise os_error(errno.EINVAL, "submit takes Sends or receives, none linked to another")
    before = [(wr.wr_id, wr.send_flags if isinstance(wr, SendWR) else 0) for wr in requests]
    tickets = [cq.ticket(wr.wr_id) for wr in requests]
    for wr, ticket in zip(requests, tickets, strict=True):
        wr.wr_id = ticket
    for send in sends:
        send.send_flags |= SEND_SIGNALED
    try:
        if sends:
            qp.post_send(sends)
        else:
            qp.post_recv(receives)
    except BaseException:
        # The completions of those that were posted are `get`'s.
        for ticket in tickets:
            ticket.future.cancel()
        raise
    finally:
        for wr, (wr_id, flags) in zip(requests, before, strict=True):
            wr.wr_id = wr_id
            if isinstance(wr, SendWR):
                wr.send_flags = flags
    return [ticket.future for ticket in tickets]


def aio_cq(cq: sync_cq.CQ) -> CQ:
    """The queue, for waiting. Raises OSError EINVAL where it is no `CQ` of this module."""
    if not isinstance(cq, CQ):
        raise os_error(errno.EINVAL, "the queue pair's completion queue is no aio.CQ")
    return cq
