"""Conversations to decode, as capture files of every kind."""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from steertag.observe.capture import Packet, read_capture
from steertag.observe.decode import Decoder, FpduFrame, Frame, MpaFrame, Note, line
from steertag.observe.pcap import Endpoint, PcapWriter
from steertag.wire import ddp, mpa, rdmap
from steertag.wire.rdmap import Opcode

CLIENT: Final = Endpoint("10.0.0.1", 40000)
SERVER: Final = Endpoint("10.0.0.2", 7471)
IRD_ORD: Final = mpa.Enhanced(8, 8).emit()
RAW: Final = 101
_QN: Final = {Opcode.READ_REQUEST: 1, Opcode.TERMINATE: 2, Opcode.ATOMIC_REQUEST: 1}
_QN_ATOMIC_RESPONSE: Final = 3


class End:
    """One end of a conversation: makes FPDUs and numbers its messages."""

    def __init__(self, put: Callable[[bytes], None], *, crc: bool) -> None:
        self.put = put
        self.crc = crc
        self._msn: Counter[int] = Counter()

    def fpdu(self, *ulpdu: bytes) -> None:
        self.put(b"".join(mpa.emit_fpdu(ulpdu, crc=self.crc)))

    def tagged(
        self,
        opcode: Opcode = Opcode.WRITE,
        payload: bytes = b"",
        *,
        stag: int = 0x1234,
        to: int = 0,
        last: bool = True,
    ) -> None:
        self.fpdu(ddp.Tagged(last, rdmap.control(opcode), stag, to).emit(), payload)

    def untagged(
        self,
        opcode: Opcode = Opcode.SEND,
        payload: bytes = b"",
        *,
        qn: int | None = None,
        msn: int | None = None,
        mo: int = 0,
        last: bool = True,
        invalidate: int = 0,
    ) -> None:
        if qn is None:
            qn = 3 if opcode is Opcode.ATOMIC_RESPONSE else _QN.get(opcode, 0)
        if msn is None:
            msn = self._msn[qn] + 1
        if last:
            self._msn[qn] = msn
        head = ddp.Untagged(last, rdmap.control(opcode), qn, msn, mo, invalidate)
        self.fpdu(head.emit(), payload)

    def read_request(self, size: int, *, sink_stag: int = 7, sink_to: int = 0x100) -> None:
        request = rdmap.ReadRequest(sink_stag, sink_to, size, 0x4444, 0x5000)
        self.untagged(Opcode.READ_REQUEST, request.emit())

    def read_response(self, payload: bytes, *, stag: int = 7, to: int = 0x100) -> None:
        self.tagged(Opcode.READ_RESPONSE, payload, stag=stag, to=to)


class Talk:
    """A TCP connection on which MPA was set up, unless `start` is false.

    Attributes:
        client, server: its ends.
    """

    def __init__(
        self,
        *,
        crc: bool = True,
        start: bool = True,
        mss: int = 1460,
        request: mpa.StartFrame | None = None,
        reply: mpa.StartFrame | None = None,
        client: Endpoint = CLIENT,
        server: Endpoint = SERVER,
    ) -> None:
        self._file = io.BytesIO()
        self._writer = PcapWriter(self._file)
        self._tap = self._writer.tap(client, server, mss=mss)
        self.client = End(self._tap.sent, crc=crc)
        self.server = End(self._tap.received, crc=crc)
        if start:
            usual = mpa.StartFrame(reply=False, crc=crc, enhanced=True, private_data=IRD_ORD)
            self.client.put((request or usual).emit())
            answer = mpa.StartFrame(reply=True, crc=crc, enhanced=True, private_data=IRD_ORD)
            self.server.put((reply or answer).emit())

    def close(self) -> None:
        self._tap.close()

    @property
    def packets(self) -> list[Packet]:
        """So far, from the IP header on."""
        octets = self._file.getvalue()
        return [
            Packet(packet.time_ns, packet.octets[14:], packet.length - 14, RAW)
            for packet in read_capture(io.BytesIO(octets))
        ]


