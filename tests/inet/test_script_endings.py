"""Endings: close, half-close, TIME-WAIT, resets and errors (RFC 9293 section 3.6; 1122, 5961)."""

from __future__ import annotations

import errno
import select
import socket as std
import struct

from tests.inet.script import Script, conformance

PLAIN = "<mss 1000>"
LINGER_0 = struct.pack("ii", 1, 0)


@conformance(v=(4, 6))
def test_close_sends_a_fin_and_the_peers_is_acknowledged_in_time_wait(s: Script) -> None:
    conn = s.accepted()
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject(". 1:1(0) ack 2")
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2")
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2", within=0.3)


@conformance(v=(4, 6))
def test_the_peers_fin_is_the_end_of_the_stream_and_close_ends_the_connection(s: Script) -> None:
    conn = s.accepted()
    s.inject("F. 1:1(0) ack 1")
    s.expect(". 1:1(0) ack 2", within=0.3)
    assert s.events(conn) & select.POLLRDHUP
    assert conn.recv(10) == b""
    conn.close()
    s.expect("F. 1:1(0) ack 2")
    s.inject(". 2:2(0) ack 2")
    s.inject(". 2:2(0) ack 2")
    s.expect("R 2:2(0)")


@conformance()
def test_after_shutdown_the_other_direction_goes_on(s: Script) -> None:
    conn = s.accepted()
    conn.shutdown(std.SHUT_WR)
    s.expect("F. 1:1(0) ack 1")
    s.fails(errno.EPIPE, conn.send, b"x")
    s.inject(". 1:1(0) ack 2")
    s.inject("P. 1:101(100) ack 2")
    s.expect(". 2:2(0) ack 101")
    assert conn.recv(1000) == s.octets(100)
    s.inject("F. 101:101(0) ack 2")
    s.expect(". 2:2(0) ack 102")
    assert conn.recv(10) == b""


@conformance()
def test_after_the_peers_fin_data_is_still_sent(s: Script) -> None:
    conn = s.accepted()
    s.inject("F. 1:1(0) ack 1")
    s.expect(". 1:1(0) ack 2", within=0.3)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 2")
    s.inject(". 2:2(0) ack 101")
    conn.close()
    s.expect("F. 101:101(0) ack 2")


@conformance()
def test_the_fin_goes_with_the_last_data(s: Script) -> None:
    s.flow.window = 0
    conn = s.accepted(PLAIN)
    conn.send(s.octets(100))
    conn.close()
    s.flow.window = 1000
    s.inject(". 1:1(0) ack 1")
    s.expect("FP. 1:101(100) ack 1")


