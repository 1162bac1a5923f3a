"""Segment headers, derived by hand from RFC 5041 section 4."""

from __future__ import annotations

import pytest

from steertag.errors import ProtocolError
from steertag.wire import ddp
from steertag.wire.ddp import Tagged, Untagged
from tests.wire.vectors import check_header_vector

HEADERS: dict[str, tuple[str, Tagged | Untagged]] = {
    "tagged, last": (
        "c1 40 00000100 0000000000001000",
        Tagged(last=True, ulp=0x40, stag=0x100, to=4096),
    ),
    "tagged, not last, every field at its end": (
        "81 ff ffffffff ffffffffffffffff",
        Tagged(last=False, ulp=0xFF, stag=0xFFFFFFFF, to=2**64 - 1),
    ),
    "tagged, reserved bits set": (
        "bd 42 00000001 0000000000000000",
        Tagged(last=False, ulp=0x42, stag=1, to=0, reserved=0x3C),
    ),
    "untagged, last": (
        "41 43 00000000 00000000 00000001 00000000",
        Untagged(last=True, ulp=0x43, qn=0, msn=1),
    ),
    "untagged, every field its own": (
        "01 44 deadbeef 00000001 00000002 00000003",
        Untagged(last=False, ulp=0x44, invalidate=0xDEADBEEF, qn=1, msn=2, mo=3),
    ),
    "untagged, reserved bits set": (
        "7d 47 00000000 00000002 00000001 00000000",
        Untagged(last=True, ulp=0x47, qn=2, msn=1, reserved=0x3C),
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_read_wherever_it_stands_and_a_part_of_it_is_refused(name: str) -> None:
    octets, header = HEADERS[name]
    check_header_vector(ddp.parse, bytes.fromhex(octets), header)
    assert len(header) == len(bytes.fromhex(octets))


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_emitted_as_it_was_read(name: str) -> None:
    octets, header = HEADERS[name]
    assert header.emit() == bytes.fromhex(octets)


@pytest.mark.parametrize("version", [0, 2, 3])
@pytest.mark.parametrize(
    ("flags", "etype", "code"),
    # RFC 5041 section 7.2: tagged errors are type 1, untagged ones type 2.
    [(0xC0, 1, 0x04), (0x40, 2, 0x06)],
)
def test_another_version_names_its_terminate_codes(
    version: int, flags: int, etype: int, code: int
) -> None:
    with pytest.raises(ProtocolError) as caught:
        ddp.parse(bytes([flags | version]) + bytes(20))
    assert (caught.value.layer, caught.value.etype, caught.value.code) == (1, etype, code)
