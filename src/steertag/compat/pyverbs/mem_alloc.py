"""pyverbs' `mem_alloc`: memory of this process, by address."""

from __future__ import annotations

import ctypes
import ctypes.util
import mmap as host
import os
import sys

from steertag.compat.pyverbs.pyverbs_error import PyverbsRDMAError

PROT_EXEC_ = host.PROT_EXEC
PROT_READ_ = host.PROT_READ
PROT_WRITE_ = host.PROT_WRITE
PROT_NONE_ = 0
MAP_PRIVATE_ = host.MAP_PRIVATE
MAP_SHARED_ = host.MAP_SHARED
MAP_ANONYMOUS_ = host.MAP_ANONYMOUS
# mman.h of Linux on every machine that Python has a wheel for.
MAP_FIXED_ = 0x10
MAP_GROWSDOWN_ = 0x100
MAP_LOCKED_ = 0x2000
MAP_NORESERVE_ = 0x4000
MAP_POPULATE_ = 0x8000
MAP_STACK_ = 0x20000
MAP_HUGETLB_ = 0x40000
_DONTNEED = 4
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = (ctypes.c_size_t,)
_libc.posix_memalign.argtypes = (
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
    ctypes.c_size_t,
)
_libc.free.argtypes = (ctypes.c_void_p,)


def mmap(
    addr: int = 0,
    length: int = 100,
    prot: int = PROT_READ_ | PROT_WRITE_,
    flags: int = MAP_PRIVATE_ | MAP_ANONYMOUS_,
    fd: int = 0,
    offset: int = 0,
) -> int:
    address = _libc.mmap(addr, length, prot, flags, fd, offset)
    if address == _MAP_FAILED:
        raise MemoryError(f"Failed to mmap memory: {os.strerror(ctypes.get_errno())}")
    return int(address)


def munmap(addr: int, length: int) -> None:
    if _libc.munmap(addr, length):
        raise MemoryError("Failed to munmap requested memory")


def madvise(addr: int, length: int, flags: int = _DONTNEED) -> None:
    if _libc.madvise(addr, length, flags):
        raise PyverbsRDMAError("Failed to madvise memory", ctypes.get_errno())


def malloc(size: int) -> int:
    address = _libc.malloc(size)
    if not address:
        raise MemoryError("Failed to allocate memory")
    return int(address)


def posix_memalign(size: int, alignment: int = 8) -> int:
    """Memory that is all zero, at a multiple of `alignment`."""
    address = ctypes.c_void_p()
    if _libc.posix_memalign(ctypes.byref(address), alignment, size) or not address.value:
        raise MemoryError("Failed to allocate memory")
    ctypes.memset(address, 0, size)
    return address.value


def free(ptr: int) -> None:
    _libc.free(ptr)


def writebe32(addr: int, val: int, offset: int = 0) -> None:
    """`offset` counts words of 4 octets."""
    ctypes.memmove(addr + 4 * offset, val.to_bytes(4, "big"), 4)


def writebe64(addr: int, val: int, offset: int = 0) -> None:
    """`offset` counts words of 8 octets."""
    ctypes.memmove(addr + 8 * offset, val.to_bytes(8, "big"), 8)


def write(addr: int, data: bytes | str, length: int, offset: int = 0) -> None:
    octets = data.encode() if isinstance(data, str) else bytes(data)
    ctypes.memmove(addr + offset, octets, min(length, len(octets)))


def read32(addr: int, offset: int = 0) -> int:
    """`offset` counts words of 4 octets."""
    return int.from_bytes(ctypes.string_at(addr + 4 * offset, 4), sys.byteorder)


def read64(addr: int, offset: int = 0) -> int:
    """`offset` counts words of 8 octets."""
    return int.from_bytes(ctypes.string_at(addr + 8 * offset, 8), sys.byteorder)


def read(addr: int, length: int, offset: int = 0) -> bytes:
    return ctypes.string_at(addr + offset, length)
