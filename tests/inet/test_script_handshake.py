"""Opening: the three-way handshake and its options (RFC 9293 section 3.5; 7323, 2018)."""

from __future__ import annotations

import errno
import socket as std

from tests.inet.script import PORT, SYN_OPTIONS, Script, conformance


@conformance(v=(4, 6))
def test_a_syn_with_every_option_is_answered_with_every_option(s: Script) -> None:
    listener = s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    mss = 1460 if s.v == 4 else 1440
    s.expect(f"S. 0:0(0) ack 1 <mss {mss},sackOK,TS ecr 1000,wscale>")
    s.inject(". 1:1(0) ack 1")
    conn = s.accept(listener)
    assert conn.getpeername()[:2] == (s.ours, s.flow.port)
    assert conn.getsockname()[:2] == (s.theirs, PORT)


@conformance()
def test_a_syn_without_options_is_answered_with_the_mss_alone(s: Script) -> None:
    s.listener()
    s.inject("S 0:0(0) win 65535 <>")
    s.expect("S. 0:0(0) ack 1 <mss 1460>")


@conformance()
def test_each_option_of_a_syn_is_agreed_on_by_itself(s: Script) -> None:
    s.listener()
    s.inject("S 0:0(0) win 65535 <mss 1000,sackOK>")
    s.expect("S. 0:0(0) ack 1 <mss 1460,sackOK>")
    flow = s.new_flow(40001)
    s.inject("S 0:0(0) win 65535 <mss 1000,wscale 3>", flow)
    s.expect("S. 0:0(0) ack 1 <mss 1460,wscale>", flow)
    flow = s.new_flow(40002)
    s.inject("S 0:0(0) win 65535 <mss 1000,TS val 77 ecr 0>", flow)
    s.expect("S. 0:0(0) ack 1 <mss 1460,TS ecr 77>", flow)


