"""Patterns of programs that move much: backups, file servers, loggers, streamers of media."""

from __future__ import annotations

import array
import mmap
import random
import socket as std
import tempfile
import threading
from collections import Counter
from contextlib import suppress

import pytest

from steertag.socket import socket
from tests.sdp.world import (
    HOST,
    NEW_TCP,
    PATIENCE,
    SDP,
    SDP_BCOPY,
    SDP_NEW_TCP,
    SDP_ZCOPY,
    World,
    octets,
    read_exactly,
    read_to_end,
    send_and_shut,
    together,
    writable,
)

SUBJECTS = (HOST, NEW_TCP, SDP, SDP_NEW_TCP, SDP_ZCOPY, SDP_BCOPY)

MIB = 1 << 20


def test_many_small_writes_arrive_as_one_stream(world: World) -> None:
    rng = random.Random(2)
    data = octets(200_000)
    with world.connected() as (client, conn):

        def write() -> None:
            rest = memoryview(data)
            while rest:
                size = rng.randrange(1, 65)
                client.sendall(rest[:size])
                rest = rest[size:]
            client.shutdown(std.SHUT_WR)

        assert together(write, lambda: read_to_end(conn))[1] == data


def test_one_huge_write_arrives_whole(world: World) -> None:
    data = octets(48 * MIB)
    with world.connected() as (client, conn):
        _, got = together(
            lambda: send_and_shut(client, data), lambda: read_exactly(conn, len(data))
        )
        assert got == data
        assert conn.recv(1) == b""


def test_a_blocking_send_takes_everything(world: World) -> None:
    data = octets(20 * MIB)
    with world.connected(timeout=None) as (client, conn):
        sent, got = together(lambda: client.send(data), lambda: read_exactly(conn, len(data)))
        assert sent == len(data)
        assert got == data


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_memory_may_be_written_again_once_it_was_sent(world: World, size: int) -> None:
    """Whatever is not copied has to be with the peer before the call returns."""
    first, second = octets(size, 1), octets(size, 2)
    buffer = bytearray(first)
    with world.connected() as (client, conn):

        def write() -> None:
            client.sendall(buffer)
            buffer[:] = second
            client.sendall(buffer)
            buffer[:] = bytes(size)
            buffer.append(0)  # nobody has a view of it left

        _, got = together(write, lambda: read_exactly(conn, 2 * size))
        assert got == first + second


def test_memory_of_every_sort_is_sent(world: World) -> None:
    data = octets(MIB)
    numbers = array.array("Q", data)
    with mmap.mmap(-1, MIB) as anonymous, world.connected() as (client, conn):
        anonymous[:] = data

        def write() -> None:
            client.sendall(anonymous)
            client.sendall(numbers)
            client.sendall(memoryview(bytearray(data)).cast("I"))
            client.sendall(memoryview(data)[1:])

        _, got = together(write, lambda: read_exactly(conn, 4 * MIB - 1))
        assert got == data * 3 + data[1:]


def test_a_slow_reader_holds_its_writer_back_and_loses_nothing(world: World) -> None:
    data = octets(6 * MIB)
    with world.connected() as (client, conn):
        client.setblocking(False)
        rest, got = memoryview(data), bytearray()
        while rest:
            try:
                rest = rest[client.send(rest[: 1 << 16]) :]
            except BlockingIOError:
                # Only when it can't write any more is a little read.
                while not writable(client, 0):
                    got += conn.recv(10_000)
        client.shutdown(std.SHUT_WR)
        got += read_to_end(conn)
        assert got == data


def test_a_slow_writer_is_read_octet_by_octet(world: World) -> None:
    data = octets(500)
    turn = threading.Semaphore(1)
    with world.connected() as (client, conn):

        def write() -> None:
            for octet in data:
                assert turn.acquire(timeout=PATIENCE)
                client.sendall(bytes((octet,)))

        def read() -> bytes:
            got = b""
            while len(got) < len(data):
                got += conn.recv(4096)
                turn.release()
            return got

        assert together(write, read)[1] == data


@pytest.mark.parametrize("size", [100_000, 24 * MIB])
def test_both_directions_at_once(world: World, size: int) -> None:
    there, back = octets(size, 1), octets(size, 2)
    with world.connected(timeout=None) as (client, conn):
        _, _, got_there, got_back = together(
            lambda: client.sendall(there),
            lambda: conn.sendall(back),
            lambda: read_exactly(conn, size),
            lambda: read_exactly(client, size),
        )
        assert got_there == there
        assert got_back == back


@pytest.mark.parametrize("sort", [bytes, bytearray])
@pytest.mark.parametrize("size", [1000, 50_000, 120_000])
def test_both_sides_may_send_before_either_reads(
    world: World, size: int, sort: type[bytes | bytearray]
) -> None:
    """What fits into a TCP socket's buffers: a send that waited for the reader would never end."""
    there, back = sort(octets(size, 1)), sort(octets(size, 2))
    with world.connected(timeout=None) as (client, conn):
        for _ in range(5):
            together(lambda: client.sendall(there), lambda: conn.sendall(back))
            assert read_exactly(conn, size) == there
            assert read_exactly(client, size) == back


