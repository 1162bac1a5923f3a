"""The verbs for asyncio: what is awaited, and what cancellation leaves behind."""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec

import pytest

from steertag import verbs
from steertag.rdma.qp_state import QpState
from steertag.verbs import (
    PD,
    AddrInfo,
    CMEventChannel,
    CompChannel,
    ConnectError,
    ConnParam,
    QPCap,
    QPInitAttr,
    RecvWR,
    SendWR,
    WcStatus,
    aio,
)
from steertag.verbs.device import Progress
from steertag.verbs.enums import IBV_WR_SEND, RAI_PASSIVE
from steertag.wire import mpa
from tests.sim.verbs import HOST, MODES, TIMEOUT

P = ParamSpec("P")
PASSIVE = AddrInfo(src=HOST, src_service=0, flags=RAI_PASSIVE)


def in_a_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test's coroutine, with a time limit."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def limited() -> None:
            async with asyncio.timeout(TIMEOUT):
                await test(*args, **kwargs)

        asyncio.run(limited())

    return run


def towards(listener: aio.CMID, pd: PD | None = None, init: QPInitAttr | None = None) -> aio.CMID:
    host, port = listener.getsockname()
    return aio.CMID(AddrInfo(dst=host, dst_service=port), init, pd)


@asynccontextmanager
async def connected(
    progress: Progress = "caller", receives: int = 0
) -> AsyncIterator[tuple[aio.CMID, aio.CMID]]:
    """A client and a server, in Contexts of their own."""
    init = QPInitAttr(cap=QPCap(max_send_wr=512, max_recv_wr=512))
    async with (
        aio.Context(progress=progress) as here,
        aio.Context(progress=progress) as there,
        aio.CMID(PASSIVE, init, PD(there)) as listener,
    ):
        listener.listen()
        client = towards(listener, PD(here), init)
        connecting = asyncio.ensure_future(client.connect())
        server = await listener.get_request()
        await server.accept()
        await connecting
        yield client, server


# -- what is awaited -------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", MODES)
@in_a_loop
async def test_a_connection_is_made_used_and_ended_by_awaiting(progress: Progress) -> None:
    async with (
        aio.Context(progress=progress) as context,
        aio.CMID(PASSIVE, pd=PD(context)) as listener,
    ):
        listener.listen()
        async with towards(listener, PD(context)) as client:
            connecting = asyncio.ensure_future(client.connect(ConnParam(private_data=b"ask")))
            server = await listener.get_request()
            assert server.private_data == b"ask"
            theirs = server.reg_write(10)
            arrival = server.recv(theirs)
            told = f"{theirs.buf} {theirs.rkey}".encode()
            await server.accept(ConnParam(private_data=told))
            await connecting
            addr, rkey = map(int, client.private_data.split())
            mine = client.reg_msgs(10)
            mine.write(b"0123456789", 10)
            assert (await client.send(mine, 4)).status == WcStatus.SUCCESS
            assert (await arrival).byte_len == 4
            assert (await client.write(mine, 10, addr, rkey)).status == WcStatus.SUCCESS
            read = client.reg_msgs(10)
            readable = server.reg_read(10)
            readable.write(b"readable", 8)
            wc = await client.read(read, 8, readable.buf, readable.rkey)
            assert (wc.status, read.read(8)) == (WcStatus.SUCCESS, b"readable")
            assert theirs.read(10) == b"0123456789"
            assert client.getpeername() == listener.getsockname()
            unmet = server.recv(theirs)
        await server.wait_disconnected()
        assert (await unmet).status == WcStatus.WR_FLUSH_ERR
        assert server.cmid.disconnected
        await server.disconnect()


