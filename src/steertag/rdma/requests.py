"""Work requests on their way: as they wait in the send queue, as messages, as pending responses.

`wqe_of` turns what an application posted (`wr.SendWR`) into an entry of the send queue, and says
no to what can't be.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.rdma.constants import (
    SEND_INLINE,
    SEND_KNOWN,
    WC_OF_WR,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_BIND_MW,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_READ_WITH_INV,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
)
from steertag.rdma.memory import ATOMIC_LEN, StagTable, WindowBind
from steertag.wire import ddp, rdmap

if TYPE_CHECKING:
    from steertag.rdma.wr import SendWR

Sges = tuple[tuple[int, int, int], ...]


class Extra:
    """What a request of the rarer kinds carries besides.

    Attributes:
        inline: its payload, copied when it was posted; None where it lies in registered memory.
        stag: the STag that it invalidates.
        immediate: 32 bits for the peer.
        atomic: the Atomic Request, but for its identifier.
        bind: the window that it binds.
    """

    __slots__ = ("atomic", "bind", "immediate", "inline", "stag")

    def __init__(
        self,
        *,
        inline: bytes | bytearray | None = None,
        stag: int = 0,
        immediate: int = 0,
        atomic: rdmap.AtomicRequest | None = None,
        bind: WindowBind | None = None,
    ) -> None:
        self.inline = inline
        self.stag = stag
        self.immediate = immediate
        self.atomic = atomic
        self.bind = bind


# wr_id, opcode, flags, rkey, remote address, octets, local memory, what else.
Wqe = tuple[int, int, int, int, int, int, Sges, Extra | None]


class PendingRead:
    """An RDMA Read or atomic operation of ours that waits for its response.

    Attributes:
        lkey, addr, length: where the response goes.
        placed: octets of it that are there.
        done: all of it is.
        invalidate: `lkey` is invalidated then.
        identifier: of an Atomic Request; None for a Read.
    """

    __slots__ = ("addr", "done", "identifier", "invalidate", "length", "lkey", "placed")

    def __init__(
        self,
        lkey: int,
        addr: int,
        length: int,
        *,
        invalidate: bool = False,
        identifier: int | None = None,
    ) -> None:
        self.lkey = lkey
        self.addr = addr
        self.length = length
        self.placed = 0
        self.done = False
        self.invalidate = invalidate
        self.identifier = identifier


class AtomicTurn:
    """A peer's Atomic Request among the Reads to be answered; `value` is None until it is done."""

    __slots__ = ("request", "value")

    def __init__(self, request: rdmap.AtomicRequest) -> None:
        self.request = request
        self.value: int | None = None


_SEGMENT_ALIGN: Final = 64


