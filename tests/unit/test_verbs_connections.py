"""Connections over loopback sockets: how they come about, how they fail, how they end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from steertag.rdma.qp_state import QpState
from steertag.rdma.rnic import RnicLimits
from steertag.runtime.listener import Listener
from steertag.verbs import (
    CMID,
    MR,
    PD,
    SGE,
    AddrInfo,
    ConnectError,
    ConnParam,
    Context,
    SendWR,
    WcStatus,
)
from steertag.verbs.device import Progress
from steertag.verbs.enums import IBV_WR_SEND, RAI_PASSIVE
from steertag.wire import mpa
from tests.sim.ends import pattern, terminates, write_fpdu
from tests.sim.verbs import (
    ALL_ACCESS,
    HOST,
    SIZE,
    TIMEOUT,
    Side,
    connected,
    listening,
    region,
    towards,
)
from tests.support import PROJECT

MODES: list[Progress] = ["thread", "caller"]
FLUSHED = WcStatus.WR_FLUSH_ERR


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


@contextmanager
def plain_server() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as server:
        server.settimeout(TIMEOUT)
        yield server


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
    "markers": (mpa.StartFrame(reply=True, markers=True).emit(), errno.EPROTO),
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
        # Those that found no place are closed at once; the others are waited for.
        assert [peer.recv(1) for peer in peers[20:]] == [b""] * 10
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
        request.create_qp()
        side.recv(10, id=8)
        try:
            request.accept()
        except ConnectError:
            request.close()
        else:
            assert request.wait_disconnected(TIMEOUT)
        assert request.qp is not None
        assert [wc.wr_id for wc in request.qp.rcq.wait(1, TIMEOUT)] == [8]


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


# -- ends ------------------------------------------------------------------------------------------


def test_disconnecting_sends_first_what_is_posted() -> None:
    with connected(receives=2) as (client, server):
        assert client.cmid.qp is not None
        client.memory[:] = pattern(SIZE)
        for n in range(5):
            client.write(server, SIZE, id=n)
        client.send(10, id=5)
        client.cmid.disconnect()
        assert client.cmid.wait_disconnected(TIMEOUT)
        assert server.cmid.wait_disconnected(TIMEOUT)
        assert server.memory == client.memory
        assert server.cmid.get_recv_comp(0).status is WcStatus.SUCCESS
        assert server.cmid.get_recv_comp(0).status is FLUSHED
        statuses = [client.cmid.get_send_comp(0).status for _ in range(6)]
        assert statuses == [WcStatus.SUCCESS] * 6
        assert client.cmid.qp.end_reason == "closed"


def test_both_sides_may_disconnect_at_once_and_twice() -> None:
    with connected() as (client, server):
        for side in (client, server, client, server):
            side.cmid.disconnect()
        for side in (client, server):
            assert side.cmid.wait_disconnected(TIMEOUT)
            side.cmid.disconnect()


@pytest.mark.parametrize("progress", MODES)
def test_a_peer_that_never_closes_its_side_is_not_waited_for(progress: Progress) -> None:
    with (
        plain_server() as server,
        Context(progress=progress) as context,
        CMID(AddrInfo(dst=HOST, dst_service=server.getsockname()[1]), pd=PD(context)) as cmid,
        ThreadPoolExecutor(1) as pool,
    ):
        under_way = pool.submit(cmid.connect, None, TIMEOUT)
        peer, _ = server.accept()
        with peer:
            peer.sendall(mpa.StartFrame(reply=True, revision=2).emit())
            under_way.result(TIMEOUT)
            cmid.disconnect()
            assert cmid.wait_disconnected(TIMEOUT)


def test_closing_one_side_flushes_the_other() -> None:
    with connected(receives=3) as (client, server):
        client.cmid.close()
        assert server.cmid.wait_disconnected(TIMEOUT)
        assert [server.cmid.get_recv_comp(0).status for _ in range(3)] == [FLUSHED] * 3


def test_a_terminate_reaches_the_peer_although_the_stream_closes_right_behind_it() -> None:
    with connected() as (client, server):
        assert client.cmid.qp is not None
        assert server.cmid.qp is not None
        client.recv(10, id=4)
        for n in range(30):
            client.write(server, SIZE, id=n, remote=1 if n == 3 else 0)
        assert client.cmid.wait_disconnected(TIMEOUT)
        assert server.cmid.wait_disconnected(TIMEOUT)
        assert client.cmid.qp.counters.terminates_received == 1
        assert "Terminate" in client.cmid.qp.end_reason
        assert "outside STag" in server.cmid.qp.end_reason
        (flushed,) = client.cmid.qp.rcq.wait(1, 0)
        assert (flushed.status, flushed.vendor_err) == (FLUSHED, 0x1101)


def until(holds: Callable[[], bool]) -> None:
    """Wait for memory that a peer writes: RDMA has no event for that."""
    never = threading.Event()
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline
        never.wait(0.001)


def raw_peer(listener: CMID, pool: ThreadPoolExecutor) -> tuple[socket.socket, CMID]:
    """A plain socket that has done MPA set-up with what the listener made of it."""
    peer = socket.create_connection(listener.getsockname(), TIMEOUT)
    peer.sendall(mpa.StartFrame(reply=False).emit())
    server = listener.get_request(TIMEOUT)
    server.accept(ConnParam(crc=True))
    assert peer.recv(1000).startswith(mpa.KEY_REPLY)
    return peer, server


def test_what_a_refused_peer_reads_is_the_terminate_and_then_the_end() -> None:
    with listening() as listener, ThreadPoolExecutor(1) as pool:
        peer, server = raw_peer(listener, pool)
        with peer, server:
            peer.sendall(write_fpdu(77, 77, b"x") + bytes(50_000))
            octets = b""
            while part := peer.recv(1000):
                octets += part
            (terminate,) = terminates(octets)
            assert (terminate.layer, terminate.etype, terminate.code) == (1, 1, 0)
            peer.close()
            assert server.wait_disconnected(TIMEOUT)


def test_deregistering_under_a_stalled_write_ends_the_connection_without_the_peers_help() -> None:
    with listening() as listener, ThreadPoolExecutor(1) as pool:
        peer, server = raw_peer(listener, pool)
        with peer, server:
            buffer = bytearray(SIZE)
            mr = MR(server.pd, buffer, ALL_ACCESS)
            peer.sendall(write_fpdu(mr.rkey, mr.buf, b"\xff" * 60_000)[:30_000])
            until(lambda: buffer[29_000] == 0xFF)
            mr.close()
            buffer.clear()
            octets = b""
            while part := peer.recv(1000):
                octets += part
            (terminate,) = terminates(octets)
            assert (terminate.layer, terminate.etype, terminate.code) == (1, 1, 0)


def test_a_peer_that_resets_the_stream_flushes_what_is_posted() -> None:
    with listening() as listener, ThreadPoolExecutor(1) as pool:
        peer, server = raw_peer(listener, pool)
        with peer, server:
            side = region(server)
            side.recv(10, id=1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            peer.close()
            wc = server.get_recv_comp(TIMEOUT)
            assert (wc.wr_id, wc.status) == (1, FLUSHED)
            assert server.wait_disconnected(TIMEOUT)
            assert server.qp is not None
            assert "reset" in server.qp.end_reason


def test_posting_to_a_stream_that_takes_nothing_does_not_wait() -> None:
    """The peer doesn't read: requests stay posted, and are flushed when it is gone."""
    with listening() as listener, ThreadPoolExecutor(1) as pool:
        peer, server = raw_peer(listener, pool)
        with peer, server:
            side = region(server)
            peer.sendall(write_fpdu(1, 1, b""))  # the active side speaks first
            for n in range(60):
                side.write(side, SIZE, id=n)
            done = 0
            peer.close()
            assert server.wait_disconnected(TIMEOUT)
            assert server.qp is not None
            completed = server.qp.scq.wait(100, 0)
            assert [wc.wr_id for wc in completed] == list(range(60))
            done = sum(wc.status is WcStatus.SUCCESS for wc in completed)
            assert done < 60


