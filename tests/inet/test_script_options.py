"""Keepalive, user timeout, Fast Open (RFC 7413), SYN cookies, DEFER_ACCEPT, TCP_INFO."""

from __future__ import annotations

import errno
import select
import socket as std
import struct

from tests.inet.script import Script, conformance

PLAIN = "<mss 1000>"
TCP_FASTOPEN_CONNECT = 30
MSG_FASTOPEN = 0x20000000


def keep_alive(s: Script, conn: std.socket, idle: int, interval: int, probes: int) -> None:
    conn.setsockopt(std.SOL_SOCKET, std.SO_KEEPALIVE, 1)
    s.set(conn, TCP_KEEPIDLE=idle, TCP_KEEPINTVL=interval, TCP_KEEPCNT=probes)


@conformance()
def test_a_silent_peer_is_asked_and_answers(s: Script) -> None:
    conn = s.accepted(PLAIN)
    keep_alive(s, conn, 1, 1, 3)
    s.expect(". 0:0(0) ack 1", after=1.0)
    s.inject(". 1:1(0) ack 1")
    s.expect(". 0:0(0) ack 1", after=1.0)


@conformance()
def test_a_peer_that_does_not_answer_any_more_ends_with_etimedout(s: Script) -> None:
    conn = s.accepted(PLAIN)
    keep_alive(s, conn, 1, 1, 2)
    s.expect(". 0:0(0) ack 1", after=1.0)
    s.expect(". 0:0(0) ack 1", after=1.0)
    s.expect("R. 1:1(0) ack 1", after=1.0)
    s.fails(errno.ETIMEDOUT, conn.recv, 1)


@conformance()
def test_data_puts_the_question_off(s: Script) -> None:
    conn = s.accepted(PLAIN)
    keep_alive(s, conn, 1, 1, 3)
    s.sleep(0.6)
    s.inject("P. 1:11(10) ack 1")
    s.expect(". 1:1(0) ack 11")
    s.nothing(0.7)
    s.expect(". 0:0(0) ack 11", within=0.5)


@conformance()
def test_a_question_is_answered_with_an_acknowledgment(s: Script) -> None:
    s.accepted(PLAIN)
    s.inject(". 0:0(0) ack 1")
    s.expect(". 1:1(0) ack 1")
    s.inject(". 0:1(1) ack 1")
    s.expect(". 1:1(0) ack 1", within=1)


@conformance()
def test_a_user_timeout_bounds_how_long_a_question_waits(s: Script) -> None:
    conn = s.accepted(PLAIN)
    keep_alive(s, conn, 1, 1, 100)
    conn.setsockopt(std.IPPROTO_TCP, std.TCP_USER_TIMEOUT, 2500)
    s.expect(". 0:0(0) ack 1", after=1.0)
    s.expect(". 0:0(0) ack 1", after=1.0)
    s.expect("R. 1:1(0) ack 1", after=1.0)
    s.fails(errno.ETIMEDOUT, conn.recv, 1)


@conformance()
def test_defer_accept_waits_for_data(s: Script) -> None:
    listener = s.listener(TCP_DEFER_ACCEPT=5)
    s.handshake(PLAIN)
    s.nothing(0.1)
    s.fails(errno.EAGAIN, listener.accept)
    s.inject("P. 1:11(10) ack 1")
    s.expect(". 1:1(0) ack 11")
    assert s.accept(listener).recv(100) == s.octets(10)


@conformance(sysctls={"net.ipv4.tcp_syncookies": 2})
def test_a_syn_cookie_makes_a_connection(s: Script) -> None:
    listener = s.listener()
    s.inject("S 0:0(0) win 65535 <mss 1460>")
    s.expect("S. 0:0(0) ack 1 <mss 1460>")
    s.inject(". 1:1(0) ack 1")
    conn = s.accept(listener)
    s.inject("P. 1:11(10) ack 1")
    s.expect(". 1:1(0) ack 11")
    assert conn.recv(100) == s.octets(10)
    conn.send(s.octets(2000))
    s.expect(". 1:1461(1460) ack 11")


