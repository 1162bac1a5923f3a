"""Posting call by call, gather lists, inline data, fences, Immediate Data and atomics, as verbs."""

from __future__ import annotations

import errno
import sys

import pytest

from steertag.verbs import (
    CQ,
    MR,
    MW,
    PD,
    SGE,
    Context,
    MWBindInfo,
    QPCap,
    QPEx,
    QPInitAttrEx,
    RecvWR,
    SendWR,
    inc_rkey,
)
from steertag.verbs import WcStatus as Status
from steertag.verbs import enums as e
from tests.sim.local import Player, players
from tests.sim.verbs import TIMEOUT


def start(player: Player, wr_id: int = 1, flags: int = e.IBV_SEND_SIGNALED) -> QPEx:
    player.qp.wr_start()
    player.qp.wr_id, player.qp.wr_flags = wr_id, flags
    return player.qp


def number(octets: bytes) -> int:
    return int.from_bytes(octets, sys.byteorder)


def test_a_batch_is_posted_with_its_numbers_and_flags() -> None:
    with players() as (here, there):
        here.memory[:6] = b"abcdef"
        qp = start(here, 1, 0)
        for n in range(6):
            qp.wr_id = n
            qp.wr_flags = e.IBV_SEND_SIGNALED if n % 2 else 0
            qp.wr_rdma_write(there.mr.rkey, there.mr.buf + n)
            qp.wr_set_sge(here.sge(1, n))
        qp.wr_complete()
        assert [here.complete().wr_id for _ in range(3)] == [1, 3, 5]
        assert there.memory[:6] == b"abcdef"


def test_every_operation_of_a_batch() -> None:
    with players() as (here, there):
        there.memory[:8] = (40).to_bytes(8, sys.byteorder)
        there.memory[100:104] = b"read"
        window = MW(here.pd, e.IBV_MW_TYPE_2)
        for n in range(3):
            there.receive(n, offset=1000)
        key = inc_rkey(window.rkey)
        qp = start(here)
        rkey, at = there.mr.rkey, there.mr.buf
        qp.wr_send()
        qp.wr_set_sge(here.sge(3))
        qp.wr_rdma_read(rkey, at + 100)
        qp.wr_set_sge(here.sge(4, 200))
        qp.wr_atomic_fetch_add(rkey, at, 2)
        qp.wr_set_sge(here.sge(8, 300))
        qp.wr_atomic_cmp_swp(rkey, at, 42, 7)
        qp.wr_set_sge(here.sge(8, 308))
        qp.wr_bind_mw(window, key, MWBindInfo(here.mr, here.mr.buf, 10, 2))
        qp.wr_local_inv(key)
        qp.wr_rdma_write_imm(rkey, at + 400, 0xCAFE)
        qp.wr_set_sge(here.sge(5))
        qp.wr_complete()
        completed = [here.complete() for _ in range(7)]
        assert [wc.opcode for wc in completed] == [
            e.IBV_WC_SEND,
            e.IBV_WC_RDMA_READ,
            e.IBV_WC_FETCH_ADD,
            e.IBV_WC_COMP_SWAP,
            e.IBV_WC_BIND_MW,
            e.IBV_WC_LOCAL_INV,
            e.IBV_WC_RDMA_WRITE,
        ]
        assert {wc.status for wc in completed} == {Status.SUCCESS}
        assert here.memory[200:204] == b"read"
        assert [number(here.memory[300:308]), number(here.memory[308:316])] == [40, 42]
        assert number(there.memory[:8]) == 7
        received = [there.complete() for _ in range(2)]
        assert [wc.opcode for wc in received] == [e.IBV_WC_RECV, e.IBV_WC_RECV_RDMA_WITH_IMM]
        assert (received[1].wc_flags, received[1].imm_data) == (e.IBV_WC_WITH_IMM, 0xCAFE)


def test_a_send_with_invalidate_of_a_batch() -> None:
    with players() as (here, there):
        window = MW(there.pd, e.IBV_MW_TYPE_2)
        bind = SendWR(opcode=e.IBV_WR_BIND_MW)
        bind.set_bind_wr(window, MWBindInfo(there.mr, there.mr.buf, 10, 2))
        assert there.do(bind).status == Status.SUCCESS
        there.receive()
        qp = start(here)
        qp.wr_send_inv(window.rkey)
        qp.wr_complete()
        assert there.complete().invalidated_rkey == window.rkey


def test_an_aborted_batch_posts_nothing() -> None:
    with players() as (here, there):
        qp = start(here)
        qp.wr_rdma_write(there.mr.rkey, there.mr.buf)
        qp.wr_abort()
        assert here.do(here.request(e.IBV_WR_RDMA_WRITE, 1, there)).wr_id == e.IBV_WR_RDMA_WRITE
        assert here.cq.poll() == (0, [])


