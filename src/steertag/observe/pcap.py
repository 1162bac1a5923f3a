"""Captures: record a byte stream as TCP packets without root, and read TCP streams back.

An RNIC over the host's TCP has no packets of its own to record, and capturing the host's needs
privileges. `StreamTap` therefore makes packets of the octets that a connection sent and received:
Ethernet, IP and TCP headers with right sequence numbers and checksums, which Wireshark
reassembles like any others. Their boundaries are the tap's, not those of the real segments.

`read_pcap` and `tcp_streams` are the way back, for captures of whatever origin
(`steertag.observe.capture` says which). What is written is libpcap 2.4 with microseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Final

from steertag.device.pcap import PacketFile
from steertag.observe.capture import Packet, PathOrFile, read_capture
from steertag.observe.packet import (
    LINKTYPE_ETHERNET,
    LINKTYPE_RAW,
    SYN,
    Endpoint,
    Segment,
    endpoints,
    tcp_segment_untrusted,
)
from steertag.wire.pcap import MAX_SNAPLEN

__all__ = [
    "LINKTYPE_ETHERNET",
    "LINKTYPE_RAW",
    "MAX_SNAPLEN",
    "Endpoint",
    "Packet",
    "PcapWriter",
    "StreamTap",
    "TcpStream",
    "read_pcap",
    "tcp_streams",
]

Buffer = bytes | bytearray | memoryview

_ETHERNET: Final = struct.Struct("!6s6sH")
_ETHERTYPE: Final = {4: 0x0800, 16: 0x86DD}  # by an address's length
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_TCP: Final = struct.Struct("!HHIIBBHHH")
_PSEUDO: Final = struct.Struct("!BBH")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_IPV6_PSEUDO: Final = struct.Struct("!II")
_VERSION_6: Final = 6 << 28
_PROTO_TCP: Final = 6
_DONT_FRAGMENT: Final = 0x4000
_FIN: Final = 0x01
_PSH: Final = 0x08
_ACK: Final = 0x10
_SEQ_MASK: Final = 0xFFFFFFFF
_MAX_MSS: Final = 0xFFFF - _IPV4.size - _TCP.size


def _internet_checksum(*parts: Buffer) -> int:
    """RFC 1071 over `parts`, each but the last of even length.

    2**16 is 1 modulo 0xFFFF, so one remainder of a big integer adds all the 16-bit words.
    """
    total = 0
    for part in parts:
        total += int.from_bytes(part, "big") << (8 * (len(part) & 1))
    folded = total % 0xFFFF or (0xFFFF if total else 0)
    return folded ^ 0xFFFF


# --- writing ------------------------------------------------------------------------------------


class PcapWriter(PacketFile):
    """Writes a capture file of synthetic TCP packets, in Ethernet frames.

    Args:
        target, clock: as of `steertag.device.pcap.PacketFile`.

    Not safe for use from several threads at once.
    """

    def __init__(self, target: PathOrFile, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(target, LINKTYPE_ETHERNET, clock=clock)

    def tap(
        self, local: Endpoint, remote: Endpoint, *, initiator: bool = True, mss: int = 1460
    ) -> StreamTap:
        """Begin a TCP connection between `local` and `remote` with its handshake.

        Args:
            initiator: `local` opened the connection.
            mss: octets of payload to a packet, at most 65495.

        Raises ValueError for an address that is neither IPv4 nor IPv6, two of different kinds, or
        an `mss` out of range.
        """
        return StreamTap(self, local, remote, initiator=initiator, mss=mss)


@dataclass(slots=True)
class _Half:
    """One end of the connection as the writer sees it."""

    mac: bytes
    address: bytes
    port: int
    snd_nxt: int
    fin_sent: bool = False


def _packed(host: str) -> bytes:
    """An address in network order; one of IPv4 also where it is written as IPv6's sockets do."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.packed
    return address.packed


def _pseudo_header(source: bytes, sink: bytes, tcp_len: int) -> bytes:
    """RFC 9293 section 3.1; for IPv6, RFC 8200 section 8.1."""
    if len(source) == 4:
        return source + sink + _PSEUDO.pack(0, _PROTO_TCP, tcp_len)
    return source + sink + _IPV6_PSEUDO.pack(tcp_len, _PROTO_TCP)