def every_operation(talk: Talk) -> None:
    """Each opcode that there is, both ways, with the answers that belong to them."""
    client, server = talk.client, talk.server
    for one, other in ((client, server), (server, client)):
        one.tagged(payload=b"abc", to=0x1000)
        one.tagged(payload=bytes(100), to=0x2000, last=False)
        one.untagged(payload=b"first half, ", last=False)
        one.tagged(payload=b"rest", to=0x2000 + 100)
        one.untagged(payload=b"second", mo=12)
        one.untagged(Opcode.SEND_SE, b"x")
        one.untagged(Opcode.SEND_INVALIDATE, b"xy", invalidate=0xDEADBEEF)
        one.untagged(Opcode.SEND_SE_INVALIDATE, b"xyz", invalidate=0xCAFE)
        one.read_request(5000)
        other.tagged(Opcode.READ_RESPONSE, bytes(3000), stag=7, to=0x100, last=False)
        other.tagged(Opcode.READ_RESPONSE, bytes(2000), stag=7, to=0x100 + 3000)
        one.read_request(0)
        other.read_response(b"")
        for opcode in rdmap.AtomicOpcode:
            request = rdmap.AtomicRequest(opcode, 9, 0x77, 0x7000, 1, rdmap.ALL_BITS, 3, 4)
            one.untagged(Opcode.ATOMIC_REQUEST, request.emit())
            other.untagged(Opcode.ATOMIC_RESPONSE, rdmap.AtomicResponse(9, 42).emit())


def immediates(talk: Talk) -> None:
    talk.client.untagged(Opcode.IMMEDIATE, b"\0\0\0\1\0\0\0\2")
    talk.client.untagged(Opcode.IMMEDIATE_SE, b"\0\0\0\3\0\0\0\4")


# --- packets ------------------------------------------------------------------------------------


def as_ipv6(packet: Packet, extensions: bytes = b"", first: int = 6) -> Packet:
    """The packet with an IPv6 header; `first` is the protocol of `extensions`, which lead to 6."""
    source, sink = packet.octets[12:16], packet.octets[16:20]
    tcp = extensions + packet.octets[20:]
    prefix = b"\x20\x01\x0d\xb8" + bytes(8)
    head = struct.pack("!IHBB", 6 << 28, len(tcp), first, 64) + prefix + source + prefix + sink
    octets = head + tcp
    return Packet(packet.time_ns, octets, len(octets) + packet.length - len(packet.octets), RAW)


def renumbered(packet: Packet, shift: int) -> Packet:
    """With the client's sequence numbers moved by `shift`, also where they are acknowledged."""
    octets = bytearray(packet.octets)
    at = 24 if octets[12:16] == bytes((10, 0, 0, 1)) else 28
    (number,) = struct.unpack_from("!I", octets, at)
    struct.pack_into("!I", octets, at, (number + shift) & 0xFFFFFFFF)
    octets[36:38] = b"\0\0"  # the checksum isn't right any more, and nobody looks
    return packet._replace(octets=bytes(octets))


def cut(packet: Packet, snaplen: int) -> Packet:
    return packet._replace(octets=packet.octets[:snaplen])


_VLAN: Final = b"\x81\x00\x00\x05"
LINK_LAYERS: Final[dict[str, tuple[int, bytes]]] = {
    # name -> link type, what stands before an IPv4 header
    "ethernet": (1, bytes(12) + b"\x08\x00"),
    "vlan": (1, bytes(12) + _VLAN + b"\x08\x00"),
    "qinq": (1, bytes(12) + b"\x88\xa8\x00\x07" + _VLAN + b"\x08\x00"),
    "null, little-endian": (0, b"\2\0\0\0"),
    "null, big-endian": (0, b"\0\0\0\2"),
    "loop": (108, b"\0\0\0\2"),
    "raw": (101, b""),
    "ipv4": (228, b""),
    "ppp": (9, b"\xff\x03\x00\x21"),
    "linux_sll": (113, struct.pack("!HHH8sH", 0, 1, 6, bytes(8), 0x0800)),
    "linux_sll2": (276, struct.pack("!HHIHBB8s", 0x0800, 0, 1, 1, 0, 6, bytes(8))),
    "nflog": (239, b"\2\0\0\0" + struct.pack("<HHHH", 8, 1, 0, 0)),
}


