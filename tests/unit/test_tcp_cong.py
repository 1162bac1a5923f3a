"""Congestion control: the registry, Reno (RFC 5681), CUBIC (RFC 9438) with HyStart++ (RFC 9406)."""

from __future__ import annotations

import errno

import pytest

from steertag import Stack
from steertag.inet.tcp.cong.cubic import BETA, CSS_ROUNDS, C
from steertag.inet.tcp.cong.registry import (
    CongestionOps,
    tcp_ca_find,
    tcp_get_available_congestion_control,
    tcp_get_default_congestion_control,
    tcp_register_congestion_control,
    tcp_set_congestion_control,
    tcp_set_default_congestion_control,
    tcp_unregister_congestion_control,
)
from steertag.inet.tcp.cwnd import tcp_slow_start_after_idle_check
from tests.unit.tcp_sender import MSS, Sender


class Fixed(CongestionOps):
    """A window that does not move."""

    name = "fixed"

    def __init__(self) -> None:
        self.log: list[str] = []

    def init(self, sk: object) -> None:
        self.log.append("init")

    def release(self, sk: object) -> None:
        self.log.append("release")

    def cong_avoid(self, sk: object, ack: int, acked: int, now: float) -> None:
        self.log.append(f"acked {acked}")


# -- the registry -------------------------------------------------------------------------------


def test_a_stack_has_reno_and_cubic_and_cubic_is_the_default() -> None:
    stack = Stack(load_family=None)
    assert tcp_get_available_congestion_control(stack) == ["reno", "cubic"]
    assert tcp_get_default_congestion_control(stack) == "cubic"
    assert tcp_ca_find(stack, "reno").name == "reno"


def test_an_algorithm_of_ones_own_is_known_to_its_stack_alone() -> None:
    mine, other = Stack(load_family=None), Stack(load_family=None)
    tcp_register_congestion_control(mine, Fixed())
    assert "fixed" in tcp_get_available_congestion_control(mine)
    with pytest.raises(OSError, match="fixed") as caught:
        tcp_ca_find(other, "fixed")
    assert caught.value.errno == errno.ENOENT


def test_names_are_taken_once() -> None:
    stack = Stack(load_family=None)
    tcp_register_congestion_control(stack, Fixed())
    with pytest.raises(OSError, match="fixed") as caught:
        tcp_register_congestion_control(stack, Fixed())
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("name", ["", "x" * 16, "é"])
def test_a_name_that_can_not_be_asked_for_is_refused(name: str) -> None:
    ops = Fixed()
    ops.name = name
    with pytest.raises(OSError, match="congestion") as caught:
        tcp_register_congestion_control(Stack(load_family=None), ops)
    assert caught.value.errno == errno.EINVAL


def test_an_algorithm_that_never_grows_the_window_is_refused() -> None:
    class Nothing(CongestionOps):
        name = "nothing"

    with pytest.raises(OSError, match="cong_avoid") as caught:
        tcp_register_congestion_control(Stack(load_family=None), Nothing())
    assert caught.value.errno == errno.EINVAL


def test_an_algorithm_in_use_stays() -> None:
    sender = Sender()
    ops = Fixed()
    tcp_register_congestion_control(sender.stack, ops)
    tcp_set_congestion_control(sender.sk, "fixed")
    with pytest.raises(OSError, match="1 connections") as caught:
        tcp_unregister_congestion_control(sender.stack, ops)
    assert caught.value.errno == errno.EBUSY
    tcp_set_congestion_control(sender.sk, "reno")
    tcp_unregister_congestion_control(sender.stack, ops)
    assert "fixed" not in tcp_get_available_congestion_control(sender.stack)


def test_the_default_stays_and_an_unknown_one_is_enoent() -> None:
    stack = Stack(load_family=None)
    ops = Fixed()
    tcp_register_congestion_control(stack, ops)
    tcp_set_default_congestion_control(stack, "fixed")
    with pytest.raises(OSError, match="default") as caught:
        tcp_unregister_congestion_control(stack, ops)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="bbr") as caught:
        tcp_set_default_congestion_control(stack, "bbr")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(OSError, match="fixed") as caught:
        tcp_unregister_congestion_control(Stack(load_family=None), ops)
    assert caught.value.errno == errno.ENOENT


def test_a_running_connection_changes_its_algorithm() -> None:
    sender = Sender()
    ops = Fixed()
    tcp_register_congestion_control(sender.stack, ops)
    tcp_set_congestion_control(sender.sk, "fixed")
    sender.warm()
    assert ops.log == ["init", f"acked {MSS}"]
    tcp_set_congestion_control(sender.sk, "cubic")
    assert ops.log[-1] == "release"


