"""pyverbs' `wr`: work requests."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from steertag import verbs
from steertag.compat.pyverbs import libibverbs_enums as e
from steertag.compat.pyverbs.base import PyverbsObject, inc_rkey, lines
from steertag.compat.pyverbs.pyverbs_error import (
    PyverbsRDMAError,
    PyverbsUserError,
    failing,
    unsupported,
)

if TYPE_CHECKING:
    from steertag.compat.pyverbs.mr import MW, MWBindInfo

_INVALIDATING = (e.ibv_wr_opcode.IBV_WR_LOCAL_INV, e.ibv_wr_opcode.IBV_WR_SEND_WITH_INV)
_NO_DATA = (*_INVALIDATING, e.ibv_wr_opcode.IBV_WR_BIND_MW)
_SEND_FLAGS = {int(flag): flag.name for flag in e.ibv_send_flags}


class SGE(verbs.SGE):
    """A piece of registered memory."""

    __slots__ = ("__weakref__",)

    def __init__(self, addr: int, length: int, lkey: int) -> None:
        super().__init__(addr, length, lkey)

    def close(self) -> None:
        """There is nothing to give back."""

    def read(self, length: int, offset: int) -> bytes:
        """The octets at the address, as they are in this process."""
        return ctypes.string_at(self.addr + offset, length)

    def __str__(self) -> str:
        return lines("", self, ["addr", "length", "lkey"])


def elements(sg: Sequence[SGE] | None, num_sge: int) -> tuple[SGE, ...]:
    """A copy of the first `num_sge` elements, as C's requests have one."""
    return tuple(SGE(sge.addr, sge.length, sge.lkey) for sge in (sg or ())[:num_sge])


class RecvWR(PyverbsObject):
    def __init__(
        self,
        wr_id: int = 0,
        num_sge: int = 0,
        sg: Sequence[SGE] | None = None,
        next_wr: RecvWR | None = None,
    ) -> None:
        super().__init__()
        self.wr_id = wr_id
        self.num_sge = num_sge
        self.sg = elements(sg, num_sge)
        self.next_wr = next_wr

    def close(self) -> None:
        self.sg = ()

    def to_core(self) -> verbs.RecvWR:
        return verbs.RecvWR(self.wr_id, self.num_sge, self.sg)

    def __str__(self) -> str:
        return lines("", self, ["wr_id", "num_sge"])


def post_each(
    post: Callable[[verbs.RecvWR], None], wr: RecvWR, bad_wr: RecvWR | None, failure: str
) -> None:
    """Post a receive and those behind it. `bad_wr` becomes the one that could not be."""
    one: RecvWR | None = wr
    while one is not None:
        try:
            with failing(failure):
                post(one.to_core())
        except PyverbsRDMAError:
            if bad_wr is not None:
                vars(bad_wr).update(vars(one))
            raise
        one = one.next_wr


class SendWR(PyverbsObject):
    """A request for the send queue.

    `imm_data` is in network byte order; for opcodes that invalidate it is the key (C's union).
    """

    def __init__(
        self,
        wr_id: int = 0,
        opcode: int = e.ibv_wr_opcode.IBV_WR_SEND,
        num_sge: int = 0,
        imm_data: int = 0,
        sg: Sequence[SGE] | None = None,
        send_flags: int = e.ibv_send_flags.IBV_SEND_SIGNALED,
        next_wr: SendWR | None = None,
    ) -> None:
        super().__init__()
        if opcode not in _NO_DATA and (num_sge < 1 or sg is None):
            raise PyverbsUserError("A WR needs at least one SGE")
        self.wr_id = wr_id
        self.opcode = opcode
        self.num_sge = num_sge
        self.imm_data = imm_data
        self.sg = elements(sg, num_sge)
        self.send_flags = send_flags
        self.next_wr = next_wr
        self._core = verbs.SendWR()

    def close(self) -> None:
        self.sg = ()

    @property
    def sg_list(self) -> tuple[SGE, ...]:
        return self.sg

    @sg_list.setter
    def sg_list(self, val: SGE) -> None:
        self.sg = (val, *self.sg[1:])

    @property
    def rkey(self) -> int:
        """The new key of the window that the request binds."""
        bind = self._core.bind
        return 0 if bind is None else bind.stag

    @property
    def rdma_rkey(self) -> int:
        return self._core.rkey

    @property
    def rdma_remote_addr(self) -> int:
        return self._core.remote_addr

    def set_wr_rdma(self, rkey: int, addr: int) -> None:
        self._core.set_wr_rdma(rkey, addr)

    def set_wr_atomic(self, rkey: int, addr: int, compare_add: int, swap: int = 0) -> None:
        self._core.set_wr_atomic(rkey, addr, compare_add, swap)

    def set_bind_wr(self, mw: MW, bind_info: MWBindInfo) -> None:
        self._core.bind = bind_info.to_core().window_bind(mw.core, inc_rkey(mw.rkey))

    def set_wr_ud(self, ah: object, rqpn: int, rqkey: int) -> None:
        raise unsupported("A datagram's address")

    def set_qp_type_xrc(self, remote_srqn: int) -> None:
        raise unsupported("An XRC request")

    def to_core(self) -> verbs.SendWR:
        """The request as it is now; not the one behind it."""
        core = self._core
        core.wr_id, core.opcode, core.send_flags = self.wr_id, self.opcode, self.send_flags
        core.num_sge, core.sg = self.num_sge, self.sg
        if self.opcode in _INVALIDATING:
            core.invalidate_rkey, core.imm_data = self.imm_data, 0
        else:
            core.imm_data = socket.ntohl(self.imm_data)
        return core

    def __str__(self) -> str:
        return lines("", self, ["wr_id", "num_sge", "opcode", "send_flags", "imm_data"])


def send_flags_to_str(flags: int) -> str:
    return "".join(f"{name} " for flag, name in _SEND_FLAGS.items() if flags & flag)
