"""What one acknowledgement does: acceptability, window, round trip, memory, duplicates."""

from __future__ import annotations

import pytest

from steertag.inet.tcp.rate import tcp_delivery_rate
from steertag.inet.tcp.skb import TCPCB_SACKED_ACKED
from steertag.inet.tcp.sock import (
    ICSK_TIME_LOSS_PROBE,
    ICSK_TIME_NONE,
    ICSK_TIME_PROBE0,
    ICSK_TIME_RETRANS,
    TCP_CA_CWR,
    TCP_CA_DISORDER,
    TCP_CA_OPEN,
    TCP_ECN_OK,
    TCP_ECN_QUEUE_CWR,
)
from steertag.wire.seq import add
from steertag.wire.tcp import ACK, CWR, ECE
from tests.unit.tcp_sender import MSS, Sender


@pytest.fixture(params=[0xFFFFF000, 0x7FFFF000, 1], ids=["wrap", "half", "low"])
def sender(request: pytest.FixtureRequest) -> Sender:
    made = Sender(start=request.param)
    made.warm()
    return made


# -- acceptable or not --------------------------------------------------------------------------


def test_an_ack_of_what_was_never_sent_is_not_taken(sender: Sender) -> None:
    sender.send(3 * MSS)
    sender.ack(3 * MSS + 1)
    assert not sender.taken
    assert sender.sk.snd_una == sender.start


def test_an_ack_older_than_the_largest_window_is_not_taken(sender: Sender) -> None:
    sender.sk.max_window, sender.sk.bytes_acked = 20_000, 100_000
    sender.ack(-20_001)
    assert not sender.taken
    sender.ack(-20_000)
    assert sender.taken


def test_an_old_ack_changes_nothing(sender: Sender) -> None:
    sender.send(3 * MSS)
    sender.ack(2 * MSS)
    window = sender.sk.snd_wnd
    sender.ack(MSS, window=7)
    assert sender.taken
    assert sender.sk.snd_una == add(sender.start, 2 * MSS)
    assert sender.sk.snd_wnd == window


# -- the window ---------------------------------------------------------------------------------


def test_a_newer_segment_brings_its_window(sender: Sender) -> None:
    sender.send(2 * MSS)
    sender.ack(MSS, window=30_000)
    assert sender.sk.snd_wnd == 30_000
    sender.ack(MSS, window=40_000)  # same numbers: only a larger one is news
    assert sender.sk.snd_wnd == 40_000
    sender.ack(MSS, window=20_000)
    assert sender.sk.snd_wnd == 40_000
    assert sender.sk.max_window == 10_000_000


def test_a_segment_that_was_overtaken_does_not_bring_its_window(sender: Sender) -> None:
    sender.send(2 * MSS)
    sender.ack(MSS, window=30_000)
    sender.sk.snd_wl1 = add(sender.sk.snd_wl1, 100)  # a later one has been seen
    sender.ack(MSS, window=60_000)
    assert sender.sk.snd_wnd == 30_000


def test_the_window_is_scaled(sender: Sender) -> None:
    sender.sk.snd_wscale = 7
    sender.send(2 * MSS)
    sender.ack(MSS, window=1000)
    assert sender.sk.snd_wnd == 128_000


# -- what it acknowledges -----------------------------------------------------------------------


def test_acknowledged_pieces_leave_and_their_memory_with_them(sender: Sender) -> None:
    sender.send(5 * MSS)
    assert sender.sk.sk_wmem_queued > 5 * MSS
    sender.wait(0.1)
    sender.ack(5 * MSS)
    assert not sender.sk.rtx
    assert sender.sk.sk_wmem_queued == 0
    assert sender.sk.bytes_acked == sender.sk.delivered == 6 * MSS
    assert sender.sk.pending == ICSK_TIME_NONE
    assert not sender.sk.retrans_timer.pending
    assert sender.route.confirmed


