"""IPv4 headers, by hand from RFC 791, and hostile octets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.wire.ipv4 import (
    DF,
    HEADER_LEN,
    MF,
    OPT_RR,
    Ipv4,
    OptionError,
    parse_options_untrusted,
    parse_untrusted,
)

PLAIN = bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")
HEADERS = st.builds(
    Ipv4,
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=4, max_size=4),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 65535),
    st.integers(0, 65535),
    options=st.integers(0, 10).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n)),
)


def test_a_header_from_the_wire() -> None:
    header = parse_untrusted(PLAIN + bytes(95))
    assert header.saddr == bytes((192, 168, 0, 1))
    assert header.daddr == bytes((192, 168, 0, 199))
    assert (header.protocol, header.ttl, header.total_len) == (17, 64, 115)
    assert header.frag == DF
    assert header.options == b""
    assert header.emit() == PLAIN


@given(HEADERS, st.binary(max_size=64))
def test_parse_inverts_emit(header: Ipv4, payload: bytes) -> None:
    packet = header.emit(len(payload)) + payload
    parsed = parse_untrusted(packet)
    header.total_len = len(packet)
    assert parsed == header
    assert parsed.emit() + payload == packet


@given(st.binary(max_size=80))
def test_hostile_octets_raise_wire_error_only(octets: bytes) -> None:
    try:
        header = parse_untrusted(octets)
    except WireError:
        return
    assert header.header_len <= header.total_len <= len(octets)


@pytest.mark.parametrize("at", range(HEADER_LEN))
def test_a_changed_octet_is_found_out(at: int) -> None:
    octets = bytearray(PLAIN + bytes(95))
    octets[at] ^= 0x10
    with pytest.raises(WireError):
        parse_untrusted(octets)


@pytest.mark.parametrize("length", range(HEADER_LEN))
def test_a_cut_off_header_is_none(length: int) -> None:
    with pytest.raises(WireError):
        parse_untrusted(PLAIN[:length])


def test_a_packet_shorter_than_it_says_is_none() -> None:
    with pytest.raises(WireError, match="total length"):
        parse_untrusted(PLAIN + bytes(94))


def test_fragment_flags_and_offset_stand_where_rfc_791_has_them() -> None:
    emitted = Ipv4(bytes(4), bytes(4), 1, frag=MF | 185).emit(8)
    assert emitted[6:8] == bytes.fromhex("20b9")


def test_options_are_told_apart() -> None:
    octets = bytes.fromhex("01 94040000 07070400000000 00 ff")
    assert parse_options_untrusted(octets) == [(148, b"\0\0"), (OPT_RR, bytes((4, 0, 0, 0, 0)))]


@pytest.mark.parametrize(
    ("octets", "pointer"),
    [
        ("01 07", 21),  # no length
        ("01 01 07 01", 22),  # less than itself
        ("07 0b 04 00", 20),  # runs over the end
        ("07 02 00 00", 21),  # no pointer
        ("07 07 03 00 00 00 00 00", 22),  # the pointer points into the option's head
        ("83 03 04 83 03 04 00 00", 23),  # two source routes
        ("44 04 04 00", 22),  # timestamps begin at 5
        ("94 03 00 00", 21),  # router alert of three octets
    ],
)
def test_a_malformed_option_is_pointed_at(octets: str, pointer: int) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options_untrusted(bytes.fromhex(octets))
    assert caught.value.pointer == pointer


@given(st.binary(max_size=40))
def test_hostile_options_raise_option_error_only(octets: bytes) -> None:
    error: OptionError | None = None
    found: list[tuple[int, bytes]] = []
    try:
        found = parse_options_untrusted(octets)
    except OptionError as caught:
        error = caught
    assert error is None or HEADER_LEN <= error.pointer < HEADER_LEN + len(octets) + 2
    assert sum(len(value) + 2 for _, value in found) <= len(octets)
