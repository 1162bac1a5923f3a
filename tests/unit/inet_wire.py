"""A Stack whose link the test holds the other end of: packets in, packets out."""

from __future__ import annotations

import socket as std
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from steertag.device import memory_link
from steertag.device.memory import MemoryDevice
from tests.inet.packets import checksum, icmp_error, ip_header
from tests.unit.inet_sides import FAR4, FAR6, NEAR4, NEAR6, Host, host

UDP, ICMP, ICMP6 = 17, 1, 58
ADDRESSES: Final = {4: (NEAR4, FAR4), 6: (NEAR6, FAR6)}
"""By version: the Stack's address, and the test's."""


def packed(address: str) -> bytes:
    return std.inet_pton(std.AF_INET6 if ":" in address else std.AF_INET, address)


def pseudo(source: bytes, dest: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + dest + struct.pack("!BBH", 0, protocol, length)
    return source + dest + struct.pack("!IxxxB", length, protocol)


@dataclass
class Datagram:
    """What a UDP packet says, and whether its checksum is right (None: it has none)."""

    source: str
    dest: str
    sport: int
    dport: int
    payload: bytes
    valid: bool | None
    ttl: int
    tos: int


def udp(
    source: str,
    dest: str,
    sport: int,
    dport: int,
    payload: bytes,
    *,
    check: int | None = None,
    length: int | None = None,
    tos: int = 0,
    ttl: int = 64,
) -> bytes:
    """A packet; `check` and `length` stand in the header whatever would be right."""
    ends = packed(source), packed(dest)
    size = 8 + len(payload)
    header = struct.pack("!HHHH", sport, dport, size if length is None else length, 0)
    if check is None:
        total = checksum(pseudo(*ends, UDP, size) + header + payload)
        check = total ^ 0xFFFF or 0xFFFF
    header = header[:6] + struct.pack("!H", check)
    return ip_header(*ends, UDP, size, tos, ttl) + header + payload


def parse_udp(packet: bytes) -> Datagram:
    """Raises AssertionError for what is no UDP packet with a right IP header."""
    if packet[0] >> 4 == 4:
        assert checksum(packet[:20]) == 0xFFFF
        tos, ttl, proto, ends, body = packet[1], packet[8], packet[9], packet[12:20], packet[20:]
        source, dest = ends[:4], ends[4:]
    else:
        tos = struct.unpack_from("!I", packet)[0] >> 20 & 0xFF
        proto, ttl, ends, body = packet[6], packet[7], packet[8:40], packet[40:]
        source, dest = ends[:16], ends[16:]
    assert proto == UDP
    sport, dport, length, check = struct.unpack_from("!HHHH", body)
    assert length == len(body)
    valid = checksum(pseudo(source, dest, UDP, length) + body) == 0xFFFF if check else None
    kind = std.AF_INET if len(source) == 4 else std.AF_INET6
    texts = std.inet_ntop(kind, source), std.inet_ntop(kind, dest)
    return Datagram(*texts, sport, dport, bytes(body[8:]), valid, ttl, tos)


@dataclass
class Wire:
    """A Stack, and the far end of its link.

    Attributes:
        near, far: addresses of the version under test: the Stack's, and the test's.
    """

    host: Host
    end: MemoryDevice
    version: int

    @property
    def near(self) -> str:
        return ADDRESSES[self.version][0]

    @property
    def far(self) -> str:
        return ADDRESSES[self.version][1]

    def inject(self, packet: bytes) -> None:
        self.end.transmit([packet])

    def packets(self) -> list[bytes]:
        """What the Stack has sent since the last call."""
        found = []
        while (frame := self.end.receive()) is not None:
            found.append(bytes(frame.data))
        return found

    def datagrams(self) -> list[Datagram]:
        return [parse_udp(packet) for packet in self.packets()]

    def report(
        self, quoted: bytes, kind4: tuple[int, int], kind6: tuple[int, int], info: int = 0
    ) -> None:
        """An ICMP or ICMPv6 error of the test's about a packet of the Stack's."""
        kind, code = kind4 if self.version == 4 else kind6
        self.inject(icmp_error(quoted, self.far, self.near, kind, code, info))


@contextmanager
def wire(version: int, mtu: int = 1500, features: int = 0) -> Iterator[Wire]:
    """A Stack whose device can do no more than `features` (NETIF_F_*)."""
    near = host()
    one, other = memory_link(("mem0", "mem1"), mtu=mtu)
    one.features = features
    near.net.add_device(one, (f"{NEAR4}/24", f"{NEAR6}/64"))
    yield Wire(near, other, version)
    near.close()
