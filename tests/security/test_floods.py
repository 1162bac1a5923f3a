"""A peer that floods, stalls or drips costs bounded memory: RFC 5042 section 6.4.

The queue pair is driven by hand, without a stream, so that what it holds can be looked at at any
moment: what the peer's octets made it allocate, what waits in its queues, what it would send.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_READ,
    WcStatus,
)
from steertag.rdma.qp import QpCap
from steertag.rdma.qp_rx import BUFFER_OCTETS
from steertag.rdma.qp_state import QpState
from steertag.rdma.qp_tx import GATHER_OCTETS, MAX_PARTS
from steertag.rdma.rnic import Rnic, RnicLimits
from steertag.rdma.wr import SGE, RecvWR
from steertag.wire import ddp, mpa, rdmap
from tests.security.measure import peak_of
from tests.sim.ends import (
    SIZE,
    End,
    drain,
    feed,
    ids,
    lone,
    pattern,
    read_request_fpdu,
    send_fpdu,
    tagged,
    terminates,
    untagged,
    write_fpdu,
)
from tests.sim.refusals import MPA, OPERATION, UNTAGGED, refused, terminated_with

KIB, MIB = 1 << 10, 1 << 20
LARGEST_SEGMENT = 64 * KIB
RECEIVING = 3 * BUFFER_OCTETS
"""What receiving may take: the buffer, while it grows its predecessor, and what is copied along."""
IRD_MAX = mpa.MAX_IRD_ORD


def read_requests(end: End, length: int, first: int = 1, count: int = 1) -> bytes:
    request = rdmap.ReadRequest(9, 9, length, end.region.stag, end.region.base)
    return b"".join(read_request_fpdu(request, first + n) for n in range(count))


# -- floods of what is allowed ---------------------------------------------------------------------

FLOODS: dict[str, Callable[[End], bytes]] = {
    "small Writes": lambda end: write_fpdu(end.region.stag, end.region.base, bytes(100)) * 20_000,
    "large Writes": lambda end: write_fpdu(end.region.stag, end.region.base, bytes(60_000)) * 100,
    "Writes of nothing": lambda end: write_fpdu(1, 0, b"") * 50_000,
    "Writes of nothing that never end": lambda end: write_fpdu(1, 0, b"", last=False) * 50_000,
    "small and large Writes in turn": lambda end: (
        (
            write_fpdu(end.region.stag, end.region.base, bytes(9)) * 50
            + write_fpdu(end.region.stag, end.region.base, bytes(60_000))
        )
        * 50
    ),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_that_breaks_no_rule_costs_the_receive_buffer_and_no_more(
    flood: Callable[[End], bytes],
) -> None:
    end = lone()
    octets = flood(end)
    assert peak_of(lambda: feed(end, octets)) < RECEIVING
    assert end.qp.state is QpState.RTS
    assert not end.qp.wants_to_send
    assert not end.scq.entries
    assert not end.rcq.entries


def test_a_send_that_never_ends_holds_one_receive_and_nothing_else() -> None:
    end = lone()
    end.recv((0, 100), wr_id=1)
    end.recv((0, 100), wr_id=2)
    octets = send_fpdu(b"", last=False) * 20_000
    assert peak_of(lambda: feed(end, octets)) < RECEIVING
    assert len(end.qp.inbound.rq) == 1
    assert not end.rcq.entries
    end.engine.eof()
    assert ids(end.got()) == [(1, WcStatus.WR_FLUSH_ERR), (2, WcStatus.WR_FLUSH_ERR)]


def test_a_read_response_that_never_ends_places_what_was_asked_for_and_no_more() -> None:
    end = lone()
    end.read(end.region, 0, 0, 1000)
    drain(end)
    stag, base = end.region.stag, end.region.base
    nothing = tagged(rdmap.Opcode.READ_RESPONSE, stag, base, b"", last=False)
    octets = nothing * 20_000
    assert peak_of(lambda: feed(end, octets)) < RECEIVING
    assert end.qp.state is QpState.RTS
    response = tagged(rdmap.Opcode.READ_RESPONSE, stag, base, bytes(1001), last=False)
    refused(end, response, (ddp.LAYER_DDP, ddp.ETYPE_TAGGED), ddp.T_BASE_BOUNDS)


# -- floods of what is not -------------------------------------------------------------------------

FORBIDDEN: dict[str, tuple[bytes, tuple[int, int], int]] = {
    "Sends without a receive": (send_fpdu(b"x"), UNTAGGED, ddp.U_NO_BUFFER),
    "Sends of nothing without a receive": (send_fpdu(b""), UNTAGGED, ddp.U_NO_BUFFER),
    "Immediate Data without a receive": (
        untagged(rdmap.Opcode.IMMEDIATE, rdmap.QN_SEND, 1, bytes(8)),
        UNTAGGED,
        ddp.U_NO_BUFFER,
    ),
    "Read Responses that nobody asked for": (
        tagged(rdmap.Opcode.READ_RESPONSE, 1, 0, b""),
        OPERATION,
        rdmap.O_UNEXPECTED_OPCODE,
    ),
    "Read Requests without IRD": (
        read_request_fpdu(rdmap.ReadRequest(9, 9, 0, 1, 0)),
        UNTAGGED,
        ddp.U_NO_BUFFER,
    ),
}


@pytest.mark.parametrize(("octets", "kind", "code"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_the_first_of_a_forbidden_flood_ends_it(
    octets: bytes, kind: tuple[int, int], code: int
) -> None:
    end = lone(ird=0)
    flood = octets * 50_000
    # Beside the receive buffer: where what still comes is thrown away.
    assert peak_of(lambda: feed(end, flood)) < RECEIVING + 4 * 64 * KIB
    terminated_with(end, kind, code)
    assert end.qp.counters.rx_fpdus <= 1
    assert not end.rcq.entries


def test_a_flood_of_terminates_is_one_terminate_and_is_not_answered() -> None:
    end = lone()
    end.recv((0, 100), wr_id=1)
    terminate = rdmap.Terminate(rdmap.LAYER_RDMAP, rdmap.ETYPE_OPERATION, rdmap.O_UNSPECIFIED)
    octets = b"".join(
        untagged(rdmap.Opcode.TERMINATE, rdmap.QN_TERMINATE, n, terminate.emit())
        for n in range(1, 20_000)
    )
    assert peak_of(lambda: feed(end, octets)) < RECEIVING + 4 * 64 * KIB
    assert end.qp.state is QpState.ERROR
    assert drain(end) == b""
    counters = end.qp.counters
    assert (counters.terminates_received, counters.terminates_sent) == (1, 0)
    assert ids(end.got()) == [(1, WcStatus.WR_FLUSH_ERR)]


def test_a_terminate_and_what_it_quotes_are_bounded() -> None:
    for size in (257, 4096, 60_000):
        octets = untagged(rdmap.Opcode.TERMINATE, rdmap.QN_TERMINATE, 1, bytes(size))
        refused(lone(), octets, UNTAGGED, ddp.U_TOO_LONG)


@pytest.mark.parametrize("length", range(20))
@pytest.mark.parametrize("first", [0x01, 0x41, 0x81, 0xC1])
def test_an_fpdu_too_short_for_its_header_ends_the_stream(length: int, first: int) -> None:
    if length < (ddp.TAGGED_LEN if first & ddp.T_FLAG else ddp.UNTAGGED_LEN):
        octets = b"".join(mpa.emit_fpdu([bytes([first, 0x40, *bytes(18)])[:length]])) * 100
        for cuts in (None, 3):
            refused(lone(), octets, MPA, mpa.E_MARKER, cuts=cuts)


# -- Read Requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ird", [1, 16, IRD_MAX])
def test_no_more_responses_are_owed_than_ird(ird: int) -> None:
    end = lone(ird=ird)
    octets = read_requests(end, SIZE, count=ird)
    assert peak_of(lambda: feed(end, octets)) < RECEIVING + 512 * ird
    assert len(end.qp.tx.responses) == ird
    refused(end, read_requests(end, SIZE, ird + 1), UNTAGGED, ddp.U_NO_BUFFER)
    assert not end.qp.tx.responses


def test_reads_and_atomic_operations_share_ird() -> None:
    access = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_ATOMIC
    end = lone(ird=4, access=access)
    add = rdmap.AtomicRequest(
        rdmap.AtomicOpcode.FETCH_ADD, 1, end.region.stag, end.region.base + 8, 1
    ).emit()
    feed(end, read_requests(end, 10, 1, 2))
    for msn in (3, 4):
        feed(end, untagged(rdmap.Opcode.ATOMIC_REQUEST, rdmap.QN_READ_REQUEST, msn, add))
    assert end.qp.state is QpState.RTS
    one_more = untagged(rdmap.Opcode.ATOMIC_REQUEST, rdmap.QN_READ_REQUEST, 5, add)
    refused(end, one_more, UNTAGGED, ddp.U_NO_BUFFER)


def test_what_is_owed_is_not_copied_and_leaves_a_mebibyte_at_a_time() -> None:
    """Requests of 74 octets ask for gigabytes: they wait as requests, and go as views."""
    end = lone(ird=IRD_MAX)
    feed(end, read_requests(end, SIZE, count=IRD_MAX))
    parts: list[object] = []
    assert peak_of(lambda: parts.extend(end.engine.data_to_send())) < 64 * KIB
    views = [part for part in parts if isinstance(part, memoryview)]
    assert sum(map(len, views)) <= GATHER_OCTETS + LARGEST_SEGMENT
    assert {id(view.obj) for view in views} == {id(end.memory)}
    assert len(parts) <= MAX_PARTS + 3


@pytest.mark.parametrize("length", [0, 10, 70_000])
@pytest.mark.parametrize("asking", [1, 16])
def test_a_peer_that_asks_and_never_reads_runs_into_ird(length: int, asking: int) -> None:
    """The driver gathers before each attempt to send, and the stream takes nothing."""
    end = lone(ird=16)
    requests = read_requests(end, length, count=3000)
    one = len(requests) // 3000

    def ask() -> None:
        for at in range(0, len(requests), one * asking):
            feed(end, requests[at : at + one * asking])
            parts = end.engine.data_to_send()
            assert sum(map(len, parts)) <= GATHER_OCTETS + LARGEST_SEGMENT
            assert len(parts) <= MAX_PARTS + 3

    assert peak_of(ask) < RECEIVING + 4 * 64 * KIB
    assert end.qp.state is QpState.TERMINATE
    assert "more requests than IRD 16" in end.qp.end_reason


def test_a_peer_that_never_reads_can_still_write_and_nothing_piles_up() -> None:
    end = lone()
    end.send((0, 200_000))
    feed(end, read_requests(end, SIZE, count=4))
    before = end.engine.data_to_send()
    octets = write_fpdu(end.region.stag, end.region.base, bytes(1000)) * 5000
    assert peak_of(lambda: feed(end, octets)) < RECEIVING
    assert end.engine.data_to_send() is before
    assert end.qp.counters.rx_fpdus == 4 + 5000


# -- slow peers ------------------------------------------------------------------------------------


def test_a_peer_that_sends_an_octet_at_a_time_costs_what_any_other_does() -> None:
    end = lone()
    end.recv((0, 9000), wr_id=1)
    octets = (
        write_fpdu(end.region.stag, end.region.base, pattern(9000))
        + send_fpdu(pattern(8500))
        + b"".join(write_fpdu(end.region.stag, end.region.base, b"x") for _ in range(40))
        + read_requests(end, 10)
    )

    def drip() -> None:
        for at in range(len(octets)):
            assert feed(end, octets[at : at + 1]) == 1

    assert peak_of(drip) < 128 * KIB
    assert ids(end.got()) == [(1, WcStatus.SUCCESS)]
    assert end.qp.counters.rx_fpdus == 43
    assert len(end.qp.tx.responses) == 1


@pytest.mark.parametrize("payload", [100, 8000, 60_000])
@pytest.mark.parametrize("part", [1, 2, 17, 18, 22, 90])
def test_a_peer_that_stops_in_the_middle_of_an_fpdu_holds_little(payload: int, part: int) -> None:
    """Not even the memory that it was writing to: its owner can take it back."""
    end = lone()
    octets = write_fpdu(end.region.stag, end.region.base, bytes(payload))[:part]
    assert peak_of(lambda: feed(end, octets)) < 2 * LARGEST_SEGMENT
    assert end.qp.state is QpState.RTS
    end.rnic.deregister(end.region)
    end.memory.clear()  # BufferError while anything refers to it


def test_an_idle_connection_costs_little() -> None:
    rnic_with = lone(size=100)
    count = 100
    ends: list[End] = []

    def connect() -> None:
        for _ in range(count):
            end = End(size=1, rnic=rnic_with.rnic, pd=rnic_with.pd)
            end.qp.connected(crc=True, ird=16, ord=16, held=False, max_ulpdu=60_000)
            ends.append(end)

    assert peak_of(connect) < count * 32 * KIB
    assert len(ends) == count


def test_a_response_cut_to_surprise_leaves_no_large_buffer_behind() -> None:
    """What was placed on a guess, and taken back, is a mebibyte: for that moment only."""
    end = lone(size=2 * MIB)
    end.read(end.region, 0, 0, 2 * MIB)
    drain(end)
    stag, base = end.region.stag, end.region.base

    def response(at: int, size: int) -> bytes:
        return tagged(rdmap.Opcode.READ_RESPONSE, stag, base + at, bytes(size), last=False)

    size = 65_000
    count = 20
    even = [response(n * size, size) for n in range(count)]
    stream, at = b"".join(even), 0
    while (asked := sum(map(len, end.engine.buffers()))) < MIB // 2:
        at += feed(end, stream[at : at + asked])
    # The header of this segment is read, and those behind it are foreseen.
    current, read = divmod(at, len(even[0]))
    assert read == ddp.TAGGED_LEN + mpa.LENGTH_LEN
    position = (current + 1) * size
    tiny = [response(position + n * 50, 50) for n in range(asked // 76 + 1)]
    feed(end, even[current][read:] + b"".join(tiny))
    assert end.qp.state is QpState.RTS
    assert end.qp.counters.staged_bytes > MIB // 4
    # Then it goes on as any other stream of small segments does.
    position += len(tiny) * 50
    feed(end, b"".join(response(position + n * 50, 50) for n in range(5000)))
    assert end.qp.state is QpState.RTS
    assert len(end.engine.buffers()[0].obj) <= BUFFER_OCTETS  # type: ignore[arg-type]


# -- completion queues -----------------------------------------------------------------------------


def test_a_peer_completes_no_more_receives_than_were_posted() -> None:
    """So a completion queue as deep as its receive queues are can't be made to overrun."""
    end = lone(cq_depth=10, cap=QpCap(max_recv_wr=10))
    for wr_id in range(10):
        end.recv((0, 10), wr_id=wr_id)
    feed(end, b"".join(send_fpdu(b"x", msn) for msn in range(1, 5000)))
    assert not end.rcq.overrun
    assert [wr_id for wr_id, _ in ids(end.got())] == list(range(10))
    assert terminates(drain(end))[0].code == ddp.U_NO_BUFFER


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_what_takes_no_receive_completes_nothing(flood: Callable[[End], bytes]) -> None:
    end = lone(cq_depth=1)
    end.recv((0, 10))
    feed(end, flood(end)[:100_000])
    feed(end, read_requests(end, 10))
    drain(end)
    assert not end.rcq.entries
    assert not end.rcq.overrun