@pytest.mark.parametrize("fault", ["elements", "inline", "room", "operand", "flags"])
def test_a_batch_with_a_fault_posts_nothing_and_says_so_in_the_end(fault: str) -> None:
    cap = QPCap(max_send_wr=4, max_send_sge=2, max_inline_data=8)
    with players(cap=cap) as (here, there):
        before = bytes(there.memory)
        here.memory[:4] = b"good"
        qp = start(here)
        rkey, at = there.mr.rkey, there.mr.buf
        qp.wr_rdma_write(rkey, at)
        qp.wr_set_sge(here.sge(4))
        expected = errno.EINVAL
        if fault == "elements":
            qp.wr_rdma_write(rkey, at)
            qp.wr_set_sge_list(3, [here.sge(1)] * 3)
        elif fault == "inline":
            qp.wr_rdma_write(rkey, at)
            qp.wr_set_inline_data(b"nine octets")
        elif fault == "room":
            expected = errno.ENOMEM
            for _ in range(4):
                qp.wr_rdma_write(rkey, at)
        elif fault == "operand":
            qp.wr_atomic_fetch_add(rkey, at + 1, 1)
            qp.wr_set_sge(here.sge(8))
        else:
            qp.wr_flags = 1 << 9
            qp.wr_rdma_write(rkey, at)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            qp.wr_complete()
        assert caught.value.errno == expected
        assert here.cq.wait(1, 0.0) == []
        assert there.memory == before
        # The next batch is not concerned.
        start(here).wr_rdma_write(rkey, at)
        qp.wr_set_sge(here.sge(4))
        qp.wr_complete()
        assert here.complete().status == Status.SUCCESS


def test_a_batch_out_of_turn_is_einval() -> None:
    with players() as (here, _):
        for call in (here.qp.wr_complete, here.qp.wr_send):
            with pytest.raises(OSError, match="no batch"):
                call()
        start(here)
        with pytest.raises(OSError, match="wasn't completed"):
            here.qp.wr_start()
        with pytest.raises(OSError, match="no request"):
            here.qp.wr_set_sge(here.sge(1))


def test_a_batch_before_the_peer_is_known_is_einval() -> None:
    with players(joined=False) as (here, _):
        start(here).wr_send()
        with pytest.raises(OSError, match="INIT"):
            here.qp.wr_complete()


def qp_with(context: Context, operations: int, mask: int | None = None) -> QPEx:
    cq = CQ(context, 8)
    both = e.IBV_QP_INIT_ATTR_PD | e.IBV_QP_INIT_ATTR_SEND_OPS_FLAGS
    init = QPInitAttrEx(
        scq=cq,
        rcq=cq,
        pd=PD(context),
        comp_mask=both if mask is None else mask,
        send_ops_flags=operations,
    )
    return QPEx(context, init)


def test_an_operation_that_was_not_asked_for_is_einval() -> None:
    with Context() as context:
        qp = qp_with(context, e.IBV_QP_EX_WITH_SEND)
        qp.wr_start()
        qp.wr_rdma_read(1, 1)
        with pytest.raises(OSError, match="send_ops_flags"):
            qp.wr_complete()


@pytest.mark.parametrize(
    "operation", [e.IBV_QP_EX_WITH_SEND_WITH_IMM, e.IBV_QP_EX_WITH_TSO, 1 << 12]
)
def test_an_operation_that_iwarp_does_not_have_is_eopnotsupp(operation: int) -> None:
    with Context() as context, pytest.raises(OSError, match="send operations") as caught:
        qp_with(context, operation)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_without_operations_there_are_no_batches() -> None:
    with Context() as context:
        qp = qp_with(context, e.IBV_QP_EX_WITH_SEND, e.IBV_QP_INIT_ATTR_PD)
        with pytest.raises(OSError, match="without send_ops_flags"):
            qp.wr_start()


# -- requests, however they are posted -----------------------------------------------------------


def test_thirty_two_elements_are_gathered_and_scattered() -> None:
    with players() as (here, there):
        here.memory[:3200] = bytes(range(32)) * 100
        sg = [here.sge(100, 100 * n) for n in reversed(range(32))]
        target = [SGE(there.mr.buf + 64 * n, 50, there.mr.lkey) for n in range(32)]
        there.qp.post_recv(RecvWR(9, sg=target))
        wr = here.request(e.IBV_WR_SEND, 0)
        wr.sg = sg[:16]
        assert here.do(wr).status == Status.SUCCESS
        assert there.complete().byte_len == 1600
        sent = b"".join(here.memory[100 * n : 100 * n + 100] for n in range(31, 15, -1))
        got = b"".join(there.memory[64 * n : 64 * n + 50] for n in range(32))
        assert got == sent


