"""The driver of a stream, the listener and the loop: who is waited for, and for how long."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from steertag.rdma.connection import REQUEST_TIMEOUT, Connection, Offer
from steertag.rdma.constants import WcStatus
from steertag.rdma.mpa_state import MpaState
from steertag.rdma.qp_state import QpState
from steertag.rdma.rtr import ulpdu_of
from steertag.runtime.driver import CLOSE_OCTETS, CLOSE_TIMEOUT, StreamDriver
from steertag.runtime.listener import Listener, respond
from steertag.runtime.loop import Loop
from steertag.runtime.stream import Stream
from steertag.wire import mpa
from tests.sim.ends import SIZE, End, ids, lone, send_fpdu, write_fpdu

TIMEOUT = 20.0
HOST = "127.0.0.1"
REQUEST = mpa.StartFrame(reply=False).emit()


class Recorder:
    """A tap that keeps what it sees."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.into = bytearray()

    def sent(self, data: bytes) -> None:
        self.out += data

    def received(self, data: bytes) -> None:
        self.into += data

    def close(self) -> None:
        """Nothing to end."""


class Clock:
    """A loop's clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ticker:
    """A handler without traffic, with a time of its own."""

    def __init__(self, loop: Loop, deadline: float | None) -> None:
        self.loop = loop
        self.ends = socket.socketpair()
        self.deadline = deadline
        self.asked = 0
        self.fired: list[float] = []
        loop.add(self)

    def fileno(self) -> int:
        return self.ends[0].fileno()

    def pump(self) -> bool:
        return False

    def block(self, timeout: float | None) -> bool | None:
        return None

    def glance(self, timeout: float | None) -> bool:
        return False

    def handle_timer(self, now: float) -> None:
        self.fired.append(now)
        self.deadline = None

    def close(self) -> None:
        self.loop.remove(self)
        for end in self.ends:
            end.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(Clock())
    yield loop
    loop.close()


def forward(loop: Loop, seconds: float) -> None:
    """Let time pass, and the loop notice."""
    assert isinstance(loop.clock, Clock)
    loop.clock.now += seconds
    loop.run_once(0)


@contextlib.contextmanager
def responding(loop: Loop) -> Iterator[tuple[Connection, StreamDriver, socket.socket]]:
    """A connection that waits for its Request, and the stream of its peer."""
    mine, peer = socket.socketpair()
    peer.settimeout(TIMEOUT)
    with loop.lock:
        connection, driver = respond(loop, mine, loop.notify)
    yield connection, driver, peer
    with loop.lock:
        driver.close()
    peer.close()


def readable(peer: socket.socket) -> bool:
    return bool(select.select([peer], [], [], TIMEOUT)[0])


# -- taps, and connections without a set-up --------------------------------------------------------


def test_two_queue_pairs_that_know_each_other_talk_without_a_set_up() -> None:
    loop, ends, tap = Loop(), [lone(seed=1), lone(seed=2)], Recorder()
    streams = socket.socketpair()
    drivers = [
        StreamDriver(loop, Connection.established(end.qp, loop.clock()), stream, tap_for=tap_for)
        for end, stream, tap_for in zip(ends, streams, (lambda _: tap, lambda _: None), strict=True)
    ]
    a, b = ends
    a.memory[:5] = b"hello"
    a.write(b.region, 0, 0, 5)
    with loop.lock:
        drivers[0].flush()
    assert loop.wait_for(lambda: b.memory[:5] == b"hello", TIMEOUT)
    assert bytes(tap.out) == write_fpdu(b.region.stag, b.region.base, b"hello")
    with loop.lock:
        for driver in drivers:
            driver.close()
    loop.close()


def test_a_listener_asks_for_a_tap_on_each_connection() -> None:
    loop, taps = Loop(), dict[Stream, Recorder]()
    plain = socket.create_server((HOST, 0))
    plain.setblocking(False)

    def tap_for(stream: Stream) -> Recorder:
        return taps.setdefault(stream, Recorder())

    listener = Listener(loop, plain, 8, tap_for=tap_for)
    request = mpa.StartFrame(reply=False, private_data=b"tapped").emit()
    with socket.create_connection(plain.getsockname(), TIMEOUT) as peer:
        peer.sendall(request)
        assert loop.wait_for(lambda: bool(listener.requests), TIMEOUT)
        with loop.lock:
            taken = listener.take()
            assert taken is not None
            connection, driver = taken
            assert connection.state is MpaState.REQUESTED
            connection.reject()
            driver.flush()
        answer = peer.recv(100)
    (tap,) = taps.values()
    assert (bytes(tap.into), bytes(tap.out)) == (request, answer)
    with loop.lock:
        driver.close()
        listener.close()
    loop.close()


# -- peers that are slow, silent or gone -----------------------------------------------------------


def test_a_request_that_comes_an_octet_a_second_is_late(loop: Loop) -> None:
    with responding(loop) as (connection, driver, peer):
        for at in range(len(REQUEST)):
            if driver.closed or connection.state is MpaState.FAILED:
                break
            peer.sendall(REQUEST[at : at + 1])
            forward(loop, 1.0)
        assert at == REQUEST_TIMEOUT
        assert (connection.state, connection.code) == (MpaState.FAILED, "timeout")
        assert peer.recv(1) == b""


@pytest.mark.parametrize("how", ["closes", "shuts its side"])
def test_a_peer_that_leaves_while_its_request_waits_is_noticed(loop: Loop, how: str) -> None:
    with responding(loop) as (connection, driver, peer):
        peer.sendall(REQUEST + b"and more, which nobody has read")
        assert loop.wait_for(lambda: connection.state is MpaState.REQUESTED, TIMEOUT)
        if how == "closes":
            peer.close()
        else:
            peer.shutdown(socket.SHUT_WR)
        assert loop.wait_for(lambda: connection.state is MpaState.FAILED, TIMEOUT)
        assert connection.code == "closed"
        assert driver.closed


def test_a_request_that_waits_costs_no_wake_ups(loop: Loop) -> None:
    """Octets behind it are the queue pair's, which isn't there yet."""
    with responding(loop) as (connection, _, peer):
        peer.sendall(REQUEST + b"and more, which nobody has read")
        assert loop.wait_for(lambda: connection.state is MpaState.REQUESTED, TIMEOUT)
        assert not loop.run_once(0)
        assert not loop.run_once(0)
        assert connection.state is MpaState.REQUESTED


def established(loop: Loop, peer: socket.socket, mine: socket.socket) -> tuple[End, StreamDriver]:
    end = lone(crc=False)
    with loop.lock:
        return end, StreamDriver(loop, Connection.established(end.qp, loop.clock()), mine)


def test_closing_waits_for_a_peer_that_reads_and_gives_up_on_one_that_does_not(loop: Loop) -> None:
    mine, peer = socket.socketpair()
    end, driver = established(loop, peer, mine)
    for wr_id in range(20):
        end.write(end.region, 0, 0, SIZE, wr_id=wr_id)
    with loop.lock:
        driver.flush()
        end.qp.close()
        driver.settle()
    assert end.qp.state is QpState.CLOSING
    for _ in range(3):  # a reader that is slow, but reads
        got = 0
        while got < 2 * CLOSE_OCTETS:
            got += len(peer.recv(CLOSE_OCTETS))
            loop.run_once(0)
        forward(loop, CLOSE_TIMEOUT - 1)
        assert end.qp.state is QpState.CLOSING
    for _ in range(int(CLOSE_TIMEOUT)):  # an octet a second
        peer.recv(1)
        forward(loop, 1.0)
    assert driver.closed
    assert end.qp.ended
    done = ids(end.sent())
    assert [wr_id for wr_id, _ in done] == list(range(20))
    assert done[-1][1] is WcStatus.WR_FLUSH_ERR
    peer.close()


def test_what_waits_for_ready_to_receive_leaves_with_its_answer(loop: Loop) -> None:
    """The Read Response and what was posted meanwhile leave in one go, without another event."""
    end = End(2)
    with responding(loop) as (connection, driver, peer):
        offer = Offer(peer_to_peer=True, rtr=("read",), crc=False)
        peer.sendall(offer.request().emit())
        assert loop.wait_for(lambda: connection.state is MpaState.REQUESTED, TIMEOUT)
        with loop.lock:
            connection.accept(end.qp, Offer(crc=False), loop.clock())
            driver.flush()
        reply = mpa.StartFrame.parse(peer.recv(1000))
        assert reply is not None
        end.write(end.region, 0, 0, 100)
        peer.sendall(b"".join(mpa.emit_fpdu([ulpdu_of("read")], crc=False)))
        assert loop.wait_for(lambda: connection.state is MpaState.ESTABLISHED, TIMEOUT)
        octets = b""
        while len(octets) < 20 + mpa.fpdu_len(114):
            octets += peer.recv(1000)
        assert len(octets) == 20 + mpa.fpdu_len(114)
        assert connection.engine is end.qp


def test_early_octets_in_one_piece_with_the_reply_are_taken(loop: Loop) -> None:
    """RFC 5044 forbids the responder to send so early; Linux's siw would break the connection."""
    end = End(1)
    mine, peer = socket.socketpair()
    end.recv((0, 100))
    with loop.lock:
        connection = Connection.initiate(end.qp, Offer(), loop.clock())
        driver = StreamDriver(loop, connection, mine)
    words = mpa.Enhanced(ird=1, ord=1).emit()
    reply = mpa.StartFrame(reply=True, enhanced=True, private_data=words).emit()
    peer.sendall(reply + send_fpdu(b"early"))
    assert loop.wait_for(lambda: end.qp.counters.rx_fpdus > 0, TIMEOUT)
    assert [wc.byte_len for wc in end.got()] == [5]
    with loop.lock:
        driver.close()
    peer.close()


