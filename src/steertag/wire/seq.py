"""Arithmetic on sequence numbers modulo 2**32 (RFC 9293 section 3.4; Linux: include/net/tcp.h).

No sequence number is compared with a bare `<` anywhere else.
"""

from __future__ import annotations

from typing import Final

MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000


def before(a: int, b: int) -> bool:
    """`a` comes before `b`."""
    return (a - b) & MASK >= _HALF


def after(a: int, b: int) -> bool:
    """`a` comes after `b`."""
    return (b - a) & MASK >= _HALF


def between(low: int, x: int, high: int) -> bool:
    """`low` <= `x` <= `high`."""
    return (high - low) & MASK >= (x - low) & MASK


def add(a: int, count: int) -> int:
    """`count` further than `a`; negative goes back."""
    return (a + count) & MASK


def diff(a: int, b: int) -> int:
    """How far `a` is beyond `b`: -2**31..2**31-1."""
    return ((a - b + _HALF) & MASK) - _HALF
