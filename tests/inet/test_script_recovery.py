"""Losses: RTO (RFC 6298), fast retransmit and SACK (6675), RACK-TLP (8985), undo, ECN (3168)."""

from __future__ import annotations

import errno
import socket as std

from tests.inet.script import Script, Sock, conformance

PLAIN = "<mss 1000>"
SACK = "<mss 1000,sackOK>"


def slow_path(s: Script, conn: Sock, rtt: float = 0.05) -> None:
    """Show the connection a round-trip time once more: one segment, 1:1001."""
    conn.send(s.octets(1000))
    s.expect("P. 1:1001(1000) ack 1")
    s.sleep(rtt)
    s.inject(". 1:1(0) ack 1001")


def sent(s: Script, conn: Sock, first: int, count: int, size: int = 1000) -> None:
    """`count` segments go out, the first at sequence number `first`."""
    conn.send(s.octets(count * size, first))
    for at in range(first, first + count * size, size):
        s.expect(f". {at}:{at + size}({size}) ack 1")


@conformance()
def test_a_retransmission_waits_twice_as_long_each_time(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    s.expect("P. 1:101(100) ack 1", after=0.2)
    s.expect("P. 1:101(100) ack 1", after=0.4)
    s.expect("P. 1:101(100) ack 1", after=0.8)
    if s.side.exact:
        s.expect("P. 1:101(100) ack 1", after=1.6)


@conformance()
def test_the_wait_is_the_round_trip_time_and_what_it_varies_by(s: Script) -> None:
    conn = s.accepted(PLAIN, rtt=0.3)
    slow_path(s, conn, rtt=0.3)
    conn.send(s.octets(100, 1001))
    s.expect("P. 1001:1101(100) ack 1")
    before = s.side.now()
    s.expect("P. 1001:1101(100) ack 1", after=None, within=3)
    assert s.side.now() - before > 0.3


@conformance()
def test_a_retransmission_that_is_acknowledged_gives_no_round_trip_time(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    s.expect("P. 1:101(100) ack 1", after=0.2)
    s.expect("P. 1:101(100) ack 1", after=0.4)
    s.inject(". 1:1(0) ack 101")  # of which of the three? (Karn)
    conn.send(s.octets(100, 101))
    s.expect("P. 101:201(100) ack 1")
    s.nothing(0.5 if s.side.exact else 0.1)


@conformance()
def test_three_duplicate_acknowledgments_retransmit_at_once_without_sack(s: Script) -> None:
    conn = s.accepted(PLAIN)
    sent(s, conn, 1, 6)
    for _ in range(2):
        s.inject(". 1:1(0) ack 1")
    s.inject(". 1:1(0) ack 1")
    packets = s.skip(0.05)
    assert (packets[0].seq, packets[0].length) == (1, 1000)


@conformance()
def test_a_hole_that_sack_shows_is_filled(s: Script) -> None:
    conn = s.accepted(SACK, rtt=0.05)
    slow_path(s, conn)
    sent(s, conn, 1001, 8)
    s.sleep(0.05)
    s.inject(". 1:1(0) ack 1001 <sack 2001:3001>")
    s.inject(". 1:1(0) ack 1001 <sack 2001:4001>")
    s.inject(". 1:1(0) ack 1001 <sack 2001:5001>")
    s.expect(". 1001:2001(1000) ack 1", within=0.1)
    s.inject(". 1:1(0) ack 9001")
    s.nothing(0.3)


@conformance()
def test_every_hole_is_filled_and_nothing_else(s: Script) -> None:
    conn = s.accepted(SACK, rtt=0.05)
    slow_path(s, conn)
    sent(s, conn, 1001, 10)
    s.sleep(0.05)
    s.inject(". 1:1(0) ack 1001 <sack 2001:3001>")
    s.inject(". 1:1(0) ack 1001 <sack 4001:5001 2001:3001>")
    s.inject(". 1:1(0) ack 1001 <sack 6001:11001 4001:5001 2001:3001>")
    packets = s.skip(0.1)
    assert [packet.seq for packet in packets] == [1001, 3001, 5001]
    assert all(packet.length == 1000 for packet in packets)
    s.inject(". 1:1(0) ack 11001")
    s.nothing(0.3)


@conformance()
def test_a_tail_that_is_lost_is_probed_for(s: Script) -> None:
    conn = s.accepted(SACK, rtt=0.05)
    slow_path(s, conn)
    sent(s, conn, 1001, 3)
    s.expect(". 3001:4001(1000) ack 1", after=0.1)  # 2 * SRTT
    s.inject(". 1:1(0) ack 1001 <sack 3001:4001>")
    found = s.expect(". 1001:2001(1000) ack 1", within=0.5)
    assert found.length == 1000


@conformance()
def test_a_probe_sends_new_data_where_there_is_some(s: Script) -> None:
    s.flow.window = 4000
    conn = s.accepted(SACK, rtt=0.05)
    slow_path(s, conn)
    conn.send(s.octets(5000, 1001))
    for at in (1001, 2001, 3001, 4001):
        s.expect(f". {at}:{at + 1000}(1000) ack 1")
    s.inject(". 1:1(0) ack 1001 win 5001")  # the same acknowledgment, a larger window
    s.expect("P. 5001:6001(1000) ack 1", within=0.3)


@conformance()
def test_a_segment_that_rack_finds_late_is_sent_again_with_fewer_than_three_acks(
    s: Script,
) -> None:
    conn = s.accepted(SACK, rtt=0.05)
    slow_path(s, conn)
    sent(s, conn, 1001, 2)
    s.sleep(0.05)
    s.inject(". 1:1(0) ack 1001 <sack 2001:3001>")
    s.expect(". 1001:2001(1000) ack 1", within=0.05)


@conformance()
def test_segments_that_are_reordered_are_not_sent_again(s: Script) -> None:
    conn = s.accepted(SACK, rtt=0.1)
    slow_path(s, conn, rtt=0.1)
    sent(s, conn, 1001, 4)
    s.sleep(0.1)
    s.inject(". 1:1(0) ack 1001 <sack 2001:3001>")
    s.inject(". 1:1(0) ack 3001")
    s.inject(". 1:1(0) ack 5001")
    s.nothing(0.3)


@conformance()
def test_after_a_time_out_the_rest_is_sent_again_as_acknowledgments_come(s: Script) -> None:
    conn = s.accepted(PLAIN)
    sent(s, conn, 1, 4)
    s.expect(". 1:1001(1000) ack 1", after=0.2)
    s.inject(". 1:1(0) ack 1001")
    s.expect(". 1001:2001(1000) ack 1", within=0.1)
    s.expect(". 2001:3001(1000) ack 1", within=0.1)
    s.inject(". 1:1(0) ack 3001")
    s.expect(". 3001:4001(1000) ack 1", within=0.1)


@conformance()
def test_a_time_out_that_timestamps_show_to_be_spurious_is_undone(s: Script) -> None:
    conn = s.accepted("<mss 1012,sackOK,TS val 1000 ecr 0>")
    first = s.flow.last_tsval
    s.sleep(0.01)
    sent(s, conn, 1, 10)
    first = s.flow.last_tsval
    s.skip(0.3)  # a probe of the tail, and the time-out
    s.inject(f". 1:1(0) ack 1001 <TS val 1400 ecr {first}>")  # of the first transmission
    s.skip(0.01)
    s.inject(f". 1:1(0) ack 10001 <TS val 1401 ecr {first}>")
    s.skip(0.01)
    conn.send(s.octets(10000, 10001))
    packets = s.skip(0.002)
    assert len(packets) == 10  # the congestion window is what it was


@conformance("ours")
def test_the_congestion_window_is_one_segment_after_a_time_out(s: Script) -> None:
    conn = s.accepted(PLAIN)
    sent(s, conn, 1, 10)
    s.expect(". 1:1001(1000) ack 1", after=0.2)
    s.nothing(0.39)


@conformance()
def test_a_connection_whose_peer_is_silent_ends_with_etimedout(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.setsockopt(std.IPPROTO_TCP, std.TCP_USER_TIMEOUT, 1000)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    s.skip(2.5)
    s.fails(errno.ETIMEDOUT, conn.recv, 10)
    assert conn.recv(10) == b""
    s.fails(errno.EPIPE, conn.send, b"x")


@conformance("ours")
def test_without_a_user_timeout_it_takes_924_seconds_to_give_up(s: Script) -> None:
    conn = s.accepted(PLAIN)
    conn.send(s.octets(100))
    s.expect("P. 1:101(100) ack 1")
    wait = 0.2
    for _ in range(16):  # tcp_retries2 counts the time that 15 would take from the first one on
        s.expect("P. 1:101(100) ack 1", after=wait)
        wait = min(wait * 2, 120.0)
    s.nothing(300)
    s.fails(errno.ETIMEDOUT, conn.recv, 10)


@conformance(sysctls={"net.ipv4.tcp_ecn": 1})
def test_ecn_is_negotiated_by_a_listener(s: Script) -> None:
    s.listener()
    s.inject("SEW 0:0(0) <mss 1000>")
    s.expect("SE. 0:0(0) ack 1")


@conformance(sysctls={"net.ipv4.tcp_ecn": 0})
def test_ecn_that_is_switched_off_is_not_negotiated(s: Script) -> None:
    s.listener()
    s.inject("SEW 0:0(0) <mss 1000>")
    s.expect("S. 0:0(0) ack 1")


@conformance(sysctls={"net.ipv4.tcp_ecn": 1})
def test_ecn_is_asked_for_by_connect(s: Script) -> None:
    sock = s.socket()
    s.connect(sock)
    s.expect("SEW 0:0(0)")
    s.inject("SE. 0:0(0) ack 1 <mss 1000>")
    s.expect("[noecn] . 1:1(0) ack 1")
    sock.send(s.octets(100))
    s.expect("[ect0] P. 1:101(100) ack 1")


@conformance(sysctls={"net.ipv4.tcp_ecn": 1})
def test_congestion_experienced_is_echoed_until_the_sender_has_reacted(s: Script) -> None:
    s.listener()
    s.inject("SEW 0:0(0) <mss 1000>")
    s.expect("SE. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 1")
    s.inject("[ce] P. 1:101(100) ack 1")
    s.expect("E. 1:1(0) ack 101")
    s.inject("[ect0] P. 101:201(100) ack 1")
    s.expect("E. 1:1(0) ack 201")
    s.inject("[ect0] PW. 201:301(100) ack 1")
    s.expect(". 1:1(0) ack 301")


@conformance(sysctls={"net.ipv4.tcp_ecn": 1})
def test_an_echo_of_congestion_is_answered_with_cwr_on_new_data(s: Script) -> None:
    listener = s.listener()
    s.inject("SEW 0:0(0) <mss 1000>")
    s.expect("SE. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 1")
    conn = s.accept(listener)
    conn.send(s.octets(1000))
    s.expect("[ect0] P. 1:1001(1000) ack 1")
    s.inject("E. 1:1(0) ack 1001")
    conn.send(s.octets(1000, 1001))
    s.expect("[ect0] PW. 1001:2001(1000) ack 1")
    s.inject(". 1:1(0) ack 2001")
    conn.send(s.octets(1000, 2001))
    s.expect("[ect0] P. 2001:3001(1000) ack 1")


@conformance(sysctls={"net.ipv4.tcp_ecn": 1})
def test_a_retransmission_is_not_ecn_capable(s: Script) -> None:
    listener = s.listener()
    s.inject("SEW 0:0(0) <mss 1000>")
    s.expect("SE. 0:0(0) ack 1")
    s.inject(". 1:1(0) ack 1")
    conn = s.accept(listener)
    conn.send(s.octets(100))
    s.expect("[ect0] P. 1:101(100) ack 1")
    s.expect("[noecn] P. 1:101(100) ack 1", after=0.2)
