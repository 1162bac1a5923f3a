"""Frames for the tests of devices: super-segments of TCP and UDP, and what is right of a packet."""

from __future__ import annotations

import ipaddress
from typing import Final

from steertag.device.frame import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Offload
from steertag.wire import tcp
from steertag.wire.checksum import partial_parts, pseudo_v6

V4: Final = tuple(ipaddress.ip_address(a).packed for a in ("10.0.0.1", "10.0.0.2"))
V6: Final = tuple(ipaddress.ip_address(a).packed for a in ("fd00::1", "fd00::2"))
TCP, UDP = 6, 17


def ethernet(version: int, dest: bytes = b"\x02\0\0\0\0\2") -> bytes:
    return dest + b"\x02\0\0\0\0\1" + (b"\x08\x00" if version == 4 else b"\x86\xdd")


def ip_header(version: int, protocol: int, length: int, *, tos: int = 0, ttl: int = 64) -> bytes:
    if version == 4:
        header = bytearray(bytes((0x45, tos)) + (20 + length).to_bytes(2, "big") + bytes(4))
        header += bytes((ttl, protocol, 0, 0)) + V4[0] + V4[1]
        header[10:12] = (partial_parts([bytes(header)]) ^ 0xFFFF).to_bytes(2, "big")
        return bytes(header)
    first = (6 << 28 | tos << 20).to_bytes(4, "big")
    return first + length.to_bytes(2, "big") + bytes((protocol, ttl)) + V6[0] + V6[1]


def pseudo(version: int, protocol: int, length: int) -> int:
    return pseudo_v6(*(V4 if version == 4 else V6), protocol, length)


def super_segment(
    version: int, payload: bytes, mss: int, l2: bytes = b"", *, flags: int = tcp.ACK, seq: int = 7
) -> tuple[list[bytes], Offload]:
    """Of TCP with timestamps, ports 1000 to 2000. `mss` 0: one segment without its checksum."""
    options = tcp.timestamps_option(1, 2)
    length = 20 + len(options) + len(payload)
    check = pseudo(version, TCP, length)
    header = tcp.emit(1000, 2000, seq, 9, flags, 512, options, checksum=check)
    network = l2 + ip_header(version, TCP, length)
    kind = (GSO_TCPV4 if version == 4 else GSO_TCPV6) if mss else 0
    offload = Offload(len(network), 16, kind, mss, len(network) + len(header))
    return [network + header, payload], offload


def super_datagram(
    version: int, payload: bytes, size: int, l2: bytes = b""
) -> tuple[list[bytes], Offload]:
    """Of UDP, ports 1000 to 2000."""
    length = 8 + len(payload)
    fields = (1000, 2000, length, pseudo(version, UDP, length))
    header = b"".join(field.to_bytes(2, "big") for field in fields)
    network = l2 + ip_header(version, UDP, length)
    return [network + header, payload], Offload(
        len(network), 6, GSO_UDP_L4, size, len(network) + len(header)
    )


def segment(
    payload: bytes,
    *,
    version: int = 4,
    l2: bytes = b"",
    port: int = 1000,
    seq: int = 7,
    ack: int = 9,
    flags: int = tcp.ACK,
    window: int = 512,
    tsval: int = 1,
    tos: int = 0,
    ttl: int = 64,
    damage: int = 0,
) -> bytes:
    """A TCP segment as on a wire; `damage` is put over its checksum."""
    options = tcp.timestamps_option(tsval, 2)
    length = 20 + len(options) + len(payload)
    header = tcp.emit(port, 2000, seq, ack, flags, window, options)
    check = partial_parts([header, payload], pseudo(version, TCP, length)) ^ 0xFFFF ^ damage
    header = header[:16] + check.to_bytes(2, "big") + header[18:]
    return l2 + ip_header(version, TCP, length, tos=tos, ttl=ttl) + header + payload


def checksum_is_right(packet: bytes, l3: int = 0) -> bool:
    """Of the transport, and of an IPv4 header."""
    version = packet[l3] >> 4
    l4 = l3 + (20 if version == 4 else 40)
    addresses = packet[l3 + 12 : l4] if version == 4 else packet[l3 + 8 : l4]
    protocol = packet[l3 + 9] if version == 4 else packet[l3 + 6]
    if version == 4 and partial_parts([packet[l3:l4]]) != 0xFFFF:
        return False
    total = pseudo_v6(addresses, b"", protocol, len(packet) - l4)
    return partial_parts([packet[l4:]], total) == 0xFFFF


def tcp_of(packet: bytes | memoryview, l3: int = 0) -> tcp.Segment:
    l4 = l3 + (20 if packet[l3] >> 4 == 4 else 40)
    return tcp.parse_untrusted(memoryview(packet)[l4:])
