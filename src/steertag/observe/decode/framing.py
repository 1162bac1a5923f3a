"""Cuts one direction of an MPA connection into its start-up frame and its FPDUs.

An FPDU's length field says where the next one is, so missing octets do no more harm than to the
FPDU that they are part of, as long as every length field is there. When one isn't, or what stands
in its place makes no sense, the direction is searched for the next thing that looks like an FPDU
and is proved to be one: by its CRC, by what follows it, or, on a connection known to be iWARP, by
standing at a segment's start with a message number or an STag that fits.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Final, NamedTuple

from steertag.errors import ProtocolError
from steertag.observe.decode import markers
from steertag.observe.decode.frames import (
    CRC_BAD,
    CRC_GOOD,
    CRC_OFF,
    CRC_UNKNOWN,
    GAP,
    FpduFrame,
    Link,
)
from steertag.observe.decode.headers import read_headers_untrusted
from steertag.observe.decode.mpa_stream import Connection
from steertag.observe.decode.order import SegmentOrder
from steertag.observe.decode.reassembly import HalfStream
from steertag.observe.decode.search import Search, Terms
from steertag.wire import mpa, rdmap
from steertag.wire.crc32c import CRC_FIELD, crc32c

SEARCH_LIMIT: Final = 1 << 20
"""Octets of a direction that are searched before it counts as something else than iWARP."""

_KEY_LEN: Final = len(mpa.KEY_REQUEST)
_HELD_BACK: Final = 1 << 17  # octets of the initiator that wait for a Reply
_NONSENSE: Final = 3  # unreadable FPDUs in a row before the boundaries count as lost


class State(IntEnum):
    """What is expected of a direction next."""

    START_FRAME = 0
    REPLY = 1  # the peer's; what the initiator sends before it can't be read yet
    FPDU = 2
    SEARCH = 3
    NOTHING = 4  # the Reply rejected the connection
    IGNORED = 5


class End(IntEnum):
    """Why a direction ends."""

    FIN = 0
    RESET = 1
    CAPTURE = 2


class _Mark(NamedTuple):
    """Which packet brought a part of the buffer that couldn't be read at once."""

    start: int
    end: int
    packet: int
    time_ns: int


