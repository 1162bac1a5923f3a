"""Octets that a fuzzer chose, as what happens to a Stack.

The first octet chooses the connection's state and the version of IP; then come records: what
happens (one octet), how many octets say what (one octet), and those.
"""

from __future__ import annotations

import socket as std
import struct
from typing import Final

from tests.inet.ours import Subject
from tests.inet.packets import Tcp, emit, icmp_error, ip_header
from tests.inet.states import STATES

MOST_RECORDS: Final = 64
MOST_SOCKS: Final = 8
MOST_TIMERS: Final = 200
MOST_QUANTA: Final = 1024
_STATES: Final = tuple(STATES)
_SEGMENT: Final = struct.Struct("!BhhHBH")
_TIMES: Final = (0.001, 0.05, 0.3, 1.5, 70.0)


def one_input(data: bytes) -> None:
    """Play `data`; raises AssertionError where something grows, or whatever the Stack raises."""
    if not data:
        return
    s = Subject(_STATES[data[0] % len(_STATES)], 6 if data[0] & 0x80 else 4)
    at, records = 1, 0
    while at + 2 <= len(data) and records < MOST_RECORDS:
        kind, size = data[at], data[at + 1]
        _record(s, kind, data[at + 2 : at + 2 + size])
        at += 2 + size
        records += 1
        s.answers()
        assert s.stack_socks <= MOST_SOCKS
        assert s.timers() <= MOST_TIMERS
        assert s.charged() <= MOST_QUANTA
    s.finish()


def _record(s: Subject, kind: int, octets: bytes) -> None:
    what = kind % 5
    if what == 0:
        s.raw(octets)
    elif what == 1:
        _segment(s, octets)
    elif what == 2 and len(octets) >= 8:
        quoted = ip_header(*_ends(s)[::-1], 6, len(octets)) + octets[8:]
        info = int.from_bytes(octets[4:8], "big")
        s.raw(icmp_error(quoted, s.ours, s.theirs, octets[0], octets[1], info))
    elif what == 3 and len(octets) >= 3:
        protocol, tos, ttl = octets[:3]
        s.raw(ip_header(*_ends(s), protocol, len(octets) - 3, tos, ttl) + octets[3:])
    elif what == 4:
        s.side.sleep(_TIMES[len(octets) % len(_TIMES)])


def _ends(s: Subject) -> tuple[bytes, bytes]:
    family = std.AF_INET6 if s.v == 6 else std.AF_INET
    return std.inet_pton(family, s.ours), std.inet_pton(family, s.theirs)


def _segment(s: Subject, octets: bytes) -> None:
    """A segment with right checksums, numbers near those of the connection."""
    if len(octets) < _SEGMENT.size:
        return
    flags, seq, ack, window, size, urgent = _SEGMENT.unpack_from(octets)
    options = octets[_SEGMENT.size :][:40]
    segment = Tcp(
        flags=flags,
        seq=seq & 0xFFFFFFFF,
        ack=ack & 0xFFFFFFFF,
        window=window,
        urgent=urgent,
        payload=bytes(size * 4),
        raw_options=options + bytes(-len(options) % 4),
        source=s.ours,
        dest=s.theirs,
        sport=s.flow.port,
        dport=s.flow.their_port,
    )
    s.raw(emit(segment.absolute(s.flow.isn, s.flow.their_isn or 0)))


def seeds() -> list[bytes]:
    """Inputs to begin with: in each state a handful of usual segments, and time that passes."""
    usual = ((0x10, 1, 1), (0x18, 1, 3001), (0x11, 1, 2), (0x02, 0, 0), (0x14, 1, 1))
    inputs = []
    for state in range(len(_STATES)):
        records = b""
        for flags, seq, ack in usual:
            segment = _SEGMENT.pack(flags, seq, ack, 1000, 25, 0)
            records += bytes((1, len(segment))) + segment + bytes((4, state % len(_TIMES)))
            records += bytes(state % len(_TIMES))
        inputs.append(bytes((state,)) + records)
    return inputs
