"""Where an FPDU ends, and where its markers are (RFC 5044 section 4.3).

A marker of four octets stands at every 512th octet of the stream, counted from the first octet
behind the start-up frame, where the first one is. It holds 16 reserved bits and FPDUPTR: how far
back the FPDU's length field is. One that falls between two FPDUs belongs to the second, before
its length field, and has FPDUPTR 0. Markers don't count for the length field, but for the CRC.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from steertag.wire import mpa

SPACING: Final = 512
MARKER_LEN: Final = 4
_BETWEEN: Final = SPACING - MARKER_LEN
_FPDUPTR_MASK: Final = 0xFFFC  # the receiver takes the last two bits for zero


class Extent(NamedTuple):
    """An FPDU in a buffer.

    Attributes:
        start: offset of its length field.
        size: octets from its first one, a marker before the length field included.
        markers: how many there are.
    """

    start: int
    size: int
    markers: int


def extent(octets: bytes | bytearray, at: int, phase: int) -> Extent | None:
    """The FPDU that begins at offset `at`; None if its length field isn't there yet.

    `phase`: octets of the stream between the first marker's place and offset `at`.
    """
    leading = 0 if phase % SPACING else MARKER_LEN
    start = at + leading
    if len(octets) < start + mpa.LENGTH_LEN:
        return None
    content = mpa.fpdu_len(octets[start] << 8 | octets[start + 1])
    room = SPACING - (phase + leading) % SPACING
    inner = 0 if content <= room else 1 + (content - room - 1) // _BETWEEN
    markers = inner + (1 if leading else 0)
    return Extent(start, content + markers * MARKER_LEN, markers)


def without_markers(octets: bytes, phase: int) -> tuple[bytes, list[str]]:
    """An FPDU without its markers, and what is wrong with them.

    `octets` is the whole of it, from a marker before its length field on; `phase` as above.
    """
    problems: list[str] = []
    parts: list[bytes] = []
    done = 0
    start = 0 if phase % SPACING else MARKER_LEN
    for place in range(-phase % SPACING, len(octets), SPACING):
        parts.append(octets[done:place])
        done = place + MARKER_LEN
        pointer = int.from_bytes(octets[place + 2 : done], "big") & _FPDUPTR_MASK
        expected = max(place - start, 0)
        if pointer != expected:
            problems.append(f"a marker's FPDUPTR is {pointer} instead of {expected}")
    parts.append(octets[done:])
    return b"".join(parts), problems
