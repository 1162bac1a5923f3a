"""Markers in the stream (RFC 5044 section 4.3), put in and taken out beneath the queue pair.

A marker is 4 octets: 16 reserved bits and FPDUPTR, how many octets before the marker the length
field of its FPDU began. There is one right before the first FPDU and one at every 512th octet of
the stream after it, inside FPDUs and between them; the CRC of an FPDU counts the markers in it, a
marker between two FPDUs belonging to the second.

`Marked` stands between a connection's driver and its queue pair where markers were agreed on, in
one direction or both; connections without markers don't come by here. It costs a copy each way.
"""

from __future__ import annotations

import struct
from typing import Final

from steertag.errors import ProtocolError
from steertag.rdma.qp import QueuePair
from steertag.rdma.qp_state import QpState
from steertag.wire import mpa
from steertag.wire.crc32c import CRC_FIELD, crc32c

Buffer = bytes | bytearray | memoryview

SPACING: Final = 512
MARKER_LEN: Final = 4
MAX_ULPDU: Final = 65012
"""Octets of a ULPDU at most: its FPDU's last marker must still be able to point to its start."""
_DATA: Final = SPACING - MARKER_LEN
_MARKER: Final = struct.Struct("!HH")
_POINTER_MASK: Final = 0xFFFC
_BUFFER_OCTETS: Final = 2 * (mpa.fpdu_len(mpa.MAX_ULPDU) + MARKER_LEN * 130)


class _Stream:
    """Where in the stream of FPDUs and markers one direction is.

    Args:
        crc: CRC32C is in use.
    """

    def __init__(self, crc: bool) -> None:
        self._crc = crc
        self._position = 0  # modulo SPACING: where that is 0 there is a marker

    @property
    def _head(self) -> int:
        """Octets of marker right before the next FPDU's length field."""
        return 0 if self._position else MARKER_LEN

    def _pointer(self, at: int) -> int:
        """FPDUPTR of a marker `at` octets behind where the next FPDU, or its marker, begins."""
        return max(at - self._head, 0) & _POINTER_MASK

    def _advance(self, octets: int) -> None:
        self._position = (self._position + octets) % SPACING


class MarkerInserter(_Stream):
    """Puts markers into outgoing FPDUs, from the first one of the stream on."""

    def insert(self, fpdus: Buffer) -> bytes:
        """Whole FPDUs with their markers, and with the CRC that counts these."""
        out = []
        at = 0
        while at < len(fpdus):
            size = mpa.fpdu_len(int.from_bytes(fpdus[at : at + mpa.LENGTH_LEN], "big"))
            out.append(self._insert_one(memoryview(fpdus)[at : at + size]))
            at += size
        return b"".join(out)

    def _insert_one(self, fpdu: memoryview) -> bytearray:
        at = -self._position % SPACING
        marked = bytearray(fpdu[:at])
        while at < len(fpdu):
            marked += _MARKER.pack(0, self._pointer(len(marked)))
            marked += fpdu[at : at + _DATA]
            at += _DATA
        value = crc32c(memoryview(marked)[: -mpa.CRC_LEN]) if self._crc else 0
        marked[-mpa.CRC_LEN :] = CRC_FIELD.pack(value)
        self._advance(len(marked))
        return marked


class MarkerStripper(_Stream):
    """Takes markers out of incoming FPDUs, from the first one of the stream on."""

    def size(self, buf: Buffer) -> int:
        """Octets of the stream that the FPDU at the beginning of `buf` takes.

        While its length isn't there yet: octets until it is.
        """
        head = self._head
        if len(buf) < head + mpa.LENGTH_LEN:
            return head + mpa.LENGTH_LEN
        octets = mpa.fpdu_len(int.from_bytes(buf[head : head + mpa.LENGTH_LEN], "big"))
        room = -self._position % SPACING
        markers = 0 if octets <= room else 1 + (octets - room - 1) // _DATA
        return octets + MARKER_LEN * markers

    def strip(self, fpdu: memoryview) -> bytearray:
        """The FPDU, given whole, without its markers, and with the CRC that it has without them.

        A CRC that is wrong stays wrong. Raises ProtocolError where the CRC is right, or isn't
        used, and a marker points elsewhere than to the FPDU's length field.
        """
        at = -self._position % SPACING
        stripped = bytearray(fpdu[:at])
        astray = False
        while at < len(fpdu):
            pointer = _MARKER.unpack_from(fpdu, at)[1] & _POINTER_MASK
            astray = astray or pointer != self._pointer(at)
            stripped += fpdu[at + MARKER_LEN : at + SPACING]
            at += SPACING
        difference = 0
        if self._crc:
            received = CRC_FIELD.unpack_from(fpdu, len(fpdu) - mpa.CRC_LEN)[0]
            difference = crc32c(fpdu[: -mpa.CRC_LEN]) ^ received
            value = crc32c(memoryview(stripped)[: -mpa.CRC_LEN])
            stripped[-mpa.CRC_LEN :] = CRC_FIELD.pack(value ^ difference)
        if astray and not difference:
            raise ProtocolError(
                mpa.LAYER_LLP, mpa.ETYPE_MPA, mpa.E_MARKER, "a marker points to no FPDU's start"
            )
        self._advance(len(fpdu))
        return stripped


