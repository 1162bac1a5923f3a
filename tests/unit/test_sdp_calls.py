"""AF_INET_SDP's calls where they differ from a stream that only copies, and how its sockets end."""

from __future__ import annotations

import errno
import os
import select
import socket as std
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from steertag import AF_INET_SDP, Stack, socket
from steertag.family.msg import MsgHdr
from steertag.family.net import sock_recvmsg
from steertag.runtime.netdev import ensure_driver
from steertag.runtime.sdp import SdpConfig, SdpFabric, fabric_of, register
from tests.unit.test_sdp_conformance import LOOPBACK, close_stacks, opened

__all__ = ["close_stacks"]
PATIENCE = 30.0
ABORT = struct.pack("@ii", 1, 0)
LARGE = bytes(range(256)) * 4096 * 4  # 4 MiB


class World:
    """A Stack with SDP, and sockets of it."""

    def __init__(self) -> None:
        self.stack = opened()
        register(self.stack, SdpConfig(fallback="never"))
        fabric = fabric_of(self.stack)
        assert fabric is not None
        self.fabric: SdpFabric = fabric

    def open(self) -> socket.socket:
        sock = socket.socket(AF_INET_SDP, std.SOCK_STREAM, stack=self.stack)
        sock.settimeout(PATIENCE)
        return sock

    @contextmanager
    def pair(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        with self.open() as server, self.open() as client:
            server.bind(LOOPBACK)
            server.listen()
            client.connect(server.getsockname())
            conn, _ = server.accept()
            conn.settimeout(PATIENCE)
            with conn:
                yield client, conn

    def left(self) -> tuple[int, ...]:
        """What is there: queue pairs, domains, handlers, socks, memory."""
        with self.stack.lock:
            prot = next(prot for prot in self.stack.protocols if prot.name == "SDP")
            assert prot.memory_allocated is not None
            assert prot.orphan_count is not None
            return (
                len(self.fabric.rnic.qps),
                len(self.fabric.rnic.pds),
                len(self.fabric.reactor.handlers()),
                prot.inuse,
                prot.memory_allocated.value,
                prot.orphan_count.value,
            )

    def settled(self) -> bool:
        """Whether nothing is left, waiting for it; the last of a connection is its peer's to do."""
        with select.epoll() as nothing:
            for _ in range(int(PATIENCE * 100)):
                if not any(self.left()):
                    return True
                nothing.poll(0.01)
        return False


def send_for_ever(sock: socket.socket, data: bytes | bytearray) -> None:
    """Until it raises."""
    while True:
        sock.send(data)


def read_for_ever(sock: socket.socket) -> None:
    """To the end of the stream, or until it raises."""
    while sock.recv(1 << 20):
        pass


def read_exactly(sock: socket.socket, count: int, step: int = 1 << 20) -> bytes:
    parts = []
    while count:
        part = sock.recv(min(step, count))
        assert part
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# -- large data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray], ids=["bytes", "bytearray"])
@pytest.mark.parametrize("step", [4096, 1 << 20, len(LARGE)])
def test_large_data_arrives_exact_whatever_it_is_sent_from_and_read_with(
    kind: type[bytes | bytearray], step: int
) -> None:
    world = World()
    with world.pair() as (client, conn):
        sender = threading.Thread(target=client.sendall, args=(kind(LARGE),))
        sender.start()
        assert read_exactly(conn, len(LARGE), step) == LARGE
        sender.join(PATIENCE)
        counters = world.fabric.engine_counters
        assert counters.tx_read_bytes + counters.tx_write_bytes > 0, "none of it without a copy"


def test_below_the_threshold_everything_is_copied() -> None:
    world = World()
    with world.pair() as (client, conn):
        client.setsockopt(socket.SOL_SDP, socket.SDP_ZCOPY_THRESH, 0)
        assert client.getsockopt(socket.SOL_SDP, socket.SDP_ZCOPY_THRESH) == 0
        sender = threading.Thread(target=client.sendall, args=(LARGE,))
        sender.start()
        assert read_exactly(conn, len(LARGE), 65536) == LARGE
        sender.join(PATIENCE)
    counters = world.fabric.engine_counters
    assert counters.tx_bcopy_bytes == len(LARGE)
    assert counters.tx_read_bytes == 0


def test_both_sides_send_large_at_once() -> None:
    world = World()
    with world.pair() as (client, conn):
        senders = [
            threading.Thread(target=sock.sendall, args=(bytearray(LARGE),))
            for sock in (client, conn)
        ]
        for sender in senders:
            sender.start()
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(read_exactly(conn, len(LARGE))))
        reader.start()
        assert read_exactly(client, len(LARGE)) == LARGE
        reader.join(PATIENCE)
        for sender in senders:
            sender.join(PATIENCE)
    assert received == [LARGE]


