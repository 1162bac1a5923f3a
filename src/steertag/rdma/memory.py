"""Registered memory: regions, their STags, and the checks that come before any placement.

Linux: drivers/infiniband/sw/siw/siw_mem.c. Order of checks everywhere: STag valid, protection
domain, access right, bounds (RFC 5042 section 6).
"""

from __future__ import annotations

import errno
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from steertag.errors import ProtocolError, os_error
from steertag.rdma.constants import (
    ACCESS_KNOWN,
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_INVALIDATE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    ACCESS_ZERO_BASED,
    MW_TYPE_1,
    MW_TYPE_2,
)
from steertag.wire import ddp, rdmap

Buffer = bytes | bytearray | memoryview

KEY_BITS: Final = 8
INDEX_BITS: Final = 24
"""An STag is an index of the device's and a key (RFC 5040 section 4, iWARP verbs)."""
_KEY_MASK: Final = (1 << KEY_BITS) - 1
_RETIRED: Final = 64
"""Indices of regions deregistered last that are not given out again yet."""
_REMEMBERED: Final = 65536
"""Indices whose last key is remembered, so that it changes when they are given out again."""
_BASE_BITS: Final = 45
_PAGE: Final = 4096
_TO_END: Final = 1 << 64
ATOMIC_LEN: Final = 8
"""Octets that an atomic operation works on."""


class Region:
    """A registered buffer.

    Attributes:
        stag: its steering tag: lkey and rkey at once, as on every iWARP device.
        pd: number of the protection domain it belongs to.
        access: granted rights, `ACCESS_*`.
        base: tagged offset of its first octet. Not the buffer's address unless the owner wants it
            so: that is nobody's business on the network.
        length: octets.
        view: the buffer, flat; holding it pins the buffer (it can't be resized or closed).
        valid: False once it is deregistered.
        windows: memory windows that are bound to it.
    """

    __slots__ = ("access", "base", "length", "pd", "stag", "valid", "view", "windows")

    def __init__(self, stag: int, pd: int, access: int, base: int, view: memoryview) -> None:
        self.stag = stag
        self.pd = pd
        self.access = access
        self.base = base
        self.length = len(view)
        self.view = view
        self.valid = True
        self.windows: set[Window] = set()


class Window:
    """A memory window: a part of a region, with an STag and rights of its own for the peer.

    Attributes:
        stag: its steering tag (rkey). Type 1 gets another with each bind, type 2 another key.
        pd: number of the protection domain it belongs to.
        kind: MW_TYPE_1 (for every queue pair of the domain) or MW_TYPE_2 (for the one that bound
            it; the peer's Send with Invalidate ends it).
        region: what it is bound to; None while it is not.
        qp_num: the queue pair that bound it.
        access, base, length, view: as a `Region`'s, of the part it is bound to.
    """

    __slots__ = ("access", "base", "kind", "length", "pd", "qp_num", "region", "stag", "view")

    def __init__(self, stag: int, pd: int, kind: int) -> None:
        self.stag = stag
        self.pd = pd
        self.kind = kind
        self.region: Region | None = None
        self.qp_num = 0
        self.access = 0
        self.base = 0
        self.length = 0
        self.view = memoryview(b"")


class WindowBind(NamedTuple):
    """What a bind asks for (`struct ibv_mw_bind_info`, and the new STag).

    Attributes:
        window: what is bound.
        stag: its STag from then on: `StagTable.next_window_stag` for type 1; for type 2 the
            caller's choice of key, with the window's own index.
        region: to what; None (or no octets) unbinds a window of type 1.
        addr, length: which octets, by the region's tagged offsets.
        access: rights granted through the window: remote ones, and ACCESS_ZERO_BASED.
    """

    window: Window
    stag: int
    region: Region | None
    addr: int = 0
    length: int = 0
    access: int = 0


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


def _registrable(buffer: object, access: int) -> memoryview:
    """The flat view of a buffer that may be registered with these rights: see `register`."""
    if access & ~ACCESS_KNOWN:
        raise os_error(errno.EINVAL, f"access flags {access:#x}")
    if access & (ACCESS_REMOTE_WRITE | ACCESS_REMOTE_ATOMIC) and not access & ACCESS_LOCAL_WRITE:
        raise os_error(errno.EINVAL, "remote write and remote atomic need local write")
    view = flat_view(buffer)
    if view.readonly and access & ACCESS_LOCAL_WRITE:
        raise os_error(errno.EACCES, "a read-only buffer can't be registered for writing")
    return view


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
_ATOMIC: Final = _READ._replace(name="remote atomic", right=ACCESS_REMOTE_ATOMIC)


