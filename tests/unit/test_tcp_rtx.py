"""The retransmission queue against a naive model: its sums are always those of its tags."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from steertag.inet.tcp import recovery
from steertag.inet.tcp.rtx import RtxQueue
from steertag.inet.tcp.skb import (
    TCPCB_EVER_RETRANS,
    TCPCB_LOST,
    TCPCB_SACKED_ACKED,
    TcpSkb,
)
from steertag.inet.tcp.sock import TcpSock
from tests.unit.tcp_sender import MSS, Sender

_START = 0xFFFFF000  # the window wraps early


def _sacked(sender: Sender) -> set[int]:
    """Segments, by number, that are tagged as received; offsets from the connection's start."""
    found: set[int] = set()
    for skb in sender.sk.rtx:
        if skb.sacked & TCPCB_SACKED_ACKED:
            first = (skb.seq - _START) & 0xFFFFFFFF
            assert first % MSS == 0
            assert skb.length % MSS == 0
            found.update(range(first // MSS, (first + skb.length) // MSS))
    return found


class Machine(RuleBasedStateMachine):
    """A sender, a peer that says anything, and the segments that a naive scoreboard has."""

    def __init__(self) -> None:
        super().__init__()
        self.sender = Sender(cwnd=50, start=_START)
        self.sent = 0
        self.una = 0
        self.had: set[int] = set()

    def _note(self) -> None:
        self.sent = ((self.sender.sk.snd_nxt - _START) & 0xFFFFFFFF) // MSS

    @rule(count=st.integers(1, 30))
    def send(self, count: int) -> None:
        if self.sent < 400:
            self.sender.send(count * MSS)
            self._note()

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.1, 0.11]))
    def wait(self, seconds: float) -> None:
        self.sender.wait(seconds)
        self._look()

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def wait_long(self, seconds: float) -> None:
        self.sender.wait(seconds)
        self._look()

    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        upto = data.draw(st.integers(self.una, self.sent))
        blocks = []
        for _ in range(data.draw(st.integers(0, 4))):
            if upto + 1 < self.sent:
                low = data.draw(st.integers(upto + 1, self.sent - 1))
                high = data.draw(st.integers(low + 1, min(self.sent, low + 40)))
                blocks.append((low, high))
        self.una = upto
        reneged = self.sender.mib("TCPSACKReneging")
        self.sender.ack(upto * MSS, *((a * MSS, b * MSS) for a, b in blocks))
        assert self.sender.taken
        # A block within the next one reports a duplicate; both are tagged all the same.
        dubious = len(blocks) > 1 and blocks[1][0] <= blocks[0][0] < blocks[0][1] <= blocks[1][1]
        for low, high in blocks:
            self.had.update(range(low, high))
        if dubious:
            assert self.sender.mib("TCPDSACKOfoRecv") or self.sender.mib("TCPDSACKIgnoredDubious")
        self._note()
        self._look(reneged)

    @rule(data=st.data())
    def hostile(self, data: st.DataObject) -> None:
        """Blocks of any edges, of what was never sent too: the sums hold."""
        number = st.integers(-5 * MSS, (self.sent + 5) * MSS)
        blocks = data.draw(st.lists(st.tuples(number, number), max_size=4))
        before = _sacked_octets(self.sender)
        self.sender.ack(self.una * MSS, *blocks)
        self._note()
        told = set(self.had)
        for low, high in blocks:
            told.update(range(max(low, 0) // MSS, max(high, 0) // MSS + 1))
        # No segment is tagged that no block touches; and none loses its tag.
        assert _sacked_octets(self.sender) >= before or self.sender.mib("TCPSACKReneging")
        self.had = {n for n in told if n >= self.una and n in _sacked(self.sender)} or _sacked(
            self.sender
        )

    def _look(self, reneged: int | None = None) -> None:
        if self.sender.sk.is_sack_reneg or self.sender.mib("TCPSACKReneging"):
            self.had = _sacked(self.sender)

    @precondition(lambda self: self.sent > self.una)
    @rule()
    def timeout(self) -> None:
        head = self.sender.sk.rtx.head
        assert head is not None
        recovery.tcp_enter_loss(self.sender.sk)
        if head.sacked & TCPCB_SACKED_ACKED or self.sender.mib("TCPSACKReneging"):
            self.had = _sacked(self.sender)

    @invariant()
    def sums_are_those_of_the_tags(self) -> None:
        self.sender.check_counts()
        assert self.sender.in_flight >= 0

    @invariant()
    def the_tagged_are_those_of_the_blocks(self) -> None:
        expected = {n for n in self.had if n >= self.una}
        if expected and min(expected) == self.una:
            return  # the head is had: the peer reneges, or is about to move on
        assert _sacked(self.sender) == expected
        ranges = self.sender.sk.rtx.ranges
        covered: set[int] = set()
        for low, high in ranges:
            first = ((low - _START) & 0xFFFFFFFF) // MSS
            numbers = range(first, first + ((high - low) & 0xFFFFFFFF) // MSS)
            assert not covered & set(numbers)
            covered.update(numbers)
        assert covered == expected


def _sacked_octets(sender: Sender) -> int:
    return sender.sk.sacked_out


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAgainstTheModel = Machine.TestCase


# -- by hand ------------------------------------------------------------------------------------


def _queue(sizes: list[int], start: int = 0xFFFFFFF0) -> tuple[TcpSock, RtxQueue]:
    sk = TcpSock()
    sk.sk_prot = Sender().sk.sk_prot
    sk.rtx = RtxQueue(sk)
    sk.snd_una = sk.snd_nxt = start
    for size in sizes:
        skb = TcpSkb(sk.snd_nxt)
        skb.length = size
        skb.parts = [bytes(size)]
        skb.end_seq = sk.snd_nxt = (sk.snd_nxt + size) & 0xFFFFFFFF
        sk.sk_wmem_queued += skb.truesize
        sk.rtx.append(skb)
    return sk, sk.rtx


def test_pieces_come_off_the_head_and_give_their_memory_back() -> None:
    sk, rtx = _queue([10, 20, 30])
    sk.snd_una = (sk.snd_una + 35) & 0xFFFFFFFF
    gone = rtx.pop_acked(sk.snd_una)
    assert [skb.length for skb in gone] == [10, 20]
    assert sk.sk_wmem_queued == sum(skb.truesize for skb in rtx)
    assert rtx.head is not None
    assert rtx.head.length == 30
    rtx.trim()
    assert rtx.head.length == 25
    assert rtx.head.seq == sk.snd_una
    assert sk.sk_wmem_queued == rtx.head.truesize


def test_a_sequence_number_is_found_across_the_wrap() -> None:
    _sk, rtx = _queue([10, 10, 10, 10], start=0xFFFFFFF1)
    assert [rtx.find((0xFFFFFFF1 + n) & 0xFFFFFFFF) for n in (0, 9, 10, 25, 39)] == [0, 0, 1, 2, 3]
    assert rtx.index(0xFFFFFFF1) == 0
    assert rtx.index((0xFFFFFFF1 + 11) & 0xFFFFFFFF) == 2
    assert rtx.find(0xFFFFFF00) == 0  # before the queue


def test_a_split_piece_keeps_octets_and_charge() -> None:
    sk, rtx = _queue([100])
    rest = rtx.split(0, 40)
    assert [skb.length for skb in rtx] == [40, 60]
    assert rest.seq == (0xFFFFFFF0 + 40) & 0xFFFFFFFF
    assert sk.sk_wmem_queued == sum(skb.truesize for skb in rtx)


def test_only_the_holes_of_a_block_are_looked_at() -> None:
    sk, rtx = _queue([10] * 10)
    base = sk.snd_una

    def at(number: int) -> int:
        return (base + 10 * number) & 0xFFFFFFFF

    rtx.add_range(at(2), at(3))
    rtx.add_range(at(5), at(6))
    assert rtx.holes(at(1), at(8)) == [(at(1), at(2)), (at(3), at(5)), (at(6), at(8))]
    assert rtx.holes(at(2), at(3)) == []
    rtx.add_range(at(3), at(5))
    assert rtx.ranges == [(at(2), at(6))]
    rtx.add_range(at(0), at(9))
    assert rtx.ranges == [(at(0), at(9))]
    assert rtx.highest_sack == at(9)


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_block_that_was_seen_before_costs_no_look_at_the_queue(blocks: int) -> None:
    """Ten thousand pieces, and the same blocks with every acknowledgement."""
    sender = Sender(cwnd=20_000, window=100_000_000)
    sender.warm()
    for _ in range(10_000):
        sender.send(MSS)
    assert len(sender.sk.rtx) == 10_000
    seen = [(1000 * n * MSS + MSS, 1000 * (n + 1) * MSS) for n in range(blocks)]
    sender.ack(0, *seen)
    looked = 0

    class Counting(TcpSkb):
        __slots__ = ()

        @property
        def end_seq(self) -> int:  # type: ignore[override]
            nonlocal looked
            looked += 1
            return (self.seq + self.length) & 0xFFFFFFFF

        @end_seq.setter
        def end_seq(self, value: int) -> None: ...

    rtx = sender.sk.rtx
    for at, skb in enumerate(list(rtx)):
        counting = Counting(skb.seq)
        for name in TcpSkb.__slots__:
            if name != "end_seq":
                setattr(counting, name, getattr(skb, name))
        rtx.skbs[at] = counting
    sender.ack(0, *seen)
    assert looked < 100


def test_lost_and_resent_pieces_are_counted_once() -> None:
    sender = Sender()
    sender.warm()
    sender.send(5 * MSS)
    rtx = sender.sk.rtx
    sender.ack(0, (3 * MSS, 4 * MSS))
    first = rtx.skbs[0]
    rtx.mark_lost(first)
    rtx.mark_lost(first)
    assert sender.sk.lost_out == first.length
    first.sent_at = sender.clock.now
    rtx.mark_resent(first)
    rtx.mark_resent(first)
    assert sender.sk.retrans_out == first.length
    rtx.mark_lost(first)  # the retransmission is lost as well
    assert sender.sk.retrans_out == 0
    assert first.sacked & (TCPCB_LOST | TCPCB_EVER_RETRANS) == TCPCB_LOST | TCPCB_EVER_RETRANS
    assert sender.mib("TCPLostRetransmit") == 1
    sender.check_counts()