# -- Reno ---------------------------------------------------------------------------------------


def _round(sender: Sender) -> None:
    """A window goes and is acknowledged, two segments at a time."""
    sk = sender.sk
    sender.queue(2 * sk.cwnd)
    sender.push()
    sender.wait(sender.rtt)
    end = sk.snd_nxt
    while sk.snd_una != end:
        upto = min((sk.snd_una - sender.start + 2 * MSS) & 0xFFFFFFFF, end_of(sender, end))
        sender.ack(upto)


def end_of(sender: Sender, seq: int) -> int:
    return (seq - sender.start) & 0xFFFFFFFF


def test_slow_start_doubles_the_window_each_round_trip() -> None:
    sender = Sender(cwnd=10)
    sender.warm()
    before = sender.sk.cwnd
    _round(sender)
    assert sender.sk.cwnd == 2 * before


def test_slow_start_ends_at_the_threshold_and_a_segment_a_round_trip_follows() -> None:
    sender = Sender(cwnd=10)
    sender.warm()
    sender.sk.ssthresh = 20 * MSS
    _round(sender)
    assert 20 * MSS <= sender.sk.cwnd <= 21 * MSS
    before = sender.sk.cwnd
    for _ in range(5):
        _round(sender)
    assert sender.sk.cwnd - before == pytest.approx(5 * MSS, abs=MSS)


def test_a_window_that_is_not_used_does_not_grow() -> None:
    sender = Sender(cwnd=100)
    sender.warm()
    for number in range(20):
        sender.send(MSS)
        sender.wait(0.1)
        sender.ack((number + 1) * MSS)
    assert sender.sk.cwnd == 100 * MSS


def test_reno_halves_and_never_below_two_segments() -> None:
    sender = Sender(cwnd=10)
    assert sender.sk.ca.ssthresh(sender.sk) == 5 * MSS
    sender.sk.cwnd = MSS
    assert sender.sk.ca.ssthresh(sender.sk) == 2 * MSS


# -- CUBIC --------------------------------------------------------------------------------------


def _in_avoidance(cwnd: int, w_max: int, rtt: float = 0.1) -> Sender:
    """CUBIC after a loss at `w_max` segments, held back by its window of `cwnd`."""
    sender = Sender(congestion="cubic", cwnd=w_max, rtt=rtt)
    sk = sender.sk
    sk.srtt = rtt
    sk.ssthresh = sk.ca.ssthresh(sk)
    sk.cwnd = cwnd * MSS
    sk.ssthresh = sk.cwnd
    sk.is_cwnd_limited = True
    return sender


