"""Conformance suites that any family can run: what socket(7) promises, one claim to a function.

    from steertag.testing import STREAM_CHECKS, Endpoints

    @pytest.mark.parametrize("check", STREAM_CHECKS, ids=lambda check: check.__name__)
    def test_my_family(check):
        check(Endpoints(make=lambda: socket(AF_MINE, SOCK_STREAM), address=("node", 0)))

Each check raises AssertionError, or what a call raised. They pass for the standard library's own
sockets too, which is how we know that they ask for nothing else. OOB_CHECKS are for stream
families that have out-of-band data; `steertag.testing.trio_stream` has trio's suite.
"""

from __future__ import annotations

import asyncio
import errno
import io
import select
import socket as std
import tempfile
import threading
from collections.abc import Callable
from typing import Final, cast

from steertag.testing.endpoints import (
    BULK,
    PATIENCE,
    Endpoints,
    ends_quietly,
    expect_errno,
    fill,
    mask_of,
    outcome_of,
    read_exactly,
    wait_mask,
)
from steertag.testing.streams import MORE_STREAM_CHECKS, OOB_CHECKS

# -- streams ----------------------------------------------------------------------------------


def octets_arrive_in_order_and_then_the_end(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):

        def send() -> None:
            client.sendall(BULK)
            client.close()

        thread = threading.Thread(target=send)
        thread.start()
        assert read_exactly(conn, len(BULK)) == BULK
        assert conn.recv(1) == b""
        thread.join()


