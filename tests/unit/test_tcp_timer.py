"""What a sender does when nothing comes back: retransmissions, probes, keepalive, and giving up."""

from __future__ import annotations

import errno

import pytest

from steertag.family.const import SOCK_DEAD, TcpState
from steertag.inet.tcp import timer
from steertag.inet.tcp.skb import TcpSkb
from steertag.inet.tcp.sock import (
    ICSK_TIME_NONE,
    ICSK_TIME_PROBE0,
    ICSK_TIME_RETRANS,
    TCP_CA_LOSS,
    TcpSock,
)
from steertag.inet.tcp.timeout import tcp_model_timeout
from steertag.wire.tcp import RST, SYN
from tests.unit.tcp_sender import MSS, Sender


def _reno() -> Sender:
    """Without SACK no probe comes before the timeout."""
    sender = Sender(sack=False)
    sender.warm()
    return sender


def _times(sender: Sender, since: int = 0) -> list[float]:
    return [round(sent.at, 6) for sent in sender.route.sent[since:]]


# -- retransmission -----------------------------------------------------------------------------


def test_the_first_octets_are_sent_again_after_the_timeout_and_twice_as_late_each_time() -> None:
    """RFC 6298 section 5.4 to 5.6."""
    sender = _reno()
    rto = sender.sk.rto
    start = sender.clock.now
    sender.send(3 * MSS)
    spans = sender.wait(rto * 31.5)
    assert spans == [(0, MSS)] * 5
    assert _times(sender, 1) == [
        pytest.approx(start + rto * factor, abs=0.001) for factor in (1, 3, 7, 15, 31)
    ]
    assert sender.sk.ca_state == TCP_CA_LOSS
    assert sender.sk.cwnd == MSS
    assert sender.mib("TCPTimeouts") == 5
    assert sender.sk.mib["TcpRetransSegs"] == 5
    sender.check_counts()


def test_the_back_off_ends_with_120_seconds() -> None:
    sender = _reno()
    sender.stack.sysctl["net.ipv4.tcp_retries2"] = 100
    sender.send(MSS)
    sender.wait(2000.0)
    times = _times(sender)
    assert times[-1] - times[-2] == pytest.approx(120.0)


def test_an_ack_ends_the_back_off_only_with_a_sample() -> None:
    """Karn: a retransmission's round trip is no sample; the timeout stays backed off."""
    sender = _reno()
    rto = sender.sk.rto
    sender.send(MSS)
    sender.wait(rto + 0.01)
    assert sender.sk.rto == pytest.approx(2 * rto)
    sender.ack(MSS)
    assert sender.sk.rto == pytest.approx(2 * rto)
    sender.send(MSS)
    sender.wait(0.1)
    sender.ack(2 * MSS)
    assert sender.sk.rto < 1.1 * rto


def test_timestamps_tell_which_transmission_was_answered() -> None:
    sender = Sender(sack=False, timestamps=True)
    sender.warm()
    rto = sender.sk.rto
    sender.send(MSS)
    sender.wait(rto + 0.1)
    sender.ack(MSS)
    assert sender.sk.rto < 1.2 * rto


def test_an_unanswered_connection_ends_with_etimedout() -> None:
    sender = _reno()
    told: list[int] = []
    sender.sk.sk_error_report = lambda sk: told.append(sk.sk_err)
    sender.stack.sysctl["net.ipv4.tcp_retries2"] = 3
    start = sender.clock.now
    sender.send(MSS)
    sender.wait(60.0)
    assert told == [errno.ETIMEDOUT]
    assert sender.sk.sk_state == TcpState.TCP_CLOSE
    assert sender.mib("TCPAbortOnTimeout") == 1
    assert not sender.sk.rtx
    assert not sender.sk.retrans_timer.pending
    # By time: three retransmissions of one with the least timeout take 3 s (200 ms * 15).
    assert sender.route.sent[-1].at - start < 3.0 + 2 * sender.sk.rto


def test_what_icmp_said_meanwhile_is_the_error() -> None:
    sender = _reno()
    sender.stack.sysctl["net.ipv4.tcp_retries2"] = 2
    sender.send(MSS)
    sender.sk.sk_err_soft = errno.EHOSTUNREACH
    sender.wait(60.0)
    assert sender.sk.sk_err == errno.EHOSTUNREACH


def test_the_user_timeout_counts_from_the_first_retransmission() -> None:
    sender = _reno()
    sender.sk.user_timeout = 5.0
    start = sender.clock.now
    sender.send(MSS)
    sender.wait(4.5)
    assert sender.sk.sk_state == TcpState.TCP_ESTABLISHED
    sender.wait(3.0)
    assert sender.sk.sk_state == TcpState.TCP_CLOSE
    assert sender.clock.now - start < 8.0


@pytest.mark.parametrize(("retries", "seconds"), [(0, 0.2), (3, 3.0), (8, 102.2), (15, 924.6)])
def test_patience_is_what_so_many_retries_would_take(retries: int, seconds: float) -> None:
    """924.6 s for tcp_retries2's 15: Documentation/networking/ip-sysctl.rst."""
    assert tcp_model_timeout(retries, 0.2) == pytest.approx(seconds)


