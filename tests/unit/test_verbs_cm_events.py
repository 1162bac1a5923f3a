"""Events of connections: which come, in which order, on both sides; and their channel."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from steertag.rdma.qp_state import QpState
from steertag.verbs import (
    CMID,
    CQ,
    PD,
    QP,
    AddrInfo,
    CMEvent,
    CMEventChannel,
    CMEventType,
    ConnectError,
    ConnParam,
    Context,
    QPInitAttr,
)
from steertag.verbs.cm.state import CmState
from steertag.verbs.device import Progress
from steertag.verbs.enums import IBV_QPS_ERR, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS
from steertag.wire import mpa
from tests.sim.cm import (
    E,
    channel,
    connect_both,
    expect,
    listening_on,
    nothing_more,
    request_on,
    resolved,
)
from tests.sim.verbs import CAP, HOST, MODES, TIMEOUT, listening, plain_server, region, towards

# -- the usual order -------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", MODES)
def test_both_sides_are_told_every_step_in_order(progress: Progress) -> None:
    """In one thread: nothing here waits but for the next event."""
    # One Context for both, so that one who waits for its events moves both sides.
    with Context(progress=progress) as context, CMEventChannel(context) as events:
        listener = listening_on(events)
        client = resolved(events, listener.get_src_port())
        client.connect(ConnParam(resources=3, depth=5, private_data=b"ask"))
        server, asked = request_on(events)
        assert (asked.listen_id, asked.private_data, asked.status) == (listener, b"ask", 0)
        assert asked.conn_param is not None
        assert asked.conn_param.responder_resources == 5
        assert asked.conn_param.initiator_depth == 3
        server.accept(ConnParam(private_data=b"answer"))
        both = [expect(events, E.RDMA_CM_EVENT_ESTABLISHED) for _ in range(2)]
        assert [event.id for event in both] == [server, client]
        assert [event.private_data for event in both] == [b"", b"answer"]
        assert nothing_more(events)
        here, there = region(client, 100), region(server, 100)
        here.memory[:5] = b"hello"
        here.write(there, 5)
        assert client.get_send_comp(TIMEOUT).status == 0
        client.disconnect()
        ends = [expect(events, E.RDMA_CM_EVENT_DISCONNECTED) for _ in range(2)]
        assert {event.id for event in ends} == {client, server}
        assert [event.status for event in ends] == [0, 0]
        assert there.memory[:5] == b"hello"
        assert client.state is server.state is CmState.DISCONNECT
        for cmid in (client, server):
            cmid.disconnect()
        assert nothing_more(events)


def test_each_side_has_its_events_in_its_own_channel() -> None:
    with channel() as ours, channel() as theirs:
        client, server = connect_both(ours, theirs, listening_on(theirs))
        server.disconnect()
        for events, cmid in ((ours, client), (theirs, server)):
            assert expect(events, E.RDMA_CM_EVENT_DISCONNECTED).id is cmid
        assert nothing_more(ours, theirs)


def test_a_hundred_connections_go_through_one_channel() -> None:
    with CMEventChannel() as events:
        listener = listening_on(events)
        clients = [resolved(events, listener.get_src_port()) for _ in range(100)]
        for number, client in enumerate(clients):
            client.connect(ConnParam(private_data=bytes([number])))
        established: list[CMID] = []
        servers: dict[int, CMID] = {}
        while len(established) < 200:
            with events.get_event(TIMEOUT) as event:
                if event.event_type is E.RDMA_CM_EVENT_CONNECT_REQUEST:
                    server = event.id
                    servers[event.private_data[0]] = server
                    server.accept(ConnParam(private_data=event.private_data))
                else:
                    assert event.event_type is E.RDMA_CM_EVENT_ESTABLISHED
                    established.append(event.id)
        assert {*established} == {*clients, *servers.values()}
        assert [client.private_data[0] for client in clients] == list(range(100))
        for number, client in enumerate(clients):
            client.disconnect() if number % 2 else servers[number].disconnect()
        gone = {expect(events, E.RDMA_CM_EVENT_DISCONNECTED).id for _ in range(200)}
        assert gone == {*established}
        assert nothing_more(events)


def test_peer_to_peer_mode_establishes_the_responder_and_lets_it_send_first() -> None:
    with channel() as ours, channel() as theirs:
        listener = listening_on(theirs)
        client = resolved(ours, listener.get_src_port())
        client.create_qp()
        inbox = client.reg_msgs(10)
        client.post_recv(inbox)
        client.connect(ConnParam(peer_to_peer=True))
        server, _ = request_on(theirs)
        server.accept()
        assert expect(theirs, E.RDMA_CM_EVENT_ESTABLISHED).id is server
        outbox = server.reg_msgs(10)
        outbox.write(b"first", 5)
        server.post_send(outbox, length=5)
        assert client.get_recv_comp(TIMEOUT).byte_len == 5
        assert inbox.read(5) == b"first"


def test_a_responder_that_never_hears_ready_to_receive_is_told_of_an_error() -> None:
    with channel() as events:
        listener = listening_on(events)
        words = mpa.Enhanced(ird=1, ord=1, peer_to_peer=True, rtr_write=True).emit()
        request = mpa.StartFrame(reply=False, enhanced=True, revision=2, private_data=words)
        with socket.create_connection(listener.getsockname(), TIMEOUT) as peer:
            peer.sendall(request.emit())
            server, _ = request_on(events)
            server.accept()
            assert peer.recv(1000).startswith(mpa.KEY_REPLY)
        event = expect(events, E.RDMA_CM_EVENT_CONNECT_ERROR)
        assert event.id is server
        assert event.status < 0
        assert nothing_more(events)


# -- no connection ---------------------------------------------------------------------------------


def test_a_rejected_peer_gets_the_private_data() -> None:
    with channel() as ours, channel() as theirs:
        listener = listening_on(theirs)
        client = resolved(ours, listener.get_src_port())
        client.connect()
        server, _ = request_on(theirs)
        server.reject(b"full")
        event = expect(ours, E.RDMA_CM_EVENT_REJECTED)
        assert event.id is client
        assert (event.status, event.private_data) == (-errno.ECONNREFUSED, b"full")
        assert nothing_more(ours, theirs)
        # It may be tried again.
        client.connect()
        request_on(theirs)[0].accept()
        assert expect(ours, E.RDMA_CM_EVENT_ESTABLISHED).id is client


def test_a_peer_that_is_not_there_rejects() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    with channel() as events:
        resolved(events, port).connect()
        event = expect(events, E.RDMA_CM_EVENT_REJECTED)
        assert (event.status, event.private_data) == (-errno.ECONNREFUSED, b"")


@pytest.mark.parametrize("progress", MODES)
def test_a_peer_that_never_answers_is_unreachable(progress: Progress) -> None:
    with plain_server() as server, channel(progress) as events:
        resolved(events, server.getsockname()[1]).connect(timeout=0.02)
        assert expect(events, E.RDMA_CM_EVENT_UNREACHABLE).status == -errno.ETIMEDOUT


@pytest.mark.parametrize("progress", MODES)
def test_a_host_that_does_not_answer_is_unreachable_in_time(progress: Progress) -> None:
    """No handshake is answered by a listener whose queue is full."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind((HOST, 0))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        events = stack.enter_context(channel(progress))
        client = resolved(events, full.getsockname()[1])
        client.connect(timeout=0.05)
        assert client.state is CmState.CONNECT
        assert not client.disconnected
        assert expect(events, E.RDMA_CM_EVENT_UNREACHABLE).status == -errno.ETIMEDOUT
        assert client.disconnected


