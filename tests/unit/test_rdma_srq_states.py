"""Shared receive queues, and the states of a queue pair that a program asks for."""

from __future__ import annotations

import errno
import random
import sys

import pytest

from steertag.errors import StateError
from steertag.rdma.connection import Offer
from steertag.rdma.constants import (
    SEND_FENCE,
    SEND_SIGNALED,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_RDMA_READ,
    WcStatus,
)
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import RecvWR, SendWR
from steertag.wire import rdmap
from tests.sim.ends import (
    CAP,
    End,
    Pair,
    drain,
    feed,
    ids,
    lone,
    pair,
    pattern,
    send_fpdu,
    tagged,
    write_fpdu,
)
from tests.sim.operations import OK, ends, joined, word
from tests.sim.refusals import LARGE, SMALL

# -- shared receive queues -------------------------------------------------------------------------


def sharing(count: int) -> tuple[list[Pair], End, list[str], list[None]]:
    """`count` connections to queue pairs of one RNIC that share a receive queue."""
    events: list[str] = []
    limits: list[None] = []
    first = End(2)
    srq = first.rnic.create_srq(first.pd, 64, 4, lambda: limits.append(None))
    first.rnic.on_event = lambda name, _: events.append(name)
    pairs = []
    for n in range(count):
        server = End(50 + n)
        server.rnic, server.pd, server.region = first.rnic, first.pd, first.region
        server.memory = first.memory
        server.qp = first.rnic.create_qp(first.pd, server.scq, server.rcq, CAP, None, srq)
        pairs.append(pair(client=End(10 + n), server=server))
    return pairs, first, events, limits


def test_queue_pairs_take_their_receives_from_a_shared_queue_in_turn() -> None:
    pairs, first, _, _ = sharing(3)
    (srq,) = first.rnic.srqs
    for n in range(6):
        srq.post_recv(RecvWR(n, sg=[first.sge(1000 * n, 1000)]))
    for n in range(6):
        client = pairs[n % 3].client
        client.memory[:4] = b"%04d" % n
        client.send((0, 4))
        pairs[n % 3].run()
        (wc,) = pairs[n % 3].server.got()
        assert (wc.wr_id, wc.status, wc.qp_num) == (n, OK, pairs[n % 3].server.qp.qp_num)
        assert first.memory[1000 * n : 1000 * n + 4] == b"%04d" % n
    pairs[0].client.send((0, 4))
    pairs[0].run()
    assert "without a posted receive" in pairs[0].server.qp.end_reason
    srq.post_recv(RecvWR(9, sg=[first.sge(0, 100)]))
    pairs[1].client.send((0, 4))
    pairs[1].run()
    assert ids(pairs[1].server.got()) == [(9, OK)]


def test_a_limit_is_told_once_when_too_few_receives_are_left() -> None:
    pairs, first, _, limits = sharing(1)
    (srq,) = first.rnic.srqs
    for n in range(4):
        srq.post_recv(RecvWR(n, sg=[first.sge(0, 100)]))
    srq.arm_limit(3)
    for told in (0, 1, 1):
        pairs[0].client.send((0, 4))
        pairs[0].run()
        assert (len(limits), srq.limit) == (told, 0 if told else 3)
    srq.arm_limit(2)
    assert len(limits) == 2


def test_a_queue_pair_that_ends_leaves_the_shared_receives_to_the_others() -> None:
    pairs, first, events, _ = sharing(2)
    (srq,) = first.rnic.srqs
    for n in range(3):
        srq.post_recv(RecvWR(n, sg=[first.sge(0, 100_000)]))
    pairs[0].client.send((0, 60_000))
    for _ in range(3):
        pairs[0].link.step()
    pairs[0].link.cut()
    assert [wc.status for wc in pairs[0].server.got()] in ([], [WcStatus.WR_FLUSH_ERR], [OK])
    assert events == ["IBV_EVENT_QP_LAST_WQE_REACHED"]
    pairs[1].client.send((0, 4))
    pairs[1].run()
    assert [wc.status for wc in pairs[1].server.got()] == [OK]
    with pytest.raises(OSError, match="use the shared") as caught:
        first.rnic.destroy_srq(srq)
    assert caught.value.errno == errno.EBUSY
    for each in pairs:
        first.rnic.destroy_qp(each.server.qp)
    first.rnic.destroy_srq(srq)


