"""MPA in one TCP connection: the start-up frames, and what they mean for the FPDUs.

`Connection` is what both directions share; `framing.Direction` cuts the FPDUs out of one of them.
"""

from __future__ import annotations

from steertag.errors import ProtocolError
from steertag.observe.decode.frames import NOTE, STREAM, Frame, Link, MpaFrame, Note
from steertag.wire import mpa

_REVISIONS = (1, 2)


class Place:
    """Which packet is being looked at; shared by everything that makes frames.

    Attributes:
        packet: its number, from 1.
        time_ns: its time, in nanoseconds since the epoch.
        frames: what was found and nobody took yet.
    """

    __slots__ = ("frames", "packet", "time_ns")

    def __init__(self) -> None:
        self.packet = 0
        self.time_ns = 0
        self.frames: list[Frame] = []


class Connection:
    """What both directions of a connection share.

    Attributes:
        place: where frames go.
        expected: the user says that this is iWARP; it need not be proved.
        is_iwarp: it was proved.
        crc: CRCs are in use; None as long as nothing says so.
        crc_negotiated: `crc` is what the start-up frames say, not what FPDUs look like.
        request, reply: the start-up frames.
        initiator: who sent the Request.
        rejected: the Reply has the reject flag.
    """

    def __init__(self, place: Place, *, expected: bool) -> None:
        self.place = place
        self.expected = expected
        self.is_iwarp = False
        self.crc: bool | None = None
        self.crc_negotiated = False
        self.request: mpa.StartFrame | None = None
        self.reply: mpa.StartFrame | None = None
        self.initiator: Link | None = None
        self.rejected = False

    def note(
        self, link: Link, text: str, *, kind: str = NOTE, bad: bool = False, missing: int = 0
    ) -> None:
        place = self.place
        place.frames.append(Note(place.packet, place.time_ns, link, kind, text, bad, missing))

    def recognise(self, link: Link, text: str = "") -> None:
        """Say once that this connection is iWARP; `text` says how that is known, if not by MPA."""
        if not self.is_iwarp:
            self.is_iwarp = True
            self.note(link, text, kind=STREAM)

    def detect_crc(self, link: Link, on: bool) -> None:
        """An FPDU shows whether CRCs are in use, which the capture's start-up frames don't."""
        if self.crc is not on:
            self.crc = on
            how = "its CRC is good" if on else "its CRC field is zero"
            self.note(link, f"CRC {'on' if on else 'off'}, by the looks of an FPDU: {how}")

    def start_frame(self, link: Link, start: mpa.StartFrame) -> None:
        """Take a start-up frame from the direction `link`."""
        place = self.place
        frame = MpaFrame(place.packet, place.time_ns, link, start, None)
        if start.enhanced:
            try:
                frame.enhanced = mpa.Enhanced.parse(start.private_data)
            except ProtocolError as exc:
                frame.problems.append(exc.detail)
        if start.revision not in _REVISIONS:
            frame.problems.append(f"MPA revision {start.revision}")
        if not start.reply:
            if start.reject:
                frame.problems.append("a Request with the reject flag")
            if self.request is not None:
                frame.problems.append("both ends sent a Request")
            else:
                self.request, self.initiator = start, link
        elif self.reply is None:
            self.reply = start
            self.rejected = start.reject
        else:
            frame.problems.append("both ends sent a Reply")
        self._settle_crc()
        if not start.reply:
            self.recognise(link)
        else:
            self.recognise(link, "begins with an MPA Reply")
        place.frames.append(frame)

    def _settle_crc(self) -> None:
        frames = [frame for frame in (self.request, self.reply) if frame is not None]
        if any(frame.crc for frame in frames):
            self.crc, self.crc_negotiated = True, True
        elif len(frames) == 2:
            self.crc, self.crc_negotiated = False, True
