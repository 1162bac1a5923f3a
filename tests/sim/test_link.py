"""The link itself: what a test that uses it may rely on."""

from __future__ import annotations

import random

import pytest

from steertag.rdma.connection import Offer
from steertag.rdma.qp_state import QpState
from steertag.testing.link import LEFT, RIGHT, Link, drain, feed
from tests.sim.ends import End, lone, pair, pattern, write_fpdu


class Pipe:
    """An engine that sends what it was given and keeps what it got."""

    def __init__(self, octets: bytes = b"") -> None:
        self.engine = self
        self.to_send = octets
        self.got = bytearray()
        self.reads: list[int] = []
        self.ends: list[str] = []
        self.closing = False
        self._buffers: list[bytearray] = []

    @property
    def wants_to_send(self) -> bool:
        return bool(self.to_send)

    def data_to_send(self) -> list[bytes | bytearray | memoryview]:
        half = len(self.to_send) // 2
        return [self.to_send[:half], self.to_send[half:]]

    def sent(self, octets: int) -> bool:
        self.to_send = self.to_send[octets:]
        return bool(self.to_send)

    def buffers(self) -> list[memoryview]:
        self._buffers = [bytearray(3), bytearray(5)]
        return [memoryview(buffer) for buffer in self._buffers]

    def received(self, octets: int) -> None:
        self.reads.append(octets)
        self.got += b"".join(self._buffers)[:octets]

    def eof(self) -> None:
        self.ends.append("eof")

    def stream_lost(self, reason: str) -> None:
        self.ends.append(reason)


@pytest.mark.parametrize("seed", [None, *range(10)])
def test_octets_arrive_whole_and_in_order_both_ways(seed: int | None) -> None:
    left, right = Pipe(pattern(1000, 1)), Pipe(pattern(500, 2))
    rng = None if seed is None else random.Random(seed)
    link = Link(left, right, rng, capacity=100)
    assert link.run() > 0
    assert right.got == pattern(1000, 1)
    assert left.got == pattern(500, 2)
    assert link.run() == 0


def test_without_an_rng_reads_are_as_large_as_they_can_be() -> None:
    left, right = Pipe(b"0123456789"), Pipe()
    Link(left, right).run()
    assert right.reads == [8, 2]


def test_with_an_rng_the_cuts_fall_anywhere() -> None:
    sizes = set()
    for seed in range(20):
        left, right = Pipe(bytes(100)), Pipe()
        Link(left, right, random.Random(seed)).run()
        sizes |= set(right.reads)
    assert sizes == set(range(1, 9))


def test_a_full_link_takes_nothing_more() -> None:
    left, right = Pipe(bytes(100)), Pipe()
    link = Link(left, right, capacity=30)
    assert link.step()
    assert link.in_flight(LEFT) == 30
    assert len(left.to_send) == 70
    link.run()
    assert link.in_flight(LEFT) == 0
    assert len(right.got) == 100


def test_the_end_of_the_stream_comes_behind_its_last_octet_and_once() -> None:
    left, right = Pipe(bytes(100)), Pipe()
    link = Link(left, right, random.Random(1))
    while left.to_send:
        link.step()
    left.closing = True
    while not right.ends:
        assert link.step()
    assert (len(right.got), right.ends) == (100, ["eof"])
    link.run()
    assert right.ends == ["eof"]


def test_an_end_that_was_shut_reads_nothing_more() -> None:
    left, right = Pipe(), Pipe(bytes(100))
    link = Link(left, right)
    link.shut(LEFT)
    link.run()
    assert left.got == b""
    assert right.to_send == b""
    assert right.ends == ["eof"]


def test_a_cut_link_loses_what_is_on_its_way() -> None:
    left, right = Pipe(bytes(100)), Pipe()
    link = Link(left, right, capacity=10)
    link.step()
    link.cut("pulled out")
    link.cut("again")
    assert link.lost
    assert link.run() == 0
    assert right.got == b""
    assert left.ends == right.ends == ["pulled out"]


def test_what_moves_can_be_watched() -> None:
    seen: list[tuple[int, bytes]] = []
    left, right = Pipe(b"left"), Pipe(b"right")
    Link(left, right, on_octets=lambda side, octets: seen.append((side, octets))).run()
    assert seen == [(LEFT, b"left"), (RIGHT, b"right")]


def test_a_link_that_never_becomes_quiet_is_an_error() -> None:
    joined = pair(random.Random(1), Offer())
    joined.client.write(joined.server.region, 0, 0, 100_000)
    with pytest.raises(RuntimeError, match="after 3 steps"):
        joined.link.run(limit=3)


def test_feeding_says_how_much_was_taken() -> None:
    end = End()
    octets = write_fpdu(end.region.stag, end.region.base, bytes(10))
    end = lone()
    assert feed(end, octets, random.Random(1)) == len(octets)
    assert drain(end) == b""
    end.qp.close()
    assert end.qp.state is QpState.ERROR