@in_a_loop
async def test_listening_and_completions_are_async_iterators() -> None:
    async with aio.CMID(PASSIVE) as listener:
        listener.listen()

        async def serve() -> list[bytes]:
            names = []
            async for request in listener:
                async with request:
                    names.append(request.private_data)
                    inbox = request.reg_msgs(10)
                    request.create_qp()
                    request.cmid.post_recv(inbox)
                    await request.accept()
                    cq = request.qp.rcq
                    assert isinstance(cq, aio.CQ)
                    async for wc in cq:
                        names.append(inbox.read(wc.byte_len))
                        break
                if len(names) == 4:
                    break
            return names

        serving = asyncio.ensure_future(serve())
        for name in (b"first", b"second"):
            async with towards(listener) as client:
                await client.connect(ConnParam(private_data=name))
                outbox = client.reg_msgs(10)
                outbox.write(b"hello", 5)
                await client.send(outbox, 5)
                await client.wait_disconnected()
        assert await serving == [b"first", b"hello", b"second", b"hello"]


@pytest.mark.parametrize("progress", MODES)
@in_a_loop
async def test_many_requests_complete_each_where_it_is_awaited(progress: Progress) -> None:
    async with connected(progress) as (client, server):
        inbox, outbox = server.reg_msgs(256), client.reg_msgs(256)
        receives = [server.recv(inbox, 8) for _ in range(256)]
        sends = [
            SendWR(n, sg=[verbs.SGE(outbox.buf, 8, outbox.lkey)], opcode=IBV_WR_SEND)
            for n in range(256)
        ]
        futures = aio.submit_all(client.qp, sends)
        assert [wr.wr_id for wr in sends] == list(range(256))
        assert [wc.wr_id for wc in await asyncio.gather(*futures)] == list(range(256))
        assert {wc.byte_len for wc in await asyncio.gather(*receives)} == {8}


@in_a_loop
async def test_what_is_posted_without_a_future_comes_out_of_the_queue() -> None:
    async with connected() as (client, server):
        inbox, outbox = server.reg_msgs(16), client.reg_msgs(16)
        for _ in range(3):
            server.cmid.post_recv(inbox)
        client.cmid.post_send(outbox, length=1)
        awaited = client.send(outbox, 2)
        client.cmid.post_send(outbox, length=3)
        assert [(await server.get_recv_comp()).byte_len for _ in range(3)] == [1, 2, 3]
        assert (await awaited).status == WcStatus.SUCCESS
        for _ in range(2):
            assert (await client.get_send_comp()).status == WcStatus.SUCCESS


@pytest.mark.parametrize("progress", MODES)
@in_a_loop
async def test_many_connections_share_an_event_loop(progress: Progress) -> None:
    count = 60
    async with (
        aio.Context(progress=progress) as here,
        aio.Context(progress=progress) as there,
        aio.CMID(PASSIVE, pd=PD(there)) as listener,
    ):
        listener.listen()
        own, mine = PD(here), set[bytes]()

        async def echo(request: aio.CMID) -> None:
            async with request:
                memory = request.reg_msgs(8)
                arrival = request.recv(memory)
                await request.accept(ConnParam(private_data=request.private_data))
                length = (await arrival).byte_len
                await request.send(memory, length)
                await request.wait_disconnected()

        async def serve() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(echo(await listener.get_request()))

        async def ask(number: int) -> None:
            async with towards(listener, own) as client:
                memory, answer = client.reg_msgs(8), client.reg_msgs(8)
                await client.connect(ConnParam(private_data=bytes([number])))
                assert client.private_data == bytes([number])
                arrival = client.recv(answer)
                memory.write(number.to_bytes(8, "big"), 8)
                await client.send(memory)
                await arrival
                mine.add(answer.read(8))

        gc.collect()  # what tests before this one have left is not counted
        before = len(os.listdir("/proc/self/fd"))
        async with asyncio.TaskGroup() as group:
            group.create_task(serve())
            for number in range(count):
                group.create_task(ask(number))
        assert mine == {number.to_bytes(8, "big") for number in range(count)}
        assert len(os.listdir("/proc/self/fd")) == before


