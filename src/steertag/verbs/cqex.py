"""Completion queues that are read field by field (pyverbs: `CQEX`; `ibv_create_cq_ex`)."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.rdma.cq import WC
from steertag.verbs.cq import CQ, CompChannel
from steertag.verbs.enums import (
    IBV_CREATE_CQ_ATTR_SINGLE_THREADED,
    IBV_WC_STANDARD_FLAGS,
)

if TYPE_CHECKING:
    from steertag.verbs.device import Context


@dataclass
class CqInitAttrEx:
    """`struct ibv_cq_init_attr_ex`.

    Args:
        cqe, channel, comp_vector: as of `CQ`.
        wc_flags: IBV_WC_EX_*, which fields are going to be read: those of IBV_WC_STANDARD_FLAGS.
        comp_mask: which of the members below count.
        flags: IBV_CREATE_CQ_ATTR_SINGLE_THREADED, or 0.
        cq_context: anything; kept.
    """

    cqe: int = 100
    channel: CompChannel | None = None
    comp_vector: int = 0
    wc_flags: int = 0
    comp_mask: int = 0
    flags: int = 0
    cq_context: object = None


@dataclass
class PollCqAttr:
    """`struct ibv_poll_cq_attr`: there is nothing to choose yet."""

    comp_mask: int = 0


_NO_ATTR: Final = CqInitAttrEx()


class CQEX(CQ):
    """A completion queue with the calls of `ibv_cq_ex`, beside those of a `CQ`.

    `start_poll` takes the oldest completion, `next_poll` the one after it, `end_poll` ends the
    batch; in between `status`, `wr_id` and the `read_*` calls say what it is.

    Raises:
        OSError: as `CQ`; EOPNOTSUPP for fields or flags that an RNIC doesn't have.
    """

    def __init__(self, creator: Context, init_attr: CqInitAttrEx | None = None) -> None:
        attr = init_attr if init_attr is not None else _NO_ATTR
        if attr.wc_flags & ~IBV_WC_STANDARD_FLAGS:
            raise os_error(errno.EOPNOTSUPP, f"completion fields {attr.wc_flags:#x}")
        if attr.flags & ~IBV_CREATE_CQ_ATTR_SINGLE_THREADED:
            raise os_error(errno.EOPNOTSUPP, f"completion queue flags {attr.flags:#x}")
        self._current: WC | None = None
        super().__init__(creator, attr.cqe, attr.cq_context, attr.channel, attr.comp_vector)

    def start_poll(self, attr: PollCqAttr | None = None) -> int:
        """0, or ENOENT where there is no completion. Raises OSError EINVAL for a `comp_mask`."""
        if attr is not None and attr.comp_mask:
            raise os_error(errno.EINVAL, f"comp_mask {attr.comp_mask:#x}")
        return self.next_poll()

    def next_poll(self) -> int:
        """0, or ENOENT where there is no further completion; the one before stays readable."""
        _, taken = self.poll(1)
        if not taken:
            return errno.ENOENT
        self._current = taken[0]
        return 0

    poll_next = next_poll
    """pyverbs' name for it."""

    def end_poll(self) -> None:
        self._current = None

    @property
    def current(self) -> WC:
        """The completion that is being read. Raises OSError EINVAL outside of a batch."""
        if self._current is None:
            raise os_error(errno.EINVAL, "no completion was polled")
        return self._current

    @property
    def status(self) -> int:
        return self.current.status

    @property
    def wr_id(self) -> int:
        return self.current.wr_id

    def read_opcode(self) -> int:
        return self.current.opcode

    def read_vendor_err(self) -> int:
        return self.current.vendor_err

    def read_byte_len(self) -> int:
        return self.current.byte_len

    def read_imm_data(self) -> int:
        """As a number; what `ibv_wc_read_imm_data` has in network byte order."""
        return self.current.imm_data

    def read_invalidated_rkey(self) -> int:
        return self.current.invalidated_rkey

    def read_qp_num(self) -> int:
        return self.current.qp_num

    def read_wc_flags(self) -> int:
        return self.current.wc_flags

    def read_src_qp(self) -> int:
        """0, as the next three: a connection has one peer, which needs no address."""
        return self._of_a_datagram()

    def read_slid(self) -> int:
        return self._of_a_datagram()

    def read_sl(self) -> int:
        return self._of_a_datagram()

    def read_dlid_path_bits(self) -> int:
        return self._of_a_datagram()

    def _of_a_datagram(self) -> int:
        assert self.current is not None
        return 0
