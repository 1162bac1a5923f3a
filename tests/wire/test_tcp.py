"""The TCP header and its options, against vectors by hand and against themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.wire import tcp

# A SYN of Linux 6.1: MSS 1460, SACK permitted, timestamps, NOP, window scale 7.
LINUX_SYN = bytes.fromhex(
    "a1b2 1f90 deadbeef 00000000 a002 faf0 1234 0000 020405b4 0402080a 3b9aca00 00000000 01030307"
)


def test_a_syn_of_linux_is_read() -> None:
    segment = tcp.parse_untrusted(memoryview(LINUX_SYN))
    assert (segment.source, segment.dest) == (0xA1B2, 8080)
    assert segment.flags == tcp.SYN
    assert (segment.seq, segment.end_seq) == (0xDEADBEEF, 0xDEADBEF0)
    assert segment.window == 0xFAF0
    options = segment.all_options()
    assert (options.mss, options.wscale, options.sack_ok) == (1460, 7, True)
    assert (segment.tsval, segment.tsecr) == (1_000_000_000, 0)


def test_our_syn_has_its_options_where_linux_has_them() -> None:
    options = tcp.Options(mss=1460, wscale=7, sack_ok=True, tsval=1_000_000_000)
    header = tcp.emit(0xA1B2, 8080, 0xDEADBEEF, 0, tcp.SYN, 0xFAF0, tcp.emit_options(options))
    assert header[:16] + header[18:] == LINUX_SYN[:16] + LINUX_SYN[18:]


def test_timestamps_alone_are_found_without_a_walk() -> None:
    header = tcp.emit(1, 2, 3, 4, tcp.ACK, 5, tcp.timestamps_option(77, 88))
    segment = tcp.parse_untrusted(memoryview(header + b"data"))
    assert (segment.tsval, segment.tsecr) == (77, 88)
    assert bytes(segment.payload) == b"data"
    assert segment.end_seq == 7


def test_syn_and_fin_count_in_the_sequence() -> None:
    header = tcp.emit(1, 2, 0xFFFFFFFF, 0, tcp.SYN | tcp.FIN, 5)
    assert tcp.parse_untrusted(memoryview(header + b"x")).end_seq == 2


@pytest.mark.parametrize("length", [0, 1, 19])
def test_a_short_segment_is_refused(length: int) -> None:
    with pytest.raises(WireError):
        tcp.parse_untrusted(memoryview(bytes(length)))


@pytest.mark.parametrize("offset", [0, 4, 6, 15])
def test_a_data_offset_that_cannot_be_is_refused(offset: int) -> None:
    header = bytearray(tcp.emit(1, 2, 3, 4, tcp.ACK, 5))
    header[12] = offset << 4
    with pytest.raises(WireError):
        tcp.parse_untrusted(memoryview(header))


def test_a_window_scale_above_14_counts_as_14() -> None:
    assert tcp.parse_options_untrusted(bytes((3, 3, 200))).wscale == 14


def test_an_option_that_runs_over_the_end_ends_the_list() -> None:
    options = tcp.parse_options_untrusted(bytes((2, 4, 5, 0xB4, 8, 10, 1)))
    assert options.mss == 1460
    assert options.tsval is None


def test_blocks_that_do_not_fit_beside_timestamps_are_left_out() -> None:
    blocks = tuple((n, n + 1) for n in range(4))
    assert len(tcp.parse_options_untrusted(tcp.emit_options(tcp.Options(sacks=blocks))).sacks) == 4
    with_ts = tcp.emit_options(tcp.Options(sacks=blocks, tsval=1))
    assert len(with_ts) <= 40
    assert tcp.parse_options_untrusted(with_ts).sacks == blocks[:3]


numbers = st.integers(0, 2**32 - 1)
option_sets = st.builds(
    tcp.Options,
    mss=st.none() | st.integers(1, 65535),
    wscale=st.none() | st.integers(0, 14),
    sack_ok=st.booleans(),
    tsval=st.none() | numbers,
    tsecr=st.just(0),
    fast_open=st.none() | st.sampled_from((b"", b"12345678", b"1234567890123456")),
)


@given(option_sets)
def test_parse_inverts_emit(options: tcp.Options) -> None:
    octets = tcp.emit_options(options)
    assert len(octets) % 4 == 0
    assert len(octets) <= 40
    assert tcp.parse_options_untrusted(octets) == options


@given(st.binary(max_size=120))
def test_hostile_octets_raise_nothing_but_wire_errors(octets: bytes) -> None:
    try:
        segment = tcp.parse_untrusted(memoryview(octets))
    except WireError:
        return
    segment.all_options()
    assert len(segment.payload) + len(segment.options) + 20 == len(octets)