# -- shared receive queues -------------------------------------------------------------------------


def sharing(count: int, receives: int) -> list[End]:
    """Queue pairs of one RNIC that share a receive queue, each connected to another peer."""
    first = End(size=10_000)
    srq = first.rnic.create_srq(first.pd, 1000, 4)
    ends = []
    for _ in range(count):
        end = End(size=1, rnic=first.rnic, pd=first.pd)
        end.qp = first.rnic.create_qp(first.pd, end.scq, end.rcq, QpCap(), srq=srq)
        end.qp.connected(crc=True, ird=0, ord=0, held=False, max_ulpdu=60_000)
        ends.append(end)
    for wr_id in range(receives):
        srq.post_recv(RecvWR(wr_id, sg=[SGE(first.region.base, 100, first.region.stag)]))
    return ends


def test_a_stream_that_stalls_holds_one_shared_receive() -> None:
    staller, other = sharing(2, 3)
    feed(staller, send_fpdu(b"never ", last=False))
    feed(staller, send_fpdu(b"ends", mo=6, last=False))
    feed(other, send_fpdu(b"one") + send_fpdu(b"two", 2))
    assert [wc.wr_id for wc in other.got()] == [1, 2]
    staller.engine.stream_lost("gone")
    assert ids(staller.got()) == [(0, WcStatus.WR_FLUSH_ERR)]


