"""The sending half of a queue pair: work requests in, FPDUs out (Linux: siw_qp_tx.c).

A frame leaves as parts (header, views of registered memory, trailer) that one `sendmsg` gathers;
payload is not copied. Only where parts are small are they joined, since a copy of a few octets
costs less than an entry of a scatter/gather list.

Order: requests are emitted in the order they were posted and complete in that order. Read
Responses that the peer asked for take turns with them, a message each.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    SEND_FENCE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WC_OF_WR,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WcStatus,
)
from steertag.rdma.counters import Counters
from steertag.rdma.cq import WC
from steertag.rdma.memory import LocalProtectionError, StagTable
from steertag.wire import ddp, rdmap
from steertag.wire.crc32c import CRC_FIELD, crc32c
from steertag.wire.mpa import MAX_ULPDU

Buffer = bytes | bytearray | memoryview
Sges = tuple[tuple[int, int, int], ...]
# wr_id, opcode, flags, rkey, remote address, octets, local memory.
Wqe = tuple[int, int, int, int, int, int, Sges]

GATHER_OCTETS: Final = 1 << 20
"""Octets emitted at most for one call to the stream: enough that its cost is spread thin."""
MAX_PARTS: Final = 960
"""Parts for one call: below Linux's IOV_MAX of 1024, with room for the last FPDU's."""
SMALL: Final = 1024
"""Octets of a Write up to which its payload is copied into one buffer with its header: a copy of
so little costs less than three entries of a scatter/gather list."""
_SEGMENT_ALIGN: Final = 64

_TAGGED: Final = struct.Struct("!HBBIQ")
_UNTAGGED: Final = struct.Struct("!HBBIIII")
_CTL_TAGGED: Final = ddp.T_FLAG | ddp.VERSION
_CTL_TAGGED_LAST: Final = _CTL_TAGGED | ddp.L_FLAG
_CTL_UNTAGGED: Final = ddp.VERSION
_CTL_UNTAGGED_LAST: Final = _CTL_UNTAGGED | ddp.L_FLAG
_OP_WRITE: Final = rdmap.control(rdmap.Opcode.WRITE)
_OP_READ_RESPONSE: Final = rdmap.control(rdmap.Opcode.READ_RESPONSE)
_OP_READ_REQUEST: Final = rdmap.control(rdmap.Opcode.READ_REQUEST)
_OP_SEND: Final = rdmap.control(rdmap.Opcode.SEND)
_OP_SEND_SE: Final = rdmap.control(rdmap.Opcode.SEND_SE)
_OP_TERMINATE: Final = rdmap.control(rdmap.Opcode.TERMINATE)
_PADS: Final = (b"", b"\0", b"\0\0", b"\0\0\0")
_NO_CRC: Final = tuple(pad + bytes(4) for pad in _PADS)
_MSN_MASK: Final = 0xFFFFFFFF
_TAGGED_LEN: Final = ddp.TAGGED_LEN
_SUCCESS: Final = WcStatus.SUCCESS
_LAST_SAFE_TO: Final = (1 << 64) - SMALL


class PendingRead:
    """An RDMA Read of ours that waits for its Read Response."""

    __slots__ = ("addr", "done", "length", "lkey", "placed")

    def __init__(self, lkey: int, addr: int, length: int) -> None:
        self.lkey = lkey
        self.addr = addr
        self.length = length
        self.placed = 0
        self.done = False


# Stream position behind its last octet, wr_id, opcode, flags, octets, read, status.
_Unfinished = tuple[int, int, int, int, int, PendingRead | None, WcStatus]


class _Message:
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
        room = max_ulpdu - (_TAGGED_LEN if self.msn is None else ddp.UNTAGGED_LEN)
        if self.total <= room:
            return room
        count = -(-self.total // room)
        even = -(-self.total // count)
        return min(room, -(-even // _SEGMENT_ALIGN) * _SEGMENT_ALIGN)


class Transmitter:
    """Args:
    qp_num: number of the queue pair, for completions.
    pd: its protection domain.
    table: the RNIC's regions.
    complete: takes each completion of a work request.
    local_fault: called when a request names local memory that it may not touch.
    counters: where to count.
    """

    def __init__(
        self,
        qp_num: int,
        pd: int,
        table: StagTable,
        complete: Callable[[WC], None],
        local_fault: Callable[[LocalProtectionError], None],
        counters: Counters,
    ) -> None:
        self._qp_num = qp_num
        self._pd = pd
        self._table = table
        self._complete = complete
        self._local_fault = local_fault
        self._counters = counters
        self.crc = True
        self.held = False
        self.ord = 0
        self.max_ulpdu = MAX_ULPDU - 1
        self.sq: deque[Wqe] = deque()
        self.responses: deque[rdmap.ReadRequest] = deque()
        self.reads: deque[PendingRead] = deque()
        self._unfinished: deque[_Unfinished] = deque()
        self._message: _Message | None = None
        self._terminate: bytes | None = None
        self._response_last = False
        self._send_msn = 1
        self._read_msn = 1
        self._parts: list[Buffer] = []
        self._part_octets = 0
        self._small: list[Buffer] = []
        self._small_octets = 0
        self._emitted = 0
        self._sent = 0

    # -- what the application posts ------------------------------------------------------------

    def depth(self) -> int:
        """Requests posted and not completed."""
        current = self._message is not None and self._message.wqe is not None
        return len(self.sq) + len(self._unfinished) + current

    @property
    def idle(self) -> bool:
        """Nothing is left to send, and no Read Response is waited for."""
        return self._sent == self._emitted and not self.pending() and not self.reads

    def write_now(
        self, wr_id: int, flags: int, rkey: int, remote_addr: int, sge: tuple[int, int, int]
    ) -> bool:
        """Frame a small RDMA Write as it is posted: what message rate and latency depend on.

        False where it has to wait its turn in the send queue, or isn't plain: other work is
        before it, or it names memory that it may not read or that can't be.
        """
        addr, length, lkey = sge
        region = self._table.regions.get(lkey)
        if (
            self.sq
            or self.responses
            or self.held
            or self._message is not None
            or self._terminate is not None
            or self._emitted - self._sent > GATHER_OCTETS
            or remote_addr > _LAST_SAFE_TO
            or region is None
            or region.pd != self._pd
            or (offset := addr - region.base) < 0
            or offset + length > region.length
            or (flags & SEND_FENCE and self.reads)
        ):
            return False
        view = region.view[offset : offset + length]
        ulpdu = length + _TAGGED_LEN
        try:
            header = _TAGGED.pack(ulpdu, _CTL_TAGGED_LAST, _OP_WRITE, rkey, remote_addr)
        except struct.error:
            return False
        pad = -(ulpdu + 2) & 3
        if not self.crc:
            trailer = _NO_CRC[pad]
        elif pad:
            value = crc32c(_PADS[pad], crc32c(view, crc32c(header)))
            trailer = _PADS[pad] + CRC_FIELD.pack(value)
        else:
            trailer = CRC_FIELD.pack(crc32c(view, crc32c(header)))
        self._small += (header, view, trailer)
        self._small_octets += length
        self._emitted = end = self._emitted + ulpdu + pad + 6
        self._unfinished.append((end, wr_id, WR_RDMA_WRITE, flags, length, None, _SUCCESS))
        return True

    def _join_small(self) -> None:
        """Make one part of the small Writes that were framed since the last call."""
        small = self._small
        octets = b"".join(small)
        self._parts.append(octets)
        self._part_octets += len(octets)
        self._counters.staged_bytes += self._small_octets
        self._counters.tx_fpdus += len(small) // 3
        self._small = []
        self._small_octets = 0

    # -- what goes to the stream ---------------------------------------------------------------

    def pending(self) -> bool:
        """Whether `data_to_send` would give something."""
        if self._small or self._parts or self._terminate is not None:
            return True
        if self.held:
            return False
        if self._message is not None or self.responses:
            return True
        return bool(self.sq) and not self._stalled(self.sq[0])

    def data_to_send(self) -> list[Buffer]:
        """The parts that the next `sendmsg` gathers: the same until `sent` takes from them.

        Empty where there is nothing to send for now.
        """
        if self._small and len(self._parts) < MAX_PARTS:
            self._join_small()
        elif not self._parts and self.pending():
            self._gather()
        return self._parts

    def sent(self, octets: int) -> bool:
        """The stream took `octets` of what `data_to_send` gave. True where there is more."""
        self._sent += octets
        self._counters.tx_bytes += octets
        if octets == self._part_octets:
            self._parts = []
            self._part_octets = 0
        else:
            self._drop(octets)
        if self._unfinished:
            self.complete_ready()
        return self.pending()

    def _drop(self, octets: int) -> None:
        """Forget the first `octets` of the parts: they are sent."""
        parts = self._parts
        self._part_octets -= octets
        whole = 0
        while octets >= len(parts[whole]):
            octets -= len(parts[whole])
            whole += 1
        del parts[:whole]
        parts[0] = memoryview(parts[0])[octets:]

    def complete_ready(self) -> None:
        """Complete, in order, the requests that are done."""
        unfinished, sent = self._unfinished, self._sent
        while unfinished:
            end, wr_id, opcode, flags, length, read, status = unfinished[0]
            if end > sent or (read is not None and not read.done):
                return
            unfinished.popleft()
            if flags & SEND_SIGNALED or status is not WcStatus.SUCCESS:
                self._complete(WC(wr_id, status, WC_OF_WR[opcode], length, self._qp_num))

    def flush(self, read_status: WcStatus, vendor_err: int) -> None:
        """Complete every request that is left: the stream is gone.

        What was handed to the stream whole keeps its own status; the oldest Read that waits for
        its response gets `read_status`, everything else WR_FLUSH_ERR.
        """
        if self._message is not None and self._message.wqe is not None:
            self.sq.appendleft(self._message.wqe)
        self._message = None
        self.complete_ready()
        for end, wr_id, opcode, flags, length, read, status in self._unfinished:
            done = end <= self._sent and (read is None or read.done)
            if not done and status is WcStatus.SUCCESS:
                status = WcStatus.WR_FLUSH_ERR
                if read is not None:
                    status, read_status = read_status, WcStatus.WR_FLUSH_ERR
            if flags & SEND_SIGNALED or status is not WcStatus.SUCCESS:
                wc = WC(wr_id, status, WC_OF_WR[opcode], length, self._qp_num, vendor_err)
                self._complete(wc)
        self._unfinished.clear()
        for wr_id, opcode, _, _, _, _, _ in self.sq:
            wc = WC(wr_id, WcStatus.WR_FLUSH_ERR, WC_OF_WR[opcode], 0, self._qp_num, vendor_err)
            self._complete(wc)
        self.sq.clear()
        self.reads.clear()
        self.responses.clear()
        self._parts = []
        self._part_octets = 0
        self._small = []
        self._terminate = None

    def terminate(self, payload: bytes) -> None:
        """Send a Terminate behind what is already framed, and nothing after it.

        Requests that are left, the one that is being cut too, wait to be flushed.
        """
        if self._terminate is None:
            self._terminate = payload
            self.responses.clear()
            self.held = True

    def detach(self, owner: object) -> None:
        """Replace views of `owner`'s memory among the parts by copies: it is being deregistered."""
        self._parts = _owned(self._parts, owner)
        self._small = _owned(self._small, owner)

    # -- emission ------------------------------------------------------------------------------

    def _stalled(self, wqe: Wqe) -> bool:
        if wqe[1] == WR_RDMA_READ:
            return len(self.reads) >= self.ord
        return bool(wqe[2] & SEND_FENCE) and bool(self.reads)

    def _gather(self) -> None:
        before = self._emitted
        parts = self._parts
        if not self.held:
            try:
                self._gather_messages(parts)
            except LocalProtectionError as exc:
                self._local_fault(exc)
        if self._terminate is not None:
            header = _UNTAGGED.pack(
                ddp.UNTAGGED_LEN + len(self._terminate),
                _CTL_UNTAGGED_LAST,
                _OP_TERMINATE,
                0,
                rdmap.QN_TERMINATE,
                1,
                0,
            )
            self._frame(parts, header, [memoryview(self._terminate)])
            self._terminate = None
            self._counters.terminates_sent += 1
        self._part_octets = self._emitted - before

    def _gather_messages(self, parts: list[Buffer]) -> None:
        """Emit messages and pieces of messages until there is enough for one call."""
        limit = self._emitted + GATHER_OCTETS
        while self._emitted < limit and len(parts) < MAX_PARTS and self._terminate is None:
            if self._message is None and not self._next_message(parts):
                return
            if self._message is not None:
                self._segments(parts, self._message, limit)

    def _next_message(self, parts: list[Buffer]) -> bool:
        """Begin the next message. False where there is none, or none that may go now."""
        sq = self.sq
        blocked = not sq or self._stalled(sq[0])
        if self.responses and (blocked or not self._response_last):
            request = self.responses.popleft()
            self._response_last = True
            self._message = _Message(
                _OP_READ_RESPONSE,
                request.size,
                response=request,
                stag=request.sink_stag,
                to=request.sink_to,
            )
            return True
        if blocked:
            return False
        self._response_last = False
        wqe = sq[0]
        _, opcode, flags, rkey, remote_addr, length, _ = wqe
        if opcode == WR_RDMA_READ:
            self._read_request(parts, wqe)
            return True
        sq.popleft()
        if opcode == WR_RDMA_WRITE:
            self._message = _Message(_OP_WRITE, length, wqe=wqe, stag=rkey, to=remote_addr)
        else:
            control = _OP_SEND_SE if flags & SEND_SOLICITED else _OP_SEND
            self._message = _Message(control, length, wqe=wqe, msn=self._send_msn)
            self._send_msn = (self._send_msn + 1) & _MSN_MASK
        return True

    def _local(self, wqe: Wqe, addr: int, length: int, lkey: int, right: int = 0) -> memoryview:
        """`StagTable.local_view`; on failure `wqe` (still on the queue, or the message) is done."""
        try:
            return self._table.local_view(lkey, self._pd, addr, length, right)
        except LocalProtectionError:
            if self._message is not None:
                self._message = None
            else:
                self.sq.popleft()
            wr_id, opcode, flags = wqe[:3]
            self._unfinished.append(
                (self._emitted, wr_id, opcode, flags, 0, None, WcStatus.LOC_PROT_ERR)
            )
            raise

    def _read_request(self, parts: list[Buffer], wqe: Wqe) -> None:
        wr_id, opcode, flags, rkey, remote_addr, length, sges = wqe
        addr, _, lkey = sges[0] if length else (0, 0, 0)
        if length:
            self._local(wqe, addr, length, lkey, ACCESS_LOCAL_WRITE)
        self.sq.popleft()
        request = rdmap.ReadRequest(lkey, addr, length, rkey, remote_addr).emit()
        header = _UNTAGGED.pack(
            ddp.UNTAGGED_LEN + len(request),
            _CTL_UNTAGGED_LAST,
            _OP_READ_REQUEST,
            0,
            rdmap.QN_READ_REQUEST,
            self._read_msn,
            0,
        )
        self._read_msn = (self._read_msn + 1) & _MSN_MASK
        self._frame(parts, header + request, [])
        read = PendingRead(lkey, addr, length)
        self.reads.append(read)
        self._unfinished.append(
            (self._emitted, wr_id, opcode, flags, length, read, WcStatus.SUCCESS)
        )

    def _segments(self, parts: list[Buffer], message: _Message, limit: int) -> None:
        """Emit the message's next segments, until its end or until there is enough."""
        total, position = message.total, message.position
        step = message.segment_size(self.max_ulpdu)
        crc, control = self.crc, message.control
        emitted = self._emitted
        source = self._source(message, min(total - position, limit - emitted + step))
        at = 0
        while True:
            size = min(step, total - position)
            last = position + size == total
            if message.msn is None:
                header = _TAGGED.pack(
                    size + _TAGGED_LEN,
                    _CTL_TAGGED_LAST if last else _CTL_TAGGED,
                    control,
                    message.stag,
                    message.to + position,
                )
            else:
                header = _UNTAGGED.pack(
                    size + ddp.UNTAGGED_LEN,
                    _CTL_UNTAGGED_LAST if last else _CTL_UNTAGGED,
                    control,
                    0,
                    rdmap.QN_SEND,
                    message.msn,
                    position,
                )
            if len(source) == 1:
                payload = source[0][at : at + size]
                pad = -(size + len(header)) & 3
                if crc and not pad:
                    trailer = CRC_FIELD.pack(crc32c(payload, crc32c(header)))
                else:
                    trailer = self._trailer(header, (payload,), pad)
                parts += (header, payload, trailer)
                self._emitted += len(header) + size + pad + 4
                self._counters.tx_fpdus += 1
            else:
                self._frame(parts, header, _cut(source, at, size))
            position += size
            at += size
            if last or self._emitted >= limit or len(parts) >= MAX_PARTS:
                break
        message.position = position
        if last:
            self._message = None
            if message.wqe is not None:
                wr_id, opcode, flags = message.wqe[:3]
                self._unfinished.append(
                    (self._emitted, wr_id, opcode, flags, total, None, WcStatus.SUCCESS)
                )

    def _source(self, message: _Message, octets: int) -> list[memoryview]:
        """Views of the message's next `octets`; checked anew each time: a region may have been
        deregistered meanwhile."""
        if not octets:
            return []
        request, wqe = message.response, message.wqe
        if request is not None:
            region = self._table.regions.get(request.source_stag)
            if region is None or region.pd != self._pd:
                self._message = None
                raise LocalProtectionError("the source of a Read Response was deregistered")
            offset = request.source_to - region.base + message.position
            return [region.view[offset : offset + octets]]
        assert wqe is not None
        views: list[memoryview] = []
        skip = message.position
        for addr, length, lkey in wqe[6]:
            if skip >= length:
                skip -= length
                continue
            take = min(length - skip, octets)
            if not take:
                break
            views.append(self._local(wqe, addr + skip, take, lkey))
            octets -= take
            skip = 0
        return views

    def _frame(self, parts: list[Buffer], header: bytes, payload: list[memoryview]) -> None:
        """Append the FPDU of `header` (its MPA length included) and `payload`."""
        size = len(header) + sum(map(len, payload))
        pad = -size & 3
        trailer = self._trailer(header, payload, pad)
        parts.append(header)
        parts += payload
        parts.append(trailer)
        self._counters.tx_fpdus += 1
        self._emitted += size + pad + 4

    def _trailer(self, header: bytes, payload: Iterable[memoryview], pad: int) -> bytes:
        if not self.crc:
            return _NO_CRC[pad]
        value = crc32c(header)
        for view in payload:
            value = crc32c(view, value)
        if pad:
            value = crc32c(_PADS[pad], value)
        return _PADS[pad] + CRC_FIELD.pack(value)


def _owned(parts: list[Buffer], owner: object) -> list[Buffer]:
    """`parts` with copies in the place of views of `owner`'s memory."""
    return [
        bytes(part) if isinstance(part, memoryview) and part.obj is owner else part
        for part in parts
    ]


def _cut(source: list[memoryview], at: int, size: int) -> list[memoryview]:
    """`size` octets from `at` on of the concatenation of `source`."""
    views: list[memoryview] = []
    for view in source:
        if at >= len(view):
            at -= len(view)
            continue
        take = min(len(view) - at, size)
        if not take:
            break
        views.append(view[at : at + take])
        size -= take
        at = 0
    return views
