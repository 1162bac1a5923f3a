"""Recovery: RACK and SACK, PRR, NewReno, F-RTO, undo, reneging, and what MTU changes do."""

from __future__ import annotations

import pytest

from steertag.inet.tcp import output, recovery
from steertag.inet.tcp.skb import TCPCB_LOST
from steertag.inet.tcp.sock import (
    ICSK_TIME_REO_TIMEOUT,
    TCP_CA_CWR,
    TCP_CA_DISORDER,
    TCP_CA_LOSS,
    TCP_CA_OPEN,
    TCP_CA_RECOVERY,
)
from tests.unit.tcp_sender import MSS, Sender


def _flying(segments: int = 20, **options: bool) -> Sender:
    """A window in flight, a piece a segment, and a round trip gone."""
    sender = Sender(cwnd=segments, **options)
    sender.warm()
    sender.sk.cwnd = segments * MSS
    for _ in range(segments):
        sender.send(MSS)
    assert sender.in_flight == segments * MSS
    sender.wait(0.1)
    return sender


# -- SACK and RACK ------------------------------------------------------------------------------


def test_three_segments_behind_the_gap_start_recovery() -> None:
    """RFC 6675 section 5, RFC 8985 section 6.2: without reordering seen, three do."""
    sender = _flying()
    assert sender.ack(0, (MSS, 2 * MSS)) == []
    assert sender.ack(0, (MSS, 3 * MSS)) == []
    assert sender.sk.ca_state == TCP_CA_DISORDER
    assert sender.ack(0, (MSS, 4 * MSS)) == [(0, MSS)]
    assert sender.sk.ca_state == TCP_CA_RECOVERY
    assert sender.mib("TCPSackRecovery") == sender.mib("TCPFastRetrans") == 1
    assert sender.sk.mib["TcpRetransSegs"] == 1
    assert sender.sk.ssthresh == 10 * MSS
    sender.check_counts()


def test_recovery_ends_at_the_threshold_when_all_of_it_is_acknowledged() -> None:
    sender = _flying()
    sender.ack(0, (MSS, 20 * MSS))
    assert sender.sk.ca_state == TCP_CA_RECOVERY
    sender.wait(0.1)
    sender.ack(20 * MSS)
    assert sender.sk.ca_state == TCP_CA_OPEN
    assert sender.sk.cwnd == sender.sk.ssthresh == 10 * MSS
    assert sender.sk.lost_out == sender.sk.retrans_out == sender.sk.sacked_out == 0


