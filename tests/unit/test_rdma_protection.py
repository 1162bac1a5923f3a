"""What a peer may not do is refused before one octet lands, and the peer is told what it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    WcStatus,
)
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SGE, RecvWR
from steertag.wire import ddp, mpa, rdmap
from tests.sim.ends import (
    SIZE,
    End,
    drain,
    feed,
    fpdu,
    ids,
    lone,
    read_request_fpdu,
    send_fpdu,
    tagged,
    untagged,
    write_fpdu,
)
from tests.sim.refusals import (
    LARGE,
    LOCAL,
    MPA,
    OPERATION,
    PROTECTION,
    SMALL,
    TAGGED,
    UNTAGGED,
    refused,
    terminated_with,
)

TO_END = 1 << 64


# -- Writes ----------------------------------------------------------------------------------------

Address = Callable[[End, int], tuple[int, int]]


def other_domain(end: End, size: int) -> tuple[int, int]:
    region = end.rnic.register(
        end.rnic.alloc_pd(), end.memory, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE
    )
    return region.stag, region.base


def without_the_right(end: End, size: int) -> tuple[int, int]:
    region = end.rnic.register(end.pd, end.memory, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ)
    return region.stag, region.base


def deregistered(end: End, size: int) -> tuple[int, int]:
    region = end.rnic.register(end.pd, end.memory, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE)
    end.rnic.deregister(region)
    return region.stag, region.base


WRITES: dict[str, tuple[Address, tuple[int, int], int]] = {
    "an STag that names nothing": (
        lambda end, size: (end.region.stag ^ 1, end.region.base),
        TAGGED,
        ddp.T_INVALID_STAG,
    ),
    "STag 0": (lambda end, size: (0, 0), TAGGED, ddp.T_INVALID_STAG),
    "a deregistered region": (deregistered, TAGGED, ddp.T_INVALID_STAG),
    "a region of another domain": (other_domain, TAGGED, ddp.T_STAG_NOT_ASSOCIATED),
    "a region without the right": (without_the_right, PROTECTION, rdmap.P_ACCESS),
    "one octet before the region": (
        lambda end, size: (end.region.stag, end.region.base - 1),
        TAGGED,
        ddp.T_BASE_BOUNDS,
    ),
    "all before the region": (
        lambda end, size: (end.region.stag, end.region.base - size),
        TAGGED,
        ddp.T_BASE_BOUNDS,
    ),
    "offset 0": (lambda end, size: (end.region.stag, 0), TAGGED, ddp.T_BASE_BOUNDS),
    "one octet beyond the region": (
        lambda end, size: (end.region.stag, end.region.base + SIZE - size + 1),
        TAGGED,
        ddp.T_BASE_BOUNDS,
    ),
    "right behind the region": (
        lambda end, size: (end.region.stag, end.region.base + SIZE),
        TAGGED,
        ddp.T_BASE_BOUNDS,
    ),
    "the last octets of all offsets": (
        lambda end, size: (end.region.stag, TO_END - size),
        TAGGED,
        ddp.T_BASE_BOUNDS,
    ),
    "an offset that wraps": (
        lambda end, size: (end.region.stag, TO_END - size + 1),
        TAGGED,
        ddp.T_TO_WRAP,
    ),
}


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("cuts", [None, 1])
@pytest.mark.parametrize(("address", "kind", "code"), WRITES.values(), ids=WRITES.keys())
def test_a_write_to_what_is_not_the_peers_is_refused(
    address: Address, kind: tuple[int, int], code: int, size: int, cuts: int | None
) -> None:
    end = lone()
    stag, to = address(end, size)
    terminate = refused(end, write_fpdu(stag, to, b"\xff" * size), kind, code, cuts=cuts)
    # RFC 5040 section 4.8: the header of the segment at fault is quoted, with its length.
    assert terminate.segment_length == size + ddp.TAGGED_LEN
    assert terminate.ddp_header == ddp.Tagged(True, 0x40, stag, to).emit()


def test_a_large_write_is_refused_when_only_its_header_has_come() -> None:
    end = lone()
    feed(end, write_fpdu(end.region.stag ^ 1, 0, bytes(LARGE))[:16])
    assert end.qp.state is QpState.TERMINATE


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_came_before_a_refused_segment_stays_placed(size: int) -> None:
    end = lone()
    base, stag = end.region.base, end.region.stag
    good = write_fpdu(stag, base, b"\x11" * size)
    feed(end, good + write_fpdu(stag, base + SIZE, b"\x22" * size))
    assert end.memory[:size] == b"\x11" * size
    assert not any(end.memory[size:])
    terminated_with(end, TAGGED, ddp.T_BASE_BOUNDS)


def test_nothing_that_follows_a_refused_segment_is_placed() -> None:
    end = lone()
    good = write_fpdu(end.region.stag, end.region.base, b"\x11" * SMALL)
    refused(end, write_fpdu(0, 0, b"x") + good * 9, TAGGED, ddp.T_INVALID_STAG)
    feed(end, good * 9)
    assert not any(end.memory)


def test_a_zero_length_write_needs_no_region() -> None:
    """RFC 5041 section 5.2: nothing is placed, so the STag isn't looked at (siw's RTR has 1)."""
    end = lone()
    feed(end, write_fpdu(1, 0, b""))
    assert end.qp.state is QpState.RTS
    assert end.qp.counters.rx_fpdus == 1


def test_the_whole_region_may_be_written_up_to_its_last_octet() -> None:
    end = lone()
    feed(end, write_fpdu(end.region.stag, end.region.base + SIZE - 1, b"\x01"))
    feed(end, write_fpdu(end.region.stag, end.region.base, b"\x02"))
    assert (end.memory[0], end.memory[-1]) == (2, 1)
    assert end.qp.state is QpState.RTS


# -- Read Requests ---------------------------------------------------------------------------------


def read_other_domain(end: End, size: int) -> tuple[int, int]:
    region = end.rnic.register(end.rnic.alloc_pd(), end.memory, ACCESS_REMOTE_READ)
    return region.stag, region.base


def not_readable(end: End, size: int) -> tuple[int, int]:
    region = end.rnic.register(end.pd, end.memory, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE)
    return region.stag, region.base


READS: dict[str, tuple[Address, int]] = {
    "an STag that names nothing": (
        lambda end, size: (end.region.stag ^ 1, end.region.base),
        rdmap.P_INVALID_STAG,
    ),
    "a deregistered region": (deregistered, rdmap.P_INVALID_STAG),
    "a region of another domain": (read_other_domain, rdmap.P_STAG_NOT_ASSOCIATED),
    "a region without the right": (not_readable, rdmap.P_ACCESS),
    "one octet before the region": (
        lambda end, size: (end.region.stag, end.region.base - 1),
        rdmap.P_BASE_BOUNDS,
    ),
    "one octet beyond the region": (
        lambda end, size: (end.region.stag, end.region.base + SIZE - size + 1),
        rdmap.P_BASE_BOUNDS,
    ),
    "an offset that wraps": (
        lambda end, size: (end.region.stag, TO_END - 1),
        rdmap.P_TO_WRAP,
    ),
}


@pytest.mark.parametrize("size", [2, LARGE])
@pytest.mark.parametrize(("address", "code"), READS.values(), ids=READS.keys())
def test_a_read_of_what_is_not_the_peers_is_refused(address: Address, code: int, size: int) -> None:
    end = lone()
    stag, to = address(end, size)
    request = rdmap.ReadRequest(9, 9, size, stag, to)
    terminate = refused(end, read_request_fpdu(request), PROTECTION, code)
    assert terminate.segment_length == ddp.UNTAGGED_LEN + rdmap.READ_REQUEST_LEN
    assert rdmap.ReadRequest.parse(terminate.rdma_header) == request


def test_a_read_whose_answer_would_wrap_the_offset_at_the_peer_is_refused() -> None:
    end = lone()
    request = rdmap.ReadRequest(9, TO_END - 10, LARGE, end.region.stag, end.region.base)
    refused(end, read_request_fpdu(request), PROTECTION, rdmap.P_TO_WRAP)


def test_a_zero_length_read_needs_no_region() -> None:
    end = lone()
    feed(end, read_request_fpdu(rdmap.ReadRequest(1, 2, 0, 3, 4)))
    assert drain(end) == tagged(rdmap.Opcode.READ_RESPONSE, 1, 2)


def test_more_read_requests_at_once_than_ird_are_refused() -> None:
    end = lone(ird=2)
    one = rdmap.ReadRequest(9, 9, 10, end.region.stag, end.region.base)
    requests = [read_request_fpdu(one, msn) for msn in (1, 2, 3)]
    feed(end, b"".join(requests[:2]))
    assert end.qp.state is QpState.RTS
    refused(end, requests[2], UNTAGGED, ddp.U_NO_BUFFER)


def test_without_ird_every_read_request_is_refused() -> None:
    end = lone(ird=0)
    request = rdmap.ReadRequest(9, 9, 10, end.region.stag, end.region.base)
    refused(end, read_request_fpdu(request), UNTAGGED, ddp.U_NO_BUFFER)


def test_requests_that_were_answered_make_room_for_others() -> None:
    end = lone(ird=1)
    one = rdmap.ReadRequest(9, 9, 10, end.region.stag, end.region.base)
    for msn in range(1, 6):
        feed(end, read_request_fpdu(one, msn))
        assert len(drain(end)) == mpa.fpdu_len(ddp.TAGGED_LEN + 10)


READ_HEADER = rdmap.ReadRequest(9, 9, 10, 1, 1).emit()


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (untagged(1, 1, 2, READ_HEADER), ddp.U_MSN_RANGE),
        (untagged(1, 1, 0, READ_HEADER), ddp.U_MSN_RANGE),
        (untagged(1, 1, 1, READ_HEADER, mo=1), ddp.U_INVALID_MO),
        (untagged(1, 1, 1, READ_HEADER, last=False), ddp.U_INVALID_MO),
        (untagged(1, 1, 1, READ_HEADER[:-1]), ddp.U_INVALID_MO),
        (untagged(1, 1, 1, READ_HEADER + b"\0"), ddp.U_INVALID_MO),
        (untagged(1, 1, 1, READ_HEADER + bytes(LARGE)), ddp.U_TOO_LONG),
    ],
)
def test_a_malformed_read_request_is_refused(octets: bytes, code: int) -> None:
    refused(lone(), octets, UNTAGGED, code)


# -- Read Responses --------------------------------------------------------------------------------


def reading(length: int) -> tuple[End, int, int]:
    """An end that waits for a Read Response, its sink's STag and offset."""
    end = lone()
    end.read(end.region, 1000, 0, length, wr_id=77)
    drain(end)
    return end, end.region.stag, end.region.base + 1000


