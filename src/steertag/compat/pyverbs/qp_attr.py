"""What queue pairs are made of and what they are told, as pyverbs has it."""

from __future__ import annotations

from dataclasses import fields

from steertag import verbs
from steertag.compat.pyverbs import libibverbs_enums as e
from steertag.compat.pyverbs.addr import AHAttr
from steertag.compat.pyverbs.base import PyverbsObject, lines
from steertag.compat.pyverbs.cq import CQ, CQEX
from steertag.compat.pyverbs.pd import PD
from steertag.compat.pyverbs.pyverbs_error import PyverbsUserError, unsupported
from steertag.compat.pyverbs.srq import SRQ

_CAPS = ("max_send_wr", "max_recv_wr", "max_send_sge", "max_recv_sge", "max_inline_data")


class QPCap(PyverbsObject):
    def __init__(
        self,
        max_send_wr: int = 1,
        max_recv_wr: int = 10,
        max_send_sge: int = 1,
        max_recv_sge: int = 1,
        max_inline_data: int = 0,
    ) -> None:
        super().__init__()
        self.max_send_wr = max_send_wr
        self.max_recv_wr = max_recv_wr
        self.max_send_sge = max_send_sge
        self.max_recv_sge = max_recv_sge
        self.max_inline_data = max_inline_data

    def to_core(self) -> verbs.QPCap:
        return verbs.QPCap(*(int(getattr(self, name)) for name in _CAPS))

    @classmethod
    def from_core(cls, core: verbs.QPCap) -> QPCap:
        return cls(*(getattr(core, name) for name in _CAPS))

    def __str__(self) -> str:
        return lines("", self, _CAPS)


def _queue(cq: object) -> CQ | CQEX | None:
    if cq is None or isinstance(cq, CQ | CQEX):
        return cq
    raise PyverbsUserError(f"Expected CQ/CQEX, got {type(cq)}")


class QPInitAttr(PyverbsObject):
    def __init__(
        self,
        qp_type: int = e.ibv_qp_type.IBV_QPT_UD,
        qp_context: object = None,
        scq: object = None,
        rcq: object = None,
        srq: SRQ | None = None,
        cap: QPCap | None = None,
        sq_sig_all: int = 1,
    ) -> None:
        super().__init__()
        self.qp_type = qp_type
        self.qp_context = qp_context
        self.scq = _queue(scq)
        self.rcq = _queue(rcq)
        self.srq = srq
        self.cap = QPCap(0, 0, 0, 0) if cap is None else cap
        self.sq_sig_all = sq_sig_all

    @property
    def cap(self) -> QPCap:
        return QPCap(*(getattr(self, name) for name in _CAPS))

    @cap.setter
    def cap(self, val: QPCap) -> None:
        self.max_send_wr = val.max_send_wr
        self.max_recv_wr = val.max_recv_wr
        self.max_send_sge = val.max_send_sge
        self.max_recv_sge = val.max_recv_sge
        self.max_inline_data = val.max_inline_data

    @property
    def send_cq(self) -> CQ | CQEX | None:
        return self.scq

    @send_cq.setter
    def send_cq(self, val: object) -> None:
        self.scq = _queue(val)

    @property
    def recv_cq(self) -> CQ | CQEX | None:
        return self.rcq

    @recv_cq.setter
    def recv_cq(self, val: object) -> None:
        self.rcq = _queue(val)

    def to_core(self) -> verbs.QPInitAttr:
        return verbs.QPInitAttr(
            int(self.qp_type),
            self.qp_context,
            None if self.scq is None else self.scq.core,
            None if self.rcq is None else self.rcq.core,
            None if self.srq is None else self.srq.core,
            self.cap.to_core(),
            bool(self.sq_sig_all),
        )

    def __str__(self) -> str:
        return lines("", self, ("qp_type", "sq_sig_all", *_CAPS))


