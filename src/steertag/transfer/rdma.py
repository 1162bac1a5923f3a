"""The two RDMA paths: file data over an RDMA connection of its own, beside the control connection.

The sender reads the file into a ring of registered slots. With rdma-write it RDMA-Writes each slot
to the slot's place in the receiver's file, which the receiver has mapped and registered; with
rdma-read it announces the slot and the receiver RDMA-Reads it into place. Either way the octets go
from the socket into the mapped file by the system call that receives them.

Small Sends of one fixed format steer this:

    +------+------+-------------+---------------------------+
    | kind | slot |  reserved   |           length          |
    +------+------+-------------+---------------------------+
    |                        offset                         |
    +-------------------------------------------------------+
    |                        address                        |
    +---------------------------+---------------------------+
    |            rkey           |          reserved         |
    +---------------------------+---------------------------+

Each side sends one OPEN; a receiver's names its region for rdma-write. Then the sender sends a
CHUNK for each slot that is in place (or ready to be fetched), and the receiver, for every few of
them and at the end, an ACK with the offset up to which it is done, which frees the slots below it.
iWARP has no flow control for Sends: one without a posted receive ends the connection. The window
bounds them: at most `WINDOW` CHUNKs, and fewer ACKs, are under way, and more receives than that are
posted.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from steertag import socket
from steertag import verbs as v
from steertag.errors import WireError
from steertag.family.stack import Stack
from steertag.transfer.auth import BINDING_OCTETS, SESSION_OCTETS
from steertag.transfer.digest import Hasher
from steertag.transfer.errors import PathCode, PathFailed, from_os_error
from steertag.transfer.paths import Capability, PathName
from steertag.transfer.report import Meter
from steertag.transfer.store import Sink, Source
from steertag.transfer.stream import shut

WINDOW: Final = 8
"""Slots of the sender's ring, and so chunks under way."""
SLOT: Final = 1024 * 1024
"""Octets of a slot, and so of a chunk at most."""

MESSAGE: Final = Struct(">BBHIQQII")
ACK_EVERY: Final = WINDOW // 2
"""Chunks per ACK: each costs a system call and wakes the sender; the window must not run dry."""
_SPARE: Final = 4
_MADV_POPULATE_READ: Final = 22
_PREFAULT_STEP: Final = 4 * SLOT
_SLICE: Final = 0.25
_READ_WR: Final = 1 << 32
"""Work request identifiers: receives have their buffer's number, Reads this and their slot."""

Progress = Callable[[int], None]
Interrupt = Callable[[], None]
"""Looks whether the control connection has something to say, and raises what it says."""


_TICKET: Final = Struct(f">4s{SESSION_OCTETS}sQ{BINDING_OCTETS}s")
_TICKET_MARK: Final = b"stag"


@dataclass(frozen=True, slots=True)
class Ticket:
    """The private data of an RDMA connection: which session's, which attempt's, and the proof."""

    session: bytes
    serial: int
    binding: bytes

    def pack(self) -> bytes:
        return _TICKET.pack(_TICKET_MARK, self.session, self.serial, self.binding)

    @staticmethod
    def parse(octets: bytes) -> Ticket:
        """The ticket that `octets` are; raises WireError only."""
        if len(octets) != _TICKET.size or not octets.startswith(_TICKET_MARK):
            raise WireError("the private data is no ticket of a stag session")
        return Ticket(*_TICKET.unpack(octets)[1:])


class Step(IntEnum):
    """The kind of a message."""

    OPEN = 1
    CHUNK = 2
    ACK = 3


@dataclass(frozen=True, slots=True)
class Note:
    """One message. Fields that a kind does not need are 0."""

    kind: Step
    slot: int = 0
    length: int = 0
    offset: int = 0
    address: int = 0
    rkey: int = 0


def pack_note(note: Note) -> bytes:
    """`note` on the wire."""
    return MESSAGE.pack(
        note.kind, note.slot, 0, note.length, note.offset, note.address, note.rkey, 0
    )