class Marked:
    """A queue pair's stream with markers in it: an `Engine` around the queue pair.

    Args:
        qp: connected.
        inserter: for what goes out; None where the peer wants no markers.
        stripper: for what comes in; None where we asked for no markers.
    """

    def __init__(
        self, qp: QueuePair, inserter: MarkerInserter | None, stripper: MarkerStripper | None
    ) -> None:
        self._qp = qp
        self._inserter = inserter
        self._stripper = stripper
        self._out = memoryview(b"")
        self._framed = 0  # octets that the queue pair knows of those in `_out`
        self._buf = memoryview(bytearray(_BUFFER_OCTETS if stripper is not None else 0))
        self._start = self._end = 0

    @property
    def wants_to_send(self) -> bool:
        return self._qp.wants_to_send or (bool(self._out) and not self._qp.ended)

    @property
    def closing(self) -> bool:
        return self._qp.closing

    def data_to_send(self) -> list[Buffer]:
        """What the queue pair sends, with markers: one part, the same until all of it is sent."""
        if self._inserter is None:
            return self._qp.data_to_send()
        if self._qp.ended:
            return []
        if not self._out:
            parts = self._qp.data_to_send()
            if not parts:
                return []
            octets = b"".join(parts)
            self._framed = len(octets)
            self._out = memoryview(self._inserter.insert(octets))
            self._qp.counters.tx_bytes += len(self._out) - len(octets)
        return [self._out]

    def sent(self, octets: int) -> bool:
        """Requests complete once the last octet of what was framed with them is sent."""
        if self._inserter is None:
            return self._qp.sent(octets)
        self._out = self._out[octets:]
        return bool(self._out) or self._qp.sent(self._framed)

    def buffers(self) -> list[memoryview]:
        if self._stripper is None or self._done:
            return self._qp.buffers()
        return [self._buf[self._end :]]

    def received(self, octets: int) -> None:
        stripper = self._stripper
        if stripper is None or self._done:
            self._qp.received(octets)
            return
        self._end += octets
        self._qp.counters.rx_bytes += octets
        while not self._done:
            ahead = self._buf[self._start : self._end]
            size = stripper.size(ahead)
            if size > len(ahead):
                break
            try:
                fpdu = stripper.strip(ahead[:size])
            except ProtocolError as error:
                self._qp.protocol_error(error)
                return
            self._start += size
            self._qp.counters.rx_bytes -= len(fpdu)  # which the queue pair counts itself
            self._feed(fpdu)
        left = bytes(self._buf[self._start : self._end])
        self._buf[: len(left)] = left
        self._start, self._end = 0, len(left)

    def eof(self) -> None:
        if self._start < self._end and not self._done:
            self._qp.stream_lost("peer closed in the middle of a message")
        else:
            self._qp.eof()

    def stream_lost(self, reason: str) -> None:
        self._qp.stream_lost(reason)

    # -- inside --------------------------------------------------------------------------------

    @property
    def _done(self) -> bool:
        """The queue pair takes nothing any more."""
        return self._qp.state is QpState.TERMINATE or self._qp.state is QpState.ERROR

    def _feed(self, fpdu: bytearray) -> None:
        """Hand an FPDU to the queue pair."""
        rest = memoryview(fpdu)
        while rest:
            octets = 0
            for view in self._qp.buffers():
                part = rest[: len(view)]
                view[: len(part)] = part
                rest = rest[len(part) :]
                octets += len(part)
            self._qp.received(octets)
