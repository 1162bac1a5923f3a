"""pyverbs' `flow`: steering of packets, which an RNIC doesn't do."""

from __future__ import annotations

from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject
from steertag.compat.pyverbs.pyverbs_error import unsupported
from steertag.compat.pyverbs.qp import QP
from steertag.compat.pyverbs.spec import Spec


class FlowAttr(PyverbsObject):
    def __init__(
        self,
        num_of_specs: int = 0,
        flow_type: int = 0,
        priority: int = 0,
        port: int = 1,
        flags: int = 0,
    ) -> None:
        super().__init__()
        self.num_of_specs = num_of_specs
        self.type = flow_type
        self.priority = priority
        self.port = port
        self.flags = flags
        self.specs: list[Spec] = []


class Flow(PyverbsCM):
    def __init__(self, qp: QP, flow_attr: FlowAttr) -> None:
        super().__init__()
        raise unsupported("Flow creation failed")


class FlowAction(PyverbsObject):
    def __init__(self, *args: object) -> None:
        super().__init__()
        raise unsupported("Flow action creation failed")
