"""Connections over loopback sockets: what they move, how they come about, how they fail."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from steertag.rdma.mpa_state import MpaState
from steertag.rdma.qp_state import QpState
from steertag.rdma.rnic import RnicLimits
from steertag.runtime.driver import StreamDriver
from steertag.runtime.listener import Listener
from steertag.verbs import (
    CMID,
    PD,
    AddrInfo,
    ConnectError,
    ConnParam,
    Context,
    SendWR,
    WcStatus,
)
from steertag.verbs.device import Progress
from steertag.verbs.enums import RAI_PASSIVE
from steertag.wire import mpa
from tests.sim.ends import pattern
from tests.sim.verbs import (
    HOST,
    MODES,
    SIZE,
    TIMEOUT,
    connected,
    listening,
    plain_server,
    region,
    towards,
)

# -- what is moved ---------------------------------------------------------------------------------


@pytest.mark.parametrize("crc", [True, False])
@pytest.mark.parametrize("progress", MODES)
def test_writes_reads_and_sends_move_memory(progress: Progress, crc: bool) -> None:
    param = ConnParam(crc=crc)
    with connected(progress, param, param, receives=1) as (client, server):
        assert client.cmid.crc is server.cmid.crc is crc
        client.memory[:] = pattern(SIZE)
        client.write(server, SIZE, id=1)
        client.send(5, id=2)
        assert client.cmid.get_send_comp(TIMEOUT).wr_id == 1
        assert server.cmid.get_recv_comp(TIMEOUT).byte_len == 5
        assert server.memory[5:] == client.memory[5:]
        client.memory[:] = bytes(SIZE)
        if progress == "caller":
            # Nobody else moves the server's side.
            mover = threading.Thread(
                target=server.cmid.wait_disconnected, args=(TIMEOUT,), daemon=True
            )
            mover.start()
        client.read(server, SIZE, id=3)
        assert [client.cmid.get_send_comp(TIMEOUT).wr_id for _ in range(2)] == [2, 3]
        assert client.memory == server.memory
        client.cmid.disconnect()
        if progress == "caller":
            mover.join(TIMEOUT)


def test_no_octet_of_a_bulk_transfer_is_staged_over_real_sockets() -> None:
    with connected() as (client, server):
        assert client.cmid.qp is not None
        assert server.cmid.qp is not None
        for _ in range(20):
            client.write(server, SIZE)
            client.read(server, SIZE)
        for _ in range(40):
            assert client.cmid.get_send_comp(TIMEOUT).status is WcStatus.SUCCESS
        here, there = client.cmid.qp.counters, server.cmid.qp.counters
        assert here.staged_bytes == there.staged_bytes == 0
        assert here.placed_bytes == there.placed_bytes == 20 * SIZE


def test_librdmacms_calls_move_messages() -> None:
    with connected() as (client, server):
        ours, theirs = client.cmid.reg_msgs(100), server.cmid.reg_msgs(100)
        into = server.cmid.reg_write(100)
        source = server.cmid.reg_read(100)
        source.write(b"readable", 8)
        server.cmid.post_recv(theirs)
        ours.write(b"message", 7)
        client.cmid.post_send(ours, length=7)
        assert server.cmid.get_recv_comp(TIMEOUT).byte_len == 7
        assert theirs.read(7) == b"message"
        client.cmid.post_write(ours, 7, into.buf, into.rkey)
        client.cmid.post_read(ours, 8, source.buf, source.rkey)
        assert [client.cmid.get_send_comp(TIMEOUT).status for _ in range(3)] == [0, 0, 0]
        assert into.read(7) == b"message"
        assert ours.read(8) == b"readable"


def test_private_data_goes_both_ways_over_real_sockets() -> None:
    with connected("thread", ConnParam(private_data=b"ask"), ConnParam(private_data=b"reply")) as (
        client,
        server,
    ):
        assert server.cmid.private_data == b"ask"
        assert client.cmid.private_data == b"reply"


def test_a_list_of_requests_stops_at_the_first_that_can_not_be_posted() -> None:
    with connected() as (client, server):
        assert client.cmid.qp is not None
        good = [SendWR(n, sg=[client.sge(0, 8)]) for n in range(3)]
        for wr in good:
            wr.set_wr_rdma(server.mr.rkey, server.mr.buf)
        bad = SendWR(9, sg=[client.sge(0, 8)], opcode=77)
        for posted in (iter([good[0], bad, good[1]]), good[0]):
            good[0].next_wr, bad.next_wr = bad, good[1]
            with pytest.raises(OSError, match="opcode") as caught:
                client.cmid.qp.post_send(posted)
            assert caught.value.bad_wr is bad  # type: ignore[attr-defined]
            assert client.cmid.get_send_comp(TIMEOUT).wr_id == 0
        good[0].next_wr = good[1]
        client.cmid.qp.post_send(good[0])
        assert [client.cmid.get_send_comp(TIMEOUT).wr_id for _ in range(2)] == [0, 1]


def test_small_messages_leave_at_once_on_both_sides() -> None:
    """TCP_NODELAY: else one of two small messages in a row waits for an acknowledgement."""
    before = set(os.listdir("/proc/self/fd"))
    with connected():
        streams = []
        for fd in set(os.listdir("/proc/self/fd")) - before:
            try:
                duplicate = socket.socket(fileno=os.dup(int(fd)))
            except OSError:
                continue  # not a socket
            with duplicate:
                if not duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    streams.append(
                        duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
                    )
        assert streams == [True, True]


# -- refusals and time-outs ------------------------------------------------------------------------


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_peer_that_is_not_there_refuses_the_connection() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    with CMID(AddrInfo(dst=HOST, dst_service=port)) as cmid:
        with pytest.raises(ConnectionRefusedError):
            cmid.connect(timeout=TIMEOUT)
        assert cmid.disconnected


@pytest.mark.parametrize("progress", MODES)
def test_a_peer_that_never_answers_times_out(progress: Progress) -> None:
    with (
        plain_server() as server,
        Context(progress=progress) as context,
        CMID(AddrInfo(dst=HOST, dst_service=server.getsockname()[1]), pd=PD(context)) as cmid,
    ):
        with pytest.raises(ConnectError, match="no MPA Reply") as caught:
            cmid.connect(timeout=0.05)
        assert caught.value.errno == errno.ETIMEDOUT
        assert caught.value.code == "timeout"
        assert cmid.disconnected


ANSWERS = {
    "closed": (b"", errno.ECONNRESET),
    "garbled": (b"HTTP/1.1 400 Bad Request\r\n\r\n", errno.EPROTO),
    "revision": (mpa.StartFrame(reply=True, revision=3).emit(), errno.EPROTO),
    "rejected": (
        mpa.StartFrame(reply=True, reject=True, private_data=b"sorry").emit(),
        errno.ECONNREFUSED,
    ),
}


@pytest.mark.parametrize("code", ANSWERS)
def test_a_peer_that_answers_wrongly_is_told_apart(code: str) -> None:
    octets, number = ANSWERS[code]
    with (
        plain_server() as server,
        CMID(AddrInfo(dst=HOST, dst_service=server.getsockname()[1])) as cmid,
        ThreadPoolExecutor(1) as pool,
    ):
        under_way = pool.submit(cmid.connect, None, TIMEOUT)
        peer, _ = server.accept()
        with peer:
            request = peer.recv(1024)
            assert request.startswith(mpa.KEY_REQUEST)
            peer.sendall(octets)
            peer.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectError) as caught:
                under_way.result(TIMEOUT)
        assert caught.value.code == code
        assert caught.value.errno == number
        assert str(caught.value)
        assert caught.value.private_data == (b"sorry" if code == "rejected" else b"")


def test_a_rejection_reaches_the_other_side_with_its_private_data() -> None:
    with listening() as listener, towards(listener) as client, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(client.connect, None, TIMEOUT)
        with listener.get_request(TIMEOUT) as request:
            request.reject(b"full")
            with pytest.raises(ConnectError, match="rejected") as caught:
                under_way.result(TIMEOUT)
            assert caught.value.private_data == b"full"
            with pytest.raises(ConnectError):
                request.accept()


def test_a_connection_can_be_tried_again_after_it_was_rejected() -> None:
    with listening() as listener, towards(listener) as client, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(client.connect, None, TIMEOUT)
        with listener.get_request(TIMEOUT) as request:
            request.reject()
            with pytest.raises(ConnectError):
                under_way.result(TIMEOUT)
        under_way = pool.submit(client.connect, None, TIMEOUT)
        with listener.get_request(TIMEOUT) as request:
            request.accept()
            under_way.result(TIMEOUT)
            assert client.qp is not None
            assert client.qp.state is QpState.RTS


def test_parameters_that_no_frame_can_hold_leave_nothing_open() -> None:
    with listening() as listener, towards(listener) as client:
        before = open_descriptors()
        with pytest.raises(ValueError, match="private data"):
            client.connect(ConnParam(private_data=bytes(600)), TIMEOUT)
        assert open_descriptors() == before


def test_a_queue_pair_that_can_not_be_made_leaves_nothing_open() -> None:
    with (
        listening() as listener,
        Context(limits=RnicLimits(max_qp=0)) as context,
        towards(listener, PD(context)) as client,
    ):
        before = open_descriptors()
        with pytest.raises(OSError, match="queue pairs exist"):
            client.connect(timeout=TIMEOUT)
        assert open_descriptors() == before


def test_disconnecting_while_the_peer_has_not_answered_ends_the_set_up() -> None:
    with (
        plain_server() as server,
        CMID(AddrInfo(dst=HOST, dst_service=server.getsockname()[1])) as cmid,
        ThreadPoolExecutor(1) as pool,
    ):
        under_way = pool.submit(cmid.connect, None, TIMEOUT)
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1024)
            cmid.disconnect()
            with pytest.raises(ConnectError):
                under_way.result(TIMEOUT)
            assert peer.recv(1) == b""


def test_a_stream_that_is_connected_already_can_be_adopted_on_both_sides() -> None:
    here, there = socket.socketpair()
    with Context() as first, Context() as second, ThreadPoolExecutor(1) as pool:
        active, passive = CMID(None, pd=PD(first)), CMID(None, pd=PD(second))
        under_way = pool.submit(active.adopt_active, here, None, TIMEOUT)
        passive.adopt_passive(there, TIMEOUT)
        passive.accept()
        under_way.result(TIMEOUT)
        client, server = region(active), region(passive)
        client.memory[:3] = b"abc"
        client.write(server, 3)
        client.read(server, 3, local=10)
        assert [active.get_send_comp(TIMEOUT).status for _ in range(2)] == [0, 0]
        assert client.memory[10:13] == b"abc"


def test_an_adopted_stream_without_a_request_times_out() -> None:
    here, there = socket.socketpair()
    with here, Context() as context, CMID(None, pd=PD(context)) as cmid:
        with pytest.raises(ConnectError, match="no MPA Request") as caught:
            cmid.adopt_passive(there, 0.05)
        assert caught.value.code == "timeout"


# -- listeners -------------------------------------------------------------------------------------


def test_waiting_for_a_request_times_out() -> None:
    with listening() as listener, pytest.raises(TimeoutError):
        listener.get_request(0.01)


def test_closing_a_listener_wakes_who_waits_for_a_request() -> None:
    with listening() as listener, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(listener.get_request, TIMEOUT)
        listener.close()
        with pytest.raises(OSError, match="closed"):
            waiting.result(TIMEOUT)


def test_a_port_in_use_is_refused_and_leaves_nothing_open() -> None:
    with listening() as listener:
        _, port = listener.getsockname()
        before = open_descriptors()
        with (
            CMID(AddrInfo(src=HOST, src_service=port, flags=1)) as second,
            pytest.raises(OSError, match="in use"),
        ):
            second.listen()
        assert open_descriptors() == before


def test_half_open_connections_are_bounded_and_real_ones_get_through_afterwards() -> None:
    with listening(backlog=20) as listener:
        before = open_descriptors()
        address = listener.getsockname()
        peers = [socket.create_connection(address, TIMEOUT) for _ in range(30)]
        # The oldest silent ones make room for the newer, at once; those that stay are waited for.
        assert [peer.recv(1) for peer in peers[:10]] == [b""] * 10
        assert open_descriptors() <= before + len(peers) + 20
        for peer in peers:
            peer.close()
        with towards(listener) as client, ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(_connect_patiently, client)
            with listener.get_request(TIMEOUT) as request:
                request.accept()
                under_way.result(TIMEOUT)


def _connect_patiently(client: CMID) -> None:
    """The listener may see the others' ends a moment later."""
    for _ in range(1000):
        try:
            client.connect(timeout=TIMEOUT)
        except ConnectionResetError:
            continue
        return
    raise AssertionError("the listener never had room")


