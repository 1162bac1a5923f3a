"""Reads capture files: libpcap's and pcapng, of either byte order, also under gzip or xz.

libpcap 2.4 is draft-ietf-opsawg-pcap, with microseconds or nanoseconds; pcapng is
draft-ietf-opsawg-pcapng: sections, interfaces with their own link type and time resolution, and
packets in enhanced, simple and (obsolete) packet blocks. Other blocks and options are passed over.

A file is read once, front to back, one packet at a time: a pipe will do, of any length.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, NamedTuple

from steertag.errors import WireError
from steertag.wire.pcap import MAX_SNAPLEN

PathOrFile = str | os.PathLike[str] | BinaryIO

_BUFFER: Final = 1 << 18
_MICROSECONDS: Final = 0xA1B2C3D4
_NANOSECONDS: Final = 0xA1B23C4D
_FILE_FIELDS: Final = "IHHiIII"  # magic, version 2.4, zone, sigfigs, snaplen, link type
_FILE_LEN: Final = struct.calcsize("<" + _FILE_FIELDS)
_RECORD_FIELDS: Final = "IIII"  # seconds, fraction, octets captured, octets on the wire

_GZIP_MAGIC: Final = b"\x1f\x8b"
_XZ_MAGIC: Final = b"\xfd7zX"
_XZ_MEMORY: Final = 1 << 27  # enough for xz -9


class Packet(NamedTuple):
    """One packet of a capture.

    Attributes:
        time_ns: nanoseconds since the epoch.
        octets: what was captured.
        length: octets that the packet had on the wire; more than `octets` holds if it was cut.
        linktype: what `octets` begins with, a LINKTYPE_ number of libpcap.
    """

    time_ns: int
    octets: bytes
    length: int
    linktype: int

    @property
    def time(self) -> float:
        """Seconds since the epoch."""
        return self.time_ns / 1e9


def read_capture(source: PathOrFile) -> Iterator[Packet]:
    """The packets of a capture, given by its path or as a buffered binary file.

    Raises WireError for octets that are no capture, and where one ends too early, after the
    packets before that; OSError for a path that cannot be read.
    """
    with _opened(source) as file:
        head = file.read(4)
        if head.startswith(_GZIP_MAGIC):
            yield from _read_compressed(io.BufferedReader(_Gzip(_Rejoined(head, file)), _BUFFER))
        elif head == _XZ_MAGIC:
            yield from _read_compressed(io.BufferedReader(_Xz(_Rejoined(head, file)), _BUFFER))
        else:
            yield from _read_plain(head, file)


@contextmanager
def _opened(source: PathOrFile) -> Iterator[BinaryIO]:
    if isinstance(source, str | os.PathLike):
        with open(source, "rb", buffering=_BUFFER) as file:
            yield file
    else:
        yield source


def _read_plain(head: bytes, file: BinaryIO) -> Iterator[Packet]:
    if head == _SECTION_MAGIC:
        return _Pcapng(file).packets()
    return _read_pcap(head + file.read(_FILE_LEN - len(head)), file)


# --- compression --------------------------------------------------------------------------------


class _Rejoined(io.RawIOBase):
    """A file whose first octets were read already; it need not be able to seek."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = head
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._head:
            octets, self._head = self._head[:size], self._head[size:]
            return octets
        return self._file.read(size)


class _Gzip(io.RawIOBase):
    """A gzip file read piece by piece: what comes before a cut isn't lost with it."""

    def __init__(self, file: _Rejoined) -> None:
        self._unzipped = gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        octets = self._unzipped.read1(len(buffer))
        buffer[: len(octets)] = octets
        return len(octets)


class _Xz(io.RawIOBase):
    """An xz file decompressed with bounded memory, as `lzma.LZMAFile` does not."""

    def __init__(self, file: _Rejoined) -> None:
        self._file = file
        self._decompressor: lzma.LZMADecompressor | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._decompressor is None or self._decompressor.eof:
                unused = b"" if self._decompressor is None else self._decompressor.unused_data
                octets = unused.lstrip(b"\0") or self._file.read(_BUFFER)
                if not octets:
                    return 0
                self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
            elif self._decompressor.needs_input:
                octets = self._file.read(_BUFFER)
                if not octets:
                    raise EOFError("the xz stream is cut short")
            else:
                octets = b""
            done = self._decompressor.decompress(octets, len(buffer))
            if done:
                buffer[: len(done)] = done
                return len(done)


