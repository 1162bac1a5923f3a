"""Round trips against RFC 6298's arithmetic, and the windowed minimum against a plain one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.inet.tcp.rtt import (
    RTO_MAX,
    WindowedMin,
    tcp_rtt_estimator,
    tcp_set_rto,
)
from steertag.inet.tcp.sock import TcpSock


def _take(sk: TcpSock, *samples: float, window: int = 1) -> None:
    """Samples, `window` of them a round trip."""
    for number, sample in enumerate(samples):
        tcp_rtt_estimator(sk, sample)
        tcp_set_rto(sk)
        if (number + 1) % window == 0:
            sk.snd_una = (sk.snd_una + 1000) & 0xFFFFFFFF
            sk.snd_nxt = (sk.snd_una + 500) & 0xFFFFFFFF


def test_the_first_sample_sets_the_estimator_as_section_2_2_says() -> None:
    sk = TcpSock()
    _take(sk, 0.5)
    assert sk.srtt == 0.5
    assert sk.rttvar == 0.25
    assert sk.rto == 0.5 + 4 * 0.25


def test_the_next_samples_follow_section_2_3_while_the_round_trip_grows() -> None:
    sk = TcpSock()
    _take(sk, 0.5)
    srtt, rttvar = 0.5, 0.25
    for sample in (0.8, 1.3, 2.0, 3.1):
        _take(sk, sample)
        rttvar = 0.75 * rttvar + 0.25 * abs(srtt - sample)
        srtt = 0.875 * srtt + 0.125 * sample
        assert sk.srtt == pytest.approx(srtt)
        assert sk.mdev == pytest.approx(rttvar)
    assert sk.rto == pytest.approx(sk.srtt + 4 * sk.rttvar)
    assert sk.rttvar >= sk.mdev


def test_the_timeout_is_never_nearer_than_200_ms_to_the_round_trip() -> None:
    sk = TcpSock()
    _take(sk, *[0.001] * 200)
    assert sk.rto == pytest.approx(0.201)


def test_the_timeout_is_120_seconds_at_most() -> None:
    sk = TcpSock()
    _take(sk, 500.0)
    assert sk.rto == RTO_MAX


def test_the_deviation_falls_by_a_quarter_at_most_with_each_round_trip() -> None:
    sk = TcpSock()
    _take(sk, 1.0)
    before = sk.rttvar
    _take(sk, *[1.0] * 50, window=50)  # many samples, one round trip
    assert sk.rttvar >= before * 0.75 - 1e-12
    _take(sk, *[1.0] * 50)
    assert sk.rttvar == pytest.approx(0.05, abs=0.01)


def test_a_falling_round_trip_does_not_raise_the_timeout() -> None:
    sk = TcpSock()
    _take(sk, *[1.0] * 100)
    before = sk.rto
    _take(sk, 0.1)
    assert sk.rto < before


def test_the_deviation_counts_over_the_wrap_of_sequence_numbers() -> None:
    sk = TcpSock()
    sk.snd_una = sk.snd_nxt = sk.rtt_seq = 0xFFFFFF00
    _take(sk, *[0.4] * 60)
    assert sk.snd_una < 0xFFFFFF00
    assert sk.rttvar == pytest.approx(0.05, abs=0.01)


@given(
    st.lists(
        st.tuples(st.floats(0.001, 2.0), st.floats(0.0, 3.0)),
        min_size=1,
        max_size=60,
    )
)
def test_the_windowed_minimum_is_near_the_true_one(samples: list[tuple[float, float]]) -> None:
    window = 10.0
    least = WindowedMin()
    seen: list[tuple[float, float]] = []
    now = 50.0
    for value, gap in samples:
        now += gap
        seen.append((now, value))
        got = least.update(value, now, window)
        recent = [v for at, v in seen if now - at <= window]
        assert got >= min(recent) or got in [v for at, v in seen if now - at <= 1.5 * window]
        assert got in [v for _, v in seen]
        assert got <= value
