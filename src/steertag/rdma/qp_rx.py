"""The receiving half of a queue pair: octets in, payload into registered memory (siw_qp_rx.c).

The caller asks `buffers()` where the stream's next octets go and says with `received(n)` how many
came. Three gears decide what `buffers()` gives:

* direct: the header of a large segment was read and checked; its payload goes from the stream
  straight into the region, its trailer and the next header into the buffer behind it.
* exact: just as many octets as end the current FPDU, and the next header. A large segment that
  follows is thus never read into the buffer.
* ahead: after a run of small FPDUs as much as the buffer holds, many FPDUs to a read: a copy of a
  few hundred octets costs less than a system call. The read-ahead starts small and doubles, so
  that little of a large segment is caught in it.

A Read Response adds to the direct gear: where each of its octets goes follows from our own Read
Request, so one read takes several of its segments, in the places and with the headers that they
must have if they are cut like the first one. Where a header is another, what came is taken back out
of the sink (which is undefined until the Read completes) and parsed from the buffer.

Every check comes before the first octet of a segment is placed; for a foreseen one the checks are
those of our own request's sink, and its header is compared afterwards. A large segment's CRC is
known only after it was placed, as on hardware: the connection ends with a Terminate then.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from steertag.errors import ProtocolError, WireError
from steertag.rdma.constants import ACCESS_LOCAL_WRITE, ACCESS_REMOTE_WRITE
from steertag.rdma.counters import Counters
from steertag.rdma.inbound import Inbound
from steertag.rdma.memory import LocalProtectionError, StagTable
from steertag.rdma.qp_tx import Transmitter
from steertag.wire import ddp, mpa, rdmap
from steertag.wire.crc32c import CRC_FIELD, RESIDUE, crc32c

BUFFER_OCTETS: Final = 256 * 1024
"""Octets read ahead at most; a connection that is idle, or moves large segments, needs fewer."""
_FIRST_BUFFER: Final = 16 * 1024
DIRECT_MIN: Final = 8192
"""Octets of payload still to come from which on they are read straight into the region."""
SMALL_RUN: Final = 16
"""Small FPDUs in a row after which the receiver reads ahead."""
_AHEAD_FIRST: Final = 4096
_FORESEEN: Final = 31
"""Segments of a Read Response, behind the one that has begun, that one read takes at most."""
_PREFIX: Final = struct.Struct("!HBBIQ")
_PREFIX_LEN: Final = _PREFIX.size
_UNTAGGED_PREFIX_LEN: Final = mpa.LENGTH_LEN + ddp.UNTAGGED_LEN
_CTL_MASK: Final = ddp.T_FLAG | ddp.VERSION_MASK
_CTL_TAGGED: Final = ddp.T_FLAG | ddp.VERSION
_OP_WRITE: Final = rdmap.control(rdmap.Opcode.WRITE)
_OP_READ_RESPONSE: Final = rdmap.control(rdmap.Opcode.READ_RESPONSE)
_TAGGED_OPS: Final = (_OP_WRITE, _OP_READ_RESPONSE)
_Foreseen = tuple[memoryview, int, bytes]
_NOWHERE: Final = memoryview(b"")


class Receiver:
    """Args:
    pd: protection domain of the queue pair.
    table: the RNIC's regions.
    inbound: what the segments mean, and where they may go.
    transmitter: holds the Reads that wait for a response.
    counters: where to count.
    """

    def __init__(
        self,
        pd: int,
        table: StagTable,
        inbound: Inbound,
        transmitter: Transmitter,
        counters: Counters,
    ) -> None:
        self._pd = pd
        self._table = table
        self._inbound = inbound
        self._tx = transmitter
        self._counters = counters
        self.crc = True
        self.segment: tuple[bytes, int] | None = None
        """DDP header octets and length of the segment that is being looked at, for a Terminate."""
        self.ended = False
        """Nothing more is taken: a Terminate came, or a completion that overran its queue."""
        self._buf = bytearray(_FIRST_BUFFER)
        self._mv = memoryview(self._buf)
        self._start = 0
        self._end = 0
        self._need = _PREFIX_LEN
        self._lookahead = 0
        self.taken = 0
        """Octets of the stream in FPDUs that were dealt with whole: placed, delivered, answered."""
        self.received: Callable[[int], None] = self._received
        """The stream wrote so many octets into what `buffers` gave. Raises ProtocolError."""
        self._ahead = 0
        self._run = 0
        # Of the segment that is being placed directly:
        self._dest: list[memoryview] = []
        self._placed: list[memoryview] = []
        self._crc_value = 0
        self._tail = 0
        # Of the segments of a Read Response behind it: (sink, octets of PAD and CRC, header).
        self._plan: list[_Foreseen] = []
        self._expected = b""
        """What lies between their payloads if the peer cuts them so, and computes no CRC."""
        self._places: list[memoryview] = []
        """Where they go, each followed by where what lies behind it goes."""
        self._gaps: list[memoryview] = []
        self._gaps_of: tuple[memoryview, int] | None = None
        self._foresee = True
        self._reach = 1

    # -- the stream's side ---------------------------------------------------------------------

    def buffers(self) -> list[memoryview]:
        """Where the stream's next octets go; never empty, valid until `received`."""
        if self._tail:
            at = self._tail + _PREFIX_LEN
            if self._plan:
                return [*self._dest, self._mv[self._end : at], *self._places[: 2 * self._reach]]
            return [*self._dest, self._mv[self._end : at]]
        if self._ahead:
            if len(self._buf) - self._end < self._ahead:
                self._make_room(self._ahead)
            return [self._mv[self._end : self._end + self._ahead]]
        want = self._need + self._lookahead if self._end > self._start else _PREFIX_LEN
        if len(self._buf) - self._end < want:
            self._make_room(want)
        return [self._mv[self._end : self._end + want]]

    def tell_taken(self, tell: Callable[[int], None]) -> None:
        """From here on call `tell` with `taken` after each read."""
        received = self._received

        def and_tell(octets: int) -> None:
            try:
                received(octets)
            finally:
                tell(self.taken)

        self.received = and_tell

    def _received(self, octets: int) -> None:
        self._counters.rx_bytes += octets
        if self._tail:
            if self._plan and (octets := self._advance_foreseen(octets)) < 0:
                return
            dest = self._dest
            if len(dest) == 1 and octets >= (size := len(dest[0])):
                self._counters.placed_bytes += size
                self._dest = []
                self._end += octets - size
            else:
                self._end += self._advance_direct(octets)
            if self._dest or self._end < self._tail:
                return
            self._finish_direct()
            self._forget_plan()
        else:
            if self._ahead and octets == self._ahead < BUFFER_OCTETS // 2:
                self._ahead *= 2
            self._end += octets
        self._parse()

    @property
    def reading_ahead(self) -> bool:
        """Small FPDUs have been coming: the messages of a program that waits for each, perhaps."""
        return self._ahead > 0

    @property
    def between_messages(self) -> bool:
        """No segment and no message is half received: the peer may close here."""
        return not self._tail and self._start == self._end and self._inbound.between_messages

    def detach(self, stag: int, owner: object) -> bool:
        """Stop placing into `stag`'s memory, which is `owner`'s. True where a segment was on its
        way into it.

        Other regions may lie in the same buffer, so that a view alone doesn't tell whose it is.
        """
        if not any(view.obj is owner for view in self._placed):
            return False
        tagged = self._direct_header is None
        stags = [self._direct_stag] if tagged else self._inbound.receive_lkeys
        if stag not in stags:
            return False
        self.segment = None
        self._dest, self._placed = [], []
        self._forget_plan()
        return True

    def end(self) -> None:
        """Take nothing more, and let go of the memory that was being placed into."""
        self.ended = True
        self._dest, self._placed = [], []
        self._forget_plan()

    def _forget_plan(self) -> None:
        self._plan, self._places = [], []

    def _make_room(self, octets: int) -> None:
        """Have room for so many behind what is in the buffer."""
        left = bytes(self._mv[self._start : self._end])
        room = len(left) + octets
        if room > len(self._buf) or room <= BUFFER_OCTETS < len(self._buf):
            # A power of two, so that it doesn't grow again for each few octets more.
            self._buf = bytearray(max(_FIRST_BUFFER, 1 << (room - 1).bit_length()))
            self._mv = memoryview(self._buf)
        self._mv[: len(left)] = left
        self._start, self._end = 0, len(left)

    # -- small FPDUs, whole in the buffer ------------------------------------------------------

    def _parse(self) -> None:
        """Take every FPDU that is whole in the buffer; begin direct placement of a large one."""
        buf, mv, pd, crc = self._buf, self._mv, self._pd, self.crc
        regions = self._table.regions
        writable = self._inbound.access & ACCESS_REMOTE_WRITE
        first = start = self._start
        end = self._end
        staged = fpdus = 0
        try:
            while not self.ended:
                available = end - start
                if available < _PREFIX_LEN:
                    self._need, self._lookahead = _PREFIX_LEN - available, 0
                    break
                ulpdu, ctl, op, stag, to = _PREFIX.unpack_from(buf, start)
                size = (ulpdu + 9) & ~3
                if available < size:
                    if size - available >= DIRECT_MIN:
                        if self._begin_direct(start, ulpdu, ctl, op, stag, to):
                            first -= start
                            start = end = 0
                        break
                    self._need, self._lookahead = size - available, _PREFIX_LEN
                    break
                if crc and crc32c(mv[start : start + size]) != RESIDUE:
                    self._crc_error()
                length = ulpdu - ddp.TAGGED_LEN
                if op == _OP_WRITE and ctl & _CTL_MASK == _CTL_TAGGED and length >= 0:
                    if length:
                        region = regions.get(stag)
                        if (
                            region is not None
                            and region.pd == pd
                            and region.access & writable
                            and (at := to - region.base) >= 0
                            and at + length <= region.length
                        ):
                            payload = start + _PREFIX_LEN
                            region.view[at : at + length] = mv[payload : payload + length]
                            staged += length
                        else:
                            self._note(start, ulpdu)
                            payload = start + _PREFIX_LEN
                            target = self._inbound.write_target(stag, to, length)
                            target[:] = mv[payload : payload + length]
                            staged += length
                else:
                    self._whole_segment(start, ulpdu)
                fpdus += 1
                start += size
        finally:
            self._counters.staged_bytes += staged
            self._counters.rx_fpdus += fpdus
            self.taken += start - first
        if self._tail:
            self._ahead = self._run = 0
        else:
            if start == end:
                start = end = 0
            if not self._ahead:
                self._run += fpdus
                if self._run >= SMALL_RUN:
                    self._ahead = _AHEAD_FIRST
        self._start, self._end = start, end

    def _whole_segment(self, start: int, ulpdu: int) -> None:
        """Place and deliver the segment of the FPDU at `start` of the buffer."""
        at = start + mpa.LENGTH_LEN
        header = self._parse_header(at, ulpdu)
        self._note(start, ulpdu)
        length = ulpdu - len(header)
        payload = self._mv[at + len(header) : at + ulpdu]
        position = 0
        for view in self._inbound.admit(header, length, payload):
            view[:] = payload[position : position + len(view)]
            position += len(view)
        self._counters.staged_bytes += position
        self._inbound.deliver(header, length, payload)
        self.ended = self.ended or self._inbound.terminate is not None

    def _parse_header(self, at: int, ulpdu: int) -> ddp.Tagged | ddp.Untagged:
        try:
            return ddp.parse(self._mv[at : at + min(ulpdu, ddp.UNTAGGED_LEN)])
        except WireError as exc:
            raise _mpa_error(mpa.E_MARKER, f"ULPDU of {ulpdu} octets: {exc}") from exc

    def _note(self, start: int, ulpdu: int) -> None:
        """Remember the segment's header: a Terminate quotes it."""
        at = start + mpa.LENGTH_LEN
        tagged = bool(self._buf[at] & ddp.T_FLAG)
        size = ddp.TAGGED_LEN if tagged else ddp.UNTAGGED_LEN
        if ulpdu < size:
            self.segment = None
            return
        if not tagged and self._buf[at + 1] & rdmap.OPCODE_MASK == rdmap.Opcode.READ_REQUEST:
            # Quoted whole or not at all: a Terminate says only that it is there.
            whole = size + rdmap.READ_REQUEST_LEN
            size = whole if ulpdu >= whole else size
        self.segment = (bytes(self._buf[at : at + size]), ulpdu)

    def _crc_error(self) -> None:
        self.segment = None
        self._counters.crc_errors += 1
        raise _mpa_error(mpa.E_CRC, "CRC32C of an FPDU is wrong")

    # -- large FPDUs, placed directly ----------------------------------------------------------

    def _begin_direct(self, start: int, ulpdu: int, ctl: int, op: int, stag: int, to: int) -> bool:
        """Check the large segment whose FPDU begins at `start`, and aim at its memory.

        False where more of its header is needed first.
        """
        tagged = ctl & _CTL_MASK == _CTL_TAGGED and op in _TAGGED_OPS
        prefix = _PREFIX_LEN if ctl & ddp.T_FLAG else _UNTAGGED_PREFIX_LEN
        available = self._end - start
        if available < prefix:
            self._need, self._lookahead = prefix - available, 0
            return False
        try:
            if tagged:
                length = ulpdu - ddp.TAGGED_LEN
                self._direct_last = bool(ctl & ddp.L_FLAG)
                self._direct_header = None
                if op == _OP_WRITE:
                    placed = [self._inbound.write_target(stag, to, length)]
                else:
                    placed = self._inbound.admit_response(stag, to, length, self._direct_last)
            else:
                header = self._parse_header(start + mpa.LENGTH_LEN, ulpdu)
                length = ulpdu - len(header)
                self._direct_header = header
                placed = self._inbound.admit(header, length, None)
        except ProtocolError:
            self._note(start, ulpdu)
            raise
        self._direct_op, self._direct_stag, self._direct_length = op, stag, length
        self._placed = placed
        self._dest = placed[:]
        if self.crc:
            self._crc_value = crc32c(self._mv[start : start + prefix])
        self._tail = (-(ulpdu + mpa.LENGTH_LEN) & 3) + mpa.CRC_LEN
        if available > prefix:
            self._place_early(bytes(self._mv[start + prefix : self._end]))
        elif tagged and op != _OP_WRITE and self._foresee and not self._direct_last:
            self._plan_response(length)
        self._start = self._end = 0
        return True

    def _plan_response(self, step: int) -> None:
        """Foresee the segments behind the one that begins now, if they are as long as it is."""
        read = self._tx.reads[0]
        at = read.placed + step
        left = min(read.length - at, step * _FORESEEN)
        try:
            sink = self._table.local_view(
                read.lkey, self._pd, read.addr + at, left, ACCESS_LOCAL_WRITE
            )
        except LocalProtectionError:
            # Registered anew, smaller, since the Read was posted: found when that segment comes.
            return
        ulpdu, lkey, to = step + ddp.TAGGED_LEN, read.lkey, read.addr + at
        pack, tail = _PREFIX.pack, self._tail
        rest = left % step
        plan = [
            (sink[i : i + step], tail, pack(ulpdu, _CTL_TAGGED, _OP_READ_RESPONSE, lkey, to + i))
            for i in range(0, left - rest, step)
        ]
        if rest:
            ulpdu = rest + ddp.TAGGED_LEN
            tail = (-(ulpdu + mpa.LENGTH_LEN) & 3) + mpa.CRC_LEN
            plan.append((sink[left - rest :], tail, b""))
        if rest or at + left == read.length:
            last = _CTL_TAGGED | (ddp.L_FLAG if at + left == read.length else 0)
            view, tail, _ = plan[-1]
            header = pack(ulpdu, last, _OP_READ_RESPONSE, lkey, to + left - len(view))
            plan[-1] = view, tail, header
        self._plan = plan
        self._expected = bytes(self._tail) + bytes(self._tail).join([each[2] for each in plan])
        self._lay_out()

    def _lay_out(self) -> None:
        """Say anew where the segments of the plan go, and what lies between them."""
        plan, gap = self._plan, self._tail + _PREFIX_LEN
        if not plan:
            self._places = []
            return
        if self._gaps_of != (self._mv, gap):
            mv = self._mv
            self._gaps_of = mv, gap
            self._gaps = [mv[i * gap : (i + 1) * gap] for i in range(1, _FORESEEN + 1)]
        places = [_NOWHERE] * (2 * len(plan))
        places[::2] = [each[0] for each in plan]
        places[1::2] = self._gaps[: len(plan)]
        if (tail := plan[-1][1]) != self._tail:
            at = len(plan) * gap
            places[-1] = self._mv[at : at + tail + _PREFIX_LEN]
        self._places = places

    def _advance_foreseen(self, octets: int) -> int:
        """Finish the segments before the last one that `octets` reach.

        Gives the octets of that last one, or -1 where all has been dealt with here.
        """
        mv, plan, counters = self._mv, self._plan, self._counters
        at = gap = self._tail + _PREFIX_LEN
        here = sum(map(len, self._dest)) + gap - self._end
        if octets <= here:
            return octets
        if not self.crc:
            # All but the plan's last are of the same length.
            unit = self._direct_length + gap
            used = (octets - here - 1) // unit
            if self._expected.startswith(mv[: (used + 1) * gap]):
                return self._finish_foreseen(used + 1, octets - here - used * unit)
        used = 0
        while octets > (size := sum(map(len, self._dest)) + self._tail + _PREFIX_LEN - self._end):
            octets -= size
            counters.placed_bytes += sum(map(len, self._dest))
            self._end = self._tail + _PREFIX_LEN
            self._finish_direct()
            view, tail, header = plan[used]
            if mv[self._start : self._end] != header:
                self._unforeseen(header_at=self._start, rest=plan[used:], at=at, octets=octets)
                return -1
            used += 1
            self._direct_last = bool(header[2] & ddp.L_FLAG)
            self._direct_length = len(view)
            self._placed, self._dest = [view], [view]
            if self.crc:
                self._crc_value = crc32c(header)
            self._tail = tail
            self._start = self._end = 0
            small = tail + _PREFIX_LEN
            if octets > len(view):
                mv[:small] = bytes(mv[at : at + small])
            at += small
        del plan[:used]
        self._expected = self._expected[used * gap :]
        self._reach = min(_FORESEEN, 2 * used + 1)
        self._lay_out()
        return octets

    def _finish_foreseen(self, count: int, octets: int) -> int:
        """`count` segments came as foreseen, and `octets` of the one behind them."""
        mv, plan, counters = self._mv, self._plan, self._counters
        step, gap = self._direct_length, self._tail + _PREFIX_LEN
        counters.placed_bytes += sum(map(len, self._dest)) + (count - 1) * step
        counters.rx_fpdus += count
        self.taken += count * (step + gap)
        self._inbound.deliver_response(False, count * step)
        view, tail, header = plan[count - 1]
        self._direct_last = bool(header[2] & ddp.L_FLAG)
        self._direct_length = len(view)
        self._placed, self._dest = [view], [view]
        self._start = self._end = 0
        if octets > len(view):
            size, at = tail + _PREFIX_LEN, count * gap
            mv[:size] = bytes(mv[at : at + size])
        self._plan = plan[count:]
        self._expected = self._expected[count * gap :]
        self._reach = min(_FORESEEN, 2 * count + 1)
        self._tail = tail
        self._lay_out()
        return octets

    def _unforeseen(self, header_at: int, rest: list[_Foreseen], at: int, octets: int) -> None:
        """The peer cuts its Read Responses otherwise: take back what was placed on a guess."""
        pieces = [bytes(self._mv[header_at : header_at + _PREFIX_LEN])]
        for view, tail, _ in rest:
            pieces.append(bytes(view[:octets]))
            octets -= len(pieces[-1])
            pieces.append(bytes(self._mv[at : at + min(octets, tail + _PREFIX_LEN)]))
            octets -= len(pieces[-1])
            at += tail + _PREFIX_LEN
        back = b"".join(pieces)
        self._forget_plan()
        self._foresee = False
        self._start = self._end = 0
        self._make_room(len(back))
        self._mv[: len(back)] = back
        self._end = len(back)
        try:
            self._parse()
        finally:
            # What was taken back may be four times what is ever read ahead: not to be kept.
            self._make_room(_PREFIX_LEN)

    def _place_early(self, early: bytes) -> None:
        """Copy what was read ahead of the segment that is placed directly from here on."""
        self._counters.staged_bytes += len(early)
        self._counters.placed_bytes -= len(early)
        position = 0
        for view in self._placed:
            part = early[position : position + len(view)]
            view[: len(part)] = part
            position += len(part)
        self._advance_direct(len(early))

    def _advance_direct(self, octets: int) -> int:
        """Count `octets` as placed; give back those that lie behind the payload."""
        dest = self._dest
        while dest and octets:
            size = len(dest[0])
            if octets < size:
                dest[0] = dest[0][octets:]
                self._counters.placed_bytes += octets
                return 0
            self._counters.placed_bytes += size
            octets -= size
            del dest[0]
        return octets

    def _finish_direct(self) -> None:
        """The payload and its trailer are here: check the CRC, deliver."""
        crc_at = self._tail - mpa.CRC_LEN
        if self.crc:
            value = self._crc_value
            for view in self._placed:
                value = crc32c(view, value)
            if crc_at:
                value = crc32c(self._mv[:crc_at], value)
            if value != CRC_FIELD.unpack_from(self._buf, crc_at)[0]:
                self._placed = []
                self._crc_error()
        size = self._direct_length + self._tail
        self._start = self._tail
        self._tail = 0
        self._placed = []
        self._counters.rx_fpdus += 1
        if self._direct_header is not None:
            self._inbound.deliver(self._direct_header, self._direct_length, self._mv[:0])
            self.taken += _UNTAGGED_PREFIX_LEN + size
            return
        if self._direct_op != _OP_WRITE:
            self._inbound.deliver_response(self._direct_last, self._direct_length)
        self.taken += _PREFIX_LEN + size


def _mpa_error(code: int, detail: str) -> ProtocolError:
    return ProtocolError(mpa.LAYER_LLP, mpa.ETYPE_MPA, code, detail)