class Direction:
    """Takes the octets of one direction (it is a `reassembly.Receiver`), and makes frames.

    Attributes:
        stream: puts the direction's segments in order, and hands their octets to this.
        peer: the other direction; set before the first octets come.
        order: what DDP and RDMAP have to follow.
        fpdus: how many there were.
    """

    def __init__(self, connection: Connection, link: Link) -> None:
        self.stream = HalfStream(self)
        self.peer: Direction = self
        self.fpdus = 0
        self.order = SegmentOrder()
        self._connection = connection
        self._link = link
        self._state = State.START_FRAME
        self._buf = bytearray()
        self._base = 0  # the buffer's position in the stream
        self._first: int | None = None  # that of the first FPDU
        self._markers = False
        self._hole: int | None = None  # offset of octets in the buffer that the capture lacks
        self._marks: deque[_Mark] = deque()
        self._starts: set[int] = set()  # of the segments in `_marks`
        self._search = Search()
        self._lost_at = 0
        self._nonsense = 0

    @property
    def held(self) -> int:
        """Octets in memory."""
        return len(self._buf) + self.stream.held

    @property
    def ignored(self) -> bool:
        return self._state is State.IGNORED

    def ignore(self) -> None:
        """Take no more octets."""
        self._state = State.IGNORED
        self._drop(len(self._buf))

    def complain(self, text: str) -> None:
        """Add a note that counts against the capture."""
        self._connection.note(self._link, text, bad=True)

    # --- as a receiver ---------------------------------------------------------------------------

    def data(self, octets: bytes) -> None:
        if self._state is State.FPDU and not self._buf and not self._marks:
            done = self._read_fpdus(octets)
            self._base += done
            if self._state is State.FPDU:
                if done < len(octets):
                    self._buf += octets[done:]
                return
            octets = octets[done:]
        if self._state is State.IGNORED:
            return
        self._append(octets)
        self._run()

    def missing(self, octets: int, *, cut: bool) -> None:
        if self._state is State.REPLY:
            self._state = State.FPDU
            self._run()
        if self._state is State.FPDU:
            self._miss_fpdus(octets, cut=cut)
        elif self._state in (State.START_FRAME, State.SEARCH):
            if self._connection.is_iwarp:
                self._note_gap(octets, "", cut=cut)
            if self._state is State.SEARCH:
                self._look_for_fpdu(final=True)
                self._run()
            self._lose(octets)

    def finish(self, end: End) -> None:
        """Nothing more comes."""
        if self._state is State.REPLY:
            self._state = State.FPDU
            self._run()
        if self._state is State.SEARCH:
            self._look_for_fpdu(final=True)
            self._run()
        unfinished = self._state in (State.START_FRAME, State.FPDU) and self._buf
        if unfinished and self._connection.is_iwarp:
            what = "an FPDU" if self._state is State.FPDU else "a start-up frame"
            subject = "the capture" if end is End.CAPTURE else "the stream"
            self._connection.note(
                self._link,
                f"{subject} ends inside {what}, behind {len(self._buf)} octets of it",
                bad=end is End.FIN,
            )
        self.ignore()

    # --- buffer ----------------------------------------------------------------------------------

    def _append(self, octets: bytes) -> None:
        place = self._connection.place
        start = self._base + len(self._buf)
        end = start + len(octets)
        if self._marks or self._state is not State.FPDU:
            self._marks.append(_Mark(start, end, place.packet, place.time_ns))
            self._starts.add(start)
        if self._state is State.SEARCH:
            self._search.fed(len(octets))
        self._buf += octets

    def _drop(self, octets: int) -> None:
        del self._buf[:octets]
        self._base += octets
        self._forget_marks(self._base)

    def _forget_marks(self, position: int) -> None:
        """Those of segments that end at `position` or before."""
        while self._marks and self._marks[0].end <= position:
            self._starts.discard(self._marks.popleft().start)

    def _run(self) -> None:
        """Do what the buffer allows, in whatever states that leads through."""
        before = None
        while before is not self._state:
            before = self._state
            if before is State.START_FRAME:
                self._read_start_frame()
            elif before is State.REPLY:
                if len(self._buf) > _HELD_BACK:
                    self._state = State.FPDU  # the Reply isn't in the capture
            elif before is State.FPDU:
                self._drop(self._read_fpdus(self._buf))
            elif before is State.SEARCH:
                self._look_for_fpdu(final=False)
            elif before is State.NOTHING and self._buf:
                self._connection.note(self._link, "octets behind a rejection", bad=True)
                self.ignore()

    # --- start-up frames -------------------------------------------------------------------------

    def _read_start_frame(self) -> None:
        head = bytes(self._buf[:_KEY_LEN])
        if not (mpa.KEY_REQUEST.startswith(head) or mpa.KEY_REPLY.startswith(head)):
            self._no_start_frame(head)
            return
        try:
            start = mpa.StartFrame.parse(self._buf)
        except ProtocolError as exc:
            self._connection.recognise(self._link)
            self._connection.note(self._link, exc.detail, bad=True)
            self.ignore()
            return
        if start is None:
            return
        self._drop(len(start))
        self._first = self._base
        self._connection.start_frame(self._link, start)
        self._negotiate(start)

    def _negotiate(self, start: mpa.StartFrame) -> None:
        """Flag M asks the other end for markers (RFC 5044 section 7.1)."""
        self.peer._markers = start.markers
        if self._connection.rejected:
            self._state = self.peer._state = State.NOTHING
        elif start.reply or self._connection.reply is not None:
            self._state = State.FPDU
        else:
            self._state = State.REPLY
        if start.reply:
            self.peer._reply_came()

    def _reply_came(self) -> None:
        if self._state is State.REPLY:
            self._state = State.FPDU
            self._run()

    def _no_start_frame(self, head: bytes) -> None:
        connection = self._connection
        if not self.stream.from_syn or connection.expected:
            self._begin_search(self._base)
        elif connection.is_iwarp:
            connection.note(
                self._link, f"no MPA frame, but {head!r}; the stream isn't decoded", bad=True
            )
            self.ignore()
        else:
            self.ignore()
            self.peer.ignore()

    # --- FPDUs -----------------------------------------------------------------------------------

    def _read_fpdus(self, buf: bytes | bytearray) -> int:
        """Make frames of the whole FPDUs at the beginning of `buf`; how many octets they took."""
        at, have = 0, len(buf)
        while self._state is State.FPDU and have - at >= mpa.LENGTH_LEN:
            if self._markers:
                found = markers.extent(buf, at, self._phase(at))
                if found is None or have - at < found.size:
                    break
                self._marked_fpdu(bytes(buf[at : at + found.size]), at, found.markers)
                at += found.size
            else:
                size = mpa.fpdu_len(buf[at] << 8 | buf[at + 1])
                if have - at < size:
                    break
                self._fpdu(bytes(buf[at : at + size]), at + size, None, 0, [])
                at += size
        return at

    def _phase(self, at: int) -> int:
        """Octets between the place of the first marker and offset `at` of the buffer."""
        assert self._first is not None, "a direction with markers began with its start-up frame"
        return self._base + at - self._first

    def _marked_fpdu(self, octets: bytes, at: int, count: int) -> None:
        phase = self._phase(at)
        stripped, problems = markers.without_markers(octets, phase)
        if self._hole is not None:
            places = range(-phase % markers.SPACING, self._hole, markers.SPACING)
            self._hole = max(self._hole - len(places) * markers.MARKER_LEN, 0)
            problems = []
        covered = octets[: -mpa.CRC_LEN]
        self._fpdu(stripped, at + len(octets), covered, count, problems)

    def _fpdu(
        self, octets: bytes, end: int, covered: bytes | None, count: int, problems: list[str]
    ) -> None:
        """Make the frame of one FPDU, given without markers.

        `end`: its end in the buffer. `covered`: what its CRC covers, if not all of `octets`.
        """
        connection = self._connection
        place = connection.place
        packet, time_ns = place.packet, place.time_ns
        if self._marks:
            self._forget_marks(self._base + end - 1)
            packet, time_ns = self._marks[0].packet, self._marks[0].time_ns
        hole, self._hole = self._hole, None
        crc = CRC_UNKNOWN if hole is not None else self._check_crc(octets, covered)
        length = octets[0] << 8 | octets[1]
        frame = FpduFrame(packet, time_ns, self._link, length, crc, count, hole is not None)
        frame.problems = problems
        captured = len(octets) if hole is None else hole
        read_headers_untrusted(frame, octets, captured)
        self._check_order(frame)
        self.fpdus += 1
        place.frames.append(frame)
        self._judge(frame, self._base + end)

    def _check_crc(self, octets: bytes, covered: bytes | None) -> str:
        connection = self._connection
        (sent,) = CRC_FIELD.unpack_from(octets, len(octets) - mpa.CRC_LEN)
        if connection.crc is False and (connection.crc_negotiated or sent == 0):
            return CRC_OFF
        computed = crc32c(memoryview(octets)[: -mpa.CRC_LEN] if covered is None else covered)
        if computed == sent:
            if not connection.crc:
                connection.detect_crc(self._link, on=True)
            return CRC_GOOD
        if connection.crc:
            return CRC_BAD
        if sent == 0:
            connection.detect_crc(self._link, on=False)
            return CRC_OFF
        return CRC_UNKNOWN

    def _check_order(self, frame: FpduFrame) -> None:
        if frame.opcode is None or frame.crc == CRC_BAD:
            # Whatever it was is unknown, or what it says can't be relied on.
            self._lose_order()
            return
        if self.order.terminated:
            frame.problems.append("follows a Terminate")
        if self.fpdus == 0:
            self._check_turn(frame)
        if not frame.tagged:
            self.order.untagged(frame)
            if isinstance(frame.body, rdmap.ReadRequest):
                self.order.asks(frame.body)
            self.order.terminated |= frame.opcode == rdmap.Opcode.TERMINATE
        else:
            self.order.tagged(frame)
            if frame.opcode == rdmap.Opcode.READ_RESPONSE:
                self.peer.order.answered(frame, certain=not self.peer.stream.stalled)

    def _check_turn(self, frame: FpduFrame) -> None:
        """The initiator sends the first FPDU (RFC 5044 section 7.1.2)."""
        connection, peer = self._connection, self.peer
        if connection.request is None or connection.initiator is self._link:
            return
        if peer.fpdus == 0 and peer.order.intact and not (peer.held or peer.stream.stalled):
            frame.problems.append("the responder sends before the initiator's first FPDU")

    def _judge(self, frame: FpduFrame, end: int) -> None:
        """Give the boundaries up when what stands between them makes no sense."""
        if frame.opcode is not None or frame.missing:
            self._nonsense = 0
            return
        self._nonsense += 1
        if frame.crc == CRC_GOOD or (frame.crc != CRC_BAD and self._nonsense < _NONSENSE):
            return
        self._connection.note(self._link, "the boundaries of FPDUs are lost", bad=True)
        self._begin_search(end)

    # --- missing octets --------------------------------------------------------------------------

    def _note_gap(self, octets: int, where: str, *, cut: bool) -> None:
        text = f"{octets} octets are {'cut from packets' if cut else 'missing'}{where}"
        self._connection.note(self._link, text, kind=GAP, bad=True, missing=octets)

    def _miss_fpdus(self, octets: int, *, cut: bool) -> None:
        have = len(self._buf)
        inside = max(min(octets, self._size_in_progress() - have), 0)
        if inside < octets:
            self._note_gap(octets, ", and with them the boundaries of FPDUs", cut=cut)
        elif not cut:
            self._note_gap(octets, ", inside an FPDU", cut=cut)
        if inside > 0:
            if self._hole is None:
                self._hole = have
            self._append(bytes(inside))
            self._run()
        if inside < octets:
            self._lose(octets - inside)

    def _size_in_progress(self) -> int:
        """Octets of the FPDU whose first ones are in the buffer; 0 if that can't be told."""
        if self._markers:
            found = markers.extent(self._buf, 0, self._phase(0))
            return 0 if found is None else found.size
        if len(self._buf) < mpa.LENGTH_LEN:
            return 0
        return mpa.fpdu_len(self._buf[0] << 8 | self._buf[1])

    def _lose(self, octets: int) -> None:
        """The next `octets` are missing, and with them the boundaries of FPDUs."""
        self._drop(len(self._buf))
        self._base += octets
        if self._state is not State.IGNORED:
            self._begin_search(self._base)

    def _lose_order(self) -> None:
        self.order.lose()
        self.peer.order.forget_requests()

    # --- search ----------------------------------------------------------------------------------

    def _begin_search(self, position: int) -> None:
        self._hole = None
        self._nonsense = 0
        self._lose_order()
        if self._markers and self._first is None:
            self._connection.note(
                self._link, "the places of markers are unknown; it isn't decoded", bad=True
            )
            self.ignore()
            return
        if self._state is not State.SEARCH:
            self._lost_at = position
            self._search = Search()
        self._state = State.SEARCH

    def _look_for_fpdu(self, *, final: bool) -> None:
        connection = self._connection
        sure = connection.is_iwarp or connection.expected
        terms = Terms(connection.crc, self._first, self._markers, sure, self.order)
        at = self._search.find(self._buf, self._base, self._starts, terms, final=final)
        if at is None:
            self._drop(min(self._search.keep_from, len(self._buf)))
            if self._search.searched > SEARCH_LIMIT and not sure:
                self.ignore()
            return
        self._drop(at)
        skipped = self._base - self._lost_at
        if not connection.is_iwarp:
            connection.recognise(self._link, "the capture has no start-up frames of it")
        connection.note(self._link, f"FPDUs are found again, {skipped} octets on")
        if self._first is None:
            self._first = self._base
        self._state = State.FPDU
