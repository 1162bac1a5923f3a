"""What a Terminate's numbers are called."""

from __future__ import annotations

import pytest

from steertag.wire.terminate_names import terminate_name


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ((0, 0, 0x00), "RDMAP local catastrophic error"),
        ((0, 0, 0x77), "RDMAP local catastrophic error"),
        ((0, 1, 0x00), "RDMAP remote protection error: invalid STag"),
        ((0, 1, 0x01), "RDMAP remote protection error: base or bounds violation"),
        ((0, 1, 0x09), "RDMAP remote protection error: STag cannot be invalidated"),
        ((0, 1, 0xFF), "RDMAP remote protection error: unspecified error"),
        ((0, 2, 0x05), "RDMAP remote operation error: invalid RDMAP version"),
        ((0, 2, 0x06), "RDMAP remote operation error: unexpected opcode"),
        ((1, 0, 0x00), "DDP local catastrophic error"),
        ((1, 1, 0x02), "DDP tagged buffer error: STag not associated with the DDP stream"),
        ((1, 2, 0x02), "DDP untagged buffer error: invalid MSN, no buffer available"),
        ((1, 2, 0x05), "DDP untagged buffer error: DDP message too long for the available buffer"),
        ((2, 0, 0x02), "MPA error: CRC error"),
        ((2, 0, 0x06), "MPA error: insufficient IRD resources"),
        ((2, 0, 0x07), "MPA error: no matching RTR option"),
    ],
)
def test_the_errors_of_the_rfcs_have_their_names(numbers: tuple[int, int, int], name: str) -> None:
    assert terminate_name(*numbers) == name


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ((0, 2, 0x00), "RDMAP remote operation error: code 0x00"),
        ((1, 7, 0x12), "DDP error type 7: code 0x12"),
        ((5, 3, 0x01), "layer 5 error type 3: code 0x01"),
    ],
)
def test_numbers_that_no_rfc_defines_are_shown_as_numbers(
    numbers: tuple[int, int, int], name: str
) -> None:
    assert terminate_name(*numbers) == name


def test_every_triple_of_nibbles_and_octet_has_a_line_of_its_own_but_the_codeless() -> None:
    names = {
        terminate_name(layer, etype, code)
        for layer in range(16)
        for etype in range(16)
        for code in range(256)
    }
    assert len(names) == 16 * 16 * 256 - 2 * 255
    assert all("\n" not in name for name in names)
