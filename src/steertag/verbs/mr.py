"""Registered memory (pyverbs: `mr`)."""

from __future__ import annotations

import ctypes
import errno
import mmap
from typing import Final

from steertag.errors import os_error
from steertag.verbs.device import PD
from steertag.verbs.enums import (
    IBV_REREG_MR_CHANGE_ACCESS,
    IBV_REREG_MR_CHANGE_PD,
    IBV_REREG_MR_CHANGE_TRANSLATION,
)
from steertag.verbs.managed import Managed

_REREG_KNOWN: Final = (
    IBV_REREG_MR_CHANGE_TRANSLATION | IBV_REREG_MR_CHANGE_PD | IBV_REREG_MR_CHANGE_ACCESS
)


class MR(Managed):
    """A memory region (`ibv_reg_mr`): a buffer that the RNIC reads and writes, without a copy.

    While it is registered the buffer can't be resized or closed (Python refuses with
    BufferError). Closing the region is allowed at any time: its keys are invalid at once, a
    segment of the peer that is on its way into it ends that connection, a posted request that has
    not begun completes with IBV_WC_LOC_PROT_ERR, and no reference to the buffer is left.

    Args:
        creator: its protection domain.
        buffer: any contiguous buffer (bytearray, mmap of a file, array.array, NumPy array, ...),
            or a number of octets to be allocated.
        access: `IBV_ACCESS_*`; a read-only buffer takes no write right.
        address: where in this process the octets lie, `buffer` being their number: memory that the
            program has from `ctypes` or a library, and keeps while it is registered.
        implicit: the whole address space; there is no such region.

    Attributes:
        lkey, rkey: for local elements, and for the peer.
        buf, addr: the address of its first octet in `SGE`s and for the peer. It is chosen at
            random, not the buffer's address in this process, unless `address` named that; with
            IBV_ACCESS_ZERO_BASED it is 0.
        length: octets.
        access: its rights.
        handle: its number among the device's regions.

    Raises:
        OSError: EINVAL, EACCES or ENOMEM: see `StagTable.register`; EOPNOTSUPP for `implicit`.
        TypeError, ValueError: the object has no contiguous buffer, or an empty one.
    """

    close_rank = 2

    def __init__(
        self,
        creator: PD,
        buffer: object,
        access: int,
        address: int | None = None,
        implicit: bool = False,
    ) -> None:
        if implicit:
            raise os_error(errno.EOPNOTSUPP, "an implicit region; there is no on-demand paging")
        self.pd = creator
        self.context = creator.context
        if address is not None:
            buffer = _memory_at(address, buffer)
        elif isinstance(buffer, int):
            if buffer <= 0:
                raise os_error(errno.EINVAL, f"a region of {buffer} octets")
            buffer = mmap.mmap(-1, buffer)
        with self.context.loop.lock:
            self.region = self.context.rnic.register(creator.handle, buffer, access, address)
        self.lkey = self.rkey = self.handle = self.region.stag
        super().__init__(creator)

    @property
    def buf(self) -> int:
        return self.region.base

    @property
    def addr(self) -> int:
        return self.region.base

    @property
    def length(self) -> int:
        return self.region.length

    @property
    def access(self) -> int:
        return self.region.access

    def rereg(
        self,
        flags: int,
        pd: PD | None = None,
        addr: int = 0,
        length: int = 0,
        access: int = 0,
    ) -> None:
        """Change what is registered (`ibv_rereg_mr`); the keys stay.

        Args:
            flags: IBV_REREG_MR_CHANGE_*: which of the others count.
            pd: the domain that it goes over to.
            addr, length: memory of this process in the place of the buffer, as `address` of MR.
            access: its new rights.

        Raises:
            OSError: EINVAL for flags that don't exist or an argument that is missing, EBUSY while
                windows are bound to it, else as MR; then it is as it was.
        """
        if not flags or flags & ~_REREG_KNOWN:
            raise os_error(errno.EINVAL, f"rereg flags {flags:#x}")
        region = self.region
        buffer: object = region.view
        base = region.base
        if flags & IBV_REREG_MR_CHANGE_TRANSLATION:
            buffer, base = _memory_at(addr, length), addr
        if flags & IBV_REREG_MR_CHANGE_PD:
            if pd is None or pd.context is not self.context:
                raise os_error(errno.EINVAL, "a domain of the region's Context is missing")
        else:
            pd = self.pd
        rights = access if flags & IBV_REREG_MR_CHANGE_ACCESS else region.access
        with self.context.loop.lock:
            self.context.rnic.reregister(region, pd.handle, buffer, rights, base)
            self.pd.flush()
            self.context.loop.notify()
        self.pd = pd
        self.move(pd)

    def read(self, length: int, offset: int = 0) -> bytes:
        """A copy of `length` octets from `offset` on."""
        self._check(offset, length)
        return bytes(self.region.view[offset : offset + length])

    def write(self, data: bytes | str, length: int, offset: int = 0) -> None:
        """Copy the first `length` octets of `data` (str: as UTF-8) to `offset`."""
        octets = data.encode() if isinstance(data, str) else data
        self._check(offset, length)
        self.region.view[offset : offset + length] = octets[:length]

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{length} octets at {offset} of a region of {self.length}")

    def _close(self) -> None:
        with self.context.loop.lock:
            self.context.rnic.deregister(self.region)
            # A connection that this ends says so at once, without waiting for its peer.
            self.pd.flush()
            self.context.loop.notify()

    def __repr__(self) -> str:
        return f"<MR rkey={self.rkey:#010x} buf={self.buf:#x} length={self.length}>"


def _memory_at(address: int, length: object) -> object:
    """Octets of this process, as a buffer."""
    if not isinstance(length, int) or length <= 0 or address <= 0:
        raise os_error(errno.EINVAL, f"{length} octets at address {address}")
    return (ctypes.c_char * length).from_address(address)
