"""Passive opens: requests, backlogs, children (RFC 9293 section 3.10.7.2 and SYN-RECEIVED's)."""

from __future__ import annotations

import errno
import socket as std
import struct
import sys

from tests.inet.script import PORT, SYN_OPTIONS, Flow, Script, conformance

TCP_SAVE_SYN, TCP_SAVED_SYN = 27, 28


def fill_accept_queue(s: Script) -> Flow:
    """Two connections in a queue for one, and a request of a third, which is returned."""
    flows = [s.new_flow(40001 + i) for i in range(3)]
    for flow in flows[:2]:
        s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}", flow)
        s.expect("S. 0:0(0) ack 1", flow)
    s.inject(". 1:1(0) ack 1", flows[0])
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}", flows[2])
    s.expect("S. 0:0(0) ack 1", flows[2])
    s.inject(". 1:1(0) ack 1", flows[1])
    return flows[2]


@conformance(v=(4, 6))
def test_an_ack_of_a_syn_ack_that_was_never_sent_is_reset(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 1000")
    s.expect("R 1000:1000(0)")
    s.inject(". 1:1(0) ack 1")
    s.inject("P. 1:11(10) ack 1")
    s.expect(". 1:1(0) ack 11")


@conformance()
def test_an_ack_that_nobody_waits_for_is_reset_by_the_listener(s: Script) -> None:
    s.listener()
    s.flow.their_isn = 5
    s.inject(". 1:1(0) ack 100", options=())
    s.expect("R 100:100(0)")


@conformance()
def test_a_reset_or_a_segment_without_flags_gets_no_answer_of_a_listener(s: Script) -> None:
    s.listener()
    s.inject("R 0:0(0)", options=())
    s.inject("R. 0:0(0) ack 5", options=())
    s.inject("SF 0:0(0)", options=())
    s.nothing(0.3)


@conformance()
def test_the_ack_may_bring_data_and_a_fin(s: Script) -> None:
    listener = s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject("FP. 1:11(10) ack 1")
    s.expect(". 1:1(0) ack 12")
    conn = s.accept(listener)
    assert conn.recv(100) == s.octets(10)
    assert conn.recv(100) == b""


@conformance()
def test_a_reset_ends_a_request(s: Script) -> None:
    listener = s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject("R 1:1(0)")
    s.inject(". 1:1(0) ack 1")
    s.expect("R 1:1(0)")
    s.fails(errno.EAGAIN, listener.accept)


@conformance()
def test_a_syn_inside_the_window_of_a_request_resets_it(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject("S 100:100(0)")
    assert s.flow.their_isn is not None
    zero = -s.flow.their_isn & 0xFFFFFFFF
    s.expect(f"R. {zero}:{zero}(0) ack 101")


@conformance()
def test_what_is_outside_the_window_of_a_request_is_acknowledged(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject(". 100000:100000(0) ack 1")
    s.expect(". 1:1(0) ack 1")


@conformance()
def test_timestamps_from_before_the_syn_are_acknowledged_only(s: Script) -> None:
    listener = s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 1", tsval=900)
    s.expect(". 1:1(0) ack 1")
    s.fails(errno.EAGAIN, listener.accept)
    s.inject(". 1:1(0) ack 1")
    s.accept(listener)


@conformance()
def test_an_echo_of_a_timestamp_that_no_syn_ack_had_is_acknowledged_only(s: Script) -> None:
    listener = s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 1", tsecr=(s.flow.last_tsval + 5000) & 0xFFFFFFFF)
    s.expect(". 1:1(0) ack 1")
    s.fails(errno.EAGAIN, listener.accept)


@conformance(v=(4, 6))
def test_a_connection_that_was_reset_before_accept_is_accepted_all_the_same(s: Script) -> None:
    listener = s.listener()
    s.handshake()
    s.inject("R. 1:1(0) ack 1")
    s.sleep(0.05)
    conn, name = listener.accept()
    with conn:
        assert name[:2] == (s.ours, s.flow.port)
        s.fails(errno.ENOTCONN, conn.getpeername)
        s.fails(errno.ECONNRESET, conn.recv, 1)


@conformance("ours")
def test_a_syn_ack_is_given_up_after_its_retries(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    for wait in (1, 2, 4, 8, 16):
        s.expect("S. 0:0(0) ack 1", after=wait)
    s.nothing(64)
    s.inject(". 1:1(0) ack 1")
    s.expect("R 1:1(0)")


@conformance("ours")
def test_tcp_syncnt_of_the_listener_bounds_the_retries(s: Script) -> None:
    s.listener(TCP_SYNCNT=1)
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.expect("S. 0:0(0) ack 1", after=1)
    s.nothing(10)


@conformance()
def test_with_a_full_accept_queue_the_ack_is_forgotten_and_asked_for_again(s: Script) -> None:
    listener = s.listener(backlog=1)
    third = fill_accept_queue(s)
    s.inject(". 1:1(0) ack 1", third)
    s.expect("S. 0:0(0) ack 1", third, within=2)
    s.accept(listener)
    s.inject(". 1:1(0) ack 1", third)
    s.accept(listener)
    s.accept(listener)


@conformance()
def test_with_a_full_accept_queue_syns_are_dropped(s: Script) -> None:
    s.listener(backlog=1)
    fill_accept_queue(s)
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}", s.new_flow(40009))
    s.nothing(0.3)


@conformance(sysctls={"net.ipv4.tcp_abort_on_overflow": 1})
def test_with_abort_on_overflow_the_peer_hears_of_a_full_accept_queue(s: Script) -> None:
    s.listener(backlog=1)
    third = fill_accept_queue(s)
    s.inject(". 1:1(0) ack 1", third)
    s.expect("R 1:1(0)", third)


@conformance(sysctls={"net.ipv4.tcp_syncookies": 0})
def test_without_cookies_a_full_backlog_drops_syns(s: Script) -> None:
    s.listener(backlog=1)
    flows = [s.new_flow(40001 + i) for i in range(4)]
    for flow in flows[:2]:
        s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}", flow)
        s.expect("S. 0:0(0) ack 1", flow)
    for flow in flows[3:]:
        s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}", flow)
    s.nothing(0.3)


@conformance()
def test_defer_accept_waits_for_data(s: Script) -> None:
    listener = s.listener(TCP_DEFER_ACCEPT=10)
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 1")
    s.nothing(1.5)
    s.fails(errno.EAGAIN, listener.accept)
    s.inject("P. 1:11(10) ack 1")
    s.expect(". 1:1(0) ack 11")
    assert s.accept(listener).recv(100) == s.octets(10)


@conformance("ours")
def test_defer_accept_gives_in_at_its_end(s: Script) -> None:
    listener = s.listener(TCP_DEFER_ACCEPT=3)
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 1")
    s.expect("S. 0:0(0) ack 1", after=3)
    s.inject(". 1:1(0) ack 1")
    s.accept(listener)


@conformance(v=(4, 6))
def test_a_saved_syn_is_its_headers_and_read_once(s: Script) -> None:
    listener = s.listener()
    listener.setsockopt(std.IPPROTO_TCP, TCP_SAVE_SYN, 1)
    s.handshake()
    conn = s.accept(listener)
    saved = conn.getsockopt(std.IPPROTO_TCP, TCP_SAVED_SYN, 500)
    header = 20 if s.v == 4 else 40
    assert saved[0] >> 4 == s.v
    ports = struct.unpack_from("!HH", saved, header)
    assert ports == (s.flow.port, PORT)
    assert len(saved) == header + (saved[header + 12] >> 2 & 0x3C)
    assert conn.getsockopt(std.IPPROTO_TCP, TCP_SAVED_SYN, 500) == b""


@conformance()
def test_closing_the_listener_resets_children_that_nobody_accepted(s: Script) -> None:
    listener = s.listener()
    s.handshake()
    listener.close()
    s.expect("R. 1:1(0) ack 1")


@conformance()
def test_closing_the_listener_forgets_requests(s: Script) -> None:
    listener = s.listener()
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")
    listener.close()
    s.inject(". 1:1(0) ack 1")
    s.expect("R 1:1(0)")
    s.nothing(1.5)


@conformance()
def test_shutdown_of_a_listener_stops_it_and_listen_starts_it_again(s: Script) -> None:
    listener = s.listener()
    listener.shutdown(std.SHUT_RD)
    s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("R. 0:0(0) ack 1")
    listener.listen(4)
    s.flow.their_isn = None
    s.handshake(flow=s.new_flow(40001))
    s.accept(listener)


@conformance()
def test_a_child_has_its_listeners_options(s: Script) -> None:
    listener = s.listener(
        TCP_NODELAY=1, TCP_KEEPIDLE=77, TCP_KEEPCNT=3, TCP_USER_TIMEOUT=5000, SO_KEEPALIVE=1
    )
    listener.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, 9))
    listener.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 40000)
    s.handshake()
    conn = s.accept(listener)
    for name in ("TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"):
        option = getattr(std, name)
        assert conn.getsockopt(std.IPPROTO_TCP, option) == listener.getsockopt(
            std.IPPROTO_TCP, option
        )
    for option in (std.SO_KEEPALIVE, std.SO_RCVBUF, std.SO_REUSEADDR):
        assert conn.getsockopt(std.SOL_SOCKET, option) == listener.getsockopt(
            std.SOL_SOCKET, option
        )
    assert conn.getsockopt(std.SOL_SOCKET, std.SO_LINGER, 8) == struct.pack("ii", 1, 9)


