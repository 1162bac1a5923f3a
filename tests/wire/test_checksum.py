"""The Internet checksum: RFC 1071's example, a slow reference, and buffers cut anywhere."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.wire import checksum as checksums
from steertag.wire.checksum import checksum, fold, partial, partial_parts, pseudo_v4, pseudo_v6


def by_the_book(octets: bytes) -> int:
    """RFC 1071 section 4.1, word by word."""
    octets += bytes(len(octets) & 1)
    total = 0
    for at in range(0, len(octets), 2):
        total += octets[at] << 8 | octets[at + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_the_example_of_rfc_1071() -> None:
    assert partial(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


def test_the_checksum_of_a_header_from_the_wire() -> None:
    header = bytes.fromhex("45000073000040004011 0000 c0a80001c0a800c7")
    assert checksum(header) == 0xB861


def test_over_valid_octets_it_is_zero() -> None:
    assert checksum(bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")) == 0


def test_only_zeros_sum_up_to_zero() -> None:
    assert partial(bytes(20)) == 0
    assert partial(b"\xff\xff") == 0xFFFF
    assert fold(0) == 0
    assert fold(0xFFFF) == fold(0x1FFFE) == 0xFFFF


@given(st.binary(max_size=200))
def test_short_buffers_sum_up_as_by_the_book(octets: bytes) -> None:
    assert partial(octets) == by_the_book(octets)
    assert partial(memoryview(octets)) == by_the_book(octets)


@pytest.fixture(params=["plain", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(checksums, "_sum_long", None)
    if request.param == "numpy":
        pytest.importorskip("numpy", reason="needs numpy")
        assert checksums.prepare()
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("length", [1499, 1500, 1501, 1502, 1503, 9000, 65535])
def test_long_buffers_sum_up_as_by_the_book(length: int) -> None:
    octets = bytes(at * 7919 + (at >> 8) & 0xFF for at in range(length))
    assert partial(octets) == by_the_book(octets)
    assert partial(memoryview(b"x" + octets)[1:]) == by_the_book(octets)
    assert partial(b"\xff" * length) == by_the_book(b"\xff" * length)
    assert partial(bytes(length)) == 0


def test_without_numpy_nothing_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_sum_long", None)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert not checksums.prepare()
    assert partial(b"\1" * 5000) == by_the_book(b"\1" * 5000)


@given(st.lists(st.binary(max_size=40)), st.integers(0, 0xFFFF))
def test_parts_sum_up_as_the_whole(parts: list[bytes], initial: int) -> None:
    whole = b"".join(parts)
    assert partial_parts(parts, initial) == fold(by_the_book(whole) + initial)


@given(st.lists(st.binary(max_size=40)))
def test_a_checksum_put_in_front_makes_all_of_it_valid(parts: list[bytes]) -> None:
    value = checksum(b"\0\0", *parts)
    assert checksum(value.to_bytes(2, "big"), *parts) == 0


def test_pseudo_headers() -> None:
    source, dest = bytes.fromhex("c0a80001"), bytes.fromhex("c0a800c7")
    assert pseudo_v4(source, dest, 17, 95) == by_the_book(source + dest + b"\0\x11\0\x5f")
    source, dest = bytes(range(16)), bytes(range(100, 116))
    book = by_the_book(source + dest + (70000).to_bytes(4, "big") + bytes((0, 0, 0, 6)))
    assert pseudo_v6(source, dest, 6, 70000) == book


def test_the_pseudo_header_of_four_octets_is_ipv4s() -> None:
    source, dest = b"\x0a\0\0\x01", b"\x0a\0\0\x02"
    assert pseudo_v6(source, dest, 6, 40) == pseudo_v4(source, dest, 6, 40)