def response(stag: int, to: int, payload: bytes, *, last: bool = True) -> bytes:
    return tagged(rdmap.Opcode.READ_RESPONSE, stag, to, payload, last=last)


def test_a_read_response_that_was_not_asked_for_is_refused() -> None:
    end = lone()
    octets = response(end.region.stag, end.region.base, b"surprise")
    refused(end, octets, OPERATION, rdmap.O_UNEXPECTED_OPCODE)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("stag", "to", "extra", "last", "code"),
    [
        (1, 0, 0, True, ddp.T_INVALID_STAG),
        (0, 1, 0, True, ddp.T_BASE_BOUNDS),
        (0, -1, 0, True, ddp.T_BASE_BOUNDS),
        (0, 0, 1, True, ddp.T_BASE_BOUNDS),  # longer than asked
        (0, 0, -1, True, ddp.T_BASE_BOUNDS),  # ends early
        (0, 0, 0, False, ddp.T_BASE_BOUNDS),  # doesn't end
    ],
)
def test_a_read_response_must_match_its_request(
    stag: int, to: int, extra: int, last: bool, code: int, size: int
) -> None:
    end, sink, offset = reading(size)
    payload = b"\xff" * (size + extra)
    refused(end, response(sink ^ stag, offset + to, payload, last=last), TAGGED, code)
    assert ids(end.sent()) == [(77, WcStatus.WR_FLUSH_ERR)]


