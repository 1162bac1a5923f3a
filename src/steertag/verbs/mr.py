"""Registered memory (pyverbs: `mr`)."""

from __future__ import annotations

import errno
import mmap

from steertag.errors import os_error
from steertag.verbs.device import PD, Managed


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

    Attributes:
        lkey, rkey: for local elements, and for the peer.
        buf: the address of its first octet in `SGE`s and for the peer. It is chosen at random, not
            the buffer's address in this process.
        length: octets.

    Raises:
        OSError: EINVAL, EACCES or ENOMEM: see `StagTable.register`.
        TypeError, ValueError: the object has no contiguous buffer, or an empty one.
    """

    close_rank = 2

    def __init__(self, creator: PD, buffer: object, access: int) -> None:
        self.pd = creator
        self.context = creator.context
        if isinstance(buffer, int):
            if buffer <= 0:
                raise os_error(errno.EINVAL, f"a region of {buffer} octets")
            buffer = mmap.mmap(-1, buffer)
        with self.context.loop.lock:
            self._region = self.context.rnic.register(creator.handle, buffer, access)
        self.lkey = self.rkey = self._region.stag
        self.buf = self._region.base
        self.length = self._region.length
        super().__init__(creator)

    def read(self, length: int, offset: int = 0) -> bytes:
        """A copy of `length` octets from `offset` on."""
        self._check(offset, length)
        return bytes(self._region.view[offset : offset + length])

    def write(self, data: bytes | str, length: int, offset: int = 0) -> None:
        """Copy the first `length` octets of `data` (str: as UTF-8) to `offset`."""
        octets = data.encode() if isinstance(data, str) else data
        self._check(offset, length)
        self._region.view[offset : offset + length] = octets[:length]

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{length} octets at {offset} of a region of {self.length}")

    def _close(self) -> None:
        with self.context.loop.lock:
            self.context.rnic.deregister(self._region)
            # A connection that this ends says so at once, without waiting for its peer.
            self.pd.flush()
            self.context.loop.notify()

    def __repr__(self) -> str:
        return f"<MR rkey={self.rkey:#010x} buf={self.buf:#x} length={self.length}>"
