"""Shared receive queues: receives that several queue pairs take from (Linux: siw's srq)."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from steertag.errors import os_error

if TYPE_CHECKING:
    from steertag.rdma.wr import RecvWR

# wr_id and local memory: tagged offset, octets and lkey of each element.
Rqe = tuple[int, tuple[tuple[int, int, int], ...]]


class SharedReceiveQueue:
    """Args:
    pd: number of its protection domain.
    max_wr: receives it holds.
    max_sge: elements of each.
    elements: reads a request's scatter list, at most so many elements (`qp.receive_of`).
    on_limit: called once after `arm_limit(n)` when fewer than n receives are left.

    Attributes:
        rq: the receives, oldest first.
        limit: what `arm_limit` set; 0 after the event, as in `ibv_query_srq`.
        users: queue pairs that take from it.
    """

    def __init__(
        self,
        pd: int,
        max_wr: int,
        max_sge: int,
        elements: Callable[[RecvWR, int], Rqe],
        on_limit: Callable[[], None] | None = None,
    ) -> None:
        self.pd = pd
        self.max_wr = max_wr
        self.max_sge = max_sge
        self.limit = 0
        self.rq: deque[Rqe] = deque()
        self.users = 0
        self._elements = elements
        self._on_limit = on_limit

    def post_recv(self, wr: RecvWR) -> None:
        """Queue one receive (not the list linked behind it).

        Raises OSError: ENOMEM when the queue is full, EINVAL for a list that doesn't fit.
        """
        if len(self.rq) >= self.max_wr:
            raise os_error(errno.ENOMEM, f"shared receive queue of {self.max_wr} is full")
        self.rq.append(self._elements(wr, self.max_sge))

    def arm_limit(self, limit: int) -> None:
        """`ibv_modify_srq` with IBV_SRQ_LIMIT. Raises OSError EINVAL for one over `max_wr`."""
        if not 0 <= limit <= self.max_wr:
            raise os_error(errno.EINVAL, f"limit {limit} of a queue of {self.max_wr}")
        self.limit = limit
        self._look_at_limit()

    def take(self) -> Rqe:
        rqe = self.rq.popleft()
        self._look_at_limit()
        return rqe

    def resize(self, max_wr: int) -> None:
        """`ibv_modify_srq` with IBV_SRQ_MAX_WR. Raises OSError EINVAL below what is posted."""
        if max_wr < len(self.rq) or max_wr < self.limit:
            raise os_error(errno.EINVAL, f"{len(self.rq)} receives are posted")
        self.max_wr = max_wr

    def _look_at_limit(self) -> None:
        if len(self.rq) < self.limit:
            self.limit = 0
            if self._on_limit is not None:
                self._on_limit()
