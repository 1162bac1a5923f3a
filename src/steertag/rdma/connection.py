"""A connection: MPA set-up, then the queue pair's FPDUs (RFC 5044, RFC 6581; Linux: siw_cm.c).

The driver of the stream talks to `engine`: the connection itself while it is set up, the queue
pair afterwards (behind `markers.Marked` where there are markers). Set-up reads just the octets of
the start-up frame, and of the ready-to-receive frame in peer-to-peer mode, so that what follows in
the stream is the queue pair's from its first octet on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from steertag.errors import ProtocolError
from steertag.rdma import rtr
from steertag.rdma.markers import MAX_ULPDU as MAX_MARKED_ULPDU
from steertag.rdma.markers import Marked, MarkerInserter, MarkerStripper
from steertag.rdma.mpa_state import MpaEvent, MpaState, step
from steertag.rdma.offer import (
    DEFAULT_IRD,
    DEFAULT_ORD,
    REVISIONS,
    Agreement,
    Offer,
    RefusedError,
    answered,
    settled,
)
from steertag.rdma.qp import QueuePair
from steertag.rdma.qp_state import QpState
from steertag.wire import mpa, rdmap

__all__ = [
    "DEFAULT_IRD",
    "DEFAULT_ORD",
    "REPLY_TIMEOUT",
    "REQUEST_TIMEOUT",
    "Agreement",
    "Connection",
    "Engine",
    "Offer",
]

Buffer = bytes | bytearray | memoryview

REPLY_TIMEOUT: Final = 10.0
"""Seconds that an initiator waits for the Reply, as siw does."""
REQUEST_TIMEOUT: Final = 5.0
"""Seconds that a responder waits for the Request, as siw does, and for ready-to-receive."""
_CODE_OF: Final = {mpa.E_INSUFFICIENT_IRD: "ird", mpa.E_NO_MATCHING_RTR: "rtr"}


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
        code: one word for it: rejected, timeout, garbled, closed, lost, revision (MPA's), crc
            (required, and left out by the peer), rtr (no ready-to-receive frame that both know, or
            another first FPDU), ird (too few Read Requests taken), terminated (by the peer).
        agreement: what both sides settled on, from then on.
        peer_revision: of the peer's frame, once it is here.
        fallback: why the connection is made in revision 1 after revision 2 had failed; else "".
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
        self.peer_revision: int | None = None
        self.revision = 2
        self.crc = False
        self.agreement: Agreement | None = None
        self.fallback = ""
        self.on_change = on_change
        self._timeout = timeout
        self._out = b""
        self._offer: Offer | None = None
        self._frame: mpa.StartFrame | None = None
        self._words: mpa.Enhanced | None = None
        self._in = bytearray(mpa.START_LEN + mpa.MAX_PRIVATE_DATA)
        self._have = 0
        self._want = mpa.START_LEN
        self._next: Engine = self
        self._inserter: MarkerInserter | None = None
        self._stripper: MarkerStripper | None = None

    @classmethod
    def initiate(
        cls,
        qp: QueuePair,
        offer: Offer,
        now: float,
        timeout: float = REPLY_TIMEOUT,
        on_change: Callable[[], None] | None = None,
        *,
        fallback: str = "",
    ) -> Connection:
        """The active side: sends the Request at once."""
        connection = cls(qp, MpaState.WAIT_REPLY, now, timeout, on_change)
        connection._offer = offer
        connection.revision = offer.revision
        connection.fallback = fallback
        connection._out = offer.request().emit()
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

    def accept(self, qp: QueuePair, offer: Offer, now: float | None = None) -> None:
        """Answer the Request with a Reply and give the stream to `qp`.

        In peer-to-peer mode the connection is ESTABLISHED once the peer's ready-to-receive frame is
        here, which has as long to come as the Request had, from `now` on (None: what is left of
        that). What is posted until then waits. Where `qp` has ended already the set-up fails.

        Raises ValueError, and leaves the Request to be answered, for private data that a Reply in
        the Request's revision has no room for.
        """
        step(self.state, MpaEvent.ACCEPT)
        assert self._frame is not None
        self.qp = qp
        self._offer = offer
        agreement, words = answered(self._frame, self._words, offer)
        reply = self._reply(words + offer.private_data, crc=agreement.crc, markers=offer.markers)
        if qp.state is not QpState.INIT:
            self._fail("lost", "the queue pair has ended")
            return
        if now is not None:
            self.deadline = now + self._timeout
        self._out = reply
        self._have, self._want = 0, mpa.LENGTH_LEN
        self._step(MpaEvent.ACCEPT if agreement.rtr is None else MpaEvent.ACCEPT_PEER_TO_PEER)
        self._connect(qp, agreement, responder=True)
        self._changed()

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
            MpaState.WAIT_RTR: "no ready-to-receive frame from the peer",
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
        if not self._out and self.state is MpaState.ESTABLISHED:
            self.engine = self._next
        return bool(self._out)

    def buffers(self) -> list[memoryview]:
        waiting = self.state in (MpaState.WAIT_REPLY, MpaState.WAIT_REQUEST)
        if waiting or (self.state is MpaState.WAIT_RTR and not self._out):
            return [memoryview(self._in)[self._have : self._want]]
        return []

    def received(self, octets: int) -> None:
        self._have += octets
        if self.state is MpaState.WAIT_RTR:
            self._take_first_fpdu()
            return
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
        if self.state not in (MpaState.REQUESTED, MpaState.WAIT_RTR):
            self.deadline = None
        if self.on_change is not None:
            self.on_change()

    def _fail(self, code: str, reason: str, goodbye: bytes = b"") -> None:
        """End the set-up; `goodbye` is still sent."""
        if self.state is MpaState.ESTABLISHED:
            # The Reply, or ready-to-receive, never left: the queue pair has the connection.
            if self.qp is not None:
                self.qp.stream_lost(reason)
            return
        if self.state not in (MpaState.REJECTED, MpaState.FAILED):
            self.code, self.reason = code, reason
        waited = self.state is MpaState.WAIT_RTR
        self._step(MpaEvent.FAIL)
        self._out = goodbye
        if waited and self.qp is not None:
            self.qp.stream_lost(reason)
        self._changed()

    def _take_frame(self, frame: mpa.StartFrame) -> None:
        expected_reply = self.state is MpaState.WAIT_REPLY
        if frame.reply != expected_reply:
            self._fail("garbled", "MPA frame has the key of the other direction")
            return
        self.peer_revision = frame.revision
        if frame.revision not in REVISIONS:
            self._fail("revision", f"the peer speaks MPA revision {frame.revision}")
        elif frame.enhanced and frame.revision < 2:
            self._fail("garbled", "enhanced MPA frame of revision 1")
        else:
            private_data = frame.private_data
            if frame.enhanced:
                self._words = words = mpa.Enhanced.parse(private_data)
                self.peer_ird, self.peer_ord = words.ird, words.ord
                private_data = private_data[mpa.ENHANCED_LEN :]
            self.private_data = private_data
            if expected_reply:
                self._take_reply(frame)
            else:
                self.revision = frame.revision
                self._step(MpaEvent.REQUEST_RECEIVED)
                self._changed()

    def _take_reply(self, frame: mpa.StartFrame) -> None:
        offer, qp = self._offer, self.qp
        assert offer is not None
        assert qp is not None
        if frame.reject:
            self.code, self.reason = "rejected", "rejected by the peer"
            self._step(MpaEvent.REJECT_RECEIVED)
            self._changed()
        elif frame.revision != offer.revision:
            self._fail("revision", f"the peer answers in MPA revision {frame.revision}")
        elif frame.enhanced != (offer.revision >= 2):
            self._fail("garbled", "the peer's Reply is enhanced where the Request isn't, or not")
        elif qp.state is not QpState.INIT:
            gone = RefusedError("lost", "the queue pair has ended", mpa.E_LOCAL_CATASTROPHIC)
            self._refuse(gone, frame)
        else:
            try:
                agreement = settled(offer, frame, self._words)
            except RefusedError as exc:
                self._refuse(exc, frame)
                return
            self._step(MpaEvent.REPLY_RECEIVED)
            self._connect(qp, agreement, responder=False)
            if agreement.rtr is not None:
                self._out = self._framed(rtr.ulpdu_of(agreement.rtr))
                qp.counters.tx_fpdus += 1
            else:
                self.engine = self._next
            self._changed()

    def _refuse(self, refusal: RefusedError, reply: mpa.StartFrame) -> None:
        """The Reply leaves no connection to be had: say so, where the RFC has words for it."""
        goodbye = b""
        if refusal.error is not None:
            assert self._offer is not None
            self.crc = reply.crc or self._offer.asks_for_crc
            self._inserter = MarkerInserter(self.crc) if reply.markers else None
            error = ProtocolError(mpa.LAYER_LLP, mpa.ETYPE_MPA, refusal.error, str(refusal))
            goodbye = self._framed(rtr.terminate_ulpdu(error))
        self._fail(refusal.code, str(refusal), goodbye)

    def _reply(
        self,
        private_data: bytes,
        *,
        crc: bool = False,
        markers: bool = False,
        reject: bool = False,
    ) -> bytes:
        request = self._frame
        assert request is not None
        return mpa.StartFrame(
            reply=True,
            crc=crc,
            markers=markers,
            reject=reject,
            enhanced=request.enhanced,
            revision=request.revision,
            private_data=private_data,
        ).emit()

    # -- the first FPDUs -----------------------------------------------------------------------

    def _connect(self, qp: QueuePair, agreement: Agreement, *, responder: bool) -> None:
        """Tell the queue pair what holds, and get ready to hand the stream over."""
        assert self._offer is not None
        self.agreement = agreement
        self.crc = agreement.crc
        max_ulpdu = self._offer.max_ulpdu
        if agreement.markers_sent:
            max_ulpdu = min(max_ulpdu, MAX_MARKED_ULPDU)
            self._inserter = MarkerInserter(agreement.crc)
        if agreement.markers_received:
            self._stripper = MarkerStripper(agreement.crc)
        sends, reads = 1 + (agreement.rtr == "send"), 1 + (agreement.rtr == "read")
        qp.connected(
            crc=agreement.crc,
            ird=agreement.ird,
            ord=agreement.ord,
            held=responder,
            max_ulpdu=max_ulpdu,
            send_msn=1 if responder else sends,
            recv_msn=sends if responder else 1,
            read_msn=1 if responder else reads,
            request_msn=reads if responder else 1,
        )
        self._next = qp
        if self._inserter is not None or self._stripper is not None:
            self._next = Marked(qp, self._inserter, self._stripper)

    def _framed(self, ulpdu: bytes) -> bytes:
        """An FPDU of the connection's own."""
        fpdu = b"".join(mpa.emit_fpdu([ulpdu], crc=self.crc))
        return fpdu if self._inserter is None else self._inserter.insert(fpdu)

    def _take_first_fpdu(self) -> None:
        """Read just the peer's first FPDU, which has to be the ready-to-receive frame."""
        try:
            fpdu = self._first_fpdu()
            if fpdu is None:
                return
            if self.crc and not fpdu.crc_ok:
                raise ProtocolError(
                    mpa.LAYER_LLP, mpa.ETYPE_MPA, mpa.E_CRC, "CRC32C of the first FPDU is wrong"
                )
            first = rtr.take_untrusted(fpdu.ulpdu)
            if not isinstance(first, rdmap.Terminate):
                self._ready(*first)
                return
        except ProtocolError as exc:
            goodbye = self._framed(rtr.terminate_ulpdu(exc))
            self._fail(
                "garbled" if exc.code != mpa.E_NO_MATCHING_RTR else "rtr", exc.detail, goodbye
            )
            return
        is_mpa = (first.layer, first.etype) == (mpa.LAYER_LLP, mpa.ETYPE_MPA)
        self._fail(
            _CODE_OF.get(first.code, "terminated") if is_mpa else "terminated",
            f"the peer ended the set-up: layer {first.layer}, type {first.etype},"
            f" code {first.code:#04x}",
        )

    def _first_fpdu(self) -> mpa.Fpdu | None:
        """The peer's first FPDU once it is whole, without markers. Raises ProtocolError."""
        view = memoryview(self._in)[: self._have]
        if self._stripper is not None:
            size = self._stripper.size(view)
        elif len(view) < mpa.LENGTH_LEN:
            size = mpa.LENGTH_LEN
        else:
            size = mpa.fpdu_len(int.from_bytes(view[: mpa.LENGTH_LEN], "big"))
        if size > rtr.MAX_FPDU:
            raise rtr.no_match(f"first FPDU of {size} octets instead of ready-to-receive")
        self._want = size
        if len(view) < size:
            return None
        return mpa.Fpdu.parse(view if self._stripper is None else self._stripper.strip(view))

    def _ready(self, kind: rtr.RtrKind, answer: bytes) -> None:
        """The ready-to-receive frame is here: the queue pair may send."""
        assert self.qp is not None
        assert self.agreement is not None
        if kind != self.agreement.rtr:
            raise rtr.no_match(
                f"ready-to-receive by {kind}, and {self.agreement.rtr} was agreed on"
            )
        self._step(MpaEvent.RTR_RECEIVED)
        self.qp.counters.rx_fpdus += 1
        self.qp.tx.held = False
        if answer:
            self._out = self._framed(answer)
            self.qp.counters.tx_fpdus += 1
        else:
            self.engine = self._next
        self._changed()
