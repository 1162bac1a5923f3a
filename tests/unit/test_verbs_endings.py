"""Connections over loopback sockets: how they end, and what many threads do to them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from steertag.rdma.qp_state import QpState
from steertag.verbs import (
    CMID,
    MR,
    PD,
    SGE,
    AddrInfo,
    ConnParam,
    Context,
    SendWR,
    WcStatus,
)
from steertag.verbs.device import Progress
from steertag.verbs.enums import IBV_WR_SEND
from steertag.wire import mpa
from tests.sim.ends import pattern, terminates, write_fpdu
from tests.sim.verbs import (
    ALL_ACCESS,
    HOST,
    MODES,
    SIZE,
    TIMEOUT,
    Side,
    connected,
    listening,
    plain_server,
    region,
    towards,
)
from tests.support import PROJECT

FLUSHED = WcStatus.WR_FLUSH_ERR


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
            words = mpa.Enhanced(ird=1, ord=1).emit()
            peer.sendall(mpa.StartFrame(reply=True, enhanced=True, private_data=words).emit())
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
