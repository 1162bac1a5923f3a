"""IPv6 headers and extension headers, by hand from RFC 8200, and hostile octets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.wire.ipv6 import (
    Fragment,
    Ipv6,
    extension_untrusted,
    parse_fragment_untrusted,
    parse_options_untrusted,
    parse_untrusted,
)

SOURCE = bytes.fromhex("fd000000000000000000000000000001")
DEST = bytes.fromhex("fd000000000000000000000000000002")
PLAIN = bytes.fromhex("6ab12345 0008 3a ff") + SOURCE + DEST
HEADERS = st.builds(
    Ipv6,
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 0xFFFFF),
)


def test_a_header_by_hand() -> None:
    header = parse_untrusted(PLAIN + bytes(8))
    assert header == Ipv6(SOURCE, DEST, 58, 255, 0xAB, 0x12345, 8)
    assert header.emit() == PLAIN


@given(HEADERS, st.binary(max_size=64))
def test_parse_inverts_emit(header: Ipv6, payload: bytes) -> None:
    packet = header.emit(len(payload)) + payload
    parsed = parse_untrusted(packet)
    header.payload_len = len(payload)
    assert parsed == header
    assert parsed.emit() + payload == packet


@given(st.binary(max_size=80))
def test_hostile_octets_raise_wire_error_only(octets: bytes) -> None:
    try:
        header = parse_untrusted(octets)
    except WireError:
        return
    assert header.payload_len + 40 <= len(octets)


@pytest.mark.parametrize("length", [0, 1, 39, 47])
def test_a_cut_off_packet_is_none(length: int) -> None:
    with pytest.raises(WireError):
        parse_untrusted((PLAIN + bytes(8))[:length])


def test_ipv4_is_not_ipv6() -> None:
    with pytest.raises(WireError, match="version 4"):
        parse_untrusted(b"\x45" + PLAIN[1:] + bytes(8))


def test_a_fragment_header_by_hand() -> None:
    octets = bytes.fromhex("11 00 05a9 deadbeef")
    assert parse_fragment_untrusted(octets) == Fragment(17, 1448, True, 0xDEADBEEF)
    assert Fragment(17, 1448, True, 0xDEADBEEF).emit() == octets


@given(st.integers(0, 255), st.integers(0, 8191), st.booleans(), st.integers(0, 2**32 - 1))
def test_parse_inverts_emit_of_fragments(kind: int, offset: int, more: bool, ident: int) -> None:
    fragment = Fragment(kind, offset << 3, more, ident)
    assert parse_fragment_untrusted(fragment.emit()) == fragment


def test_the_length_of_an_extension_header_counts_in_eights_beyond_the_first() -> None:
    assert extension_untrusted(bytes((6, 0)) + bytes(6)) == (6, 8)
    assert extension_untrusted(bytes((6, 2)) + bytes(30)) == (6, 24)


@given(st.binary(max_size=40))
def test_hostile_extension_headers_raise_wire_error_only(octets: bytes) -> None:
    for parse in (extension_untrusted, parse_fragment_untrusted, parse_options_untrusted):
        try:
            parse(octets)
        except WireError:
            continue


def test_options_are_told_apart_from_padding() -> None:
    octets = bytes.fromhex("05020000 0100 00 c2 04 00010000 01 01 00")
    assert parse_options_untrusted(octets) == [
        (0, 5, b"\0\0"),
        (7, 0xC2, bytes.fromhex("00010000")),
    ]


@pytest.mark.parametrize(
    "octets", ["0500 05", "05", "0506 0000", "01 06 000000000000", "00" * 8, "01 02 0001"]
)
def test_options_that_cannot_be(octets: str) -> None:
    with pytest.raises(WireError):
        parse_options_untrusted(bytes.fromhex(octets))