def test_an_address_without_a_way_to_it_is_unreachable() -> None:
    broadcast = AddrInfo(dst="255.255.255.255", dst_service=1)
    with channel() as events:
        cmid = CMID(events)
        cmid.resolve_addr(broadcast)
        event = expect(events, E.RDMA_CM_EVENT_ADDR_ERROR)
        assert event.id is cmid
        assert event.status in (-errno.EACCES, -errno.ENETUNREACH)
        assert cmid.state is CmState.IDLE
        with CMID(broadcast) as direct:
            direct.migrate_id(events)
            direct.connect()
            assert expect(events, E.RDMA_CM_EVENT_UNREACHABLE).status == -errno.ENETUNREACH


@pytest.mark.parametrize(
    ("answer", "kind", "number"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", E.RDMA_CM_EVENT_CONNECT_ERROR, errno.EPROTO),
        (b"", E.RDMA_CM_EVENT_REJECTED, errno.ECONNRESET),
    ],
)
def test_a_peer_that_is_no_rnic_is_told_apart(
    answer: bytes, kind: CMEventType, number: int
) -> None:
    with plain_server() as server, channel() as events:
        resolved(events, server.getsockname()[1]).connect()
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1000)
            peer.sendall(answer)
            peer.shutdown(socket.SHUT_WR)
            assert expect(events, kind).status == -number