def framed(packet: Packet, layer: str) -> Packet:
    """An IPv4 packet behind the header of a link layer."""
    linktype, head = LINK_LAYERS[layer]
    if layer == "nflog":  # the payload is the last attribute
        head += struct.pack("<HH", len(packet.octets) + 4, 9)
    return Packet(packet.time_ns, head + packet.octets, len(head) + packet.length, linktype)


# --- files --------------------------------------------------------------------------------------


def pcap(packets: Iterable[Packet], *, order: str = "<", nanoseconds: bool = False) -> bytes:
    """A libpcap file; all packets have the first one's link type."""
    packets = list(packets)
    magic, unit = (0xA1B23C4D, 1) if nanoseconds else (0xA1B2C3D4, 1000)
    out = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, packets[0].linktype)]
    for packet in packets:
        seconds, rest = divmod(packet.time_ns, 1_000_000_000)
        fields = (seconds, rest // unit, len(packet.octets), packet.length)
        out.append(struct.pack(order + "IIII", *fields) + packet.octets)
    return b"".join(out)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def interface(linktype: int, options: bytes = b"", order: str = "<", snaplen: int = 0) -> bytes:
    head = struct.pack(order + "HHI", linktype, 0, snaplen)
    return block(1, head + options, order)


def enhanced(number: int, units: int, packet: Packet, order: str = "<") -> bytes:
    fields = (number, units >> 32, units & 0xFFFFFFFF, len(packet.octets), packet.length)
    octets = packet.octets + bytes(-len(packet.octets) % 4)
    comment = option(1, b"a comment", order) + option(0, b"", order)
    return block(6, struct.pack(order + "IIIII", *fields) + octets + comment, order)


def pcapng(packets: Iterable[Packet], *, order: str = "<") -> bytes:
    """A pcapng file with one interface for each link type; microseconds."""
    numbers: dict[int, int] = {}
    out = [section(order)]
    for packet in packets:
        if packet.linktype not in numbers:
            numbers[packet.linktype] = len(numbers)
            out.append(interface(packet.linktype, order=order))
        number = numbers[packet.linktype]
        out.append(enhanced(number, packet.time_ns // 1000, packet, order))
    return b"".join(out)


# --- decoding -----------------------------------------------------------------------------------


def decoded(packets: Iterable[Packet], **options: object) -> tuple[list[Frame], Decoder]:
    decoder = Decoder(**options)  # type: ignore[arg-type]
    return list(decoder.decode(packets)), decoder


def lines(packets: Iterable[Packet]) -> list[str]:
    """Without packet numbers, times and ports."""
    frames, _ = decoded(packets)
    return [line(frame, 0).partition(" #")[2].partition("  ")[2] for frame in frames]


def fpdus(frames: Iterable[Frame]) -> list[FpduFrame]:
    return [frame for frame in frames if isinstance(frame, FpduFrame)]


def mpa_frames(frames: Iterable[Frame]) -> list[MpaFrame]:
    return [frame for frame in frames if isinstance(frame, MpaFrame)]


def notes(frames: Iterable[Frame], kind: str | None = None) -> list[Note]:
    return [
        frame
        for frame in frames
        if isinstance(frame, Note) and (kind is None or frame.kind == kind)
    ]


def contents(frames: Iterable[Frame]) -> list[tuple[object, ...]]:
    """What FPDUs say, without saying where they were found."""
    return [
        (f.link.source, f.opcode, f.last, f.stag, f.to, f.qn, f.msn, f.mo, f.payload_length, f.crc)
        for f in fpdus(frames)
    ]
