"""ARP packets, by hand from RFC 826, and hostile octets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.wire.arp import REQUEST, Arp, parse_untrusted

HARDWARE = st.binary(min_size=6, max_size=6)
ADDRESS = st.binary(min_size=4, max_size=4)
WHO_HAS = bytes.fromhex("0001 0800 06 04 0001 020000000001 0a000001 000000000000 0a000002")


def test_a_request_by_hand() -> None:
    packet = Arp(REQUEST, bytes((2, 0, 0, 0, 0, 1)), b"\x0a\0\0\x01", bytes(6), b"\x0a\0\0\x02")
    assert packet.emit() == WHO_HAS
    assert parse_untrusted(WHO_HAS + bytes(18)) == packet  # padded to Ethernet's least


@given(st.builds(Arp, st.integers(0, 65535), HARDWARE, ADDRESS, HARDWARE, ADDRESS))
def test_parse_inverts_emit(packet: Arp) -> None:
    assert parse_untrusted(packet.emit()) == packet


@given(st.binary(max_size=40))
def test_hostile_octets_raise_wire_error_only(octets: bytes) -> None:
    try:
        packet = parse_untrusted(octets)
    except WireError:
        return
    assert packet.emit() == octets[:28]


@pytest.mark.parametrize("at", range(6))
def test_arp_for_another_protocol_or_hardware_is_refused(at: int) -> None:
    octets = bytearray(WHO_HAS)
    octets[at] ^= 1
    with pytest.raises(WireError):
        parse_untrusted(octets)
