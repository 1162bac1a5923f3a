"""The Internet checksum (RFC 1071), and the pseudo headers (RFC 9293 section 3.1, RFC 8200 8.1).

Sums are of 16-bit words in network byte order, carried around. A sum is kept folded (0..0xFFFF)
and not complemented, as a device that finishes the job wants it; a checksum is its complement.
Zero stands for no octets but zeros: all else sums up to 1..0xFFFF.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

Buffer = bytes | bytearray | memoryview

LONG: Final = 1500
"""Octets from which numpy is the faster way, once `prepare` has been called."""
_sum_long: Callable[[Buffer], int] | None = None


def fold(total: int) -> int:
    """Any sum of 16-bit words, of any size, carried around to 16 bits."""
    return total % 0xFFFF or (total and 0xFFFF)


def partial(data: Buffer) -> int:
    """The folded sum of a buffer; an octet left over at the end counts as followed by a zero."""
    length = len(data)
    if length >= LONG and _sum_long is not None:
        return _sum_long(data)
    total = int.from_bytes(data, "big")
    if length & 1:
        total <<= 8
    return total % 0xFFFF or (total and 0xFFFF)


def partial_parts(parts: tuple[Buffer, ...] | list[Buffer], initial: int = 0) -> int:
    """The folded sum of buffers that follow each other, and of `initial`."""
    total, odd = initial, False
    for part in parts:
        length = len(part)
        if not length:
            continue
        value = partial(part)
        if odd:  # it starts in the low half of a word: the sum's halves change places
            value = (value << 8 | value >> 8) & 0xFFFF
        total += value
        odd ^= bool(length & 1)
    return fold(total)


def checksum(*parts: Buffer, initial: int = 0) -> int:
    """What a header's checksum field holds so that all of `parts` is protected.

    The parts follow each other, with zero in the field itself. `initial`: a sum to start from,
    such as a pseudo header's. Over octets that are valid the result is 0.
    """
    return ~partial_parts(parts, initial) & 0xFFFF


def pseudo_v4(saddr: bytes, daddr: bytes, protocol: int, length: int) -> int:
    """The folded sum of IPv4's pseudo header; `length`: octets of transport header and payload."""
    total = int.from_bytes(saddr + daddr, "big") + protocol + length
    return total % 0xFFFF or (total and 0xFFFF)


def pseudo_v6(saddr: bytes, daddr: bytes, protocol: int, length: int) -> int:
    """The folded sum of IPv6's pseudo header. For addresses of four octets it is IPv4's."""
    total = int.from_bytes(saddr + daddr, "big") + protocol + (length & 0xFFFF) + (length >> 16)
    return total % 0xFFFF or (total and 0xFFFF)


def prepare() -> bool:
    """Have long buffers summed up by numpy from now on; False if it is not installed.

    The import takes its time, so it is for whoever opens a device that leaves checksums to software
    and carries long packets, not for the first such packet.
    """
    global _sum_long
    if _sum_long is None:
        try:
            numpy = importlib.import_module("numpy")
        except ImportError:
            return False
        _sum_long = _vectorised(numpy.frombuffer, numpy.add.reduce, numpy.uint64)
    return True


def _vectorised(frombuffer: Any, reduce: Any, wide: Any) -> Callable[[Buffer], int]:  # noqa: ANN401
    """`partial` for long buffers."""

    def sum_long(data: Buffer) -> int:
        words = len(data) >> 2
        # 32-bit words: 2**32 is 1 modulo 0xFFFF too. The order of octets does not matter to the
        # sum but for a swap of its own octets at the end (RFC 1071 section 2 (B)).
        total = int(reduce(frombuffer(data, "<u4", words), dtype=wide))
        if len(data) & 3:
            total += int.from_bytes(data[words << 2 :], "little")
        total = total % 0xFFFF or (total and 0xFFFF)
        return (total << 8 | total >> 8) & 0xFFFF

    return sum_long
