"""pyverbs' `qp`: queue pairs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from steertag import verbs
from steertag.compat.pyverbs import libibverbs_enums as e
from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject
from steertag.compat.pyverbs.device import Context
from steertag.compat.pyverbs.mr import MW, MWBind, MWBindInfo
from steertag.compat.pyverbs.pd import PD
from steertag.compat.pyverbs.pyverbs_error import PyverbsRDMAError, failing, unsupported
from steertag.compat.pyverbs.qp_attr import (
    ECE,
    QPAttr,
    QPCap,
    QPInitAttr,
    QPInitAttrEx,
    QPRateLimitAttr,
)
from steertag.compat.pyverbs.utils import qp_state_to_str, qp_type_to_str
from steertag.compat.pyverbs.wr import SGE, RecvWR, SendWR, post_each
from steertag.verbs.qp_attr import INIT_MASK, RTR_MASK, RTS_MASK

__all__ = [
    "ECE",
    "QP",
    "DataBuffer",
    "QPAttr",
    "QPCap",
    "QPEx",
    "QPInitAttr",
    "QPInitAttrEx",
    "QPRateLimitAttr",
]

_STATE = e.ibv_qp_state
_MASK = e.ibv_qp_attr_mask


class QP(PyverbsCM):
    """A queue pair, of a PD with a QPInitAttr, or of a Context with a QPInitAttrEx.

    With `qp_attr` it is taken to IBV_QPS_INIT. `qp_state` is the state that the last `modify` or
    `query` left or found, as libibverbs keeps it: RESET before.
    """

    closing = "Failed to destroy QP"
    core: verbs.QP

    def __init__(
        self, creator: PD | Context, init_attr: QPInitAttr, qp_attr: QPAttr | None = None
    ) -> None:
        super().__init__()
        with failing("Failed to create QP"):
            self.core = self._make(creator, init_attr)
        self._open = True
        self._state: int = _STATE.IBV_QPS_RESET
        self.scq, self.rcq, self.srq = init_attr.scq, init_attr.rcq, init_attr.srq
        self.pd = creator if isinstance(creator, PD) else getattr(init_attr, "pd", None)
        self.context = creator if isinstance(creator, Context) else None
        for used in (self.pd, self.context, self.scq, self.rcq, self.srq):
            if used is not None:
                used.add_ref(self)
        if qp_attr is not None:
            self.to_init(qp_attr)

    def _make(self, creator: PD | Context, init_attr: QPInitAttr) -> verbs.QP:
        return verbs.QP(creator.core, init_attr.to_core())

    # -- states --------------------------------------------------------------------------------

    @property
    def qp_type(self) -> int:
        return e.ibv_qp_type(self.core.qp_type)

    @property
    def qp_state(self) -> int:
        return self._state

    @property
    def qp_num(self) -> int:
        return self.core.qp_num

    def _modify(self, attr: QPAttr, mask: int, msg: str) -> None:
        with failing(msg):
            self.core.modify(attr.to_core(), int(mask))
        if mask & _MASK.IBV_QP_STATE:
            self._state = _STATE(attr.qp_state)

    def modify(self, qp_attr: QPAttr, comp_mask: int) -> None:
        self._modify(qp_attr, comp_mask, "Failed to modify QP")

    def to_init(self, qp_attr: QPAttr) -> None:
        qp_attr.qp_state = _STATE.IBV_QPS_INIT
        self._modify(qp_attr, _MASK.IBV_QP_STATE | INIT_MASK, "Failed to modify QP state to init")

    def to_rtr(self, qp_attr: QPAttr) -> None:
        if self.qp_state != _STATE.IBV_QPS_INIT:
            self.to_init(qp_attr)
        qp_attr.qp_state = _STATE.IBV_QPS_RTR
        self._modify(qp_attr, _MASK.IBV_QP_STATE | RTR_MASK, "Failed to modify QP state to RTR")

    def to_rts(self, qp_attr: QPAttr) -> None:
        if self.qp_state != _STATE.IBV_QPS_RTR:
            self.to_rtr(qp_attr)
        qp_attr.qp_state = _STATE.IBV_QPS_RTS
        self._modify(qp_attr, _MASK.IBV_QP_STATE | RTS_MASK, "Failed to modify QP state to RTS")

    def query(self, attr_mask: int) -> tuple[QPAttr, QPInitAttr]:
        core, init = self.core.query(int(attr_mask))
        self._state = _STATE(core.qp_state)
        return QPAttr.from_core(core), init_attr_of(init)

    # -- posting -------------------------------------------------------------------------------

    def post_recv(self, wr: RecvWR, bad_wr: RecvWR | None = None) -> None:
        post_each(self.core.post_recv, wr, bad_wr, "Failed to post recv")

    def post_send(self, wr: SendWR, bad_wr: SendWR | None = None) -> None:
        requests: list[SendWR] = []
        one: SendWR | None = wr
        while one is not None:
            requests.append(one)
            one = one.next_wr
        cores = [request.to_core() for request in requests]
        try:
            with failing("Failed to post send"):
                self.core.post_send(cores)
        except PyverbsRDMAError as exc:
            refused = getattr(exc.__cause__, "bad_wr", None)
            if bad_wr is not None and refused in cores:
                vars(bad_wr).update(vars(requests[cores.index(refused)]))
            raise

    def bind_mw(self, mw: MW, mw_bind: MWBind) -> None:
        with failing("Failed to Bind MW"):
            self.core.bind_mw(mw.core, mw_bind.to_core())

    # -- what an RNIC doesn't have -------------------------------------------------------------

    def set_ece(self, ece: ECE) -> None:
        if ece.vendor_id:
            raise unsupported("Failed to set ECE")

    def query_ece(self) -> ECE:
        raise unsupported("Failed to query ECE")

    def modify_rate_limit(self, attr: QPRateLimitAttr) -> None:
        raise unsupported("Failed to modify QP rate limit")

    def attach_comp_cntr(self, comp_cntr: object, attr: object) -> None:
        raise unsupported("Failed to attach comp cntr to QP")

    def query_data_in_order(self, op: int, flags: int = 0) -> int:
        with failing("Failed to query data in order"):
            return self.core.query_data_in_order(int(op), int(flags))

    def __str__(self) -> str:
        return (
            f"{'QP type':22}: {qp_type_to_str(self.qp_type):<20}\n"
            f"{'  number':22}: {self.qp_num:<20}\n"
            f"{'  state':22}: {qp_state_to_str(self.qp_state):<20}\n"
        )


def init_attr_of(core: verbs.QPInitAttr) -> QPInitAttr:
    """What a queue pair was made of, but for its completion queues."""
    cap = QPCap.from_core(core.cap)
    return QPInitAttr(core.qp_type, core.qp_context, cap=cap, sq_sig_all=int(core.sq_sig_all))


class DataBuffer(PyverbsObject):
    """Octets of this process."""

    def __init__(self, addr: int, length: int) -> None:
        super().__init__()
        self.addr = addr
        self.length = length

    def octets(self) -> bytes:
        return ctypes.string_at(self.addr, self.length)


class QPEx(QP):
    """A queue pair that is posted to call by call; what is wrong shows in `wr_complete`."""

    core: verbs.QPEx

    def _make(self, creator: PD | Context, init_attr: QPInitAttr) -> verbs.QPEx:
        attr = init_attr.to_core()
        if not isinstance(attr, verbs.QPInitAttrEx):
            raise unsupported("Failed to create extended QP without QPInitAttrEx")
        return verbs.QPEx(creator.core, attr)

    @property
    def ind_table(self) -> None:
        """There is none."""
        return None

    @property
    def wr_id(self) -> int:
        return self.core.wr_id

    @wr_id.setter
    def wr_id(self, val: int) -> None:
        self.core.wr_id = val

    @property
    def wr_flags(self) -> int:
        return self.core.wr_flags

    @wr_flags.setter
    def wr_flags(self, val: int) -> None:
        self.core.wr_flags = int(val)

    def wr_start(self) -> None:
        with failing("ibv_wr_start failed"):
            self.core.wr_start()

    def wr_complete(self) -> None:
        with failing("ibv_wr_complete failed."):
            self.core.wr_complete()

    def wr_abort(self) -> None:
        self.core.wr_abort()

    def wr_send(self) -> None:
        self.core.wr_send()

    def wr_send_inv(self, invalidate_rkey: int) -> None:
        self.core.wr_send_inv(invalidate_rkey)

    def wr_rdma_write(self, rkey: int, remote_addr: int) -> None:
        self.core.wr_rdma_write(rkey, remote_addr)

    def wr_rdma_write_imm(self, rkey: int, remote_addr: int, data: int) -> None:
        self.core.wr_rdma_write_imm(rkey, remote_addr, data)

    def wr_rdma_read(self, rkey: int, remote_addr: int) -> None:
        self.core.wr_rdma_read(rkey, remote_addr)

    def wr_atomic_cmp_swp(self, rkey: int, remote_addr: int, compare: int, swap: int) -> None:
        self.core.wr_atomic_cmp_swp(rkey, remote_addr, compare, swap)

    def wr_atomic_fetch_add(self, rkey: int, remote_addr: int, add: int) -> None:
        self.core.wr_atomic_fetch_add(rkey, remote_addr, add)

    def wr_bind_mw(self, mw: MW, rkey: int, bind_info: MWBindInfo) -> None:
        self.core.wr_bind_mw(mw.core, rkey, bind_info.to_core())

    def wr_local_inv(self, invalidate_rkey: int) -> None:
        self.core.wr_local_inv(invalidate_rkey)

    def wr_set_sge(self, sge: SGE) -> None:
        self.core.wr_set_sge(sge)

    def wr_set_sge_list(self, num_sge: int, sg_list: Sequence[SGE]) -> None:
        self.core.wr_set_sge_list(num_sge, sg_list)

    def wr_set_inline_data(self, addr: int, length: int) -> None:
        self.core.wr_set_inline_data(ctypes.string_at(addr, length))

    def wr_set_inline_data_list(self, num_buf: int, buf_list: Sequence[DataBuffer]) -> None:
        self.core.wr_set_inline_data_list([buffer.octets() for buffer in buf_list[:num_buf]])

    def wr_send_imm(self, data: int) -> None:
        raise unsupported("Send with both payload and immediate data")

    def wr_send_tso(self, hdr: int, hdr_sz: int, mss: int) -> None:
        raise unsupported("Segmentation offload")

    def wr_atomic_write(self, rkey: int, remote_addr: int, atomic_wr: bytes) -> None:
        raise unsupported("Atomic Write")

    def wr_flush(self, rkey: int, remote_addr: int, length: int, ptype: int, level: int) -> None:
        raise unsupported("RDMA Flush")

    def wr_set_ud_addr(self, ah: object, remote_qpn: int, remote_rkey: int) -> None:
        raise unsupported("A datagram's address")

    def wr_set_xrc_srqn(self, remote_srqn: int) -> None:
        raise unsupported("An XRC request")
