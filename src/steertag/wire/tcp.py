"""The TCP header and its options (RFC 9293 section 3.1; options: RFC 7323, 2018, 7413).

 0                   1                   2                   3
+-------------------------------+-------------------------------+
|          Source Port          |       Destination Port        |
+-------------------------------+-------------------------------+
|                        Sequence Number                        |
+---------------------------------------------------------------+
|                    Acknowledgment Number                      |
+-------+-------+---------------+-------------------------------+
| DOffset| Rsrvd|C E U A P R S F|            Window             |
+-------+-------+---------------+-------------------------------+
|           Checksum            |         Urgent Pointer        |
+-------------------------------+-------------------------------+
|                    options, padded to 32 bits                 |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from steertag.errors import WireError

Buffer = bytes | bytearray | memoryview

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80

HEADER: Final = struct.Struct("!HHIIHHHH")
"""Source port, destination port, seq, ack, data offset and flags, window, checksum, urgent."""
HEADER_LEN: Final = HEADER.size
CHECKSUM_AT: Final = 16
MAX_HEADER: Final = 60

_EOL, _NOP, _MSS, _WSCALE, _SACK_PERM, _SACK, _TS = 0, 1, 2, 3, 4, 5, 8
_FAST_OPEN, _EXPERIMENT = 34, 254
_FAST_OPEN_MAGIC: Final = 0xF989
_TIMESTAMPS: Final = struct.Struct("!II")
_TS_ALIGNED: Final = struct.Struct("!III")
_TS_PREFIX: Final = 0x0101080A
_BLOCK: Final = struct.Struct("!II")
MAX_WSCALE: Final = 14


@dataclass(slots=True)
class Options:
    """What a segment's options say; None or empty for what is not there.

    Attributes:
        mss: octets (SYN only).
        wscale: shift count 0..14; a larger one counts as 14 (RFC 7323 section 2.3).
        sack_ok: SACK-permitted.
        tsval, tsecr: timestamps; tsval None without.
        sacks: blocks (left edge, right edge), first to last.
        fast_open: the cookie, b"" for a request; None without.
    """

    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    tsval: int | None = None
    tsecr: int = 0
    sacks: tuple[tuple[int, int], ...] = ()
    fast_open: bytes | None = None


def parse_options_untrusted(octets: Buffer) -> Options:
    """The options that lie between header and payload. Never raises.

    As Linux (tcp_parse_options): unknown ones and those of a wrong length are passed over, and an
    option that runs over the end ends the list.
    """
    options = Options()
    at, end = 0, len(octets)
    while at < end:
        kind = octets[at]
        if kind == _EOL:
            break
        if kind == _NOP:
            at += 1
            continue
        if at + 2 > end:
            break
        size = octets[at + 1]
        if size < 2 or at + size > end:
            break
        _one_option(options, kind, bytes(octets[at + 2 : at + size]))
        at += size
    return options


def _one_option(options: Options, kind: int, value: bytes) -> None:
    size = len(value)
    if kind == _TS and size == 8:
        options.tsval, options.tsecr = _TIMESTAMPS.unpack(value)
    elif kind == _SACK and size and size % 8 == 0:
        options.sacks = tuple(_BLOCK.iter_unpack(value))
    elif kind == _MSS and size == 2:
        options.mss = int.from_bytes(value, "big") or None
    elif kind == _WSCALE and size == 1:
        options.wscale = min(value[0], MAX_WSCALE)
    elif kind == _SACK_PERM and size == 0:
        options.sack_ok = True
    elif kind == _FAST_OPEN and (size == 0 or (4 <= size <= 16 and size % 2 == 0)):
        options.fast_open = value
    elif (
        kind == _EXPERIMENT
        and size >= 2
        and int.from_bytes(value[:2], "big") == _FAST_OPEN_MAGIC
        and options.fast_open is None
    ):
        options.fast_open = value[2:]


def emit_options(options: Options) -> bytes:
    """The options as Linux orders and pads them, a multiple of four octets, at most 40.

    Blocks of `sacks` that do not fit are left out (RFC 2018 section 3).
    """
    out = bytearray()
    if options.mss is not None:
        out += struct.pack("!BBH", _MSS, 4, options.mss)
    if options.tsval is not None:
        prefix = bytes((_SACK_PERM, 2)) if options.sack_ok else bytes((_NOP, _NOP))
        out += prefix + bytes((_TS, 10)) + _TIMESTAMPS.pack(options.tsval, options.tsecr)
    elif options.sack_ok:
        out += bytes((_NOP, _NOP, _SACK_PERM, 2))
    if options.wscale is not None:
        out += bytes((_NOP, _WSCALE, 3, options.wscale))
    if options.fast_open is not None:
        out += bytes((_FAST_OPEN, 2 + len(options.fast_open))) + options.fast_open
        out += bytes((_NOP,)) * (-len(out) % 4)
    if options.sacks:
        room = (40 - len(out) - 4) // 8
        blocks = options.sacks[:room]
        if blocks:
            out += bytes((_NOP, _NOP, _SACK, 2 + 8 * len(blocks)))
            out += b"".join(_BLOCK.pack(*block) for block in blocks)
    return bytes(out)


def timestamps_option(tsval: int, tsecr: int) -> bytes:
    """The twelve octets that nearly every segment carries: NOP, NOP, timestamps."""
    return _TS_ALIGNED.pack(_TS_PREFIX, tsval, tsecr)


class Segment:
    """A received segment: what its header says, and its payload beside it.

    Attributes:
        source, dest: ports.
        seq, end_seq: first sequence number, and the one after the last; SYN and FIN count.
        ack_seq: meaningful with ACK.
        flags: FIN..CWR.
        window: as on the wire, not scaled.
        urgent: the urgent pointer.
        options: raw option octets.
        tsval, tsecr: the timestamps option's; tsval None without.
        sacks: blocks of the SACK option.
        payload: octets of the stream, a view of the frame.
    """

    __slots__ = (
        "ack_seq",
        "dest",
        "end_seq",
        "flags",
        "options",
        "payload",
        "sacks",
        "seq",
        "source",
        "tsecr",
        "tsval",
        "urgent",
        "window",
    )

    source: int
    dest: int
    seq: int
    end_seq: int
    ack_seq: int
    flags: int
    window: int
    urgent: int
    options: memoryview
    tsval: int | None
    tsecr: int
    sacks: tuple[tuple[int, int], ...]
    payload: memoryview

    def all_options(self) -> Options:
        """Every option, parsed."""
        return parse_options_untrusted(self.options)

    def __repr__(self) -> str:
        names = "".join(letter for bit, letter in _LETTERS if self.flags & bit)
        return f"<Segment {names} {self.seq}:{self.end_seq} ack {self.ack_seq} win {self.window}>"


_LETTERS: Final = tuple((1 << bit, letter) for bit, letter in enumerate("FSRPAUEC"))


def parse_untrusted(data: memoryview) -> Segment:
    """A segment out of an IP packet's payload. Checksums are the caller's to check.

    The timestamps are found at once where they stand alone, as nearly always; else the options are
    walked.

    Raises:
        WireError: shorter than its header says.
    """
    length = len(data)
    if length < HEADER_LEN:
        raise WireError(f"TCP segment of {length} octets")
    segment = Segment()
    fields = HEADER.unpack_from(data)
    segment.source, segment.dest, seq, segment.ack_seq, offset, segment.window = fields[:6]
    segment.urgent = fields[7]
    header = offset >> 12 << 2
    if not HEADER_LEN <= header <= length:
        raise WireError(f"TCP data offset of {header} octets in a segment of {length}")
    flags = segment.flags = offset & 0xFF
    segment.seq = seq
    segment.end_seq = (seq + length - header + (flags & FIN) + (flags >> 1 & 1)) & 0xFFFFFFFF
    segment.payload = data[header:]
    segment.options = options = data[HEADER_LEN:header]
    segment.tsval = None
    segment.tsecr = 0
    segment.sacks = ()
    if header == HEADER_LEN + 12:
        prefix, tsval, tsecr = _TS_ALIGNED.unpack(options)
        if prefix == _TS_PREFIX:
            segment.tsval, segment.tsecr = tsval, tsecr
            return segment
    if header > HEADER_LEN:
        parsed = parse_options_untrusted(options)
        segment.tsval, segment.tsecr, segment.sacks = parsed.tsval, parsed.tsecr, parsed.sacks
    return segment


def emit(
    source: int,
    dest: int,
    seq: int,
    ack_seq: int,
    flags: int,
    window: int,
    options: bytes = b"",
    *,
    urgent: int = 0,
    checksum: int = 0,
) -> bytes:
    """A header with its options, whose length is a multiple of four."""
    offset = (HEADER_LEN + len(options)) << 10 | flags
    return HEADER.pack(source, dest, seq, ack_seq, offset, window, checksum, urgent) + options