@conformance()
def test_ecn_is_agreed_to_when_the_syn_asks(s: Script) -> None:
    s.listener()
    s.inject(f"SEW 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("SE. 0:0(0) ack 1")
    flow = s.new_flow(40001)
    s.inject(f"SE 0:0(0) win 65535 {SYN_OPTIONS}", flow)
    s.expect("S. 0:0(0) ack 1", flow)


@conformance(sysctls={"net.ipv4.tcp_ecn": 0})
def test_ecn_that_is_switched_off_is_not_agreed_to(s: Script) -> None:
    s.listener()
    s.inject(f"SEW 0:0(0) win 65535 {SYN_OPTIONS}")
    s.expect("S. 0:0(0) ack 1")


@conformance("ours", sysctls={"net.ipv4.tcp_syncookies": 1})
def test_a_flood_of_syns_takes_bounded_memory(s: Script) -> None:
    s.listener(backlog=64)
    stack = s.side.stack  # type: ignore[attr-defined]
    for port in range(1024, 9024):
        s.flow.port = port
        s.inject(f"S 0:0(0) win 65535 {SYN_OPTIONS}")
    s.side._collect()  # type: ignore[attr-defined]
    table = stack.generic["tcp"].hash.ehash
    assert len(table) <= 66
    assert sum(map(sys.getsizeof, table.values())) < 66 * 512
    assert len(stack.socks) == 1
    assert stack.generic["tcp"].ip.mib["TcpExtSyncookiesSent"] >= 8000 - 66
    s.side._sent.clear()  # type: ignore[attr-defined]