def test_half_of_a_super_segment_is_acknowledged(sender: Sender) -> None:
    sender.sk.cwnd = 50 * MSS
    sender.send(40 * MSS)
    sender.wait(0.1)
    sender.ack(10 * MSS)
    assert len(sender.sk.rtx) == 1
    assert sender.in_flight == 30 * MSS
    assert sender.sk.delivered == 11 * MSS
    sender.ack(40 * MSS)
    assert not sender.sk.rtx
    assert sender.sk.sk_wmem_queued == 0
    assert sender.sk.delivered == 41 * MSS


def test_a_partly_acknowledged_super_segment_is_counted_right_when_loss_begins(
    sender: Sender,
) -> None:
    sender.sk.cwnd = 50 * MSS
    sender.send(40 * MSS)
    sender.wait(0.1)
    sender.ack(10 * MSS)
    sender.ack(10 * MSS, (20 * MSS, 30 * MSS))
    assert sender.sk.delivered == 21 * MSS
    assert sender.sk.sacked_out == 10 * MSS
    sender.check_counts()


def test_the_round_trip_is_that_of_the_oldest_octets(sender: Sender) -> None:
    sender.send(MSS)
    sender.wait(0.05)
    sender.send(MSS)
    sender.wait(0.05)
    before = sender.sk.srtt
    sender.ack(2 * MSS)
    assert sender.sk.srtt == pytest.approx(before + (0.1 - before) / 8)
    assert sender.sk.rtt_min == pytest.approx(0.05)


def test_the_timeout_is_set_anew_by_each_ack(sender: Sender) -> None:
    sender.sk.sack_ok = False  # no loss probe
    sender.send(2 * MSS)
    sender.wait(0.1)
    sender.ack(MSS)
    assert sender.sk.pending == ICSK_TIME_RETRANS
    assert sender.sk.retrans_timer.expires == pytest.approx(sender.clock.now + sender.sk.rto)


def test_with_sack_a_loss_probe_is_due_in_two_round_trips(sender: Sender) -> None:
    sender.send(3 * MSS)
    sender.wait(0.1)
    sender.ack(MSS)
    assert sender.sk.pending == ICSK_TIME_LOSS_PROBE
    due = sender.clock.now + 2 * sender.sk.srtt + 0.002
    assert sender.sk.retrans_timer.expires == pytest.approx(due)


def test_the_delivery_rate_is_octets_a_second(sender: Sender) -> None:
    sender.sk.cwnd = 1000 * MSS
    for number in range(1, 40):
        sender.send(10 * MSS)
        sender.wait(0.1)
        sender.ack(10 * MSS * number)
    assert tcp_delivery_rate(sender.sk) == pytest.approx(10 * MSS / 0.1, rel=0.05)


# -- duplicates, ECN ----------------------------------------------------------------------------


def test_an_ack_with_data_is_no_duplicate() -> None:
    sender = Sender(sack=False)
    sender.warm()
    sender.send(8 * MSS)
    for _ in range(5):
        sender.ack(0, data=True)
    assert sender.sk.sacked_out == 0
    assert sender.sk.ca_state == TCP_CA_OPEN


def test_a_window_update_is_no_duplicate() -> None:
    sender = Sender(sack=False)
    sender.warm()
    sender.send(8 * MSS)
    for number in range(5):
        sender.ack(0, window=20_000_000 + number)
    assert sender.sk.sacked_out == 0