def test_an_orphan_tries_as_often_as_tcp_orphan_retries_says() -> None:
    sender = _reno()
    sender.sk.sk_flags |= SOCK_DEAD
    sender.stack.sysctl["net.ipv4.tcp_orphan_retries"] = 2
    sender.send(MSS)
    sender.wait(30.0)
    assert sender.sk.sk_state == TcpState.TCP_CLOSE
    assert len(sender.route.sent) < 6


def test_what_can_not_leave_this_host_is_tried_again_in_half_a_second() -> None:
    sender = _reno()
    sender.send(MSS)
    sender.route.broken = True
    sender.wait(sender.sk.rto + 0.001)
    assert sender.mib("TCPRetransFail") == 1
    assert sender.sk.retrans_timer.expires == pytest.approx(sender.clock.now + 0.5, abs=0.01)
    sender.route.broken = False
    assert sender.wait(0.5) == [(0, MSS)]


def test_the_counters_say_what_it_was_that_timed_out() -> None:
    sender = Sender()
    sender.warm()
    sender.send(10 * MSS)
    sender.wait(0.1)
    sender.ack(0, (MSS, 5 * MSS))  # recovery, whose retransmission is lost too
    sender.wait(0.7)
    assert sender.mib("TCPTimeouts") == sender.mib("TCPSackRecoveryFail") == 1
    sender.ack(2 * MSS)
    sender.wait(3.0)
    assert sender.mib("TCPLossFailures") == 1


def test_a_peer_that_takes_its_window_back_is_asked_for_as_long_as_it_answers() -> None:
    sender = _reno()
    sender.send(5 * MSS)
    sender.wait(0.1)
    sender.ack(MSS, window=0)
    for _ in range(40):
        sender.wait(100.0)
        sender.ack(MSS, window=0)
    assert sender.sk.sk_state == TcpState.TCP_ESTABLISHED
    assert sender.mib("TCPTimeouts") == 0
    sender.wait(1000.0)
    assert sender.sk.sk_state == TcpState.TCP_CLOSE


# -- SYN ----------------------------------------------------------------------------------------


def _connecting() -> Sender:
    sender = Sender(sack=False)
    sk = sender.sk
    sk.sk_state = TcpState.TCP_SYN_SENT
    sk.srtt = 0.0
    sk.snd_wnd = 0
    skb = TcpSkb(sk.write_seq, SYN)
    skb.end_seq = sk.snd_nxt = sk.write_seq = (skb.seq + 1) & 0xFFFFFFFF
    skb.sent_at = skb.first_sent_at = sk.retrans_stamp = sender.clock.now
    sk.sk_wmem_queued += skb.truesize
    sk.rtx.append(skb)
    timer.tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, sk.rto, sender.clock.now)
    return sender


def test_a_syn_is_sent_again_as_often_as_tcp_syn_retries_says() -> None:
    sender = _connecting()
    sender.stack.sysctl["net.ipv4.tcp_syn_retries"] = 3
    sender.stack.sysctl["net.ipv4.tcp_syn_linear_timeouts"] = 0
    start = sender.clock.now
    sender.wait(100.0)
    assert [round(at - start) for at in _times(sender)] == [1, 3, 7]
    assert all(sent.header.flags & SYN for sent in sender.route.sent)
    assert sender.sk.sk_err == errno.ETIMEDOUT
    assert sender.mib("TCPSynRetrans") == 3


def test_the_first_time_outs_of_a_syn_do_not_double() -> None:
    sender = _connecting()
    sender.stack.sysctl["net.ipv4.tcp_syn_retries"] = 2
    start = sender.clock.now
    sender.wait(100.0)
    assert [round(at - start) for at in _times(sender)] == [1, 2, 3, 4, 5]


def test_tcp_syncnt_of_the_socket_goes_before_the_sysctl() -> None:
    sender = _connecting()
    sender.stack.sysctl["net.ipv4.tcp_syn_linear_timeouts"] = 0
    sender.sk.syn_retries = 1
    sender.wait(100.0)
    assert len(sender.route.sent) == 1
    assert sender.sk.sk_state == TcpState.TCP_CLOSE


# -- zero windows -------------------------------------------------------------------------------


def _closed_window() -> Sender:
    sender = Sender()
    sender.warm()
    sender.send(MSS)
    sender.wait(0.1)
    sender.queue(5 * MSS)
    sender.ack(MSS, window=0)
    sender.route.sent.clear()
    assert sender.sk.pending == ICSK_TIME_PROBE0
    return sender


def test_a_closed_window_is_probed_more_and_more_slowly() -> None:
    sender = _closed_window()
    base = timer.tcp_probe0_base(sender.sk)
    start = sender.clock.now
    spans = sender.wait(base * 16)
    assert spans == [(MSS - 1, MSS - 1)] * 4
    assert _times(sender) == [
        pytest.approx(start + base * factor, abs=0.001) for factor in (1, 3, 7, 15)
    ]
    assert sender.mib("TCPWinProbe") == 4