def test_a_peer_that_does_not_read_its_terminate_is_not_waited_for() -> None:
    with listening() as listener, ThreadPoolExecutor(1) as pool:
        peer, server = raw_peer(listener, pool)
        with peer, server:
            side = region(server)
            peer.sendall(write_fpdu(1, 1, b""))
            for n in range(60):
                side.write(side, SIZE, id=n)
            peer.sendall(write_fpdu(77, 77, b"no such STag"))
            assert server.wait_disconnected(TIMEOUT)
            assert server.qp is not None
            assert "protocol error" in server.qp.end_reason
            assert [wc.wr_id for wc in server.qp.scq.wait(100, 0)] == list(range(60))


CHILD = """
import sys
from steertag.verbs import CMID, MR, SGE, AddrInfo, SendWR
cmid = CMID(AddrInfo(dst="127.0.0.1", dst_service=int(sys.argv[1])))
cmid.connect(timeout=60)
key, address = cmid.private_data.split()
mr = MR(cmid.pd, 1 << 20, 7)
for n in range(1 << 60):
    cmid.post_write(mr, 1 << 20, int(address), int(key))
    cmid.get_send_comp(60)
    if n == 10:
        cmid.post_send(mr, length=1)
        cmid.get_send_comp(60)
"""


def test_a_peer_killed_in_mid_transfer_flushes_what_is_posted() -> None:
    with (
        listening() as listener,
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(listener.getsockname()[1])],
            env={**os.environ, "PYTHONPATH": str(PROJECT / "src")},
            stderr=subprocess.PIPE,
        ) as child,
        listener.get_request(TIMEOUT) as server,
    ):
        side = region(server)
        server.create_qp()
        for n in (3, 4):
            side.recv(10, id=n)
        server.accept(ConnParam(private_data=f"{side.mr.rkey} {side.mr.buf}".encode()))
        assert server.get_recv_comp(TIMEOUT).status is WcStatus.SUCCESS
        child.send_signal(signal.SIGKILL)
        wc = server.get_recv_comp(TIMEOUT)
        assert (wc.wr_id, wc.status) == (4, FLUSHED)
        assert server.wait_disconnected(TIMEOUT)
        assert server.qp is not None
        assert "peer closed" in server.qp.end_reason or "reset" in server.qp.end_reason