@conformance(sysctls={"net.ipv4.tcp_syncookies": 2})
def test_a_syn_cookie_keeps_the_options_in_the_timestamp(s: Script) -> None:
    listener = s.listener()
    s.handshake()
    conn = s.accept(listener)
    s.inject(". 101:201(100) ack 1")
    s.expect(". 1:1(0) ack 1 <TS,sack 101:201>")
    assert conn.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 256)[5] & 7 == 7  # TS, SACK, wscale


@conformance(sysctls={"net.ipv4.tcp_syncookies": 2})
def test_a_cookie_that_is_none_is_reset(s: Script) -> None:
    listener = s.listener()
    s.inject("S 0:0(0) win 65535 <mss 1460>")
    s.expect("S. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 77")
    s.expect("R 77:77(0)")
    s.fails(errno.EAGAIN, listener.accept)


@conformance(sysctls={"net.ipv4.tcp_syncookies": 1})
def test_a_backlog_that_is_full_drops_the_last_ack(s: Script) -> None:
    listener = s.listener(backlog=1)
    for port in range(41000, 41002):
        s.handshake(PLAIN, s.new_flow(port))
    late = s.new_flow(41002)
    s.inject("S 0:0(0) <mss 1000>", late)
    s.nothing(0.2)
    s.accept(listener)
    s.inject("S 0:0(0) <mss 1000>", late)
    s.expect("S. 0:0(0) ack 1", late)


@conformance(sysctls={"net.ipv4.tcp_fastopen": 3})
def test_a_server_gives_a_fast_open_cookie_and_takes_data_with_it(s: Script) -> None:
    listener = s.listener(TCP_FASTOPEN=5)
    s.inject("S 0:0(0) <mss 1000,sackOK,FO>")
    found = s.expect("S. 0:0(0) ack 1 <mss 1460,sackOK,FO>")
    assert found.fast_open is not None
    assert len(found.fast_open) == 8
    s.inject("R 1:1(0)")
    flow = s.new_flow(40001)
    s.inject(f"S 0:100(100) <mss 1000,FO {found.fast_open.hex()}>", flow)
    s.expect("S. 0:0(0) ack 101 <mss 1460>", flow)
    conn = s.accept(listener)
    s.flow = flow
    assert conn.recv(1000) == s.octets(100, 0)
    conn.send(s.octets(50))
    s.expect("P. 1:51(50) ack 101", flow)
    s.inject(". 101:101(0) ack 51", flow)
    s.nothing(0.1)


@conformance(sysctls={"net.ipv4.tcp_fastopen": 3})
def test_a_wrong_fast_open_cookie_is_answered_with_the_right_one(s: Script) -> None:
    s.listener(TCP_FASTOPEN=5)
    s.inject("S 0:100(100) <mss 1000,FO 0102030405060708>")
    found = s.expect("S. 0:0(0) ack 1 <mss 1460,FO>")
    assert found.fast_open
    assert found.fast_open != bytes(range(1, 9))


@conformance(sysctls={"net.ipv4.tcp_fastopen": 1})
def test_a_client_asks_for_a_cookie_and_sends_data_with_it(s: Script) -> None:
    sock = s.socket()
    s.fails(errno.EINPROGRESS, sock.sendto, b"hello", MSG_FASTOPEN, (s.ours, s.flow.port))
    s.expect("S 0:0(0) <mss 1460,sackOK,TS,wscale,FO>")
    s.inject("S. 0:0(0) ack 1 <mss 1460,FO 0102030405060708>")
    s.expect(". 1:1(0) ack 1")
    sock.send(s.octets(5))
    s.expect("P. 1:6(5) ack 1")
    s.inject("R 1:1(0)")
    s.flow.their_isn = None
    sock = s.socket()
    data = s.octets(5, 0)
    assert sock.sendto(data, MSG_FASTOPEN, (s.ours, s.flow.port)) == 5
    s.expect("S 0:5(5) <mss 1460,sackOK,TS,wscale,FO 0102030405060708>")
    s.inject("S. 0:0(0) ack 6 <mss 1460>")
    s.expect(". 6:6(0) ack 1")