def test_a_peer_that_talks_nonsense_does_not_disturb_a_listener() -> None:
    with listening() as listener, towards(listener) as client, ThreadPoolExecutor(1) as pool:
        for octets in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000, mpa.KEY_REPLY + bytes(4)):
            with socket.create_connection(listener.getsockname(), TIMEOUT) as peer:
                peer.sendall(octets)
                with contextlib.suppress(ConnectionResetError):  # octets of ours were unread
                    assert peer.recv(1000) == b""
        under_way = pool.submit(client.connect, None, TIMEOUT)
        with listener.get_request(TIMEOUT) as request:
            request.accept()
            under_way.result(TIMEOUT)


def test_connections_that_nobody_took_are_closed_with_the_listener() -> None:
    with (
        listening() as listener,
        socket.create_connection(listener.getsockname(), TIMEOUT) as silent,
        socket.create_connection(listener.getsockname(), TIMEOUT) as asking,
    ):
        asking.sendall(mpa.StartFrame(reply=False).emit())
        listener.close()
        for peer in (silent, asking):
            with contextlib.suppress(ConnectionResetError):  # octets of ours were unread
                assert peer.recv(1) == b""


def test_who_waits_looks_again_when_a_stream_has_come() -> None:
    looked = threading.Event()
    with listening() as listener, ThreadPoolExecutor(1) as pool:
        loop = listener.context.loop

        def half_open() -> bool:
            looked.set()
            drivers = [one for one in loop.handlers() if isinstance(one, StreamDriver)]
            return any(one.connection.state is MpaState.WAIT_REQUEST for one in drivers)

        waiting = pool.submit(listener.context.wait_for, half_open, TIMEOUT)
        assert looked.wait(TIMEOUT)
        with socket.create_connection(listener.getsockname(), TIMEOUT):
            assert waiting.result()