def a_half_closed_stream_still_carries_the_other_way(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        client.sendall(b"question")
        client.shutdown(std.SHUT_WR)
        assert read_exactly(conn, 8) == b"question"
        assert conn.recv(1) == b""
        conn.sendall(b"answer")
        assert read_exactly(client, 6) == b"answer"
        expect_errno(lambda: client.send(b"more"), errno.EPIPE)


def names_at_both_ends_agree(ends: Endpoints) -> None:
    with ends.bound() as server, ends.client() as client:
        server.listen()
        client.connect(server.getsockname())
        conn, peer = server.accept()
        with conn:
            assert peer == conn.getpeername() == client.getsockname()
            assert client.getpeername() == conn.getsockname()


def connecting_to_nobody_is_refused(ends: Endpoints) -> None:
    with ends.bound() as server, ends.client() as client:
        # Bound and not listening: nobody else can have the address meanwhile.
        expect_errno(lambda: client.connect(server.getsockname()), errno.ECONNREFUSED)


def an_address_in_use_is_eaddrinuse(ends: Endpoints) -> None:
    with ends.bound() as server, ends.make() as other:
        server.listen()
        expect_errno(lambda: other.bind(server.getsockname()), errno.EADDRINUSE)


def calls_in_the_wrong_state_are_refused(ends: Endpoints) -> None:
    with ends.make() as sock:
        expect_errno(lambda: sock.recv(1), errno.ENOTCONN)
        expect_errno(lambda: sock.send(b"x"), errno.ENOTCONN, errno.EPIPE)
        expect_errno(sock.getpeername, errno.ENOTCONN)
        sock.setblocking(False)
        expect_errno(sock.accept, errno.EINVAL)
        expect_errno(lambda: sock.shutdown(std.SHUT_RDWR), errno.ENOTCONN)
    expect_errno(lambda: sock.recv(1), errno.EBADF)
    with ends.connected() as (client, conn):
        # Linux reports the success of a connect that was waited for once more.
        outcome_of(lambda: client.connect(conn.getsockname()))
        expect_errno(lambda: client.connect(conn.getsockname()), errno.EISCONN)


def a_socket_that_does_not_block_says_so(ends: Endpoints) -> None:
    with ends.bound() as server:
        server.listen()
        server.setblocking(False)
        expect_errno(server.accept, errno.EAGAIN)
    with ends.connected() as (client, conn):
        conn.setblocking(False)
        expect_errno(lambda: conn.recv(1), errno.EAGAIN)
        conn.settimeout(None)
        expect_errno(lambda: conn.recv(1, std.MSG_DONTWAIT), errno.EAGAIN)
        assert fill(client) > 0


def a_timeout_ends_a_wait(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        conn.settimeout(0.01)
        assert repr(outcome_of(lambda: conn.recv(1))) == "TimeoutError('timed out')"
        fill(client)
        client.settimeout(0.01)
        more = BULK * 16
        assert repr(outcome_of(lambda: client.sendall(more))) == "TimeoutError('timed out')"


def poll_tells_the_truth_both_ways(ends: Endpoints) -> None:
    with ends.bound() as server, ends.client() as client:
        server.listen()
        assert not mask_of(server) & select.POLLIN
        client.connect(server.getsockname())
        wait_mask(server, select.POLLIN)
        conn, _ = server.accept()
        conn.settimeout(PATIENCE)
        with conn:
            assert not mask_of(server) & select.POLLIN
            assert mask_of(conn) == select.POLLOUT
            client.send(b"x")
            wait_mask(conn, select.POLLIN)
            assert conn.recv(10) == b"x"
            assert mask_of(conn) == select.POLLOUT
            sent = fill(client)
            assert not mask_of(client) & select.POLLOUT
            read_exactly(conn, sent)
            wait_mask(client, select.POLLOUT)
            client.shutdown(std.SHUT_WR)
            wait_mask(conn, select.POLLIN)
            assert conn.recv(1) == b""
            assert mask_of(conn) & select.POLLIN, "an end of stream stays readable"


def an_edge_comes_with_every_arrival(ends: Endpoints) -> None:
    with ends.connected() as (client, conn), select.epoll() as epoll:
        epoll.register(conn.fileno(), select.EPOLLIN | select.EPOLLET)
        for _ in range(3):
            client.send(b"x")
            assert epoll.poll(PATIENCE), "no edge, though data arrived"
            assert not epoll.poll(0), "a second edge for one arrival"
        assert read_exactly(conn, 3) == b"xxx"


def an_edge_comes_when_there_is_room_again(ends: Endpoints) -> None:
    with ends.connected() as (client, conn), select.epoll() as epoll:
        sent = fill(client)
        epoll.register(client.fileno(), select.EPOLLOUT | select.EPOLLET)
        assert not epoll.poll(0)
        read_exactly(conn, sent)
        assert epoll.poll(PATIENCE)


def level_triggered_epoll_repeats(ends: Endpoints) -> None:
    with ends.connected() as (client, conn), select.epoll() as epoll:
        epoll.register(conn.fileno(), select.EPOLLIN)
        client.send(b"x")
        assert epoll.poll(PATIENCE)
        assert epoll.poll(0)
        conn.recv(1)
        assert not epoll.poll(0)


def shutdown_wakes_a_reader(ends: Endpoints) -> None:
    with ends.connected() as (_, conn):
        got: list[bytes] = []
        conn.settimeout(None)
        reader = threading.Thread(target=lambda: got.append(conn.recv(1)))
        reader.start()
        conn.shutdown(std.SHUT_RDWR)
        reader.join(PATIENCE)
        assert got == [b""]


def writing_to_a_closed_peer_fails(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        conn.close()
        with ends_quietly():
            for _ in range(1000):
                client.send(BULK[:4096])
                wait_mask(client, select.POLLOUT)
            raise AssertionError("a closed peer took a thousand buffers")


def peek_and_waitall(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        client.sendall(b"abc")
        wait_mask(conn, select.POLLIN)
        assert conn.recv(2, std.MSG_PEEK) == b"ab"
        assert conn.recv(2) == b"ab"
        conn.settimeout(None)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(conn.recv(5, std.MSG_WAITALL)))
        reader.start()
        client.sendall(b"def")
        client.sendall(b"g")
        reader.join(PATIENCE)
        assert got == [b"cdefg"]


def messages_scatter_and_gather(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        assert client.sendmsg([b"head", bytearray(b"er"), memoryview(b"payload")]) == 13
        head, rest = bytearray(6), bytearray(20)
        wait_mask(conn, select.POLLIN)
        count, control, flags, _ = conn.recvmsg_into([head, rest], 0, 0)
        assert (count, control, flags & std.MSG_TRUNC) == (13, [], 0)
        assert bytes(head) == b"header"
        assert rest.startswith(b"payload")
        client.sendall(b"again")
        wait_mask(conn, select.POLLIN)
        assert conn.recv_into(rest, 3) == 3
        assert conn.recvmsg(10)[0] == b"in"


def files_over_a_socket(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        with client.makefile("w", encoding="utf-8", newline="\n") as out:
            out.write("zwölf\nlines\n")
        client.shutdown(std.SHUT_WR)
        with conn.makefile("r", encoding="utf-8") as lines:
            assert list(lines) == ["zwölf\n", "lines\n"]


def a_file_object_outlives_its_socket(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        reader = client.makefile("rb")
        client.close()
        conn.sendall(b"late")
        conn.shutdown(std.SHUT_WR)
        assert reader.read() == b"late"
        reader.close()
        assert client.fileno() == -1


def sendfile_sends_a_part_and_moves_on(ends: Endpoints) -> None:
    with ends.connected() as (client, conn), tempfile.TemporaryFile() as file:
        file.write(BULK)
        file.flush()
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(read_exactly(conn, 300_000)))
        reader.start()
        assert client.sendfile(cast(io.BufferedReader, file), 1000, 300_000) == 300_000
        reader.join(PATIENCE)
        assert got == [BULK[1000:301_000]]
        assert file.tell() == 301_000


def options_answer_as_ints_and_octets(ends: Endpoints) -> None:
    with ends.connected() as (client, _):
        kind = client.getsockopt(std.SOL_SOCKET, std.SO_TYPE)
        assert kind == client.type == std.SOCK_STREAM
        raw = client.getsockopt(std.SOL_SOCKET, std.SO_TYPE, 4)
        assert int.from_bytes(raw, "little") == kind
        assert client.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0
        client.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, 8192)
        assert client.getsockopt(std.SOL_SOCKET, std.SO_SNDBUF) == 16384
        expect_errno(lambda: client.getsockopt(std.SOL_SOCKET, 9999), errno.ENOPROTOOPT)


def a_duplicate_is_the_same_socket(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        with client.dup() as twin:
            assert twin.fileno() != client.fileno()
            twin.sendall(b"one")
        client.sendall(b"two")
        assert read_exactly(conn, 6) == b"onetwo"


def asyncio_reads_and_writes(ends: Endpoints) -> None:
    async def move() -> None:
        loop = asyncio.get_running_loop()
        with ends.bound() as server, ends.client() as client:
            server.listen()
            for sock in (server, client):
                sock.setblocking(False)
            plain, listener = cast(std.socket, client), cast(std.socket, server)
            accepted = asyncio.ensure_future(loop.sock_accept(listener))
            await loop.sock_connect(plain, server.getsockname())
            conn, _ = await accepted
            conn.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=conn)
            sending = asyncio.ensure_future(loop.sock_sendall(plain, BULK))
            assert await reader.readexactly(len(BULK)) == BULK
            await sending
            writer.write(BULK)
            received = bytearray()
            while len(received) < len(BULK):
                received += await loop.sock_recv(plain, 65536)
            assert bytes(received) == BULK
            writer.close()
            await writer.wait_closed()
            assert await loop.sock_recv(plain, 1) == b""

    asyncio.run(asyncio.wait_for(move(), PATIENCE))


# -- datagrams --------------------------------------------------------------------------------


def datagrams_keep_their_bounds_and_say_who_sent_them(ends: Endpoints) -> None:
    with ends.bound() as receiver, ends.client() as sender:
        for text in (b"one", b"", b"three"):
            assert sender.sendto(text, receiver.getsockname()) == len(text)
        got = [receiver.recvfrom(100) for _ in range(3)]
        assert [data for data, _ in got] == [b"one", b"", b"three"]
        # The sender's host is known to the receiver alone if it was bound to none; ports agree.
        assert {address[1] for _, address in got} == {sender.getsockname()[1]}


def what_does_not_fit_is_cut_off_and_said(ends: Endpoints) -> None:
    with ends.bound() as receiver, ends.client() as sender:
        sender.sendto(b"too long", receiver.getsockname())
        sender.sendto(b"next", receiver.getsockname())
        data, _, flags, _ = receiver.recvmsg(3)
        assert (data, flags & std.MSG_TRUNC) == (b"too", std.MSG_TRUNC)
        buffer = bytearray(10)
        assert receiver.recv_into(buffer, 0, std.MSG_PEEK) == 4
        assert receiver.recv(10) == b"next"


def a_connected_datagram_socket_has_one_peer(ends: Endpoints) -> None:
    with ends.bound() as receiver, ends.client() as sender, ends.client() as stranger:
        expect_errno(lambda: sender.send(b"x"), errno.EDESTADDRREQ, errno.ENOTCONN)
        sender.connect(receiver.getsockname())
        sender.send(b"hello")
        _, address = receiver.recvfrom(10)
        stranger.sendto(b"stranger", address)
        receiver.sendto(b"peer", address)
        assert sender.recv(10) == b"peer"
        sender.setblocking(False)
        expect_errno(lambda: sender.recv(10), errno.EAGAIN)


def datagrams_make_the_descriptor_readable(ends: Endpoints) -> None:
    with ends.bound() as receiver, ends.client() as sender:
        assert mask_of(receiver) == select.POLLOUT
        sender.sendto(b"x", receiver.getsockname())
        wait_mask(receiver, select.POLLIN)
        receiver.recv(1)
        assert mask_of(receiver) == select.POLLOUT


def a_datagram_socket_does_not_listen(ends: Endpoints) -> None:
    with ends.bound() as sock:
        sock.setblocking(False)
        expect_errno(sock.listen, errno.EOPNOTSUPP)
        expect_errno(sock.accept, errno.EOPNOTSUPP)


Check = Callable[[Endpoints], None]

STREAM_CHECKS: Final[tuple[Check, ...]] = (
    octets_arrive_in_order_and_then_the_end,
    a_half_closed_stream_still_carries_the_other_way,
    names_at_both_ends_agree,
    connecting_to_nobody_is_refused,
    an_address_in_use_is_eaddrinuse,
    calls_in_the_wrong_state_are_refused,
    a_socket_that_does_not_block_says_so,
    a_timeout_ends_a_wait,
    poll_tells_the_truth_both_ways,
    an_edge_comes_with_every_arrival,
    an_edge_comes_when_there_is_room_again,
    level_triggered_epoll_repeats,
    shutdown_wakes_a_reader,
    writing_to_a_closed_peer_fails,
    peek_and_waitall,
    messages_scatter_and_gather,
    files_over_a_socket,
    a_file_object_outlives_its_socket,
    sendfile_sends_a_part_and_moves_on,
    options_answer_as_ints_and_octets,
    a_duplicate_is_the_same_socket,
    asyncio_reads_and_writes,
    *MORE_STREAM_CHECKS,
)
DATAGRAM_CHECKS: Final[tuple[Check, ...]] = (
    datagrams_keep_their_bounds_and_say_who_sent_them,
    what_does_not_fit_is_cut_off_and_said,
    a_connected_datagram_socket_has_one_peer,
    datagrams_make_the_descriptor_readable,
    a_datagram_socket_does_not_listen,
)

__all__ = [
    "BULK",
    "DATAGRAM_CHECKS",
    "OOB_CHECKS",
    "PATIENCE",
    "STREAM_CHECKS",
    "Check",
    "Endpoints",
    "ends_quietly",
    "expect_errno",
    "fill",
    "mask_of",
    "outcome_of",
    "read_exactly",
    "wait_mask",
]