class StagTable:
    """The regions and memory windows of one RNIC by STag.

    Args:
        randbits: `randbits(n)` gives n unguessable bits (RFC 5042 section 6.1: a peer must not be
            able to predict an STag).
        limit: regions that may be registered at once, and as many windows.
    """

    def __init__(self, randbits: Callable[[int], int], limit: int = 65536) -> None:
        self._randbits = randbits
        self._limit = limit
        self.regions: dict[int, Region] = {}
        self.windows: dict[int, Window] = {}
        """Windows that are bound, by STag. Apart from the regions: no local element names one."""
        self._in_use: set[int] = set()
        self._window_count = 0
        self._retired: deque[int] = deque(maxlen=_RETIRED)
        self._last_key: OrderedDict[int, int] = OrderedDict()
        self.on_invalidate: Callable[[int, memoryview], None] = lambda stag, view: None
        """Called when an STag ends before its region does, with the memory it named."""
        self._next_base = randbits(_BASE_BITS) * _PAGE & ((1 << _BASE_BITS) - 1) & -_PAGE

    def register(self, pd: int, buffer: object, access: int, base: int | None = None) -> Region:
        """Register `buffer` in protection domain `pd`, its first octet at tagged offset `base`.

        None chooses one at random, or 0 with ACCESS_ZERO_BASED.

        Raises:
            OSError: EINVAL for rights that don't exist, a remote write or atomic without a local
                write, or a base outside 64 bits; EACCES for a write right over a read-only
                buffer; ENOMEM at the limit.
            TypeError, ValueError: see `flat_view`.
        """
        view = _registrable(buffer, access)
        if len(self.regions) >= self._limit:
            raise os_error(errno.ENOMEM, f"{self._limit} regions are registered")
        if access & ACCESS_ZERO_BASED:
            base = 0
        if base is None:
            base = self._next_base
            # A page of nothing lies between regions, so that an overrun never meets the next one.
            self._next_base = base + (len(view) + 2 * _PAGE - 1 & -_PAGE)
        elif not 0 <= base <= _TO_END - len(view):
            raise os_error(errno.EINVAL, f"tagged offset {base:#x}")
        stag = self._fresh_stag()
        region = Region(stag, pd, access, base, view)
        self.regions[stag] = region
        return region

    def reregister(self, region: Region, pd: int, buffer: object, access: int, base: int) -> None:
        """Give a region another domain, other memory or other rights; its STag stays.

        Octets that are framed already are sent as they were (`on_invalidate`).

        Raises OSError: EBUSY while memory windows are bound to it, else as `register`, and the
        region stays as it was.
        """
        if region.windows:
            raise os_error(errno.EBUSY, f"{len(region.windows)} memory windows are bound to it")
        view = _registrable(buffer, access)
        if not 0 <= base <= _TO_END - len(view):
            raise os_error(errno.EINVAL, f"tagged offset {base:#x}")
        before, region.view = region.view, view
        region.pd, region.access = pd, access
        region.base, region.length = base, len(view)
        self.on_invalidate(region.stag, before)

    def deregister(self, region: Region) -> None:
        """From here on the STag names nothing. Views that a QP still holds are its to drop.

        Raises OSError EBUSY while memory windows are bound to the region.
        """
        if region.windows:
            raise os_error(errno.EBUSY, f"{len(region.windows)} memory windows are bound to it")
        region.valid = False
        self.regions.pop(region.stag, None)
        self._retire(region.stag)
        region.view = memoryview(b"")

    # -- windows -------------------------------------------------------------------------------

    def alloc_window(self, pd: int, kind: int) -> Window:
        """A window that is not bound yet. Raises OSError EINVAL, ENOMEM at the limit."""
        if kind not in (MW_TYPE_1, MW_TYPE_2):
            raise os_error(errno.EINVAL, f"memory window type {kind}")
        if self._window_count >= self._limit:
            raise os_error(errno.ENOMEM, f"{self._limit} memory windows exist")
        self._window_count += 1
        return Window(self._fresh_stag(), pd, kind)

    def dealloc_window(self, window: Window) -> None:
        self._unbind(window)
        self._retire(window.stag)
        self._window_count -= 1

    def next_window_stag(self, window: Window) -> int:
        """The STag for the next bind of a window: the same index, another key."""
        key = (window.stag + 1 + self._randbits(KEY_BITS) % _KEY_MASK) & _KEY_MASK
        return window.stag & ~_KEY_MASK | key

    def bind(self, bind: WindowBind, pd: int, qp_num: int) -> None:
        """Bind a window, from here on. Raises LocalProtectionError where that may not be."""
        window, region = bind.window, bind.region
        if window.pd != pd or bind.stag >> KEY_BITS != window.stag >> KEY_BITS:
            raise LocalProtectionError("the window is of another domain, or its STag another's")
        if window.kind == MW_TYPE_2 and window.region is not None:
            raise LocalProtectionError("a window of type 2 is invalidated before it is bound again")
        if region is None or not bind.length:
            if window.kind == MW_TYPE_2:
                raise LocalProtectionError("a window of type 2 is bound to octets of a region")
            self._unbind(window)
            window.stag = bind.stag
            return
        offset = bind.addr - region.base
        if (
            not region.valid
            or self.regions.get(region.stag) is not region
            or region.pd != pd
            or not region.access & ACCESS_MW_BIND
            or bind.access & ~(ACCESS_REMOTE | ACCESS_ZERO_BASED)
            or (
                (bind.access & (ACCESS_REMOTE_WRITE | ACCESS_REMOTE_ATOMIC))
                and not region.access & ACCESS_LOCAL_WRITE
            )
            or offset < 0
            or offset + bind.length > region.length
        ):
            raise LocalProtectionError("the region grants no such window")
        self._unbind(window)
        window.stag = bind.stag
        window.region, window.qp_num = region, qp_num
        window.access = bind.access
        window.base = 0 if bind.access & ACCESS_ZERO_BASED else bind.addr
        window.length = bind.length
        window.view = region.view[offset : offset + bind.length]
        region.windows.add(window)
        self.windows[window.stag] = window

    def _unbind(self, window: Window) -> None:
        if window.region is None:
            return
        window.region.windows.discard(window)
        del self.windows[window.stag]
        self.on_invalidate(window.stag, window.view)
        window.region = None
        window.view = memoryview(b"")
        window.access = window.length = 0

    # -- invalidation --------------------------------------------------------------------------

    def invalidate_local(self, stag: int, pd: int, qp_num: int) -> None:
        """`LOCAL_INV`, or a Read's sink when it is done: the STag names nothing from here on.

        A region stays registered, as an invalid one, until it is deregistered. Raises
        LocalProtectionError for what isn't the domain's (or, of a window, the queue pair's).
        """
        window = self.windows.get(stag)
        if window is not None and window.kind == MW_TYPE_2 and window.qp_num == qp_num:
            self._unbind(window)
            return
        region = self.regions.get(stag)
        if region is None or region.pd != pd or region.windows:
            raise LocalProtectionError(f"STag {stag:#010x} can't be invalidated")
        self._invalidate(region)

    def invalidate_remote(self, stag: int, pd: int, qp_num: int) -> None:
        """What a peer's Send with Invalidate names. Raises ProtocolError where it may not."""
        window = self.windows.get(stag)
        if window is not None and window.kind == MW_TYPE_2 and window.qp_num == qp_num:
            self._unbind(window)
            return
        region = self.regions.get(stag)
        known = region if region is not None else window
        if known is None or known.pd != pd:
            raise ProtocolError(
                rdmap.LAYER_RDMAP,
                rdmap.ETYPE_PROTECTION,
                rdmap.P_INVALID_STAG if known is None else rdmap.P_STAG_NOT_ASSOCIATED,
                f"invalidation of STag {stag:#010x}",
            )
        if region is None or not region.access & ACCESS_REMOTE_INVALIDATE or region.windows:
            raise ProtocolError(
                rdmap.LAYER_RDMAP,
                rdmap.ETYPE_PROTECTION,
                rdmap.P_CANNOT_INVALIDATE,
                f"STag {stag:#010x} can't be invalidated by a peer",
            )
        self._invalidate(region)

    def _invalidate(self, region: Region) -> None:
        del self.regions[region.stag]
        self.on_invalidate(region.stag, region.view)

    # -- STags ---------------------------------------------------------------------------------

    def _fresh_stag(self) -> int:
        while True:
            stag = self._randbits(INDEX_BITS + KEY_BITS)
            index = stag >> KEY_BITS
            # Index 0 stays free: 0 is what a forgotten field holds, 1 siw's ready-to-receive STag.
            if index and index not in self._in_use and index not in self._retired:
                break
        key = self._last_key.pop(index, None)
        if key == stag & _KEY_MASK:
            stag = index << KEY_BITS | (key + 1 & _KEY_MASK)
        self._in_use.add(index)
        return stag

    def _retire(self, stag: int) -> None:
        # A peer that still has the STag is to meet an error, not the next region.
        index = stag >> KEY_BITS
        self._in_use.discard(index)
        self._retired.append(index)
        self._last_key[index] = stag & _KEY_MASK
        if len(self._last_key) > _REMEMBERED:
            self._last_key.popitem(last=False)

    # -- access --------------------------------------------------------------------------------

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

    def octets_at(self, addr: int, length: int, lkey: int, pd: int) -> memoryview:
        """The octets of an element of inline data, whose lkey needn't be right.

        Raises OSError EINVAL where no region of the domain has them.
        """
        region = self.regions.get(lkey)
        named = [region] if region is not None and region.pd == pd else []
        for each in named or [each for each in self.regions.values() if each.pd == pd]:
            offset = addr - each.base
            if offset >= 0 and offset + length <= each.length:
                return each.view[offset : offset + length]
        raise os_error(errno.EINVAL, f"inline data of {length} octets at {addr:#x}: no region")

    def write_target(self, stag: int, pd: int, qp_num: int, to: int, length: int) -> memoryview:
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
        return self._granted(_WRITE, stag, pd, qp_num, to, length)

    def read_source(self, stag: int, pd: int, qp_num: int, to: int, length: int) -> memoryview:
        """The `length` octets that a peer's Read Request names. Raises ProtocolError."""
        return self._granted(_READ, stag, pd, qp_num, to, length)

    def atomic_target(self, stag: int, pd: int, qp_num: int, to: int) -> memoryview:
        """The 8 octets that a peer's Atomic Request names. Raises ProtocolError."""
        return self._granted(_ATOMIC, stag, pd, qp_num, to, ATOMIC_LEN)

    def _granted(
        self, kind: _Access, stag: int, pd: int, qp_num: int, to: int, length: int
    ) -> memoryview:
        target: Region | Window | None = self.regions.get(stag)
        if target is None:
            target = self.windows.get(stag)
        if target is None:
            raise kind.error(kind.invalid, f"invalid STag {stag:#010x}")
        if target.pd != pd:
            raise kind.error(kind.not_associated, f"STag {stag:#010x} is of another domain")
        if isinstance(target, Window) and target.kind == MW_TYPE_2 and target.qp_num != qp_num:
            raise kind.error(kind.not_associated, f"STag {stag:#010x} is of another queue pair")
        if not target.access & kind.right:
            raise ProtocolError(
                rdmap.LAYER_RDMAP,
                rdmap.ETYPE_PROTECTION,
                rdmap.P_ACCESS,
                f"{kind.name}: STag {stag:#010x} does not grant it",
            )
        if to + length > _TO_END:
            raise kind.error(kind.wrap, "the tagged offset wraps")
        offset = to - target.base
        if offset < 0 or offset + length > target.length:
            raise kind.error(kind.bounds, f"outside STag {stag:#010x}")
        return target.view[offset : offset + length]


def apply_atomic(request: rdmap.AtomicRequest, target: memoryview) -> int:
    """Do an atomic operation on 8 octets of memory, in this host's byte order; their old value.

    RFC 7306 section 5.1: a mask bit of FetchAdd marks the highest bit of a field, out of which no
    carry goes; those of CmpSwap choose the bits that are compared and replaced; Swap has none.
    """
    old = int.from_bytes(target, sys.byteorder)
    data, mask = request.swap_data, request.swap_mask
    if request.opcode is rdmap.AtomicOpcode.FETCH_ADD:
        top = mask | 1 << 63
        new = (old & ~top) + (data & ~top) ^ (old ^ data) & top
    elif request.opcode is rdmap.AtomicOpcode.SWAP:
        new = data
    elif (old ^ request.compare_data) & request.compare_mask:
        new = old
    else:
        new = old & ~mask | data & mask
    target[:] = new.to_bytes(ATOMIC_LEN, sys.byteorder)
    return old


class LocalProtectionError(Exception):
    """A work request names local memory that it may not touch: it completes with LOC_PROT_ERR."""