def parse_note(octets: bytes) -> Note:
    """The message that `octets` are; raises WireError only."""
    if len(octets) != MESSAGE.size:
        raise WireError(f"a message of {len(octets)} octets, not {MESSAGE.size}")
    kind, slot, _, length, offset, address, rkey, _ = MESSAGE.unpack(octets)
    try:
        step = Step(kind)
    except ValueError:
        raise WireError(f"unknown kind of message {kind:#04x}") from None
    if slot >= WINDOW or length > SLOT:
        raise WireError(f"slot {slot} and length {length} are out of bounds")
    return Note(step, slot, length, offset, address, rkey)


def capability(stack: Stack | None = None) -> Capability:
    """Whether this side can open an RNIC over `stack` (None: the default one)."""
    try:
        v.Context(stack=stack, progress="caller").close()
    except OSError as error:
        return Capability(False, error.strerror or str(error))
    return Capability(True)


_CODES: Final = {
    "rejected": PathCode.REFUSED,
    "timeout": PathCode.TIMEOUT,
    "closed": PathCode.RESET,
    "lost": PathCode.RESET,
}


def _refused(error: OSError) -> PathFailed:
    code = _CODES.get(getattr(error, "code", ""), PathCode.GARBLED)
    return PathFailed(code, f"RDMA connection failed: {error.strerror or error}")


def _garbled(error: WireError) -> PathFailed:
    return PathFailed(PathCode.GARBLED, f"the RDMA connection is garbled: {error}")


