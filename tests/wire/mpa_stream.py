"""Takes one direction of an MPA connection apart with the codecs, and puts it together again."""

from __future__ import annotations

import io
import lzma
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from steertag.observe.pcap import TcpStream, tcp_streams
from steertag.wire import ddp, mpa, rdmap
from steertag.wire.crc32c import CRC_FIELD, crc32c

CAPTURES: Final = Path(__file__).parent / "captures"
CAPTURE_NAMES: Final = sorted(path.name.split(".")[0] for path in CAPTURES.glob("*.pcap.xz"))


@cache
def capture_octets(name: str) -> bytes:
    """The capture file `name`, decompressed."""
    return lzma.decompress((CAPTURES / f"{name}.pcap.xz").read_bytes())


@dataclass(frozen=True)
class Segment:
    """One FPDU, and the headers in it."""

    octets: bytes
    fpdu: mpa.Fpdu
    ddp: ddp.Tagged | ddp.Untagged
    opcode: rdmap.Opcode
    body: rdmap.ReadRequest | rdmap.Terminate | bytes

    @property
    def pad(self) -> bytes:
        end = len(self.octets) - mpa.CRC_LEN
        return self.octets[end - mpa.pad_len(len(self.fpdu.ulpdu)) : end]

    def emitted(self, *, crc: bool) -> bytes:
        """The FPDU as our emitters make it from the parsed headers.

        PAD is to be sent as zero (RFC 5044 section 4.1), and our emitter does so; siw now and then
        sends what happened to be in its buffer. Such a PAD is put in place of the zeros.
        """
        body = self.body if isinstance(self.body, bytes) else self.body.emit()
        octets = b"".join(mpa.emit_fpdu([self.ddp.emit(), body], crc=crc))
        if not any(self.pad):
            return octets
        covered = octets[: -mpa.CRC_LEN - len(self.pad)] + self.pad
        return covered + CRC_FIELD.pack(crc32c(covered) if crc else 0)


@dataclass(frozen=True)
class Direction:
    """What one end sent: its start-up frame, then FPDUs; `rest` is what is no whole FPDU."""

    start: mpa.StartFrame
    segments: list[Segment]
    rest: bytes

    def count(self, opcode: rdmap.Opcode) -> int:
        return sum(segment.opcode is opcode for segment in self.segments)

    def payload(self, opcode: rdmap.Opcode) -> bytes:
        """The payloads of the segments with `opcode`, in a row."""
        return b"".join(
            segment.body
            for segment in self.segments
            if segment.opcode is opcode and isinstance(segment.body, bytes)
        )


@dataclass(frozen=True)
class Connection:
    stream: TcpStream
    client: Direction
    server: Direction

    @property
    def crc(self) -> bool:
        """CRCs are in use when either end asks for them (RFC 5044 section 7.1.1)."""
        return self.client.start.crc or self.server.start.crc

    @property
    def directions(self) -> tuple[Direction, Direction]:
        return self.client, self.server


def _body(opcode: rdmap.Opcode, payload: bytes) -> rdmap.ReadRequest | rdmap.Terminate | bytes:
    if opcode is rdmap.Opcode.READ_REQUEST:
        return rdmap.ReadRequest.parse(payload)
    if opcode is rdmap.Opcode.TERMINATE:
        return rdmap.Terminate.parse(payload)
    return payload


def take_apart(octets: bytes) -> Direction:
    start = mpa.StartFrame.parse(octets)
    assert start is not None, "no whole start-up frame"
    at = len(start)
    segments = []
    while (fpdu := mpa.Fpdu.parse(octets, at)) is not None:
        header = ddp.parse(fpdu.ulpdu)
        opcode = rdmap.parse_control(header.ulp)
        body = _body(opcode, bytes(fpdu.ulpdu[len(header) :]))
        segments.append(Segment(octets[at : at + fpdu.size], fpdu, header, opcode, body))
        at += fpdu.size
    return Direction(start, segments, octets[at:])


def connections(capture: bytes) -> list[Connection]:
    """The MPA connections in a capture file's octets."""
    return [
        Connection(stream, take_apart(stream.sent), take_apart(stream.received))
        for stream in tcp_streams(io.BytesIO(capture))
    ]
