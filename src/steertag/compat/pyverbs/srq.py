"""pyverbs' `srq`: shared receive queues."""

from __future__ import annotations

from steertag import verbs
from steertag.compat.pyverbs import libibverbs_enums as e
from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject
from steertag.compat.pyverbs.device import Context
from steertag.compat.pyverbs.pd import PD
from steertag.compat.pyverbs.pyverbs_error import PyverbsRDMAError, failing, unsupported
from steertag.compat.pyverbs.wr import RecvWR, post_each


class SrqAttr(PyverbsObject):
    def __init__(self, max_wr: int = 100, max_sge: int = 1, srq_limit: int = 0) -> None:
        super().__init__()
        self.max_wr = max_wr
        self.max_sge = max_sge
        self.srq_limit = srq_limit

    def to_core(self) -> verbs.SrqAttr:
        return verbs.SrqAttr(self.max_wr, self.max_sge, self.srq_limit)


class SrqInitAttr(PyverbsObject):
    def __init__(self, attr: SrqAttr | None = None) -> None:
        super().__init__()
        self._attr = SrqAttr(0, 0) if attr is None else attr

    @property
    def max_wr(self) -> int:
        return self._attr.max_wr

    @property
    def max_sge(self) -> int:
        return self._attr.max_sge

    @property
    def srq_limit(self) -> int:
        return self._attr.srq_limit


class SrqInitAttrEx(PyverbsObject):
    def __init__(self, max_wr: int = 100, max_sge: int = 1, srq_limit: int = 0) -> None:
        super().__init__()
        self.max_wr = max_wr
        self.max_sge = max_sge
        self.srq_limit = srq_limit
        self.comp_mask = 0
        self.srq_type: int = e.ibv_srq_type.IBV_SRQT_BASIC
        self.pd: PD | None = None
        self.xrcd: object = None
        self.cq: PyverbsCM | None = None
        self.max_num_tags = 0
        self.max_ops = 0


class OpsWr(PyverbsObject):
    """A request of tag matching, which the device doesn't do."""

    def __init__(self, wr_id: int = 0, **members: object) -> None:
        super().__init__()
        self.wr_id = wr_id
        vars(self).update(members)


class SRQ(PyverbsCM):
    """A shared receive queue, of a PD or, with a PD in its attributes, of a Context."""

    close_order = 1
    closing = "Failed to destroy SRQ"
    core: verbs.SRQ

    def __init__(self, creator: PD | Context, attr: SrqInitAttr | SrqInitAttrEx) -> None:
        super().__init__()
        pd: PD | None
        if isinstance(creator, PD):
            pd = creator
        elif isinstance(creator, Context) and isinstance(attr, SrqInitAttrEx):
            pd = attr.pd
        else:
            raise PyverbsRDMAError("Srq needs either Context or PD for creation")
        kind: int = e.ibv_srq_type.IBV_SRQT_BASIC
        if isinstance(attr, SrqInitAttrEx) and attr.comp_mask & (
            e.ibv_srq_init_attr_mask.IBV_SRQ_INIT_ATTR_TYPE
        ):
            kind = attr.srq_type
        sizes = verbs.SrqInitAttrEx(attr.max_wr, attr.max_sge, attr.srq_limit)
        sizes.srq_type, sizes.pd = int(kind), None if pd is None else pd.core
        with failing("Failed to create SRQ"):
            self.core = verbs.SRQ(creator.core, sizes)
        self._open = True
        self.pd = pd
        if pd is not None:
            pd.add_ref(self)
        if isinstance(attr, SrqInitAttrEx) and attr.cq is not None:
            attr.cq.add_ref(self)

    def get_srq_num(self) -> int:
        with failing("Failed to retrieve SRQ number"):
            return self.core.get_srq_num()

    def modify(self, attr: SrqAttr, comp_mask: int) -> None:
        with failing("Failed to modify SRQ"):
            self.core.modify(attr.to_core(), int(comp_mask))

    def query(self) -> SrqAttr:
        core = self.core.query()
        return SrqAttr(core.max_wr, core.max_sge, core.srq_limit)

    def post_recv(self, wr: RecvWR, bad_wr: RecvWR | None = None) -> None:
        post_each(self.core.post_recv, wr, bad_wr, "Failed to post receive to SRQ.")

    def post_srq_ops(self, wr: OpsWr, bad_wr: OpsWr | None = None) -> None:
        raise unsupported("post SRQ ops failed.")