@conformance(sysctls={"net.ipv4.tcp_fastopen": 5})
def test_data_of_a_syn_that_was_not_taken_is_sent_again(s: Script) -> None:
    sock = s.socket()
    data = s.octets(100, 0)
    assert sock.sendto(data, MSG_FASTOPEN, (s.ours, s.flow.port)) == 100
    s.expect("S 0:100(100) <mss 1460,sackOK,TS,wscale>")
    s.inject("S. 0:0(0) ack 1 <mss 1460>")
    s.expect("P. 1:101(100) ack 1")
    s.inject(". 1:1(0) ack 101")
    s.nothing(0.3)


@conformance(sysctls={"net.ipv4.tcp_fastopen": 1})
def test_fast_open_connect_puts_the_syn_off_until_the_first_send(s: Script) -> None:
    sock = s.socket()
    sock.setsockopt(std.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    # Without a cookie there is nothing to wait for.
    assert sock.connect_ex((s.ours, s.flow.port)) == errno.EINPROGRESS
    s.expect("S 0:0(0) <mss 1460,sackOK,TS,wscale,FO>")


@conformance()
def test_tcp_info_tells_state_options_and_round_trip_time(s: Script) -> None:
    conn = s.accepted(rtt=0.05)
    info = conn.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 104)
    state, _, _, _, _, options, scales, flags = info[:8]
    assert (state, options & 7, scales & 0xF) == (1, 7, 7)
    assert flags == 1  # no delivery was measured yet, but for the application's pace
    rto, _, snd_mss, rcv_mss = struct.unpack_from("=4I", info, 8)
    rtt, rttvar = struct.unpack_from("=2I", info, 68)
    assert snd_mss == 1448
    assert rcv_mss > 0
    assert 45_000 <= rtt <= 500_000
    assert rttvar > 0
    assert rto >= 200_000


@conformance()
def test_the_type_of_service_of_a_socket_is_in_its_packets(s: Script) -> None:
    sock = s.socket()
    sock.setsockopt(std.IPPROTO_IP, std.IP_TOS, 0x10)
    sock.setsockopt(std.IPPROTO_IP, std.IP_TTL, 33)
    s.connect(sock)
    syn = s.expect("S 0:0(0)")
    assert (s.last_octets[1], syn.ttl) == (0x10, 33)


@conformance(sysctls={"net.ipv4.tcp_challenge_ack_limit": 5})
def test_out_of_window_segments_are_answered_twice_a_second_at_most(s: Script) -> None:
    s.accepted(PLAIN)
    for _ in range(50):
        s.inject(". 2000001:2000001(0) ack 1")
    assert len(s.skip(0.1)) == 1


@conformance()
def test_so_error_is_given_once(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.inject("R. 0:0(0) ack 1")
    s.writable(sock)
    assert s.events(sock) & select.POLLHUP
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == errno.ECONNREFUSED
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0


@conformance()
def test_so_reuseport_lets_two_listen_and_a_connection_has_one(s: Script) -> None:
    listeners = []
    for _ in range(2):
        sock = s.socket()
        sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEPORT, 1)
        sock.bind((s.theirs, 8080))
        sock.listen(5)
        listeners.append(sock)
    for port in range(42000, 42008):
        s.handshake(PLAIN, s.new_flow(port))
    s.skip(0.05)
    accepted = [0, 0]
    for which, listener in enumerate(listeners):
        while s.events(listener) & select.POLLIN:
            s.accept(listener)
            accepted[which] += 1
    assert sum(accepted) == 8
    assert all(accepted)


@conformance()
def test_notsent_lowat_says_when_a_socket_is_writable(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.setsockopt(std.IPPROTO_TCP, std.TCP_NOTSENT_LOWAT, 1000)
    s.flow.window = 0
    conn.send(s.octets(30000))
    s.skip(0.01)
    assert not s.events(conn) & select.POLLOUT


@conformance()
def test_the_congestion_control_is_chosen_per_socket(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.setsockopt(std.IPPROTO_TCP, std.TCP_CONGESTION, b"reno")
    name = conn.getsockopt(std.IPPROTO_TCP, std.TCP_CONGESTION, 16)
    assert name.rstrip(b"\0") == b"reno"
    s.fails(errno.ENOENT, conn.setsockopt, std.IPPROTO_TCP, std.TCP_CONGESTION, b"nonesuch")
