"""pyverbs' `xrcd`: XRC domains, of which an RNIC has none."""

from __future__ import annotations

from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject
from steertag.compat.pyverbs.device import Context
from steertag.compat.pyverbs.pyverbs_error import unsupported


class XRCDInitAttr(PyverbsObject):
    def __init__(self, comp_mask: int, oflags: int, fd: int) -> None:
        super().__init__()
        self.comp_mask = comp_mask
        self.oflags = oflags
        self.fd = fd


class XRCD(PyverbsCM):
    def __init__(self, context: Context, init_attr: XRCDInitAttr) -> None:
        super().__init__()
        raise unsupported("Failed to allocate XRCD")