@conformance()
def test_a_fin_that_is_lost_is_sent_again(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.expect("F. 1:1(0) ack 1", after=0.2)
    s.expect("F. 1:1(0) ack 1", after=0.4)


@conformance()
def test_a_fin_with_data_is_taken_with_it(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.inject("FP. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 102", within=0.3)
    assert conn.recv(1000) == s.octets(100)
    assert conn.recv(1000) == b""


@conformance()
def test_a_fin_before_its_data_waits_for_it(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.inject("FP. 101:201(100) ack 1")
    s.expect(". 1:1(0) ack 1")
    s.fails(errno.EAGAIN, conn.recv, 10)
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 202")
    assert conn.recv(1000) == s.octets(200)
    assert conn.recv(1000) == b""


@conformance()
def test_ends_that_close_at_once_both_come_to_time_wait(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject("F. 1:1(0) ack 1")
    s.expect(". 2:2(0) ack 2")
    s.inject(". 2:2(0) ack 2")
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2", within=0.3)


@conformance()
def test_close_with_unread_data_resets(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 101")
    conn.close()
    s.expect("R. 1:1(0) ack 101")
    s.inject(". 101:101(0) ack 1")
    s.expect("R 1:1(0)")


@conformance()
def test_data_for_a_socket_that_was_closed_is_reset(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject("P. 1:101(100) ack 2")
    s.expect("R 2:2(0)")


@conformance()
def test_so_linger_of_zero_resets(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.setsockopt(std.SOL_SOCKET, std.SO_LINGER, LINGER_0)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    conn.close()
    s.expect("R. 101:101(0) ack 1")
    s.nothing(0.3)


@conformance()
def test_a_reset_is_econnreset_once_and_then_the_end(s: Script) -> None:
    conn = s.accepted()
    s.inject("R. 1:1(0) ack 1")
    s.readable(conn)
    assert s.events(conn) & select.POLLHUP
    s.fails(errno.ECONNRESET, conn.recv, 10)
    assert conn.recv(10) == b""
    s.fails(errno.EPIPE, conn.send, b"x")
    s.fails(errno.ENOTCONN, conn.getpeername)


@conformance()
def test_a_reset_at_a_send_is_econnreset_and_then_epipe(s: Script) -> None:
    conn = s.accepted()
    s.inject("R. 1:1(0) ack 1")
    s.readable(conn)
    s.fails(errno.ECONNRESET, conn.send, b"x")
    s.fails(errno.EPIPE, conn.send, b"x")


@conformance()
def test_a_reset_after_the_peers_fin_is_epipe(s: Script) -> None:
    conn = s.accepted()
    s.inject("F. 1:1(0) ack 1")
    s.expect(". 1:1(0) ack 2", within=0.3)
    s.inject("R. 2:2(0) ack 1")
    s.nothing(0.05)
    s.fails(errno.EPIPE, conn.send, b"x")


@conformance()
def test_data_that_came_before_a_reset_can_be_read_and_then_the_error(s: Script) -> None:
    conn = s.accepted()
    s.inject("P. 1:11(10) ack 1")
    s.expect(". 1:1(0) ack 11")
    s.inject("R. 11:11(0) ack 1")
    s.readable(conn)
    s.nothing(0.05)
    assert conn.recv(10) == s.octets(10)
    s.fails(errno.ECONNRESET, conn.recv, 10)


@conformance()
def test_a_reset_in_time_wait_ends_it(s: Script) -> None:
    conn = s.accepted()
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2")
    s.inject("R 2:2(0)")
    s.inject(". 2:2(0) ack 2")
    s.expect("R 2:2(0)")


@conformance()
def test_a_syn_beyond_a_connection_in_time_wait_opens_a_new_one(s: Script) -> None:
    listener = s.listener()
    s.handshake()
    s.accept(listener).close()
    s.expect("F. 1:1(0) ack 1")
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2")
    s.flow.their_isn, old = None, s.flow.their_isn
    s.flow.isn = (s.flow.isn + 100_000) & 0xFFFFFFFF
    s.flow.tsval_offset = 100
    s.inject("S 0:0(0) <mss 1000,sackOK,TS val 5000 ecr 0,wscale 7>")
    s.expect("S. 0:0(0) ack 1")
    assert s.flow.their_isn != old
    s.inject(". 1:1(0) ack 1 <TS val 5001 ecr last>")
    s.accept(listener)


@conformance()
def test_a_syn_within_a_connection_in_time_wait_is_answered_with_its_ack(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2")
    s.inject("S 0:0(0) <mss 1000>")
    s.expect(". 2:2(0) ack 2")


@conformance(sysctls={"net.ipv4.tcp_fin_timeout": 2})
def test_a_peer_that_never_closes_is_forgotten_after_tcp_fin_timeout(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject(". 1:1(0) ack 2")
    s.nothing(3.2)
    s.inject("F. 1:1(0) ack 2")
    s.expect("R 2:2(0)")


@conformance()
def test_tcp_linger2_of_minus_one_forgets_at_once(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.set(conn, TCP_LINGER2=-1)
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject(". 1:1(0) ack 2")
    s.skip(0.05)
    s.inject("F. 1:1(0) ack 2")
    s.expect("R 2:2(0)")


@conformance()
def test_a_listener_that_closes_resets_those_who_wait_to_be_accepted(s: Script) -> None:
    listener = s.listener()
    s.handshake(PLAIN)
    listener.close()
    s.expect("R. 1:1(0) ack 1")


@conformance()
def test_shutdown_for_reading_is_the_end_and_sends_nothing(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.shutdown(std.SHUT_RD)
    s.nothing(0.05)
    assert conn.recv(10) == b""
    conn.send(s.octets(10))
    s.expect("P. 1:11(10) ack 1")


@conformance()
def test_shutdown_of_a_socket_that_is_not_connected_is_enotconn(s: Script) -> None:
    sock = s.socket()
    s.fails(errno.ENOTCONN, sock.shutdown, std.SHUT_WR)
    s.fails(errno.EPIPE, sock.send, b"x")
    s.fails(errno.ENOTCONN, sock.recv, 1)
    s.fails(errno.ENOTCONN, sock.getpeername)


@conformance()
def test_connect_that_is_refused_says_so_at_the_second_call(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.inject("R. 0:0(0) ack 1")
    s.writable(sock)
    s.fails(errno.ECONNREFUSED, sock.connect, (s.ours, s.flow.port))
    s.flow.their_isn = None
    s.connect(sock)
    s.expect("S 0:0(0)")


@conformance()
def test_recv_while_connecting_is_eagain_and_then_the_error(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.fails(errno.EAGAIN, sock.recv, 1)
    s.fails(errno.EAGAIN, sock.send, b"x")
    s.inject("R. 0:0(0) ack 1")
    s.writable(sock)
    s.fails(errno.ECONNREFUSED, sock.recv, 1)
    assert sock.recv(1) == b""


@conformance()
def test_a_listener_refuses_data_calls(s: Script) -> None:
    listener = s.listener()
    s.fails(errno.ENOTCONN, listener.recv, 1)
    s.fails(errno.EPIPE, listener.send, b"x")
    s.fails(errno.EISCONN, listener.connect, (s.ours, 1))
    s.fails(errno.EAGAIN, listener.accept)


@conformance()
def test_a_port_in_use_is_eaddrinuse(s: Script) -> None:
    s.listener()
    sock = s.socket()
    s.fails(errno.EADDRINUSE, sock.bind, (s.theirs, 8080))
    s.fails(errno.EADDRNOTAVAIL, sock.bind, ("198.51.100.7", 8080))
    sock.bind((s.theirs, 8081))
    s.fails(errno.EINVAL, sock.bind, (s.theirs, 8082))
    s.fails(errno.EINVAL, sock.accept)


@conformance()
def test_an_icmp_error_while_connecting_is_its_errno(s: Script) -> None:
    for code, error in ((3, errno.ECONNREFUSED), (1, errno.EHOSTUNREACH)):
        s.flow.their_isn = None
        sock = s.socket()
        s.connect(sock)
        s.expect("S 0:0(0)")
        s.icmp(3, code)
        s.writable(sock)
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == error
        sock.close()


@conformance()
def test_an_icmp_error_of_a_connection_is_remembered_and_not_fatal(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.send(s.octets(10))
    s.expect("P. 1:11(10) ack 1")
    s.icmp(3, 1)
    s.skip(0.01)
    s.fails(errno.EAGAIN, conn.recv, 1)
    conn.setsockopt(std.IPPROTO_TCP, std.TCP_USER_TIMEOUT, 500)
    s.skip(2)
    s.fails(errno.EHOSTUNREACH, conn.recv, 1)


@conformance()
def test_an_icmp_error_about_other_sequence_numbers_is_ignored(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    quoted = bytearray(s.last_octets)
    quoted[24:28] = b"\1\2\3\4"
    s.icmp(3, 3, quoted=bytes(quoted))
    s.nothing(0.1)
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0


@conformance()
def test_a_smaller_path_mtu_makes_smaller_segments_and_sends_the_lost_one_again(
    s: Script,
) -> None:
    conn = s.accepted()
    conn.send(s.octets(1448))
    s.expect("P. 1:1449(1448) ack 1")
    s.icmp(3, 4, info=1200)
    first = s.expect(". 1:1149(1148) ack 1", within=0.1)
    assert first.length == 1148
    s.skip(0.01)
    s.inject(". 1:1(0) ack 1449")
    conn.send(s.octets(2000, 1449))
    s.expect(". 1449:2597(1148) ack 1")


@conformance(v=(6,))
def test_packet_too_big_makes_smaller_segments(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(1428))
    s.expect("P. 1:1429(1428) ack 1")
    s.icmp(2, 0, info=1300)
    s.expect(". 1:1229(1228) ack 1", within=0.1)


@conformance()
def test_a_path_mtu_below_the_least_is_not_believed(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(1448))
    s.expect("P. 1:1449(1448) ack 1")
    s.icmp(3, 4, info=68)
    s.skip(0.01)
    s.inject(". 1:1(0) ack 1449")
    conn.send(s.octets(3000, 1449))
    found = s.skip(0.01)
    assert all(packet.length >= 500 for packet in found[:-1])


@conformance()
def test_disconnecting_makes_the_socket_new(s: Script) -> None:
    conn = s.connected(PLAIN)
    assert conn.getpeername() == (s.ours, s.flow.port)
    conn.close()
    s.expect("F. 1:1(0) ack 1")