# -- the backlog -----------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(loop: Loop, backlog: int) -> Iterator[tuple[Listener, tuple[str, int]]]:
    plain = socket.create_server((HOST, 0))
    plain.setblocking(False)
    with loop.lock:
        listener = Listener(loop, plain, backlog)
    yield listener, plain.getsockname()
    with loop.lock:
        listener.close()


def test_silent_connections_make_room_for_those_that_ask(loop: Loop) -> None:
    with contextlib.ExitStack() as stack, listening(loop, 4) as (listener, address):

        def connect() -> socket.socket:
            peer = stack.enter_context(socket.create_connection(address, TIMEOUT))
            return peer

        silent = [connect() for _ in range(10)]
        assert loop.wait_for(lambda: listener.dropped == 6, TIMEOUT)
        assert [peer.recv(1) for peer in silent[:6]] == [b""] * 6
        asking = connect()
        asking.sendall(REQUEST)
        assert loop.wait_for(lambda: bool(listener.requests), TIMEOUT)
        assert (listener.dropped, listener.refused) == (7, 7)


def test_requests_that_wait_for_the_application_are_not_dropped(loop: Loop) -> None:
    with contextlib.ExitStack() as stack, listening(loop, 3) as (listener, address):
        for _ in range(3):
            peer = stack.enter_context(socket.create_connection(address, TIMEOUT))
            peer.sendall(REQUEST)
        assert loop.wait_for(lambda: len(listener.requests) == 3, TIMEOUT)
        late = stack.enter_context(socket.create_connection(address, TIMEOUT))
        assert loop.wait_for(lambda: listener.refused == 1, TIMEOUT)
        assert late.recv(1) == b""
        assert listener.dropped == 0
        assert len(listener.requests) == 3