def test_a_read_response_of_nothing_for_a_read_of_something_is_refused() -> None:
    end, sink, offset = reading(10)
    refused(end, response(sink, offset, b""), TAGGED, ddp.T_BASE_BOUNDS)


def test_the_second_segment_of_a_read_response_must_follow_the_first() -> None:
    end, sink, offset = reading(200)
    feed(end, response(sink, offset, b"\x01" * 100, last=False))
    assert end.qp.state is QpState.RTS
    refused(end, response(sink, offset, b"\x02" * 100), TAGGED, ddp.T_BASE_BOUNDS)


def test_a_read_response_into_a_deregistered_region_is_refused() -> None:
    end, sink, offset = reading(SMALL)
    end.rnic.deregister(end.region)
    refused(end, response(sink, offset, b"\xff" * SMALL), TAGGED, ddp.T_INVALID_STAG)


# -- Sends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, SMALL, LARGE])
def test_a_send_without_a_posted_receive_is_refused(size: int) -> None:
    terminate = refused(lone(), send_fpdu(b"\xff" * size), UNTAGGED, ddp.U_NO_BUFFER)
    assert terminate.segment_length == size + ddp.UNTAGGED_LEN


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_send_longer_than_the_receive_is_refused(size: int) -> None:
    end = lone()
    end.recv((0, size - 1), wr_id=3)
    end.recv((0, size), wr_id=4)
    refused(end, send_fpdu(b"\xff" * size), UNTAGGED, ddp.U_TOO_LONG)
    assert ids(end.got()) == [(3, WcStatus.LOC_LEN_ERR), (4, WcStatus.WR_FLUSH_ERR)]