def _ip_header(source: bytes, sink: bytes, tcp_len: int, ip_id: int) -> bytes:
    if len(source) != 4:
        return _IPV6.pack(_VERSION_6, tcp_len, _PROTO_TCP, 64, source, sink)
    head = (0x45, 0, _IPV4.size + tcp_len, ip_id, _DONT_FRAGMENT, 64, _PROTO_TCP)
    header = _IPV4.pack(*head, 0, source, sink)
    return _IPV4.pack(*head, _internet_checksum(header), source, sink)


class StreamTap:
    """One TCP connection in a capture; made by `PcapWriter.tap`.

    `sent` and `received` are what whoever moves the octets of a stream calls, in the order in
    which they went over it.
    """

    # MSS, no-operation, window scale 14: a window that no transfer fills, as no acknowledgements
    # are recorded apart from those that data carries.
    _SYN_OPTIONS: Final = struct.Struct("!BBHBBBB")

    def __init__(
        self,
        writer: PcapWriter,
        local: Endpoint,
        remote: Endpoint,
        *,
        initiator: bool = True,
        mss: int = 1460,
    ) -> None:
        if not 1 <= mss <= _MAX_MSS:
            raise ValueError(f"mss {mss} is not between 1 and {_MAX_MSS}")
        self._writer = writer
        self._mss = mss
        self._ip_id = 0
        self._local = _Half(b"\x02\0\0\0\0\x01", _packed(local[0]), local[1], 1000)
        self._remote = _Half(b"\x02\0\0\0\0\x02", _packed(remote[0]), remote[1], 5000)
        if len(self._local.address) != len(self._remote.address):
            raise ValueError(f"{local[0]} and {remote[0]} are of different families")
        first, second = self._local, self._remote
        if not initiator:
            first, second = second, first
        options = self._SYN_OPTIONS.pack(2, 4, mss, 1, 3, 3, 14)
        self._packet(first, second, SYN, options=options)
        self._packet(second, first, SYN | _ACK, options=options)
        self._packet(first, second, _ACK)

    def sent(self, octets: Buffer) -> None:
        """Record octets that went from the local end to the remote one."""
        self._segments(self._local, self._remote, octets)

    def received(self, octets: Buffer) -> None:
        """Record octets that came from the remote end."""
        self._segments(self._remote, self._local, octets)

    def close(self) -> None:
        """End the connection with a FIN from each end."""
        if not self._local.fin_sent:
            self._packet(self._local, self._remote, _FIN | _ACK)
            self._packet(self._remote, self._local, _FIN | _ACK)
            self._packet(self._local, self._remote, _ACK)
            self._local.fin_sent = True

    def _segments(self, source: _Half, sink: _Half, octets: Buffer) -> None:
        with memoryview(octets) as view, view.cast("B") as flat:
            for at in range(0, len(flat), self._mss):
                self._packet(source, sink, _PSH | _ACK, payload=flat[at : at + self._mss])

    def _packet(
        self, source: _Half, sink: _Half, flags: int, *, options: bytes = b"", payload: Buffer = b""
    ) -> None:
        ack = sink.snd_nxt if flags & _ACK else 0
        tcp_len = _TCP.size + len(options) + len(payload)
        fields = (source.port, sink.port, source.snd_nxt, ack)
        offset = (_TCP.size + len(options)) // 4 << 4
        tcp = _TCP.pack(*fields, offset, flags, 0xFFFF, 0, 0)
        pseudo = _pseudo_header(source.address, sink.address, tcp_len)
        checksum = _internet_checksum(pseudo, tcp, options, payload)
        tcp = _TCP.pack(*fields, offset, flags, 0xFFFF, checksum, 0)
        ip = _ip_header(source.address, sink.address, tcp_len, self._ip_id)
        ethernet = _ETHERNET.pack(sink.mac, source.mac, _ETHERTYPE[len(source.address)])
        self._writer.write_packet(ethernet, ip, tcp, options, payload)
        self._ip_id = (self._ip_id + 1) & 0xFFFF
        used = len(payload) + (1 if flags & (SYN | _FIN) else 0)
        source.snd_nxt = (source.snd_nxt + used) & _SEQ_MASK


