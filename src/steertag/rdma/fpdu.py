"""Messages cut into segments, each framed as an FPDU (RFC 5041 section 4, RFC 5044 section 4).

What is framed is appended to a list of parts, headers and views of memory in turns, that one
`sendmsg` gathers: payload is not copied.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from steertag.rdma.requests import Message
from steertag.wire import ddp, rdmap
from steertag.wire.crc32c import CRC_FIELD, crc32c

Buffer = bytes | bytearray | memoryview
Framed = tuple[int, int]
"""Octets of the stream, and FPDUs, that were appended."""
TAGGED: Final = struct.Struct("!HBBIQ")
"""ULPDU_Length and the header of a tagged segment."""
UNTAGGED: Final = struct.Struct("!HBBIIII")
TAGGED_LEN: Final = ddp.TAGGED_LEN
UNTAGGED_LEN: Final = ddp.UNTAGGED_LEN
_CTL_TAGGED: Final = ddp.T_FLAG | ddp.VERSION
CTL_TAGGED_LAST: Final = _CTL_TAGGED | ddp.L_FLAG
_CTL_UNTAGGED: Final = ddp.VERSION
CTL_UNTAGGED_LAST: Final = _CTL_UNTAGGED | ddp.L_FLAG
PADS: Final = (b"", b"\0", b"\0\0", b"\0\0\0")
NO_CRC: Final = tuple(pad + bytes(4) for pad in PADS)
"""Padding and CRC field where no CRC is used, by octets of padding."""


def cut_message(
    parts: list[Buffer],
    message: Message,
    source: list[memoryview],
    step: int,
    room: int,
    max_parts: int,
    *,
    crc: bool,
) -> Framed:
    """Frame `message` from its position on, moving that, until its end or until there is enough.

    Args:
        source: its octets from there on: at least a segment more than `room`, or all.
        step: octets of payload of a segment, at most.
        room: octets of the stream from which on it is enough; at least one segment is framed.
        max_parts: length of `parts` from which on it is enough.
    """
    if not crc and message.msn is None and len(source) == 1:
        return _cut_plain(parts, message, source[0], step, room, max_parts)
    total, position, msn = message.total, message.position, message.msn
    octets = fpdus = at = 0
    single = len(source) == 1
    while True:
        size = min(step, total - position)
        last = position + size == total
        if msn is None:
            header = TAGGED.pack(
                size + TAGGED_LEN,
                CTL_TAGGED_LAST if last else _CTL_TAGGED,
                message.control,
                message.stag,
                message.to + position,
            )
        else:
            header = UNTAGGED.pack(
                size + UNTAGGED_LEN,
                CTL_UNTAGGED_LAST if last else _CTL_UNTAGGED,
                message.control,
                message.stag,
                rdmap.QN_SEND,
                msn,
                position,
            )
        if single and crc and not (size + len(header)) & 3:
            payload = source[0][at : at + size]
            parts += (header, payload, CRC_FIELD.pack(crc32c(payload, crc32c(header))))
            octets += len(header) + size + 4
        else:
            octets += frame(parts, header, _cut(source, at, size), crc=crc)[0]
        fpdus += 1
        position += size
        at += size
        if last or octets >= room or len(parts) >= max_parts:
            message.position = position
            return octets, fpdus


def _cut_plain(
    parts: list[Buffer], message: Message, source: memoryview, step: int, room: int, max_parts: int
) -> Framed:
    """`cut_message` for what bulk data mostly is: tagged, from one piece of memory, without CRC."""
    total, position = message.total, message.position
    control, stag, to = message.control, message.stag, message.to
    pack = TAGGED.pack
    begun = position
    octets, fpdus, before = 0, 0, b""
    last = False
    while not last and octets < room and len(parts) < max_parts:
        size = min(step, total - position)
        last = position + size == total
        ctl = CTL_TAGGED_LAST if last else _CTL_TAGGED
        # What ends one segment and begins the next is one part.
        parts += (
            before + pack(size + TAGGED_LEN, ctl, control, stag, to + position),
            source[position - begun : position - begun + size],
        )
        before = NO_CRC[-(size + TAGGED.size) & 3]
        octets += TAGGED.size + size + len(before)
        fpdus += 1
        position += size
    parts.append(before)
    message.position = position
    return octets, fpdus


def frame(parts: list[Buffer], header: bytes, payload: list[memoryview], *, crc: bool) -> Framed:
    """Append the FPDU of `header` (its MPA length included) and `payload`."""
    size = len(header) + sum(map(len, payload))
    pad = -size & 3
    trailer = _trailer(header, payload, pad) if crc else NO_CRC[pad]
    parts.append(header)
    parts += payload
    parts.append(trailer)
    return size + pad + 4, 1


def _trailer(header: bytes, payload: Iterable[memoryview], pad: int) -> bytes:
    value = crc32c(header)
    for view in payload:
        value = crc32c(view, value)
    if pad:
        value = crc32c(PADS[pad], value)
    return PADS[pad] + CRC_FIELD.pack(value)


def _cut(source: list[memoryview], at: int, size: int) -> list[memoryview]:
    """`size` octets from `at` on of the concatenation of `source`."""
    if len(source) == 1:
        return [source[0][at : at + size]]
    views: list[memoryview] = []
    for view in source:
        if at >= len(view):
            at -= len(view)
            continue
        take = min(len(view) - at, size)
        if not take:
            break
        views.append(view[at : at + take])
        size -= take
        at = 0
    return views
