"""iWARP out of the packets of a capture, frame by frame, in one pass and bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from steertag.errors import WireError
from steertag.observe.capture import Packet
from steertag.observe.decode.frames import GAP, STREAM, FpduFrame, Frame, Link, MpaFrame
from steertag.observe.decode.framing import Direction, End
from steertag.observe.decode.mpa_stream import Connection, Place
from steertag.observe.packet import (
    ACK,
    RST,
    SYN,
    Segment,
    Skipped,
    endpoints,
    reverse_key,
    tcp_segment_untrusted,
)

MAX_CONNECTIONS: Final = 16_384
"""Connections that are remembered; then the one that was silent for longest is dropped."""
_MAX_LINKTYPES: Final = 64
MEMORY: Final = 1 << 26
"""Octets that all connections together may hold back; then whole connections are dropped."""


@dataclass(slots=True)
class Summary:
    """What was in a capture.

    Attributes:
        packets: all of them.
        tcp_streams: TCP connections.
        iwarp_streams: those that are iWARP.
        mpa_frames, fpdus: frames of either kind.
        crc: FPDUs by the verdict on their CRC.
        gaps: holes in iWARP streams; `missing` is how many octets they lack.
        bad: frames and notes that count against the capture.
        truncated_packets: packets of TCP that the snap length cut.
        fragments: IP fragments with TCP, which are not put together.
        unknown_linktypes: packets by link type that can't be read.
        time_ns: of the first packet, or None without packets.
    """

    packets: int = 0
    tcp_streams: int = 0
    iwarp_streams: int = 0
    mpa_frames: int = 0
    fpdus: int = 0
    crc: dict[str, int] = field(
        default_factory=lambda: {"good": 0, "bad": 0, "off": 0, "unknown": 0}
    )
    gaps: int = 0
    missing: int = 0
    bad: int = 0
    truncated_packets: int = 0
    fragments: int = 0
    unknown_linktypes: dict[int, int] = field(default_factory=dict)
    time_ns: int | None = None

    def count(self, frame: Frame) -> None:
        if isinstance(frame, FpduFrame):
            self.fpdus += 1
            self.crc[frame.crc] += 1
        elif isinstance(frame, MpaFrame):
            self.mpa_frames += 1
        elif frame.kind == STREAM:
            self.iwarp_streams += 1
        elif frame.kind == GAP:
            self.gaps += 1
            self.missing += frame.missing
        if frame.bad:
            self.bad += 1


class _Pair:
    """A TCP connection.

    Attributes:
        directions: its two; none once it is over: nothing that comes under its addresses and
            ports is looked at any more.
        streams: theirs, which still tell this connection from the next one.
        held: octets that it holds back, as counted last.
    """

    __slots__ = ("connection", "directions", "held", "key", "streams")

    def __init__(self, key: bytes, number: int, place: Place, *, expected: bool) -> None:
        source, sink = endpoints(key)
        self.key = key
        self.connection = Connection(place, expected=expected)
        self.held = 0
        first = Direction(self.connection, Link(number, source, sink))
        second = Direction(self.connection, Link(number, sink, source))
        first.peer, second.peer = second, first
        self.streams = (first.stream, second.stream)
        self.directions: tuple[Direction, ...] = (first, second)

    def finish(self, end: End) -> None:
        """Hand on what is held back, and forget everything else."""
        for direction in self.directions:
            direction.stream.finish()
        for direction in self.directions:
            direction.finish(End.FIN if direction.stream.ended else end)
        self.abandon()

    def abandon(self) -> None:
        """Let go of everything that is held back."""
        self.directions = ()
        for stream in self.streams:
            stream.discard()


class Decoder:
    """Args:
    streams: numbers of the connections to decode; all if empty.
    ports: only connections with one of these ports, and those are taken for iWARP even if the
        capture doesn't hold their beginning.

    Attributes:
        summary: of what was decoded so far.
    """

    def __init__(self, *, streams: Collection[int] = (), ports: Collection[int] = ()) -> None:
        self.summary = Summary()
        self._streams = frozenset(streams)
        self._ports = frozenset(ports)
        self._place = Place()
        self._halves: dict[bytes, tuple[_Pair, int]] = {}  # which of the pair's two
        self._pairs: OrderedDict[bytes, _Pair] = OrderedDict()  # by the last packet, oldest first
        self._held = 0

    def decode(self, packets: Iterable[Packet]) -> Iterator[Frame]:
        """The frames of the packets, each as soon as it is whole; at the end what is left over.

        Raises the WireError that `packets` raises, behind all the frames.
        """
        place, summary = self._place, self.summary
        broken: WireError | None = None
        try:
            for packet in packets:
                place.packet += 1
                place.time_ns = packet.time_ns
                if summary.time_ns is None:
                    summary.time_ns = packet.time_ns
                summary.packets += 1
                segment = tcp_segment_untrusted(packet)
                if isinstance(segment, Segment):
                    self._segment(segment)
                    if place.frames:
                        yield from self._taken()
                else:
                    self._skip(packet, segment)
        except WireError as exc:
            broken = exc
        for pair in self._pairs.values():
            pair.finish(End.CAPTURE)
            yield from self._taken()
        if broken is not None:
            raise broken

    def _taken(self) -> list[Frame]:
        frames, self._place.frames = self._place.frames, []
        for frame in frames:
            self.summary.count(frame)
        return frames

    def _skip(self, packet: Packet, why: Skipped) -> None:
        summary = self.summary
        if why is Skipped.FRAGMENT:
            summary.fragments += 1
        elif why is Skipped.CUT:
            summary.truncated_packets += 1
        elif why is Skipped.LINKTYPE:
            unknown = summary.unknown_linktypes
            if packet.linktype in unknown or len(unknown) < _MAX_LINKTYPES:
                unknown[packet.linktype] = unknown.get(packet.linktype, 0) + 1

    def _segment(self, segment: Segment) -> None:
        key, seq, ack, flags, payload, length = segment
        entry = self._halves.get(key)
        if entry is None or (flags & SYN and entry[0].streams[entry[1]].opens_anew(seq)):
            entry = self._open(key)
        pair, which = entry
        self._pairs.move_to_end(pair.key)
        stream, peer = pair.streams[which], pair.streams[1 - which]
        if not pair.directions:
            if not stream.started:  # so that the next connection's SYN is told from this one's
                stream.segment(seq, flags & SYN, b"", 0)
            return
        if len(payload) < length:
            self.summary.truncated_packets += 1
        if flags & RST:
            pair.finish(End.RESET)
        else:
            if flags & ACK:
                if flags & SYN:
                    peer.begin(ack)
                peer.acknowledged(ack)
            stream.segment(seq, flags, payload, length)
            if stream.ended and peer.ended:
                pair.finish(End.FIN)
            elif pair.directions[0].ignored and pair.directions[1].ignored:
                pair.abandon()
        self._account(pair)
        if self._held > MEMORY:
            self._drop_others(pair)

    def _open(self, key: bytes) -> tuple[_Pair, int]:
        """Begin a connection; one that had the same addresses and ports is over."""
        other = reverse_key(key)
        for name in (key, other):
            before = self._pairs.pop(name, None)
            if before is not None:
                before.finish(End.CAPTURE)
                self._account(before)
        if len(self._pairs) >= MAX_CONNECTIONS:
            self._forget_oldest()
        number = self.summary.tcp_streams
        self.summary.tcp_streams += 1
        ends = endpoints(key)
        at_port = any(end.port in self._ports for end in ends)
        pair = _Pair(key, number, self._place, expected=at_port)
        unwanted = bool(self._streams) and number not in self._streams
        if unwanted or (self._ports and not at_port):
            pair.abandon()
        self._pairs[key] = pair
        self._halves[other] = (pair, 1)
        self._halves[key] = entry = (pair, 0)
        return entry

    # --- memory ----------------------------------------------------------------------------------

    def _account(self, pair: _Pair) -> None:
        """Keep count of what is held back."""
        held = sum(direction.held for direction in pair.directions) if pair.directions else 0
        self._held += held - pair.held
        pair.held = held

    def _drop_others(self, current: _Pair) -> None:
        """Drop connections, the longest silent first, until half of the memory is free."""
        for pair in list(self._pairs.values()):
            if pair is not current and pair.held:
                self._drop(pair, "too much of the capture's streams waits for octets it lacks")
                if self._held <= MEMORY // 2:
                    return
        for direction in current.directions:
            direction.stream.give_up()
        self._account(current)

    def _forget_oldest(self) -> None:
        key, pair = next(iter(self._pairs.items()))
        self._drop(pair, f"the longest silent one of more than {MAX_CONNECTIONS} connections")
        del self._pairs[key]
        for name in (key, reverse_key(key)):
            self._halves.pop(name, None)

    def _drop(self, pair: _Pair, why: str) -> None:
        if pair.connection.is_iwarp and pair.directions:
            pair.directions[0].complain(f"it is followed no further: {why}")
        pair.finish(End.CAPTURE)
        self._account(pair)
