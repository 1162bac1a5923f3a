"""Ethernet headers and what addresses become on a link, by hand from the RFCs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.wire.ethernet import (
    ETH_P_IPV6,
    Ethernet,
    format_address,
    modified_eui64,
    multicast_v4,
    multicast_v6,
    parse_untrusted,
)

ADDRESS = st.binary(min_size=6, max_size=6)


def test_a_header_by_hand() -> None:
    octets = bytes.fromhex("333300000001 020000000001 86dd")
    header = Ethernet(bytes.fromhex("333300000001"), bytes.fromhex("020000000001"), ETH_P_IPV6)
    assert parse_untrusted(octets) == header
    assert header.emit() == octets


@given(ADDRESS, ADDRESS, st.integers(0, 65535), st.binary(max_size=20))
def test_parse_inverts_emit(dest: bytes, source: bytes, kind: int, payload: bytes) -> None:
    header = Ethernet(dest, source, kind)
    assert parse_untrusted(header.emit() + payload) == header


@given(st.binary(max_size=13))
def test_a_cut_off_frame_is_none(octets: bytes) -> None:
    with pytest.raises(WireError):
        parse_untrusted(octets)


def test_groups_have_their_addresses_on_the_link() -> None:
    assert multicast_v4(bytes((224, 129, 2, 3))) == bytes.fromhex("01005e010203")  # 23 bits
    assert multicast_v6(bytes.fromhex("ff02" + "00" * 11 + "fb1234")[:16])[:2] == b"\x33\x33"
    group = bytes.fromhex("ff0200000000000000000001ff123456")
    assert multicast_v6(group) == bytes.fromhex("3333ff123456")


def test_the_identifier_of_an_interface_is_rfc_4291s() -> None:
    # RFC 4291 appendix A: 34-56-78-9A-BC-DE becomes 36-56-78-FF-FE-9A-BC-DE
    made = modified_eui64(bytes.fromhex("3456789abcde"))
    assert made == bytes.fromhex("365678fffe9abcde")


def test_addresses_are_printed_as_ip_prints_them() -> None:
    assert format_address(bytes.fromhex("020000000001")) == "02:00:00:00:00:01"
