"""Finds the next FPDU in a stream whose FPDU boundaries are unknown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from steertag.observe.decode import markers
from steertag.observe.decode.headers import plausible_length
from steertag.observe.decode.order import SegmentOrder
from steertag.wire import ddp, mpa
from steertag.wire.crc32c import CRC_FIELD, crc32c

# Length, then DDP's and RDMAP's control octets: version 1, no reserved bit, opcode and T flag fit.
_HEADER: Final = re.compile(rb"..(?:[\x01\x41][\x41\x43-\x4b]|[\x81\xc1][\x40\x42])", re.DOTALL)
_HEADER_LEN: Final = 4
_HEADERS_LEN: Final = mpa.LENGTH_LEN + ddp.UNTAGGED_LEN
_CRC_SHARE: Final = 64  # octets whose CRC may be computed, for each octet that is searched


@dataclass(slots=True)
class Terms:
    """What is known of the direction that is searched.

    Attributes:
        crc: CRCs are in use; None if nobody knows.
        first: position of the first FPDU's first octet: FPDUs begin at multiples of four octets
            from there. None if that is unknown.
        markers: there are markers, the first one at `first`.
        sure: the stream is iWARP.
        order: what went before.
    """

    crc: bool | None
    first: int | None
    markers: bool
    sure: bool
    order: SegmentOrder


class Search:
    """A search in one direction. Attributes:

    searched: octets so far.
    keep_from: offset in the buffer before which nothing is of interest any more.
    """

    def __init__(self) -> None:
        self.searched = 0
        self.keep_from = 0
        self._crc_budget = 0
        self._crc_known: tuple[int, bool] = (-1, False)  # position of an FPDU, its CRC is good

    def fed(self, octets: int) -> None:
        self.searched += octets
        self._crc_budget += octets * _CRC_SHARE

    def find(
        self, buf: bytearray, base: int, starts: set[int], terms: Terms, *, final: bool
    ) -> int | None:
        """Offset of an FPDU in `buf`, a marker before its length field included.

        Args:
            base: the buffer's position in the stream.
            starts: positions at which segments begin.
            final: nothing comes behind the buffer's octets.

        None: there is none, or the octets that would prove it are still to come; then those
        before `keep_from` may be dropped.
        """
        at = 0
        while (found := _HEADER.search(buf, at)) is not None:
            at = found.start() + 1
            begin = self._begin(found.start(), base, terms)
            if begin is None:
                continue
            verdict = self._judge(buf, begin, base, base + begin in starts, terms, final=final)
            if verdict:
                return begin
            if verdict is None and not final:
                self.keep_from = begin
                return None
        self.keep_from = max(len(buf) - (_HEADER_LEN - 1) - markers.MARKER_LEN, 0)
        return None

    @staticmethod
    def _begin(header: int, base: int, terms: Terms) -> int | None:
        """Where the FPDU begins whose length field is at `header`; None if none can be there."""
        if terms.first is None:
            return header
        position = base + header - terms.first
        if position & 3:
            return None
        if not terms.markers:
            return header
        within = position % markers.SPACING
        if within == 0:
            return None
        begin = header - markers.MARKER_LEN if within == markers.MARKER_LEN else header
        return begin if begin >= 0 else None

    @staticmethod
    def _look(buf: bytearray, at: int, base: int, terms: Terms) -> tuple[int | None, int, bytes]:
        """ULPDU length as of `plausible_length`, octets in all, and the headers."""
        if not terms.markers or terms.first is None:
            length = plausible_length(buf, at)
            size = mpa.fpdu_len(length) if length else 0
            return length, size, bytes(buf[at : at + _HEADERS_LEN])
        phase = base + at - terms.first
        found = markers.extent(buf, at, phase)
        if found is None:
            return None, 0, b""
        room = _HEADERS_LEN + 2 * markers.MARKER_LEN
        head, _ = markers.without_markers(bytes(buf[at : at + room]), phase)
        return plausible_length(head, 0), found.size, head

    def _judge(
        self, buf: bytearray, at: int, base: int, at_start: bool, terms: Terms, *, final: bool
    ) -> bool | None:
        """Whether an FPDU is at `at`; None if more octets are needed to tell."""
        length, size, head = self._look(buf, at, base, terms)
        if not length:
            return None if length is None else False
        if terms.sure and at_start and _is_familiar(head, terms.order):
            return True
        if len(buf) < at + size:
            return None
        (sent,) = CRC_FIELD.unpack_from(buf, at + size - mpa.CRC_LEN)
        if self._crc_is_good(buf, at, base, size, sent):
            return True
        if terms.crc:
            return False
        proofs = (1 if terms.sure else 2) if sent == 0 else (2 if terms.sure else 4)
        at += size
        for _ in range(proofs):
            length, size, _ = self._look(buf, at, base, terms)
            if length is None:
                # The end of what there is, and a CRC field of zero, have to do.
                return True if final and terms.sure and sent == 0 and at == len(buf) else None
            if length == 0:
                return False
            at += size
        return True

    def _crc_is_good(self, buf: bytearray, at: int, base: int, size: int, sent: int) -> bool:
        if self._crc_known[0] != base + at:
            if size > self._crc_budget:
                return False
            self._crc_budget -= size
            computed = crc32c(bytes(buf[at : at + size - mpa.CRC_LEN]))
            self._crc_known = (base + at, computed == sent)
        return self._crc_known[1]


def _is_familiar(head: bytes, order: SegmentOrder) -> bool:
    """Whether the headers go on with what this direction sent before."""
    if head[2] & ddp.T_FLAG:
        return int.from_bytes(head[4:8], "big") in order.familiar_stags
    qn, msn = (int.from_bytes(head[at : at + 4], "big") for at in (8, 12))
    return order.foresees(qn, msn)