def _read_compressed(file: io.BufferedReader) -> Iterator[Packet]:
    try:
        with file:
            yield from _read_plain(file.read(4), file)
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as exc:
        raise WireError(f"capture: cannot decompress: {exc}") from exc


# --- libpcap ------------------------------------------------------------------------------------


def _read_pcap(head: bytes, file: BinaryIO) -> Iterator[Packet]:
    if len(head) < _FILE_LEN:
        raise WireError(f"capture: {len(head)} octets, too few for a file header")
    order, unit = _byte_order(head)
    # The upper bits say how long a frame check sequence is, which IP's lengths leave out anyway.
    linktype = struct.unpack(order + _FILE_FIELDS, head)[6] & 0xFFFF
    record = struct.Struct(order + _RECORD_FIELDS)
    size, unpack, read = record.size, record.unpack, file.read
    while octets := read(size):
        if len(octets) < size:
            raise WireError("capture: the last record's header is cut short")
        seconds, fraction, captured, length = unpack(octets)
        if captured > MAX_SNAPLEN:
            raise WireError(f"capture: a record of {captured} octets")
        octets = read(captured)
        if len(octets) < captured:
            raise WireError(f"capture: a record of {captured} octets ends after {len(octets)}")
        yield Packet(seconds * 1_000_000_000 + fraction * unit, octets, length, linktype)


def _byte_order(head: bytes) -> tuple[str, int]:
    """The byte order of a capture and the nanoseconds in one of its fractions."""
    for order in "<>":
        (magic,) = struct.unpack_from(order + "I", head)
        if magic == _MICROSECONDS:
            return order, 1000
        if magic == _NANOSECONDS:
            return order, 1
    raise WireError(f"capture: magic number {head[:4].hex()} is neither libpcap's nor pcapng's")


# --- pcapng -------------------------------------------------------------------------------------

_SECTION_MAGIC: Final = b"\x0a\x0d\x0d\x0a"
_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_PACKET: Final = 2
_SIMPLE_PACKET: Final = 3
_ENHANCED_PACKET: Final = 6
_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_BLOCK_OVERHEAD: Final = 12  # type, and the length before and behind the body
_MAX_BLOCK: Final = 1 << 24
_MAX_INTERFACES: Final = 1 << 16
_OPTION_END: Final = 0
_OPTION_TSRESOL: Final = 9
_OPTION_TSOFFSET: Final = 14


class _Interface(NamedTuple):
    linktype: int
    snaplen: int
    numerator: int  # nanoseconds in a unit of time, as a fraction
    denominator: int
    offset_ns: int