def test_a_segment_that_makes_a_send_too_long_is_not_placed() -> None:
    end = lone()
    end.recv((0, 150))
    feed(end, send_fpdu(b"\x01" * 100, last=False))
    before = bytes(end.memory)
    refused(end, send_fpdu(b"\x02" * 100, mo=100), UNTAGGED, ddp.U_TOO_LONG)
    assert bytes(end.memory) == before


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("msn", "mo", "code"),
    [
        (0, 0, ddp.U_MSN_RANGE),
        (2, 0, ddp.U_MSN_RANGE),
        (0xFFFFFFFF, 0, ddp.U_MSN_RANGE),
        (1, 1, ddp.U_INVALID_MO),
        (1, 0xFFFFFFFF, ddp.U_INVALID_MO),
    ],
)
def test_a_send_out_of_sequence_is_refused(msn: int, mo: int, code: int, size: int) -> None:
    end = lone()
    end.recv((0, SIZE))
    refused(end, send_fpdu(b"\xff" * size, msn, mo=mo), UNTAGGED, code)
    assert [wc.status for wc in end.got()] == [WcStatus.WR_FLUSH_ERR]


def test_the_next_segment_of_a_send_must_begin_where_the_last_ended() -> None:
    for mo in (0, 99, 101):
        end = lone()
        end.recv((0, SIZE))
        feed(end, send_fpdu(b"\x01" * 100, last=False))
        refused(end, send_fpdu(b"\x02" * 100, mo=mo), UNTAGGED, ddp.U_INVALID_MO)


def test_a_send_may_not_begin_before_the_one_under_way_ended() -> None:
    end = lone()
    end.recv((0, SIZE))
    end.recv((0, SIZE))
    feed(end, send_fpdu(b"\x01" * 100, last=False))
    refused(end, send_fpdu(b"\x02" * 100, 2), UNTAGGED, ddp.U_MSN_RANGE)


def test_a_receive_into_memory_that_was_deregistered_is_a_local_fault() -> None:
    end = lone()
    end.recv((0, 100), wr_id=3)
    end.rnic.deregister(end.region)
    refused(end, send_fpdu(b"\xff" * 100), LOCAL, 0)
    assert ids(end.got()) == [(3, WcStatus.LOC_PROT_ERR)]


def test_a_receive_into_memory_without_local_write_is_a_local_fault() -> None:
    end = lone()
    region = end.rnic.register(end.pd, end.memory, ACCESS_REMOTE_READ)
    end.qp.post_recv(RecvWR(5, sg=[SGE(region.base, 10, region.stag)]))
    refused(end, send_fpdu(b"\xff" * 10), LOCAL, 0)
    assert ids(end.got()) == [(5, WcStatus.LOC_PROT_ERR)]


# -- headers ---------------------------------------------------------------------------------------

PAYLOAD = b"\xff" * SMALL


@pytest.mark.parametrize("opcode", [*range(12, 16)])
@pytest.mark.parametrize("is_tagged", [True, False])
def test_an_unknown_opcode_is_refused(opcode: int, is_tagged: bool) -> None:
    end = lone()
    octets = (
        tagged(opcode, end.region.stag, end.region.base, PAYLOAD)
        if is_tagged
        else untagged(opcode, 0, 1, PAYLOAD)
    )
    refused(end, octets, OPERATION, rdmap.O_UNEXPECTED_OPCODE)


@pytest.mark.parametrize(
    "octets",
    [
        *(tagged(opcode, 5, 5, PAYLOAD) for opcode in (1, *range(3, 12))),
        *(untagged(opcode, 0, 1, PAYLOAD) for opcode in (0, 1, 2, 7, 10, 11)),
        *(untagged(opcode, 1, 1, PAYLOAD) for opcode in (0, 2, 3, 7, 8, 11)),
        *(untagged(opcode, 2, 1, PAYLOAD) for opcode in (0, 1, 2, 3, 10)),
        *(untagged(opcode, 3, 1, PAYLOAD) for opcode in (0, 1, 2, 3, 7, 10)),
        tagged(3, 5, 5, bytes(LARGE)),
        untagged(0, 0, 1, bytes(LARGE)),
    ],
)
def test_an_opcode_where_it_does_not_belong_is_refused(octets: bytes) -> None:
    end = lone()
    end.recv((0, SIZE))
    refused(end, octets, OPERATION, rdmap.O_UNEXPECTED_OPCODE)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("qn", [4, 0xFFFFFFFF])
