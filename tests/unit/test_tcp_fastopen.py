"""TCP Fast Open, both sides (RFC 7413)."""

from __future__ import annotations

import errno
import socket as std
from typing import Final

from tests.inet.script import SYN_OPTIONS, Script, conformance

SERVER: Final[dict[str, int | str]] = {"net.ipv4.tcp_fastopen": 3}
OPTIONS = "mss 1460,sackOK,TS val 1000 ecr 0,wscale 7"
MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = 23, 30, 34


def cookie_of(s: Script) -> str:
    """The peer asks for a cookie, and resets the request."""
    flow = s.new_flow(39999)
    s.inject(f"S 0:0(0) win 65535 <{OPTIONS},FO >", flow, fast_open=b"")
    found = s.expect("S. 0:0(0) ack 1", flow)
    assert found.fast_open
    s.inject("R 1:1(0)", flow)
    return found.fast_open.hex()


def client_fail(sock: std.socket) -> int:
    """tcpi_fastopen_client_fail: 2, the data was not acknowledged; 3, the SYN was sent again."""
    return sock.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 8)[7] >> 1 & 3


def mib(s: Script, name: str) -> int:
    return s.side.net.mib["TcpExt" + name]  # type: ignore[attr-defined, no-any-return]


def syn(s: Script, data: int, cookie: bytes | None, window: int = 65535) -> None:
    first = f"S 0:{data}({data})" if data else "S 0:0(0)"
    kinds = (2, 4, 8, 3) if cookie is None else (2, 4, 8, 3, 34)
    s.inject(
        f"{first} win {window} <{OPTIONS}>",
        payload=s.octets(data),
        fast_open=cookie,
        options=kinds,
    )


@conformance(sysctls=SERVER)
def test_a_client_that_asks_gets_a_cookie(s: Script) -> None:
    s.listener(TCP_FASTOPEN=5)
    assert len(cookie_of(s)) == 16


@conformance(sysctls=SERVER)
def test_a_listener_without_the_option_gives_none(s: Script) -> None:
    s.listener()
    flow = s.new_flow(40001)
    s.inject(f"S 0:0(0) win 65535 <{OPTIONS}>", flow, fast_open=b"", options=(2, 4, 8, 3, 34))
    assert s.expect("S. 0:0(0) ack 1", flow).fast_open is None


@conformance(sysctls=SERVER)
def test_data_in_a_syn_with_a_good_cookie_is_accepted_at_once(s: Script) -> None:
    listener = s.listener(TCP_FASTOPEN=5)
    cookie = bytes.fromhex(cookie_of(s))
    syn(s, 100, cookie)
    s.expect("S. 0:0(0) ack 101")
    conn = s.accept(listener)
    assert conn.recv(1000) == s.octets(100)
    conn.send(s.octets(50))
    s.expect("P. 1:51(50) ack 101")
    s.inject(". 101:101(0) ack 51")
    s.inject("P. 101:111(10) ack 51")
    s.expect(". 51:51(0) ack 111")


@conformance(sysctls=SERVER)
def test_a_child_probes_a_closed_window_once_its_ack_came(s: Script) -> None:
    listener = s.listener(TCP_FASTOPEN=5)
    cookie = bytes.fromhex(cookie_of(s))
    s.flow.window = 0
    syn(s, 100, cookie, window=0)
    s.expect("S. 0:0(0) ack 101")
    conn = s.accept(listener)
    conn.send(s.octets(10))
    s.nothing(0.1)
    s.inject(". 101:101(0) ack 1")
    s.expect(". 0:0(0) ack 101", within=3)


@conformance(sysctls={"net.ipv4.tcp_fastopen": 0x602})
def test_a_sysctl_turns_it_on_for_every_listener_and_does_without_cookies(s: Script) -> None:
    listener = s.listener()
    syn(s, 100, None)
    s.expect("S. 0:0(0) ack 101")
    assert s.accept(listener).recv(1000) == s.octets(100)


