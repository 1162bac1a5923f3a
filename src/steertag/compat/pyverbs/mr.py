"""pyverbs' `mr`: memory regions and windows.

A region's address is that of its octets in this process, as with libibverbs: programs do arithmetic
with it, and read there.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from typing import TYPE_CHECKING

from steertag import verbs
from steertag.compat.pyverbs import libibverbs_enums as e
from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject, lines
from steertag.compat.pyverbs.pd import PD
from steertag.compat.pyverbs.pyverbs_error import (
    PyverbsError,
    PyverbsUserError,
    failing,
    unsupported,
)
from steertag.errors import os_error

if TYPE_CHECKING:
    from steertag.compat.pyverbs.cmid import CMID
    from steertag.compat.pyverbs.device import DM, Context

_HUGETLB = int(e.ibv_access_flags.IBV_ACCESS_HUGETLB)
_HUGE_PAGE = 2 << 20
_MAP_HUGETLB = 0x40000
_OF_A_CMID = {
    int(e.ibv_access_flags.IBV_ACCESS_LOCAL_WRITE): 1,
    int(e.ibv_access_flags.IBV_ACCESS_REMOTE_WRITE): 1 | 2,
    int(e.ibv_access_flags.IBV_ACCESS_REMOTE_READ): 1 | 4,
}
"""`rdma_reg_msgs`, `rdma_reg_write`, `rdma_reg_read`."""


class _Memory:
    """Octets of this process, zero, at an address that doesn't change while this is held."""

    def __init__(self, length: int, huge: bool) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        if huge:
            length = -(-length // _HUGE_PAGE) * _HUGE_PAGE
            flags |= _MAP_HUGETLB
        self._map = mmap.mmap(-1, length, flags=flags)
        self._pin = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._pin)


