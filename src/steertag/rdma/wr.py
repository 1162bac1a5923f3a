"""Work requests as applications post them (`struct ibv_send_wr`, `ibv_recv_wr`, `ibv_sge`).

Call shapes are pyverbs'. A request is read when it is posted; the objects are the caller's to
change and post again right after.
"""

from __future__ import annotations

from collections.abc import Sequence

from steertag.rdma.constants import SEND_SIGNALED, WR_RDMA_WRITE
from steertag.rdma.memory import WindowBind


class SGE:
    """A scatter/gather element: `length` octets at tagged offset `addr` of the region `lkey`."""

    __slots__ = ("addr", "length", "lkey")

    def __init__(self, addr: int = 0, length: int = 0, lkey: int = 0) -> None:
        self.addr = addr
        self.length = length
        self.lkey = lkey

    def __repr__(self) -> str:
        return f"SGE(addr={self.addr:#x}, length={self.length}, lkey={self.lkey:#x})"


class SendWR:
    """A request for the send queue.

    Args:
        wr_id: given back in the completion.
        num_sge: elements of `sg` that count; None means all of them.
        sg: the local memory: source of a Write or Send, sink of a Read or atomic operation.
        opcode: `IBV_WR_*`.
        send_flags: `IBV_SEND_*`; without `IBV_SEND_SIGNALED` only a failure completes visibly.
        next_wr: the next request of a list that is posted by one call.
        rkey, remote_addr: the peer's memory; also set by `set_wr_rdma`.
        imm_data: 32 bits for the peer, with `..._WITH_IMM`.
        invalidate_rkey: the peer's STag that `SEND_WITH_INV` ends, or our own for `LOCAL_INV`.
        compare_add, swap: operands of atomic operations; also set by `set_wr_atomic`.
        bind: what `BIND_MW` binds.
        inline_data: the payload itself, in the place of `sg`.
    """

    __slots__ = (
        "bind",
        "compare_add",
        "imm_data",
        "inline_data",
        "invalidate_rkey",
        "next_wr",
        "num_sge",
        "opcode",
        "remote_addr",
        "rkey",
        "send_flags",
        "sg",
        "swap",
        "wr_id",
    )

    def __init__(
        self,
        wr_id: int = 0,
        num_sge: int | None = None,
        sg: Sequence[SGE] | None = None,
        opcode: int = WR_RDMA_WRITE,
        send_flags: int = SEND_SIGNALED,
        next_wr: SendWR | None = None,
        imm_data: int = 0,
        *,
        rkey: int = 0,
        remote_addr: int = 0,
        invalidate_rkey: int = 0,
        compare_add: int = 0,
        swap: int = 0,
        bind: WindowBind | None = None,
        inline_data: bytes | bytearray | None = None,
    ) -> None:
        self.wr_id = wr_id
        self.sg: Sequence[SGE] = sg if sg is not None else ()
        self.num_sge = num_sge
        self.opcode = opcode
        self.send_flags = send_flags
        self.next_wr = next_wr
        self.rkey = rkey
        self.remote_addr = remote_addr
        self.imm_data = imm_data
        self.invalidate_rkey = invalidate_rkey
        self.compare_add = compare_add
        self.swap = swap
        self.bind = bind
        self.inline_data = inline_data

    def set_wr_rdma(self, rkey: int, addr: int) -> None:
        """Name the peer's memory of a Write or Read."""
        self.rkey = rkey
        self.remote_addr = addr

    def set_wr_atomic(self, rkey: int, addr: int, compare_add: int, swap: int = 0) -> None:
        """Name the peer's 8 octets, and the operands: what is added, or compared, and swapped in.

        IBV_WR_ATOMIC_SWAP swaps in `swap` whatever is there.
        """
        self.rkey = rkey
        self.remote_addr = addr
        self.compare_add = compare_add
        self.swap = swap


class RecvWR:
    """A request for the receive queue: where one inbound Send goes."""

    __slots__ = ("next_wr", "num_sge", "sg", "wr_id")

    def __init__(
        self,
        wr_id: int = 0,
        num_sge: int | None = None,
        sg: Sequence[SGE] | None = None,
        next_wr: RecvWR | None = None,
    ) -> None:
        self.wr_id = wr_id
        self.sg: Sequence[SGE] = sg if sg is not None else ()
        self.num_sge = num_sge
        self.next_wr = next_wr