def test_disconnecting_ends_what_is_under_way_with_one_event() -> None:
    with plain_server() as server, channel() as events:
        client = resolved(events, server.getsockname()[1])
        client.connect()
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1000)
            client.disconnect()
            event = expect(events, E.RDMA_CM_EVENT_CONNECT_ERROR)
            assert event.status == -errno.ECONNABORTED
            assert peer.recv(1) == b""
            assert nothing_more(events)


def test_a_peer_that_knows_only_revision_1_gets_a_second_try_that_is_announced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with plain_server() as server, channel() as events, ThreadPoolExecutor(1) as pool:

        def answer_in_revision_1() -> list[int]:
            revisions = []
            for _ in range(2):
                peer, _ = server.accept()
                request = mpa.StartFrame.parse(memoryview(peer.recv(1000)))
                assert request is not None
                revisions.append(request.revision)
                peer.sendall(mpa.StartFrame(reply=True, revision=1, private_data=b"old").emit())
                peers.append(peer)
            return revisions

        peers: list[socket.socket] = []
        served = pool.submit(answer_in_revision_1)
        client = resolved(events, server.getsockname()[1])
        client.connect(ConnParam(revision_fallback=True))
        assert expect(events, E.RDMA_CM_EVENT_ESTABLISHED).private_data == b"old"
        assert served.result(TIMEOUT) == [2, 1]
        assert "revision 1" in client.fallback
        assert client.fallback in caplog.text
        assert peers[0].recv(1) == b""
        for peer in peers:
            peer.close()


def test_without_revision_fallback_there_is_no_second_try() -> None:
    with plain_server() as server, channel() as events:
        resolved(events, server.getsockname()[1]).connect()
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1000)
            peer.sendall(mpa.StartFrame(reply=True, revision=1).emit())
            assert expect(events, E.RDMA_CM_EVENT_CONNECT_ERROR).status == -errno.EPROTO


# -- ends ------------------------------------------------------------------------------------------


def raw_request(listener: CMID) -> socket.socket:
    """A peer that has sent its Request."""
    peer = socket.create_connection(listener.getsockname(), TIMEOUT)
    peer.sendall(mpa.StartFrame(reply=False, revision=1).emit())
    return peer