def test_a_request_that_nobody_answered_in_time_is_not_given_out() -> None:
    plain = socket.create_server((HOST, 0))
    plain.setblocking(False)
    with Context() as context:
        listener = Listener(context.loop, plain, 8, timeout=0.01)
        with socket.create_connection(plain.getsockname(), TIMEOUT) as peer:
            peer.sendall(mpa.StartFrame(reply=False).emit())
            assert peer.recv(1) == b""
            with context.loop.lock:
                assert listener.take() is None
                listener.close()


def test_threads_that_wait_for_requests_share_them() -> None:
    with listening() as listener, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(listener.get_request, TIMEOUT) for _ in range(4)]
        clients = [towards(listener) for _ in range(4)]
        connecting = [pool.submit(client.connect, None, TIMEOUT) for client in clients]
        for future in waiting:
            future.result(TIMEOUT).accept()
        for future in connecting:
            future.result(TIMEOUT)
        for client in clients:
            client.close()


def test_a_peer_that_is_gone_before_it_is_accepted_costs_nothing() -> None:
    with listening() as listener:
        with socket.create_connection(listener.getsockname(), TIMEOUT) as peer:
            peer.sendall(mpa.StartFrame(reply=False).emit())
            request = listener.get_request(TIMEOUT)
        side = region(request)
        qp = request.create_qp()
        side.recv(10, id=8)
        try:
            request.accept()
        except ConnectError:
            qp.close()
        else:
            assert request.wait_disconnected(TIMEOUT)
        assert [wc.wr_id for wc in qp.rcq.wait(1, TIMEOUT)] == [8]


