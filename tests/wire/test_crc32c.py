from __future__ import annotations

import pytest

from steertag.wire.crc32c import CRC_FIELD, RESIDUE, crc32c


@pytest.mark.parametrize(
    ("octets", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value of every catalogue of CRCs
        # RFC 3720 section B.4, whose octets are those of the field in order.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(octets: bytes, crc: int) -> None:
    assert crc32c(octets) == crc


def test_the_field_is_stored_with_the_least_significant_octet_first() -> None:
    # RFC 3720 section B.4 prints the CRC of 32 zeros as the octets aa 36 91 8a.
    assert CRC_FIELD.pack(crc32c(bytes(32))) == bytes.fromhex("aa36918a")


@pytest.mark.parametrize("octets", [b"", b"1", b"123456789", bytes(range(200))])
def test_octets_with_their_field_have_a_crc_of_their_own(octets: bytes) -> None:
    assert crc32c(octets + CRC_FIELD.pack(crc32c(octets))) == RESIDUE
    assert crc32c(octets + CRC_FIELD.pack(crc32c(octets) ^ 1)) != RESIDUE