class End:
    """One end of an RDMA connection, with a Context of its own that this thread drives.

    Args:
        sock: a connected stream socket; the connection's from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._adopted = False
        self._context = v.Context(stack=sock.kernel.stack, progress="caller")
        self.pd = v.PD(self._context)
        cap = v.QPCap(max_send_wr=4 * WINDOW, max_recv_wr=WINDOW + _SPARE)
        self.cq = v.CQ(self._context, 8 * WINDOW)
        init = v.QPInitAttr(scq=self.cq, rcq=self.cq, cap=cap, sq_sig_all=False)
        self._cmid = v.CMID(None, init, self.pd)
        self._metered = (0, 0)

    def connect(self, private_data: bytes, timeout: float) -> None:
        """Set the connection up as the active side. Raises PathFailed."""
        self._prepare()
        try:
            self._cmid.adopt_active(self._take(), self._param(private_data), timeout)
        except OSError as error:
            raise _refused(error) from error

    def request(self, timeout: float) -> bytes:
        """Wait for the peer's request; its private data. Raises PathFailed."""
        try:
            self._cmid.adopt_passive(self._take(), timeout)
        except OSError as error:
            raise _refused(error) from error
        return self._cmid.private_data

    def accept(self) -> None:
        """Accept the request. Raises PathFailed."""
        self._prepare()
        try:
            self._cmid.accept(self._param(b""))
        except OSError as error:
            raise _refused(error) from error

    def reject(self) -> None:
        """Turn the request down."""
        self._cmid.reject(b"unknown session")
        self._cmid.disconnect()

    def _take(self) -> socket.socket:
        self._adopted = True
        return self._sock

    def shutdown(self) -> None:
        """Make this connection end soon; safe from another thread."""
        shut(self._sock)

    @staticmethod
    def _param(private_data: bytes) -> v.ConnParam:
        return v.ConnParam(
            responder_resources=WINDOW,
            initiator_depth=WINDOW,
            private_data=private_data,
            # Both sides digest every octet from file to file, which a CRC of the way between
            # would only repeat, for a fifth of the CPU time.
            crc=False,
        )

    def _prepare(self) -> None:
        """Make the QP and post its receives, before anything can arrive."""
        self.qp = self._cmid.create_qp()
        receives = WINDOW + _SPARE
        self._notes = v.MR(
            self.pd, (receives + WINDOW + 1) * MESSAGE.size, v.IBV_ACCESS_LOCAL_WRITE
        )
        self._first_send = receives
        for number in range(receives):
            self._post_receive(number)

    def _sge(self, number: int) -> v.SGE:
        size = MESSAGE.size
        return v.SGE(self._notes.buf + number * size, size, self._notes.lkey)

    def _post_receive(self, number: int) -> None:
        self.qp.post_recv(v.RecvWR(wr_id=number, sg=[self._sge(number)]))

    def send(self, note: Note, before: v.SendWR | None = None) -> None:
        """Send `note`, with one doorbell behind `before`. Raises PathFailed."""
        # An OPEN has a place of its own; a slot's next message follows its last one's answer.
        number = self._first_send + (WINDOW if note.kind is Step.OPEN else note.slot)
        self._notes.write(pack_note(note), MESSAGE.size, number * MESSAGE.size)
        wr = v.SendWR(opcode=v.IBV_WR_SEND, sg=[self._sge(number)], send_flags=0)
        self.post(wr if before is None else [before, wr])

    def post(self, wr: v.SendWR | list[v.SendWR]) -> None:
        """Post to the send queue. Raises PathFailed."""
        try:
            self.qp.post_send(wr)
        except OSError as error:
            raise self._broken() from error

    def completions(self, idle: float, interrupt: Interrupt) -> list[v.WC]:
        """Wait for completions, `idle` seconds at most without any octet moving.

        Raises:
            PathFailed: the connection ended or nothing moved.
        """
        counters = self.qp.counters
        moved, since = -1, time.monotonic()
        while not (found := self.cq.wait(4 * WINDOW, _SLICE)):
            now = counters.rx_bytes + counters.tx_bytes
            if now != moved:
                moved, since = now, time.monotonic()
                continue
            interrupt()
            if time.monotonic() - since > idle:
                reason = f"the RDMA connection stood still for {idle:g} s"
                raise PathFailed(PathCode.STALLED, reason)
        if any(wc.status != v.IBV_WC_SUCCESS for wc in found):
            raise self._broken()
        return found

    def note(self, wc: v.WC) -> Note:
        """The message of a completed receive, whose buffer is posted again."""
        octets = self._notes.read(wc.byte_len, wc.wr_id * MESSAGE.size)
        self._post_receive(wc.wr_id)
        return parse_note(octets)

    def _broken(self) -> PathFailed:
        reason = self.qp.end_reason or "the connection ended"
        return PathFailed(PathCode.LOST, f"the RDMA connection broke: {reason}")

    def account(self, meter: Meter) -> None:
        """Add what this end has spent since the last time to `meter`."""
        counters = self.qp.counters
        now = (counters.syscalls + self._context.loop.waits, counters.staged_bytes)
        meter.syscalls += now[0] - self._metered[0]
        meter.staged_bytes += now[1] - self._metered[1]
        self._metered = now

    def close(self) -> None:
        """Close the connection and give everything back."""
        if not self._adopted:
            self._sock.close()
        self._context.close()

    def __enter__(self) -> End:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Job:
    """What an RDMA attempt needs beside its end.

    Attributes:
        path: rdma-write or rdma-read.
        idle: seconds that nothing may move.
        interrupt: called when nothing moves, to listen to the control connection.
    """

    path: PathName
    hasher: Hasher
    meter: Meter
    progress: Progress
    idle: float
    interrupt: Interrupt


def send(end: End, source: Source, job: Job) -> None:
    """Send the whole of `source`.

    Raises:
        PathFailed: the connection does not carry it, or garbles it.
        TransferError: the source cannot be read or shrank.
    """
    try:
        with _ring(end, job.path) as (ring, slots):
            _Sender(end, source, job, ring, slots).run()
    except WireError as error:
        raise _garbled(error) from error
    finally:
        end.account(job.meter)


@contextmanager
def _ring(end: End, path: PathName) -> Iterator[tuple[v.MR, list[memoryview]]]:
    access = v.IBV_ACCESS_LOCAL_WRITE
    if path is PathName.RDMA_READ:
        access |= v.IBV_ACCESS_REMOTE_READ
    memory = memoryview(mmap.mmap(-1, WINDOW * SLOT))
    with v.MR(end.pd, memory, access) as ring:
        yield ring, [memory[number * SLOT : (number + 1) * SLOT] for number in range(WINDOW)]