def test_a_stream_that_drains_a_shared_queue_is_noticed_in_time_and_is_ended_itself() -> None:
    flooder, other = sharing(2, 10)
    srq = flooder.qp.srq
    assert srq is not None
    told: list[int] = []
    srq._on_limit = lambda: told.append(len(srq.rq))
    srq.arm_limit(5)
    feed(flooder, b"".join(send_fpdu(b"x", msn) for msn in range(1, 100)))
    assert told == [4]
    assert terminates(drain(flooder))[0].code == ddp.U_NO_BUFFER
    assert len(flooder.got()) == 10
    # Whoever was polite meanwhile is still there, and is served once receives are posted again.
    assert other.qp.state is QpState.RTS
    assert not other.got()


# -- limits of the device --------------------------------------------------------------------------


def test_one_domain_cannot_use_up_what_the_device_has() -> None:
    """A domain for each peer, and a limit for each domain."""
    rnic = Rnic(random.Random(1).getrandbits, RnicLimits(max_pd_objects=10))
    greedy, other = rnic.alloc_pd(), rnic.alloc_pd()
    regions = [rnic.register(greedy, bytearray(10), 0) for _ in range(10)]
    with pytest.raises(OSError, match="10 objects belong to the protection domain"):
        rnic.register(greedy, bytearray(10), 0)
    with pytest.raises(OSError, match="10 objects belong to the protection domain"):
        rnic.alloc_window(greedy, 2)
    rnic.register(other, bytearray(10), 0)
    rnic.deregister(regions[0])
    rnic.alloc_window(greedy, 2)
