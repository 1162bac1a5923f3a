"""Shared receive queues, and the asynchronous events that go with them."""

from __future__ import annotations

import errno
import fcntl
import os
import select

import pytest

from steertag.verbs import (
    PD,
    QP,
    SRQ,
    Context,
    QPAttr,
    QPInitAttr,
    RecvWR,
    SrqAttr,
    SrqInitAttr,
    SrqInitAttrEx,
)
from steertag.verbs import WcStatus as Status
from steertag.verbs import enums as e
from tests.sim.local import Player, players
from tests.sim.verbs import TIMEOUT


def sized(max_wr: int, max_sge: int = 1) -> SrqInitAttr:
    return SrqInitAttr(SrqAttr(max_wr, max_sge))


def test_queue_pairs_take_receives_from_one_queue_in_order() -> None:
    with Context() as context, Context() as elsewhere:
        server = Player(context, shared=16)
        other = QP(
            server.pd,
            QPInitAttr(scq=server.cq, rcq=server.cq, srq=server.srq),
            QPAttr(qp_access_flags=0),
        )
        clients = [Player(elsewhere) for _ in range(2)]
        for client, qp in zip(clients, (server.qp, other), strict=True):
            client.qp.to_rts(client.towards(qp))
            qp.to_rts(server.towards(client.qp))
        for n in range(4):
            server.receive(n)
        seen = []
        for n in range(4):
            clients[n % 2].memory[:1] = bytes([65 + n])
            assert clients[n % 2].do(clients[n % 2].request(e.IBV_WR_SEND, 1)).status == 0
            wc = server.complete()
            seen.append((wc.wr_id, wc.qp_num))
        numbers = (server.qp.qp_num, other.qp_num)
        assert seen == [(n, numbers[n % 2]) for n in range(4)]
        assert server.memory[:1] == b"D"


def test_the_limit_is_one_event() -> None:
    with players(shared=16) as (here, there):
        assert there.srq is not None
        for _ in range(6):
            there.receive()
        there.srq.modify(SrqAttr(srq_limit=4), e.IBV_SRQ_LIMIT)
        assert there.srq.query().srq_limit == 4
        for _ in range(5):
            assert here.do(here.request(e.IBV_WR_SEND, 1)).status == Status.SUCCESS
        event = there.context.get_async_event(TIMEOUT)
        assert (event.event_type, event.element) == (e.IBV_EVENT_SRQ_LIMIT_REACHED, there.srq)
        assert there.srq.query().srq_limit == 0
        with pytest.raises(TimeoutError):
            there.context.get_async_event(0.0)


def test_a_queue_pair_that_ends_tells_that_it_takes_no_more() -> None:
    with players(shared=16) as (here, there):
        assert there.srq is not None
        there.receive(5)
        here.qp.close()
        event = there.context.get_async_event(TIMEOUT)
        assert event.event_type == e.IBV_EVENT_QP_LAST_WQE_REACHED
        assert event.element is there.qp
        # What it had not begun to fill stays for the others.
        assert there.cq.poll() == (0, [])
        assert "1 of 16" in repr(there.srq)


def test_it_is_resized_within_what_is_posted_and_what_there_is() -> None:
    with players(shared=4, joined=False) as (_, there):
        srq = there.srq
        assert srq is not None
        for _ in range(4):
            there.receive()
        with pytest.raises(OSError, match="full") as caught:
            there.receive()
        assert caught.value.errno == errno.ENOMEM
        srq.modify(SrqAttr(max_wr=5), e.IBV_SRQ_MAX_WR)
        there.receive()
        for attr, mask in [
            (SrqAttr(max_wr=4), e.IBV_SRQ_MAX_WR),
            (SrqAttr(max_wr=1 << 30), e.IBV_SRQ_MAX_WR),
            (SrqAttr(srq_limit=6), e.IBV_SRQ_LIMIT),
            (SrqAttr(), 4),
        ]:
            with pytest.raises(OSError) as caught:  # noqa: PT011
                srq.modify(attr, mask)
            assert caught.value.errno == errno.EINVAL
        assert srq.query() == SrqAttr(5, 1, 0)


