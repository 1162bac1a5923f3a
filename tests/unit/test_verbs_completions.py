"""Completion queues and channels over a real connection: waiting, events, descriptors, overruns."""

from __future__ import annotations

import asyncio
import errno
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from steertag.rdma.qp_state import QpState
from steertag.verbs import CQ, CompChannel, Context, QPCap, QPInitAttr, SendWR, WcStatus
from steertag.verbs.device import Progress
from steertag.verbs.enums import (
    IBV_EVENT_CQ_ERR,
    IBV_SEND_SIGNALED,
    IBV_SEND_SOLICITED,
    IBV_WR_SEND,
)
from tests.sim.verbs import CAP, TIMEOUT, Side, connected

MODES: list[Progress] = ["thread", "caller"]


@contextmanager
def with_channel(
    progress: Progress = "thread", entries: int = 100
) -> Iterator[tuple[Side, Side, CompChannel, CQ]]:
    """A connection whose server gets events of its receives."""

    def init(context: Context) -> QPInitAttr:
        channel = CompChannel(context)
        rcq = CQ(context, entries, "the context", channel)
        return QPInitAttr(scq=CQ(context, 100), rcq=rcq, cap=CAP)

    with connected(progress, server_init=init, receives=8) as (client, server):
        assert server.cmid.qp is not None
        rcq = server.cmid.qp.rcq
        assert rcq.channel is not None
        yield client, server, rcq.channel, rcq


def is_readable(channel: CompChannel, timeout: float = 0.0) -> bool:
    return bool(select.select([channel], [], [], timeout)[0])


def barrier(client: Side, server: Side) -> None:
    """What the client sent before has arrived and was dealt with when this returns."""
    client.read(server, 1, id=4711)
    while (wc := client.cmid.get_send_comp(TIMEOUT)).wr_id != 4711:
        assert wc.status is WcStatus.SUCCESS


# -- waiting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", MODES)
def test_waiting_gives_what_is_there_up_to_what_was_asked(progress: Progress) -> None:
    with connected(progress) as (client, server):
        assert client.cmid.qp is not None
        for n in range(10):
            client.write(server, 10, id=n)
        scq = client.cmid.qp.scq
        taken = []
        while len(taken) < 10:
            some = scq.wait(3, TIMEOUT)
            assert 1 <= len(some) <= 3
            taken += some
        assert [wc.wr_id for wc in taken] == list(range(10))
        assert scq.wait(1, 0.0) == []
        assert scq.poll() == (0, [])


@pytest.mark.parametrize("progress", MODES)
def test_polling_makes_progress(progress: Progress) -> None:
    with connected(progress, receives=1) as (client, server):
        assert server.cmid.qp is not None
        client.send(5, id=1)
        number, taken = 0, []
        while not number:
            number, taken = server.cmid.qp.rcq.poll(4)
        assert (number, len(taken), taken[0].byte_len) == (1, 1, 5)


def test_waiting_for_a_completion_that_does_not_come_times_out() -> None:
    with connected() as (client, _), pytest.raises(TimeoutError):
        client.cmid.get_recv_comp(0.01)


def test_threads_that_wait_for_one_queue_share_its_completions() -> None:
    with connected() as (client, server):
        assert client.cmid.qp is not None
        scq = client.cmid.qp.scq
        seen: list[list[int]] = [[] for _ in range(4)]

        def take(mine: list[int]) -> None:
            while 999 not in mine:
                mine += [wc.wr_id for wc in scq.wait(1, TIMEOUT)]
                assert mine

        threads = [threading.Thread(target=take, args=(mine,)) for mine in seen]
        for thread in threads:
            thread.start()
        for n in range(200):
            client.write(server, 8, id=n)
        for _ in threads:  # one for each: who has it stops
            client.write(server, 8, id=999)
        for thread in threads:
            thread.join(TIMEOUT)
        everything = sorted(n for mine in seen for n in mine)
        assert everything == [*range(200), 999, 999, 999, 999]


# -- events ----------------------------------------------------------------------------------------


def test_without_asking_there_is_no_event() -> None:
    with with_channel() as (client, server, channel, rcq):
        client.send(5)
        barrier(client, server)
        assert rcq.wait(1, TIMEOUT)
        assert not is_readable(channel)


def test_an_event_comes_once_for_each_time_it_was_asked_for() -> None:
    with with_channel() as (client, server, channel, rcq):
        rcq.req_notify()
        assert not is_readable(channel)
        for n in range(3):
            client.send(5, id=n)
        assert is_readable(channel, TIMEOUT)
        barrier(client, server)
        assert channel.get_cq_event(rcq, TIMEOUT) is rcq
        assert not is_readable(channel)
        assert rcq.cq_context == "the context"
        rcq.ack_events(1)
        assert len(rcq.wait(8, TIMEOUT)) == 3
        rcq.req_notify()
        client.send(5)
        assert channel.get_cq_event(timeout=TIMEOUT) is rcq
        rcq.ack_events(1)


def test_acknowledging_more_events_than_were_taken_is_an_error() -> None:
    with with_channel() as (client, _, channel, rcq):
        with pytest.raises(ValueError, match="0 were taken"):
            rcq.ack_events(1)
        rcq.req_notify()
        client.send(5)
        channel.get_cq_event(timeout=TIMEOUT)
        rcq.ack_events(1)


