"""Octets of a large Read are waited for in parts (SO_RCVLOWAT of the stream): it never hangs."""

from __future__ import annotations

import socket as std
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from steertag import AF_INET_SDP, Stack, socket
from steertag.runtime.sdp import fabric_of, register
from steertag.runtime.sdp_link import FAIR
from steertag.runtime.sdp_transport import HostTransport
from steertag.sdp.sock import sdp_sk
from steertag.wire import sdp
from tests.sdp.world import eventually, read_exactly
from tests.unit.test_sdp_conformance import LOOPBACK, close_stacks, opened

__all__ = ["close_stacks"]
PATIENCE = 30.0
SIZE = 8 << 20
DATA = bytes(range(256)) * (SIZE // 256)
ADVERTISED = sdp.mid_index(sdp.SRC_AVAIL)
RESET = struct.pack("@ii", 1, 0)


def a_stack() -> Stack:
    stack = opened()
    register(stack)
    # Who waits advertises no sink: large data is read.
    stack.sysctl["net.sdp.sink_thresh"] = 0
    return stack


class Narrow:
    """The way between two ends: of what the sender says it lets so many octets through."""

    def __init__(self, server: tuple[str, int], octets: int) -> None:
        self._go = threading.Condition()
        self._allowed = octets
        self.listener = std.create_server(LOOPBACK)
        self.out = std.create_connection(server)
        self.inner: std.socket | None = None
        self._threads = [threading.Thread(target=self._forth)]
        self._threads[0].start()

    def let_pass(self, octets: int) -> None:
        with self._go:
            self._allowed += octets
            self._go.notify()

    def die(self) -> None:
        """Both ends find the connection reset."""
        for end in (self.out, self.inner):
            if end is not None:
                with suppress(OSError):
                    end.setsockopt(std.SOL_SOCKET, std.SO_LINGER, RESET)
                    end.shutdown(std.SHUT_RD)  # which ends the threads' calls
        self.let_pass(1 << 30)

    def _forth(self) -> None:
        self.inner, _ = self.listener.accept()
        self._threads.append(threading.Thread(target=self._back))
        self._threads[1].start()
        with suppress(OSError):
            while part := self.inner.recv(65536):
                while part:
                    with self._go:
                        assert self._go.wait_for(lambda: self._allowed, PATIENCE)
                        count = min(len(part), self._allowed)
                        self._allowed -= count
                    self.out.sendall(part[:count])
                    part = part[count:]
        with suppress(OSError):
            self.out.shutdown(std.SHUT_WR)

    def _back(self) -> None:
        assert self.inner is not None  # accepted
        with suppress(OSError):
            while part := self.out.recv(65536):
                self.inner.sendall(part)
        with suppress(OSError):
            self.inner.shutdown(std.SHUT_WR)

    def close(self) -> None:
        self.die()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        for end in (self.listener, self.out, self.inner):
            if end is not None:
                end.close()


class Call:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._result: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except OSError as exc:
            self._result = exc

    def result(self) -> Any:  # noqa: ANN401
        """What it returned, or the OSError."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it hangs"
        return self._result


@contextmanager
def sending(octets: int) -> Iterator[tuple[Narrow, socket.socket, Call]]:
    """Somebody sends DATA, of whose stream so many octets come through; the receiver's socket."""
    ours, theirs = a_stack(), a_stack()
    with (
        socket.socket(AF_INET_SDP, std.SOCK_STREAM, stack=ours) as server,
        socket.socket(AF_INET_SDP, std.SOCK_STREAM, stack=theirs) as client,
    ):
        server.settimeout(PATIENCE)
        server.bind(LOOPBACK)
        server.listen()
        ours.sysctl["net.sdp.listen_grace"] = 60000
        client.settimeout(PATIENCE)
        with closing(Narrow(server.getsockname(), octets)) as way:
            client.connect(way.listener.getsockname())
            conn, _ = server.accept()
            with conn:
                conn.settimeout(PATIENCE)
                sent = Call(lambda: client.sendall(bytearray(DATA)))
                fabric = fabric_of(ours)
                assert fabric is not None
                eventually(lambda: fabric.engine_counters.rx_messages[ADVERTISED] > 0)
                yield way, conn, sent


def mark(conn: socket.socket) -> int:
    """From how many octets the stream below tells of them."""
    transport = sdp_sk(conn.kernel.sk).transport
    assert isinstance(transport, HostTransport)
    return transport.native.getsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT)


def waits_for_a_fair_part(way: Narrow, conn: socket.socket) -> bool:
    """Look at the stream, as who waits for it does; is the mark set?

    What was read ahead, as the receiver was late, has to come first: a little more is let through.
    """
    way.let_pass(65536)
    link = sdp_sk(conn.kernel.sk).link
    assert link is not None
    with conn.kernel.stack.lock:
        link.look()
    return mark(conn) == FAIR


def test_a_fair_part_of_a_large_read_is_waited_for_at_once_and_nothing_when_it_is_over() -> None:
    with sending(SIZE // 2) as (way, conn, sent):
        receiving = Call(lambda: read_exactly(conn, SIZE, SIZE))
        eventually(lambda: waits_for_a_fair_part(way, conn))
        way.let_pass(1 << 30)
        assert receiving.result() == DATA
        assert sent.result() is None
        eventually(lambda: mark(conn) == 1)


def test_a_rest_that_is_smaller_than_the_mark_comes_as_it_is() -> None:
    """Octet by octet if need be: nobody waits for what cannot come."""
    with sending(SIZE // 2) as (way, conn, sent):
        receiving = Call(lambda: read_exactly(conn, SIZE, SIZE))
        eventually(lambda: waits_for_a_fair_part(way, conn))
        way.let_pass(SIZE // 2 - FAIR // 2)
        eventually(lambda: mark(conn) == 1)
        for _ in range(20):
            way.let_pass(1)
        way.let_pass(1 << 30)
        assert receiving.result() == DATA
        assert sent.result() is None


def test_a_peer_that_dies_in_the_middle_of_a_read_is_noticed() -> None:
    with sending(SIZE // 2) as (way, conn, sent):
        receiving = Call(lambda: read_exactly(conn, SIZE, SIZE))
        eventually(lambda: waits_for_a_fair_part(way, conn))
        way.close()
        assert isinstance(receiving.result(), ConnectionResetError)
        assert isinstance(sent.result(), OSError)


def test_who_closes_in_the_middle_of_a_read_is_gone() -> None:
    with sending(SIZE // 2) as (way, conn, sent):
        receiving = Call(lambda: read_exactly(conn, SIZE, SIZE))
        eventually(lambda: waits_for_a_fair_part(way, conn))
        conn.close()
        way.let_pass(1 << 30)
        assert not isinstance(receiving.result(), bytearray)
        assert sent.result() is None or isinstance(sent.result(), OSError)
