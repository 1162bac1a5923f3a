"""Runs one vector every way that octets can arrive: whole, cut, with more behind and before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import pytest

from steertag.errors import WireError

T = TypeVar("T")
_OTHER: Final = b"\xa5\x5a\xff\x00\x5a"


def check_stream_vector(
    parse: Callable[[memoryview, int], T | None], octets: bytes, expected: T
) -> None:
    """For parsers that answer None while more octets are needed: octet by octet, then whole."""
    for size in range(len(octets)):
        assert parse(memoryview(octets)[:size], 0) is None, f"answered after {size} octets"
    assert parse(memoryview(octets), 0) == expected
    assert parse(memoryview(octets + _OTHER), 0) == expected
    assert parse(memoryview(_OTHER + octets + _OTHER), len(_OTHER)) == expected


def check_header_vector(
    parse: Callable[[memoryview, int], T], octets: bytes, expected: T, *, takes_rest: bool = False
) -> None:
    """For headers that must be there as a whole: every truncation is a WireError.

    Args:
        takes_rest: the header claims what is behind it, so none is put there.
    """
    for size in range(len(octets)):
        with pytest.raises(WireError):
            parse(memoryview(octets)[:size], 0)
    behind = b"" if takes_rest else _OTHER
    assert parse(memoryview(octets), 0) == expected
    assert parse(memoryview(octets + behind), 0) == expected
    assert parse(memoryview(_OTHER + octets + behind), len(_OTHER)) == expected