class QPInitAttrEx(QPInitAttr):
    def __init__(
        self,
        qp_type: int = e.ibv_qp_type.IBV_QPT_UD,
        qp_context: object = None,
        scq: object = None,
        rcq: object = None,
        srq: SRQ | None = None,
        cap: QPCap | None = None,
        sq_sig_all: int = 0,
        comp_mask: int = 0,
        pd: PD | None = None,
        xrcd: object = None,
        create_flags: int = 0,
        max_tso_header: int = 0,
        source_qpn: int = 0,
        hash_conf: object = None,
        ind_table: object = None,
        send_ops_flags: int = 0,
    ) -> None:
        super().__init__(qp_type, qp_context, scq, rcq, srq, cap, sq_sig_all)
        self.comp_mask = comp_mask
        self.pd = pd
        self.xrcd = xrcd
        self.create_flags = create_flags
        self.max_tso_header = max_tso_header
        self.source_qpn = source_qpn
        self.hash_conf = hash_conf
        self.ind_table = ind_table
        self.send_ops_flags = send_ops_flags

    def to_core(self) -> verbs.QPInitAttrEx:
        if self.xrcd is not None or self.ind_table is not None:
            raise unsupported("Failed to create QP")
        plain = super().to_core()
        return verbs.QPInitAttrEx(
            plain.qp_type,
            plain.qp_context,
            plain.scq,
            plain.rcq,
            plain.srq,
            plain.cap,
            plain.sq_sig_all,
            int(self.comp_mask),
            None if self.pd is None else self.pd.core,
            int(self.create_flags),
            int(self.max_tso_header),
            int(self.source_qpn),
            int(self.send_ops_flags),
        )


class QPAttr(PyverbsObject):
    """What `QP.modify` sets and `QP.query` gives; the members are those of `struct ibv_qp_attr`."""

    def __init__(
        self,
        qp_state: int = e.ibv_qp_state.IBV_QPS_INIT,
        cur_qp_state: int = e.ibv_qp_state.IBV_QPS_RESET,
        port_num: int = 1,
        path_mtu: int = e.ibv_mtu.IBV_MTU_1024,
    ) -> None:
        super().__init__()
        self.qp_state = qp_state
        self.cur_qp_state = cur_qp_state
        self.port_num = port_num
        self.path_mtu = path_mtu
        self.path_mig_state = 0
        self.qkey = 0
        self.rq_psn = 0
        self.sq_psn = 0
        self.dest_qp_num = 0
        self.qp_access_flags = 0
        self.cap = QPCap(0, 0, 0, 0)
        self.ah_attr = AHAttr()
        self.alt_ah_attr = AHAttr()
        self.pkey_index = 0
        self.alt_pkey_index = 0
        self.en_sqd_async_notify = 0
        self.sq_draining = 0
        self.max_rd_atomic = 0
        self.max_dest_rd_atomic = 0
        self.min_rnr_timer = 0
        self.timeout = 0
        self.retry_cnt = 0
        self.rnr_retry = 0
        self.alt_port_num = 0
        self.alt_timeout = 0
        self.rate_limit = 0

    def to_core(self) -> verbs.QPAttr:
        core = verbs.QPAttr()
        for name in _PLAIN:
            setattr(core, name, int(getattr(self, name)))
        core.cap = self.cap.to_core()
        core.ah_attr = self.ah_attr.to_core()
        core.alt_ah_attr = self.alt_ah_attr.to_core()
        return core

    @classmethod
    def from_core(cls, core: verbs.QPAttr) -> QPAttr:
        attr = cls()
        for name in _PLAIN:
            setattr(attr, name, getattr(core, name))
        attr.cap = QPCap.from_core(core.cap)
        attr.ah_attr = AHAttr.from_core(core.ah_attr)
        attr.alt_ah_attr = AHAttr.from_core(core.alt_ah_attr)
        return attr

    def __str__(self) -> str:
        return lines("", self, _PLAIN) + f"QP caps:\n{self.cap}AH Attr:\n{self.ah_attr}"


_PLAIN = tuple(
    member.name
    for member in fields(verbs.QPAttr)
    if member.name not in ("cap", "ah_attr", "alt_ah_attr")
)
"""Members that are numbers."""


class ECE(PyverbsObject):
    """Options of a vendor's, of which the device has none."""

    def __init__(self, vendor_id: int = 0, options: int = 0, comp_mask: int = 0) -> None:
        super().__init__()
        self.vendor_id = vendor_id
        self.options = options
        self.comp_mask = comp_mask

    def __str__(self) -> str:
        return lines("ECE:", self, ["vendor_id", "options", "comp_mask"])


class QPRateLimitAttr(PyverbsObject):
    def __init__(
        self,
        rate_limit: int = 0,
        max_burst_sz: int = 0,
        typical_pkt_sz: int = 0,
        comp_mask: int = 0,
    ) -> None:
        super().__init__()
        self.rate_limit = rate_limit
        self.max_burst_sz = max_burst_sz
        self.typical_pkt_sz = typical_pkt_sz
        self.comp_mask = comp_mask
