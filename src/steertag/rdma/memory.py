"""Registered memory: regions, their STags, and the checks that come before any placement.

Linux: drivers/infiniband/sw/siw/siw_mem.c. Order of checks everywhere: STag valid, protection
domain, access right, bounds (RFC 5042 section 6).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from steertag.errors import ProtocolError, os_error
from steertag.rdma.constants import (
    ACCESS_KNOWN,
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
)
from steertag.wire import ddp, rdmap

Buffer = bytes | bytearray | memoryview

STAG_BITS: Final = 32
_RETIRED: Final = 64
"""STags of regions deregistered last that are not given out again yet."""
_RTR_STAG: Final = 1
_BASE_BITS: Final = 45
_PAGE: Final = 4096
_TO_END: Final = 1 << 64


class Region:
    """A registered buffer.

    Attributes:
        stag: its steering tag: lkey and rkey at once, as on every iWARP device.
        pd: number of the protection domain it belongs to.
        access: granted rights, `ACCESS_*`.
        base: tagged offset of its first octet. Not the buffer's address: that is nobody's business
            on the network.
        length: octets.
        view: the buffer, flat; holding it pins the buffer (it can't be resized or closed).
        valid: False once it is deregistered.
    """

    __slots__ = ("access", "base", "length", "pd", "stag", "valid", "view")

    def __init__(self, stag: int, pd: int, access: int, base: int, view: memoryview) -> None:
        self.stag = stag
        self.pd = pd
        self.access = access
        self.base = base
        self.length = len(view)
        self.view = view
        self.valid = True


def flat_view(buffer: object) -> memoryview:
    """A one-dimensional view of the octets of any contiguous buffer, without a copy.

    Raises TypeError for what is no buffer, ValueError for one that isn't C-contiguous.
    """
    view = memoryview(buffer)  # type: ignore[arg-type]
    if not view.c_contiguous:
        raise ValueError("only a C-contiguous buffer can be registered")
    if view.nbytes == 0:
        raise ValueError("an empty buffer can't be registered")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


class _Access(NamedTuple):
    """What a remote access needs, and what a Terminate says where it is refused.

    A Write is checked by DDP, which places it; a Read Request by RDMAP, which answers it. That a
    right isn't granted is RDMAP's to say of both (RFC 5040 section 4.8, RFC 5041 section 7.2).
    """

    name: str
    right: int
    layer: int
    etype: int
    invalid: int
    not_associated: int
    wrap: int
    bounds: int

    def error(self, code: int, detail: str) -> ProtocolError:
        return ProtocolError(self.layer, self.etype, code, f"{self.name}: {detail}")


_WRITE: Final = _Access(
    "remote write",
    ACCESS_REMOTE_WRITE,
    ddp.LAYER_DDP,
    ddp.ETYPE_TAGGED,
    invalid=ddp.T_INVALID_STAG,
    not_associated=ddp.T_STAG_NOT_ASSOCIATED,
    wrap=ddp.T_TO_WRAP,
    bounds=ddp.T_BASE_BOUNDS,
)
_READ: Final = _Access(
    "remote read",
    ACCESS_REMOTE_READ,
    rdmap.LAYER_RDMAP,
    rdmap.ETYPE_PROTECTION,
    invalid=rdmap.P_INVALID_STAG,
    not_associated=rdmap.P_STAG_NOT_ASSOCIATED,
    wrap=rdmap.P_TO_WRAP,
    bounds=rdmap.P_BASE_BOUNDS,
)


class StagTable:
    """The regions of one RNIC by STag.

    Args:
        randbits: `randbits(n)` gives n unguessable bits (RFC 5042 section 6.1: a peer must not be
            able to predict an STag).
        limit: regions that may be registered at once.
    """

    def __init__(self, randbits: Callable[[int], int], limit: int = 65536) -> None:
        self._randbits = randbits
        self._limit = limit
        self.regions: dict[int, Region] = {}
        self._retired: deque[int] = deque(maxlen=_RETIRED)
        self._next_base = randbits(_BASE_BITS) * _PAGE & ((1 << _BASE_BITS) - 1) & -_PAGE

    def register(self, pd: int, buffer: object, access: int) -> Region:
        """Register `buffer` in protection domain `pd`.

        Raises:
            OSError: EINVAL for rights that don't exist or a remote write without a local one;
                EACCES for a write right over a read-only buffer; ENOMEM at the limit.
            TypeError, ValueError: see `flat_view`.
        """
        if access & ~ACCESS_KNOWN:
            raise os_error(errno.EINVAL, f"access flags {access:#x}")
        if access & ACCESS_REMOTE_WRITE and not access & ACCESS_LOCAL_WRITE:
            raise os_error(errno.EINVAL, "remote write needs local write")
        view = flat_view(buffer)
        if view.readonly and access & ACCESS_LOCAL_WRITE:
            raise os_error(errno.EACCES, "a read-only buffer can't be registered for writing")
        if len(self.regions) >= self._limit:
            raise os_error(errno.ENOMEM, f"{self._limit} regions are registered")
        stag = self._fresh_stag()
        base = self._next_base
        # A page of nothing lies between regions, so that an overrun never meets the next one.
        self._next_base = base + (len(view) + 2 * _PAGE - 1 & -_PAGE)
        region = Region(stag, pd, access, base, view)
        self.regions[stag] = region
        return region

    def deregister(self, region: Region) -> None:
        """From here on the STag names nothing. Views that a QP still holds are its to drop."""
        region.valid = False
        if self.regions.pop(region.stag, None) is not None:
            # A peer that still has the STag is to meet an error, not the next region.
            self._retired.append(region.stag)
        region.view = memoryview(b"")

    def _fresh_stag(self) -> int:
        while True:
            stag = self._randbits(STAG_BITS)
            if stag > _RTR_STAG and stag not in self.regions and stag not in self._retired:
                return stag

    def local_view(self, lkey: int, pd: int, addr: int, length: int, right: int) -> memoryview:
        """The octets that a local scatter/gather element names.

        Raises LocalProtectionError; `right` is 0 or `ACCESS_LOCAL_WRITE`.
        """
        region = self.regions.get(lkey)
        if region is None or region.pd != pd:
            raise LocalProtectionError(f"lkey {lkey:#x} is not valid in this domain")
        if right & ~region.access:
            raise LocalProtectionError(f"lkey {lkey:#x} does not grant local write")
        offset = addr - region.base
        if offset < 0 or offset + length > region.length:
            raise LocalProtectionError(f"lkey {lkey:#x}: {length} octets at {addr:#x} lie outside")
        return region.view[offset : offset + length]

    def write_target(self, stag: int, pd: int, to: int, length: int) -> memoryview:
        """Where an inbound RDMA Write's `length` octets go. Raises ProtocolError."""
        region = self.regions.get(stag)
        if (
            region is not None
            and region.pd == pd
            and region.access & ACCESS_REMOTE_WRITE
            and (offset := to - region.base) >= 0
            and offset + length <= region.length
        ):
            return region.view[offset : offset + length]
        return self._granted(_WRITE, stag, pd, to, length)

    def read_source(self, stag: int, pd: int, to: int, length: int) -> memoryview:
        """The `length` octets that a peer's Read Request names. Raises ProtocolError."""
        return self._granted(_READ, stag, pd, to, length)

    def _granted(self, kind: _Access, stag: int, pd: int, to: int, length: int) -> memoryview:
        region = self.regions.get(stag)
        if region is None:
            raise kind.error(kind.invalid, f"invalid STag {stag:#010x}")
        if region.pd != pd:
            raise kind.error(kind.not_associated, f"STag {stag:#010x} is of another domain")
        if not region.access & kind.right:
            raise ProtocolError(
                rdmap.LAYER_RDMAP,
                rdmap.ETYPE_PROTECTION,
                rdmap.P_ACCESS,
                f"{kind.name}: STag {stag:#010x} does not grant it",
            )
        if to + length > _TO_END:
            raise kind.error(kind.wrap, "the tagged offset wraps")
        offset = to - region.base
        if offset < 0 or offset + length > region.length:
            raise kind.error(kind.bounds, f"outside STag {stag:#010x}")
        return region.view[offset : offset + length]


class LocalProtectionError(Exception):
    """A work request names local memory that it may not touch: it completes with LOC_PROT_ERR."""
