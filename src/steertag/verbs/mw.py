"""Memory windows (pyverbs: `mr`): parts of a region with keys and rights of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from steertag.rdma import wr as core
from steertag.rdma.memory import KEY_BITS, WindowBind
from steertag.verbs.device import PD
from steertag.verbs.enums import IBV_ACCESS_LOCAL_WRITE, IBV_MW_TYPE_1, IBV_SEND_SIGNALED
from steertag.verbs.managed import Managed
from steertag.verbs.mr import MR

_KEY_MASK: Final = (1 << KEY_BITS) - 1


def inc_rkey(rkey: int) -> int:
    """The next key of a window of type 2 (`ibv_inc_rkey`): the same index, the key one higher."""
    return rkey & ~_KEY_MASK | (rkey + 1) & _KEY_MASK


class MW(Managed):
    """A memory window (`ibv_alloc_mw`).

    Args:
        creator: its protection domain.
        mw_type: IBV_MW_TYPE_1 (bound by `QP.bind_mw`, good for every queue pair of the domain) or
            IBV_MW_TYPE_2 (bound by a SendWR with IBV_WR_BIND_MW, good for the queue pair that
            bound it; IBV_WR_LOCAL_INV or the peer's Send with Invalidate ends it).

    Attributes:
        rkey: for the peer. Type 1: of the bind that was posted last. Type 2: of the last bind that
            was done; the next one's is the program's choice, `inc_rkey` of this.
        type: `mw_type`.

    Raises:
        OSError: EINVAL for another type, ENOMEM when the device has no more.
    """

    close_rank = 1

    def __init__(self, creator: PD, mw_type: int) -> None:
        self.pd = creator
        self.context = creator.context
        self.type = mw_type
        with self.context.loop.lock:
            self.window = self.context.rnic.alloc_window(creator.handle, mw_type)
        self._posted: int | None = None
        super().__init__(creator)

    @property
    def rkey(self) -> int:
        return self.window.stag if self._posted is None else self._posted

    def next_bind(self, info: MWBindInfo) -> WindowBind:
        """A bind of a window of type 1, with the key that it gets. With the lock held."""
        if self._posted is not None and self._posted != self.window.stag:
            # Of a bind that is still under way: its key must not come again.
            bind = info.window_bind(self, inc_rkey(self._posted))
        else:
            bind = info.window_bind(self, self.context.rnic.table.next_window_stag(self.window))
        return bind

    def posted(self, bind: WindowBind) -> None:
        self._posted = bind.stag

    def _close(self) -> None:
        with self.context.loop.lock:
            self.context.rnic.dealloc_window(self.window)
            self.pd.flush()
            self.context.loop.notify()

    def __repr__(self) -> str:
        kind = 1 if self.type == IBV_MW_TYPE_1 else 2
        return f"<MW type {kind} rkey={self.rkey:#010x}>"


@dataclass
class MWBindInfo:
    """`struct ibv_mw_bind_info`: which octets of which region, and what the peer may do there.

    Args:
        mr: registered with IBV_ACCESS_MW_BIND.
        addr, length: of the part; 0 octets unbind a window of type 1.
        mw_access_flags: IBV_ACCESS_REMOTE_*, IBV_ACCESS_ZERO_BASED. Local rights are the region's.
    """

    mr: MR
    addr: int
    length: int
    mw_access_flags: int

    def window_bind(self, mw: MW, rkey: int) -> WindowBind:
        return WindowBind(
            mw.window,
            rkey,
            self.mr.region,
            self.addr,
            self.length,
            self.mw_access_flags & ~IBV_ACCESS_LOCAL_WRITE,
        )


@dataclass
class MWBind:
    """`struct ibv_mw_bind`, for `QP.bind_mw`."""

    info: MWBindInfo
    send_flags: int = IBV_SEND_SIGNALED
    wr_id: int = 0


class SendWR(core.SendWR):
    __doc__ = core.SendWR.__doc__
    __slots__ = ()

    def set_bind_wr(self, mw: MW, bind_info: MWBindInfo) -> None:
        """Name the window of type 2 that IBV_WR_BIND_MW binds; `rkey` is its new key."""
        self.rkey = inc_rkey(mw.rkey)
        self.bind = bind_info.window_bind(mw, self.rkey)
