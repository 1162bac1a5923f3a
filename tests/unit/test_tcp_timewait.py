"""TIME-WAIT and orphans in FIN-WAIT-2 (RFC 9293 section 3.10.7.4, 1337, 6191)."""

from __future__ import annotations

import errno
import socket as std

from steertag.inet import unregister
from tests.inet.script import SYN_OPTIONS, Script, conformance

NO_TS = "<mss 1460,sackOK,wscale 7>"


def time_wait(s: Script, options: str = SYN_OPTIONS) -> std.socket:
    """We closed first, and both FINs are acknowledged; returns the listener."""
    listener = s.listener()
    s.handshake(options)
    conn = s.accept(listener)
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2")
    return listener  # type: ignore[no-any-return]


def count(s: Script) -> int:
    return s.side.stack.generic["tcp"].hash.tw_count  # type: ignore[attr-defined, no-any-return]


@conformance(v=(4, 6))
def test_a_fin_that_comes_again_is_acknowledged_again(s: Script) -> None:
    time_wait(s)
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2")


@conformance()
def test_answers_in_time_wait_are_rate_limited(s: Script) -> None:
    time_wait(s)
    s.inject(". 0:0(0) ack 2")
    s.expect(". 2:2(0) ack 2")
    s.inject(". 0:0(0) ack 2")
    s.nothing(0.2)
    s.inject("F. 1:1(0) ack 2")  # what takes room in the stream always gets an answer
    s.expect(". 2:2(0) ack 2")


@conformance("ours")
def test_time_wait_lasts_sixty_seconds(s: Script) -> None:
    time_wait(s)
    s.sleep(59)
    assert count(s) == 1
    s.sleep(2)
    assert count(s) == 0
    assert s.side.net.mib["TcpExtTW"] == 1  # type: ignore[attr-defined]


@conformance("ours")
def test_what_is_left_of_a_connection_is_small(s: Script) -> None:
    listener = time_wait(s)
    assert len(s.side.stack.socks) == 1  # type: ignore[attr-defined]
    assert listener.getsockname()


@conformance()
def test_a_syn_with_a_later_timestamp_begins_a_new_connection(s: Script) -> None:
    listener = time_wait(s)
    s.sleep(0.1)
    old = s.flow.their_isn
    s.flow.their_isn = None
    s.flow.tsval_offset = 5000
    s.inject("S 0:0(0) win 65535 <mss 1460,sackOK,TS ecr 0,wscale 7>", tsval=s.tsval())
    s.expect("S. 0:0(0) ack 1")
    assert old is not None
    assert s.flow.their_isn is not None
    assert 0 < (s.flow.their_isn - old) & 0xFFFFFFFF < 1 << 20
    s.inject(". 1:1(0) ack 1")
    s.accept(listener)


@conformance()
def test_without_timestamps_a_syn_beyond_the_old_numbers_does(s: Script) -> None:
    listener = time_wait(s, NO_TS)
    s.flow.their_isn = None
    s.inject(f"S 1000:1000(0) win 65535 {NO_TS}")
    s.expect("S. 0:0(0) ack 1001")
    s.inject(". 1001:1001(0) ack 1")
    s.accept(listener)


@conformance()
def test_an_old_syn_is_acknowledged_only(s: Script) -> None:
    time_wait(s, NO_TS)
    s.inject(f"S 0:0(0) win 65535 {NO_TS}")
    s.expect(". 2:2(0) ack 2")


@conformance()
def test_a_reset_ends_time_wait_unless_rfc_1337_forbids_it(s: Script) -> None:
    time_wait(s, NO_TS)
    s.inject("R 2:2(0)")
    s.inject("F. 1:1(0) ack 2")
    s.expect("R 2:2(0)")


@conformance(sysctls={"net.ipv4.tcp_rfc1337": 1})
def test_with_rfc_1337_a_reset_does_not_end_time_wait(s: Script) -> None:
    time_wait(s, NO_TS)
    s.inject("R 2:2(0)")
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2")


