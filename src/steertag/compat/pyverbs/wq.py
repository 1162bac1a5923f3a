"""pyverbs' `wq`: receive work queues and their distribution, which an RNIC doesn't have."""

from __future__ import annotations

from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject
from steertag.compat.pyverbs.pyverbs_error import unsupported


class _Attributes(PyverbsObject):
    """Its members are what it was made with."""

    def __init__(self, **members: object) -> None:
        super().__init__()
        vars(self).update(members)


class WQInitAttr(_Attributes):
    pass


class WQAttr(_Attributes):
    pass


class RwqIndTableInitAttr(_Attributes):
    pass


class RxHashConf(_Attributes):
    pass


class WQ(PyverbsCM):
    def __init__(self, context: object, attr: WQInitAttr) -> None:
        super().__init__()
        raise unsupported("Failed to create WQ")


class RwqIndTable(PyverbsCM):
    def __init__(self, context: object, attr: RwqIndTableInitAttr) -> None:
        super().__init__()
        raise unsupported("Failed to create indirection table")
