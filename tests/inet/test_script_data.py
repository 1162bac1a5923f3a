"""Data, acknowledgments and windows (RFC 9293 section 3.8; 1122, 7323, 5961)."""

from __future__ import annotations

import errno
import select
import socket as std

from tests.inet.script import Script, conformance

PLAIN = "<mss 1000>"
NO_WSCALE = "<mss 1000,sackOK,TS val 1000 ecr 0>"


@conformance(v=(4, 6))
def test_data_is_received_acknowledged_and_read(s: Script) -> None:
    conn = s.accepted()
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 101")
    assert conn.recv(1000) == s.octets(100)


@conformance(v=(4, 6))
def test_data_is_sent_and_released_when_it_is_acknowledged(s: Script) -> None:
    conn = s.accepted()
    assert conn.send(s.octets(100)) == 100
    found = s.expect("P. 1:101(100) ack 1")
    assert found.payload == s.octets(100)
    s.inject(". 1:1(0) ack 101")
    s.nothing(0.5)


@conformance()
def test_an_acknowledgment_is_delayed_when_the_application_answers(s: Script) -> None:
    conn = s.accepted()
    for at in range(1, 2001, 100):  # out of the quick ACKs of a young connection
        s.inject(f"P. {at}:{at + 100}(100) ack {at}")
        s.skip()
        conn.recv(1000)
        conn.send(s.octets(100, at))
        s.expect(f"P. {at}:{at + 100}(100) ack {at + 100}")
    s.inject("P. 2001:2101(100) ack 2001")
    s.expect(". 2001:2001(0) ack 2101", after=0.04)


@conformance()
def test_every_second_full_segment_is_acknowledged_at_once(s: Script) -> None:
    s.accepted(PLAIN)
    s.inject(". 1:1001(1000) ack 1")
    s.inject(". 1001:2001(1000) ack 1")
    packets = s.skip(0.02)
    assert packets[-1].ack == 2001


@conformance()
def test_a_small_segment_waits_for_the_acknowledgment_of_the_one_before(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(10))
    s.expect("P. 1:11(10) ack 1")
    conn.send(s.octets(10, 11))
    conn.send(s.octets(10, 21))
    s.nothing(0.05)
    s.inject(". 1:1(0) ack 11")
    s.expect("P. 11:31(20) ack 1")


@conformance()
def test_tcp_nodelay_sends_a_small_segment_at_once(s: Script) -> None:
    conn = s.accepted(TCP_NODELAY=1)
    conn.send(s.octets(10))
    s.expect("P. 1:11(10) ack 1")
    conn.send(s.octets(10, 11))
    s.expect("P. 11:21(10) ack 1", within=0.1)


@conformance()
def test_setting_tcp_nodelay_sends_what_waited(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(10))
    s.expect("P. 1:11(10) ack 1")
    conn.send(s.octets(10, 11))
    s.nothing(0.05)
    s.set(conn, TCP_NODELAY=1)
    s.expect("P. 11:21(10) ack 1", within=0.1)


