"""ICMP messages, by hand from RFC 792 and RFC 1191, and hostile octets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.wire.checksum import checksum
from steertag.wire.icmp import DEST_UNREACH, ECHO, FRAG_NEEDED, Icmp, parse_untrusted


def test_an_echo_by_hand() -> None:
    octets = bytes.fromhex("0800 e5ca 1234 0001")
    assert Icmp(ECHO, 0, 0x12340001).emit() == octets
    assert parse_untrusted(octets) == Icmp(ECHO, 0, 0x12340001)


def test_the_mtu_of_fragmentation_needed_stands_in_the_low_half() -> None:
    assert Icmp(DEST_UNREACH, FRAG_NEEDED, 1400).emit()[4:] == bytes.fromhex("00000578")


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=64))
def test_parse_inverts_emit(kind: int, code: int, rest: int, data: bytes) -> None:
    message = Icmp(kind, code, rest)
    octets = message.emit(data) + data
    assert parse_untrusted(octets) == message
    assert checksum(octets) == 0


@given(st.binary(max_size=7))
def test_a_cut_off_message_is_none(octets: bytes) -> None:
    with pytest.raises(WireError):
        parse_untrusted(octets)