class _Sender:
    def __init__(
        self, end: End, source: Source, job: Job, ring: v.MR, slots: list[memoryview]
    ) -> None:
        self._end = end
        self._source = source
        self._job = job
        self._ring = ring
        self._slots = slots
        self._free = list(range(WINDOW))
        self._under_way: deque[tuple[int, int]] = deque()
        """Slots, and the offset at which each one's chunk ends."""
        self._acknowledged = 0
        self._peer: Note | None = None

    def run(self) -> None:
        self._end.send(Note(Step.OPEN))
        size = self._source.size
        offset = 0
        while self._peer is None or self._acknowledged < size:
            while self._peer is not None and self._free and offset < size:
                offset += self._send_chunk(self._free.pop(), offset, self._peer)
            for wc in self._end.completions(self._job.idle, self._job.interrupt):
                if wc.opcode == v.IBV_WC_RECV:
                    self._handle(self._end.note(wc))

    def _send_chunk(self, slot: int, offset: int, peer: Note) -> int:
        length = min(SLOT, self._source.size - offset)
        self._under_way.append((slot, offset + length))
        self._read(self._slots[slot][:length], offset)
        local = self._ring.buf + slot * SLOT
        note = Note(Step.CHUNK, slot, length, offset, local, self._ring.rkey)
        write = None
        if self._job.path is PathName.RDMA_WRITE:
            write = v.SendWR(
                opcode=v.IBV_WR_RDMA_WRITE,
                sg=[v.SGE(local, length, self._ring.lkey)],
                send_flags=0,
                rkey=peer.rkey,
                remote_addr=peer.address + offset,
            )
        self._end.send(note, write)
        return length

    def _read(self, view: memoryview, offset: int) -> None:
        self._job.meter.syscalls += 1
        try:
            count = os.preadv(self._source.fd, [view], offset)
        except OSError as error:
            raise from_os_error(error, self._source.name) from error
        if count < len(view):
            raise self._source.changed(f"shrank below {offset + len(view)} octets")
        self._job.hasher.update(view)

    def _handle(self, note: Note) -> None:
        if note.kind is Step.OPEN and self._peer is None:
            self._peer = note
        elif note.kind is Step.ACK and self._under_way:
            self._free_below(note.offset)
        else:
            raise WireError(f"{note.kind.name} out of turn")

    def _free_below(self, offset: int) -> None:
        while self._under_way and self._under_way[0][1] <= offset:
            slot, end = self._under_way.popleft()
            self._free.append(slot)
            self._job.progress(end - self._acknowledged)
            self._acknowledged = end
        if offset != self._acknowledged:
            raise WireError(f"ACK of {offset}, where no chunk ends")


def receive(end: End, sink: Sink, job: Job) -> None:
    """Receive the whole file into `sink`.

    Raises:
        PathFailed: the connection does not carry it, or garbles it, or the file cannot be mapped
            safely.
    """
    if not sink.reserved:
        raise PathFailed(
            PathCode.RESOURCES, "the file system cannot reserve space, as a mapped file needs"
        )
    try:
        with sink.mapping() as mapped:
            if mapped is None:
                _Receiver(end, sink.size, job, None, memoryview(b""), None).run()
                return
            access = v.IBV_ACCESS_LOCAL_WRITE
            if job.path is PathName.RDMA_WRITE:
                access |= v.IBV_ACCESS_REMOTE_WRITE
            with v.MR(end.pd, mapped, access) as region, memoryview(mapped) as view:
                prefault = Prefault(mapped, sink.size, job.meter) if sink.is_tmpfs() else None
                _Receiver(end, sink.size, job, region, view, prefault).run()
    except WireError as error:
        raise _garbled(error) from error
    finally:
        end.account(job.meter)