@conformance()
def test_tcp_cork_holds_back_what_is_less_than_a_segment(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.set(conn, TCP_CORK=1)
    conn.send(s.octets(10))
    s.nothing(0.05)
    conn.send(s.octets(1500, 11))
    s.expect(". 1:1001(1000) ack 1")
    s.nothing(0.05)
    s.set(conn, TCP_CORK=0)
    s.expect("P. 1001:1511(510) ack 1")


@conformance()
def test_a_cork_holds_for_200_milliseconds(s: Script) -> None:
    conn = s.accepted()
    s.set(conn, TCP_CORK=1)
    conn.send(s.octets(10))
    s.expect("P. 1:11(10) ack 1", after=0.2)


@conformance()
def test_msg_more_holds_back_until_a_send_without(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(10), std.MSG_MORE)
    s.nothing(0.05)
    conn.send(s.octets(10, 11))
    s.expect("P. 1:21(20) ack 1")


@conformance()
def test_the_initial_window_is_ten_segments(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.send(s.octets(20000))
    for at in range(1, 10001, 1000):
        s.expect(f". {at}:{at + 1000}(1000) ack 1")
    s.nothing(0.05)
    s.inject(". 1:1(0) ack 1001")
    s.expect(". 10001:11001(1000) ack 1")
    s.expect(". 11001:12001(1000) ack 1")


@conformance()
def test_the_window_of_the_peer_bounds_what_is_in_flight(s: Script) -> None:
    s.flow.window = 2500
    conn = s.accepted(PLAIN)
    conn.send(s.octets(5000))
    s.expect(". 1:1001(1000) ack 1")
    s.expect(". 1001:2001(1000) ack 1")
    s.inject(". 1:1(0) ack 2001")
    s.expect(". 2001:3001(1000) ack 1")
    s.expect(". 3001:4001(1000) ack 1")


@conformance()
def test_the_window_of_the_peer_is_scaled_by_its_shift(s: Script) -> None:
    s.flow.window = 3
    conn = s.accepted("<mss 1000,wscale 10>")
    conn.send(s.octets(8000))
    for at in (1, 1001, 2001):
        s.expect(f". {at}:{at + 1000}(1000) ack 1")
    s.nothing(0.1)


@conformance()
def test_a_window_that_is_shut_is_probed_ever_more_slowly(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.inject(". 1:1(0) ack 1 win 0")
    conn.send(s.octets(100))
    s.expect(". 0:0(0) ack 1", within=2)
    s.inject(". 1:1(0) ack 1 win 0")
    s.expect(". 0:0(0) ack 1", after=0.4)
    s.inject(". 1:1(0) ack 1 win 0")
    s.expect(". 0:0(0) ack 1", after=0.8)
    s.inject(". 1:1(0) ack 1 win 1000")
    s.expect("P. 1:101(100) ack 1")


@conformance()
def test_a_window_that_shuts_and_opens_lets_the_data_on(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.send(s.octets(2000))
    s.expect(". 1:1001(1000) ack 1")
    s.expect("P. 1001:2001(1000) ack 1")
    s.inject(". 1:1(0) ack 2001 win 0")
    conn.send(s.octets(500, 2001))
    s.nothing(0.1)
    s.inject(". 1:1(0) ack 2001 win 5000")
    s.expect("P. 2001:2501(500) ack 1")


@conformance()
def test_a_buffer_that_is_full_shuts_the_window_and_reading_opens_it(s: Script) -> None:
    conn = s.accepted(PLAIN, SO_RCVBUF=8192)
    at, window = 1, 1000
    for _ in range(100):
        size = min(window, 1000)
        if not size:
            break
        s.inject(f". {at}:{at + size}({size}) ack 1")
        packets = s.skip(0.25)
        at, window = packets[-1].ack, packets[-1].window or 0
    assert window == 0
    s.inject(f". {at}:{at + 1}(1) ack 1")  # a probe
    s.expect(f". 1:1(0) ack {at} win 0")
    total = 0
    while s.events(conn) & select.POLLIN:
        total += len(conn.recv(65536))
    assert total == at - 1
    opened = s.expect(f". 1:1(0) ack {at}")
    assert opened.window is not None
    assert opened.window >= 2000


@conformance()
def test_the_window_offered_never_moves_back(s: Script) -> None:
    s.accepted(PLAIN, SO_RCVBUF=16384)
    at, edge = 1, 0
    for _ in range(20):
        s.inject(f". {at}:{at + 100}(100) ack 1")
        for packet in s.skip(0.06):
            assert packet.window is not None
            assert packet.ack + packet.window >= edge
            edge, at = packet.ack + packet.window, packet.ack


@conformance()
def test_data_out_of_order_is_kept_and_acknowledged_with_sack(s: Script) -> None:
    conn = s.accepted(NO_WSCALE)
    s.inject(". 101:201(100) ack 1")
    s.expect(". 1:1(0) ack 1 <TS,sack 101:201>")
    s.inject(". 301:401(100) ack 1")
    s.expect(". 1:1(0) ack 1 <TS,sack 301:401 101:201>")
    s.inject(". 501:601(100) ack 1")
    s.expect(". 1:1(0) ack 1 <TS,sack 501:601 301:401 101:201>")
    s.inject(". 201:301(100) ack 1")
    s.expect(". 1:1(0) ack 1 <TS,sack 101:401 501:601>")
    s.inject(". 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 401 <TS,sack 501:601>")
    s.inject(". 401:501(100) ack 1")
    s.expect(". 1:1(0) ack 601 <TS>")
    assert conn.recv(1000) == s.octets(600)


@conformance()
def test_without_timestamps_four_blocks_fit(s: Script) -> None:
    s.accepted("<mss 1000,sackOK>")
    for at in (101, 301, 501, 701, 901):
        s.inject(f". {at}:{at + 100}(100) ack 1")
        found = s.expect(". 1:1(0) ack 1")
    assert found.sacks == [(901, 1001), (701, 801), (501, 601), (301, 401)]


@conformance()
def test_a_peer_without_sack_gets_duplicate_acknowledgments(s: Script) -> None:
    s.accepted(PLAIN)
    for at in (1001, 2001, 3001):
        s.inject(f". {at}:{at + 1000}(1000) ack 1")
        s.expect(". 1:1(0) ack 1 <>")
    s.inject(". 1:1001(1000) ack 1")
    s.expect(". 1:1(0) ack 4001 <>")


@conformance()
def test_data_that_was_received_before_is_answered_with_a_d_sack(s: Script) -> None:
    s.accepted(NO_WSCALE)
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 101")
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 101 <TS,sack 1:101>")


@conformance()
def test_a_duplicate_of_data_out_of_order_is_answered_with_a_d_sack_first(s: Script) -> None:
    s.accepted(NO_WSCALE)
    s.inject(". 201:401(200) ack 1")
    s.expect(". 1:1(0) ack 1 <TS,sack 201:401>")
    s.inject(". 251:301(50) ack 1")
    s.expect(". 1:1(0) ack 1 <TS,sack 251:301 201:401>")


@conformance(sysctls={"net.ipv4.tcp_dsack": 0})
def test_d_sack_can_be_switched_off(s: Script) -> None:
    s.accepted(NO_WSCALE)
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 101")
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 101 <TS>")


@conformance()
def test_data_that_overlaps_is_taken_once(s: Script) -> None:
    conn = s.accepted()
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 101")
    s.inject("P. 51:151(100) ack 1")
    s.skip(0.1)
    assert conn.recv(1000) == s.octets(150)


@conformance()
def test_data_beyond_the_window_is_not_taken(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.inject("P. 1000001:1000101(100) ack 1")
    s.expect(". 1:1(0) ack 1")
    s.inject("P. 1:101(100) ack 1")
    s.expect(". 1:1(0) ack 101")
    assert conn.recv(1000) == s.octets(100)


@conformance()
def test_a_timestamp_from_the_past_drops_the_segment(s: Script) -> None:
    conn = s.accepted()
    s.inject("P. 1:101(100) ack 1 <TS val 5000 ecr last>")
    s.expect(". 1:1(0) ack 101 <TS ecr 5000>")
    s.inject("P. 101:201(100) ack 1 <TS val 3000 ecr last>")
    s.expect(". 1:1(0) ack 101 <TS ecr 5000>")
    assert conn.recv(1000) == s.octets(100)
    s.inject("P. 101:201(100) ack 1 <TS val 5001 ecr last>")
    s.expect(". 1:1(0) ack 201 <TS ecr 5001>")


@conformance()
def test_the_timestamp_echoed_is_that_of_the_oldest_segment_unacknowledged(s: Script) -> None:
    s.accepted()
    s.inject("P. 1:101(100) ack 1 <TS val 2000 ecr last>")
    s.expect(". 1:1(0) ack 101 <TS ecr 2000>")
    s.inject("P. 201:301(100) ack 1 <TS val 2010 ecr last>")
    s.expect(". 1:1(0) ack 101 <TS ecr 2000,sack 201:301>")
    s.inject("P. 101:201(100) ack 1 <TS val 2005 ecr last>")
    s.expect(". 1:1(0) ack 301 <TS ecr 2005>")


@conformance()
def test_a_segment_without_timestamps_on_a_connection_with_them_is_taken(s: Script) -> None:
    conn = s.accepted()
    s.inject("P. 1:101(100) ack 1 <>")
    s.expect(". 1:1(0) ack 101")
    assert conn.recv(1000) == s.octets(100)


@conformance()
def test_a_segment_with_a_wrong_checksum_is_dropped(s: Script) -> None:
    conn = s.accepted()
    s.inject("P. 1:101(100) ack 1", valid=False)
    s.nothing(0.1)
    s.fails(errno.EAGAIN, conn.recv, 100)


@conformance()
def test_an_acknowledgment_of_what_was_not_sent_is_answered_and_not_taken(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    s.inject(". 1:1(0) ack 5000")
    s.expect(". 101:101(0) ack 1", within=0.15)
    s.expect("P. 1:101(100) ack 1", within=1)


@conformance()
def test_a_blind_reset_in_the_window_is_challenged(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.inject("R 101:101(0)")
    s.expect(". 1:1(0) ack 1")
    s.inject("P. 1:11(10) ack 1")
    s.expect(". 1:1(0) ack 11")
    assert conn.recv(10) == s.octets(10)


@conformance()
def test_a_reset_outside_of_the_window_is_ignored(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.inject("R 1000001:1000001(0)")
    s.nothing(0.2)
    s.fails(errno.EAGAIN, conn.recv, 10)


@conformance()
def test_a_reset_of_the_very_next_octet_ends_the_connection(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.inject("R 1:1(0)")
    s.readable(conn)
    s.fails(errno.ECONNRESET, conn.recv, 10)
    assert conn.recv(10) == b""
    s.fails(errno.EPIPE, conn.send, b"x")
    s.nothing(0.2)


@conformance()
def test_a_syn_in_a_connection_is_challenged(s: Script) -> None:
    s.accepted(PLAIN)
    s.inject("S 100:100(0) <mss 1000>")
    s.expect(". 1:1(0) ack 1")


@conformance()
def test_an_ack_that_is_too_old_is_challenged(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    s.inject(". 1:1(0) ack 101")
    s.inject("P. 1:11(10) ack 4294867295")  # 100,000 before
    s.expect(". 101:101(0) ack 1")
    s.fails(errno.EAGAIN, conn.recv, 10)


@conformance()
def test_a_segment_without_an_ack_is_dropped(s: Script) -> None:
    conn = s.accepted(PLAIN)
    s.inject("P 1:11(10)")
    s.nothing(0.2)
    s.fails(errno.EAGAIN, conn.recv, 10)


@conformance()
def test_urgent_data_is_read_apart_and_its_place_is_marked(s: Script) -> None:
    conn = s.accepted()
    s.inject("PU. 1:11(10) ack 1 urg 5")
    s.skip(0.1)
    assert s.events(conn) & select.POLLPRI
    assert conn.recv(1, std.MSG_OOB) == s.octets(5)[4:]
    assert conn.recv(100) == s.octets(4)
    assert conn.recv(100) == s.octets(10)[5:]
    s.fails(errno.EINVAL, conn.recv, 1, std.MSG_OOB)


@conformance()
def test_urgent_data_can_be_read_in_its_place(s: Script) -> None:
    conn = s.accepted()
    conn.setsockopt(std.SOL_SOCKET, std.SO_OOBINLINE, 1)
    s.inject("PU. 1:11(10) ack 1 urg 5")
    s.skip(0.1)
    assert conn.recv(100) == s.octets(4)
    assert conn.recv(100) == s.octets(10)[4:]


@conformance()
def test_msg_oob_sends_the_urgent_pointer(s: Script) -> None:
    conn = s.accepted()
    conn.send(s.octets(5), std.MSG_OOB)
    s.expect("PU. 1:6(5) ack 1 urg 5")


@conformance()
def test_no_urgent_data_is_einval(s: Script) -> None:
    conn = s.accepted()
    s.fails(errno.EINVAL, conn.recv, 1, std.MSG_OOB)


@conformance()
def test_msg_peek_leaves_the_data(s: Script) -> None:
    conn = s.accepted()
    s.inject("P. 1:11(10) ack 1")
    s.skip(0.1)
    assert conn.recv(5, std.MSG_PEEK) == s.octets(5)
    assert conn.recv(100) == s.octets(10)


@conformance()
def test_so_rcvlowat_says_when_a_socket_is_readable(s: Script) -> None:
    conn = s.accepted()
    conn.setsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT, 100)
    s.inject("P. 1:51(50) ack 1")
    s.skip(0.1)
    assert not s.events(conn) & select.POLLIN
    s.inject("P. 51:151(100) ack 1")
    s.skip(0.1)
    assert s.events(conn) & select.POLLIN
