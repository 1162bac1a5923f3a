"""ICMPv6 and Neighbor Discovery, by hand from RFC 4443 and RFC 4861, and hostile octets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.wire.checksum import checksum, pseudo_v6
from steertag.wire.icmpv6 import (
    ECHO_REQUEST,
    NEIGHBOR_SOLICIT,
    Icmpv6,
    Prefix,
    link_address_option,
    parse_nd_options_untrusted,
    parse_prefix_untrusted,
    parse_untrusted,
)

SOURCE = bytes.fromhex("fe80000000000000020086fffe0580da")
DEST = bytes.fromhex("fe80000000000000026097fffe0769ea")


def test_a_solicitation_from_the_wire() -> None:
    body = DEST + bytes.fromhex("01010000860580da")
    octets = Icmpv6(NEIGHBOR_SOLICIT).emit(SOURCE, DEST, body) + body
    assert octets[:4] == bytes.fromhex("87 00 68 bd")
    assert parse_untrusted(octets) == Icmpv6(NEIGHBOR_SOLICIT)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=64))
def test_parse_inverts_emit(kind: int, code: int, rest: int, body: bytes) -> None:
    message = Icmpv6(kind, code, rest)
    octets = message.emit(SOURCE, DEST, body) + body
    assert parse_untrusted(octets) == message
    assert checksum(octets, initial=pseudo_v6(SOURCE, DEST, 58, len(octets))) == 0


@given(st.binary(max_size=7))
def test_a_cut_off_message_is_none(octets: bytes) -> None:
    with pytest.raises(WireError):
        parse_untrusted(octets)


def test_the_checksum_covers_the_addresses() -> None:
    assert Icmpv6(ECHO_REQUEST).emit(SOURCE, DEST) != Icmpv6(ECHO_REQUEST).emit(SOURCE, SOURCE)


def test_options_by_hand() -> None:
    mtu = bytes.fromhex("0501 0000 000005dc")
    octets = link_address_option(1, bytes(range(6))) + mtu
    assert octets[:8] == bytes.fromhex("0101 000102030405")
    assert parse_nd_options_untrusted(octets) == [
        (1, bytes(range(6))),
        (5, bytes.fromhex("0000 000005dc")),
    ]


@given(st.binary(max_size=64))
def test_hostile_options_raise_wire_error_only(octets: bytes) -> None:
    try:
        options = parse_nd_options_untrusted(octets)
    except WireError:
        return
    assert sum(len(value) + 2 for _, value in options) == len(octets)


@pytest.mark.parametrize("octets", ["0100", "01", "0102 000000000000"])
def test_options_that_cannot_be(octets: str) -> None:
    with pytest.raises(WireError):
        parse_nd_options_untrusted(bytes.fromhex(octets))


def test_a_prefix_by_hand() -> None:
    prefix = Prefix(bytes.fromhex("20010db8") + bytes(12), 64, True, True, 86400, 14400)
    octets = bytes.fromhex("0304 40c0 00015180 00003840 00000000 20010db8") + bytes(12)
    assert prefix.emit() == octets
    assert parse_prefix_untrusted(octets[2:]) == prefix


@given(st.binary(max_size=40))
def test_hostile_prefixes_raise_wire_error_only(octets: bytes) -> None:
    try:
        prefix = parse_prefix_untrusted(octets)
    except WireError:
        return
    assert prefix.prefixlen <= 128