# -- the loop's timers -----------------------------------------------------------------------------


def test_each_handlers_timer_fires_once_when_its_time_has_come(loop: Loop) -> None:
    tickers = [Ticker(loop, 1000.0 + after) for after in (3, 1, 2, 1)]
    assert loop.deadline == 1001.0
    forward(loop, 0.5)
    assert [ticker.fired for ticker in tickers] == [[], [], [], []]
    forward(loop, 0.5)
    assert [ticker.fired for ticker in tickers] == [[], [1001.0], [], [1001.0]]
    forward(loop, 5)
    forward(loop, 5)
    assert [len(ticker.fired) for ticker in tickers] == [1, 1, 1, 1]
    assert loop.deadline is None
    for ticker in tickers:
        ticker.close()


def test_a_timer_may_be_put_off_brought_forward_or_given_up(loop: Loop) -> None:
    later, sooner, never = (Ticker(loop, 1010.0) for _ in range(3))
    later.deadline = 1020.0
    sooner.deadline = 1005.0
    with loop.lock:
        loop.schedule(sooner)
    never.deadline = None
    assert loop.deadline == 1005.0
    forward(loop, 5)
    assert (later.fired, sooner.fired) == ([], [1005.0])
    assert loop.deadline == 1020.0
    forward(loop, 10)
    assert later.fired == []
    forward(loop, 5)
    assert later.fired == [1020.0]
    assert never.fired == []
    for ticker in (later, sooner, never):
        ticker.close()


def test_a_handler_that_was_removed_is_not_told_the_time(loop: Loop) -> None:
    ticker = Ticker(loop, 1001.0)
    ticker.close()
    forward(loop, 5)
    assert ticker.fired == []
    assert loop.deadline is None


def test_idle_handlers_without_a_deadline_are_not_looked_at(loop: Loop) -> None:
    """Ten thousand of them must not slow an active one."""

    class Idle(Ticker):
        looks = 0

        @property
        def deadline(self) -> None:
            Idle.looks += 1

        @deadline.setter
        def deadline(self, value: float | None) -> None:
            assert value is None

    idle = [Idle(loop, None) for _ in range(50)]
    active = Ticker(loop, 1100.0)
    before = Idle.looks
    for _ in range(100):
        active.ends[1].send(b"x")
        loop.run_once(0)
    assert Idle.looks == before
    for ticker in [*idle, active]:
        ticker.close()


def test_a_bug_met_by_one_handler_ends_that_one_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Ticker):
        def pump(self) -> bool:
            raise ZeroDivisionError("a bug")

        def close(self) -> None:
            super().close()
            self.loop.notify()

    class Counting(Ticker):
        def pump(self) -> bool:
            self.asked += len(self.ends[0].recv(10))
            self.loop.notify()
            return True

    loop = Loop()
    faulty, other = Faulty(loop, None), Counting(loop, None)
    try:
        loop.start()
        faulty.ends[1].send(b"x")
        assert loop.wait_for(lambda: not any(h is faulty for h in loop.handlers()), TIMEOUT)
        other.ends[1].send(b"abc")
        assert loop.wait_for(lambda: other.asked == 3, TIMEOUT)
        assert "ends a connection" in caplog.text
        assert "ZeroDivisionError" in caplog.text
    finally:
        other.close()
        loop.close()


def test_a_program_that_drives_the_loop_gets_the_exception_itself() -> None:
    class Faulty(Ticker):
        def pump(self) -> bool:
            raise ZeroDivisionError("a bug")

    loop = Loop()
    faulty = Faulty(loop, None)
    faulty.ends[1].send(b"x")
    with pytest.raises(ZeroDivisionError):
        loop.run_once(TIMEOUT)
    faulty.close()
    loop.close()