def reset(peer: socket.socket) -> None:
    """End as a process does that dies with data unread."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@pytest.mark.parametrize("progress", MODES)
def test_a_peers_death_is_told_once(progress: Progress) -> None:
    with channel(progress) as events:
        listener = listening_on(events)
        peer = raw_request(listener)
        server, _ = request_on(events)
        server.create_qp()
        side = region(server)
        side.recv(10, id=7)
        server.accept()
        assert expect(events, E.RDMA_CM_EVENT_ESTABLISHED).id is server
        reset(peer)
        assert expect(events, E.RDMA_CM_EVENT_DISCONNECTED).id is server
        assert server.get_recv_comp(TIMEOUT).wr_id == 7
        server.disconnect()
        assert nothing_more(events)


def test_a_peer_that_leaves_before_it_is_accepted_is_told_and_can_not_be_accepted() -> None:
    with channel() as events:
        listener = listening_on(events)
        with raw_request(listener):
            server, _ = request_on(events)
            server.create_qp()
            region(server).recv(10, id=8)
        event = expect(events, E.RDMA_CM_EVENT_CONNECT_ERROR)
        assert (event.id, event.status) == (server, -errno.ECONNRESET)
        assert isinstance(event.error, ConnectError)
        with pytest.raises(ConnectError):
            server.accept()
        qp = server.qp
        assert qp is not None
        server.close()
        assert [wc.wr_id for wc in qp.rcq.poll(2)[1]] == [8]
        assert nothing_more(events)


def test_a_request_that_its_peer_takes_back_takes_its_event_along() -> None:
    with channel() as events:
        listener = listening_on(events)
        with raw_request(listener):
            assert select.select([events], [], [], TIMEOUT)[0] == [events]
        assert listener.context.wait_for(lambda: not listener.requests_waiting, TIMEOUT)
        assert nothing_more(events)


def test_nothing_is_heard_of_a_cmid_that_was_closed() -> None:
    with channel() as ours, channel() as theirs:
        client, server = connect_both(ours, theirs, listening_on(theirs))
        client.close()
        assert expect(theirs, E.RDMA_CM_EVENT_DISCONNECTED).id is server
        assert nothing_more(ours, theirs)
        with socket.create_server((HOST, 0)) as silent:
            pending = resolved(ours, silent.getsockname()[1])
            pending.connect()
            pending.close()
        assert nothing_more(ours)


def test_closing_a_synchronous_cmid_ends_a_connect_that_waits() -> None:
    with plain_server() as server, ThreadPoolExecutor(1) as pool, Context() as context:
        cmid = CMID(AddrInfo(dst=HOST, dst_service=server.getsockname()[1]), pd=PD(context))
        under_way = pool.submit(cmid.connect, None, TIMEOUT)
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1000)
            cmid.close()
            with pytest.raises(ConnectError) as caught:
                under_way.result(TIMEOUT)
        assert (caught.value.code, caught.value.errno) == ("aborted", errno.ECONNABORTED)


# -- listeners -------------------------------------------------------------------------------------


def test_no_more_than_the_backlog_waits_as_events() -> None:
    with channel() as ours, channel() as theirs:
        listener = listening_on(theirs, backlog=3)
        clients = [resolved(ours, listener.get_src_port()) for _ in range(8)]
        for client in clients:
            client.connect()
        refused = {expect(ours, E.RDMA_CM_EVENT_REJECTED).id for _ in range(5)}
        for server in [request_on(theirs)[0] for _ in range(3)]:
            server.accept()
            assert expect(theirs, E.RDMA_CM_EVENT_ESTABLISHED).id is server
        accepted = {expect(ours, E.RDMA_CM_EVENT_ESTABLISHED).id for _ in range(3)}
        assert refused | accepted == set(clients)
        # The places are free again.
        again = refused.pop()
        again.connect()
        request_on(theirs)[0].accept()
        assert expect(ours, E.RDMA_CM_EVENT_ESTABLISHED).id is again


def test_requests_that_nobody_got_go_with_their_listener() -> None:
    with channel() as ours, channel() as theirs:
        listener = listening_on(theirs)
        client = resolved(ours, listener.get_src_port())
        client.connect()
        assert select.select([theirs], [], [], TIMEOUT)[0] == [theirs]
        listener.close()
        assert nothing_more(theirs)
        assert select.select([theirs], [], [], 0)[0] == []
        assert expect(ours, E.RDMA_CM_EVENT_REJECTED).status == -errno.ECONNRESET


def test_a_request_is_taken_once_and_pyverbs_way_of_taking_it_works() -> None:
    with channel() as ours, channel() as theirs:
        listener = listening_on(theirs)
        client = resolved(ours, listener.get_src_port())
        client.connect()
        event = CMEvent(theirs, TIMEOUT)
        server = CMID(creator=event, listen_id=listener)
        assert event.id is server
        assert (server.context, server.pd) == (listener.context, listener.pd)
        assert server.event_channel is theirs
        with pytest.raises(OSError, match="taken") as caught:
            CMID(creator=event, listen_id=listener)
        assert caught.value.errno == errno.EINVAL
        event.ack_cm_event()
        server.accept()
        assert expect(ours, E.RDMA_CM_EVENT_ESTABLISHED).id is client
        with (
            expect(theirs, E.RDMA_CM_EVENT_ESTABLISHED) as other,
            pytest.raises(OSError, match="listening"),
        ):
            CMID(creator=other, listen_id=listener)


def test_a_request_whose_id_nobody_takes_is_closed_with_its_event() -> None:
    with channel() as ours, channel() as theirs:
        listener = listening_on(theirs)
        resolved(ours, listener.get_src_port()).connect()
        event = theirs.get_event(TIMEOUT)
        event.ack_cm_event()
        assert expect(ours, E.RDMA_CM_EVENT_REJECTED).status == -errno.ECONNRESET
        with pytest.raises(OSError, match="dropped"):
            _ = event.id


# -- a queue pair of the program's -----------------------------------------------------------------


def test_a_queue_pair_of_the_programs_own_gets_a_response_and_is_established() -> None:
    with channel() as ours, channel() as theirs:
        listener = listening_on(theirs)
        client = resolved(ours, listener.get_src_port())
        cqs = [CQ(cmid.context, 20) for cmid in (client, listener)]
        mine, its = (
            QP(cmid.pd, QPInitAttr(scq=cq, rcq=cq, cap=CAP))
            for cmid, cq in zip((client, listener), cqs, strict=True)
        )
        client.connect(ConnParam(qp_num=mine.qp_num))
        server, _ = request_on(theirs)
        for state in (IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS):
            its.modify(*server.init_qp_attr(state))
        server.accept(ConnParam(qp_num=its.qp_num))
        assert expect(theirs, E.RDMA_CM_EVENT_ESTABLISHED).id is server
        assert expect(ours, E.RDMA_CM_EVENT_CONNECT_RESPONSE).id is client
        for state in (IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS):
            mine.modify(*client.init_qp_attr(state))
        with pytest.raises(OSError, match="QP state 6"):
            client.init_qp_attr(IBV_QPS_ERR)
        client.establish()
        with pytest.raises(OSError, match="CONNECT_RESPONSE"):
            client.establish()
        assert mine.state is its.state is QpState.RTS
        assert (client.qp, server.qp) == (mine, its)
        here, there = region(client, 10), region(server, 10)
        there.recv(10, id=5)
        here.memory[:] = b"0123456789"
        here.send(10)
        assert [wc.wr_id for wc in cqs[1].wait(1, TIMEOUT)] == [5]
        assert there.memory == here.memory
        client.close()
        assert not mine.closed
        assert expect(theirs, E.RDMA_CM_EVENT_DISCONNECTED).id is server


def test_a_queue_pair_that_does_not_exist_can_not_be_connected() -> None:
    with channel() as events:
        client = resolved(events, 1)
        with pytest.raises(OSError, match="queue pair 4711") as caught:
            client.connect(ConnParam(qp_num=4711))
        assert caught.value.errno == errno.EINVAL
        assert client.state is CmState.ROUTE_RESOLVED


# -- moving between channels -----------------------------------------------------------------------


def test_migrating_takes_waiting_events_along() -> None:
    with channel() as ours, channel() as theirs, channel() as third:
        listener = listening_on(theirs)
        client = resolved(ours, listener.get_src_port())
        client.connect()
        server, _ = request_on(theirs)
        server.migrate_id(third)
        server.accept()
        assert expect(third, E.RDMA_CM_EVENT_ESTABLISHED).id is server
        assert select.select([ours], [], [], TIMEOUT)[0] == [ours]
        client.migrate_id(third)
        assert nothing_more(ours)
        assert expect(third, E.RDMA_CM_EVENT_ESTABLISHED).id is client
        client.disconnect()
        gone = {expect(third, E.RDMA_CM_EVENT_DISCONNECTED).id for _ in range(2)}
        assert gone == {client, server}
        assert nothing_more(ours, theirs, third)


def test_a_listener_migrates_with_its_requests_both_ways() -> None:
    with (
        channel() as theirs,
        listening() as listener,
        towards(listener) as first,
        ThreadPoolExecutor(1) as pool,
    ):
        under_way = pool.submit(first.connect, None, TIMEOUT)
        assert listener.context.wait_for(lambda: listener.requests_waiting == 1, TIMEOUT)
        listener.migrate_id(theirs)
        with pytest.raises(OSError, match="event channel") as caught:
            listener.get_request(0)
        assert caught.value.errno == errno.EINVAL
        assert select.select([theirs], [], [], TIMEOUT)[0] == [theirs]
        listener.migrate_id(None)
        assert nothing_more(theirs)
        with listener.get_request(TIMEOUT) as server:
            server.accept()
            under_way.result(TIMEOUT)


def test_a_synchronous_connection_that_ended_tells_the_channel_it_is_moved_to() -> None:
    with (
        channel() as events,
        listening() as listener,
        towards(listener) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        under_way = pool.submit(client.connect, None, TIMEOUT)
        with listener.get_request(TIMEOUT) as server:
            server.accept()
            under_way.result(TIMEOUT)
        assert client.wait_disconnected(TIMEOUT)
        client.migrate_id(events)
        assert expect(events, E.RDMA_CM_EVENT_DISCONNECTED).id is client
        client.migrate_id(None)
        client.migrate_id(events)
        assert nothing_more(events)


def test_a_cmid_made_synchronous_waits_and_raises() -> None:
    with channel() as events, listening() as listener, ThreadPoolExecutor(1) as pool:
        client = resolved(events, listener.get_src_port())
        client.migrate_id(None)
        under_way = pool.submit(client.connect, None, TIMEOUT)
        with listener.get_request(TIMEOUT) as server:
            server.reject(b"no")
            with pytest.raises(ConnectError, match="rejected"):
                under_way.result(TIMEOUT)
        assert nothing_more(events)
        client.close()


# -- acknowledging ---------------------------------------------------------------------------------


def test_a_cmid_with_an_unacknowledged_event_can_not_be_closed_or_moved() -> None:
    with channel() as events:
        cmid = CMID(events)
        cmid.resolve_addr(AddrInfo(dst=HOST, dst_service=1))
        event = events.get_event(TIMEOUT)
        for call in (cmid.close, lambda: cmid.migrate_id(None)):
            with pytest.raises(OSError, match="not acknowledged") as caught:
                call()
            assert caught.value.errno == errno.EBUSY
        event.ack_cm_event()
        with pytest.raises(OSError, match="already") as caught:
            event.ack_cm_event()
        assert caught.value.errno == errno.EINVAL
        event.close()
        cmid.close()
        assert event.event_str() == "RDMA_CM_EVENT_ADDR_RESOLVED"


def test_an_event_that_is_dropped_or_left_is_acknowledged() -> None:
    with channel() as events:
        cmid = CMID(events)
        cmid.resolve_addr(AddrInfo(dst=HOST, dst_service=1))
        cmid.resolve_route()
        assert events.get_event(TIMEOUT).id is cmid
        with events.get_event(TIMEOUT) as event:
            assert cmid.unacknowledged == 1
        assert event.id.unacknowledged == 0
        cmid.close()


def test_events_that_nobody_got_keep_nothing_open() -> None:
    with channel() as events:
        cmid = CMID(events)
        cmid.resolve_addr(AddrInfo(dst=HOST, dst_service=1))
        cmid.close()
        assert nothing_more(events)


# -- the channel itself ----------------------------------------------------------------------------


def test_the_descriptor_is_readable_exactly_while_an_event_waits() -> None:
    with channel() as events:
        poll = select.poll()
        poll.register(events, select.POLLIN)
        assert poll.poll(0) == []
        cmid = CMID(events)
        cmid.resolve_addr(AddrInfo(dst=HOST, dst_service=1))
        cmid.resolve_route()
        for _ in range(2):
            assert poll.poll(0) == [(events.fileno(), select.POLLIN)]
            events.get_event(0)
        assert poll.poll(0) == []


def test_a_channel_that_does_not_block_says_so() -> None:
    with channel() as events:
        with pytest.raises(TimeoutError):
            events.get_event(0.001)
        events.setblocking(False)
        with pytest.raises(BlockingIOError):
            events.get_event()
        os.set_blocking(events.fileno(), True)
        cmid = CMID(events)
        os.set_blocking(events.fileno(), False)
        cmid.resolve_addr(AddrInfo(dst=HOST, dst_service=1))
        assert events.get_event().event_type is E.RDMA_CM_EVENT_ADDR_RESOLVED


def test_closing_a_channel_wakes_who_waits_and_closes_its_cmids() -> None:
    with ThreadPoolExecutor(2) as pool:
        events = CMEventChannel()
        cmid = CMID(events)
        waiting = [pool.submit(events.get_event) for _ in range(2)]
        events.close()
        for one in waiting:
            with pytest.raises(OSError, match="closed") as caught:
                one.result(TIMEOUT)
            assert caught.value.errno == errno.EBADF
        assert cmid.closed
        assert cmid.context.closed
        with pytest.raises(OSError, match="closed"):
            events.get_event(0)


def test_threads_that_wait_on_one_channel_share_its_events() -> None:
    with channel() as events, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(events.get_event, TIMEOUT) for _ in range(4)]
        cmids = [CMID(events) for _ in range(4)]
        for cmid in cmids:
            cmid.resolve_addr(AddrInfo(dst=HOST, dst_service=1))
        got = [one.result(TIMEOUT) for one in waiting]
        assert {event.id for event in got} == set(cmids)
        for event in got:
            event.ack_cm_event()


def test_a_channel_serves_cmids_of_several_contexts() -> None:
    with (
        Context(progress="caller") as one,
        Context(progress="caller") as other,
        CMEventChannel() as events,
    ):
        listener = CMID(events, pd=PD(one))
        listener.listen()
        assert listener.context is one
        client = resolved(events, listener.get_src_port(), PD(other))
        client.connect()
        server, _ = request_on(events)
        server.accept()
        both = {expect(events, E.RDMA_CM_EVENT_ESTABLISHED).id for _ in range(2)}
        assert both == {client, server}
        client.disconnect()
        gone = {expect(events, E.RDMA_CM_EVENT_DISCONNECTED).id for _ in range(2)}
        assert gone == both


def test_events_have_rdma_cms_names_and_numbers() -> None:
    from steertag.verbs import enums
    from steertag.verbs.cm.event import event_str

    known = {name: value for name, value in vars(enums).items() if name.startswith("RDMA_CM_EVENT")}
    assert {kind.name: kind.value for kind in CMEventType}.items() >= known.items()
    assert event_str(9) == "RDMA_CM_EVENT_ESTABLISHED"
    assert event_str(99) == "UNKNOWN EVENT"