def test_a_receive_that_timed_out_leaves_its_buffer_alone() -> None:
    world = World()
    with world.pair() as (client, conn):
        buffer = bytearray(1 << 20)
        conn.settimeout(0.02)
        with pytest.raises(TimeoutError):
            conn.recv_into(buffer)
        conn.settimeout(PATIENCE)
        before = bytes(buffer)
        sender = threading.Thread(target=client.sendall, args=(LARGE,))
        sender.start()
        assert read_exactly(conn, len(LARGE)) == LARGE
        sender.join(PATIENCE)
        assert bytes(buffer) == before


def test_a_send_that_timed_out_has_its_buffer_back() -> None:
    """What had gone by then is a part from the beginning, and nothing is sent from it later."""
    world = World()
    with world.pair() as (client, conn):
        buffer = bytearray(LARGE)
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            send_for_ever(client, buffer)  # nobody reads
        buffer[:] = bytes(len(buffer))
        client.shutdown(std.SHUT_WR)
        with conn.makefile("rb") as file:
            received = file.read()
        stream = LARGE * (len(received) // len(LARGE) + 1)
        assert received == stream[: len(received)]


# -- many hands -----------------------------------------------------------------------------------


def test_two_threads_read_one_socket_and_miss_nothing() -> None:
    world = World()
    with world.pair() as (client, conn):
        counts: list[int] = []

        def read() -> None:
            total = 0
            while data := conn.recv(100000):
                total += len(data)
            counts.append(total)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        client.sendall(LARGE)
        client.sendall(b"x" * 1000)
        client.shutdown(std.SHUT_WR)
        for reader in readers:
            reader.join(PATIENCE)
    assert sum(counts) == len(LARGE) + 1000


def test_who_was_kept_waiting_by_a_receive_hears_of_its_end() -> None:
    """Whether it waits already, or is only about to: it has been told to, and nothing comes."""
    world = World()
    with world.pair() as (client, conn):
        sock = conn.kernel
        first, second = (MsgHdr((memoryview(bytearray(65536)),)) for _ in range(2))
        first.msg_waits = True
        with pytest.raises(BlockingIOError):
            sock_recvmsg(sock, first)
        client.sendall(b"x")
        arrived = sock.sk.receiving[1]  # type: ignore[union-attr]
        assert ensure_driver(world.stack).wait_until(
            sock, lambda: arrived.done, time.monotonic() + PATIENCE
        )
        seen = sock.news
        with pytest.raises(BlockingIOError):
            sock_recvmsg(sock, second)
        assert sock_recvmsg(sock, first) == 1
        assert sock.news != seen


def test_a_close_ends_the_wait_of_another_thread() -> None:
    world = World()
    with world.pair() as (_, conn):
        outcome: list[object] = []
        waiting = threading.Event()

        def read() -> None:
            waiting.set()
            try:
                outcome.append(conn.recv(1 << 20))
            except OSError as exc:
                outcome.append(exc.errno)

        reader = threading.Thread(target=read)
        reader.start()
        assert waiting.wait(PATIENCE)
        conn.close()
        reader.join(PATIENCE)
        assert outcome == [errno.EBADF]


# -- out of band ----------------------------------------------------------------------------------


def test_an_octet_out_of_band_stands_beside_the_stream() -> None:
    world = World()
    with world.pair() as (client, conn):
        client.sendall(b"before")
        client.send(b"!", std.MSG_OOB)
        client.sendall(b"after")
        poller = select.poll()
        poller.register(conn.fileno(), select.POLLPRI)
        assert poller.poll(PATIENCE * 1000)
        assert conn.recv(1, std.MSG_OOB | std.MSG_PEEK) == b"!"
        assert conn.recv(1, std.MSG_OOB) == b"!"
        with pytest.raises(OSError, match="Invalid argument"):
            conn.recv(1, std.MSG_OOB)
        assert read_exactly(conn, 6) == b"before"
        assert conn.ioctl(0x8905), "at the mark"
        assert read_exactly(conn, 5) == b"after"


def test_an_octet_out_of_band_can_stay_in_the_stream() -> None:
    world = World()
    with world.pair() as (client, conn):
        conn.setsockopt(std.SOL_SOCKET, std.SO_OOBINLINE, 1)
        client.send(b"!", std.MSG_OOB)
        client.sendall(b"after")
        assert read_exactly(conn, 6) == b"!after"
        with pytest.raises(OSError, match="Invalid argument"):
            conn.recv(1, std.MSG_OOB)


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["idle", "unread", "sending", "half closed", "receiving"])
def test_an_abort_is_told_in_every_state_and_nothing_is_left(state: str) -> None:
    world = World()
    with world.pair() as (client, conn):
        if state == "unread":
            conn.sendall(b"never read")
        elif state == "sending":
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                send_for_ever(client, LARGE)
        elif state == "half closed":
            client.shutdown(std.SHUT_WR)
            assert conn.recv(1) == b""
        outcome: list[object] = []

        def read() -> None:
            try:
                read_for_ever(conn)
                outcome.append(b"")
            except OSError as exc:
                outcome.append(exc.errno)

        reader = threading.Thread(target=read)
        if state == "receiving":
            reader.start()
        client.setsockopt(std.SOL_SOCKET, std.SO_LINGER, ABORT)
        client.close()
        if state == "half closed":
            with pytest.raises(OSError, match=r"reset|pipe"):
                send_for_ever(conn, b"x")
        elif state != "receiving":
            reader.start()
        if state != "half closed":
            reader.join(PATIENCE)
            assert outcome == [errno.ECONNRESET]
    assert world.settled()