def test_a_peer_that_answers_probes_is_never_given_up() -> None:
    sender = _closed_window()
    for _ in range(60):
        sender.wait(130.0)
        sender.ack(MSS, window=0)
    assert sender.sk.sk_state == TcpState.TCP_ESTABLISHED
    sender.ack(MSS, window=20_000)
    assert sender.spans()[-1] == (MSS, 6 * MSS)


def test_a_peer_that_does_not_is() -> None:
    sender = _closed_window()
    sender.stack.sysctl["net.ipv4.tcp_retries2"] = 4
    sender.wait(100.0)
    assert sender.sk.sk_state == TcpState.TCP_CLOSE
    assert sender.sk.sk_err == errno.ETIMEDOUT


def test_the_user_timeout_bounds_probing() -> None:
    sender = _closed_window()
    sender.sk.user_timeout = 3.0
    sender.wait(10.0)
    assert sender.sk.sk_state == TcpState.TCP_CLOSE


def test_an_orphan_with_a_closed_window_is_given_up_soon() -> None:
    sender = _closed_window()
    sender.sk.sk_flags |= SOCK_DEAD
    sender.stack.sysctl["net.ipv4.tcp_orphan_retries"] = 3
    sender.wait(60.0)
    assert sender.sk.sk_state == TcpState.TCP_CLOSE
    assert len(sender.route.sent) == 3


# -- keepalive ----------------------------------------------------------------------------------


def _kept_alive() -> Sender:
    sender = Sender()
    sender.warm()
    sender.sk.lrcvtime = sender.sk.rcv_tstamp = sender.clock.now
    sender.sk.keepalive_time, sender.sk.keepalive_intvl = 100.0, 10.0
    sender.sk.keepalive_probes = 3
    timer.tcp_set_keepalive(sender.sk, True)
    return sender


def test_an_idle_peer_is_asked_and_one_that_does_not_answer_is_given_up() -> None:
    sender = _kept_alive()
    start = sender.clock.now
    sender.wait(200.0)
    assert [round(at - start) for at in _times(sender)] == [100, 110, 120, 130]
    assert sender.spans()[:3] == [(-1 & 0xFFFFFFFF, -1 & 0xFFFFFFFF)] * 3
    assert sender.route.sent[-1].header.flags & RST
    assert sender.sk.sk_err == errno.ETIMEDOUT
    assert sender.mib("TCPKeepAlive") == 3


def test_an_answer_starts_the_count_again() -> None:
    sender = _kept_alive()
    for _ in range(10):
        sender.wait(105.0)
        sender.ack(0)
    assert sender.sk.sk_state == TcpState.TCP_ESTABLISHED
    assert sender.sk.probes_out == 0


def test_the_user_timeout_goes_before_the_count_of_probes() -> None:
    sender = _kept_alive()
    sender.sk.user_timeout = 115.0
    sender.wait(125.0)
    assert sender.sk.sk_state == TcpState.TCP_CLOSE


def test_keepalive_off_is_off() -> None:
    sender = _kept_alive()
    timer.tcp_set_keepalive(sender.sk, False)
    sender.wait(10_000.0)
    assert sender.route.sent == []


def test_the_defaults_are_7200_75_and_9() -> None:
    sk = Sender().sk
    assert (sk.keepalive_time_of, sk.keepalive_intvl_of, sk.keepalive_probes_of) == (7200, 75, 9)


# -- delayed ACKs, and the end ------------------------------------------------------------------


def test_a_delayed_ack_is_sent_when_its_timer_expires() -> None:
    sender = Sender()
    sk = sender.sk
    sk.ack_pending = True
    sk.delack_timer.mod(sender.clock.now + 0.04)
    assert len(sender.wait(0.05)) == 1
    assert sender.mib("DelayedACKs") == 1
    assert not sk.ack_pending
    sk.delack_timer.mod(sender.clock.now + 0.04)
    assert sender.wait(0.05) == []  # nothing to acknowledge


def test_an_orphan_in_fin_wait_2_is_reset_when_its_time_is_up() -> None:
    sender = Sender()
    sk: TcpSock = sender.sk
    sk.sk_state = TcpState.TCP_FIN_WAIT2
    sk.sk_flags |= SOCK_DEAD
    sk.linger2 = -1.0
    timer.tcp_reset_keepalive_timer(sk, 1.0)
    sender.wait(2.0)
    assert sk.sk_state == TcpState.TCP_CLOSE
    assert sender.route.sent[-1].header.flags & RST


def test_no_timer_is_left_when_all_is_acknowledged() -> None:
    for sack in (False, True):
        sender = Sender(sack=sack)
        sender.warm()
        sender.send(5 * MSS)
        sender.wait(0.1)
        sender.ack(5 * MSS)
        assert sender.sk.pending == ICSK_TIME_NONE
        assert sender.stack.timers.pending == 0
        assert sender.stack.timers.deadline is None