def test_a_queue_in_use_is_ebusy() -> None:
    with players(shared=4, joined=False) as (here, _):
        assert here.srq is not None
        with pytest.raises(OSError, match="use the shared") as caught:
            here.srq.close()
        assert caught.value.errno == errno.EBUSY
        here.qp.close()
        here.srq.close()


def test_a_queue_pair_with_one_has_no_receives_of_its_own() -> None:
    with players(shared=4, joined=False) as (here, _), pytest.raises(OSError, match="SRQ"):
        here.qp.post_recv(RecvWR(sg=[here.sge(1)]))


def test_a_context_makes_one_too() -> None:
    with Context() as context:
        pd = PD(context)
        srq = SRQ(context, SrqInitAttrEx(max_wr=3, max_sge=2, pd=pd))
        assert srq.query() == SrqAttr(3, 2, 0)
        with pytest.raises(OSError, match="no number") as caught:
            srq.get_srq_num()
        assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("attr", "number"),
    [
        (SrqInitAttrEx(), errno.EINVAL),
        (SrqInitAttrEx(srq_type=e.IBV_SRQT_XRC), errno.EOPNOTSUPP),
    ],
)
def test_what_a_context_can_not_make(attr: SrqInitAttrEx, number: int) -> None:
    with Context() as context, pytest.raises(OSError) as caught:  # noqa: PT011
        SRQ(context, attr)
    assert caught.value.errno == number


@pytest.mark.parametrize(("max_wr", "max_sge"), [(0, 1), (1 << 30, 1), (1, 33), (1, 0)])
def test_sizes_that_the_device_does_not_have_are_einval(max_wr: int, max_sge: int) -> None:
    with Context() as context, pytest.raises(OSError) as caught:  # noqa: PT011
        SRQ(PD(context), sized(max_wr, max_sge))
    assert caught.value.errno == errno.EINVAL


# -- asynchronous events ------------------------------------------------------------------------


def trespass(player: Player, peer: Player) -> None:
    """Have the peer's queue pair end by what this one sends."""
    wr = player.request(e.IBV_WR_RDMA_WRITE, 1, peer)
    wr.rkey ^= 1
    assert player.do(wr).status == Status.REM_ACCESS_ERR


def test_the_descriptor_is_readable_while_an_event_waits() -> None:
    with players() as (here, there):
        poller = select.poll()
        poller.register(there.context.async_fd, select.POLLIN)
        assert poller.poll(0) == []
        trespass(here, there)
        assert poller.poll(TIMEOUT * 1000)
        event = there.context.get_async_event()
        assert (event.event_type, event.name) == (
            e.IBV_EVENT_QP_ACCESS_ERR,
            "IBV_EVENT_QP_ACCESS_ERR",
        )
        assert poller.poll(0) == []
        event.ack()
        assert event.element is None


def test_an_event_from_before_the_descriptor_was_asked_for_is_readable() -> None:
    with players() as (here, there):
        trespass(here, there)
        assert there.context.wait_for(lambda: there.qp.qp_state == e.IBV_QPS_ERR, TIMEOUT)
        assert select.select([there.context.async_fd], [], [], TIMEOUT)[0]
        assert there.context.get_async_event(TIMEOUT).element is there.qp


def test_a_descriptor_that_does_not_block_has_it_raise() -> None:
    with Context() as context:
        fd = context.async_fd
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            context.get_async_event()


def test_events_of_what_is_closed_go_with_it() -> None:
    with players() as (here, there):
        fd = there.context.async_fd
        trespass(here, there)
        assert select.select([fd], [], [], TIMEOUT)[0]
        there.qp.close()
        assert select.select([fd], [], [], 0)[0] == []
        with pytest.raises(TimeoutError):
            there.context.get_async_event(0.0)
