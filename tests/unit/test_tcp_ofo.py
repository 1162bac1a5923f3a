"""What came out of order, and the blocks that are told of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steertag.inet.tcp.ofo import OfoQueue, RcvSkb
from steertag.wire.seq import add, diff

STREAM = bytes(range(256)) * 2


def piece(base: int, start: int, length: int) -> RcvSkb:
    octets = memoryview(STREAM[start : start + length])
    return RcvSkb(octets, add(base, start), add(base, start + length), False)


def nobody(seq: int, end: int) -> None:
    """Hears of duplicates and does nothing."""


def insert(queue: OfoQueue, base: int, start: int, length: int) -> bool:
    return queue.insert(piece(base, start, length), nobody)


def test_pieces_come_out_in_order() -> None:
    queue = OfoQueue()
    for start in (300, 100, 200):
        assert insert(queue, 0, start, 50)
    assert [skb.seq for skb in queue] == [100, 200, 300]


def test_the_newest_block_is_reported_first() -> None:
    queue = OfoQueue()
    for start in (100, 200, 300):
        insert(queue, 0, start, 10)
    assert queue.sack_blocks() == [(300, 310), (200, 210), (100, 110)]
    insert(queue, 0, 110, 10)
    assert queue.sack_blocks()[0] == (100, 120)


def test_at_most_four_blocks_are_reported() -> None:
    queue = OfoQueue()
    for start in range(0, 100, 10):
        insert(queue, 0, 10 + start, 5)
    assert len(queue.sack_blocks()) == queue.block_count == 4


def test_a_duplicate_is_told_and_left_out() -> None:
    queue = OfoQueue()
    insert(queue, 0, 100, 50)
    heard: list[tuple[int, int]] = []
    assert not queue.insert(piece(0, 110, 10), lambda seq, end: heard.append((seq, end)))
    assert heard == [(110, 120)]
    assert queue.octets == 50


def test_a_d_sack_block_stands_first_and_is_told_once() -> None:
    queue = OfoQueue()
    insert(queue, 0, 100, 50)
    queue.set_dsack(10, 20)
    assert queue.sack_blocks() == [(10, 20), (100, 150)]
    queue.forget_dsack()
    assert queue.sack_blocks() == [(100, 150)]


def test_blocks_before_what_was_received_in_order_are_forgotten() -> None:
    queue = OfoQueue()
    insert(queue, 0, 100, 50)
    insert(queue, 0, 200, 50)
    assert queue.pop_ready(100) is not None
    queue.acked(150)
    assert queue.sack_blocks() == [(200, 250)]


pieces = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 80)), max_size=30)


@given(base=st.sampled_from((0, 2**32 - 200, 2**31 - 150)), arrivals=pieces)
def test_the_queue_holds_every_octet_once_and_in_order(
    base: int, arrivals: list[tuple[int, int]]
) -> None:
    queue = OfoQueue()
    expected: set[int] = set()
    for start, length in arrivals:
        insert(queue, base, start, length)
        expected |= set(range(start, start + length))
    held: list[int] = []
    for skb in queue:
        offset = diff(skb.seq, base)
        assert bytes(skb.data) == STREAM[offset : offset + len(skb)]
        assert diff(skb.end_seq, skb.seq) == len(skb)
        held.extend(range(offset, offset + len(skb)))
    assert held == sorted(expected)


@given(base=st.sampled_from((0, 2**32 - 200)), arrivals=pieces)
def test_every_block_lies_within_what_is_held(base: int, arrivals: list[tuple[int, int]]) -> None:
    queue = OfoQueue()
    octets: set[int] = set()
    for start, length in arrivals:
        insert(queue, base, start, length)
        octets |= set(range(start, start + length))
    for low, high in queue.sack_blocks():
        assert set(range(diff(low, base), diff(high, base))) <= octets