def test_an_ecn_echo_brings_the_window_down_once_a_round_trip() -> None:
    sender = Sender(cwnd=20)
    sender.warm()
    sk = sender.sk
    sk.ecn_flags = TCP_ECN_OK
    before = sk.cwnd
    sender.send(20 * MSS)
    sender.wait(0.1)
    sender.ack(MSS, flags=ACK | ECE)
    assert sk.ca_state == TCP_CA_CWR
    assert sk.ssthresh == before // 2
    sender.ack(3 * MSS, flags=ACK | ECE)
    sender.ack(20 * MSS, flags=ACK | ECE)
    assert sk.ssthresh == before // 2
    assert sk.cwnd <= before // 2
    sender.send(2 * MSS)
    assert sender.route.sent[-1].header.flags & CWR
    assert not sk.ecn_flags & TCP_ECN_QUEUE_CWR
    sender.wait(0.1)
    sender.ack(22 * MSS)
    assert sk.ca_state == TCP_CA_OPEN
    assert sk.cwnd == pytest.approx(before // 2, abs=2 * MSS)
    assert sender.sk.delivered_ce > 0


def test_an_ecn_echo_says_nothing_to_who_did_not_agree_on_ecn(sender: Sender) -> None:
    sender.send(2 * MSS)
    sender.wait(0.1)
    sender.ack(MSS, flags=ACK | ECE)
    assert sender.sk.ca_state == TCP_CA_OPEN


# -- a closed window ----------------------------------------------------------------------------


def test_a_closed_window_is_probed_and_opened_by_an_update(sender: Sender) -> None:
    sender.send(2 * MSS)
    sender.wait(0.1)
    sender.queue(5 * MSS)
    sender.ack(2 * MSS, window=0)
    assert sender.sk.pending == ICSK_TIME_PROBE0
    sent = sender.ack(2 * MSS, window=50_000)
    assert sent == [(2 * MSS, 7 * MSS)]
    assert sender.sk.pending in (ICSK_TIME_RETRANS, ICSK_TIME_LOSS_PROBE)


# -- SACK blocks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [(2 * MSS, 20 * MSS), (4 * MSS, 2 * MSS), (0, 2 * MSS), (3 * MSS, 3 * MSS)],
    ids=["beyond what was sent", "reversed", "from snd_una", "empty"],
)
def test_a_block_that_can_not_be_is_discarded(sender: Sender, block: tuple[int, int]) -> None:
    sender.send(10 * MSS)
    sender.ack(0, block)
    assert sender.sk.sacked_out == 0
    assert sender.mib("TCPSACKDiscard") == 1
    assert sender.taken


def test_a_super_segment_is_split_at_the_edges_of_a_block(sender: Sender) -> None:
    sender.sk.cwnd = 50 * MSS
    sender.send(40 * MSS)
    assert len(sender.sk.rtx) == 1
    sender.ack(0, (10 * MSS, 20 * MSS))
    sacked = [(skb.seq, skb.length) for skb in sender.sk.rtx if skb.sacked & TCPCB_SACKED_ACKED]
    assert sacked == [(add(sender.start, 10 * MSS), 10 * MSS)]
    assert sender.sk.sacked_out == 10 * MSS
    assert sender.sk.ca_state >= TCP_CA_DISORDER
    sender.check_counts()


def test_a_block_within_segments_counts_those_that_are_whole(sender: Sender) -> None:
    sender.sk.cwnd = 50 * MSS
    sender.send(40 * MSS)
    sender.ack(0, (10 * MSS + 1, 20 * MSS - 1))
    assert sender.sk.sacked_out == 8 * MSS
    sender.ack(0, (10 * MSS, 20 * MSS))
    assert sender.sk.sacked_out == 10 * MSS
    sender.check_counts()


def test_an_old_ack_still_tells_of_what_arrived(sender: Sender) -> None:
    sender.send(10 * MSS)
    sender.ack(3 * MSS)
    sender.ack(2 * MSS, (5 * MSS, 6 * MSS))
    assert sender.sk.sacked_out == MSS
    assert sender.sk.snd_una == add(sender.start, 3 * MSS)


def test_blocks_without_sack_permitted_are_ignored() -> None:
    sender = Sender(sack=False)
    sender.warm()
    sender.send(10 * MSS)
    sender.ack(0, (2 * MSS, 3 * MSS))
    assert not sender.sk.rtx.ranges
