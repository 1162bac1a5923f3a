"""RDMAP headers, derived by hand from RFC 5040 section 4."""

from __future__ import annotations

import pytest

from steertag.errors import ProtocolError, WireError
from steertag.wire import ddp, mpa, rdmap
from steertag.wire.rdmap import Opcode, ReadRequest, Terminate
from tests.wire.vectors import check_header_vector

# RFC 5040 figure 3.
OPCODES = {
    0x40: Opcode.WRITE,
    0x41: Opcode.READ_REQUEST,
    0x42: Opcode.READ_RESPONSE,
    0x43: Opcode.SEND,
    0x44: Opcode.SEND_INVALIDATE,
    0x45: Opcode.SEND_SE,
    0x46: Opcode.SEND_SE_INVALIDATE,
    0x47: Opcode.TERMINATE,
    0x48: Opcode.IMMEDIATE,
    0x49: Opcode.IMMEDIATE_SE,
    0x4A: Opcode.ATOMIC_REQUEST,
    0x4B: Opcode.ATOMIC_RESPONSE,
}


@pytest.mark.parametrize("octet", range(256))
def test_a_control_octet_is_version_one_with_a_known_opcode_or_a_protocol_error(octet: int) -> None:
    known = octet & ~0x30  # the reserved bits say nothing
    if known in OPCODES:
        assert rdmap.parse_control(octet) is OPCODES[known]
        assert rdmap.control(OPCODES[known]) == known
        return
    with pytest.raises(ProtocolError) as caught:
        rdmap.parse_control(octet)
    # RFC 5040 section 4.8: remote operation errors, invalid version and unexpected opcode.
    code = 0x06 if octet >> 6 == 1 else 0x05
    assert (caught.value.layer, caught.value.etype, caught.value.code) == (0, 2, code)


ATOMIC_REQUEST = bytes.fromhex(
    "00000002 00000007 22222200 0000000000002000"
    "1111111111111111 ffffffffffffffff 3333333333333333 00000000ffffffff"
)


def test_an_atomic_request_names_operation_place_and_operands() -> None:
    request = rdmap.AtomicRequest(
        rdmap.AtomicOpcode.CMP_SWAP,
        identifier=7,
        stag=0x22222200,
        to=0x2000,
        swap_data=0x1111111111111111,
        swap_mask=rdmap.ALL_BITS,
        compare_data=0x3333333333333333,
        compare_mask=0xFFFFFFFF,
    )
    assert request.emit() == ATOMIC_REQUEST
    assert rdmap.AtomicRequest.parse(ATOMIC_REQUEST) == request
    with pytest.raises(WireError):
        rdmap.AtomicRequest.parse(ATOMIC_REQUEST[:-1])


def test_an_atomic_operation_that_is_not_defined_is_an_unexpected_opcode() -> None:
    with pytest.raises(ProtocolError) as caught:
        rdmap.AtomicRequest.parse(b"\0\0\0\3" + ATOMIC_REQUEST[4:])
    assert (caught.value.layer, caught.value.etype, caught.value.code) == (0, 2, 0x06)


def test_an_atomic_response_gives_the_old_value() -> None:
    octets = bytes.fromhex("00000007 0123456789abcdef")
    response = rdmap.AtomicResponse(identifier=7, value=0x0123456789ABCDEF)
    assert response.emit() == octets
    assert rdmap.AtomicResponse.parse(octets) == response
    with pytest.raises(WireError):
        rdmap.AtomicResponse.parse(octets[:-1])


READ_REQUEST = bytes.fromhex("11111100 0000000000001000 00000040 22222200 0000000000002000")


def test_a_read_request_names_sink_size_and_source() -> None:
    request = ReadRequest(
        sink_stag=0x11111100, sink_to=0x1000, size=64, source_stag=0x22222200, source_to=0x2000
    )
    check_header_vector(ReadRequest.parse, READ_REQUEST, request)
    assert request.emit() == READ_REQUEST
    assert len(READ_REQUEST) == rdmap.READ_REQUEST_LEN


SEND_HEADER = ddp.Untagged(last=True, ulp=0x43, qn=0, msn=1).emit()
WRITE_HEADER = ddp.Tagged(last=True, ulp=0x40, stag=0x100, to=0).emit()
READ_HEADER = ddp.Untagged(last=True, ulp=0x41, qn=1, msn=1).emit()

TERMINATES = {
    "LLP: CRC error, as siw sends it": (
        bytes.fromhex("02 02 0000"),
        Terminate(2, 0, mpa.E_CRC, swapped=True),
    ),
    "LLP: CRC error": (bytes.fromhex("20 02 0000"), Terminate(2, 0, mpa.E_CRC)),
    "DDP: no buffer, with the header at fault": (
        bytes.fromhex("12 02 c000 0017") + SEND_HEADER,
        Terminate(1, 2, ddp.U_NO_BUFFER, segment_length=23, ddp_header=SEND_HEADER),
    ),
    "the same, as siw sends it": (
        bytes.fromhex("21 02 0300 0017") + SEND_HEADER,
        Terminate(1, 2, ddp.U_NO_BUFFER, segment_length=23, ddp_header=SEND_HEADER, swapped=True),
    ),
    "DDP: bounds, with a tagged header": (
        bytes.fromhex("11 01 c000 0012") + WRITE_HEADER,
        Terminate(1, 1, ddp.T_BASE_BOUNDS, segment_length=18, ddp_header=WRITE_HEADER),
    ),
    "RDMAP: access, with DDP and RDMA headers": (
        bytes.fromhex("01 02 e000 002e") + READ_HEADER + READ_REQUEST,
        Terminate(
            0,
            1,
            rdmap.P_ACCESS,
            segment_length=46,
            ddp_header=READ_HEADER,
            rdma_header=READ_REQUEST,
        ),
    ),
    "RDMAP: catastrophic, no headers": (bytes.fromhex("00 00 0000"), Terminate(0, 0, 0)),
}


@pytest.mark.parametrize("name", TERMINATES)
def test_a_terminate_is_read_and_emitted(name: str) -> None:
    octets, terminate = TERMINATES[name]
    check_header_vector(Terminate.parse, octets, terminate, takes_rest=True)
    assert terminate.emit() == octets


def test_what_follows_the_announced_headers_is_kept() -> None:
    octets = bytes.fromhex("20 02 0000") + b"more"
    terminate = Terminate.parse(octets)
    assert terminate.trailing == b"more"
    assert terminate.emit() == octets


@pytest.mark.parametrize(
    ("octets", "lacks"),
    [
        ("12 02 80", "too few"),
        ("12 02 8000 00", "segment length"),
        ("12 02 4000", "DDP header"),
        ("12 02 4000 41", "DDP header"),
        ("01 02 2000 00", "RDMA header"),
    ],
)
def test_a_terminate_that_ends_before_what_it_announces_is_refused(octets: str, lacks: str) -> None:
    with pytest.raises(WireError, match=lacks):
        Terminate.parse(bytes.fromhex(octets))