def test_a_queue_that_does_not_exist_is_refused(qn: int, size: int) -> None:
    refused(lone(), untagged(3, qn, 1, bytes(size)), UNTAGGED, ddp.U_INVALID_QN)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("version", [0, 2, 3])
def test_another_ddp_version_is_refused(version: int, size: int) -> None:
    for flags, kind, code in (
        (ddp.T_FLAG, TAGGED, ddp.T_INVALID_VERSION),
        (0, UNTAGGED, ddp.U_INVALID_VERSION),
    ):
        end = lone()
        header = bytes([flags | ddp.L_FLAG | version, rdmap.control(0)]) + bytes(16)
        octets = b"".join(mpa.emit_fpdu([header, b"\xff" * size]))
        refused(end, octets, kind, code)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("version", [0, 2, 3])
def test_another_rdmap_version_is_refused(version: int, size: int) -> None:
    end = lone()
    header = ddp.Tagged(True, version << 6, end.region.stag, end.region.base)
    refused(end, fpdu(header, b"\xff" * size), OPERATION, rdmap.O_INVALID_VERSION)


@pytest.mark.parametrize("ulpdu", [b"\xc1", b"\xc1\x40" + bytes(11), b"\x41\x43" + bytes(15)])
def test_a_ulpdu_too_short_for_its_header_is_refused(ulpdu: bytes) -> None:
    end = lone()
    octets = b"".join(mpa.emit_fpdu([ulpdu])) + write_fpdu(1, 1, b"")
    refused(end, octets, MPA, mpa.E_MARKER)


def test_reserved_bits_are_ignored() -> None:
    """RFC 5041 section 4.1: not checked by the receiver."""
    end = lone()
    header = ddp.Tagged(True, rdmap.control(0) | 0x30, end.region.stag, end.region.base, 0x3C)
    feed(end, fpdu(header, b"abc"))
    assert end.qp.state is QpState.RTS
    assert end.memory[:3] == b"abc"


# -- CRC -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flipped", [2, 9, 16, 50, -5, -2, -1])
def test_a_small_fpdu_with_a_wrong_crc_is_not_placed(flipped: int) -> None:
    end = lone()
    octets = bytearray(write_fpdu(end.region.stag, end.region.base, PAYLOAD))
    octets[flipped] ^= 0x01
    terminate = refused(end, bytes(octets), MPA, mpa.E_CRC)
    # RFC 5044: what the segment says can't be trusted, so nothing of it is quoted.
    assert terminate.segment_length is None
    assert terminate.ddp_header == b""
    assert end.qp.counters.crc_errors == 1


def test_a_large_fpdu_with_a_wrong_crc_ends_the_stream_after_it_was_placed() -> None:
    """As on hardware: the region's contents are undefined, nothing completes."""
    end = lone()
    octets = bytearray(write_fpdu(end.region.stag, end.region.base + 5, b"\xff" * LARGE))
    octets[-1] ^= 0xFF
    feed(end, bytes(octets))
    terminated_with(end, MPA, mpa.E_CRC)
    assert not any(end.memory[:5])
    assert not any(end.memory[5 + LARGE :])


def test_a_large_send_with_a_wrong_crc_never_completes_as_received() -> None:
    end = lone()
    end.recv((0, SIZE), wr_id=6)
    octets = bytearray(send_fpdu(b"\xff" * LARGE))
    octets[1000] ^= 1
    feed(end, bytes(octets))
    terminated_with(end, MPA, mpa.E_CRC)
    assert ids(end.got()) == [(6, WcStatus.WR_FLUSH_ERR)]


def test_a_wrong_crc_in_the_mpa_length_is_found_too() -> None:
    end = lone()
    octets = bytearray(write_fpdu(end.region.stag, end.region.base, PAYLOAD))
    octets[1] ^= 0x08  # a longer ULPDU: it takes the next FPDU's octets
    refused(end, bytes(octets) * 2, MPA, mpa.E_CRC)


def test_without_crc_the_field_is_not_looked_at() -> None:
    end = lone(crc=False)
    octets = bytearray(write_fpdu(end.region.stag, end.region.base, PAYLOAD))
    octets[-1] ^= 0xFF
    feed(end, bytes(octets))
    assert end.memory[:SMALL] == PAYLOAD
    assert end.qp.state is QpState.RTS
