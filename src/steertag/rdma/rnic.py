"""The RNIC: what owns regions, protection domains, queue pairs and their numbers (siw_main.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from steertag.errors import os_error
from steertag.rdma.counters import Counters
from steertag.rdma.cq import CompletionQueue
from steertag.rdma.memory import Region, StagTable, Window
from steertag.rdma.qp import MAX_SGE, QpCap, QueuePair, receive_of
from steertag.rdma.srq import SharedReceiveQueue


@dataclass(frozen=True, slots=True)
class RnicLimits:
    """`struct ibv_device_attr`, as far as an RNIC has it.

    Attributes:
        max_pd_objects: regions, windows, queue pairs and shared receive queues of one protection
            domain. Not in ibv_device_attr: where each peer has a domain of its own, none of them
            can have all that the device has (RFC 5042 section 6.4.1).
    """

    max_qp: int = 65536
    max_qp_wr: int = 32768
    max_sge: int = MAX_SGE
    max_cqe: int = 1 << 20
    max_mr: int = 65536
    max_pd: int = 4096
    max_mw: int = 65536
    max_srq: int = 4096
    max_srq_wr: int = 32768
    max_inline_data: int = 65536
    max_pd_objects: int = 1 << 18


class Rnic:
    """A software RNIC.

    Args:
        randbits: `randbits(n)` gives n unguessable bits: where STags and offsets come from.
        limits: how much of everything there may be.
        next_qp_num: gives the numbers of queue pairs; None counts from 1.

    Attributes:
        closed_counters: what queue pairs that are destroyed by now have counted.
        on_event: called with the name (`IBV_EVENT_...`) and the object of each asynchronous event.
    """

    def __init__(
        self,
        randbits: Callable[[int], int],
        limits: RnicLimits | None = None,
        next_qp_num: Callable[[], int] | None = None,
    ) -> None:
        self.limits = limits or RnicLimits()
        self.table = StagTable(randbits, self.limits.max_mr)
        self.qps: dict[int, QueuePair] = {}
        self.closed_counters = Counters()
        self.pds: dict[int, set[object]] = {}
        self.srqs: set[SharedReceiveQueue] = set()
        self.on_event: Callable[[str, object], None] = lambda name, element: None
        self.table.on_invalidate = self._detach
        self._next_qp_num = next_qp_num if next_qp_num is not None else count(1).__next__
        self._next_pd = 1

    def alloc_pd(self) -> int:
        """A new protection domain's number. Raises OSError ENOMEM at the limit."""
        if len(self.pds) >= self.limits.max_pd:
            raise os_error(errno.ENOMEM, f"{self.limits.max_pd} protection domains exist")
        pd, self._next_pd = self._next_pd, self._next_pd + 1
        self.pds[pd] = set()
        return pd

    def dealloc_pd(self, pd: int) -> None:
        """Raises OSError EBUSY while regions or queue pairs belong to it."""
        if self.pds[pd]:
            raise os_error(
                errno.EBUSY, f"{len(self.pds[pd])} objects belong to the protection domain"
            )
        del self.pds[pd]

    def _room_in(self, pd: int) -> None:
        if len(self.pds[pd]) >= self.limits.max_pd_objects:
            limit = self.limits.max_pd_objects
            raise os_error(errno.ENOMEM, f"{limit} objects belong to the protection domain")

    def register(self, pd: int, buffer: object, access: int, base: int | None = None) -> Region:
        """See `StagTable.register`. Raises OSError ENOMEM too where the domain is full."""
        self._room_in(pd)
        region = self.table.register(pd, buffer, access, base)
        self.pds[pd].add(region)
        return region

    def reregister(self, region: Region, pd: int, buffer: object, access: int, base: int) -> None:
        """See `StagTable.reregister`."""
        before = region.pd
        if pd != before:
            self._room_in(pd)
        self.table.reregister(region, pd, buffer, access, base)
        self.pds[before].discard(region)
        self.pds[pd].add(region)

    def deregister(self, region: Region) -> None:
        """End a registration, whatever is under way with it.

        The STag is invalid at once: a later segment that names it ends its connection, and a
        posted request that has not begun completes with LOC_PROT_ERR. No view of the buffer is
        left when this returns.

        Raises OSError EBUSY while memory windows are bound to it.
        """
        if not region.valid:
            return
        view = region.view
        self.table.deregister(region)
        elements = self.pds[region.pd]
        elements.discard(region)
        if len(elements) < len(self.qps):
            # Nobody but queue pairs of its domain can have views of it.
            for element in tuple(elements):
                if isinstance(element, QueuePair):
                    element.detach(region.stag, view.obj)
        else:
            self._detach(region.stag, view)

    def _detach(self, stag: int, view: memoryview) -> None:
        for qp in list(self.qps.values()):
            qp.detach(stag, view.obj)

    def alloc_window(self, pd: int, kind: int) -> Window:
        """See `StagTable.alloc_window`. Raises OSError ENOMEM too where the domain is full."""
        self._room_in(pd)
        window = self.table.alloc_window(pd, kind)
        self.pds[pd].add(window)
        return window

    def dealloc_window(self, window: Window) -> None:
        """A window that is bound is unbound first."""
        self.table.dealloc_window(window)
        self.pds[window.pd].discard(window)

    def create_srq(
        self, pd: int, max_wr: int, max_sge: int, on_limit: Callable[[], None] | None = None
    ) -> SharedReceiveQueue:
        """Raises OSError: EINVAL for sizes over the limits, ENOMEM for too many."""
        limits = self.limits
        if not (0 < max_wr <= limits.max_srq_wr and 0 < max_sge <= limits.max_sge):
            raise os_error(errno.EINVAL, f"{max_wr} receives of {max_sge} elements")
        if len(self.srqs) >= limits.max_srq:
            raise os_error(errno.ENOMEM, f"{limits.max_srq} shared receive queues exist")
        self._room_in(pd)
        srq = SharedReceiveQueue(pd, max_wr, max_sge, receive_of, on_limit)
        self.srqs.add(srq)
        self.pds[pd].add(srq)
        return srq

    def destroy_srq(self, srq: SharedReceiveQueue) -> None:
        """Raises OSError EBUSY while queue pairs use it."""
        if srq.users:
            raise os_error(errno.EBUSY, f"{srq.users} queue pairs use the shared receive queue")
        self.srqs.discard(srq)
        self.pds[srq.pd].discard(srq)

    def create_qp(
        self,
        pd: int,
        send_cq: CompletionQueue,
        recv_cq: CompletionQueue,
        cap: QpCap,
        on_end: Callable[[str], None] | None = None,
        srq: SharedReceiveQueue | None = None,
    ) -> QueuePair:
        """Raises OSError: EINVAL for capacities over the limits or an SRQ of another domain,
        ENOMEM for too many QPs."""
        limits = self.limits
        if not (
            0 <= cap.max_send_wr <= limits.max_qp_wr
            and 0 <= cap.max_recv_wr <= limits.max_qp_wr
            and 0 <= cap.max_send_sge <= limits.max_sge
            and 0 <= cap.max_recv_sge <= limits.max_sge
            and 0 <= cap.max_inline_data <= limits.max_inline_data
        ):
            raise os_error(errno.EINVAL, f"capacities {cap} are over the device's")
        if len(self.qps) >= limits.max_qp:
            raise os_error(errno.ENOMEM, f"{limits.max_qp} queue pairs exist")
        if srq is not None and srq.pd != pd:
            raise os_error(errno.EINVAL, "the shared receive queue is of another domain")
        self._room_in(pd)
        qp_num = self._next_qp_num()
        qp = QueuePair(
            qp_num,
            pd,
            self.table,
            send_cq,
            recv_cq,
            cap,
            on_end,
            srq,
            lambda name: self.on_event(name, qp),
        )
        self.qps[qp_num] = qp
        self.pds[pd].add(qp)
        if srq is not None:
            srq.users += 1
        return qp

    def destroy_qp(self, qp: QueuePair) -> None:
        """Its requests are flushed first, where it was still connected."""
        qp.stream_lost("destroyed")
        if self.qps.pop(qp.qp_num, None) is not None:
            self.closed_counters.add(qp.counters)
            if qp.srq is not None:
                qp.srq.users -= 1
        self.pds[qp.pd].discard(qp)
