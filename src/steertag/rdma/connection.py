"""A connection: MPA set-up, then the queue pair's FPDUs (RFC 5044, RFC 6581; Linux: siw_cm.c).

The driver of the stream talks to `engine`: the connection itself while it is set up, the queue
pair afterwards. Set-up reads just the octets of the start-up frame, so that what follows it in
the stream is the queue pair's from its first octet on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from steertag.errors import ProtocolError
from steertag.rdma.mpa_state import MpaEvent, MpaState, step
from steertag.rdma.qp import QueuePair
from steertag.rdma.qp_state import QpState
from steertag.wire import mpa

Buffer = bytes | bytearray | memoryview

REPLY_TIMEOUT: Final = 10.0
"""Seconds that an initiator waits for the Reply, as siw does."""
REQUEST_TIMEOUT: Final = 5.0
"""Seconds that a responder waits for the Request, as siw does."""
REVISIONS: Final = (1, 2)
DEFAULT_IRD: Final = 16
DEFAULT_ORD: Final = 16


class Engine(Protocol):
    """What the driver of a stream asks of whoever has the stream."""

    @property
    def wants_to_send(self) -> bool: ...
    @property
    def closing(self) -> bool: ...
    def data_to_send(self) -> list[Buffer]: ...
    def sent(self, octets: int) -> bool: ...
    def buffers(self) -> list[memoryview]: ...
    def received(self, octets: int) -> None: ...
    def eof(self) -> None: ...
    def stream_lost(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Offer:
    """What one side brings to the set-up.

    Attributes:
        private_data: the application's octets, up to 508 (512 less IRD and ORD; towards Linux's
            siw stay at or below 251).
        crc: ask for CRC32C; it is used as soon as one side asks.
        ird, ord: Read Requests taken and made at once, 0 to 16383.
        revision: of MPA: 2, or 1 for a peer that knows no other (an initiator's choice; a
            responder answers in the revision it is asked in).
        max_ulpdu: octets of a ULPDU that we send at most.
    """

    private_data: bytes = b""
    crc: bool = True
    ird: int = DEFAULT_IRD
    ord: int = DEFAULT_ORD
    revision: int = 2
    max_ulpdu: int = mpa.MAX_ULPDU - 1

    def __post_init__(self) -> None:
        if self.revision not in REVISIONS:
            raise ValueError(f"MPA revision {self.revision}: it is 1 or 2")
        if not (0 <= self.ird <= mpa.MAX_IRD_ORD and 0 <= self.ord <= mpa.MAX_IRD_ORD):
            raise ValueError("IRD and ORD are 0 to 16383")
        limit = mpa.MAX_PRIVATE_DATA - (mpa.ENHANCED_LEN if self.revision == 2 else 0)
        if len(self.private_data) > limit:
            raise ValueError(f"private data of {len(self.private_data)} octets, at most {limit}")
        if not 128 <= self.max_ulpdu <= mpa.MAX_ULPDU:
            raise ValueError("a ULPDU has 128 to 65535 octets")


class Connection:
    """One connection over one byte stream.

    Args:
        qp: the queue pair that gets the stream once it is set up; a responder's may be given
            as late as `accept`.
        now: seconds, any monotonic clock.
        timeout: seconds that the set-up may take.
        on_change: called after every change of `state`.

    Attributes:
        state: an `MpaState`.
        on_change: as given; whoever takes a responder's Request sets its own.
        private_data: the peer's, once its frame is here.
        reason: why the set-up ended without a connection; a sentence's end.
        code: one word for it: rejected, timeout, garbled, closed, lost, revision, markers.
    """

    def __init__(
        self,
        qp: QueuePair | None,
        state: MpaState,
        now: float,
        timeout: float,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.qp = qp
        self.state = state
        self.engine: Engine = self
        self.deadline: float | None = now + timeout
        self.private_data = b""
        self.reason = ""
        self.code = ""
        self.peer_ird = self.peer_ord = 0
        self.revision = 2
        self.crc = False
        self.on_change = on_change
        self._out = b""
        self._offer: Offer | None = None
        self._frame: mpa.StartFrame | None = None
        self._in = bytearray(mpa.START_LEN + mpa.MAX_PRIVATE_DATA)
        self._have = 0
        self._want = mpa.START_LEN

    @classmethod
    def initiate(
        cls,
        qp: QueuePair,
        offer: Offer,
        now: float,
        timeout: float = REPLY_TIMEOUT,
        on_change: Callable[[], None] | None = None,
    ) -> Connection:
        """The active side: sends the Request at once."""
        connection = cls(qp, MpaState.WAIT_REPLY, now, timeout, on_change)
        connection._offer = offer
        connection.revision = offer.revision
        enhanced = offer.revision >= 2
        words = mpa.Enhanced(ird=offer.ird, ord=offer.ord).emit() if enhanced else b""
        connection._out = mpa.StartFrame(
            reply=False,
            crc=offer.crc,
            enhanced=enhanced,
            revision=offer.revision,
            private_data=words + offer.private_data,
        ).emit()
        return connection

    @classmethod
    def respond(
        cls,
        now: float,
        timeout: float = REQUEST_TIMEOUT,
        on_change: Callable[[], None] | None = None,
    ) -> Connection:
        """The passive side: waits for the Request, then for `accept` or `reject`."""
        return cls(None, MpaState.WAIT_REQUEST, now, timeout, on_change)

    @classmethod
    def established(cls, qp: QueuePair, now: float) -> Connection:
        """Without MPA set-up: `qp` is connected already, and has the stream from its first octet.

        For queue pairs that know each other by other means than a Request and a Reply.
        """
        connection = cls(qp, MpaState.ESTABLISHED, now, 0.0)
        connection.deadline = None
        connection.engine = qp
        connection.crc = qp.tx.crc
        return connection

    # -- the application -----------------------------------------------------------------------

    def accept(self, qp: QueuePair, offer: Offer) -> None:
        """Answer the Request with a Reply and give the stream to `qp`.

        The numbers of Read Requests are settled as RFC 6581 section 9.1 says: neither side makes
        more at once than the other takes. Where `qp` has ended already the set-up fails.

        Raises ValueError, and leaves the Request to be answered, for private data that a Reply in
        the Request's revision has no room for.
        """
        step(self.state, MpaEvent.ACCEPT)
        request = self._frame
        assert request is not None
        self.qp = qp
        self._offer = offer
        crc = request.crc or offer.crc
        ird, ord_ = offer.ird, offer.ord
        words = b""
        if request.enhanced:
            ird = min(ird, self.peer_ord) if self.peer_ord != mpa.MAX_IRD_ORD else ird
            ord_ = min(ord_, self.peer_ird)
            words = mpa.Enhanced(ird=ird, ord=ord_).emit()
        reply = self._reply(words + offer.private_data, crc=crc)
        if qp.state is not QpState.INIT:
            self._fail("lost", "the queue pair has ended")
            return
        self._step(MpaEvent.ACCEPT)
        self._out, self.crc = reply, crc
        self._establish(qp, ird, ord_, held=True)

    def reject(self, private_data: bytes = b"") -> None:
        """Answer the Request with a Reply that refuses it. Raises ValueError as `accept`."""
        step(self.state, MpaEvent.REJECT)
        assert self._frame is not None
        words = mpa.Enhanced(ird=0, ord=0).emit() if self._frame.enhanced else b""
        self._out = self._reply(words + private_data, reject=True)
        self._step(MpaEvent.REJECT)
        self.code, self.reason = "rejected", "rejected by the application"
        self._changed()

    # -- time ----------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> None:
        """To be called when `deadline` has passed."""
        if self.deadline is None or now < self.deadline:
            return
        waited_for = {
            MpaState.WAIT_REPLY: "no MPA Reply from the peer",
            MpaState.WAIT_REQUEST: "no MPA Request from the peer",
            MpaState.REQUESTED: "the application neither accepted nor rejected",
        }
        self._fail("timeout", waited_for.get(self.state, "time-out"))

    # -- the stream ----------------------------------------------------------------------------

    @property
    def wants_to_send(self) -> bool:
        return bool(self._out)

    @property
    def closing(self) -> bool:
        return self.state in (MpaState.REJECTED, MpaState.FAILED) and not self._out

    def data_to_send(self) -> list[Buffer]:
        return [self._out] if self._out else []

    def sent(self, octets: int) -> bool:
        self._out = self._out[octets:]
        if not self._out and self.state is MpaState.ESTABLISHED and self.qp is not None:
            self.engine = self.qp
        return bool(self._out)

    def buffers(self) -> list[memoryview]:
        if self.state in (MpaState.WAIT_REPLY, MpaState.WAIT_REQUEST):
            return [memoryview(self._in)[self._have : self._want]]
        return []

    def received(self, octets: int) -> None:
        self._have += octets
        try:
            frame = mpa.StartFrame.parse(memoryview(self._in)[: self._have])
            if frame is None:
                if self._have >= mpa.START_LEN:
                    self._want = mpa.START_LEN + int.from_bytes(self._in[18:20], "big")
                return
            self._frame = frame
            self._take_frame(frame)
        except ProtocolError as exc:
            self._fail("garbled", exc.detail)

    def eof(self) -> None:
        self._fail("closed", "the peer closed the stream during MPA set-up")

    def stream_lost(self, reason: str) -> None:
        self._fail("lost", reason)

    # -- inside --------------------------------------------------------------------------------

    def _step(self, event: MpaEvent) -> None:
        self.state = step(self.state, event)

    def _changed(self) -> None:
        self.deadline = None if self.state is not MpaState.REQUESTED else self.deadline
        if self.on_change is not None:
            self.on_change()

    def _fail(self, code: str, reason: str) -> None:
        if self.state is MpaState.ESTABLISHED:
            # The Reply never left: the queue pair has the connection, and loses it.
            if self.qp is not None:
                self.qp.stream_lost(reason)
            return
        if self.state not in (MpaState.REJECTED, MpaState.FAILED):
            self.code, self.reason = code, reason
        self._step(MpaEvent.FAIL)
        self._out = b""
        self._changed()

    def _take_frame(self, frame: mpa.StartFrame) -> None:
        expected_reply = self.state is MpaState.WAIT_REPLY
        if frame.reply != expected_reply:
            self._fail("garbled", "MPA frame has the key of the other direction")
        elif frame.revision not in REVISIONS:
            self._fail("revision", f"the peer speaks MPA revision {frame.revision}")
        elif frame.enhanced and frame.revision < 2:
            self._fail("garbled", "enhanced MPA frame of revision 1")
        else:
            private_data = frame.private_data
            if frame.enhanced:
                words = mpa.Enhanced.parse(private_data)
                self.peer_ird, self.peer_ord = words.ird, words.ord
                private_data = private_data[mpa.ENHANCED_LEN :]
            self.private_data = private_data
            if expected_reply:
                self._take_reply(frame)
            else:
                self._take_request(frame)

    def _take_request(self, frame: mpa.StartFrame) -> None:
        self.revision = frame.revision
        self._step(MpaEvent.REQUEST_RECEIVED)
        if frame.markers:
            self.reject()
            self.code, self.reason = "markers", "the peer asks for MPA markers"
            return
        self._changed()

    def _take_reply(self, frame: mpa.StartFrame) -> None:
        offer = self._offer
        assert offer is not None
        if frame.reject:
            self.code, self.reason = "rejected", "rejected by the peer"
            self._step(MpaEvent.REJECT_RECEIVED)
            self._changed()
            return
        if frame.revision != offer.revision:
            self._fail("revision", f"the peer answers in MPA revision {frame.revision}")
            return
        if frame.markers:
            self._fail("markers", "the peer asks for MPA markers")
            return
        self.crc = offer.crc or frame.crc
        ird, ord_ = offer.ird, offer.ord
        if frame.enhanced:
            ord_ = min(ord_, self.peer_ird)
        assert self.qp is not None
        if self.qp.state is not QpState.INIT:
            self._fail("lost", "the queue pair has ended")
            return
        self._step(MpaEvent.REPLY_RECEIVED)
        self._establish(self.qp, ird, ord_, held=False)
        self.engine = self.qp

    def _reply(self, private_data: bytes, *, crc: bool = False, reject: bool = False) -> bytes:
        request = self._frame
        assert request is not None
        return mpa.StartFrame(
            reply=True,
            crc=crc,
            reject=reject,
            enhanced=request.enhanced,
            revision=request.revision,
            private_data=private_data,
        ).emit()

    def _establish(self, qp: QueuePair, ird: int, ord_: int, *, held: bool) -> None:
        assert self._offer is not None
        qp.connected(crc=self.crc, ird=ird, ord=ord_, held=held, max_ulpdu=self._offer.max_ulpdu)
        self._changed()
