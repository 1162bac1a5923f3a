"""More of what socket(7) and tcp(7) promise of a stream: its ends, its errors, its urgent octet.

Part of the suite in steertag.testing.families; one claim to a function.
"""

from __future__ import annotations

import errno
import select
import socket as std
import struct
from collections.abc import Callable
from typing import Final

from steertag.family.sock import POLLRDHUP
from steertag.socket import socket
from steertag.testing.endpoints import (
    BULK,
    PATIENCE,
    Calls,
    Endpoints,
    ends_quietly,
    expect_errno,
    mask_of,
    read_exactly,
    wait_mask,
)

HUGE: Final = BULK * 16  # 8 MiB: more than any buffer between the two holds
_LINGER: Final = struct.Struct("ii")


# -- connecting -------------------------------------------------------------------------------


def _start_connecting(client: socket, address: object) -> int:
    client.setblocking(False)
    return client.connect_ex(address)


def a_connect_that_does_not_block_is_told_by_the_descriptor(ends: Endpoints) -> None:
    with ends.bound() as server, ends.client() as client:
        server.listen()
        assert _start_connecting(client, server.getsockname()) in (0, errno.EINPROGRESS)
        again = client.connect_ex(server.getsockname())
        assert again in (0, errno.EALREADY, errno.EISCONN), errno.errorcode[again]
        conn, _ = server.accept()
        with conn:
            conn.settimeout(PATIENCE)
            wait_mask(client, select.POLLOUT)
            assert client.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0
            assert client.getpeername() == server.getsockname()
            client.send(b"x")
            assert conn.recv(1) == b"x"


def a_refused_connect_that_does_not_block_is_so_error(ends: Endpoints) -> None:
    with ends.bound() as server, ends.client() as client:
        code = _start_connecting(client, server.getsockname())
        if code == errno.EINPROGRESS:
            wait_mask(client, select.POLLOUT)
            code = client.getsockopt(std.SOL_SOCKET, std.SO_ERROR)
            assert client.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0, "an error told twice"
        assert code == errno.ECONNREFUSED, errno.errorcode.get(code, code)


def a_refused_socket_connects_elsewhere(ends: Endpoints) -> None:
    with ends.bound() as nobody, ends.bound() as server, ends.client() as client:
        server.listen()
        client.settimeout(None)  # or Linux reports the refusal twice
        expect_errno(lambda: client.connect(nobody.getsockname()), errno.ECONNREFUSED)
        client.connect(server.getsockname())
        conn, _ = server.accept()
        with conn:
            client.send(b"x")
            conn.settimeout(PATIENCE)
            assert conn.recv(1) == b"x"


def what_ended_before_it_was_accepted_is_all_there(ends: Endpoints) -> None:
    with ends.bound() as server:
        server.listen()
        with ends.client() as client:
            client.connect(server.getsockname())
            client.sendall(b"all of it")
        conn, _ = server.accept()
        with conn:
            conn.settimeout(PATIENCE)
            assert read_exactly(conn, 9) == b"all of it"
            assert conn.recv(1) == b""


def connections_wait_in_their_order(ends: Endpoints) -> None:
    with ends.bound() as server:
        server.listen(8)
        clients = [ends.client() for _ in range(5)]
        for number, client in enumerate(clients):
            client.connect(server.getsockname())
            client.send(bytes([number]))
        for number, client in enumerate(clients):
            conn, peer = server.accept()
            with conn, client:
                conn.settimeout(PATIENCE)
                assert (conn.recv(1), peer) == (bytes([number]), client.getsockname())


# -- moving octets ----------------------------------------------------------------------------