def _avoid(sender: Sender, seconds: float, rtt: float = 0.1) -> None:
    """Windows are acknowledged for so long, in tenths of a window."""
    sk = sender.sk
    end = sender.clock.now + seconds
    while sender.clock.now < end - 1e-9:
        for _ in range(10):
            sk.ca.cong_avoid(sk, 0, sk.cwnd // 10, sender.clock.now)
            sender.clock.now += rtt / 10


def test_the_window_falls_to_seven_tenths() -> None:
    sender = Sender(congestion="cubic", cwnd=100)
    assert sender.sk.ca.ssthresh(sender.sk) == 70 * MSS


def test_the_window_follows_the_cubic_curve() -> None:
    """W(t) = C (t - K)^3 + W_max, K = cbrt((W_max - cwnd) / C): RFC 9438 section 4.2."""
    w_max, start = 1000, 700
    sender = _in_avoidance(start, w_max)
    k = ((w_max - start) / C) ** (1 / 3)
    t = 0.0
    for _ in range(24):
        _avoid(sender, 0.5)
        t += 0.5
        expected = C * (t - k) ** 3 + w_max
        # The window reaches within a round trip what the curve says for its end.
        ahead = C * (t + 0.2 - k) ** 3 + w_max
        got = sender.sk.cwnd / MSS
        slack = 0.01 * w_max + abs(ahead - expected)
        assert expected - slack <= got <= ahead + slack


def test_below_the_friendly_window_it_grows_as_reno_would() -> None:
    """alpha = 3 (1 - beta) / (1 + beta) a round trip, until cwnd_prior: section 4.3."""
    sender = _in_avoidance(7, 10, rtt=0.01)
    sender.sk.srtt = 0.01
    _avoid(sender, 0.05, rtt=0.01)
    alpha = 3 * (1 - BETA) / (1 + BETA)
    assert sender.sk.cwnd / MSS == pytest.approx(7 + 5 * alpha, abs=0.4)


def test_a_loss_below_the_last_maximum_makes_room() -> None:
    """Fast convergence: W_max = cwnd (1 + beta) / 2, section 4.7."""
    sender = _in_avoidance(80, 100)
    sk = sender.sk
    sk.cwnd = 80 * MSS
    sk.ca.ssthresh(sk)
    assert sk.ca_priv.w_max == pytest.approx(80 * (1 + BETA) / 2)
    sk.cwnd = 200 * MSS
    sk.ca.ssthresh(sk)
    assert sk.ca_priv.w_max == 200


def test_the_window_grows_by_half_of_itself_a_round_trip_at_most() -> None:
    sender = _in_avoidance(10, 10)
    _avoid(sender, 0.1)
    sender.clock.now += 1000.0  # the curve is far above
    before = sender.sk.cwnd
    _avoid(sender, 0.1)
    assert sender.sk.cwnd <= before * 1.7


def test_an_undone_reduction_restores_the_curve() -> None:
    sender = _in_avoidance(70, 100)
    _avoid(sender, 0.3)
    sk = sender.sk
    ca = sk.ca_priv
    known = (ca.w_max, ca.k, ca.epoch, ca.origin)
    sk.prior_cwnd = sk.cwnd
    sk.ca.ssthresh(sk)
    assert (ca.w_max, ca.k, ca.epoch, ca.origin) != known
    assert sk.ca.undo_cwnd(sk) == sk.prior_cwnd
    assert (ca.w_max, ca.k, ca.epoch, ca.origin) == known


def test_a_timeout_forgets_the_curve() -> None:
    sender = _in_avoidance(70, 100)
    _avoid(sender, 0.3)
    sender.sk.ca.set_state(sender.sk, 4)
    assert sender.sk.ca_priv.w_max == 0.0
    assert sender.sk.ca_priv.epoch < 0


def test_idle_time_is_no_time_of_the_curve() -> None:
    sender = _in_avoidance(70, 100)
    _avoid(sender, 0.3)
    sk = sender.sk
    sk.lsndtime = sender.clock.now
    before = sender.clock.now - sk.ca_priv.epoch
    sender.clock.now += 60.0
    sender.stack.sysctl["net.ipv4.tcp_slow_start_after_idle"] = 0
    tcp_slow_start_after_idle_check(sk, sender.clock.now)
    assert sender.clock.now - sk.ca_priv.epoch == pytest.approx(before)


def _slow_start_round(sender: Sender, rtt: float) -> None:
    """One round of slow start in which twenty round trips of `rtt` are measured."""
    sk = sender.sk
    sk.snd_una = sk.snd_nxt
    sk.snd_nxt = (sk.snd_nxt + sk.cwnd) & 0xFFFFFFFF
    sk.is_cwnd_limited = True
    share = sk.cwnd // 20
    for _ in range(20):
        sk.ca.pkts_acked(sk, share, rtt, sender.clock.now)
        sk.ca.cong_avoid(sk, 0, share, sender.clock.now)


def test_slow_start_ends_when_the_round_trip_grows() -> None:
    """HyStart++: an eighth longer, then five slower rounds (RFC 9406 section 4.2)."""
    sender = Sender(congestion="cubic", cwnd=40)
    for _ in range(3):
        _slow_start_round(sender, 0.080)
    assert sender.sk.cwnd >= 300 * MSS
    _slow_start_round(sender, 0.095)
    assert sender.mib("TCPHystartDelayDetect") == 1
    before = sender.sk.cwnd
    _slow_start_round(sender, 0.095)
    assert sender.sk.cwnd <= before * 1.26
    for _ in range(CSS_ROUNDS):
        _slow_start_round(sender, 0.095)
    assert sender.sk.ssthresh < 0x7FFFFFFF
    assert sender.sk.cwnd >= sender.sk.ssthresh


def test_slow_start_goes_on_when_the_longer_round_trip_was_a_passing_one() -> None:
    sender = Sender(congestion="cubic", cwnd=40)
    for rtt in (0.080, 0.080, 0.095, 0.080):
        _slow_start_round(sender, rtt)
    before = sender.sk.cwnd
    _slow_start_round(sender, 0.080)
    assert sender.sk.cwnd == pytest.approx(2 * before, rel=0.01)
    assert sender.sk.ssthresh == 0x7FFFFFFF