@in_a_loop
async def test_plain_channels_are_awaited_too() -> None:
    with verbs.Context() as context:
        events = CMEventChannel(context)
        cmid = verbs.CMID(events)
        waiting = asyncio.ensure_future(aio.get_cm_event(events))
        second = asyncio.ensure_future(aio.get_cm_event(events))
        await asyncio.sleep(0)
        cmid.resolve_addr(AddrInfo(dst=HOST, dst_service=1))
        cmid.resolve_route()
        names = {(await one).event_str() for one in (waiting, second)}
        assert names == {"RDMA_CM_EVENT_ADDR_RESOLVED", "RDMA_CM_EVENT_ROUTE_RESOLVED"}
        channel = CompChannel(context)
        cq = verbs.CQ(context, 4, channel=channel)
        cq.req_notify()
        waits = asyncio.ensure_future(aio.get_cq_event(channel, cq))
        await asyncio.sleep(0)
        qp = verbs.QP(PD(context), QPInitAttr(scq=cq, rcq=cq))
        qp.post_recv(RecvWR(3))
        qp.close()
        assert await waits is cq
        cq.ack_events(1)
        waits = asyncio.ensure_future(aio.get_cq_event(channel))
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
    with (
        verbs.Context(progress="caller") as context,
        pytest.raises(OSError, match="driven by nobody"),
    ):
        await aio.get_cq_event(CompChannel(context))


@in_a_loop
async def test_names_are_looked_up_without_holding_up_the_loop() -> None:
    assert (await aio.addrinfo(dst="localhost", dst_service="80")).dst_addr is not None
    with pytest.raises(socket.gaierror, match="no-such-host"):
        await aio.addrinfo(dst="no-such-host.invalid", dst_service=80)


# -- errors ----------------------------------------------------------------------------------------


@in_a_loop
async def test_a_rejection_is_raised_with_the_peers_private_data() -> None:
    async with aio.CMID(PASSIVE) as listener, aio.Context() as context:
        listener.listen()
        client = towards(listener, PD(context))
        connecting = asyncio.ensure_future(client.connect())
        request = await listener.get_request()
        request.reject(b"full")
        with pytest.raises(ConnectError, match="rejected") as caught:
            await connecting
        assert (caught.value.code, caught.value.private_data) == ("rejected", b"full")
        # It may be tried again.
        connecting = asyncio.ensure_future(client.connect())
        await (await listener.get_request()).accept()
        await connecting
        assert client.qp.state is QpState.RTS


@pytest.mark.parametrize("progress", MODES)
@in_a_loop
async def test_the_calls_own_time_out_is_kept(progress: Progress) -> None:
    with socket.create_server((HOST, 0)) as silent:
        async with aio.Context(progress=progress) as context:
            port = silent.getsockname()[1]
            client = aio.CMID(AddrInfo(dst=HOST, dst_service=port), pd=PD(context))
            with pytest.raises(ConnectError, match="no MPA Reply") as caught:
                await client.connect(timeout=0.05)
            assert caught.value.errno == errno.ETIMEDOUT
            assert client.cmid.disconnected


@in_a_loop
async def test_a_peer_that_is_not_there_is_an_oserror() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    async with aio.CMID(AddrInfo(dst=HOST, dst_service=port)) as client:
        with pytest.raises(ConnectionRefusedError):
            await client.connect()


@in_a_loop
async def test_calls_that_do_not_fit_say_so() -> None:
    with verbs.Context() as plain, pytest.raises(OSError, match=r"aio\.Context"):
        aio.CMID(None, pd=PD(plain))
    async with aio.Context() as context, aio.CMID(None, pd=PD(context)) as cmid:
        with pytest.raises(OSError, match="does not listen"):
            await cmid.get_request()
        with pytest.raises(OSError, match="connects to an AddrInfo"):
            await cmid.connect()
        with pytest.raises(OSError, match="no connection"):
            await cmid.accept()
        linked = RecvWR(1, next_wr=RecvWR(2))
        with pytest.raises(OSError, match="linked"):
            cmid.submit(linked)
        cq = verbs.CQ(context, 4)
        qp = verbs.QP(PD(context), QPInitAttr(scq=cq, rcq=cq))
        with pytest.raises(OSError, match=r"no aio\.CQ"):
            aio.submit(qp, RecvWR(1))
    with pytest.raises(RuntimeError):
        _outside_of_a_loop()