def test_one_thread_pumps_both_directions(world: World) -> None:
    """A relay's loop: whatever is ready, at both ends, in one thread."""
    there, back = octets(8 * MIB, 1), octets(8 * MIB, 2)
    with world.connected() as (client, conn):
        for sock in (client, conn):
            sock.setblocking(False)
        outgoing = {client: memoryview(there), conn: memoryview(back)}
        incoming = {client: bytearray(), conn: bytearray()}
        while len(incoming[client]) + len(incoming[conn]) < len(there) + len(back):
            for sock in (client, conn):
                step(sock, outgoing, incoming[sock])
        assert incoming[conn] == there
        assert incoming[client] == back


def step(sock: socket, outgoing: dict[socket, memoryview], incoming: bytearray) -> None:
    with suppress(BlockingIOError):
        if outgoing[sock]:
            outgoing[sock] = outgoing[sock][sock.send(outgoing[sock]) :]
    with suppress(BlockingIOError):
        incoming += sock.recv(1 << 20)


@pytest.mark.parametrize("seed", range(4))
def test_sizes_of_every_magnitude_in_turns(world: World, seed: int) -> None:
    rng = random.Random(seed)
    sizes = [min(int(2 ** rng.uniform(0, 22)), 3 * MIB) for _ in range(60)]
    parts = [octets(size, number) for number, size in enumerate(sizes)]
    kinds = [rng.choice((bytes, bytearray)) for _ in parts]
    with world.connected() as (client, conn):

        def write() -> None:
            for part, kind in zip(parts, kinds, strict=True):
                client.sendall(kind(part))
            client.shutdown(std.SHUT_WR)

        def read() -> bytes:
            got = []
            while part := conn.recv(int(2 ** rng.uniform(0, 23))):
                got.append(part)
            return b"".join(got)

        assert together(write, read)[1] == b"".join(parts)


def test_a_file_is_sent_from_an_offset(world: World) -> None:
    data = octets(5 * MIB)
    with tempfile.TemporaryFile() as file, world.connected() as (client, conn):
        file.write(data)
        file.flush()
        sent, got = together(
            lambda: client.sendfile(file, 12_345), lambda: read_exactly(conn, len(data) - 12_345)
        )
        assert sent == len(data) - 12_345
        assert got == data[12_345:]
        assert file.tell() == len(data)


def test_parts_are_gathered_and_scattered(world: World) -> None:
    rng = random.Random(5)
    parts = [octets(rng.choice((0, 1, 7, 100, 5000, 300_000)), seed) for seed in range(60)]
    whole = b"".join(parts)
    with world.connected(timeout=None) as (client, conn):

        def read() -> bytes:
            got = b""
            while len(got) < len(whole):
                buffers = [bytearray(rng.choice((1, 100, 70_000))) for _ in range(20)]
                count, _, _, _ = conn.recvmsg_into(buffers)
                assert count
                got += b"".join(buffers)[:count]
            return got

        sent, got = together(lambda: client.sendmsg(parts), read)
        assert sent == len(whole)
        assert got == whole


def test_waitall_waits_for_all(world: World) -> None:
    data = octets(4 * MIB)
    with world.connected(timeout=None) as (client, conn):

        def write() -> None:
            for start in range(0, len(data), 300_000):
                client.sendall(data[start : start + 300_000])

        def read() -> bytes:
            return conn.recv(len(data), std.MSG_WAITALL)

        assert together(write, read)[1] == data


def test_what_was_peeked_at_is_read_again(world: World) -> None:
    data = octets(2 * MIB)
    with world.connected() as (client, conn):

        def read() -> bytes:
            got = b""
            while len(got) < len(data):
                peeked = conn.recv(50_000, std.MSG_PEEK)
                part = conn.recv(len(peeked))
                assert part == peeked[: len(part)]
                got += part
            return got

        assert together(lambda: client.sendall(data), read)[1] == data


def test_threads_share_a_socket_for_sending(world: World) -> None:
    with world.connected() as (client, conn):

        def write(octet: bytes) -> None:
            for _ in range(500):
                assert client.send(octet) == 1

        names = [b"a", b"b", b"c", b"d"]
        together(*(lambda name=name: write(name) for name in names))
        client.shutdown(std.SHUT_WR)
        assert Counter(read_to_end(conn)) == dict.fromkeys(b"abcd", 500)


def test_threads_share_a_socket_for_receiving(world: World) -> None:
    """Every octet goes to one of them."""
    data = octets(MIB)
    with world.connected() as (client, conn):

        def read() -> Counter[int]:
            return Counter(read_to_end(conn, 50_000))

        *counts, _ = together(read, read, read, lambda: send_and_shut(client, data))
        assert sum(counts, Counter()) == Counter(data)


def test_a_thread_reads_while_another_writes_the_same_socket(world: World) -> None:
    data = octets(3 * MIB)

    def echo(sock: socket) -> None:
        while part := sock.recv(100_000):
            sock.sendall(part)
        sock.shutdown(std.SHUT_WR)

    with world.connected() as (client, conn):
        _, _, got = together(
            lambda: echo(conn), lambda: send_and_shut(client, data), lambda: read_to_end(client)
        )
        assert got == data
