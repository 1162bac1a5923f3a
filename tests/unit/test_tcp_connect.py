"""Active opens (RFC 9293 sections 3.5 and 3.10.7.3)."""

from __future__ import annotations

import errno
import socket as std

from tests.inet.script import SYN_OPTIONS, Script, conformance

ANSWER = "<mss 1460,sackOK,TS val 1000 ecr last,wscale 7>"


def error_of(sock: std.socket) -> int:
    return sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR)


@conformance(v=(4, 6))
def test_an_ack_of_what_was_not_sent_is_reset_and_the_attempt_goes_on(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.inject(". 0:0(0) ack 100", options=())
    s.expect("R 100:100(0)")
    s.inject("S. 0:0(0) ack 100", options=())
    s.expect("R 100:100(0)")
    s.expect("S 0:0(0)", within=2)
    s.inject(f"S. 0:0(0) ack 1 {ANSWER}")
    s.expect(". 1:1(0) ack 1")
    assert error_of(sock) == 0


@conformance()
def test_a_reset_without_an_ack_is_ignored(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.inject("R 0:0(0)", options=())
    s.inject("F 0:0(0)", options=())
    s.inject(". 0:0(0) ack 1", options=())
    s.nothing(0.2)
    assert error_of(sock) == 0


@conformance()
def test_after_an_unacceptable_ack_the_syn_is_sent_again_at_once(s: Script) -> None:
    s.connect(s.socket())
    s.expect("S 0:0(0)")
    s.inject("R. 0:0(0) ack 100", options=())
    s.expect("S 0:0(0)", within=0.1)


@conformance()
def test_an_echo_of_a_timestamp_that_was_never_sent_is_reset(s: Script) -> None:
    s.connect(s.socket())
    s.expect("S 0:0(0)")
    s.inject("S. 0:0(0) ack 1 <mss 1460,sackOK,TS val 1000 ecr 12345,wscale 7>", tsecr=77)
    s.expect("R 1:1(0)")


@conformance(v=(4, 6))
def test_both_may_open_at_once(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 1")
    s.writable(sock)
    assert error_of(sock) == 0
    sock.send(s.octets(10))
    s.expect("P. 1:11(10) ack 1")


@conformance()
def test_a_crossing_open_may_end_with_the_peers_syn_ack(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject(f"S. 0:0(0) ack 1 {ANSWER}")
    s.writable(sock)
    assert error_of(sock) == 0


@conformance()
def test_what_the_answer_does_not_have_is_not_used(s: Script) -> None:
    sock = s.connected("<mss 1000>")
    sock.send(s.octets(1500))
    s.expect(". 1:1001(1000) ack 1 <>")
    info = sock.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 8)
    assert info[5] & 7 == 0


@conformance(v=(4, 6))
def test_an_answer_without_an_mss_gets_small_segments(s: Script) -> None:
    sock = s.connected("<sackOK>")
    sock.send(s.octets(2000))
    s.expect(". 1:537(536) ack 1" if s.v == 4 else ". 1:1221(1220) ack 1")


@conformance(sysctls={"net.ipv4.tcp_ecn": 1})
def test_ecn_is_asked_for_and_agreed_on(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("SEW 0:0(0)")
    s.inject(f"SE. 0:0(0) ack 1 {ANSWER}")
    s.expect(". 1:1(0) ack 1")
    sock.send(s.octets(10))
    assert s.expect("P. 1:11(10) ack 1").ecn == 2


@conformance(sysctls={"net.ipv4.tcp_ecn": 1})
def test_ecn_that_the_answer_lacks_is_not_used(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("SEW 0:0(0)")
    s.inject(f"S. 0:0(0) ack 1 {ANSWER}")
    s.expect(". 1:1(0) ack 1")
    sock.send(s.octets(10))
    assert s.expect("P. 1:11(10) ack 1").ecn == 0


@conformance(sysctls={"net.ipv4.tcp_ecn": 1})
def test_a_syn_that_is_sent_again_does_not_ask_for_ecn(s: Script) -> None:
    s.connect(s.socket())
    s.expect("SEW 0:0(0)")
    s.expect("S 0:0(0)", after=1)


@conformance()
def test_calls_while_connecting_say_so(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.fails(errno.EALREADY, sock.connect, (s.ours, s.flow.port))
    s.fails(errno.EAGAIN, sock.send, b"x")
    s.fails(errno.EAGAIN, sock.recv, 1)
    s.fails(errno.EINVAL, sock.listen)
    s.fails(errno.ENOTCONN, sock.getpeername)
    s.inject(f"S. 0:0(0) ack 1 {ANSWER}")
    s.expect(". 1:1(0) ack 1")
    assert sock.connect_ex((s.ours, s.flow.port)) in (0, errno.EISCONN)
    s.fails(errno.EISCONN, sock.connect, (s.ours, s.flow.port))


@conformance()
def test_a_refused_socket_may_connect_again(s: Script) -> None:
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
def test_there_is_no_way_to_some_addresses(s: Script) -> None:
    for address in ("224.0.0.1", "255.255.255.255"):
        s.fails(errno.ENETUNREACH, s.socket().connect, (address, 80))


@conformance("ours")
def test_without_a_route_it_is_enetunreach_and_the_socket_stays_usable(s: Script) -> None:
    sock = s.socket()
    s.fails(errno.ENETUNREACH, sock.connect, ("203.0.113.1", 80))
    assert sock.getsockname() == ("0.0.0.0", 0)
    s.connect(sock)
    s.expect("S 0:0(0)")


@conformance()
def test_a_socket_may_connect_to_itself(s: Script) -> None:
    sock = s.socket()
    sock.bind(("127.0.0.1", 23456))
    sock.connect_ex(("127.0.0.1", 23456))
    s.writable(sock)
    assert error_of(sock) == 0
    assert sock.getpeername() == sock.getsockname()
    sock.send(b"echo")
    s.readable(sock)
    assert sock.recv(10) == b"echo"


@conformance()
def test_nobody_on_loopback_is_refused_at_once(s: Script) -> None:
    sock = s.socket()
    sock.connect_ex(("127.0.0.1", 23457))
    s.writable(sock)
    assert error_of(sock) in (0, errno.ECONNREFUSED)


@conformance("ours")
def test_closing_a_socket_that_connects_ends_the_attempt(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    sock.close()
    s.nothing(10)
    assert s.side.net.mib["TcpAttemptFails"] == 1  # type: ignore[attr-defined]


@conformance("ours")
def test_opens_are_counted(s: Script) -> None:
    mib = s.side.net.mib  # type: ignore[attr-defined]
    s.accepted()
    assert (mib["TcpActiveOpens"], mib["TcpPassiveOpens"], mib["TcpCurrEstab"]) == (0, 1, 1)
    s.flow = s.new_flow(40001)
    s.connected()
    assert (mib["TcpActiveOpens"], mib["TcpPassiveOpens"], mib["TcpCurrEstab"]) == (1, 1, 2)
