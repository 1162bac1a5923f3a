"""The driver of a stream, and the listener: who sees the octets, and what a connection costs."""

from __future__ import annotations

import socket

from steertag.rdma.connection import Connection
from steertag.rdma.mpa_state import MpaState
from steertag.runtime.driver import StreamDriver
from steertag.runtime.listener import Listener
from steertag.runtime.loop import Loop
from steertag.runtime.stream import Stream
from steertag.wire import mpa
from tests.sim.ends import lone, write_fpdu

TIMEOUT = 20.0
HOST = "127.0.0.1"


class Recorder:
    """A tap that keeps what it sees."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.into = bytearray()
        self.closed = False

    def sent(self, data: bytes) -> None:
        self.out += data

    def received(self, data: bytes) -> None:
        self.into += data

    def close(self) -> None:
        self.closed = True


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
    assert not tap.closed
    with loop.lock:
        driver.close()
        listener.close()
    assert tap.closed
    loop.close()
