"""The UDP header: vectors, inverses, hostile octets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.wire.udp import HEADER_LEN, MAX_PAYLOAD, UdpHeader

# A query to a name server, as captured: 53124 -> 53, 12 octets of payload.
QUERY = bytes.fromhex("cf84 0035 0014 3b7c") + bytes(range(12))


def test_a_captured_header_is_read_as_its_fields_say() -> None:
    header, payload = UdpHeader.parse(QUERY)
    assert (header.sport, header.dport, header.length) == (53124, 53, 20)
    assert header.checksum == 0x3B7C
    assert bytes(payload) == bytes(range(12))


def test_octets_behind_the_length_are_padding() -> None:
    header, payload = UdpHeader.parse(QUERY + b"padding")
    assert (header.length, bytes(payload)) == (20, bytes(range(12)))


@pytest.mark.parametrize(
    "octets", [b"", QUERY[:7], QUERY[:19], QUERY[:4] + b"\0\7" + QUERY[6:], QUERY[:4] + bytes(16)]
)
def test_what_is_too_short_is_no_datagram(octets: bytes) -> None:
    with pytest.raises(WireError):
        UdpHeader.parse(octets)


ports = st.integers(0, 65535)


@given(ports, ports, st.binary(max_size=64), ports)
def test_parse_inverts_emit(sport: int, dport: int, payload: bytes, checksum: int) -> None:
    header = UdpHeader(sport, dport, HEADER_LEN + len(payload), checksum)
    parsed, rest = UdpHeader.parse(header.emit() + payload)
    assert (parsed, bytes(rest)) == (header, payload)


@given(st.binary(max_size=64))
def test_hostile_octets_raise_nothing_else(octets: bytes) -> None:
    try:
        header, payload = UdpHeader.parse(octets)
    except WireError:
        return
    assert len(payload) == header.length - HEADER_LEN <= MAX_PAYLOAD
