"""SYN cookies: a SYN-ACK that is all that is remembered (RFC 4987 section 3.6)."""

from __future__ import annotations

import errno
import socket as std
from typing import Final

from tests.inet.script import SYN_OPTIONS, Script, conformance

ALWAYS: Final[dict[str, int | str]] = {"net.ipv4.tcp_syncookies": 2}
TCPI_OPTIONS, TCPI_WSCALE = 5, 6
TCPI_OPT_TIMESTAMPS, TCPI_OPT_SACK, TCPI_OPT_WSCALE, TCPI_OPT_ECN = 1, 2, 4, 8


def mib(s: Script, name: str) -> int:
    return s.side.net.mib["TcpExt" + name]  # type: ignore[attr-defined, no-any-return]


def handshake(s: Script, syn: str, more: float = 0.0) -> None:
    s.inject(syn)
    found = s.expect("S. 0:0(0) ack 1" if "E" not in syn[:3] else "SE. 0:0(0) ack 1")
    s.flow.timestamps = found.tsval is not None
    if more:
        s.sleep(more)
    s.inject(". 1:1(0) ack 1")


@conformance(v=(4, 6), sysctls=ALWAYS)
def test_a_connection_by_cookie_carries_data_both_ways(s: Script) -> None:
    listener = s.listener()
    handshake(s, f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    conn = s.accept(listener)
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 101")
    assert conn.recv(1000) == s.octets(100)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 101")


@conformance(sysctls=ALWAYS)
def test_timestamps_carry_window_scale_sack_and_ecn(s: Script) -> None:
    listener = s.listener()
    handshake(s, "SEW 0:0(0) win 65535 <mss 1460,sackOK,TS val 1000 ecr 0,wscale 9>")
    info = s.accept(listener).getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 16)
    both = TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | TCPI_OPT_WSCALE
    assert info[TCPI_OPTIONS] & (both | TCPI_OPT_ECN) == both | TCPI_OPT_ECN
    assert info[TCPI_WSCALE] & 15 == 9


@conformance(sysctls=ALWAYS)
def test_without_timestamps_there_are_neither_sack_nor_window_scale(s: Script) -> None:
    listener = s.listener()
    s.inject("S 0:0(0) win 65535 <mss 1460,sackOK,wscale 7>")
    s.expect("S. 0:0(0) ack 1 <mss 1460>")
    s.inject(". 1:1(0) ack 1")
    info = s.accept(listener).getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 16)
    assert info[TCPI_OPTIONS] & 7 == 0


@conformance(sysctls=ALWAYS)
def test_a_cookie_says_the_largest_mss_of_its_table_that_is_not_above_the_peers(s: Script) -> None:
    listener = s.listener()
    for port, offered, kept in ((40001, 1400, 1300), (40002, 500, 536), (40003, 9000, 1460)):
        flow = s.new_flow(port)
        s.inject(f"S 0:0(0) win 65535 <mss {offered}>", flow)
        s.expect("S. 0:0(0) ack 1", flow)
        s.inject(". 1:1(0) ack 1", flow)
        conn = s.accept(listener)
        assert conn.getsockopt(std.IPPROTO_TCP, std.TCP_MAXSEG) == kept


@conformance(sysctls=ALWAYS)
def test_a_guessed_cookie_is_reset(s: Script) -> None:
    listener = s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 77777")
    s.expect("R 77777:77777(0)")
    s.fails(errno.EAGAIN, listener.accept)


@conformance(sysctls=ALWAYS)
def test_a_cookie_is_for_one_port_only(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    other = s.new_flow(40001, s.flow.isn)
    other.their_isn = s.flow.their_isn
    s.inject(". 1:1(0) ack 1 <TS val 1001 ecr last>", other)
    s.expect("R 1:1(0)", other)


@conformance("ours", sysctls=ALWAYS)
def test_a_cookie_is_good_for_a_minute_and_not_for_three(s: Script) -> None:
    listener = s.listener()
    handshake(s, f"S 0:0(0) win 65535 {SYN_OPTIONS}", more=59)
    s.accept(listener)
    s.flow = s.new_flow(40001)
    handshake(s, f"S 0:0(0) win 65535 {SYN_OPTIONS}", more=180)
    s.expect("R 1:1(0)")


@conformance("ours", sysctls=ALWAYS)
def test_a_listener_that_sent_no_cookies_lately_takes_none(s: Script) -> None:
    listener = s.listener()
    handshake(s, f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.accept(listener)
    received = mib(s, "SyncookiesRecv")
    s.sleep(300)
    s.inject(". 1:1(0) ack 1 <TS val 1001 ecr last>", s.new_flow(40009))
    s.skip(0.1)
    assert (received, mib(s, "SyncookiesRecv"), mib(s, "SyncookiesFailed")) == (1, 1, 0)


@conformance("ours", sysctls={"net.ipv4.tcp_syncookies": 1})
def test_cookies_begin_when_the_queue_is_full(s: Script) -> None:
    listener = s.listener(backlog=2)
    flows = [s.new_flow(40001 + i) for i in range(6)]
    for flow in flows:
        s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}", flow)
        s.expect("S. 0:0(0) ack 1", flow)
    assert mib(s, "SyncookiesSent") == 3
    assert mib(s, "TCPReqQFullDoCookies") == 3
    s.inject(". 1:1(0) ack 1 <TS val 1001 ecr last>", flows[5])
    assert s.accept(listener).getpeername()[1] == 40006
    assert mib(s, "SyncookiesRecv") == 1


@conformance("ours", sysctls=ALWAYS)
def test_a_syn_ack_with_a_cookie_is_not_sent_again(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.nothing(60)
