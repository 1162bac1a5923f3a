"""pyverbs' `comp_cntr`: completion counters, of which an RNIC has none."""

from __future__ import annotations

from steertag.compat.pyverbs.base import PyverbsCM
from steertag.compat.pyverbs.pyverbs_error import unsupported


class CompCntr(PyverbsCM):
    def __init__(self, context: object, attr: object = None) -> None:
        super().__init__()
        raise unsupported("Failed to create completion counter")
