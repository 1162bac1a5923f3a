"""pyverbs' `dmabuf`: memory of graphics processors, to which a device in software has no way."""

from __future__ import annotations

from steertag.compat.pyverbs.pyverbs_error import unsupported


class DmaBuf:
    def __init__(self, size: int, gpu: int = 0, gtt: int = 0) -> None:
        raise unsupported("Failed to allocate DmaBuf")