class _Pcapng:
    """Reads blocks until the file ends; `file` is behind the first block's type."""

    def __init__(self, file: BinaryIO) -> None:
        self._read = file.read
        self._order = "<"
        self._interfaces: list[_Interface] = []
        self._time_ns = 0  # of the packet before, for blocks without a time

    def packets(self) -> Iterator[Packet]:
        kind = self._section()
        while kind := self._read(4):
            if len(kind) < 4:
                raise WireError("capture: the last block's header is cut short")
            if kind == _SECTION_MAGIC:
                self._section()
                continue
            (number,) = struct.unpack(self._order + "I", kind)
            body = self._body(self._exactly(4), number)
            if number == _ENHANCED_PACKET:
                yield self._timed_packet(body, "IIIII", has_drops=False)
            elif number == _PACKET:
                yield self._timed_packet(body, "HHIIII", has_drops=True)
            elif number == _SIMPLE_PACKET:
                yield self._simple_packet(body)
            elif number == _INTERFACE:
                self._interface(body)

    def _exactly(self, size: int) -> bytes:
        octets = self._read(size)
        if len(octets) < size:
            raise WireError(f"capture: a block ends {size - len(octets)} octets early")
        return octets

    def _section(self) -> bytes:
        """Begin a section, behind its block's type: the byte order is told behind the length."""
        length = self._exactly(4)
        magic = self._exactly(4)
        for order in "<>":
            if struct.unpack(order + "I", magic)[0] == _BYTE_ORDER_MAGIC:
                self._order = order
                break
        else:
            raise WireError(f"capture: byte-order magic {magic.hex()} is not pcapng's")
        self._interfaces = []
        body = magic + self._body(length, _SECTION, already=len(magic))
        if len(body) < 8:
            raise WireError("capture: a section header without a version")
        (major,) = struct.unpack_from(self._order + "H", body, 4)
        if major != 1:
            raise WireError(f"capture: pcapng version {major} instead of 1")
        return body

    def _body(self, length: bytes, kind: int, already: int = 0) -> bytes:
        """The rest of a block, without the length that ends it; the first `already` are read."""
        (total,) = struct.unpack(self._order + "I", length)
        size = total - _BLOCK_OVERHEAD - already
        if size < 0 or total % 4 or total > _MAX_BLOCK:
            raise WireError(f"capture: a block (type {kind:#x}) of {total} octets")
        body = self._exactly(size)
        if self._exactly(4) != length:
            raise WireError(f"capture: a block (type {kind:#x}) with two different lengths")
        return body

    def _interface(self, body: bytes) -> None:
        if len(body) < 8:
            raise WireError("capture: an interface description without a link type")
        if len(self._interfaces) >= _MAX_INTERFACES:
            raise WireError(f"capture: more than {_MAX_INTERFACES} interfaces in a section")
        linktype, _, snaplen = struct.unpack_from(self._order + "HHI", body)
        numerator, denominator, offset = 1000, 1, 0
        for code, value in self._options(body, 8):
            if code == _OPTION_TSRESOL and len(value) >= 1:
                exponent = value[0] & 0x7F
                unit = 1 << exponent if value[0] & 0x80 else 10**exponent
                numerator, denominator = 1_000_000_000, unit
            elif code == _OPTION_TSOFFSET and len(value) >= 8:
                (offset,) = struct.unpack_from(self._order + "q", value)
        self._interfaces.append(
            _Interface(linktype, snaplen, numerator, denominator, offset * 1_000_000_000)
        )

    def _options(self, body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
        while at + 4 <= len(body):
            code, size = struct.unpack_from(self._order + "HH", body, at)
            if code == _OPTION_END:
                return
            yield code, body[at + 4 : at + 4 + size]
            at += 4 + (size + 3 & ~3)

    def _of(self, number: int) -> _Interface:
        if number >= len(self._interfaces):
            raise WireError(f"capture: a packet of interface {number}, which is not described")
        return self._interfaces[number]

    def _timed_packet(self, body: bytes, fields: str, *, has_drops: bool) -> Packet:
        head = struct.Struct(self._order + fields)
        if len(body) < head.size:
            raise WireError("capture: a packet block is too short")
        number, *rest = head.unpack_from(body)
        high, low, captured, length = rest[1:] if has_drops else rest
        if captured > len(body) - head.size:
            raise WireError(f"capture: a packet of {captured} octets in a block of {len(body)}")
        interface = self._of(number)
        units = high << 32 | low
        self._time_ns = units * interface.numerator // interface.denominator + interface.offset_ns
        octets = body[head.size : head.size + captured]
        return Packet(self._time_ns, octets, length, interface.linktype)

    def _simple_packet(self, body: bytes) -> Packet:
        """A packet of the first interface; its captured length is not said but follows."""
        if len(body) < 4:
            raise WireError("capture: a simple packet block is too short")
        interface = self._of(0)
        (length,) = struct.unpack_from(self._order + "I", body)
        captured = min(length, interface.snaplen or length, len(body) - 4)
        return Packet(self._time_ns, body[4 : 4 + captured], length, interface.linktype)
