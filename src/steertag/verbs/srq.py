"""Shared receive queues (pyverbs: `srq`)."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field

from steertag.errors import os_error
from steertag.rdma.wr import RecvWR
from steertag.verbs.cq import CQ
from steertag.verbs.device import PD, Context
from steertag.verbs.enums import (
    IBV_EVENT_SRQ_LIMIT_REACHED,
    IBV_SRQ_LIMIT,
    IBV_SRQ_MAX_WR,
    IBV_SRQT_BASIC,
)
from steertag.verbs.managed import Managed
from steertag.verbs.posting import post_list


@dataclass
class SrqAttr:
    """`struct ibv_srq_attr`.

    Args:
        max_wr: receives that it holds.
        max_sge: elements of each.
        srq_limit: fewer than so many left are an event, once; 0 is none.
    """

    max_wr: int = 100
    max_sge: int = 1
    srq_limit: int = 0


@dataclass
class SrqInitAttr:
    """`struct ibv_srq_init_attr`; a limit in it counts for nothing, as there."""

    attr: SrqAttr = field(default_factory=SrqAttr)


@dataclass
class SrqInitAttrEx:
    """`struct ibv_srq_init_attr_ex`, for an SRQ that a Context makes.

    Args:
        max_wr, max_sge, srq_limit: as of `SrqAttr`.
        comp_mask: IBV_SRQ_INIT_ATTR_*: which of these count.
        srq_type: IBV_SRQT_BASIC: iWARP has no other.
        pd: its protection domain.
        cq: of other types.
    """

    max_wr: int = 100
    max_sge: int = 1
    srq_limit: int = 0
    comp_mask: int = 0
    srq_type: int = IBV_SRQT_BASIC
    pd: PD | None = None
    cq: CQ | None = None


class SRQ(Managed):
    """A shared receive queue (`ibv_create_srq`): queue pairs of one domain take from it.

    When a queue pair that uses it ends, IBV_EVENT_QP_LAST_WQE_REACHED says so; receives that it had
    not begun to fill stay for the others.

    Raises:
        OSError: EINVAL for sizes that the device doesn't have or without a domain, EOPNOTSUPP for
            another type, ENOMEM for too many; EBUSY when it is closed before its queue pairs.
    """

    close_rank = 2

    def __init__(self, creator: PD | Context, attr: SrqInitAttr | SrqInitAttrEx) -> None:
        pd: PD | None
        if isinstance(attr, SrqInitAttrEx):
            if attr.srq_type != IBV_SRQT_BASIC:
                raise os_error(errno.EOPNOTSUPP, f"SRQ type {attr.srq_type}; iWARP has the basic")
            pd, sizes = attr.pd, SrqAttr(attr.max_wr, attr.max_sge)
        else:
            pd, sizes = None, attr.attr
        if isinstance(creator, PD):
            pd = creator
        if pd is None:
            raise os_error(errno.EINVAL, "an SRQ belongs to a protection domain")
        self.pd = pd
        self.context = pd.context
        with self.context.loop.lock:
            self.core = self.context.rnic.create_srq(
                pd.handle, sizes.max_wr, sizes.max_sge, self._limit_reached
            )
        super().__init__(pd)

    def post_recv(self, wr: RecvWR | Iterable[RecvWR], bad_wr: object = None) -> None:
        """Post a receive and those linked behind it, or all of an iterable.

        Raises:
            OSError: ENOMEM for a full queue, EINVAL; `bad_wr` of the error is the first request
                that was not posted.
        """
        post_list(self.context.loop.lock, self.core.post_recv, wr)

    def modify(self, attr: SrqAttr, comp_mask: int) -> None:
        """`ibv_modify_srq`. `comp_mask`: IBV_SRQ_MAX_WR, IBV_SRQ_LIMIT, which of `attr` counts.

        Raises:
            OSError: EINVAL for another mask, for sizes that the device doesn't have or that what is
                posted doesn't fit into, and for a limit over `max_wr`.
        """
        if comp_mask & ~(IBV_SRQ_MAX_WR | IBV_SRQ_LIMIT):
            raise os_error(errno.EINVAL, f"SRQ attributes {comp_mask:#x}")
        with self.context.loop.lock:
            if comp_mask & IBV_SRQ_MAX_WR:
                if not 0 < attr.max_wr <= self.context.rnic.limits.max_srq_wr:
                    raise os_error(errno.EINVAL, f"a shared receive queue of {attr.max_wr}")
                self.core.resize(attr.max_wr)
            if comp_mask & IBV_SRQ_LIMIT:
                self.core.arm_limit(attr.srq_limit)

    def query(self) -> SrqAttr:
        """Sizes, and the limit that is armed: 0 after its event."""
        with self.context.loop.lock:
            return SrqAttr(self.core.max_wr, self.core.max_sge, self.core.limit)

    def get_srq_num(self) -> int:
        """Raises OSError EOPNOTSUPP: only SRQs of the XRC transport have numbers."""
        raise os_error(errno.EOPNOTSUPP, "a basic SRQ has no number")

    def _limit_reached(self) -> None:
        self.context.events.post(IBV_EVENT_SRQ_LIMIT_REACHED, self)

    def _close(self) -> None:
        with self.context.loop.lock:
            self.context.rnic.destroy_srq(self.core)
            self.context.events.forget(self)

    def __repr__(self) -> str:
        return f"<SRQ {len(self.core.rq)} of {self.core.max_wr}>"
