"""pyverbs' `dma_util`: writes to a device's registers, here to memory of this process."""

from __future__ import annotations

import ctypes


def udma_to_dev_barrier() -> None:
    """The device shares the program's view of memory."""


def udma_from_dev_barrier() -> None:
    """As `udma_to_dev_barrier`."""


def mmio_write64_as_be(addr: int, val: int) -> None:
    ctypes.memmove(addr, val.to_bytes(8, "big"), 8)


def mmio_write32_as_be(addr: int, val: int) -> None:
    ctypes.memmove(addr, val.to_bytes(4, "big"), 4)