@conformance(sysctls={"net.ipv4.tcp_sack": 0, "net.ipv4.tcp_timestamps": 0})
def test_options_that_are_switched_off_are_neither_offered_nor_accepted(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1 <mss 1460,wscale>")
    s.connect(s.socket())
    s.flow.their_isn = None
    s.expect("S 0:0(0) <mss 1460,wscale>")


@conformance(sysctls={"net.ipv4.tcp_window_scaling": 0})
def test_window_scaling_that_is_switched_off_is_not_offered(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1 <mss 1460,sackOK,TS>")


@conformance()
def test_a_buffer_that_is_smaller_than_a_segment_offers_no_more_than_it_has(s: Script) -> None:
    s.listener(SO_RCVBUF=1200)
    s.inject("S 0:0(0) win 65535 <mss 1460>")
    answer = s.expect("S. 0:0(0) ack 1 <mss 1460>")
    assert answer.window == 1200


@conformance(v=(4, 6))
def test_connect_sends_a_syn_and_ends_with_the_ack_of_its_answer(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    mss = 1460 if s.v == 4 else 1440
    s.expect(f"S 0:0(0) <mss {mss},sackOK,TS ecr 0,wscale>")
    assert sock.connect_ex((s.ours, s.flow.port)) == errno.EALREADY
    s.inject("S. 0:0(0) ack 1 <mss 1460,sackOK,TS val 1000 ecr last,wscale 7>")
    s.expect(". 1:1(0) ack 1 <TS ecr 1000>")
    s.writable(sock)
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0
    assert sock.connect_ex((s.ours, s.flow.port)) in (0, errno.EISCONN)


@conformance()
def test_a_syn_that_is_not_answered_is_sent_again_and_again(s: Script) -> None:
    s.connect(s.socket())
    s.expect("S 0:0(0)")
    for wait in (1.0, 1.0, 1.0) if not s.side.exact else (1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0):
        s.expect("S 0:0(0)", after=wait)


@conformance(sysctls={"net.ipv4.tcp_syn_retries": 1, "net.ipv4.tcp_syn_linear_timeouts": 0})
def test_connect_gives_up_with_etimedout(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.expect("S 0:0(0)", after=1.0)
    s.nothing(2.5)
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == errno.ETIMEDOUT


@conformance()
def test_a_syn_ack_that_is_not_acknowledged_is_sent_again(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.expect("S. 0:0(0) ack 1", after=1.0)
    s.expect("S. 0:0(0) ack 1", after=2.0)


@conformance()
def test_a_syn_sent_twice_is_answered_twice(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1", within=0.5)


@conformance(v=(4, 6))
def test_connect_to_a_port_that_nobody_listens_on_is_refused(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.inject("R. 0:0(0) ack 1")
    s.writable(sock)
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == errno.ECONNREFUSED


@conformance()
def test_a_reset_that_does_not_acknowledge_the_syn_is_ignored(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.inject("R 0:0(0)")
    s.inject("R. 0:0(0) ack 9")
    s.inject("S. 0:0(0) ack 1 <mss 1460>")
    s.expect(". 1:1(0) ack 1")
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0


@conformance()
def test_a_syn_ack_of_something_else_is_reset_and_the_connection_goes_on(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.inject("S. 0:0(0) ack 5 <mss 1460>")
    s.expect("R 5:5(0)")
    s.inject("S. 0:0(0) ack 1 <mss 1460>")
    s.expect(". 1:1(0) ack 1")
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0


@conformance(v=(4, 6))
def test_a_segment_for_nobody_is_reset(s: Script) -> None:
    s.inject("S 0:0(0) <mss 1460>")
    s.expect("R. 0:0(0) ack 1", within=1)
    s.flow.their_isn = 0
    s.inject(". 7:17(10) ack 3")
    s.expect("R 3:3(0)")
    s.inject("R 7:7(0)")
    s.nothing(0.3)


@conformance()
def test_an_ack_that_a_listener_did_not_ask_for_is_reset(s: Script) -> None:
    s.listener()
    s.inject(". 1:1(0) ack 9")
    s.expect("R 9:9(0)")


@conformance()
def test_an_ack_of_another_sequence_number_is_reset_and_the_handshake_goes_on(s: Script) -> None:
    listener = s.listener()
    s.inject("S 0:0(0) <mss 1460>")
    s.expect("S. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 2")
    s.expect("R 2:2(0)")
    s.inject(". 1:1(0) ack 1")
    s.accept(listener)


@conformance()
def test_data_with_the_last_ack_of_the_handshake_is_received(s: Script) -> None:
    listener = s.listener()
    s.inject("S 0:0(0) <mss 1460>")
    s.expect("S. 0:0(0) ack 1")
    s.inject("P. 1:11(10) ack 1")
    s.expect(". 1:1(0) ack 11")
    assert s.accept(listener).recv(100) == s.octets(10)


@conformance()
def test_ends_that_connect_to_each_other_at_once_have_one_connection(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.inject("S 0:0(0) <mss 1460,sackOK,TS val 1000 ecr 0,wscale 7>")
    s.expect("S. 0:0(0) ack 1")
    s.inject("S. 0:0(0) ack 1 <mss 1460,sackOK,TS val 1001 ecr last,wscale 7>")
    s.skip(0.05)
    s.flow.timestamps = True
    s.inject(". 1:1(0) ack 1")
    s.writable(sock)
    s.skip(0.05)
    sock.send(s.octets(10))
    s.expect("P. 1:11(10) ack 1")


@conformance()
def test_a_syn_with_data_takes_no_data_without_a_fast_open_cookie(s: Script) -> None:
    s.listener()
    s.inject("S 0:10(10) <mss 1460>")
    s.expect("S. 0:0(0) ack 1")


@conformance()
def test_the_mss_of_the_peer_bounds_what_is_sent(s: Script) -> None:
    conn = s.accepted("<mss 300>")
    conn.send(s.octets(700))
    s.expect(". 1:301(300) ack 1")
    s.expect(". 301:601(300) ack 1")
    s.inject(". 1:1(0) ack 601")
    s.expect("P. 601:701(100) ack 1")


@conformance()
def test_a_peer_without_an_mss_gets_segments_of_536_octets(s: Script) -> None:
    conn = s.accepted("<>")
    conn.send(s.octets(1000))
    s.expect(". 1:537(536) ack 1")


@conformance()
def test_tcp_maxseg_bounds_what_is_offered_and_what_is_sent(s: Script) -> None:
    sock = s.socket()
    s.set(sock, TCP_MAXSEG=1000)
    s.connect(sock)
    s.expect("S 0:0(0) <mss 1000,sackOK,TS,wscale>")
    s.inject("S. 0:0(0) ack 1 <mss 1460>")
    s.expect(". 1:1(0) ack 1")
    sock.send(s.octets(1500))
    s.expect(". 1:1001(1000) ack 1")


@conformance()
def test_a_reset_ends_a_handshake_and_the_listener_stays(s: Script) -> None:
    listener = s.listener()
    s.inject(f"S 0:0(0) {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject("R 1:1(0)")
    s.nothing(0.3)
    s.fails(errno.EAGAIN, listener.accept)
    flow = s.new_flow(40001)
    s.handshake(flow=flow)
    s.accept(listener)