class Message:
    """A message that is being cut into segments."""

    __slots__ = ("control", "msn", "position", "response", "stag", "to", "total", "wqe")

    def __init__(
        self,
        control: int,
        total: int,
        *,
        wqe: Wqe | None = None,
        response: rdmap.ReadRequest | None = None,
        stag: int = 0,
        to: int = 0,
        msn: int | None = None,
    ) -> None:
        self.control = control
        self.total = total
        self.wqe = wqe
        self.response = response
        self.stag = stag
        self.to = to
        self.msn = msn
        self.position = 0

    def segment_size(self, max_ulpdu: int) -> int:
        """Octets of payload in each segment but the last: segments of about the same size.

        A short last segment would cost as much as a long one; a multiple of 64 keeps the copies
        aligned and needs no PAD.
        """
        room = max_ulpdu - (ddp.TAGGED_LEN if self.msn is None else ddp.UNTAGGED_LEN)
        if self.total <= room:
            return room
        count = -(-self.total // room)
        even = -(-self.total // count)
        return min(room, -(-even // _SEGMENT_ALIGN) * _SEGMENT_ALIGN)


_ATOMIC_OF: Final = {
    WR_ATOMIC_CMP_AND_SWP: rdmap.AtomicOpcode.CMP_SWAP,
    WR_ATOMIC_FETCH_AND_ADD: rdmap.AtomicOpcode.FETCH_ADD,
    WR_ATOMIC_SWAP: rdmap.AtomicOpcode.SWAP,
}
_READS: Final = (WR_RDMA_READ, WR_RDMA_READ_WITH_INV)
_INLINE: Final = (WR_RDMA_WRITE, WR_RDMA_WRITE_WITH_IMM, WR_SEND, WR_SEND_WITH_INV)
_LOCAL: Final = (WR_LOCAL_INV, WR_BIND_MW)
_LAST: Final = 1 << 64


def wqe_of(
    wr: SendWR, flags: int, sges: Sges, table: StagTable, pd: int, max_inline: int, ord: int
) -> Wqe:
    """The entry of the send queue for a request.

    Raises:
        OSError: EINVAL for an opcode, flags, elements or operands that don't fit; EOPNOTSUPP for
            what iWARP has no message for.
    """
    opcode = wr.opcode
    if opcode not in WC_OF_WR:
        raise os_error(errno.EINVAL, f"work request opcode {opcode}")
    if flags & ~SEND_KNOWN:
        raise os_error(errno.EINVAL, f"send flags {flags:#x}")
    length = sum(size for _, size, _ in sges)
    if wr.inline_data is not None:
        if sges or opcode not in _INLINE:
            raise os_error(errno.EINVAL, "inline data is the payload of a Write or Send")
        flags, length = flags | SEND_INLINE, len(wr.inline_data)
    if length > 0xFFFFFFFF:
        raise os_error(errno.EINVAL, f"message of {length} octets")
    extra = None
    if opcode in _READS or opcode in _ATOMIC_OF:
        if len(sges) > 1:
            raise os_error(errno.EINVAL, "an iWARP RDMA Read has one local element")
        if not ord:
            raise os_error(errno.EINVAL, "the peer takes no Read Requests (ORD is 0)")
        if opcode in _ATOMIC_OF:
            extra = Extra(atomic=_atomic(wr, length))
    elif opcode in _LOCAL:
        if opcode == WR_BIND_MW and wr.bind is None:
            raise os_error(errno.EINVAL, "a bind without a memory window")
        stag = wr.invalidate_rkey if opcode == WR_LOCAL_INV else 0
        extra = Extra(stag=stag, bind=wr.bind if opcode == WR_BIND_MW else None)
        sges, length = (), 0
    elif opcode == WR_SEND_WITH_IMM:
        if length:
            raise os_error(
                errno.EOPNOTSUPP, "iWARP's Immediate Data is a message of its own, without payload"
            )
        extra = Extra(immediate=_immediate(wr))
    elif opcode in (WR_SEND_WITH_INV, WR_RDMA_WRITE_WITH_IMM):
        extra = Extra(
            stag=wr.invalidate_rkey if opcode == WR_SEND_WITH_INV else 0,
            immediate=_immediate(wr) if opcode == WR_RDMA_WRITE_WITH_IMM else 0,
        )
    if flags & SEND_INLINE and opcode in _INLINE:
        if length > max_inline:
            raise os_error(errno.EINVAL, f"inline data of {length} octets, at most {max_inline}")
        extra = extra or Extra()
        inline = wr.inline_data
        extra.inline = inline if inline is not None else _inline(sges, table, pd)
        sges = ()
    if wr.rkey >> 32 or wr.remote_addr < 0 or wr.remote_addr + length > _LAST:
        raise os_error(
            errno.EINVAL, f"{length} octets at remote address {wr.remote_addr}, rkey {wr.rkey}"
        )
    return wr.wr_id, opcode, flags, wr.rkey, wr.remote_addr, length, sges, extra


def _immediate(wr: SendWR) -> int:
    if wr.imm_data >> 32:
        raise os_error(errno.EINVAL, f"immediate data {wr.imm_data:#x}: it has 32 bits")
    return wr.imm_data


def _atomic(wr: SendWR, length: int) -> rdmap.AtomicRequest:
    """Its identifier is given when it is sent. Plain operations: no field inside the 64 bits."""
    if length != ATOMIC_LEN or wr.remote_addr % ATOMIC_LEN:
        raise os_error(errno.EINVAL, "an atomic operation is on 8 octets, aligned")
    if wr.compare_add >> 64 or wr.swap >> 64:
        raise os_error(errno.EINVAL, "operands of an atomic operation have 64 bits")
    opcode, every = _ATOMIC_OF[wr.opcode], rdmap.ALL_BITS
    compare = 0
    if opcode is rdmap.AtomicOpcode.FETCH_ADD:
        data, mask = wr.compare_add, 0
    else:
        data, mask = wr.swap, every
        compare = wr.compare_add if opcode is rdmap.AtomicOpcode.CMP_SWAP else 0
    # What an operation doesn't use is sent as RFC 7306 section 5.2.1 has it.
    return rdmap.AtomicRequest(opcode, 0, wr.rkey, wr.remote_addr, data, mask, compare, every)


def _inline(sges: Sges, table: StagTable, pd: int) -> bytes:
    """The payload as it is now. Its memory needn't be registered under the element's lkey: what
    lies at the address in any region of the domain is taken."""
    return b"".join(
        table.octets_at(addr, length, lkey, pd) for addr, length, lkey in sges if length
    )
