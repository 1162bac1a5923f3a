"""The RNIC: what owns regions, protection domains, queue pairs and their numbers (siw_main.c)."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from steertag.errors import os_error
from steertag.rdma.counters import Counters
from steertag.rdma.cq import CompletionQueue
from steertag.rdma.memory import Region, StagTable
from steertag.rdma.qp import MAX_SGE, QpCap, QueuePair


@dataclass(frozen=True, slots=True)
class RnicLimits:
    """`struct ibv_device_attr`, as far as an RNIC has it."""

    max_qp: int = 4096
    max_qp_wr: int = 32768
    max_sge: int = MAX_SGE
    max_cqe: int = 1 << 20
    max_mr: int = 65536
    max_pd: int = 4096


class Rnic:
    """A software RNIC.

    Args:
        randbits: `randbits(n)` gives n unguessable bits: where STags and offsets come from.
        limits: how much of everything there may be.

    Attributes:
        closed_counters: what queue pairs that are destroyed by now have counted.
    """

    def __init__(self, randbits: Callable[[int], int], limits: RnicLimits | None = None) -> None:
        self.limits = limits or RnicLimits()
        self.table = StagTable(randbits, self.limits.max_mr)
        self.qps: dict[int, QueuePair] = {}
        self.closed_counters = Counters()
        self.pds: dict[int, set[object]] = {}
        self.async_events: deque[tuple[str, object]] = deque()
        self._next_qp = 1
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

    def register(self, pd: int, buffer: object, access: int) -> Region:
        """See `StagTable.register`."""
        region = self.table.register(pd, buffer, access)
        self.pds[pd].add(region)
        return region

    def deregister(self, region: Region) -> None:
        """End a registration, whatever is under way with it.

        The STag is invalid at once: a later segment that names it ends its connection, and a
        posted request that has not begun completes with LOC_PROT_ERR. No view of the buffer is
        left when this returns.
        """
        if not region.valid:
            return
        self.pds[region.pd].discard(region)
        for qp in list(self.qps.values()):
            if qp.pd == region.pd:
                qp.detach(region)
        self.table.deregister(region)

    def create_qp(
        self,
        pd: int,
        send_cq: CompletionQueue,
        recv_cq: CompletionQueue,
        cap: QpCap,
        on_end: Callable[[str], None] | None = None,
    ) -> QueuePair:
        """Raises OSError: EINVAL for capacities over the limits, ENOMEM for too many QPs."""
        limits = self.limits
        if not (
            0 <= cap.max_send_wr <= limits.max_qp_wr
            and 0 <= cap.max_recv_wr <= limits.max_qp_wr
            and 0 <= cap.max_send_sge <= limits.max_sge
            and 0 <= cap.max_recv_sge <= limits.max_sge
            and not cap.max_inline_data
        ):
            raise os_error(errno.EINVAL, f"capacities {cap} are over the device's")
        if len(self.qps) >= limits.max_qp:
            raise os_error(errno.ENOMEM, f"{limits.max_qp} queue pairs exist")
        qp_num, self._next_qp = self._next_qp, self._next_qp + 1
        qp = QueuePair(qp_num, pd, self.table, send_cq, recv_cq, cap, on_end)
        self.qps[qp_num] = qp
        self.pds[pd].add(qp)
        return qp

    def destroy_qp(self, qp: QueuePair) -> None:
        """Its requests are flushed first, where it was still connected."""
        qp.stream_lost("destroyed")
        if self.qps.pop(qp.qp_num, None) is not None:
            self.closed_counters.add(qp.counters)
        self.pds[qp.pd].discard(qp)