# -- threads ---------------------------------------------------------------------------------------


def test_threads_post_on_one_queue_pair_and_others_poll() -> None:
    each, posters = 150, 4
    with connected() as (client, server):
        assert client.cmid.qp is not None
        qp, scq = client.cmid.qp, client.cmid.qp.scq
        room = threading.Semaphore(200)

        def post(who: int) -> None:
            for n in range(each):
                room.acquire()
                size = 64 if n % 3 else 20_000
                client.write(server, size, local=0, remote=who * 20_000, id=who * each + n)

        seen: list[int] = []
        lock = threading.Lock()

        def poll() -> None:
            while len(seen) < each * posters:
                for wc in scq.wait(16, 0.05):
                    assert wc.status is WcStatus.SUCCESS
                    with lock:
                        seen.append(wc.wr_id)
                    room.release()

        with ThreadPoolExecutor(posters + 2) as pool:
            work = [pool.submit(post, who) for who in range(posters)]
            work += [pool.submit(poll) for _ in range(2)]
            for future in work:
                future.result(TIMEOUT)
        assert sorted(seen) == list(range(each * posters))
        assert qp.state is QpState.RTS


def test_threads_use_several_connections_of_one_context() -> None:
    with Context() as here, Context() as there, listening(PD(there)) as listener:
        pd = PD(here)

        def talk(n: int) -> bytes:
            with towards(listener, pd) as client:
                client.connect(ConnParam(private_data=bytes([n])), TIMEOUT)
                side = region(client, 100_000)
                key, address = client.private_data.split()
                side.memory[:] = bytes([n]) * 100_000
                client.post_write(side.mr, 100_000, int(address), int(key))
                assert client.get_send_comp(TIMEOUT).status is WcStatus.SUCCESS
                client.post_read(side.mr, 1, int(address), int(key))
                assert client.get_send_comp(TIMEOUT).status is WcStatus.SUCCESS
                client.disconnect()
                assert client.wait_disconnected(TIMEOUT)
                return bytes(side.memory[:2])

        sides: list[Side] = []
        with ThreadPoolExecutor(5) as pool:
            work = [pool.submit(talk, n) for n in range(5)]
            for _ in work:
                request = listener.get_request(TIMEOUT)
                sides.append(side := region(request, 100_000))
                param = ConnParam(private_data=f"{side.mr.rkey} {side.mr.buf}".encode())
                request.accept(param)
            assert [future.result(TIMEOUT) for future in work] == [bytes([n]) * 2 for n in range(5)]
        for side in sides:
            n = side.cmid.private_data[0]
            assert side.memory == bytes([n]) * 100_000
            side.cmid.close()


def test_posting_and_closing_in_different_threads_completes_everything_once() -> None:
    for _ in range(5):
        with connected() as (client, server):
            assert client.cmid.qp is not None
            qp = client.cmid.qp
            started, posted = threading.Event(), []

            def post(
                client: Side = client,
                server: Side = server,
                posted: list[int] = posted,
                started: threading.Event = started,
            ) -> None:
                for n in range(300):
                    try:
                        client.write(server, 8, id=n)
                    except OSError:
                        break  # closing already
                    posted.append(n)
                    started.set()

            with ThreadPoolExecutor(1) as pool:
                work = pool.submit(post)
                assert started.wait(TIMEOUT)
                client.cmid.disconnect()
                work.result(TIMEOUT)
            assert client.cmid.wait_disconnected(TIMEOUT)
            assert [wc.wr_id for wc in qp.scq.wait(1000, 0)] == posted


def test_a_request_naming_a_closed_region_fails_and_ends_the_connection() -> None:
    with connected() as (client, server):
        assert client.cmid.qp is not None
        buf, lkey = client.mr.buf, client.mr.lkey
        client.mr.close()
        wr = SendWR(5, sg=[SGE(buf, 8, lkey)], opcode=IBV_WR_SEND)
        client.cmid.qp.post_send(wr)
        assert client.cmid.get_send_comp(TIMEOUT).status is WcStatus.LOC_PROT_ERR
        assert client.cmid.wait_disconnected(TIMEOUT)
        assert server.cmid.wait_disconnected(TIMEOUT)