def _outside_of_a_loop() -> None:
    import threading

    raised: list[BaseException] = []

    def make() -> None:
        try:
            aio.Context()
        except RuntimeError as exc:
            raised.append(exc)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join(TIMEOUT)
    raise raised[0]


@in_a_loop
async def test_requests_that_can_not_be_posted_leave_no_future_waiting() -> None:
    async with connected() as (client, _):
        outbox = client.reg_msgs(8)
        good = SendWR(1, sg=[verbs.SGE(outbox.buf, 8, outbox.lkey)], opcode=77)
        with pytest.raises(OSError, match="opcode"):
            client.submit(good)
        assert good.wr_id == 1


# -- cancellation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", MODES)
@in_a_loop
async def test_a_cancelled_connect_closes_its_stream_and_may_be_tried_again(
    progress: Progress,
) -> None:
    with socket.create_server((HOST, 0)) as silent:
        silent.setblocking(False)
        loop = asyncio.get_running_loop()
        async with aio.Context(progress=progress) as context:
            port = silent.getsockname()[1]
            client = aio.CMID(AddrInfo(dst=HOST, dst_service=port), pd=PD(context))
            for _ in range(2):
                connecting = asyncio.ensure_future(client.connect())
                peer, _ = await loop.sock_accept(silent)
                with peer:
                    assert await loop.sock_recv(peer, 1000)
                    connecting.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await connecting
                    assert client.cmid.disconnected
                    assert await loop.sock_recv(peer, 1) == b""
            connecting = asyncio.ensure_future(client.connect())
            peer, _ = await loop.sock_accept(silent)
            with peer:
                assert await loop.sock_recv(peer, 1000)
                words = mpa.Enhanced(ird=1, ord=1).emit()
                reply = mpa.StartFrame(reply=True, enhanced=True, revision=2, private_data=words)
                await loop.sock_sendall(peer, reply.emit())
                await connecting
                client.close()


@pytest.mark.parametrize("progress", MODES)
@in_a_loop
async def test_asyncios_time_out_ends_a_connect(progress: Progress) -> None:
    with socket.create_server((HOST, 0)) as silent:
        async with aio.Context(progress=progress) as context:
            address = AddrInfo(dst=HOST, dst_service=silent.getsockname()[1])
            client = aio.CMID(address, pd=PD(context))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.connect()
            assert client.cmid.disconnected


@in_a_loop
async def test_a_cancelled_wait_for_a_request_loses_none() -> None:
    async with aio.CMID(PASSIVE) as listener, aio.Context() as context:
        listener.listen()
        waiting = [asyncio.ensure_future(listener.get_request()) for _ in range(3)]
        await asyncio.sleep(0)
        clients = [towards(listener, PD(context)) for _ in range(2)]
        connecting = [asyncio.ensure_future(client.connect()) for client in clients]
        waiting[0].cancel()
        for one in waiting[1:]:
            await (await one).accept()
        await asyncio.gather(*connecting)
        assert waiting[0].cancelled()


@in_a_loop
async def test_a_cancelled_wait_for_a_completion_loses_none() -> None:
    async with aio.Context() as context:
        cq = aio.CQ(context, 8)
        qp = verbs.QP(PD(context), QPInitAttr(scq=cq, rcq=cq))
        gets = [asyncio.ensure_future(cq.get()) for _ in range(3)]
        abandoned = aio.submit(qp, RecvWR(0))
        await asyncio.sleep(0)
        for number in (1, 2):
            qp.post_recv(RecvWR(number))
        gets[0].cancel()
        abandoned.cancel()
        qp.close()
        cq.hand_out()
        # Woken already, and cancelled before its turn: what it was woken for is another's.
        gets[1].cancel()
        assert (await gets[2]).wr_id == 0
        assert [(await cq.get()).wr_id for _ in range(2)] == [1, 2]
        assert gets[0].cancelled()
        assert gets[1].cancelled()


@in_a_loop
async def test_a_time_out_on_a_completion_leaves_it_for_the_next() -> None:
    async with connected() as (client, server):
        inbox, outbox = server.reg_msgs(8), client.reg_msgs(8)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await server.recv(inbox)
        await client.send(outbox, 5)
        assert (await server.get_recv_comp()).byte_len == 5


