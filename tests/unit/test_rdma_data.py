"""Writes, Reads and Sends between two queue pairs: every octet, every completion, in order."""

from __future__ import annotations

import random

import pytest

from steertag.rdma.connection import Offer
from steertag.rdma.constants import (
    SEND_FENCE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WC_RDMA_READ,
    WC_RDMA_WRITE,
    WC_RECV,
    WC_SEND,
    WR_RDMA_READ,
    WcStatus,
)
from steertag.rdma.cq import CompletionQueue
from steertag.rdma.qp import QpCap
from steertag.rdma.qp_state import QpState
from steertag.rdma.qp_tx import GATHER_OCTETS
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.wire import ddp, mpa, rdmap
from tests.sim.ends import (
    SIZE,
    End,
    Pair,
    drain,
    feed,
    fpdus,
    ids,
    lone,
    pair,
    pattern,
    read_request_fpdu,
    send_fpdu,
    tagged,
    untagged,
    write_fpdu,
)

OK = WcStatus.SUCCESS
FLUSHED = WcStatus.WR_FLUSH_ERR
UNSIGNALED = 0


def opcodes(octets: bytes) -> list[rdmap.Opcode]:
    return [rdmap.parse_control(ulpdu[1]) for ulpdu in fpdus(octets)]


SIZES = [0, 1, 3, 1452, 8192, 65519, 65520, 65521, 200_000]
"""Around the pads, the direct gear's threshold, and one FPDU's payload."""