def test_every_gap_is_sent_again_and_nothing_else() -> None:
    sender = _flying()
    sent = []
    for blocks in (
        [(MSS, 4 * MSS)],
        [(6 * MSS, 9 * MSS), (MSS, 4 * MSS)],
        [(12 * MSS, 20 * MSS), (6 * MSS, 9 * MSS), (MSS, 4 * MSS)],
    ):
        sent += sender.ack(0, *blocks)
    octets = {n for low, high in sent for n in range(low // MSS, high // MSS)}
    assert octets == {0, 4, 5, 9, 10, 11}
    assert sum(high - low for low, high in sent) == 6 * MSS
    sender.check_counts()


def test_a_few_segments_lost_in_a_super_segment_are_sent_again_alone() -> None:
    sender = Sender(cwnd=60)
    sender.warm()
    sender.sk.cwnd = 60 * MSS
    sender.send(60 * MSS)
    sender.wait(0.1)
    sent = sender.ack(0, (2 * MSS, 30 * MSS), (33 * MSS, 60 * MSS))
    assert sent == [(0, 2 * MSS), (30 * MSS, 33 * MSS)]


def test_proportional_rate_reduction_sends_half_of_what_is_delivered() -> None:
    """RFC 6937bis: above the threshold, ssthresh / prior cwnd of what is delivered."""
    sender = _flying(40)
    sender.queue(100 * MSS)
    sent = 0
    for number in range(2, 21):
        before = sender.in_flight
        spans = sender.ack(0, (MSS, number * MSS))
        sent += sum(high - low for low, high in spans)
        assert sender.in_flight <= before
    delivered = 19 * MSS
    assert sent == pytest.approx(delivered * 20 / 40, abs=2 * MSS)
    assert sender.sk.prr_out == pytest.approx(sender.sk.prr_delivered / 2, abs=2 * MSS)


def test_much_loss_is_followed_by_slow_start_up_to_the_threshold() -> None:
    """Below the threshold: what was delivered, and one more with each ACK that advances."""
    sender = _flying(40)
    spans = sender.ack(0, (37 * MSS, 40 * MSS))  # 37 lost
    assert sender.sk.ca_state == TCP_CA_RECOVERY
    first = sum(high - low for low, high in spans)
    assert first == 3 * MSS
    in_flight = sender.in_flight
    sender.wait(0.1)
    spans = sender.ack(3 * MSS, (37 * MSS, 40 * MSS))
    assert sum(high - low for low, high in spans) == 4 * MSS  # safeACK: three and one
    assert sender.in_flight == in_flight + MSS


def test_a_lost_retransmission_is_found_by_time() -> None:
    sender = _flying()
    sender.ack(0, (MSS, 5 * MSS))
    assert sender.sk.retrans_out == MSS
    sender.queue(20 * MSS)
    sender.wait(0.05)
    fresh = sender.ack(0, (MSS, 15 * MSS))  # new data goes, after the retransmission
    assert fresh
    sender.wait(0.1)
    spans = sender.ack(0, (20 * MSS, fresh[-1][1]), (MSS, 15 * MSS))
    assert (0, MSS) in spans
    assert sender.mib("TCPLostRetransmit") == 1
    sender.check_counts()


def test_after_reordering_was_seen_loss_waits_for_a_quarter_of_the_round_trip() -> None:
    sender = _flying()
    sender.ack(0, (MSS, 2 * MSS))
    sender.ack(2 * MSS)  # the first came late, sent once: reordered
    assert sender.sk.reord_seen == 1
    assert sender.mib("TCPSACKReorder") == 1
    spans = sender.ack(2 * MSS, (3 * MSS, 9 * MSS))
    assert spans == []
    assert sender.sk.pending == ICSK_TIME_REO_TIMEOUT
    spans = sender.wait(0.1 / 4 + 0.01)
    assert (2 * MSS, 3 * MSS) in spans
    assert sender.sk.ca_state == TCP_CA_RECOVERY


def test_reordering_within_the_window_sends_nothing_again() -> None:
    sender = _flying()
    sender.sk.reord_seen = 1
    sender.ack(0, (MSS, 9 * MSS))
    sender.wait(0.01)
    sender.ack(9 * MSS)
    assert sender.wait(0.05) == []
    assert sender.sk.ca_state == TCP_CA_OPEN
    assert sender.sk.mib["TcpRetransSegs"] == 0
    assert sender.sk.reordering == 9


def test_d_sacks_widen_the_reordering_window_and_recoveries_narrow_it() -> None:
    sender = _flying()
    sk = sender.sk
    sk.reord_seen = 1
    sk.total_retrans = 10
    sender.ack(2 * MSS, (0, MSS))
    assert sk.rack_reo_steps == 2
    assert sender.mib("TCPDSACKRecv") == 1
    assert sk.rack_reo_persist == 16
    sk.rack_reo_persist = 0
    sender.ack(3 * MSS)
    sender.ack(3 * MSS, (5 * MSS, 6 * MSS))
    assert sk.rack_reo_steps == 1


def test_a_peer_that_reneges_is_not_believed_any_more() -> None:
    """RFC 2018 section 8: what was selectively acknowledged alone is sent again on a timeout."""
    sender = _flying(6)
    sender.ack(0, (MSS, 6 * MSS))
    sender.wait(0.1)
    sender.ack(MSS)  # no blocks: the head is what the peer said it had
    spans = sender.wait(1.0)
    assert sender.mib("TCPSACKReneging") == 1
    assert sender.sk.ca_state == TCP_CA_LOSS
    assert spans[0] == (MSS, 2 * MSS)
    assert sender.sk.sacked_out == 0
    sender.check_counts()


# -- NewReno ------------------------------------------------------------------------------------


def test_without_sack_three_duplicates_start_recovery() -> None:
    sender = _flying(20, sack=False)
    assert sender.ack(0) == sender.ack(0) == []
    assert sender.ack(0) == [(0, MSS)]
    assert sender.sk.ca_state == TCP_CA_RECOVERY
    assert sender.mib("TCPRenoRecovery") == 1


def test_the_first_duplicates_send_new_data() -> None:
    """Limited transmit, RFC 3042."""
    sender = _flying(20, sack=False)
    for _ in range(5):
        sender.queue(MSS)
    assert sender.ack(0) == [(20 * MSS, 21 * MSS)]
    assert sender.ack(0) == [(21 * MSS, 22 * MSS)]


def test_a_partial_ack_sends_the_next_hole() -> None:
    """RFC 6582 section 3.2, step 3."""
    sender = _flying(20, sack=False)
    for _ in range(3):
        sender.ack(0)
    sender.wait(0.1)
    spans = sender.ack(5 * MSS)
    assert (5 * MSS, 6 * MSS) in spans
    assert sender.sk.ca_state == TCP_CA_RECOVERY


def test_recovery_without_sack_is_held_until_more_is_acknowledged() -> None:
    sender = _flying(20, sack=False)
    for _ in range(3):
        sender.ack(0)
    sender.wait(0.1)
    sender.ack(20 * MSS)
    assert sender.sk.ca_state == TCP_CA_RECOVERY
    sender.send(MSS)
    sender.wait(0.1)
    sender.ack(21 * MSS)
    assert sender.sk.ca_state == TCP_CA_OPEN
    assert sender.sk.ssthresh == 10 * MSS
    assert sender.sk.cwnd <= 11 * MSS


# -- undo ---------------------------------------------------------------------------------------


def test_a_recovery_that_d_sacks_prove_wrong_is_undone() -> None:
    sender = _flying()
    sender.ack(0, (MSS, 5 * MSS))
    assert sender.sk.cwnd < 20 * MSS
    sender.wait(0.02)
    sender.ack(20 * MSS)  # the original arrived; so did all
    sender.ack(20 * MSS, (0, MSS))
    assert sender.mib("TCPDSACKUndo") + sender.mib("TCPFullUndo") == 1
    assert sender.sk.cwnd >= 20 * MSS
    assert sender.sk.ca_state == TCP_CA_OPEN


def test_an_answer_to_a_first_transmission_undoes_a_recovery() -> None:
    """Eifel, RFC 3522: the echoed timestamp is older than the retransmission."""
    sender = _flying(timestamps=True)
    sender.ack(0, (MSS, 5 * MSS))
    assert sender.sk.ca_state == TCP_CA_RECOVERY
    sender.wait(0.05)
    sender.ack(20 * MSS, tsecr=sender.clock.now - 0.15)
    assert sender.mib("TCPFullUndo") == 1
    assert sender.sk.cwnd >= 20 * MSS
    assert sender.sk.ssthresh == 0x7FFFFFFF


def test_an_answer_to_the_retransmission_undoes_nothing() -> None:
    sender = _flying(timestamps=True)
    sender.ack(0, (MSS, 5 * MSS))
    sender.wait(0.1)
    sender.ack(20 * MSS)
    assert sender.mib("TCPFullUndo") == 0
    assert sender.sk.ssthresh == 10 * MSS
    assert sender.sk.cwnd <= 11 * MSS


def test_a_timeout_that_was_spurious_is_found_by_frto() -> None:
    """RFC 5682: what was sent before the timeout, and not again, is acknowledged."""
    sender = _flying()
    sender.wait(2.0)
    assert sender.sk.ca_state == TCP_CA_LOSS
    assert sender.mib("TCPTimeouts") >= 1
    sender.queue(10 * MSS)
    sender.ack(4 * MSS)
    assert sender.mib("TCPSpuriousRTOs") == 1
    assert sender.mib("TCPLossUndo") == 1
    assert sender.sk.ca_state == TCP_CA_OPEN
    assert sender.sk.lost_out == 0
    assert sender.sk.cwnd >= 20 * MSS
    sender.check_counts()


def test_a_timeout_of_a_real_loss_ends_in_slow_start() -> None:
    sender = _flying()
    sender.wait(0.9)
    assert sender.sk.ca_state == TCP_CA_LOSS
    assert sender.sk.cwnd == MSS
    sender.wait(0.1)
    spans = sender.ack(MSS)  # the retransmission, no more
    while sender.sk.snd_una != sender.sk.snd_nxt:
        sender.wait(0.1)
        last = max(high for _, high in spans) if spans else 20 * MSS
        spans = sender.ack(last)
        sender.check_counts()
    assert sender.mib("TCPSpuriousRTOs") == 0
    assert sender.sk.ca_state == TCP_CA_OPEN
    assert sender.sk.ssthresh == 10 * MSS


def test_eifel_undoes_a_spurious_timeout() -> None:
    sender = _flying(timestamps=True)
    sender.stack.sysctl["net.ipv4.tcp_frto"] = 0
    sender.wait(0.9)
    assert sender.sk.ca_state == TCP_CA_LOSS
    sender.ack(2 * MSS, tsecr=sender.clock.now - 1.0)
    assert sender.mib("TCPLossUndo") == 1
    assert sender.sk.ca_state == TCP_CA_OPEN


# -- tail loss probes ---------------------------------------------------------------------------


def test_the_last_segment_is_sent_again_after_two_round_trips() -> None:
    sender = _flying(5)
    spans = sender.wait(0.2)
    assert spans == [(4 * MSS, 5 * MSS)]
    assert sender.mib("TCPLossProbes") == 1
    assert sender.sk.cwnd == 5 * MSS


def test_a_probe_that_repaired_a_loss_costs_a_reduction() -> None:
    sender = _flying(5)
    sender.wait(0.2)
    sender.wait(0.05)
    sender.ack(5 * MSS)
    before = sender.sk.cwnd
    sender.send(MSS)
    sender.wait(0.1)
    sender.ack(6 * MSS)
    assert sender.mib("TCPLossProbeRecovery") == 1
    assert sender.sk.ssthresh == max(before // 2, 2 * MSS)
    assert sender.sk.ca_state == TCP_CA_OPEN


def test_a_probe_that_came_twice_costs_nothing() -> None:
    """A D-SACK of the probe, RFC 8985 section 7.4.2."""
    sender = _flying(5)
    sender.wait(0.2)
    sender.ack(5 * MSS)
    assert sender.sk.tlp_high_seq is not None
    sender.ack(5 * MSS, (4 * MSS, 5 * MSS))
    assert sender.sk.tlp_high_seq is None
    assert sender.mib("TCPLossProbeRecovery") == 0
    assert sender.sk.ssthresh == 0x7FFFFFFF


def test_new_data_probes_if_there_is_some() -> None:
    sender = _flying(5)
    sender.queue(3 * MSS)
    spans = sender.wait(0.15)
    assert spans[0] == (5 * MSS, 6 * MSS)
    assert sender.sk.mib["TcpRetransSegs"] == 0
    sender.ack(6 * MSS)
    assert sender.sk.tlp_high_seq is None
    assert sender.sk.ca_state == TCP_CA_OPEN


def test_the_tail_of_a_super_segment_is_probed_with_one_segment() -> None:
    sender = Sender(cwnd=50)
    sender.warm()
    sender.sk.cwnd = 50 * MSS
    sender.send(30 * MSS)
    assert sender.wait(0.21) == [(29 * MSS, 30 * MSS)]


# -- the rest -----------------------------------------------------------------------------------


def test_a_smaller_mtu_sends_again_what_was_too_large_without_a_reduction() -> None:
    sender = _flying(5)
    before = sender.sk.cwnd
    since = len(sender.route.sent)
    sender.route.mtu = 540
    output.tcp_sync_mss(sender.sk, 540)
    recovery.tcp_simple_retransmit(sender.sk)
    assert sender.spans(since)
    assert sender.sk.ca_state == TCP_CA_LOSS
    assert sender.sk.undo_marker is None
    assert sender.sk.cwnd == before
    assert all(skb.sacked & TCPCB_LOST for skb in sender.sk.rtx)
    sender.check_counts()


def test_a_smaller_mtu_that_still_fits_changes_nothing() -> None:
    sender = _flying(5)
    since = len(sender.route.sent)
    recovery.tcp_simple_retransmit(sender.sk)
    assert sender.spans(since) == []
    assert sender.sk.ca_state == TCP_CA_OPEN


def test_enter_cwr_brings_the_window_down_without_loss() -> None:
    sender = _flying()
    recovery.tcp_enter_cwr(sender.sk)
    assert sender.sk.ca_state == TCP_CA_CWR
    assert sender.sk.ssthresh == 10 * MSS
    for number in range(1, 21):
        sender.ack(number * MSS)
    sender.send(MSS)
    sender.ack(21 * MSS)
    assert sender.sk.ca_state == TCP_CA_OPEN
    assert sender.sk.cwnd <= 11 * MSS


def test_an_idle_sender_starts_again_with_ten_segments() -> None:
    sender = _flying()
    sender.ack(20 * MSS)
    sender.sk.cwnd = 100 * MSS
    sender.sk.lsndtime = sender.clock.now
    sender.wait(60.0)
    recovery.tcp_slow_start_after_idle_check(sender.sk, sender.clock.now)
    assert sender.sk.cwnd == 10 * MSS
    assert sender.sk.ssthresh >= 75 * MSS


def test_idling_costs_nothing_where_the_sysctl_says_so() -> None:
    sender = _flying()
    sender.ack(20 * MSS)
    before = sender.sk.cwnd
    sender.stack.sysctl["net.ipv4.tcp_slow_start_after_idle"] = 0
    sender.wait(60.0)
    recovery.tcp_slow_start_after_idle_check(sender.sk, sender.clock.now)
    assert sender.sk.cwnd == before


def test_a_peer_with_hostile_blocks_never_stops_the_sender() -> None:
    """Every second segment is claimed, then the others: it ends with everything acknowledged."""
    sender = _flying(40)
    for low in range(1, 39, 2):
        sender.ack(0, (low * MSS, (low + 1) * MSS))
        sender.check_counts()
    for low in range(2, 39, 2):
        sender.ack(0, (low * MSS, (low + 1) * MSS))
        sender.check_counts()
    sender.wait(0.1)
    sender.ack(40 * MSS)
    assert not sender.sk.rtx
    assert sender.sk.ca_state == TCP_CA_OPEN