@in_a_loop
async def test_a_cancelled_accept_closes_the_stream() -> None:
    async with aio.CMID(PASSIVE) as listener:
        listener.listen()
        words = mpa.Enhanced(ird=1, ord=1, peer_to_peer=True, rtr_write=True).emit()
        asks = mpa.StartFrame(reply=False, enhanced=True, revision=2, private_data=words).emit()
        loop = asyncio.get_running_loop()
        with socket.socket() as peer:
            peer.setblocking(False)
            await loop.sock_connect(peer, listener.getsockname())
            await loop.sock_sendall(peer, asks)
            request = await listener.get_request()
            accepting = asyncio.ensure_future(request.accept())
            assert await loop.sock_recv(peer, 1000)
            accepting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await accepting
            assert request.cmid.disconnected
            assert await loop.sock_recv(peer, 1) == b""
            request.close()


# -- closing ---------------------------------------------------------------------------------------


@in_a_loop
async def test_closing_wakes_everything_that_waits() -> None:
    async with aio.Context() as context:
        listener = aio.CMID(PASSIVE, pd=PD(context))
        listener.listen()
        client = towards(listener, PD(context))
        connecting = asyncio.ensure_future(client.connect())
        server = await listener.get_request()
        await server.accept()
        await connecting
        inbox = server.reg_msgs(8)
        waiting = {
            "request": asyncio.ensure_future(listener.get_request()),
            "completion": asyncio.ensure_future(server.get_recv_comp()),
            "end": asyncio.ensure_future(server.wait_disconnected()),
            "receive": server.recv(inbox),
        }
        await asyncio.sleep(0)
        context.close()
    results = await asyncio.gather(*waiting.values(), return_exceptions=True)
    told = dict(zip(waiting, results, strict=True))
    assert isinstance(told["request"], OSError)
    assert isinstance(told["completion"], OSError)
    assert told["end"] is None
    assert told["receive"].status == WcStatus.WR_FLUSH_ERR


@in_a_loop
async def test_iterating_ends_when_the_listener_is_closed() -> None:
    async with aio.CMID(PASSIVE) as listener:
        listener.listen()

        async def requests() -> int:
            return len([request async for request in listener])

        counting = asyncio.ensure_future(requests())
        await asyncio.sleep(0)
        listener.close()
        assert await counting == 0
        assert await requests() == 0


@in_a_loop
async def test_a_block_that_raises_closes_at_once() -> None:
    async with connected() as (client, server):
        with pytest.raises(ZeroDivisionError):
            async with client:
                raise ZeroDivisionError
        assert client.cmid.closed
        await server.wait_disconnected()


@in_a_loop
async def test_an_idle_event_loop_is_left_alone() -> None:
    """What makes the RNIC's descriptor readable is taken from it, and nothing is asked twice."""
    async with connected() as (client, server):
        outbox, inbox = client.reg_msgs(8), server.reg_msgs(8)
        arrival = server.recv(inbox)
        await client.send(outbox)
        await arrival
        for context in (client.context, server.context):
            context.loop.wake()
        for _ in range(10):
            await asyncio.sleep(0)
        waits = [end.context.loop.waits for end in (client, server)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert [end.context.loop.waits for end in (client, server)] == waits


@in_a_loop
async def test_a_queue_that_lost_completions_fails_who_waits_for_them() -> None:
    async with aio.Context() as context:
        cq = aio.CQ(context, 2)
        pd = PD(context)
        qp = verbs.QP(pd, QPInitAttr(scq=cq, rcq=cq))
        futures = aio.submit_all(qp, [RecvWR(n) for n in range(4)])
        qp.close()
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [r.wr_id for r in results[:2] if not isinstance(r, BaseException)] == [0, 1]
        for lost in results[2:]:
            assert isinstance(lost, OSError)
            assert lost.errno == errno.ENOBUFS
        with pytest.raises(OSError, match="lost"):
            await cq.get()


@in_a_loop
async def test_an_identifier_that_cannot_be_made_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TypeError, match="'somewhere'"):
        aio.CMID("somewhere")  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before
