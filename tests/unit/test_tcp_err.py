"""ICMP errors about segments (RFC 1122 section 4.2.3.9, RFC 5927, 5461, 6069, 1191)."""

from __future__ import annotations

import errno
import select
import socket as std
import struct

import pytest

from tests.inet.script import SYN_OPTIONS, Script, conformance, run

UNREACHABLE, EXCEEDED, PARAMETER = 3, 11, 12
UNREACHABLE6, TOO_BIG6, EXCEEDED6 = 1, 2, 3
IP_RECVERR, MSG_ERRQUEUE = 11, 0x2000


def error_of(sock: std.socket) -> int:
    return sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR)


ERRORS = [
    (4, UNREACHABLE, 0, errno.ENETUNREACH),
    (4, UNREACHABLE, 1, errno.EHOSTUNREACH),
    (4, UNREACHABLE, 2, errno.ENOPROTOOPT),
    (4, UNREACHABLE, 3, errno.ECONNREFUSED),
    (4, UNREACHABLE, 13, errno.EHOSTUNREACH),
    (4, EXCEEDED, 0, errno.EHOSTUNREACH),
    (4, PARAMETER, 0, errno.EPROTO),
    (6, UNREACHABLE6, 0, errno.ENETUNREACH),
    (6, UNREACHABLE6, 1, errno.EACCES),
    (6, UNREACHABLE6, 3, errno.EHOSTUNREACH),
    (6, UNREACHABLE6, 4, errno.ECONNREFUSED),
    (6, EXCEEDED6, 0, errno.EHOSTUNREACH),
]


@pytest.mark.parametrize("side", ["ours", "kernel"])
@pytest.mark.parametrize("case", ERRORS, ids=str)
def test_an_error_about_our_syn_fails_the_connect(
    side: str, case: tuple[int, int, int, int]
) -> None:
    v, kind, code, expected = case

    def script(s: Script) -> None:
        sock = s.socket()
        s.connect(sock)
        s.expect("S 0:0(0)")
        s.icmp(kind, code)
        s.writable(sock)
        assert error_of(sock) == expected
        s.nothing(1.5)

    run(script, side, v, 1500, {})


@conformance(v=(4, 6))
def test_an_established_connection_outlives_errors(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    s.icmp(*((UNREACHABLE, 1) if s.v == 4 else (UNREACHABLE6, 3)))
    s.sleep(0.05)
    assert not s.events(conn) & select.POLLERR
    s.inject(". 1:1(0) ack 101")
    conn.send(s.octets(10))
    s.expect("P. 101:111(10) ack 1")


@conformance()
def test_so_error_tells_an_error_that_was_outlived_once(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    s.icmp(UNREACHABLE, 1)
    s.sleep(0.05)
    assert error_of(conn) == errno.EHOSTUNREACH
    assert error_of(conn) == 0


@conformance()
def test_with_ip_recverr_it_is_told(s: Script) -> None:
    conn = s.accepted()
    conn.setsockopt(std.IPPROTO_IP, IP_RECVERR, 1)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    s.icmp(UNREACHABLE, 1)
    s.sleep(0.05)
    assert error_of(conn) == errno.EHOSTUNREACH
    s.inject(". 1:1(0) ack 101")
    conn.send(s.octets(10))
    s.expect("P. 101:111(10) ack 1")


@conformance()
def test_with_ip_recverr_the_error_of_a_connect_is_queued(s: Script) -> None:
    sock = s.socket()
    sock.setsockopt(std.IPPROTO_IP, IP_RECVERR, 1)
    s.connect(sock)
    s.expect("S 0:0(0)")
    s.icmp(UNREACHABLE, 3)
    s.writable(sock)
    data, control, flags, name = sock.recvmsg(100, 200, MSG_ERRQUEUE)
    assert name == (s.ours, s.flow.port)
    assert flags & MSG_ERRQUEUE
    level, kind, value = control[0]
    assert (level, kind) == (std.IPPROTO_IP, IP_RECVERR)
    assert struct.unpack_from("=IBBB", value) == (errno.ECONNREFUSED, 2, UNREACHABLE, 3)
    assert struct.unpack_from("!H", data, 2) == (s.flow.port,)


@conformance("ours", sysctls={"net.ipv4.tcp_syn_retries": 1})
def test_an_error_that_was_outlived_is_how_a_time_out_is_told(s: Script) -> None:
    conn = s.accepted()
    s.side.sysctl("net.ipv4.tcp_retries2", 3)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    s.icmp(UNREACHABLE, 13)
    s.skip(60)
    assert error_of(conn) == errno.EHOSTUNREACH


@conformance("ours", v=(4, 6))
def test_an_error_about_numbers_that_are_not_in_flight_counts_for_nothing(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("S 0:0(0)")
    at = (20 if s.v == 4 else 40) + 4
    quoted = bytearray(s.last_octets)
    quoted[at] ^= 0x40
    s.icmp(*((UNREACHABLE, 3) if s.v == 4 else (UNREACHABLE6, 4)), quoted=bytes(quoted))
    s.sleep(0.01)
    assert error_of(sock) == 0
    assert s.side.net.mib["TcpExtOutOfWindowIcmps"] == 1  # type: ignore[attr-defined]


@conformance()
def test_an_error_about_our_syn_ack_forgets_the_request(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.icmp(UNREACHABLE, 1)
    s.nothing(1.5)


@conformance(v=(4, 6))
def test_a_smaller_path_mtu_makes_segments_smaller_and_sends_them_again(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(1448 if s.v == 4 else 1428))
    s.expect("P. 1:1449(1448) ack 1" if s.v == 4 else "P. 1:1429(1428) ack 1")
    if s.v == 4:
        s.icmp(UNREACHABLE, 4, 1300)
        s.expect(". 1:1249(1248) ack 1")
        s.expect("P. 1249:1449(200) ack 1")
    else:
        s.icmp(TOO_BIG6, 0, 1300)
        s.expect(". 1:1229(1228) ack 1")
        s.expect("P. 1229:1429(200) ack 1")


@conformance()
def test_a_larger_path_mtu_than_ours_changes_nothing(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(1448))
    s.expect("P. 1:1449(1448) ack 1")
    s.icmp(UNREACHABLE, 4, 9000)
    s.nothing(0.1)
    s.inject(". 1:1(0) ack 1449")
    conn.send(s.octets(2000))
    s.expect(". 1449:2897(1448) ack 1")


@conformance()
def test_an_mtu_of_less_than_552_counts_as_552(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(1448))
    s.expect("P. 1:1449(1448) ack 1")
    s.icmp(UNREACHABLE, 4, 100)
    s.expect(". 1:501(500) ack 1")


@conformance(v=(6,))
def test_an_mtu_of_less_than_1280_counts_for_nothing(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(1428))
    s.expect("P. 1:1429(1428) ack 1")
    s.icmp(TOO_BIG6, 0, 600)
    s.nothing(0.05)


@conformance("ours")
def test_host_unreachable_undoes_one_step_of_the_back_off(s: Script) -> None:
    conn = s.accepted(rtt=0.01)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    waits = []
    for _ in range(4):
        began = s.side.now()
        s.expect("P. 1:101(100) ack 1", within=10)
        waits.append(s.side.now() - began)
    began = s.side.now()
    s.icmp(UNREACHABLE, 1)
    s.expect("P. 1:101(100) ack 1", within=10)
    assert s.side.now() - began < waits[-1] * 1.1
