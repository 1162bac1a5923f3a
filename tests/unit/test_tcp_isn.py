"""Initial sequence numbers, timestamp offsets and port offsets (RFC 6528, 7323, 6056)."""

from __future__ import annotations

from steertag.inet.tcp.isn import (
    secure_port_offset,
    secure_tcp_seq,
    secure_tcp_ts_off,
    tcp_clock_ms,
)

SECRET = bytes(range(16))
HERE, THERE = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))


def test_a_sequence_number_advances_by_one_in_64_nanoseconds() -> None:
    first = secure_tcp_seq(SECRET, HERE, 80, THERE, 4000, 5.0)
    later = secure_tcp_seq(SECRET, HERE, 80, THERE, 4000, 5.25)
    assert (later - first) & 0xFFFFFFFF == 250_000_000 // 64


def test_each_of_the_four_numbers_and_the_secret_changes_it() -> None:
    seen = {
        secure_tcp_seq(secret, laddr, lport, raddr, rport, 1.0)
        for secret in (SECRET, bytes(16))
        for laddr in (HERE, THERE)
        for lport in (80, 81)
        for raddr in (HERE, THERE)
        for rport in (4000, 4001)
    }
    assert len(seen) == 32


def test_addresses_of_different_length_do_not_run_into_each_other() -> None:
    assert secure_tcp_ts_off(SECRET, HERE, THERE + HERE) != secure_tcp_ts_off(
        SECRET, HERE + THERE, HERE
    )


def test_timestamps_to_a_peer_have_one_offset_whatever_the_ports() -> None:
    assert secure_tcp_ts_off(SECRET, HERE, THERE) == secure_tcp_ts_off(SECRET, HERE, THERE)
    assert secure_tcp_ts_off(SECRET, HERE, THERE) != secure_tcp_ts_off(SECRET, THERE, HERE)
    assert secure_tcp_ts_off(SECRET, HERE, THERE) != secure_tcp_ts_off(bytes(16), HERE, THERE)


def test_the_search_for_a_port_starts_elsewhere_for_every_destination() -> None:
    starts = {secure_port_offset(SECRET, HERE, THERE, port) for port in range(100)}
    assert len(starts) == 100
    assert all(0 <= start < 1 << 64 for start in starts)


def test_the_timestamp_clock_ticks_in_milliseconds_and_wraps() -> None:
    assert tcp_clock_ms(1.5) == 1500
    assert tcp_clock_ms(2**32 / 1000 + 0.007) in (6, 7)