class MR(PyverbsCM):
    """A memory region.

    Args:
        creator: a PD, or a CMID, which takes the rights of `rdma_reg_msgs`, `_read` and `_write`.
    """

    close_order = 3
    closing = "Failed to dereg MR"
    core: verbs.MR

    def __init__(
        self,
        creator: PD | CMID,
        length: int = 0,
        access: int = 0,
        address: int | None = None,
        implicit: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__()
        if kwargs.get("handle") is not None:
            raise unsupported("Failed to import MR")
        length = int(length)
        self._memory: _Memory | None = None
        with failing(f"Failed to register a MR. length: {length}, access flags: {access}"):
            if not address and length > 0:
                try:
                    self._memory = _Memory(length, bool(access & _HUGETLB))
                except OSError as exc:
                    raise PyverbsError(
                        f"Failed to allocate MR buffer of size {length}: {exc}"
                    ) from exc
                address = self._memory.address
            rights = int(access) & ~_HUGETLB
            pd = creator if isinstance(creator, PD) else creator.pd
            if pd is not creator:
                if rights not in _OF_A_CMID:
                    raise os_error(errno.EINVAL, "rights that no rdma_reg_* call has")
                rights = _OF_A_CMID[rights]
            self.core = verbs.MR(pd.core, length, rights, address or 0, implicit)
        self.pd = pd
        self._open = True
        pd.add_ref(self)

    def _release(self) -> None:
        self.core.close()
        self._memory = None

    @property
    def buf(self) -> int:
        return self.core.buf if self._open else 0

    @property
    def lkey(self) -> int:
        return self.core.lkey

    @property
    def rkey(self) -> int:
        return self.core.rkey

    @property
    def length(self) -> int:
        return self.core.length

    @property
    def handle(self) -> int:
        return self.core.handle

    def _check(self, length: int, offset: int) -> None:
        if not self._open or length < 0:
            raise PyverbsUserError(f"The MR buffer isn't allocated or length {length} is invalid")
        if offset < 0 or offset + length > self.core.length:
            raise PyverbsUserError(f"Invalid offset {offset}, length {length}")

    def write(self, data: bytes | str, length: int, offset: int = 0) -> None:
        self._check(length, offset)
        self.core.write(data, length, offset)

    def read(self, length: int, offset: int = 0) -> bytes:
        self._check(length, offset)
        return self.core.read(length, offset)

    def rereg(
        self, flags: int, pd: PD | None = None, addr: int = 0, length: int = 0, access: int = 0
    ) -> None:
        with failing("Failed to rereg MR"):
            self.core.rereg(flags, None if pd is None else pd.core, addr, length, int(access))
        if flags & e.ibv_rereg_mr_flags.IBV_REREG_MR_CHANGE_TRANSLATION:
            self._memory = None
        if flags & e.ibv_rereg_mr_flags.IBV_REREG_MR_CHANGE_PD and pd is not None:
            self.pd.drop_ref(self)
            self.pd = pd
            pd.add_ref(self)

    def unimport(self) -> None:
        raise unsupported("Failed to unimport MR")

    def __str__(self) -> str:
        return lines("MR:", self, ["lkey", "rkey", "length", "buf", "handle"])


class MWBindInfo(PyverbsObject):
    def __init__(self, mr: MR, addr: int, length: int, mw_access_flags: int) -> None:
        super().__init__()
        self.mr = mr
        self.addr = addr
        self.length = length
        self.mw_access_flags = mw_access_flags

    def to_core(self) -> verbs.MWBindInfo:
        return verbs.MWBindInfo(self.mr.core, self.addr, self.length, int(self.mw_access_flags))

    def __str__(self) -> str:
        return lines("MWBindInfo:", self, ["addr", "length", "mw_access_flags"])


class MWBind(PyverbsObject):
    def __init__(self, info: MWBindInfo, send_flags: int, wr_id: int = 0) -> None:
        super().__init__()
        self.info = info
        self.send_flags = send_flags
        self.wr_id = wr_id

    def to_core(self) -> verbs.MWBind:
        return verbs.MWBind(self.info.to_core(), int(self.send_flags), self.wr_id)

    def __str__(self) -> str:
        return lines("MWBind:", self, ["wr_id", "send_flags"])


class MW(PyverbsCM):
    close_order = 1
    closing = "Failed to dealloc MW"
    core: verbs.MW

    def __init__(self, pd: PD, mw_type: int) -> None:
        super().__init__()
        with failing("Failed to allocate MW"):
            self.core = verbs.MW(pd.core, int(mw_type))
        self._open = True
        self.pd = pd
        pd.add_ref(self)

    @property
    def handle(self) -> int:
        return self.core.rkey >> 8

    @property
    def rkey(self) -> int:
        return self.core.rkey

    @property
    def type(self) -> int:
        return self.core.type

    def __str__(self) -> str:
        return lines("MW:", self, ["rkey", "handle", "type"])


def mwtype2str(mw_type: int) -> str:
    return {1: "IBV_MW_TYPE_1", 2: "IBV_MW_TYPE_2"}.get(mw_type, "Unknown MW type")


class DMMR(MR):
    """A region of device memory, of which the device has none."""

    def __init__(self, pd: PD, length: int, access: int, dm: DM, offset: int) -> None:
        raise unsupported(f"Failed to register a device MR. length: {length}")


class DmaBufMR(MR):
    """A region of another device's memory, to which a device in software has no way."""

    def __init__(
        self,
        pd: PD,
        length: int,
        access: int,
        dmabuf: object = None,
        offset: int = 0,
        gpu: int = 0,
        gtt: int = 0,
    ) -> None:
        raise unsupported(f"Failed to register a dma-buf MR. length: {length}")


class DmaHandleInitAttr(PyverbsObject):
    def __init__(
        self, comp_mask: int = 0, cpu_id: int = 0, ph: int = 0, tph_mem_type: int = 0
    ) -> None:
        super().__init__()
        self.comp_mask = comp_mask
        self.cpu_id = cpu_id
        self.ph = ph
        self.tph_mem_type = tph_mem_type


class DMAHandle(PyverbsCM):
    def __init__(self, ctx: Context, init_attr: DmaHandleInitAttr) -> None:
        super().__init__()
        raise unsupported("Failed to create DMA Handle")