def test_inline_data_is_as_it_was_when_it_was_posted() -> None:
    with players() as (here, there):
        there.receive(1, 16)
        there.receive(2, 16, 100)
        here.memory[:6] = b"before"
        wr = here.request(e.IBV_WR_SEND, 6)
        wr.send_flags |= e.IBV_SEND_INLINE
        with here.context.loop.lock:  # nothing leaves meanwhile
            here.qp.post_send(wr)
            here.qp.post_send(SendWR(2, opcode=e.IBV_WR_SEND, inline_data=b"no region"))
            here.memory[:6] = b"after!"
        for _ in range(2):
            assert here.complete().status == Status.SUCCESS
            assert there.complete().status == Status.SUCCESS
        assert there.memory[:6] == b"before"
        assert there.memory[100:109] == b"no region"


def test_more_inline_data_than_the_queue_pair_takes_is_einval() -> None:
    with players(cap=QPCap(max_inline_data=8)) as (here, _):
        for wr in (
            SendWR(opcode=e.IBV_WR_SEND, inline_data=b"nine octets"),
            SendWR(opcode=e.IBV_WR_RDMA_READ, inline_data=b"eight"),
        ):
            with pytest.raises(OSError, match="inline") as caught:
                here.qp.post_send(wr)
            assert caught.value.errno == errno.EINVAL


def test_a_fenced_request_waits_for_the_reads_before_it() -> None:
    with players() as (here, there):
        there.memory[:5] = b"fence"
        read = here.request(e.IBV_WR_RDMA_READ, 5, there)
        write = here.request(e.IBV_WR_RDMA_WRITE, 5, there)
        write.remote_addr += 100
        write.send_flags |= e.IBV_SEND_FENCE
        here.qp.post_send([read, write])
        assert [here.complete().opcode for _ in range(2)] == [
            e.IBV_WC_RDMA_READ,
            e.IBV_WC_RDMA_WRITE,
        ]
        assert there.memory[100:105] == b"fence"  # what the Read had brought


def test_immediate_data_alone_takes_a_receive() -> None:
    with players() as (here, there):
        there.receive(4)
        wr = SendWR(opcode=e.IBV_WR_SEND_WITH_IMM, imm_data=0x12345678)
        assert here.do(wr).status == Status.SUCCESS
        wc = there.complete()
        assert (wc.wr_id, wc.imm_data, wc.byte_len) == (4, 0x12345678, 0)


def test_a_send_with_payload_and_immediate_data_is_eopnotsupp() -> None:
    with players() as (here, _), pytest.raises(OSError, match="Immediate Data") as caught:
        here.qp.post_send(here.request(e.IBV_WR_SEND_WITH_IMM, 1))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_swap_gives_back_what_was_there() -> None:
    with players() as (here, there):
        there.memory[:8] = (1).to_bytes(8, sys.byteorder)
        wr = here.request(e.IBV_WR_ATOMIC_SWAP, 8)
        wr.set_wr_atomic(there.mr.rkey, there.mr.buf, 0, 2)
        wc = here.do(wr)
        assert (wc.status, wc.opcode) == (Status.SUCCESS, e.IBV_WC_SWAP)
        assert (number(here.memory[:8]), number(there.memory[:8])) == (1, 2)


def test_a_read_can_end_the_key_of_its_sink() -> None:
    with players() as (here, there):
        there.memory[:4] = b"last"
        memory = bytearray(4)
        sink = MR(here.pd, memory, e.IBV_ACCESS_LOCAL_WRITE)
        wr = SendWR(opcode=e.IBV_WR_RDMA_READ_WITH_INV, sg=[SGE(sink.buf, 4, sink.lkey)])
        wr.set_wr_rdma(there.mr.rkey, there.mr.buf)
        assert here.do(wr).status == Status.SUCCESS
        assert memory == b"last"
        wr.opcode = e.IBV_WR_RDMA_READ
        assert here.do(wr).status == Status.LOC_PROT_ERR


def test_the_first_request_that_was_not_posted_is_named() -> None:
    with players(cap=QPCap(max_send_wr=2)) as (here, there):
        with here.context.loop.lock:
            requests = [here.request(e.IBV_WR_RDMA_READ, 1, there) for _ in range(8)]
            with pytest.raises(OSError, match="full") as caught:
                here.qp.post_send(requests)
        assert caught.value.bad_wr is requests[2]  # type: ignore[attr-defined]
        assert here.context.wait_for(lambda: len(here.cq.queue.entries) == 2, TIMEOUT)
