"""Calls that end before what they were to do: time-outs, signals, and a socket closed elsewhere."""

from __future__ import annotations

import os
import select
import signal
import socket as std
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from steertag.socket import socket
from tests.sdp.world import (
    HOST,
    NEW_TCP,
    PATIENCE,
    SDP,
    SDP_NEW_TCP,
    SDP_ZCOPY,
    Task,
    World,
    octets,
    read_exactly,
    read_to_end,
    readable,
    together,
    writable,
)

SUBJECTS = (HOST, NEW_TCP, SDP, SDP_NEW_TCP, SDP_ZCOPY)

MIB = 1 << 20
TIMEVAL = struct.Struct("ll")
SHORT = 0.05
LARGE = 48 * MIB
"""More than any buffers take."""


class Interrupted(Exception):
    """What a signal's handler raises."""


@contextmanager
def alarm(handler: object) -> Iterator[None]:
    """A signal after a short time, and every such time again."""
    before = signal.signal(signal.SIGALRM, handler)  # type: ignore[arg-type]
    signal.setitimer(signal.ITIMER_REAL, SHORT, SHORT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def forget(buffer: bytearray) -> None:
    """Use the memory for something else: nobody may look at it any more."""
    buffer[:] = bytes(len(buffer))
    buffer.clear()  # a BufferError if there is a view of it


def a_prefix_and_then(got: bytes, data: bytes, rest: bytes) -> None:
    """What was given up arrives up to some octet; what was sent behind it follows."""
    assert got.endswith(rest)
    part = got[: len(got) - len(rest)]
    assert len(part) < len(data)
    assert part == data[: len(part)]


def test_a_send_that_times_out_leaves_its_memory_alone(world: World) -> None:
    data = octets(LARGE)
    with world.connected() as (client, conn):
        buffer = bytearray(data)
        client.settimeout(SHORT)
        with pytest.raises(TimeoutError):
            client.sendall(buffer)
        forget(buffer)
        client.settimeout(PATIENCE)
        finishing = Task(send_and_end, client, b"something else")
        a_prefix_and_then(read_to_end(conn), data, b"something else")
        finishing.result()


def send_and_end(sock: socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(std.SHUT_WR)


def test_a_send_says_how_much_went_before_its_time_was_over(world: World) -> None:
    data = octets(LARGE)
    with world.connected() as (client, conn):
        buffer = bytearray(data)
        client.settimeout(SHORT)
        sent = 0
        with suppress(TimeoutError):
            while sent < len(data):
                sent += client.send(memoryview(buffer)[sent:])
        assert 0 < sent < len(data)
        forget(buffer)
        client.shutdown(std.SHUT_WR)
        assert read_to_end(conn) == data[:sent]


def test_a_time_out_while_the_reader_takes_some(world: World) -> None:
    """The transfer is under way, in whatever state, when it is given up."""
    data = octets(LARGE)
    for step in (1, 3000, 300_000, 5 * MIB):
        with world.connected() as (client, conn):
            buffer = bytearray(data)
            client.settimeout(SHORT)
            sending = Task(client.sendall, buffer)
            assert readable(conn)
            got = bytes(read_exactly(conn, step))
            with pytest.raises(TimeoutError):
                sending.result()
            forget(buffer)
            client.settimeout(PATIENCE)
            finishing = Task(send_and_end, client, b"the end")
            a_prefix_and_then(got + read_to_end(conn), data, b"the end")
            finishing.result()


def test_a_signal_that_raises_ends_a_send(world: World) -> None:
    data = octets(LARGE)

    def interrupt(*_: object) -> None:
        raise Interrupted

    with world.connected(timeout=None) as (client, conn):
        buffer = bytearray(data)
        with pytest.raises(Interrupted), alarm(interrupt):
            client.sendall(buffer)
        forget(buffer)
        finishing = Task(send_and_end, client, b"afterwards")
        a_prefix_and_then(read_to_end(conn), data, b"afterwards")
        finishing.result()


def test_a_signal_that_raises_ends_a_receive(world: World) -> None:
    data = octets(3 * MIB)

    def interrupt(*_: object) -> None:
        raise Interrupted

    with world.connected(timeout=None) as (client, conn):
        buffer = bytearray(4 * MIB)
        with pytest.raises(Interrupted), alarm(interrupt):
            conn.recv_into(buffer)
        forget(buffer)
        sending = Task(send_and_end, client, data)
        assert read_to_end(conn) == data
        sending.result()


def test_a_signal_that_is_handled_changes_nothing(world: World) -> None:
    data = octets(8 * MIB)
    seen: list[int] = []
    with world.connected(timeout=None) as (client, conn):

        def read() -> bytes:
            while len(seen) < 3:
                select.select([], [], [], SHORT / 10)
            return bytes(read_exactly(conn, len(data)))

        reading = Task(read)
        with alarm(lambda *_: seen.append(1)):
            client.sendall(data)
        assert reading.result() == data


def test_a_receive_that_times_out_leaves_its_memory_alone(world: World) -> None:
    data = octets(3 * MIB)
    with world.connected() as (client, conn):
        for _ in range(3):
            buffer = bytearray(4 * MIB)
            conn.settimeout(SHORT)
            with pytest.raises(TimeoutError):
                conn.recv_into(buffer)
            forget(buffer)
            conn.settimeout(PATIENCE)
            _, got = together(lambda: client.sendall(data), lambda: read_exactly(conn, len(data)))
            assert got == data


def test_a_receive_may_time_out_while_data_begins_to_come(world: World) -> None:
    """Whoever gave up finds everything that came, once."""
    data = octets(6 * MIB)
    with world.connected() as (client, conn):
        conn.settimeout(0.001)

        def read() -> bytes:
            got = b""
            while len(got) < len(data):
                with suppress(TimeoutError):
                    got += conn.recv(2 * MIB)
            return got

        def write() -> None:
            for start in range(0, len(data), 700_000):
                client.sendall(data[start : start + 700_000])
                select.select([], [], [], 0.002)

        assert together(read, write)[0] == data


def test_shutdown_elsewhere_ends_a_send(world: World) -> None:
    buffer = bytearray(LARGE)
    with world.connected(timeout=None) as (client, conn):
        sending = Task(client.sendall, buffer)
        assert readable(conn)
        client.shutdown(std.SHUT_RDWR)
        with pytest.raises(BrokenPipeError):
            sending.result()
        forget(buffer)


def test_close_elsewhere_ends_a_send(world: World) -> None:
    if HOST.server in (world.kind.server, world.kind.client):
        pytest.skip("not possible here: the host's close wakes nobody")
    buffer = bytearray(LARGE)
    with world.connected(timeout=None) as (client, conn):
        sending = Task(client.sendall, buffer)
        assert readable(conn)
        client.close()
        with pytest.raises(OSError, match=r"Bad file descriptor|Broken pipe"):
            sending.result()
        forget(buffer)
        assert not any(read_to_end_or_reset(conn))


def read_to_end_or_reset(conn: socket) -> bytes:
    parts = []
    with suppress(ConnectionError):
        while part := conn.recv(1 << 18):
            parts.append(part)
    return b"".join(parts)


def test_a_reader_that_closes_ends_a_send(world: World) -> None:
    buffer = bytearray(LARGE)
    with world.connected(timeout=None) as (client, conn):
        sending = Task(client.sendall, buffer)
        read_exactly(conn, 100_000)
        conn.close()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sending.result()
        forget(buffer)


@pytest.mark.parametrize("size", [100, 2 * MIB])
def test_so_rcvtimeo_ends_a_receive(world: World, size: int) -> None:
    with world.connected(timeout=None) as (client, conn):
        conn.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, TIMEVAL.pack(0, 50_000))
        buffer = bytearray(size)
        with pytest.raises(BlockingIOError):
            conn.recv_into(buffer)
        forget(buffer)
        client.sendall(b"late")
        assert readable(conn)
        assert conn.recv(size) == b"late"


def test_so_sndtimeo_ends_a_send(world: World) -> None:
    data = octets(LARGE)
    with world.connected(timeout=None) as (client, conn):
        client.setsockopt(std.SOL_SOCKET, std.SO_SNDTIMEO, TIMEVAL.pack(0, 50_000))
        buffer = bytearray(data)
        with pytest.raises(BlockingIOError):
            client.sendall(buffer)
        forget(buffer)
        client.setsockopt(std.SOL_SOCKET, std.SO_SNDTIMEO, TIMEVAL.pack(0, 0))
        finishing = Task(send_and_end, client, b"and on")
        a_prefix_and_then(read_to_end(conn), data, b"and on")
        finishing.result()


def test_a_non_blocking_sender_goes_away_at_once(world: World) -> None:
    """What it was told was taken arrives, though it has closed."""
    data = octets(LARGE)
    with world.connected() as (client, conn):
        client.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while True:
                sent += client.send(data[sent : sent + MIB])
        client.close()
        assert read_to_end(conn) == data[:sent]


# -- urgent data ------------------------------------------------------------------------------


def urgent(sock: socket) -> None:
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLPRI)
    assert poller.poll(PATIENCE * 1000)