@pytest.mark.parametrize("crc", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_write_places_its_octets_and_nothing_else(size: int, crc: bool) -> None:
    joined = pair(random.Random(size), Offer(crc=crc), Offer(crc=crc))
    client, server = joined.client, joined.server
    data = pattern(size)
    client.memory[7 : 7 + size] = data
    client.write(server.region, 7, 11, size, wr_id=1)
    joined.run()
    (wc,) = client.sent()
    assert (wc.wr_id, wc.status, wc.opcode, wc.byte_len) == (1, OK, WC_RDMA_WRITE, size)
    assert bytes(server.memory[11 : 11 + size]) == data
    assert not any(server.memory[:11])
    assert not any(server.memory[11 + size :])
    assert server.got() == []


@pytest.mark.parametrize("crc", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_read_fetches_its_octets_and_nothing_else(size: int, crc: bool) -> None:
    joined = pair(random.Random(size), Offer(crc=crc), Offer(crc=crc))
    client, server = joined.client, joined.server
    data = pattern(size)
    server.memory[11 : 11 + size] = data
    client.read(server.region, 7, 11, size, wr_id=1)
    joined.run()
    (wc,) = client.sent()
    assert (wc.wr_id, wc.status, wc.opcode, wc.byte_len) == (1, OK, WC_RDMA_READ, size)
    assert bytes(client.memory[7 : 7 + size]) == data
    assert not any(client.memory[:7])
    assert not any(client.memory[7 + size :])
    assert server.sent() == []


@pytest.mark.parametrize("crc", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_send_fills_the_oldest_receive(size: int, crc: bool) -> None:
    joined = pair(random.Random(size), Offer(crc=crc), Offer(crc=crc))
    client, server = joined.client, joined.server
    data = pattern(size)
    client.memory[7 : 7 + size] = data
    server.recv((11, size), wr_id=21)
    server.recv((0, 1), wr_id=22)
    client.send((7, size), wr_id=1)
    joined.run()
    (wc,) = client.sent()
    assert (wc.wr_id, wc.status, wc.opcode, wc.byte_len) == (1, OK, WC_SEND, size)
    (wc,) = server.got()
    assert (wc.wr_id, wc.status, wc.opcode, wc.byte_len) == (21, OK, WC_RECV, size)
    assert wc.qp_num == server.qp.qp_num
    assert bytes(server.memory[11 : 11 + size]) == data


def test_a_send_shorter_than_its_receive_leaves_the_rest_alone() -> None:
    joined = pair()
    joined.server.memory[:] = b"\xee" * SIZE
    joined.server.recv((0, 100))
    joined.client.send((0, 10))
    joined.run()
    assert joined.server.got()[0].byte_len == 10
    assert bytes(joined.server.memory[10:]) == b"\xee" * (SIZE - 10)


GATHERED = [(10, 5), (100_000, 70_001), (0, 0), (3, 1), (200_000, 30_000)]
SCATTERED = [(5, 1), (50, 0), (1000, 64_000), (80_000, 100), (100_000, 40_000)]


@pytest.mark.parametrize("max_ulpdu", [128, 1000, 65534])
def test_a_send_gathers_from_several_elements_and_scatters_into_several(max_ulpdu: int) -> None:
    joined = pair(random.Random(3), Offer(max_ulpdu=max_ulpdu), capacity=1 << 16)
    client, server = joined.client, joined.server
    client.memory[:] = pattern(SIZE)
    server.recv(*SCATTERED, wr_id=2)
    client.send(*GATHERED, wr_id=1)
    joined.run()
    sent = b"".join(client.memory[at : at + size] for at, size in GATHERED)
    took = b"".join(server.memory[at : at + size] for at, size in SCATTERED)
    assert ids(client.sent()) == [(1, OK)]
    assert [(wc.wr_id, wc.byte_len) for wc in server.got()] == [(2, len(sent))]
    assert took[: len(sent)] == sent


def test_a_write_gathers_from_several_elements() -> None:
    joined = pair(random.Random(4))
    client, server = joined.client, joined.server
    client.memory[:] = pattern(SIZE)
    sg = [client.sge(*part) for part in GATHERED]
    wr = SendWR(1, sg=sg, rkey=server.region.stag, remote_addr=server.region.base + 9)
    client.qp.post_send(wr)
    joined.run()
    sent = b"".join(client.memory[at : at + size] for at, size in GATHERED)
    assert ids(client.sent()) == [(1, OK)]
    assert bytes(server.memory[9 : 9 + len(sent)]) == sent


def test_num_sge_says_how_many_elements_count() -> None:
    joined = pair()
    client, server = joined.client, joined.server
    sg = [client.sge(0, 10), client.sge(0, 20)]
    server.qp.post_recv(RecvWR(9, 1, [server.sge(0, 10), server.sge(50, 50)]))
    client.qp.post_send(SendWR(1, 1, sg, opcode=2))
    joined.run()
    assert server.got()[0].byte_len == 10


@pytest.mark.parametrize("max_ulpdu", [128, 1448, 65534, 65535])
def test_no_fpdu_is_longer_than_asked(max_ulpdu: int) -> None:
    end = lone(max_ulpdu=max_ulpdu)
    end.memory[:] = pattern(SIZE)
    end.write(end.region, 0, 0, 150_000)
    end.send((0, 150_000))
    feed(end, read_request_fpdu(rdmap.ReadRequest(1, 2, 150_000, end.region.stag, end.region.base)))
    sizes = [len(ulpdu) for ulpdu in fpdus(drain(end))]
    assert max(sizes) <= max_ulpdu
    assert sum(sizes) > 450_000


def test_a_message_longer_than_one_gathering_is_whole() -> None:
    size = 3 * GATHER_OCTETS + 17
    client, server = End(1, size), End(2, size)
    client.memory[:] = pattern(size)
    joined = pair(random.Random(5), client=client, server=server)
    client.write(server.region, 0, 0, size, wr_id=1)
    joined.run()
    assert server.memory == client.memory
    server.memory[:] = bytes(size)
    server.recv((0, size), wr_id=9)
    client.send((0, size), wr_id=2)
    joined.run()
    assert server.memory == client.memory
    client.memory[:] = bytes(size)
    client.read(server.region, 0, 0, size, wr_id=3)
    joined.run()
    assert server.memory == client.memory
    assert ids(client.sent()) == [(1, OK), (2, OK), (3, OK)]
    assert ids(server.got()) == [(9, OK)]


def test_a_request_completes_when_its_last_octet_was_taken_by_the_stream() -> None:
    end = lone()
    end.write(end.region, 0, 0, 100, wr_id=1)
    end.write(end.region, 0, 0, 100, wr_id=2)
    octets = sum(map(len, end.engine.data_to_send()))
    end.engine.sent(octets // 2 - 1)
    assert end.sent() == []
    end.engine.sent(1)
    assert ids(end.sent()) == [(1, OK)]
    end.engine.sent(octets // 2)
    assert ids(end.sent()) == [(2, OK)]


def test_the_stream_may_take_a_frame_one_octet_at_a_time() -> None:
    end = lone()
    end.memory[:100] = pattern(100)
    end.write(end.region, 0, 3, 40_000)
    end.send((0, 100))
    sent = bytearray()
    while end.engine.wants_to_send:
        part = end.engine.data_to_send()[0]
        sent += bytes(part[:1])
        end.engine.sent(1)
    taker = lone(seed=2)
    taker.recv((0, 100))
    first, second = fpdus(bytes(sent))
    assert len(first) == 40_000 + ddp.TAGGED_LEN
    assert second[ddp.UNTAGGED_LEN :] == pattern(100)


# -- order -----------------------------------------------------------------------------------------


def test_unsignalled_requests_complete_silently_and_in_their_place() -> None:
    joined = pair()
    client, server = joined.client, joined.server
    client.write(server.region, 0, 0, 10, wr_id=1, flags=UNSIGNALED)
    client.read(server.region, 0, 0, 10, wr_id=2)
    client.write(server.region, 0, 0, 10, wr_id=3, flags=UNSIGNALED)
    client.write(server.region, 0, 0, 10, wr_id=4)
    joined.run()
    assert ids(client.sent()) == [(2, OK), (4, OK)]
    assert client.qp.tx.depth() == 0


def test_a_failed_unsignalled_request_completes_visibly() -> None:
    end = lone()
    end.write(end.region, 0, 0, 10, wr_id=1, flags=UNSIGNALED)
    end.qp.stream_lost("gone")
    assert ids(end.sent()) == [(1, FLUSHED)]


def test_a_write_behind_a_read_waits_for_it_to_complete() -> None:
    """Completions are in the order of posting, whatever is done first."""
    end = lone()
    end.read(end.region, 0, 100, 10, wr_id=1)
    end.write(end.region, 0, 0, 10, wr_id=2)
    assert opcodes(drain(end)) == [rdmap.Opcode.READ_REQUEST, rdmap.Opcode.WRITE]
    assert end.sent() == []
    feed(end, tagged(2, end.region.stag, end.region.base, bytes(10)))
    assert ids(end.sent()) == [(1, OK), (2, OK)]


def test_reads_beyond_ord_wait_and_go_on() -> None:
    end = lone(ord=2)
    for wr_id in range(4):
        end.read(end.region, wr_id * 10, 100, 10, wr_id=wr_id)
    end.write(end.region, 0, 0, 10, wr_id=4)
    assert opcodes(drain(end)) == [rdmap.Opcode.READ_REQUEST] * 2
    assert not end.engine.wants_to_send
    feed(end, tagged(2, end.region.stag, end.region.base, bytes(10)))
    assert ids(end.sent()) == [(0, OK)]
    assert opcodes(drain(end)) == [rdmap.Opcode.READ_REQUEST]
    for wr_id in (1, 2):
        feed(end, tagged(2, end.region.stag, end.region.base + wr_id * 10, bytes(10)))
    assert opcodes(drain(end)) == [rdmap.Opcode.READ_REQUEST, rdmap.Opcode.WRITE]
    feed(end, tagged(2, end.region.stag, end.region.base + 30, bytes(10)))
    assert ids(end.sent()) == [(wr_id, OK) for wr_id in (1, 2, 3, 4)]


def test_read_requests_are_numbered_from_1() -> None:
    end = lone()
    for _ in range(3):
        end.read(end.region, 0, 0, 1)
    end.send((0, 1))
    end.send((0, 1))
    headers = [ddp.parse(ulpdu) for ulpdu in fpdus(drain(end))]
    assert [(h.qn, h.msn, h.mo) for h in headers if isinstance(h, ddp.Untagged)] == [
        (1, 1, 0),
        (1, 2, 0),
        (1, 3, 0),
        (0, 1, 0),
        (0, 2, 0),
    ]


def test_a_fence_holds_a_request_until_the_reads_before_it_are_done() -> None:
    end = lone()
    end.read(end.region, 0, 100, 10, wr_id=1)
    end.write(end.region, 0, 0, 10, wr_id=2, flags=SEND_FENCE | SEND_SIGNALED)
    assert opcodes(drain(end)) == [rdmap.Opcode.READ_REQUEST]
    assert not end.engine.wants_to_send
    feed(end, tagged(2, end.region.stag, end.region.base, b"0123456789"))
    (ulpdu,) = fpdus(drain(end))
    assert ulpdu[ddp.TAGGED_LEN :] == b"0123456789"
    assert ids(end.sent()) == [(1, OK), (2, OK)]


def test_without_ord_a_read_is_refused_at_once() -> None:
    end = lone(ord=0)
    with pytest.raises(OSError, match="ORD"):
        end.read(end.region, 0, 0, 1)


def test_read_responses_take_turns_with_requests() -> None:
    end = lone(max_ulpdu=1000)
    end.memory[:] = pattern(SIZE)
    one = rdmap.ReadRequest(9, 0, 2000, end.region.stag, end.region.base)
    for msn in (1, 2, 3):
        feed(end, read_request_fpdu(one, msn))
    for _ in range(3):
        end.write(end.region, 0, 0, 2000)
    seen = opcodes(drain(end))
    response, write = rdmap.Opcode.READ_RESPONSE, rdmap.Opcode.WRITE
    # Segments of one message aren't torn apart; whole messages alternate.
    assert seen == [*[response] * 3, *[write] * 3] * 3


def test_read_responses_are_in_the_order_of_their_requests() -> None:
    end = lone()
    end.memory[:] = pattern(SIZE)
    for msn, size in ((1, 70_000), (2, 0), (3, 5)):
        request = rdmap.ReadRequest(msn, msn * 1000, size, end.region.stag, end.region.base)
        feed(end, read_request_fpdu(request, msn))
    segments = fpdus(drain(end))
    headers = [h for h in map(ddp.parse, segments) if isinstance(h, ddp.Tagged)]
    assert [h.stag for h in headers if h.last] == [1, 2, 3]
    assert [h.stag for h in headers] == sorted(h.stag for h in headers)
    answered = dict.fromkeys((1, 2, 3), b"")
    for header, segment in zip(headers, segments, strict=True):
        assert header.to == header.stag * 1000 + len(answered[header.stag])
        answered[header.stag] += segment[ddp.TAGGED_LEN :]
    assert answered == {1: end.memory[:70_000], 2: b"", 3: end.memory[:5]}


def test_tagged_segments_may_come_between_those_of_a_send() -> None:
    end = lone()
    end.recv((0, 200), wr_id=1)
    feed(end, send_fpdu(b"\x01" * 100, last=False))
    feed(end, write_fpdu(end.region.stag, end.region.base + 1000, b"\x02" * 10))
    feed(end, read_request_fpdu(rdmap.ReadRequest(9, 9, 3, end.region.stag, end.region.base)))
    feed(end, send_fpdu(b"\x03" * 100, mo=100))
    assert [(wc.wr_id, wc.byte_len) for wc in end.got()] == [(1, 200)]
    assert bytes(end.memory[:200]) == b"\x01" * 100 + b"\x03" * 100
    assert end.memory[1000:1010] == b"\x02" * 10
    assert opcodes(drain(end)) == [rdmap.Opcode.READ_RESPONSE]


def test_a_solicited_send_says_so_on_the_wire() -> None:
    end = lone()
    end.send((0, 1), flags=SEND_SOLICITED | SEND_SIGNALED)
    end.send((0, 1))
    assert opcodes(drain(end)) == [rdmap.Opcode.SEND_SE, rdmap.Opcode.SEND]


# -- limits ----------------------------------------------------------------------------------------


def test_a_full_send_queue_is_enomem_until_something_completes() -> None:
    end = lone(cap=QpCap(max_send_wr=2))
    end.write(end.region, 0, 0, 1, wr_id=1)
    end.write(end.region, 0, 0, 1, wr_id=2, flags=UNSIGNALED)
    with pytest.raises(OSError, match="full"):
        end.write(end.region, 0, 0, 1, wr_id=3)
    drain(end)
    end.write(end.region, 0, 0, 1, wr_id=3)
    drain(end)
    assert ids(end.sent()) == [(1, OK), (3, OK)]


def test_a_full_receive_queue_is_enomem() -> None:
    end = lone(cap=QpCap(max_recv_wr=1))
    end.recv((0, 1))
    with pytest.raises(OSError, match="full"):
        end.recv((0, 1))


def test_posting_to_a_queue_pair_that_is_not_connected_is_einval() -> None:
    end = End()
    with pytest.raises(OSError, match="INIT"):
        end.write(end.region, 0, 0, 1)
    end.recv((0, 1))  # receives may be posted before


@pytest.mark.parametrize("opcode", [10, 99, -1])
def test_an_opcode_that_iwarp_does_not_have_here_is_einval(opcode: int) -> None:
    end = lone()
    with pytest.raises(OSError, match="opcode"):
        end.qp.post_send(SendWR(opcode=opcode))


@pytest.mark.parametrize("flags", [16, 1 << 20, -1])
def test_flags_that_nothing_would_heed_are_einval(flags: int) -> None:
    end = lone()
    with pytest.raises(OSError, match="flags"):
        end.write(end.region, 0, 0, 8, flags=flags)
    with pytest.raises(OSError, match="flags"):
        end.send((0, 8), flags=flags)


def test_too_many_elements_are_einval() -> None:
    end = lone(cap=QpCap(max_send_sge=2, max_recv_sge=2))
    with pytest.raises(OSError, match="elements"):
        end.send((0, 1), (0, 1), (0, 1))
    with pytest.raises(OSError, match="elements"):
        end.recv((0, 1), (0, 1), (0, 1))
    wr = SendWR(sg=[end.sge(0, 1), end.sge(0, 1)], opcode=WR_RDMA_READ)
    with pytest.raises(OSError, match="one local element"):
        end.qp.post_send(wr)


def test_a_message_longer_than_its_length_field_is_einval() -> None:
    end = lone()
    for parts in ([(0, 1 << 32)], [(0, 1 << 31), (0, 1 << 31)]):
        with pytest.raises(OSError, match="octets"):
            end.send(*parts)


def test_a_zero_length_read_needs_no_local_memory() -> None:
    joined = pair()
    for sg in ([], [joined.client.sge(0, 0)]):
        wr = SendWR(7, sg=sg, opcode=WR_RDMA_READ, rkey=1, remote_addr=0)
        joined.client.qp.post_send(wr)
        joined.run()
        assert ids(joined.client.sent()) == [(7, OK)]


def test_a_zero_length_read_ignores_its_element() -> None:
    end = lone()
    end.qp.post_send(SendWR(7, sg=[SGE(-1, 0, 1 << 40)], opcode=WR_RDMA_READ))
    assert opcodes(drain(end)) == [rdmap.Opcode.READ_REQUEST]


def test_a_request_is_read_when_it_is_posted() -> None:
    joined = pair()
    client, server = joined.client, joined.server
    client.memory[:20] = b"a" * 10 + b"b" * 10
    sge = client.sge(0, 10)
    wr = SendWR(1, sg=[sge], rkey=server.region.stag, remote_addr=server.region.base)
    client.qp.post_send(wr)
    sge.addr += 10
    wr.wr_id, wr.remote_addr = 2, wr.remote_addr + 10
    client.qp.post_send(wr)
    joined.run()
    assert bytes(server.memory[:20]) == b"a" * 10 + b"b" * 10
    assert ids(client.sent()) == [(1, OK), (2, OK)]


# -- ending ----------------------------------------------------------------------------------------


def close_both_ways(joined: Pair) -> None:
    joined.run()
    assert joined.client.qp.state is QpState.ERROR
    assert joined.server.qp.state is QpState.ERROR


def test_closing_sends_first_what_is_posted() -> None:
    joined = pair()
    client, server = joined.client, joined.server
    client.memory[:] = pattern(SIZE)
    server.recv((0, 10), wr_id=5)
    server.recv((0, 10), wr_id=6)
    client.write(server.region, 0, 0, SIZE, wr_id=1)
    client.read(server.region, 0, 0, 10, wr_id=2)
    client.send((0, 10), wr_id=3)
    client.qp.close()
    assert client.qp.state is QpState.CLOSING
    with pytest.raises(OSError, match="CLOSING"):
        client.send((0, 10), wr_id=4)
    close_both_ways(joined)
    assert ids(client.sent()) == [(1, OK), (2, OK), (3, OK)]
    assert ids(server.got()) == [(5, OK), (6, FLUSHED)]
    assert server.memory == client.memory
    assert client.qp.end_reason == "closed"
    assert server.qp.end_reason == "peer closed"
    assert client.qp.counters.terminates_sent == server.qp.counters.terminates_sent == 0


def test_closing_twice_is_closing_once() -> None:
    joined = pair()
    joined.client.read(joined.server.region, 0, 0, 10)
    joined.client.qp.close()
    joined.client.qp.close()
    close_both_ways(joined)
    joined.client.qp.close()
    assert joined.client.qp.state is QpState.ERROR


def test_a_responder_that_closes_before_its_peer_has_spoken_flushes_what_it_posted() -> None:
    end = lone(held=True)
    end.write(end.region, 0, 0, 10, wr_id=1)
    end.send((0, 10), wr_id=2)
    end.qp.close()
    assert end.qp.state is QpState.ERROR
    assert drain(end) == b""
    assert ids(end.sent()) == [(1, FLUSHED), (2, FLUSHED)]


def test_a_queue_pair_closed_before_it_was_connected_flushes_its_receives() -> None:
    end = End()
    end.recv((0, 10), wr_id=1)
    end.qp.close()
    assert end.qp.state is QpState.ERROR
    assert ids(end.got()) == [(1, FLUSHED)]


def test_a_peer_that_closes_in_the_middle_of_a_message_is_noticed() -> None:
    for octets in (
        send_fpdu(b"x" * 100)[:-1],
        send_fpdu(b"x" * 100, last=False),
        send_fpdu(b"x" * 60_000)[:50_000],
        b"\0",
    ):
        end = lone()
        end.recv((0, SIZE), wr_id=1)
        feed(end, octets)
        end.engine.eof()
        assert end.qp.end_reason == "peer closed in the middle of a message"
        assert ids(end.got()) == [(1, FLUSHED)]


def test_a_read_that_waits_when_the_peer_closes_is_flushed() -> None:
    end = lone()
    end.write(end.region, 0, 0, 1, wr_id=1)
    end.read(end.region, 0, 0, 10, wr_id=2)
    end.write(end.region, 0, 0, 1, wr_id=3)
    drain(end)
    end.engine.eof()
    assert ids(end.sent()) == [(1, OK), (2, FLUSHED), (3, OK)]
    assert "middle" in end.qp.end_reason


def test_losing_the_stream_completes_what_left_and_flushes_the_rest() -> None:
    end = lone()
    for wr_id in (1, 2):
        end.write(end.region, 0, 0, 60_000, wr_id=wr_id)
    end.engine.data_to_send()
    end.engine.sent(mpa.fpdu_len(60_000 + ddp.TAGGED_LEN) + 5)
    end.write(end.region, 0, 0, 1, wr_id=3)
    end.recv((0, 1), wr_id=4)
    end.engine.stream_lost("connection reset by peer")
    assert ids(end.sent()) == [(1, OK), (2, FLUSHED), (3, FLUSHED)]
    assert ids(end.got()) == [(4, FLUSHED)]
    assert end.qp.end_reason == "connection reset by peer"
    assert not end.engine.wants_to_send


def test_posting_to_an_ended_queue_pair_completes_as_flushed() -> None:
    end = lone()
    end.engine.stream_lost("gone")
    end.write(end.region, 0, 0, 1, wr_id=1)
    end.recv((0, 1), wr_id=2)
    assert ids(end.sent()) == [(1, FLUSHED)]
    assert ids(end.got()) == [(2, FLUSHED)]


def test_the_end_is_told_once() -> None:
    reasons: list[str] = []
    end = End()
    qp = end.rnic.create_qp(end.pd, end.scq, end.rcq, QpCap(), reasons.append)
    qp.connected(crc=True, ird=1, ord=1, held=False, max_ulpdu=1000)
    qp.eof()
    qp.eof()
    qp.stream_lost("again")
    end.rnic.destroy_qp(qp)
    assert reasons == ["peer closed"]


def test_destroying_a_queue_pair_flushes_it() -> None:
    end = lone()
    end.write(end.region, 0, 0, 1, wr_id=1)
    end.recv((0, 1), wr_id=2)
    end.rnic.destroy_qp(end.qp)
    assert ids(end.sent()) == [(1, FLUSHED)]
    assert ids(end.got()) == [(2, FLUSHED)]
    assert end.rnic.qps == {}


# -- completion queues -----------------------------------------------------------------------------


def test_a_completion_queue_that_overruns_ends_nothing_by_itself_but_says_so() -> None:
    end = lone(cq_depth=2)
    for wr_id in range(4):
        end.write(end.region, 0, 0, 1, wr_id=wr_id)
    drain(end)
    assert end.scq.overrun
    assert ids(end.sent()) == [(0, OK), (1, OK)]


def test_an_overrun_in_the_middle_of_a_read_ends_the_queue_pair_there() -> None:
    """Nothing that the peer sent behind it is placed, and its Terminate comes too late."""
    end = End()
    rcq = CompletionQueue(1, on_overrun=lambda: qp.stream_lost("completion queue overrun"))
    qp = end.rnic.create_qp(end.pd, end.scq, rcq, QpCap())
    end.qp = qp
    qp.connected(crc=True, ird=1, ord=1, held=False, max_ulpdu=1000)
    for wr_id in range(5):
        end.recv((wr_id, 1), wr_id=wr_id)
    ahead = b"".join(write_fpdu(end.region.stag, end.region.base + 1000, b"") for _ in range(8))
    feed(end, ahead)  # the receiver now reads many FPDUs at once
    feed(
        end,
        b"".join(send_fpdu(b"x", msn) for msn in (1, 2))
        + write_fpdu(end.region.stag, end.region.base + 100, b"late")
        + untagged(rdmap.Opcode.TERMINATE, 2, 1, rdmap.Terminate(0, 2, 0xFF).emit()),
    )
    assert qp.state is QpState.ERROR
    assert qp.end_reason == "completion queue overrun"
    assert not any(end.memory[100:104])
    assert ids(rcq.poll(10)) == [(0, OK)]
