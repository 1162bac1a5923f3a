"""Peers of a whole Context: what they leave behind, and what they take from one another."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from steertag.rdma.connection import Connection
from steertag.rdma.qp_state import QpState
from steertag.runtime.driver import StreamDriver
from steertag.runtime.loop import Loop
from steertag.verbs import CMID, CQ, Context, QPCap, QPInitAttr
from steertag.verbs.enums import IBV_EVENT_CQ_ERR, IBV_EVENT_QP_ACCESS_ERR
from steertag.verbs.events import AsyncEvent
from steertag.wire import mpa, rdmap
from tests.security.measure import peak_of
from tests.sim.ends import SIZE, End, lone, pattern, read_request_fpdu, send_fpdu, write_fpdu
from tests.sim.verbs import TIMEOUT, listening, region

MIB = 1 << 20


def waiting(context: Context) -> list[AsyncEvent]:
    """The asynchronous events that are there now."""
    events: list[AsyncEvent] = []
    with contextlib.suppress(TimeoutError):
        while True:
            events.append(context.get_async_event(0))
    return events


@contextlib.contextmanager
def attacked(
    listener: CMID, init: QPInitAttr | None = None
) -> Iterator[tuple[socket.socket, CMID]]:
    """A plain socket that has been accepted as a peer, and our end."""
    request = mpa.StartFrame(reply=False, crc=True, revision=1).emit()
    with socket.create_connection(listener.getsockname(), TIMEOUT) as peer:
        peer.sendall(request)
        with listener.get_request(TIMEOUT) as server:
            if init is not None:
                server.create_qp(init)
            server.accept()
            assert peer.recv(mpa.START_LEN, socket.MSG_WAITALL)
            yield peer, server


def ended(server: CMID) -> bool:
    """The connection carries nothing any more, once the loop has seen what the peer sent."""
    assert server.qp is not None
    core = server.qp.core
    return server.context.wait_for(lambda: core.state is QpState.ERROR, TIMEOUT)


# -- what peers leave behind -----------------------------------------------------------------------


def test_events_that_nobody_takes_go_with_the_connections_that_caused_them() -> None:
    with listening() as listener:
        context = listener.context
        for _ in range(20):
            with attacked(listener) as (peer, server):
                peer.sendall(write_fpdu(77, 77, b"no such STag") * 50)
                assert ended(server)
                with context.loop.lock:
                    assert len(context.events) == 1
            with context.loop.lock:
                assert len(context.events) == 0
        assert not context.rnic.qps


def test_one_misbehaving_connection_is_one_event() -> None:
    with listening() as listener, attacked(listener) as (peer, server):
        peer.sendall(write_fpdu(77, 77, b"no such STag") * 50)
        assert ended(server)
        (event,) = waiting(server.context)
        assert event.event_type == IBV_EVENT_QP_ACCESS_ERR
        assert event.element is server.qp


def test_an_overrun_is_one_event_however_many_completions_are_lost() -> None:
    """The queue is too small for what was posted to it: then its connections end."""
    with listening() as listener:
        context = listener.context
        cq, other = CQ(context, 4), CQ(context, 100)
        init = QPInitAttr(scq=other, rcq=cq, cap=QPCap(max_recv_wr=100))
        with attacked(listener, init) as (peer, server), attacked(listener) as (_, fine):
            side = region(server)
            for n in range(100):
                side.recv(10, 0, n)
            peer.shutdown(socket.SHUT_WR)
            assert ended(server)
            assert cq.overrun
            assert [event.event_type for event in waiting(context)] == [IBV_EVENT_CQ_ERR]
            assert len(cq.poll(100)[1]) == 4
            # Who uses other queues is not concerned.
            assert fine.qp is not None
            assert fine.qp.state is QpState.RTS


# -- what peers take from one another --------------------------------------------------------------


def hostile_and_other(loop: Loop) -> tuple[list[End], list[StreamDriver], list[socket.socket]]:
    """Two connections on one loop: our ends, their drivers, and the peers' sockets."""
    ends, drivers, peers = [], [], []
    for seed in (1, 2):
        mine, peer = socket.socketpair()
        end = lone(seed=seed, crc=False)
        with loop.lock:
            drivers.append(StreamDriver(loop, Connection.established(end.qp, loop.clock()), mine))
        peer.setblocking(False)
        ends.append(end)
        peers.append(peer)
    return ends, drivers, peers


@contextlib.contextmanager
def two_peers() -> Iterator[tuple[Loop, list[End], list[socket.socket]]]:
    loop = Loop()
    ends, drivers, peers = hostile_and_other(loop)
    yield loop, ends, peers
    with loop.lock:
        for driver in drivers:
            driver.close()
    for peer in peers:
        peer.close()
    loop.close()


def fill(peer: socket.socket, octets: memoryview) -> memoryview:
    """Send all that the stream takes; what is left."""
    with contextlib.suppress(BlockingIOError):
        while octets:
            octets = octets[peer.send(octets) :]
    return octets


def test_a_peer_that_floods_does_not_keep_another_waiting() -> None:
    nothing = b"".join(mpa.emit_fpdu([write_fpdu(1, 0, b"")[2:16]], crc=False))
    flood = memoryview(nothing * 200_000)
    with two_peers() as (loop, (hostile, other), (attacker, peer)):
        served = 0
        for turn in range(10):
            flood = fill(attacker, flood)
            assert flood, "the flood ran dry"
            write = write_fpdu(other.region.stag, other.region.base + turn, bytes([turn + 1]))
            peer.send(write)
            before = hostile.qp.counters.rx_fpdus
            while not other.memory[turn]:
                assert loop.run_once(0)
                served += 1
                flood = fill(attacker, flood)
            assert hostile.qp.counters.rx_fpdus - before < 250_000
        assert served <= 20
        assert hostile.qp.state is QpState.RTS


def test_a_peer_that_asks_and_does_not_read_keeps_nobody_waiting() -> None:
    with two_peers() as (loop, (hostile, other), (attacker, peer)):
        request = rdmap.ReadRequest(9, 9, SIZE, hostile.region.stag, hostile.region.base)
        ask = b"".join(read_request_fpdu(request, msn) for msn in range(1, 17))

        def stall() -> None:
            attacker.send(ask)
            peer.send(write_fpdu(other.region.stag, other.region.base, pattern(1000)))
            for _ in range(20):
                loop.run_once(0)

        # 16 Reads of 300 KB are owed, and none of it is copied.
        assert peak_of(stall) < MIB // 2
        assert other.memory[:1000] == pattern(1000)
        assert len(hostile.qp.tx.responses) >= 12
        assert hostile.qp.state is QpState.RTS
        assert not loop.run_once(0)


def test_a_peer_that_ends_badly_ends_only_itself() -> None:
    with (
        listening() as listener,
        attacked(listener) as (peer, server),
        attacked(listener) as (other, fine),
    ):
        assert fine.qp is not None
        side = region(fine)
        side.recv(10, 0, 5)
        peer.sendall(bytes(1000))
        assert ended(server)
        other.sendall(write_fpdu(side.mr.rkey, side.mr.buf + 100, b"fine") + send_fpdu(b"done"))
        assert [wc.wr_id for wc in fine.qp.rcq.wait(1, TIMEOUT)] == [5]
        assert side.memory[100:104] == b"fine"
        assert fine.qp.state is QpState.RTS