def one_write_may_be_huge(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        client.settimeout(None)
        reading = Calls(lambda: read_exactly(conn, len(HUGE)) == HUGE)
        assert client.send(HUGE) == len(HUGE), "a socket that blocks takes all of a stream's write"
        assert reading.outcome() is True


def both_directions_carry_at_once(ends: Endpoints) -> None:
    other_way = HUGE[::-1]
    with ends.connected() as (client, conn):
        calls = [
            Calls(lambda: client.sendall(HUGE)),
            Calls(lambda: conn.sendall(other_way)),
            Calls(lambda: read_exactly(client, len(HUGE)) == other_way),
            Calls(lambda: read_exactly(conn, len(HUGE)) == HUGE),
        ]
        assert [call.outcome() for call in calls] == [None, None, True, True]


def many_small_writes_are_one_stream(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        sizes = [1 + number % 97 for number in range(500)]
        reading = Calls(lambda: read_exactly(conn, sum(sizes)))
        at = 0
        for size in sizes:
            client.sendall(BULK[at : at + size])
            at += size
        assert reading.outcome() == BULK[:at]


def nothing_sent_is_nothing(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        assert client.send(b"") == 0
        client.sendall(b"")
        client.send(b"x")
        assert conn.recv(10) == b"x"


def a_look_ahead_takes_nothing(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        client.sendall(b"look")
        client.shutdown(std.SHUT_WR)
        wait_mask(conn, POLLRDHUP)
        buffer = bytearray(8)
        assert conn.recv(4, std.MSG_PEEK) == b"look"
        assert (conn.recv_into(buffer, 2, std.MSG_PEEK), bytes(buffer[:2])) == (2, b"lo")
        assert conn.recvmsg(8, 0, std.MSG_PEEK)[0] == b"look"
        assert read_exactly(conn, 4) == b"look"
        assert conn.recv(1, std.MSG_PEEK) == conn.recv(1) == b""


def waitall_ends_with_the_stream(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        conn.settimeout(None)
        reading = Calls(lambda: conn.recv(100, std.MSG_WAITALL))
        client.sendall(b"one")
        client.sendall(b"two")
        client.shutdown(std.SHUT_WR)
        assert reading.outcome() == b"onetwo"


# -- its ends ---------------------------------------------------------------------------------


def a_blocked_reader_is_told_of_the_end(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        reading = Calls(lambda: conn.recv(1))
        client.close()
        assert reading.outcome() == b""


def closed_for_receiving_still_sends(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        conn.shutdown(std.SHUT_RD)
        assert conn.recv(1) == b""
        conn.sendall(b"still")
        assert read_exactly(client, 5) == b"still"


def closed_for_sending_says_epipe(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        client.shutdown(std.SHUT_WR)
        client.shutdown(std.SHUT_WR)  # nothing more to end, and no error
        expect_errno(lambda: client.send(b"x"), errno.EPIPE)
        expect_errno(lambda: client.sendall(b"x"), errno.EPIPE)
        expect_errno(lambda: client.sendmsg([b"x"]), errno.EPIPE)
        conn.sendall(b"y")
        assert client.recv(1) == b"y"


def closed_both_ways_is_both(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        client.shutdown(std.SHUT_RDWR)
        assert client.recv(1) == b""
        expect_errno(lambda: client.send(b"x"), errno.EPIPE)
        assert conn.recv(1) == b""


def no_other_way_to_shut_down(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        expect_errno(lambda: client.shutdown(3), errno.EINVAL)
        client.send(b"x")
        assert conn.recv(1) == b"x"


def the_descriptor_tells_one_end_from_both(ends: Endpoints) -> None:
    asked = select.POLLIN | POLLRDHUP
    with ends.connected() as (client, conn):
        client.shutdown(std.SHUT_WR)
        wait_mask(conn, POLLRDHUP)
        assert mask_of(conn, asked) & (asked | select.POLLHUP) == asked
        conn.shutdown(std.SHUT_WR)
        wait_mask(conn, select.POLLHUP)
        wait_mask(client, select.POLLHUP)


def an_edge_comes_with_the_end(ends: Endpoints) -> None:
    with ends.connected() as (client, conn), select.epoll() as epoll:
        epoll.register(conn.fileno(), select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        client.send(b"x")
        assert epoll.poll(PATIENCE)
        client.shutdown(std.SHUT_WR)
        events = epoll.poll(PATIENCE)
        assert events
        assert events[0][1] & select.EPOLLRDHUP


def an_edge_comes_with_every_connection(ends: Endpoints) -> None:
    with ends.bound() as server, select.epoll() as epoll:
        server.listen()
        epoll.register(server.fileno(), select.EPOLLIN | select.EPOLLET)
        for _ in range(2):
            with ends.client() as client:
                client.connect(server.getsockname())
                assert epoll.poll(PATIENCE), "no edge, though a connection waits"
        for _ in range(2):
            server.accept()[0].close()


# -- lingering and errors ---------------------------------------------------------------------


def _set_linger(sock: socket, seconds: int) -> None:
    sock.setsockopt(std.SOL_SOCKET, std.SO_LINGER, _LINGER.pack(1, seconds))
    raw = sock.getsockopt(std.SOL_SOCKET, std.SO_LINGER, _LINGER.size)
    assert _LINGER.unpack(raw) == (1, seconds)


def a_close_that_lingers_delivers(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        _set_linger(client, int(PATIENCE))
        reading = Calls(lambda: read_exactly(conn, len(BULK)) == BULK)
        client.sendall(BULK)
        client.close()
        assert reading.outcome() is True
        assert conn.recv(1) == b""


def a_close_without_linger_resets(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        _set_linger(client, 0)
        client.close()
        wait_mask(conn, select.POLLIN)
        expect_errno(lambda: conn.recv(1), errno.ECONNRESET)


def a_reset_is_told_once(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        _set_linger(client, 0)
        client.close()
        wait_mask(conn, select.POLLHUP)
        assert conn.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == errno.ECONNRESET
        assert conn.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0
        assert conn.recv(1) == b""
        expect_errno(lambda: conn.send(b"x"), errno.EPIPE)


def a_blocked_reader_is_told_of_a_reset(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        reading = Calls(lambda: conn.recv(1))
        _set_linger(client, 0)
        client.close()
        outcome = reading.outcome()
        assert isinstance(outcome, ConnectionResetError), outcome


def a_blocked_writer_is_told_of_a_closed_peer(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        writing = Calls(lambda: client.sendall(HUGE * 4))
        assert conn.recv(1) == HUGE[:1]
        conn.close()  # with octets unread
        outcome = writing.outcome()
        assert isinstance(outcome, ConnectionResetError | BrokenPipeError), outcome


def a_closed_peer_is_told_by_the_second_write(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        conn.close()
        wait_mask(client, POLLRDHUP)
        with ends_quietly():
            client.send(b"the peer answers this with a reset")
            wait_mask(client, select.POLLERR | select.POLLHUP)
            client.send(b"and this finds it")
            raise AssertionError("a write to a reset connection was taken")


# -- urgent data ------------------------------------------------------------------------------


def an_urgent_octet_comes_by_itself(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        client.sendall(b"ab")
        assert client.send(b"!", std.MSG_OOB) == 1
        client.sendall(b"cd")
        wait_mask(conn, select.POLLPRI)
        assert conn.recv(1, std.MSG_OOB) == b"!"
        assert read_exactly(conn, 4) == b"abcd"
        assert not mask_of(conn, select.POLLPRI)
        conn.setblocking(False)
        expect_errno(lambda: conn.recv(1, std.MSG_OOB), errno.EINVAL)


def a_read_stops_at_the_mark(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        client.sendall(b"ab")
        client.send(b"!", std.MSG_OOB)
        client.sendall(b"cd")
        client.shutdown(std.SHUT_WR)
        wait_mask(conn, POLLRDHUP)
        assert conn.recv(10) == b"ab"
        assert conn.recv(10) == b"cd"
        assert conn.recv(10) == b""


def an_urgent_octet_in_line_is_one_of_the_stream(ends: Endpoints) -> None:
    with ends.connected() as (client, conn):
        conn.setsockopt(std.SOL_SOCKET, std.SO_OOBINLINE, 1)
        client.sendall(b"ab")
        client.send(b"!", std.MSG_OOB)
        client.sendall(b"cd")
        assert read_exactly(conn, 5) == b"ab!cd"
        conn.setblocking(False)
        expect_errno(lambda: conn.recv(1, std.MSG_OOB), errno.EINVAL)


def without_urgent_data_there_is_none_to_read(ends: Endpoints) -> None:
    with ends.connected() as (_, conn):
        conn.setblocking(False)
        expect_errno(lambda: conn.recv(1, std.MSG_OOB), errno.EINVAL)


MORE_STREAM_CHECKS: Final[tuple[Callable[[Endpoints], None], ...]] = (
    a_connect_that_does_not_block_is_told_by_the_descriptor,
    a_refused_connect_that_does_not_block_is_so_error,
    a_refused_socket_connects_elsewhere,
    what_ended_before_it_was_accepted_is_all_there,
    connections_wait_in_their_order,
    one_write_may_be_huge,
    both_directions_carry_at_once,
    many_small_writes_are_one_stream,
    nothing_sent_is_nothing,
    a_look_ahead_takes_nothing,
    waitall_ends_with_the_stream,
    a_blocked_reader_is_told_of_the_end,
    closed_for_receiving_still_sends,
    closed_for_sending_says_epipe,
    closed_both_ways_is_both,
    no_other_way_to_shut_down,
    the_descriptor_tells_one_end_from_both,
    an_edge_comes_with_the_end,
    an_edge_comes_with_every_connection,
    a_close_that_lingers_delivers,
    a_close_without_linger_resets,
    a_reset_is_told_once,
    a_blocked_reader_is_told_of_a_reset,
    a_blocked_writer_is_told_of_a_closed_peer,
    a_closed_peer_is_told_by_the_second_write,
)
OOB_CHECKS: Final[tuple[Callable[[Endpoints], None], ...]] = (
    an_urgent_octet_comes_by_itself,
    a_read_stops_at_the_mark,
    an_urgent_octet_in_line_is_one_of_the_stream,
    without_urgent_data_there_is_none_to_read,
)