def test_connections_go_over_ipv6_and_from_an_address_of_choice() -> None:
    with (
        CMID(AddrInfo(src="::1", src_service=0, flags=RAI_PASSIVE)) as listener,
        ThreadPoolExecutor(1) as pool,
    ):
        listener.listen()
        assert listener.getsockname()[0] == "::1"
        with towards(listener) as client:
            under_way = pool.submit(client.connect, None, TIMEOUT)
            with listener.get_request(TIMEOUT) as request:
                request.accept()
                under_way.result(TIMEOUT)
    with plain_server() as server, ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1]
        with CMID(AddrInfo(src="127.0.0.9", dst=HOST, dst_service=port)) as client:
            under_way = pool.submit(client.connect, None, TIMEOUT)
            peer, (source, _) = server.accept()
            peer.close()
            assert source == "127.0.0.9"
            with pytest.raises(OSError, match=r"closed|reset"):
                under_way.result(TIMEOUT)


def test_several_clients_share_one_listener() -> None:
    with listening() as listener, ThreadPoolExecutor(6) as pool:
        clients = [towards(listener) for _ in range(6)]
        under_way = [
            pool.submit(client.connect, ConnParam(private_data=bytes([n])), TIMEOUT)
            for n, client in enumerate(clients)
        ]
        requests = [listener.get_request(TIMEOUT) for _ in clients]
        for request in requests:
            request.accept(ConnParam(private_data=request.private_data * 2))
        for n, (client, done) in enumerate(zip(clients, under_way, strict=True)):
            done.result(TIMEOUT)
            assert client.private_data == bytes([n]) * 2
        for cmid in [*clients, *requests]:
            cmid.close()