def test_an_urgent_octet_is_read_beside_the_stream(world: World) -> None:
    """telnet's interrupt: what precedes it ends at the mark."""
    with world.connected() as (client, conn):
        client.sendall(b"before")
        assert client.send(b"!", std.MSG_OOB) == 1
        client.sendall(b"after")
        urgent(conn)
        assert conn.recv(1, std.MSG_OOB) == b"!"
        assert read_exactly(conn, 11) == b"beforeafter"
        conn.setblocking(False)
        with pytest.raises(OSError, match=r"Invalid argument|temporarily unavailable"):
            conn.recv(1, std.MSG_OOB)


def test_an_urgent_octet_stays_in_the_stream_where_that_is_asked_for(world: World) -> None:
    with world.connected() as (client, conn):
        conn.setsockopt(std.SOL_SOCKET, std.SO_OOBINLINE, 1)
        client.sendall(b"before")
        client.send(b"!", std.MSG_OOB)
        client.sendall(b"after")
        assert read_exactly(conn, 12) == b"before!after"


def test_a_read_stops_at_the_mark(world: World) -> None:
    with world.connected() as (client, conn):
        client.sendall(b"before")
        client.send(b"!", std.MSG_OOB)
        client.sendall(b"after")
        urgent(conn)
        assert readable(conn)
        got = b""
        while len(got) < 6:
            got += conn.recv(100)
        assert got == b"before"
        assert read_exactly(conn, 5) == b"after"


# -- descriptors ------------------------------------------------------------------------------


def test_a_descriptor_is_waited_on_like_any_other(world: World) -> None:
    with world.connected() as (client, conn):
        assert writable(conn, 0)
        assert not readable(conn, 0)
        twin = conn.dup()
        with twin:
            client.sendall(b"x")
            assert readable(twin)
            assert readable(conn)
            assert twin.recv(1) == b"x"
            assert not readable(conn, 0)
        client.sendall(b"y")
        assert readable(conn)
        fd = conn.detach()
        assert conn.fileno() == -1
        with socket(fileno=fd, stack=world.stack) as again:
            assert again.recv(1) == b"y"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