def test_only_a_solicited_completion_makes_a_solicited_event() -> None:
    with with_channel() as (client, server, channel, rcq):
        assert client.cmid.qp is not None
        rcq.req_notify(solicited_only=True)
        client.send(5)
        barrier(client, server)
        assert not is_readable(channel)
        flags = IBV_SEND_SIGNALED | IBV_SEND_SOLICITED
        wr = SendWR(sg=[client.sge(0, 5)], opcode=IBV_WR_SEND, send_flags=flags)
        client.cmid.qp.post_send(wr)
        assert is_readable(channel, TIMEOUT)


def test_a_failed_completion_makes_a_solicited_event_too() -> None:
    with with_channel() as (client, _, channel, rcq):
        rcq.req_notify(solicited_only=True)
        client.cmid.disconnect()
        assert is_readable(channel, TIMEOUT)
        assert channel.get_cq_event(rcq, TIMEOUT) is rcq
        assert rcq.wait(8, TIMEOUT)[0].status is WcStatus.WR_FLUSH_ERR


def test_asking_for_any_event_is_not_narrowed_by_asking_for_solicited_ones() -> None:
    with with_channel() as (client, _, channel, rcq):
        rcq.req_notify()
        rcq.req_notify(solicited_only=True)
        client.send(5)
        assert is_readable(channel, TIMEOUT)


def test_an_event_of_another_queue_than_expected_stays() -> None:
    with with_channel() as (client, _, channel, rcq):
        other = CQ(channel.context, 1, None, channel)
        rcq.req_notify()
        client.send(5)
        assert is_readable(channel, TIMEOUT)
        with pytest.raises(OSError, match="another completion queue") as caught:
            channel.get_cq_event(other, TIMEOUT)
        assert caught.value.errno == errno.EINVAL
        assert channel.get_cq_event(rcq, TIMEOUT) is rcq


def test_an_event_that_does_not_come_times_out() -> None:
    with with_channel() as (_, _, channel, _), pytest.raises(TimeoutError):
        channel.get_cq_event(timeout=0.01)


def test_closing_a_queue_takes_its_events_along() -> None:
    with with_channel() as (client, server, channel, rcq):
        rcq.req_notify()
        client.send(5)
        assert is_readable(channel, TIMEOUT)
        server.cmid.close()
        rcq.close()
        assert not is_readable(channel)
        channel.close()


def test_poll_and_epoll_see_the_channels_descriptor() -> None:
    with with_channel() as (client, _, channel, rcq), select.epoll() as epoll:
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        epoll.register(channel, select.EPOLLIN)
        assert poll.poll(0) == []
        assert epoll.poll(0) == []
        rcq.req_notify()
        client.send(5)
        assert poll.poll(TIMEOUT * 1000) == [(channel.fileno(), select.POLLIN)]
        assert epoll.poll(TIMEOUT) == [(channel.fileno(), select.EPOLLIN)]


def test_asyncio_waits_for_the_channels_descriptor() -> None:
    async def receive(client: Side, channel: CompChannel, rcq: CQ) -> int:
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_reader(channel, came.set)
        rcq.req_notify()
        client.send(33)
        async with asyncio.timeout(TIMEOUT):
            await came.wait()
        loop.remove_reader(channel)
        assert channel.get_cq_event(timeout=0) is rcq
        return rcq.poll()[1][0].byte_len

    with with_channel() as (client, _, channel, rcq):
        assert asyncio.run(receive(client, channel, rcq)) == 33


def test_waiting_for_an_event_moves_the_callers_connections() -> None:
    with with_channel("caller") as (client, _, channel, rcq):
        rcq.req_notify()
        client.send(5)
        assert channel.get_cq_event(rcq, TIMEOUT) is rcq


# -- overruns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", MODES)
def test_an_overrun_queue_says_so_and_ends_the_queue_pairs_that_use_it(progress: Progress) -> None:
    with with_channel(progress, entries=2) as (client, server, _, rcq):
        assert client.cmid.qp is not None
        assert server.cmid.qp is not None
        for n in range(4):
            client.send(5, id=n)
        assert server.cmid.context.wait_for(lambda: rcq.overrun, TIMEOUT)
        assert server.cmid.qp.state is QpState.ERROR
        assert server.cmid.qp.end_reason == "completion queue overrun"
        event = server.cmid.context.get_async_event(TIMEOUT)
        assert (event.event_type, event.element) == (IBV_EVENT_CQ_ERR, rcq)
        assert [wc.wr_id for wc in rcq.wait(10, 0)] == [0, 1]
        assert client.cmid.wait_disconnected(TIMEOUT)


def test_a_queue_with_room_for_all_that_can_be_posted_never_overruns() -> None:
    def init(context: Context) -> QPInitAttr:
        return QPInitAttr(cap=QPCap(max_send_wr=4, max_recv_wr=4))

    with connected(client_init=init) as (client, server):
        assert client.cmid.qp is not None
        for n in range(4):
            client.recv(10, id=n)
        for n in range(4):
            client.read(server, 10, id=n)
        client.cmid.disconnect()
        assert client.cmid.wait_disconnected(TIMEOUT)
        assert not client.cmid.qp.scq.overrun
        assert not client.cmid.qp.rcq.overrun
        assert [wc.wr_id for wc in client.cmid.qp.scq.wait(10)] == [0, 1, 2, 3]
        assert [wc.wr_id for wc in client.cmid.qp.rcq.wait(10)] == [0, 1, 2, 3]