def test_octets_that_were_not_read_reset_the_stream_at_a_close() -> None:
    world = World()
    with world.pair() as (client, conn):
        conn.sendall(b"never read")
        poller = select.poll()
        poller.register(client.fileno(), select.POLLIN)
        assert poller.poll(PATIENCE * 1000)
        client.close()
        with pytest.raises(ConnectionResetError):
            conn.recv(1)
    assert world.settled()


def test_what_was_sent_before_a_close_arrives() -> None:
    world = World()
    with world.pair() as (client, conn):

        def send_and_close() -> None:
            client.sendall(LARGE)
            client.close()

        sender = threading.Thread(target=send_and_close)
        sender.start()
        with conn.makefile("rb") as file:
            assert file.read() == LARGE
        sender.join(PATIENCE)
    assert world.settled()


def test_a_listener_that_closes_resets_whom_nobody_accepted() -> None:
    world = World()
    with world.open() as server, world.open() as client:
        server.bind(LOOPBACK)
        server.listen()
        client.connect(server.getsockname())
        server.close()
        with pytest.raises(OSError, match="reset"):
            read_for_ever(client)
    assert world.settled()


def test_a_connection_attempt_can_be_given_up() -> None:
    world = World()
    with std.create_server(LOOPBACK) as silent, world.open() as client:
        client.setblocking(False)
        assert client.connect_ex(silent.getsockname()) == errno.EINPROGRESS
        assert client.connect_ex(silent.getsockname()) == errno.EALREADY
        with pytest.raises(BlockingIOError):
            client.send(b"x")
        client.close()
        conn, _ = silent.accept()
        with conn:
            conn.settimeout(PATIENCE)
            while conn.recv(1000):
                pass
    assert world.settled()


def test_connections_one_after_the_other_leave_nothing_behind() -> None:
    world = World()
    with world.open() as server:
        server.bind(LOOPBACK)
        server.listen()

        def serve(count: int) -> None:
            for turn in range(count):
                conn, _ = server.accept()
                with conn:
                    conn.sendall(conn.recv(10))
                    if turn % 2:
                        assert conn.recv(1) == b""

        fds: list[int] = []
        for count in (10, 100):
            thread = threading.Thread(target=serve, args=(count,))
            thread.start()
            for _ in range(count):
                with world.open() as client:
                    client.connect(server.getsockname())
                    client.sendall(b"x")
                    assert client.recv(10) == b"x"
            thread.join(PATIENCE)
            with select.epoll() as nothing:
                for _ in range(int(PATIENCE * 100)):
                    if not world.fabric.rnic.qps:
                        break
                    nothing.poll(0.01)
            fds.append(len(os.listdir("/proc/self/fd")))
            assert world.left()[:2] == (0, 0)
        assert fds[1] <= fds[0] + 2
    assert world.settled()


def test_memory_is_charged_while_it_is_held() -> None:
    world = World()
    with world.pair() as (client, conn):
        client.setsockopt(socket.SOL_SDP, socket.SDP_ZCOPY_THRESH, 0)
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            send_for_ever(client, LARGE)
        assert world.left()[4] > 0
        sndbuf = client.getsockopt(std.SOL_SOCKET, std.SO_SNDBUF)
        assert client.ioctl(0x5411) <= sndbuf
        conn.setblocking(False)
        assert conn.recv(1 << 20)
    assert world.settled()


def test_a_stack_knows_nothing_of_another() -> None:
    assert fabric_of(Stack()) is None
    stack = opened()
    register(stack)
    with pytest.raises(FileExistsError):
        register(stack)