def test_what_a_shared_queue_cannot_take_is_refused() -> None:
    end = End()
    srq = end.rnic.create_srq(end.pd, 2, 1)
    for n in range(2):
        srq.post_recv(RecvWR(n, sg=[end.sge(0, 1)]))
    with pytest.raises(OSError, match="full") as caught:
        srq.post_recv(RecvWR(2))
    assert caught.value.errno == errno.ENOMEM
    for change in (lambda: srq.arm_limit(3), lambda: srq.resize(1), lambda: srq.arm_limit(-1)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            change()
        assert caught.value.errno == errno.EINVAL
    srq.resize(3)
    with pytest.raises(OSError, match="elements") as caught:
        srq.post_recv(RecvWR(2, sg=[end.sge(0, 1), end.sge(0, 1)]))
    assert caught.value.errno == errno.EINVAL
    other = end.rnic.alloc_pd()
    with pytest.raises(OSError, match="domain"):
        end.rnic.create_qp(other, end.scq, end.rcq, CAP, None, srq)
    qp = end.rnic.create_qp(end.pd, end.scq, end.rcq, CAP, None, srq)
    with pytest.raises(OSError, match="SRQ"):
        qp.post_recv(RecvWR(1))


# -- states ----------------------------------------------------------------------------------------


def test_a_drained_queue_pair_finishes_what_has_begun_and_begins_nothing() -> None:
    both = joined()
    client, server = both.client, both.server
    events: list[str] = []
    client.rnic.on_event = lambda name, _: events.append(name)
    client.read(server.region, 0, 0, LARGE, wr_id=1)
    assert client.qp.data_to_send()
    client.qp.modify(QpState.SQD)
    for wr_id in (2, 3):
        client.write(server.region, 0, 0, 8, wr_id=wr_id)
    both.run()
    assert ids(client.sent()) == [(1, OK)]
    assert events == ["IBV_EVENT_SQ_DRAINED"]
    # The peer's requests are still answered.
    server.read(client.region, 0, 0, 8, wr_id=7)
    both.run()
    assert ids(server.sent()) == [(7, OK)]
    client.qp.modify(QpState.RTS)
    both.run()
    assert ids(client.sent()) == [(2, OK), (3, OK)]
    assert len(events) == 1


def test_a_queue_pair_in_error_flushes_and_one_that_was_reset_begins_anew() -> None:
    both = joined()
    client = both.client
    client.recv((0, 8), wr_id=1)
    client.qp.modify(QpState.SQD)
    client.write(both.server.region, 0, 0, 8, wr_id=2)
    client.qp.modify(QpState.ERROR)
    assert ids(client.sent()) == [(2, WcStatus.WR_FLUSH_ERR)]
    assert ids(client.got()) == [(1, WcStatus.WR_FLUSH_ERR)]
    both.run()
    assert both.server.qp.state is QpState.ERROR
    client.qp.modify(QpState.RESET)
    with pytest.raises(OSError, match="RESET"):
        client.recv((0, 8))
    client.qp.modify(QpState.INIT)
    again = pair(client=client, server=End(5))
    client.write(again.server.region, 0, 0, 8, wr_id=3)
    again.run()
    assert ids(client.sent()) == [(3, OK)]


def test_closing_a_queue_pair_that_has_ended_changes_nothing() -> None:
    reasons: list[str] = []
    end = End()
    end.qp = end.rnic.create_qp(end.pd, end.scq, end.rcq, CAP, reasons.append)
    end.qp.connected(crc=True, ird=1, ord=1, held=False, max_ulpdu=65534)
    end.qp.stream_lost("reset")
    end.qp.close()
    assert (reasons, end.qp.end_reason) == (["reset"], "reset")


def test_a_change_of_state_that_there_is_none_of_is_a_state_error() -> None:
    end = lone()
    for state in (QpState.RESET, QpState.INIT, QpState.CLOSING, QpState.TERMINATE):
        with pytest.raises(StateError):
            end.qp.modify(state)
    with pytest.raises(StateError):
        End().qp.modify(QpState.RTS)
    with pytest.raises(StateError):
        End().qp.modify(QpState.SQD)


def test_a_fence_waits_for_reads_and_atomics_before_it() -> None:
    both = joined()
    client, server = both.client, both.server
    server.memory[:8] = (41).to_bytes(8, sys.byteorder)
    wr = SendWR(1, sg=[client.sge(0, 8)], opcode=WR_ATOMIC_FETCH_AND_ADD)
    wr.set_wr_atomic(server.region.stag, server.region.base, 1)
    client.qp.post_send(wr)
    # What the operation brought here goes out again.
    client.write(server.region, 0, 100, 8, 2, SEND_SIGNALED | SEND_FENCE)
    both.run()
    assert ids(client.sent()) == [(1, OK), (2, OK)]
    assert (word(server, 0), word(server, 100)) == (42, 41)


@pytest.mark.parametrize("size", [SMALL, LARGE // 2])
@pytest.mark.parametrize("cut", [None, 7])
def test_tagged_and_untagged_segments_of_a_peer_may_interleave(size: int, cut: int | None) -> None:
    """RFC 5041 section 5: those of one message are in order, whatever comes between them."""
    end = lone()
    end.recv((0, 2 * size), wr_id=1)
    peer_stag = 0x1234
    end.qp.post_send(
        SendWR(
            2,
            sg=[end.sge(2 * size, 2 * size)],
            opcode=WR_RDMA_READ,
            rkey=peer_stag,
        )
    )
    drain(end)
    sent, read, written = pattern(2 * size, 1), pattern(2 * size, 2), pattern(size, 3)
    sink, stag = end.region.base + 2 * size, end.region.stag
    response = rdmap.Opcode.READ_RESPONSE
    octets = b"".join(
        (
            send_fpdu(sent[:size], last=False),
            tagged(response, stag, sink, read[:size], last=False),
            write_fpdu(stag, end.region.base + 4 * size, written[: size // 2], last=False),
            send_fpdu(sent[size:], mo=size),
            write_fpdu(stag, end.region.base + 4 * size + size // 2, written[size // 2 :]),
            tagged(response, stag, sink + size, read[size:]),
        )
    )
    feed(end, octets, None if cut is None else random.Random(cut))
    assert ids(end.got()) == [(1, OK)]
    assert ids(end.sent()) == [(2, OK)]
    assert end.memory[: 5 * size] == sent + read + written


def test_sequence_numbers_wrap_at_32_bits() -> None:
    client, server = ends()
    last = 0xFFFFFFFE
    both = pair(offer=Offer(), client=client, server=server)
    client.qp.tx.send_msn = server.qp.inbound.receive_msn = last
    client.qp.tx.read_msn = server.qp.inbound.request_msn = last
    for n in range(5):
        server.recv((0, 8), wr_id=n)
        client.send((0, 8), wr_id=n)
        client.read(server.region, 0, 0, 8, wr_id=n + 10)
    both.run()
    assert ids(server.got()) == [(n, OK) for n in range(5)]
    assert len(client.sent()) == 10
    assert client.qp.tx.send_msn == client.qp.tx.read_msn == 3
