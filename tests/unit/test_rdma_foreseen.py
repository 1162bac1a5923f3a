"""Segments of a Read Response that are read before their headers are seen, and wrong guesses."""

from __future__ import annotations

import random

import pytest

from steertag.rdma.constants import WcStatus
from steertag.rdma.qp_state import QpState
from steertag.testing.link import drain, feed
from steertag.wire import ddp, mpa, rdmap
from tests.sim.ends import End, fpdu, ids, lone, pattern, send_fpdu, terminates

TOTAL = 290_000
STEP = 20_000
OK = WcStatus.SUCCESS


def response(end: End, at: int, payload: bytes, *, last: bool, crc: bool = True) -> bytes:
    """One segment of the answer to a Read into the region's first octets."""
    control = rdmap.control(rdmap.Opcode.READ_RESPONSE)
    header = ddp.Tagged(last, control, end.region.stag, end.region.base + at)
    return fpdu(header, payload, crc=crc)


def cut(end: End, data: bytes, sizes: list[int], *, crc: bool = True) -> list[bytes]:
    """`data` as segments of `sizes`, the last of them again and again until the end."""
    segments: list[bytes] = []
    at = 0
    while at < len(data):
        piece = data[at : at + sizes[min(len(segments), len(sizes) - 1)]]
        last = at + len(piece) == len(data)
        segments.append(response(end, at, piece, last=last, crc=crc))
        at += len(piece)
    return segments


def reading(*, crc: bool = True) -> End:
    """An End that has asked for its region's first octets and waits for the answer."""
    end = lone(crc=crc)
    end.read(End(9).region, 0, 0, TOTAL, wr_id=7)
    drain(end)
    return end


def reads_for(end: End, octets: bytes) -> int:
    """Feed the octets, all that are asked for at once; how many reads that takes."""
    reads = 0
    while octets:
        size = min(len(octets), sum(map(len, end.engine.buffers())))
        feed(end, octets[:size])
        octets = octets[size:]
        reads += 1
    return reads


@pytest.mark.parametrize("crc", [True, False])
def test_a_response_cut_evenly_takes_fewer_reads_than_it_has_segments(crc: bool) -> None:
    end, data = reading(crc=crc), pattern(TOTAL)
    segments = cut(end, data, [STEP], crc=crc)
    assert reads_for(end, b"".join(segments)) < len(segments) // 2
    assert end.memory[:TOTAL] == data
    assert ids(end.sent()) == [(7, OK)]
    assert end.qp.counters.staged_bytes == 0
    assert end.qp.counters.placed_bytes == TOTAL
    assert end.qp.counters.rx_fpdus == len(segments)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(
    "sizes",
    [
        [STEP],
        [STEP, 19_999],
        [STEP, STEP, STEP, 9_001],
        [STEP, STEP, 64, STEP],
        [STEP, 30_000],
        [50_000, 100, 60_001],
        [9_000, 9_000, 1],
        [60_000, 8],
    ],
    ids=str,
)
def test_however_it_is_cut_every_octet_is_where_it_belongs(sizes: list[int], seed: int) -> None:
    if min(sizes) < 64 and seed > 4:
        sizes = [max(size, 500) for size in sizes]
    crc = seed % 2 == 0
    end, data = reading(crc=crc), pattern(TOTAL)
    end.recv((TOTAL, 100), wr_id=8)
    octets = b"".join(cut(end, data, sizes, crc=crc)) + send_fpdu(b"behind")
    assert feed(end, octets, random.Random(seed)) == len(octets)
    assert end.qp.state is QpState.RTS
    assert end.memory[:TOTAL] == data
    assert end.memory[TOTAL : TOTAL + 6] == b"behind"
    assert ids(end.sent()) == [(7, OK)]
    assert ids(end.got()) == [(8, OK)]


@pytest.mark.parametrize("seed", range(10))
def test_without_crc_nobody_looks_at_what_stands_in_its_place(seed: int) -> None:
    end, data = reading(crc=False), pattern(TOTAL)
    octets = b"".join(cut(end, data, [STEP], crc=True))
    assert feed(end, octets, random.Random(seed)) == len(octets)
    assert end.memory[:TOTAL] == data
    assert ids(end.sent()) == [(7, OK)]
    assert end.qp.counters.placed_bytes == TOTAL


def test_a_wrong_guess_is_counted_as_staged_and_not_made_again() -> None:
    end, data = reading(), pattern(TOTAL)
    segments = cut(end, data, [STEP, 12_000, STEP])
    reads_for(end, b"".join(segments))
    assert end.memory[:TOTAL] == data
    assert 0 < end.qp.counters.staged_bytes < TOTAL
    assert end.qp.counters.staged_bytes + end.qp.counters.placed_bytes == TOTAL
    end.read(End(9).region, 0, 0, TOTAL)
    drain(end)
    again = cut(end, data, [STEP])
    assert reads_for(end, b"".join(again)) >= len(again)


@pytest.mark.parametrize("bad", [0, 1, 5, 14])
def test_a_wrong_crc_in_any_segment_ends_the_connection(bad: int) -> None:
    end = reading()
    segments = cut(end, pattern(TOTAL), [STEP])
    segments[bad] = segments[bad][:-1] + bytes((segments[bad][-1] ^ 1,))
    reads_for(end, b"".join(segments))
    (terminate,) = terminates(drain(end))
    assert (terminate.layer, terminate.code) == (mpa.LAYER_LLP, mpa.E_CRC)
    assert [wc.status for wc in end.sent()] == [WcStatus.WR_FLUSH_ERR]


@pytest.mark.parametrize(
    "change",
    ["stag", "to", "length", "last", "opcode"],
)
def test_a_header_that_is_not_ours_to_guess_is_refused_as_ever(change: str) -> None:
    end, data = reading(), pattern(TOTAL)
    segments = cut(end, data, [STEP])
    control = rdmap.control(rdmap.Opcode.READ_RESPONSE)
    stag, to, size, last = end.region.stag, end.region.base + 3 * STEP, STEP, False
    if change == "stag":
        stag ^= 1
    elif change == "to":
        to += 64
    elif change == "length":
        to, size = end.region.base + TOTAL - 10, 65_000
    elif change == "last":
        last = True
    else:
        control = rdmap.control(13)
    segments[3] = fpdu(ddp.Tagged(last, control, stag, to), bytes(size))
    beyond = bytes(end.memory[TOTAL:])
    reads_for(end, b"".join(segments))
    assert len(terminates(drain(end))) == 1
    assert end.memory[TOTAL:] == beyond
    assert end.memory[: 3 * STEP] == data[: 3 * STEP]


@pytest.mark.parametrize("fed", [STEP // 2, 3 * STEP, 7 * STEP + 11])
def test_the_sink_can_be_deregistered_in_the_middle(fed: int) -> None:
    end = lone()
    memory = bytearray(TOTAL)
    sink = end.rnic.register(end.pd, memory, 1)
    end.region = sink
    end.read(End(9).region, 0, 0, TOTAL, wr_id=7)
    drain(end)
    octets = b"".join(cut(end, pattern(TOTAL), [STEP]))
    reads_for(end, octets[:fed])
    end.rnic.deregister(sink)
    memory.clear()
    reads_for(end, octets[fed:])
    drain(end)
    assert end.qp.state is QpState.ERROR
    (done,) = end.sent()
    assert done.status is not OK
