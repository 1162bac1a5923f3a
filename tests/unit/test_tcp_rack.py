"""RACK's arithmetic (RFC 8985): what counts as delivered last, the reordering window, the timer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steertag.inet.tcp.rack import (
    tcp_rack_advance,
    tcp_rack_detect_loss,
    tcp_rack_reo_wnd,
    tcp_rack_update_reo_wnd,
)
from steertag.inet.tcp.skb import TCPCB_EVER_RETRANS, TCPCB_LOST, TCPCB_SACKED_ACKED
from steertag.inet.tcp.sock import ICSK_TIME_LOSS_PROBE, TCP_CA_RECOVERY
from tests.unit.tcp_sender import MSS, Sender


def _spaced(segments: int, gap: float) -> Sender:
    """Segments that were sent `gap` seconds apart, one piece each."""
    sender = Sender(cwnd=segments)
    sender.warm()
    sender.sk.cwnd = segments * MSS
    for _ in range(segments):
        sender.send(MSS)
        sender.clock.now += gap
    return sender


def _lost(sender: Sender) -> list[int]:
    skbs = list(sender.sk.rtx)
    return [at for at, skb in enumerate(skbs) if skb.sacked & TCPCB_LOST]


def test_the_piece_sent_last_of_the_delivered_is_what_counts() -> None:
    sk = Sender().sk
    sk.rtt_min = 0.01
    tcp_rack_advance(sk, 0, 100, 5.0, 5.1)
    tcp_rack_advance(sk, 0, 90, 4.0, 5.1)
    assert (sk.rack_xmit_at, sk.rack_end_seq) == (5.0, 100)
    tcp_rack_advance(sk, 0, 200, 5.0, 5.1)  # sent at the same time, further on
    assert (sk.rack_xmit_at, sk.rack_end_seq) == (5.0, 200)
    tcp_rack_advance(sk, 0, 150, 5.0, 5.1)
    assert sk.rack_end_seq == 200


def test_the_order_of_sequence_numbers_holds_over_the_wrap() -> None:
    sk = Sender().sk
    tcp_rack_advance(sk, 0, 0xFFFFFF00, 5.0, 5.1)
    tcp_rack_advance(sk, 0, 0x10, 5.0, 5.1)
    assert sk.rack_end_seq == 0x10
    tcp_rack_advance(sk, 0, 0xFFFFFFF0, 5.0, 5.1)
    assert sk.rack_end_seq == 0x10


def test_a_retransmission_that_is_answered_too_soon_does_not_count() -> None:
    """It is the first transmission that was answered: section 6.2, step 2."""
    sk = Sender().sk
    sk.rtt_min = 0.1
    tcp_rack_advance(sk, TCPCB_EVER_RETRANS, 100, 5.0, 5.05)
    assert not sk.rack_advanced
    tcp_rack_advance(sk, TCPCB_EVER_RETRANS, 100, 5.0, 5.15)
    assert sk.rack_advanced


def test_the_window_is_a_quarter_of_the_least_round_trip_times_its_steps() -> None:
    sk = Sender().sk
    sk.rtt_min, sk.srtt, sk.reord_seen = 0.1, 0.12, 1
    assert tcp_rack_reo_wnd(sk) == pytest.approx(0.025)
    sk.rack_reo_steps = 3
    assert tcp_rack_reo_wnd(sk) == pytest.approx(0.075)
    sk.rack_reo_steps = 200
    assert tcp_rack_reo_wnd(sk) == pytest.approx(0.12)  # a smoothed round trip at most


def test_without_reordering_three_segments_or_recovery_leave_no_window() -> None:
    sk = Sender().sk
    sk.rtt_min = sk.srtt = 0.1
    assert tcp_rack_reo_wnd(sk) == pytest.approx(0.025)
    sk.sacked_out = 3 * MSS
    assert tcp_rack_reo_wnd(sk) == 0.0
    sk.sk_stack.sysctl["net.ipv4.tcp_recovery"] = 1 | 4
    assert tcp_rack_reo_wnd(sk) == pytest.approx(0.025)
    sk.ca_state = TCP_CA_RECOVERY
    assert tcp_rack_reo_wnd(sk) == 0.0


def test_the_window_widens_once_a_round_trip() -> None:
    sk = Sender().sk
    sk.delivered = 100
    sk.rack_dsack_seen = True
    tcp_rack_update_reo_wnd(sk, 50)
    assert sk.rack_reo_steps == 2
    sk.rack_dsack_seen = True
    tcp_rack_update_reo_wnd(sk, 50)  # of before the last widening
    assert sk.rack_reo_steps == 2
    sk.rack_dsack_seen = True
    tcp_rack_update_reo_wnd(sk, 100)
    assert sk.rack_reo_steps == 3


def test_only_what_was_sent_long_enough_before_the_delivered_is_lost() -> None:
    sender = _spaced(10, 0.002)
    sender.sk.reord_seen = 1
    sender.clock.now += 0.02
    sender.ack(0, (9 * MSS, 10 * MSS))
    assert sender.sk.rack_rtt == pytest.approx(0.022)
    # The window is 5.5 ms: lost is what was sent 27.5 ms ago or earlier.
    assert _lost(sender) == [0, 1, 2, 3, 4, 5, 6]
    assert sender.stack.timers.deadline is not None


def test_what_waits_is_lost_when_the_timer_expires() -> None:
    sender = _spaced(10, 0.002)
    sender.sk.reord_seen = 1
    sender.clock.now += 0.02
    sender.ack(0, (9 * MSS, 10 * MSS))
    sender.wait(0.012)
    assert _lost(sender) == list(range(9))


def test_a_short_flight_gets_time_for_a_delayed_ack_before_its_probe() -> None:
    sender = Sender()
    sender.warm()
    sender.send(MSS)
    assert sender.sk.pending == ICSK_TIME_LOSS_PROBE
    due = sender.clock.now + min(2 * sender.sk.srtt + 0.2, sender.sk.rto)
    assert sender.sk.retrans_timer.expires == pytest.approx(due)


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(0.0, 0.05), min_size=3, max_size=25),
    sacked=st.sets(st.integers(1, 24), max_size=12),
    later=st.floats(0.0, 0.1),
    seen=st.booleans(),
)
def test_the_cursor_finds_what_a_walk_over_everything_finds(
    gaps: list[float], sacked: set[int], later: float, seen: bool
) -> None:
    sender = Sender(cwnd=100)
    sender.warm()
    sk = sender.sk
    sk.reord_seen = int(seen)
    for gap in gaps:
        sender.send(MSS)
        sender.clock.now += gap
    skbs = list(sk.rtx)
    now = sender.clock.now + later
    for at in sorted(sacked):
        if at < len(skbs):
            skb = skbs[at]
            skb.sacked |= TCPCB_SACKED_ACKED
            sk.sacked_out += MSS
            sk.rtx.add_range(skb.seq, skb.end_seq)
            tcp_rack_advance(sk, 0, skb.end_seq, skb.sent_at, now)
    overdue = now - sk.rack_rtt - tcp_rack_reo_wnd(sk)
    latest = (sk.rack_xmit_at, (sk.rack_end_seq - sender.start) & 0xFFFFFFFF)
    expected = [
        at
        for at, skb in enumerate(skbs)
        if not skb.sacked & TCPCB_SACKED_ACKED
        and (skb.sent_at, (skb.end_seq - sender.start) & 0xFFFFFFFF) < latest
        and skb.sent_at <= overdue
    ]
    tcp_rack_detect_loss(sk, now)
    assert _lost(sender) == expected
    assert tcp_rack_detect_loss(sk, now) >= 0.0  # again: nothing new
    assert _lost(sender) == expected
    sender.check_counts()