@conformance()
def test_an_orphan_in_fin_wait_2_waits_for_the_peers_fin(s: Script) -> None:
    conn = s.accepted()
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject(". 1:1(0) ack 2")
    s.sleep(0.2)
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2")


@conformance()
def test_data_for_an_orphan_in_fin_wait_2_is_reset(s: Script) -> None:
    conn = s.accepted()
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject(". 1:1(0) ack 2")
    s.sleep(0.2)
    s.inject("P. 1:11(10) ack 2")
    s.expect("R 2:2(0)")


@conformance("ours")
def test_an_orphan_is_not_kept_for_ever_by_a_fin_that_is_not_the_peers_last(s: Script) -> None:
    conn = s.accepted()
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject("F. 0:0(0) ack 2")
    s.skip(200)
    assert len(s.side.stack.socks) == 1  # type: ignore[attr-defined]


@conformance("ours", sysctls={"net.ipv4.tcp_fin_timeout": 5})
def test_an_orphan_in_fin_wait_2_is_forgotten_after_tcp_fin_timeout(s: Script) -> None:
    conn = s.accepted()
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject(". 1:1(0) ack 2")
    s.sleep(4)
    assert count(s) == 1
    s.sleep(2)
    assert count(s) == 0


@conformance("ours", sysctls={"net.ipv4.tcp_max_tw_buckets": 2})
def test_there_are_no_more_of_them_than_the_sysctl_allows(s: Script) -> None:
    listener = s.listener()
    for port in range(40001, 40005):
        s.flow = s.new_flow(port)
        s.handshake()
        s.accept(listener).close()
        s.expect("F. 1:1(0) ack 1")
        s.inject("F. 1:1(0) ack 2")
        s.expect(". 2:2(0) ack 2")
    assert count(s) == 2
    assert s.side.net.mib["TcpExtTCPTimeWaitOverflow"] == 2  # type: ignore[attr-defined]


@conformance("ours")
def test_time_wait_keeps_the_port_from_bind_but_for_reuseaddr(s: Script) -> None:
    time_wait(s).close()
    sock = s.socket()
    s.fails(errno.EADDRINUSE, sock.bind, (s.theirs, 8080))
    sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
    sock.bind((s.theirs, 8080))
    sock.listen()


@conformance("ours")
def test_time_wait_does_not_keep_the_family_from_being_taken_out(s: Script) -> None:
    time_wait(s).close()
    stack = s.side.stack  # type: ignore[attr-defined]
    unregister(stack)
    assert stack.timers.pending == 0


def active_time_wait(s: Script) -> int:
    """We connected, and closed first; returns our port."""
    conn = s.connected()
    port = conn.getsockname()[1]
    conn.close()
    s.expect("F. 1:1(0) ack 1")
    s.inject("F. 1:1(0) ack 2")
    s.expect(". 2:2(0) ack 2")
    return port  # type: ignore[no-any-return]


@conformance("ours", sysctls={"net.ipv4.tcp_tw_reuse": 1})
def test_connect_takes_over_a_time_wait_of_a_second_ago(s: Script) -> None:
    s.side.sysctl("net.ipv4.ip_local_port_range", "40000 40000")
    active_time_wait(s)
    s.fails(errno.EADDRNOTAVAIL, s.socket().connect, (s.ours, s.flow.port))
    s.sleep(1.5)
    s.connect(s.socket())
    old = s.flow.their_isn
    s.flow.their_isn = None
    s.expect("S 0:0(0)")
    assert old is not None
    assert s.flow.their_isn is not None
    assert (s.flow.their_isn - old) & 0xFFFFFFFF == 2 + 65535 + 2
    assert count(s) == 0
    assert s.side.net.mib["TcpExtTWRecycled"] == 1  # type: ignore[attr-defined]


@conformance("ours")
def test_connect_leaves_time_wait_alone_where_it_is_not_loopback(s: Script) -> None:
    s.side.sysctl("net.ipv4.ip_local_port_range", "40000 40000")
    active_time_wait(s)
    s.sleep(1.5)
    s.fails(errno.EADDRNOTAVAIL, s.socket().connect, (s.ours, s.flow.port))