class Prefault:
    """Maps the pages of a tmpfs file before octets arrive for them, many in one call.

    A page fault for each 4 KiB costs more than the copy into it. Reading ahead maps 16 pages a
    fault, and on tmpfs, which tracks no dirty pages, writable ones; a file system on a disk maps
    them read-only and faults again, so there the kernel's own large folios do better.
    """

    def __init__(self, mapped: mmap.mmap, size: int, meter: Meter) -> None:
        self._mapped = mapped
        self._size = size
        self._meter = meter
        self._reached = 0

    def reach(self, end: int) -> None:
        """Have the pages below `end` mapped."""
        end = min(end // mmap.PAGESIZE * mmap.PAGESIZE, self._size)
        if self._size - end < mmap.PAGESIZE:
            end = self._size
        if end <= self._reached or (end - self._reached < _PREFAULT_STEP and end < self._size):
            return
        start, self._reached = self._reached, end
        self._meter.syscalls += 1
        try:
            self._mapped.madvise(_MADV_POPULATE_READ, start, end - start)
        except OSError:
            self._reached = self._size  # before Linux 5.14: pages fault one by one


class _Receiver:
    def __init__(
        self,
        end: End,
        size: int,
        job: Job,
        region: v.MR | None,
        view: memoryview,
        prefault: Prefault | None,
    ) -> None:
        self._end = end
        self._size = size
        self._job = job
        self._region = region
        self._view = view
        self._prefault = prefault
        self._announced = 0
        self._arrived = 0
        self._unacknowledged = 0
        self._acks = 0
        self._opened = False
        self._reading: dict[int, Note] = {}

    def run(self) -> None:
        opening = Note(Step.OPEN)
        if self._region is not None and self._job.path is PathName.RDMA_WRITE:
            opening = Note(Step.OPEN, address=self._region.buf, rkey=self._region.rkey)
        self._run_ahead()
        self._end.send(opening)
        while not self._opened or self._arrived < self._size:
            for wc in self._end.completions(self._job.idle, self._job.interrupt):
                if wc.opcode == v.IBV_WC_RECV:
                    self._handle(self._end.note(wc))
                elif wc.wr_id >= _READ_WR:
                    self._finish(self._reading.pop(wc.wr_id - _READ_WR))

    def _handle(self, note: Note) -> None:
        if note.kind is Step.OPEN and not self._opened:
            self._opened = True
            return
        in_turn = self._opened and note.kind is Step.CHUNK and note.offset == self._announced
        if not in_turn or not 0 < note.length <= self._size - note.offset:
            raise WireError(f"{note.kind.name} of {note.length} at {note.offset} out of turn")
        self._announced += note.length
        if self._job.path is PathName.RDMA_WRITE:
            self._finish(note)
        else:
            self._read(note)

    def _read(self, note: Note) -> None:
        if note.slot in self._reading or self._region is None:
            raise WireError(f"slot {note.slot} was announced twice")
        self._reading[note.slot] = note
        sink = v.SGE(self._region.buf + note.offset, note.length, self._region.lkey)
        self._end.post(
            v.SendWR(
                wr_id=_READ_WR + note.slot,
                opcode=v.IBV_WR_RDMA_READ,
                sg=[sink],
                send_flags=v.IBV_SEND_SIGNALED,
                rkey=note.rkey,
                remote_addr=note.address,
            )
        )

    def _finish(self, note: Note) -> None:
        """Digest a chunk that is in place, and give its slot back."""
        with self._view[note.offset : note.offset + note.length] as chunk:
            self._job.hasher.update(chunk)
        self._arrived += note.length
        self._job.progress(note.length)
        self._unacknowledged += 1
        if self._unacknowledged == ACK_EVERY or self._arrived == self._size:
            self._unacknowledged = 0
            self._acks += 1
            # No two ACKs that may be under way share a place in memory.
            self._end.send(Note(Step.ACK, self._acks % WINDOW, offset=self._arrived))
        self._run_ahead()

    def _run_ahead(self) -> None:
        if self._prefault is not None:
            self._prefault.reach(self._arrived + WINDOW * SLOT)