@conformance(sysctls=SERVER)
def test_a_listener_may_do_without_cookies(s: Script) -> None:
    listener = s.listener(TCP_FASTOPEN=5)
    listener.setsockopt(std.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    assert listener.getsockopt(std.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE) == 1
    syn(s, 100, None)
    s.expect("S. 0:0(0) ack 101")
    assert s.accept(listener).recv(1000) == s.octets(100)


@conformance(sysctls=SERVER)
def test_a_bad_cookie_is_replaced_and_the_data_not_acknowledged(s: Script) -> None:
    listener = s.listener(TCP_FASTOPEN=5)
    syn(s, 100, b"\1" * 8)
    assert s.expect("S. 0:0(0) ack 1").fast_open not in (None, b"", b"\1" * 8)
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 101")
    assert s.accept(listener).recv(1000) == s.octets(100)


@conformance("ours", sysctls=SERVER)
def test_the_syn_ack_of_a_child_is_sent_again_and_given_up(s: Script) -> None:
    listener = s.listener(TCP_FASTOPEN=5, TCP_SYNCNT=2)
    cookie = bytes.fromhex(cookie_of(s))
    syn(s, 100, cookie)
    s.expect("S. 0:0(0) ack 101")
    conn = s.accept(listener)
    s.expect("S. 0:0(0) ack 101", after=1)
    s.expect("S. 0:0(0) ack 101", after=2)
    s.sleep(10)
    s.skip(0)
    assert conn.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == errno.ETIMEDOUT


@conformance("ours", sysctls=SERVER)
def test_no_more_children_wait_for_their_ack_than_the_queue_holds(s: Script) -> None:
    s.listener(TCP_FASTOPEN=2)
    cookie = bytes.fromhex(cookie_of(s))
    acks = []
    for port in range(40001, 40004):
        s.flow = s.new_flow(port, 5000)
        syn(s, 10, cookie)
        acks.append(s.expect("S. 0:0(0)").ack)
    assert acks == [11, 11, 1]
    assert mib(s, "TCPFastOpenListenOverflow") == 1
    assert mib(s, "TCPFastOpenPassive") == 2


@conformance("ours", sysctls=SERVER)
def test_a_child_that_is_reset_keeps_its_place_for_a_minute(s: Script) -> None:
    s.listener(TCP_FASTOPEN=1)
    cookie = bytes.fromhex(cookie_of(s))
    acks = []
    for port, wait in ((40001, 0), (40002, 0), (40003, 61)):
        s.sleep(wait)
        s.flow = s.new_flow(port, 5000)
        syn(s, 10, cookie)
        acks.append(s.expect("S. 0:0(0)").ack)
        s.inject(f"R {acks[-1]}:{acks[-1]}(0)")
        s.skip(0.1)
    assert acks == [11, 1, 11]


@conformance("ours", sysctls=SERVER)
def test_a_cookie_is_for_one_address(s: Script) -> None:
    s.listener(TCP_FASTOPEN=5)
    cookie = bytes.fromhex(cookie_of(s))
    s.ours = "192.0.2.77"
    syn(s, 10, cookie)
    s.skip(0.1)
    assert mib(s, "TCPFastOpenPassiveFail") == 1


# -- the client ---------------------------------------------------------------------------------


def learn(s: Script, cookie: bytes = b"\7" * 8) -> None:
    """A first connection asks for a cookie, and gets it."""
    sock = s.socket()
    flow = s.flow
    s.fails(errno.EINPROGRESS, sock.sendto, b"x" * 10, MSG_FASTOPEN, (s.ours, flow.port))
    found = s.expect("S 0:0(0)")
    assert found.fast_open == b""
    s.inject(
        "S. 0:0(0) ack 1 <mss 1400,sackOK,TS val 1000 ecr last,wscale 7>",
        fast_open=cookie,
        options=(2, 4, 8, 3, 34),
    )
    s.expect(". 1:1(0) ack 1")
    s.inject("R. 1:1(0) ack 1")
    sock.close()
    s.flow = s.new_flow(flow.port, 9000)
    s._flows.remove(flow)


@conformance()
def test_the_first_connection_asks_for_a_cookie_and_the_next_sends_data(s: Script) -> None:
    learn(s)
    sock = s.socket()
    assert sock.sendto(s.octets(100), MSG_FASTOPEN, (s.ours, s.flow.port)) == 100
    found = s.expect("S 0:100(100)")
    assert found.fast_open == b"\7" * 8
    s.inject("S. 0:0(0) ack 101 <mss 1400,sackOK,TS val 1000 ecr last,wscale 7>")
    s.expect(". 101:101(0) ack 1")
    sock.send(s.octets(10))
    s.expect("P. 101:111(10) ack 1")


@conformance()
def test_data_that_the_syn_ack_does_not_acknowledge_is_sent_again(s: Script) -> None:
    learn(s)
    sock = s.socket()
    assert sock.sendto(s.octets(100), MSG_FASTOPEN, (s.ours, s.flow.port)) == 100
    s.expect("S 0:100(100)")
    s.inject("S. 0:0(0) ack 1 <mss 1400,sackOK,TS val 1000 ecr last,wscale 7>")
    s.expect("P. 1:101(100) ack 1")
    s.inject(". 1:1(0) ack 101")
    assert client_fail(sock) == 2


@conformance()
def test_a_syn_that_is_sent_again_goes_without_data_and_cookie(s: Script) -> None:
    learn(s)
    sock = s.socket()
    assert sock.sendto(s.octets(100), MSG_FASTOPEN, (s.ours, s.flow.port)) == 100
    s.expect("S 0:100(100)")
    assert s.expect("S 0:0(0)", after=1).fast_open is None
    s.inject("S. 0:0(0) ack 1 <mss 1400,sackOK,TS val 1000 ecr last,wscale 7>")
    s.expect("P. 1:101(100) ack 1")
    assert client_fail(sock) == 3


@conformance()
def test_data_of_the_syn_ack_is_received(s: Script) -> None:
    learn(s)
    sock = s.socket()
    assert sock.sendto(s.octets(100), MSG_FASTOPEN, (s.ours, s.flow.port)) == 100
    s.expect("S 0:100(100)")
    s.inject(
        "S. 0:20(20) ack 101 <mss 1400,sackOK,TS val 1000 ecr last,wscale 7>",
        payload=s.octets(20),
    )
    s.expect(". 101:101(0) ack 21")
    assert sock.recv(100) == s.octets(20)


@conformance(sysctls={"net.ipv4.tcp_fastopen": 0})
def test_fast_open_that_is_switched_off_is_eopnotsupp(s: Script) -> None:
    s.fails(errno.EOPNOTSUPP, s.socket().sendto, b"x", MSG_FASTOPEN, (s.ours, s.flow.port))


@conformance(sysctls={"net.ipv4.tcp_fastopen": 5})
def test_a_client_may_do_without_cookies(s: Script) -> None:
    sock = s.socket()
    assert sock.sendto(s.octets(100), MSG_FASTOPEN, (s.ours, s.flow.port)) == 100
    assert s.expect("S 0:100(100)").fast_open is None


@conformance()
def test_fastopen_connect_puts_the_first_send_into_the_syn(s: Script) -> None:
    learn(s)
    sock = s.socket()
    sock.setsockopt(std.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    assert sock.connect_ex((s.ours, s.flow.port)) == 0
    s.nothing(0.1)
    assert sock.send(s.octets(100)) == 100
    assert s.expect("S 0:100(100)").fast_open == b"\7" * 8
    s.inject("S. 0:0(0) ack 101 <mss 1400,sackOK,TS val 1000 ecr last,wscale 7>")
    s.expect(". 101:101(0) ack 1")


@conformance()
def test_fastopen_connect_without_a_cookie_asks_for_one(s: Script) -> None:
    sock = s.socket()
    sock.setsockopt(std.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    assert sock.connect_ex((s.ours, s.flow.port)) == errno.EINPROGRESS
    assert s.expect("S 0:0(0)").fast_open == b""


@conformance()
def test_more_than_one_segment_of_data_is_sent_in_part(s: Script) -> None:
    learn(s)
    sock = s.socket()
    sent = sock.sendto(s.octets(5000), MSG_FASTOPEN, (s.ours, s.flow.port))
    found = s.skip(0.1)[0]
    assert 1200 < sent == len(found.payload) <= 1400


@conformance("ours", sysctls={"net.ipv4.tcp_fastopen_blackhole_timeout_sec": 100})
def test_a_way_that_swallows_fast_open_is_left_in_peace_for_a_while(s: Script) -> None:
    learn(s)
    sock = s.socket()
    assert sock.sendto(s.octets(100), MSG_FASTOPEN, (s.ours, s.flow.port)) == 100
    s.expect("S 0:100(100)")
    for _ in range(3):
        s.expect("S 0:0(0)", after=1)
    assert mib(s, "TCPFastOpenBlackhole") == 1
    sock.close()
    s.flow = s.new_flow(s.flow.port, 9000)
    del s._flows[:-1]
    s.fails(errno.EINPROGRESS, s.socket().sendto, b"x", MSG_FASTOPEN, (s.ours, s.flow.port))
    assert s.expect("S 0:0(0)").fast_open is None
    s.sleep(200)
    s.skip(0)
    s.flow = s.new_flow(s.flow.port, 9000)
    del s._flows[:-1]
    assert s.socket().sendto(b"x", MSG_FASTOPEN, (s.ours, s.flow.port)) == 1
    assert s.expect("S 0:1(1)").fast_open == b"\7" * 8


def test_options_of_the_script_are_those_of_the_others() -> None:
    assert f"<{OPTIONS}>" == SYN_OPTIONS
