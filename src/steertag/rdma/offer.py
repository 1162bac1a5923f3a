"""What the two ends of a connection bring to its set-up, and what they agree on.

RFC 5044 section 7.1 (markers, CRC), RFC 6581 section 9 (IRD and ORD, peer-to-peer mode).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from steertag.rdma.rtr import RTR_KINDS, RtrKind
from steertag.wire import mpa

REVISIONS: Final = (1, 2)
DEFAULT_IRD: Final = 16
DEFAULT_ORD: Final = 16
NOT_NEGOTIATED: Final = mpa.MAX_IRD_ORD
"""As an IRD or ORD: the number is the applications' business (RFC 6581 section 9.1)."""


class RefusedError(Exception):
    """There is no connection to be had on what the peer says.

    Attributes:
        code: one word, as in `Connection.code`.
        error: code of the MPA error that a Terminate tells the peer; None where it is told
            nothing.
    """

    def __init__(self, code: str, reason: str, error: int | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.error = error


@dataclass(frozen=True, slots=True)
class Offer:
    """What one side brings to the set-up.

    Attributes:
        private_data: the application's octets, up to 508 (512 less IRD and ORD; towards Linux's
            siw stay at or below 251).
        crc: ask for CRC32C; it is used as soon as one side asks.
        crc_required: ask for it, and take no Reply that leaves it out, instead of trusting that a
            peer which doesn't ask for CRCs makes and checks them (siw: `mpa_crc_required`).
        markers: have the peer put markers into what it sends. Whether we put them into what we
            send is the peer's choice.
        ird, ord: Read Requests taken and made at once, 0 to 16382; 16383: not negotiated.
        revision: of MPA: 2, or 1 for a peer that knows no other (an initiator's choice; a
            responder answers in the revision it is asked in).
        revision_fallback: an initiator's: where the peer turns out not to know revision 2, let
            the connection manager connect again in revision 1.
        peer_to_peer: an initiator's: send a ready-to-receive frame, so that the responder's
            application can be the first to send.
        rtr: the kinds of ready-to-receive frame that this side knows, the preferred one first.
        max_ulpdu: octets of a ULPDU that we send at most.
    """

    private_data: bytes = b""
    crc: bool = True
    ird: int = DEFAULT_IRD
    ord: int = DEFAULT_ORD
    revision: int = 2
    max_ulpdu: int = mpa.MAX_ULPDU - 1
    crc_required: bool = False
    markers: bool = False
    revision_fallback: bool = False
    peer_to_peer: bool = False
    rtr: tuple[RtrKind, ...] = RTR_KINDS

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
        if not self.rtr or not set(self.rtr) <= set(RTR_KINDS):
            raise ValueError(f"RTR is one or more of {', '.join(RTR_KINDS)}, not {self.rtr!r}")
        if self.peer_to_peer and self.revision == 1:
            raise ValueError("peer-to-peer mode needs MPA revision 2")

    @property
    def asks_for_crc(self) -> bool:
        return self.crc or self.crc_required

    def request(self) -> mpa.StartFrame:
        """The initiator's Request."""
        words = b""
        if self.revision >= 2:
            ord_ = self.ord
            if self.peer_to_peer and "read" in self.rtr:
                ord_ = max(ord_, 1)  # the peer needs room for the ready-to-receive Read
            words = _words(self.ird, ord_, self.rtr if self.peer_to_peer else None)
        return mpa.StartFrame(
            reply=False,
            markers=self.markers,
            crc=self.asks_for_crc,
            enhanced=bool(words),
            revision=self.revision,
            private_data=words + self.private_data,
        )

    def in_revision_1(self) -> Offer:
        """The same for a peer that knows no revision 2: without what that adds."""
        return replace(self, revision=1, revision_fallback=False, peer_to_peer=False)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds for a connection.

    Attributes:
        crc: CRC32C, both ways.
        ird, ord: Read Requests taken and made at once.
        markers_sent, markers_received: markers in what we send, and in what we get.
        rtr: the ready-to-receive frame that the initiator sends; None without peer-to-peer mode.
    """

    crc: bool
    ird: int
    ord: int
    markers_sent: bool = False
    markers_received: bool = False
    rtr: RtrKind | None = None


def answered(
    request: mpa.StartFrame, asked: mpa.Enhanced | None, offer: Offer
) -> tuple[Agreement, bytes]:
    """The responder's side: what holds, and the words that the Reply's private data begins with.

    Neither side makes more Read Requests at once than the other takes. Of the ready-to-receive
    frames that the initiator knows the Reply names the one that `offer` prefers; where it knows
    none of the initiator's, all of its own, and the initiator ends the connection.
    """
    ird, ord_ = offer.ird, offer.ord
    kind: RtrKind | None = None
    words = b""
    if asked is not None:
        if asked.ord != NOT_NEGOTIATED:
            ird = min(ird, asked.ord)
        if asked.ird != NOT_NEGOTIATED:
            ord_ = min(ord_, asked.ird)
        named: tuple[RtrKind, ...] | None = None
        if asked.peer_to_peer:
            kind = next((kind for kind in offer.rtr if kind in _kinds(asked)), None)
            named = (kind,) if kind is not None else offer.rtr
            kind = kind or named[0]
            if "read" in named:
                ird = max(ird, 1)
        words = _words(
            NOT_NEGOTIATED if asked.ord == NOT_NEGOTIATED else ird,
            NOT_NEGOTIATED if asked.ird == NOT_NEGOTIATED else ord_,
            named,
        )
    crc = request.crc or offer.asks_for_crc
    return Agreement(crc, ird, ord_, request.markers, offer.markers, kind), words


def settled(offer: Offer, reply: mpa.StartFrame, said: mpa.Enhanced | None) -> Agreement:
    """The initiator's side, once the Reply is here. Raises RefusedError."""
    if offer.crc_required and not reply.crc:
        raise RefusedError("crc", "CRC32C is required and the peer's Reply leaves it out")
    kind: RtrKind | None = None
    ord_ = offer.ord
    if said is not None:
        if said.ird != NOT_NEGOTIATED:
            ord_ = min(ord_, said.ird)
        if NOT_NEGOTIATED not in (said.ord, offer.ird) and said.ord > offer.ird:
            raise RefusedError(
                "ird",
                f"the peer makes {said.ord} Read Requests at once and IRD is {offer.ird}",
                mpa.E_INSUFFICIENT_IRD,
            )
        if offer.peer_to_peer:
            kind = _chosen(offer, said)
    crc = reply.crc or offer.asks_for_crc
    return Agreement(crc, offer.ird, ord_, reply.markers, offer.markers, kind)


def _chosen(offer: Offer, said: mpa.Enhanced) -> RtrKind:
    """The ready-to-receive frame to send."""
    named = _kinds(said) if said.peer_to_peer else ()
    agreed = [kind for kind in offer.rtr if kind in named]
    if not agreed:
        raise RefusedError(
            "rtr",
            f"the peer takes none of the ready-to-receive frames {', '.join(offer.rtr)}",
            mpa.E_NO_MATCHING_RTR,
        )
    possible = [kind for kind in agreed if kind != "read" or said.ird]
    if not possible:
        raise RefusedError(
            "ird",
            "the peer wants a Read to say ready-to-receive, and takes none",
            mpa.E_INSUFFICIENT_IRD,
        )
    return possible[0]


def _kinds(words: mpa.Enhanced) -> tuple[RtrKind, ...]:
    named = {"write": words.rtr_write, "read": words.rtr_read, "send": words.rtr_send}
    return tuple(kind for kind in RTR_KINDS if named[kind])


def _words(ird: int, ord_: int, kinds: tuple[RtrKind, ...] | None) -> bytes:
    """IRD and ORD; `kinds` are the ready-to-receive frames, None without peer-to-peer mode."""
    named = kinds or ()
    return mpa.Enhanced(
        ird=ird,
        ord=ord_,
        peer_to_peer=kinds is not None,
        rtr_send="send" in named,
        rtr_write="write" in named,
        rtr_read="read" in named,
    ).emit()
