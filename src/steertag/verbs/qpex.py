"""The extended way to post (pyverbs: `QPEx`; `ibv_wr_start` .. `ibv_wr_complete`)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from steertag.errors import os_error
from steertag.rdma.qp_state import QpState
from steertag.rdma.requests import wqe_of
from steertag.rdma.wr import SGE
from steertag.verbs import enums as e
from steertag.verbs.device import PD, Context
from steertag.verbs.mw import MW, MWBindInfo, SendWR
from steertag.verbs.qp import QP
from steertag.verbs.qp_attr import QPAttr, QPInitAttrEx

_OP_OF_WR: Final = {
    e.IBV_WR_RDMA_WRITE: e.IBV_QP_EX_WITH_RDMA_WRITE,
    e.IBV_WR_RDMA_WRITE_WITH_IMM: e.IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM,
    e.IBV_WR_SEND: e.IBV_QP_EX_WITH_SEND,
    e.IBV_WR_RDMA_READ: e.IBV_QP_EX_WITH_RDMA_READ,
    e.IBV_WR_ATOMIC_CMP_AND_SWP: e.IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP,
    e.IBV_WR_ATOMIC_FETCH_AND_ADD: e.IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD,
    e.IBV_WR_LOCAL_INV: e.IBV_QP_EX_WITH_LOCAL_INV,
    e.IBV_WR_BIND_MW: e.IBV_QP_EX_WITH_BIND_MW,
    e.IBV_WR_SEND_WITH_INV: e.IBV_QP_EX_WITH_SEND_WITH_INV,
}


class QPEx(QP):
    """A queue pair that is posted to call by call.

    `wr_start` begins a batch; each `wr_send`, `wr_rdma_write`, ... is a request with the `wr_id`
    and `wr_flags` that are set then; the `wr_set_*` calls say where the data of the last one is;
    `wr_complete` posts them all, with one doorbell, or none, and says why not. `wr_abort` forgets
    them. One thread at a time has a batch.

    Args:
        init_attr: with `send_ops_flags`, the requests that may be in a batch, and
            IBV_QP_INIT_ATTR_SEND_OPS_FLAGS in `comp_mask`; without it there are no batches.
    """

    def __init__(
        self, creator: PD | Context, init_attr: QPInitAttrEx, qp_attr: QPAttr | None = None
    ) -> None:
        chosen = init_attr.comp_mask & e.IBV_QP_INIT_ATTR_SEND_OPS_FLAGS
        self._operations = init_attr.send_ops_flags if chosen else 0
        self._batch: list[SendWR] | None = None
        self._wrong: OSError | None = None
        self.wr_id = 0
        self.wr_flags = 0
        super().__init__(creator, init_attr, qp_attr)

    # -- a batch -------------------------------------------------------------------------------

    def wr_start(self) -> None:
        """Raises OSError EINVAL for a QP without `send_ops_flags`, and inside of a batch."""
        if not self._operations:
            raise os_error(errno.EINVAL, "the QP was made without send_ops_flags")
        if self._batch is not None:
            raise os_error(errno.EINVAL, "the batch before wasn't completed")
        self._batch, self._wrong = [], None

    def wr_complete(self) -> None:
        """Post the batch.

        Raises:
            OSError: as `post_send`, and for what the calls of the batch were wrong about; nothing
                of it is posted then.
        """
        batch, self._batch = self._requests(), None
        wrong, self._wrong = self._wrong, None
        if wrong is not None:
            raise wrong
        with self._lock:
            self._check_batch(batch)
            self.post_send(batch)

    def wr_abort(self) -> None:
        self._batch = self._wrong = None

    def _check_batch(self, batch: list[SendWR]) -> None:
        """Find every reason for which the core would refuse one of them. With the lock held."""
        self._check_may_send()
        core, cap = self.core, self.cap
        if core.state is QpState.ERROR:
            return
        if core.state not in (QpState.RTS, QpState.SQD, QpState.TERMINATE):
            raise os_error(errno.EINVAL, f"posting to a QP in state {core.state.name}")
        if core.tx.depth() + len(batch) > cap.max_send_wr:
            raise os_error(errno.ENOMEM, f"send queue of {cap.max_send_wr} has no room for them")
        for wr in batch:
            if len(wr.sg) > cap.max_send_sge:
                raise os_error(
                    errno.EINVAL, f"{len(wr.sg)} elements, the QP takes {cap.max_send_sge}"
                )
            sges = tuple((sge.addr, sge.length, sge.lkey) for sge in wr.sg)
            table, limit = self.context.rnic.table, cap.max_inline_data
            wqe_of(wr, wr.send_flags, sges, table, self.pd.handle, limit, core.tx.ord)

    def _requests(self) -> list[SendWR]:
        if self._batch is None:
            raise os_error(errno.EINVAL, "there is no batch: wr_start begins one")
        return self._batch

    def _add(self, wr: SendWR) -> None:
        wr.wr_id, wr.send_flags = self.wr_id, self.wr_flags
        self._requests().append(wr)
        if not self._operations & _OP_OF_WR[wr.opcode]:
            self._refuse(errno.EINVAL, f"opcode {wr.opcode} is not among the QP's send_ops_flags")

    def _last(self) -> SendWR:
        requests = self._requests()
        if not requests:
            raise os_error(errno.EINVAL, "there is no request in the batch yet")
        return requests[-1]

    def _refuse(self, code: int, detail: str) -> None:
        """What is wrong in a batch shows in `wr_complete`; the first counts."""
        if self._wrong is None:
            self._wrong = os_error(code, detail)

    # -- requests ------------------------------------------------------------------------------

    def wr_send(self) -> None:
        self._add(SendWR(opcode=e.IBV_WR_SEND))

    def wr_send_inv(self, invalidate_rkey: int) -> None:
        self._add(SendWR(opcode=e.IBV_WR_SEND_WITH_INV, invalidate_rkey=invalidate_rkey))

    def wr_rdma_write(self, rkey: int, remote_addr: int) -> None:
        self._add(SendWR(opcode=e.IBV_WR_RDMA_WRITE, rkey=rkey, remote_addr=remote_addr))

    def wr_rdma_write_imm(self, rkey: int, remote_addr: int, imm_data: int) -> None:
        """`imm_data`: a number of 32 bits, not in network byte order."""
        wr = SendWR(opcode=e.IBV_WR_RDMA_WRITE_WITH_IMM, rkey=rkey, remote_addr=remote_addr)
        wr.imm_data = imm_data
        self._add(wr)

    def wr_rdma_read(self, rkey: int, remote_addr: int) -> None:
        self._add(SendWR(opcode=e.IBV_WR_RDMA_READ, rkey=rkey, remote_addr=remote_addr))

    def wr_atomic_cmp_swp(self, rkey: int, remote_addr: int, compare: int, swap: int) -> None:
        wr = SendWR(opcode=e.IBV_WR_ATOMIC_CMP_AND_SWP)
        wr.set_wr_atomic(rkey, remote_addr, compare, swap)
        self._add(wr)

    def wr_atomic_fetch_add(self, rkey: int, remote_addr: int, add: int) -> None:
        wr = SendWR(opcode=e.IBV_WR_ATOMIC_FETCH_AND_ADD)
        wr.set_wr_atomic(rkey, remote_addr, add)
        self._add(wr)

    def wr_bind_mw(self, mw: MW, rkey: int, bind_info: MWBindInfo) -> None:
        """Bind a window of type 2; `rkey` is its new key (`inc_rkey`)."""
        self._add(SendWR(opcode=e.IBV_WR_BIND_MW, bind=bind_info.window_bind(mw, rkey)))

    def wr_local_inv(self, invalidate_rkey: int) -> None:
        self._add(SendWR(opcode=e.IBV_WR_LOCAL_INV, invalidate_rkey=invalidate_rkey))

    # -- their data ----------------------------------------------------------------------------

    def wr_set_sge(self, sge: SGE) -> None:
        self.wr_set_sge_list(1, [sge])

    def wr_set_sge_list(self, num_sge: int, sg_list: Sequence[SGE]) -> None:
        """The elements are copied; they can be changed right after."""
        wr = self._last()
        wr.sg = tuple(SGE(sge.addr, sge.length, sge.lkey) for sge in sg_list[:num_sge])

    def wr_set_inline_data(self, data: bytes | bytearray | memoryview) -> None:
        """The payload itself, copied: up to the QP's `max_inline_data`, of no registered memory."""
        self.wr_set_inline_data_list([data])

    def wr_set_inline_data_list(self, data: Sequence[bytes | bytearray | memoryview]) -> None:
        wr = self._last()
        wr.inline_data = b"".join(data)
        limit = self.cap.max_inline_data
        if len(wr.inline_data) > limit:
            self._refuse(errno.EINVAL, f"{len(wr.inline_data)} octets inline, at most {limit}")