# --- reading ------------------------------------------------------------------------------------


read_pcap = read_capture


@dataclass(slots=True, frozen=True)
class TcpStream:
    """One TCP connection of a capture, reassembled.

    Attributes:
        client: the end that sent the SYN, or the first packet where the SYN is not in the capture.
        server: the other end.
        sent: octets from client to server, up to the first that the capture lacks.
        received: octets from server to client, likewise.
        complete: the capture holds every octet of both directions, from the first seen to the
            last.
    """

    client: Endpoint
    server: Endpoint
    sent: bytes
    received: bytes
    complete: bool


def tcp_streams(source: PathOrFile) -> list[TcpStream]:
    """The TCP connections of a capture, in the order of their first packets.

    Segments are put in order by sequence number; of octets sent again, the first copy counts.
    Checksums are not verified (a capture of a sender with checksum offload has none). Packets
    other than TCP, and IP fragments, are passed over.

    Raises as `read_pcap` does.
    """
    found: list[_Connection] = []
    current: dict[frozenset[Endpoint], _Connection] = {}
    for packet in read_pcap(source):
        segment = tcp_segment_untrusted(packet)
        if not isinstance(segment, Segment):
            continue
        sender, receiver = endpoints(segment.key)
        key = frozenset((sender, receiver))
        connection = current.get(key)
        if connection is None or connection.is_superseded_by(sender, segment):
            connection = current[key] = _Connection(sender, receiver)
            found.append(connection)
        connection.add(sender, segment)
    return [connection.stream() for connection in found]


@dataclass(slots=True)
class _Direction:
    """The octets of one direction, at offsets that do not wrap as sequence numbers do."""

    syn_seen: bool = False
    segments: list[tuple[int, bytes]] = field(default_factory=list)
    base: int | None = None  # offset of the stream's first octet
    last: int = 0  # offset of the segment seen last
    end: int = 0  # offset behind the last octet seen on the wire

    def add(self, segment: Segment) -> None:
        seq = segment.seq
        syn = bool(segment.flags & SYN)
        if syn:
            seq = (seq + 1) & _SEQ_MASK
        if self.base is None:
            self.base = self.last = self.end = seq
        # The distance from the segment before, as a signed 32-bit number.
        distance = ((seq - self.last + 0x80000000) & _SEQ_MASK) - 0x80000000
        self.last += distance
        if syn:
            self.syn_seen = True
            self.base = self.last
        elif not self.syn_seen:
            self.base = min(self.base, self.last)
        if segment.length:
            self.segments.append((self.last, segment.payload))
            self.end = max(self.end, self.last + segment.length)

    def assemble(self) -> tuple[bytes, bool]:
        """The octets up to the first hole, and whether there is none."""
        if self.base is None:
            return b"", True
        parts: list[bytes] = []
        have = self.base
        for offset, payload in sorted(self.segments, key=lambda item: item[0]):
            if offset > have:
                break
            fresh = payload[have - offset :]
            parts.append(fresh)
            have += len(fresh)
        return b"".join(parts), have >= self.end


class _Connection:
    def __init__(self, client: Endpoint, server: Endpoint) -> None:
        self._client = client
        self._server = server
        self._directions = {client: _Direction(), server: _Direction()}

    def is_superseded_by(self, source: Endpoint, segment: Segment) -> bool:
        """Whether the segment opens a new connection between the same ports."""
        base = self._directions[source].base
        return (
            bool(segment.flags & SYN)
            and base is not None
            and base & _SEQ_MASK != (segment.seq + 1) & _SEQ_MASK
        )

    def add(self, source: Endpoint, segment: Segment) -> None:
        self._directions[source].add(segment)

    def stream(self) -> TcpStream:
        sent, sent_whole = self._directions[self._client].assemble()
        received, received_whole = self._directions[self._server].assemble()
        return TcpStream(
            self._client, self._server, sent, received, complete=sent_whole and received_whole
        )
