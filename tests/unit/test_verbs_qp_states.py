"""Queue pairs without a connection manager: their states, who finds whom, what completes when."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

import pytest

from steertag.verbs import CQ, PD, QP, AHAttr, Context, GlobalRoute, QPAttr, QPCap, QPInitAttr
from steertag.verbs import WcStatus as Status
from steertag.verbs import enums as e
from steertag.verbs.qp_attr import TRANSITIONS
from tests.sim.local import REMOTE, Player, players
from tests.sim.verbs import TIMEOUT

RESET, INIT, RTR, RTS, SQD, ERR = (
    e.IBV_QPS_RESET,
    e.IBV_QPS_INIT,
    e.IBV_QPS_RTR,
    e.IBV_QPS_RTS,
    e.IBV_QPS_SQD,
    e.IBV_QPS_ERR,
)


def to(player: Player, state: int, mask: int = 0) -> None:
    player.qp.modify(QPAttr(qp_state=state), e.IBV_QP_STATE | mask)


def refused(call: object, *arguments: object) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        call(*arguments)  # type: ignore[operator]
    return caught.value.errno


def test_a_queue_pair_begins_in_init_as_on_an_rnic() -> None:
    with Context() as context:
        cq = CQ(context, 8)
        qp = QP(PD(context), QPInitAttr(scq=cq, rcq=cq, cap=QPCap(max_send_wr=5)))
        attr, init = qp.query()
        assert attr.qp_state == qp.qp_state == INIT
        assert init.cap.max_send_wr == 5
        assert init.scq is cq


def test_queue_pairs_of_all_contexts_have_numbers_of_their_own() -> None:
    with Context() as one, Context() as other:
        numbers = [Player(context).qp.qp_num for context in (one, other, one)]
        assert len(set(numbers)) == 3


def test_what_the_first_posts_waits_until_the_other_is_ready_to_receive() -> None:
    with players(joined=False) as (here, there):
        here.qp.to_rts(here.towards(there.qp))
        here.memory[:5] = b"early"
        here.qp.post_send(here.request(e.IBV_WR_RDMA_WRITE, 5, there))
        assert here.cq.poll() == (0, [])
        there.qp.to_rtr(there.towards(here.qp))
        assert here.complete().status == Status.SUCCESS
        assert there.memory[:5] == b"early"


def test_ready_to_receive_is_not_ready_to_send() -> None:
    with players(joined=False) as (here, there):
        here.qp.to_rtr(here.towards(there.qp))
        assert here.qp.qp_state == RTR
        wr = here.request(e.IBV_WR_SEND, 1)
        assert refused(here.qp.post_send, wr) == errno.EINVAL
        here.qp.to_rts(here.towards(there.qp))
        assert here.qp.qp_state == RTS


def test_reads_are_limited_by_what_the_peer_takes() -> None:
    with players(joined=False) as (here, there):
        here.qp.to_rts(here.towards(there.qp, reads=1))
        there.qp.to_rts(there.towards(here.qp, reads=1))
        there.memory[:9] = b"from afar"
        for n in range(20):
            wr = here.request(e.IBV_WR_RDMA_READ, 9, there)
            wr.wr_id = n
            here.qp.post_send(wr)
        assert [here.complete().wr_id for _ in range(20)] == list(range(20))
        assert here.memory[:9] == b"from afar"


@pytest.mark.parametrize("length", [0, 1, 1000, 60000])
def test_a_write_has_completed_when_the_peer_has_it(length: int) -> None:
    with players() as (here, there):
        for n in range(50):
            here.memory[:length] = bytes([n]) * length
            assert here.do(here.request(e.IBV_WR_RDMA_WRITE, length, there)).status == 0
            assert there.memory[:length] == bytes([n]) * length


def test_the_write_that_the_peer_refuses_is_the_one_that_fails() -> None:
    with players() as (here, there):
        good = [here.request(e.IBV_WR_RDMA_WRITE, 100, there) for _ in range(4)]
        bad = good[2]
        bad.rkey ^= 0x55
        for n, wr in enumerate(good):
            wr.wr_id = n
        here.qp.post_send(good)
        statuses = [(wc.wr_id, wc.status) for wc in (here.complete() for _ in good)]
        assert statuses == [
            (0, Status.SUCCESS),
            (1, Status.SUCCESS),
            (2, Status.REM_ACCESS_ERR),
            (3, Status.WR_FLUSH_ERR),
        ]
        assert here.qp.qp_state == ERR
        event = there.context.get_async_event(TIMEOUT)
        assert (event.event_type, event.element) == (e.IBV_EVENT_QP_ACCESS_ERR, there.qp)


def test_a_large_write_that_is_refused_at_its_end_fails_too() -> None:
    with players() as (here, there):
        wr = here.request(e.IBV_WR_RDMA_WRITE, 60000, there)
        wr.remote_addr += 10000
        assert here.do(wr).status == Status.REM_ACCESS_ERR


def test_a_send_that_finds_no_receive_fails() -> None:
    with players() as (here, _):
        assert here.do(here.request(e.IBV_WR_SEND, 1)).status == Status.REM_OP_ERR


def test_unsignalled_requests_complete_silently_and_in_order() -> None:
    with players() as (here, there):
        silent = here.request(e.IBV_WR_RDMA_WRITE, 8, there)
        silent.send_flags = 0
        here.qp.post_send([silent] * 10)
        last = here.request(e.IBV_WR_RDMA_WRITE, 8, there)
        last.wr_id = 99
        assert here.do(last).wr_id == 99
        assert here.cq.poll() == (0, [])


@pytest.mark.parametrize(
    ("right", "opcode", "length"),
    [
        (e.IBV_ACCESS_REMOTE_WRITE, e.IBV_WR_RDMA_WRITE, 100),
        (e.IBV_ACCESS_REMOTE_WRITE, e.IBV_WR_RDMA_WRITE, 60000),
        (e.IBV_ACCESS_REMOTE_READ, e.IBV_WR_RDMA_READ, 100),
        (e.IBV_ACCESS_REMOTE_ATOMIC, e.IBV_WR_ATOMIC_FETCH_AND_ADD, 8),
    ],
)
def test_a_queue_pair_grants_less_than_its_regions(right: int, opcode: int, length: int) -> None:
    with players(access=REMOTE & ~right) as (here, there):
        before = bytes(there.memory)
        assert here.do(here.request(opcode, length, there)).status == Status.REM_ACCESS_ERR
        assert there.memory == before


def test_rights_can_be_taken_back_while_it_runs() -> None:
    with players() as (here, there):
        assert here.do(here.request(e.IBV_WR_RDMA_WRITE, 10, there)).status == 0
        there.qp.modify(QPAttr(qp_access_flags=0), e.IBV_QP_ACCESS_FLAGS)
        wc = here.do(here.request(e.IBV_WR_RDMA_WRITE, 10, there))
        assert wc.status == Status.REM_ACCESS_ERR


def test_after_a_reset_they_connect_again() -> None:
    with players() as (here, there):
        wr = here.request(e.IBV_WR_RDMA_WRITE, 10, there)
        wr.rkey ^= 1
        assert here.do(wr).status == Status.REM_ACCESS_ERR
        for player, peer in ((here, there), (there, here)):
            to(player, RESET)
            assert player.qp.qp_state == RESET
            assert refused(player.qp.post_send, wr) == errno.EINVAL
            player.qp.to_rts(player.towards(peer.qp))
        here.memory[:5] = b"again"
        assert here.do(here.request(e.IBV_WR_RDMA_WRITE, 5, there)).status == 0
        assert there.memory[:5] == b"again"


def test_a_reset_forgets_what_was_posted_and_what_was_not_polled() -> None:
    with players() as (here, there):
        here.receive()
        assert here.qp.core.inbound.rq
        wr = here.request(e.IBV_WR_RDMA_WRITE, 10, there)
        wr.rkey ^= 1
        here.qp.post_send([wr, wr])
        assert here.context.wait_for(lambda: len(here.cq.queue.entries) == 3, TIMEOUT)
        to(here, RESET)
        assert here.cq.poll(10) == (0, [])
        assert here.qp.query()[0].dest_qp_num == 0


def test_the_error_state_flushes_what_is_posted() -> None:
    with players(joined=False) as (here, there):
        here.qp.to_rts(here.towards(there.qp))
        here.receive(1)
        here.qp.post_send(here.request(e.IBV_WR_RDMA_WRITE, 10, there))
        to(here, ERR)
        assert {here.complete().status for _ in range(2)} == {Status.WR_FLUSH_ERR}
        # Nobody is found by the peer any more.
        there.qp.to_rts(there.towards(here.qp))
        there.qp.post_send(there.request(e.IBV_WR_RDMA_WRITE, 10, here))
        assert there.cq.wait(1, 0.0) == []


def test_one_end_in_the_error_state_ends_the_other() -> None:
    with players() as (here, there):
        there.receive(7)
        to(here, ERR)
        assert there.complete().status == Status.WR_FLUSH_ERR
        assert there.qp.qp_state == ERR


def test_a_drained_send_queue_is_an_event_and_goes_on_afterwards() -> None:
    with players() as (here, there):
        to(here, SQD, e.IBV_QP_EN_SQD_ASYNC_NOTIFY)
        assert here.context.get_async_event(TIMEOUT).event_type == e.IBV_EVENT_SQ_DRAINED
        here.qp.post_send(here.request(e.IBV_WR_RDMA_WRITE, 10, there))
        # What the peer sends is still taken.
        assert there.do(there.request(e.IBV_WR_RDMA_WRITE, 10, here)).status == 0
        assert here.cq.poll() == (0, [])
        to(here, RTS)
        assert here.complete().status == Status.SUCCESS


def test_closing_one_end_flushes_the_other() -> None:
    with players() as (here, there):
        there.receive(7)
        here.qp.close()
        assert there.complete().status == Status.WR_FLUSH_ERR


def test_a_closed_queue_pair_is_found_by_nobody() -> None:
    with players(joined=False) as (here, there):
        number = here.qp.qp_num
        here.qp.to_rts(here.towards(there.qp))
        here.qp.close()
        there.qp.to_rts(there.towards(here.qp))
        assert here.qp.qp_num == number
        there.qp.post_send(there.request(e.IBV_WR_RDMA_WRITE, 1, here))
        assert there.cq.wait(1, 0.0) == []


def test_no_descriptor_is_left_of_connected_queue_pairs() -> None:
    with players() as (here, there):
        here.do(here.request(e.IBV_WR_RDMA_WRITE, 1, there))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with players() as (here, there):
            here.do(here.request(e.IBV_WR_RDMA_WRITE, 1, there))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_tap_sees_what_such_queue_pairs_say() -> None:
    seen: list[bytes] = []

    class Tap:
        def sent(self, data: bytes) -> None:
            seen.append(data)

        def received(self, data: bytes) -> None:
            """Of no interest here."""

        def close(self) -> None:
            seen.append(b"the end")

    with players(joined=False) as (here, there):
        here.context.tap_for = lambda _: Tap()
        here.qp.to_rts(here.towards(there.qp))
        there.qp.to_rts(there.towards(here.qp))
        here.memory[:6] = b"tapped"
        here.do(here.request(e.IBV_WR_RDMA_WRITE, 6, there))
    assert b"tapped" in b"".join(seen)
    assert seen[-1] == b"the end"


def test_an_address_of_another_device_is_unreachable() -> None:
    with players(joined=False) as (here, there):
        attr = here.towards(there.qp)
        gid = here.context.query_gid()
        gid.gid = gid.gid[:-1] + ("0" if gid.gid[-1] != "0" else "1")
        attr.ah_attr = AHAttr(is_global=1, gr=GlobalRoute(dgid=gid))
        assert refused(here.qp.to_rtr, attr) == errno.ENETUNREACH
        assert here.qp.qp_state == INIT


def test_a_queue_pair_is_not_connected_to_itself() -> None:
    with players(joined=False) as (here, _):
        assert refused(here.qp.to_rtr, here.towards(here.qp)) == errno.EINVAL


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("port_num", 2),
        ("pkey_index", 1),
        ("path_mtu", 9),
        ("qp_access_flags", e.IBV_ACCESS_ON_DEMAND),
        ("max_dest_rd_atomic", 129),
        ("ah_attr", AHAttr()),
    ],
)
def test_a_value_that_can_not_be_changes_nothing(member: str, value: object) -> None:
    with players(joined=False) as (here, there):
        attr = here.towards(there.qp)
        setattr(attr, member, value)
        early = member in ("port_num", "pkey_index", "qp_access_flags")
        assert refused(here.qp.to_init if early else here.qp.to_rtr, attr) == errno.EINVAL
        assert here.qp.qp_state == INIT


def bits(mask: int) -> Iterable[int]:
    return (1 << n for n in range(26) if mask >> n & 1)


ATTRIBUTES = [bit for bit in bits((1 << 21) - 1) if bit != e.IBV_QP_STATE]


@pytest.mark.parametrize("now", [INIT, RTR, RTS])
def test_every_attribute_that_is_missing_or_does_not_belong_is_einval(now: int) -> None:
    """The law is the table; this walks along it with a real queue pair."""
    after = {INIT: RTR, RTR: RTS, RTS: SQD}[now]
    required, optional = TRANSITIONS[now, after]
    with players(joined=False) as (here, there):
        attr = here.towards(there.qp)
        if now in (RTR, RTS):
            here.qp.to_rtr(attr)
        if now == RTS:
            here.qp.to_rts(attr)
        attr.qp_state = after
        for bit in ATTRIBUTES:
            if bit & required:
                mask = e.IBV_QP_STATE | required & ~bit
            elif bit & (optional | e.IBV_QP_CUR_STATE):
                continue
            else:
                mask = e.IBV_QP_STATE | required | bit
            assert refused(here.qp.modify, attr, mask) == errno.EINVAL
            assert here.qp.qp_state == now
        here.qp.modify(attr, e.IBV_QP_STATE | required)
        assert here.qp.qp_state == after


def test_changes_that_there_are_none_of_are_einval() -> None:
    with players(joined=False) as (here, there):
        for state in (RTS, SQD, e.IBV_QPS_SQE):
            assert refused(to, here, state) == errno.EINVAL
        here.qp.to_rts(here.towards(there.qp))
        for state in (INIT, RTR, e.IBV_QPS_SQE):
            assert refused(to, here, state) == errno.EINVAL


def test_the_state_that_the_caller_believes_in_is_compared() -> None:
    with players() as (here, _):
        attr = QPAttr(qp_state=SQD, cur_qp_state=RTR)
        mask = e.IBV_QP_STATE | e.IBV_QP_CUR_STATE
        assert refused(here.qp.modify, attr, mask) == errno.EINVAL
        attr.cur_qp_state = RTS
        here.qp.modify(attr, mask)
        assert here.qp.qp_state == SQD


def test_query_gives_back_what_modify_took() -> None:
    with players(joined=False) as (here, there):
        attr = here.towards(there.qp, reads=3)
        attr.timeout, attr.retry_cnt, attr.min_rnr_timer, attr.sq_psn = 14, 5, 12, 77
        here.qp.to_rts(attr)
        found, _ = here.qp.query()
        for member in ("dest_qp_num", "max_rd_atomic", "max_dest_rd_atomic", "timeout"):
            assert getattr(found, member) == getattr(attr, member)
        assert (found.qp_state, found.sq_psn, found.ah_attr) == (RTS, 77, attr.ah_attr)
        assert found.qp_access_flags == REMOTE


def test_a_queue_pair_for_a_cmid_goes_to_rtr_without_a_peer() -> None:
    with players(joined=False) as (here, _):
        mask = e.IBV_QP_ACCESS_FLAGS
        to(here, RTR, mask)
        assert here.qp.qp_state == RTR
        assert refused(to, here, RTS) == errno.EINVAL
