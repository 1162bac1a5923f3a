"""Two queue pairs on a seeded link run seeded programs; whatever happens, the books balance.

Each end posts Writes (with Immediate Data or without), Reads, Sends (some of them invalidate),
atomic operations and receives of random sizes, signalled or not, fenced or not, while the link cuts
the stream where it likes. Some programs go wrong on purpose: an end disconnects, the stream is
lost, a request names what it may not, a region is deregistered in mid-flight.

Held in every run: each request completes exactly once, in the order of its queue (unsignalled ones
only where they fail); one at most fails by itself, the others are flushed with it; no octet changes
that no request names. Held where nothing goes wrong on purpose: everything succeeds and every octet
is where a plain model says.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field

import pytest

from steertag.rdma.connection import Offer
from steertag.rdma.constants import (
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_INVALIDATE,
    SEND_FENCE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND_WITH_INV,
    WcStatus,
)
from steertag.rdma.memory import Region
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SendWR
from steertag.testing.link import LEFT, RIGHT
from tests.sim.ends import ALL_ACCESS, End, Pair, ids, pair

SLOT = 70_000
SLOTS = 13
"""Every request gets a slot of its own in its queue's turn, so that the outcome has one answer."""
SIZES = [0, 1, 64, 64, 64, 1000, 8000, 9000, 40_000, SLOT]
OK = WcStatus.SUCCESS
OPERATIONS = ["write", "write", "read", "send", "send", "immediate", "atomic", "invalidate"]
FAULTS = ["disconnect", "lose", "deregister", "overreach", "local fault", "too long", "shut"]


@dataclass
class Side:
    """One end, what it posted, and what it has been told."""

    end: End
    region: Region
    memory: bytearray
    model: bytearray
    posted: list[tuple[int, bool]] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    lent: list[Region] = field(default_factory=list)
    expected_sends: list[bytes] = field(default_factory=list)
    done: list[tuple[int, WcStatus]] = field(default_factory=list)
    got: list[tuple[int, WcStatus, int]] = field(default_factory=list)

    def poll(self) -> None:
        self.done += ids(self.end.sent())
        self.got += [(wc.wr_id, wc.status, wc.byte_len) for wc in self.end.got()]


def side(end: End, rng: random.Random) -> Side:
    memory = bytearray(rng.randbytes(SLOT * SLOTS))
    region = end.rnic.register(end.pd, memory, ALL_ACCESS | ACCESS_REMOTE_ATOMIC)
    end.region, end.memory = region, memory
    return Side(end, region, memory, bytearray(memory))


class Program:
    """Sources live in the slots 0-3, sinks of the peer's Writes in 4-6, of Reads in 7-9, of
    receives in 10-11; 12 holds a counter, and what it held before. Nobody writes what somebody else
    reads, so that order can't matter."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        ulpdu = rng.choice([128, 1448, 16_000, 65_534])
        reads = rng.choice([1, 2, 16])
        offer = Offer(crc=rng.random() < 0.7, max_ulpdu=ulpdu, ord=reads, ird=rng.choice([1, 16]))
        answer = Offer(crc=False, max_ulpdu=rng.choice([512, 65_534]))
        self.pair: Pair = pair(rng, offer, answer, capacity=rng.choice([500, 40_000, 1 << 20]))
        self.sides = [side(self.pair.client, rng), side(self.pair.server, rng)]
        # The active side speaks first (RFC 5044 section 7.1).
        self.sides[LEFT].end.write(self.sides[RIGHT].region, 0, 0, 0, wr_id=10_000)
        self.sides[LEFT].posted.append((10_000, True))
        self.next_id = 0

    def run(self, operations: int, faults: list[str]) -> None:
        at = {self.rng.randrange(operations): fault for fault in faults}
        for operation in range(operations):
            self.post(self.rng.choice((LEFT, RIGHT)))
            if operation in at:
                self.go_wrong(at[operation])
            for _ in range(self.rng.randrange(12)):
                self.pair.link.step()
                for each in self.sides:
                    each.poll()
        self.pair.link.run()
        for each in self.sides:
            each.poll()

    def post(self, who: int) -> None:
        """One request; where it needs a receive the peer has posted it first."""
        rng, me, peer = self.rng, self.sides[who], self.sides[1 - who]
        size = rng.choice(SIZES)
        source = rng.randrange(4) * SLOT
        signalled = rng.random() < 0.7
        flags = SEND_SIGNALED if signalled else 0
        if rng.random() < 0.2:
            flags |= SEND_FENCE
        wr_id = self.next_id = self.next_id + 1
        me.poll()
        try:
            match rng.choice(OPERATIONS):
                case "write":
                    sink = rng.randrange(4, 7) * SLOT
                    me.end.write(peer.region, source, sink, size, wr_id, flags)
                    peer.model[sink : sink + size] = me.model[source : source + size]
                case "read":
                    sink = rng.randrange(7, 10) * SLOT
                    me.end.read(peer.region, sink, source, size, wr_id, flags)
                    me.model[sink : sink + size] = peer.model[source : source + size]
                case "immediate":
                    sink = rng.randrange(4, 7) * SLOT
                    peer.end.recv(wr_id=wr_id)
                    peer.received.append(wr_id)
                    wr = SendWR(wr_id, sg=[me.end.sge(source, size)], send_flags=flags)
                    wr.opcode, wr.imm_data = WR_RDMA_WRITE_WITH_IMM, wr_id
                    wr.set_wr_rdma(peer.region.stag, peer.region.base + sink)
                    me.end.qp.post_send(wr)
                    peer.expected_sends.append(b"")
                    peer.model[sink : sink + size] = me.model[source : source + size]
                case "atomic":
                    self.fetch_add(me, peer, wr_id, flags)
                case "invalidate":
                    lent = peer.end.rnic.register(
                        peer.end.pd, bytearray(8), ALL_ACCESS | ACCESS_REMOTE_INVALIDATE
                    )
                    peer.lent.append(lent)
                    peer.end.recv(wr_id=wr_id)
                    peer.received.append(wr_id)
                    wr = SendWR(wr_id, opcode=WR_SEND_WITH_INV, send_flags=flags)
                    wr.invalidate_rkey = lent.stag
                    me.end.qp.post_send(wr)
                    peer.expected_sends.append(b"")
                case "send":
                    sink = rng.randrange(10, 12) * SLOT
                    cut = rng.randint(0, size)
                    peer.end.recv((sink, cut), (sink + cut, SLOT - cut), wr_id=wr_id)
                    peer.received.append(wr_id)
                    if rng.random() < 0.3:
                        flags |= SEND_SOLICITED
                    cut = rng.randint(0, size)
                    parts = (source, cut), (source + cut, size - cut)
                    me.end.send(*parts, wr_id=wr_id, flags=flags)
                    peer.expected_sends.append(me.model[source : source + size])
                    peer.model[sink : sink + size] = me.model[source : source + size]
        except OSError:
            # It closes already. (A receive that was posted for a Send is flushed.)
            assert me.end.qp.state is QpState.CLOSING
            return
        me.posted.append((wr_id, signalled))

    def fetch_add(self, me: Side, peer: Side, wr_id: int, flags: int) -> None:
        """Add to the peer's counter; what it held before comes into the words behind ours."""
        at, operand = 12 * SLOT, self.rng.getrandbits(64)
        mine = at + 8 * (1 + len(me.posted) % 1000)
        wr = SendWR(wr_id, sg=[me.end.sge(mine, 8)], opcode=WR_ATOMIC_FETCH_AND_ADD)
        wr.send_flags = flags
        wr.set_wr_atomic(peer.region.stag, peer.region.base + at, operand)
        me.end.qp.post_send(wr)
        me.model[mine : mine + 8] = peer.model[at : at + 8]
        new = int.from_bytes(peer.model[at : at + 8], sys.byteorder) + operand
        peer.model[at : at + 8] = (new % (1 << 64)).to_bytes(8, sys.byteorder)

    def go_wrong(self, fault: str) -> None:
        rng = self.rng
        who = rng.choice((LEFT, RIGHT))
        me, peer = self.sides[who], self.sides[1 - who]
        if fault == "disconnect":
            me.end.qp.close()
        elif fault == "lose":
            self.pair.link.cut()
        elif fault == "shut":
            self.pair.link.shut(who)
            me.end.engine.stream_lost("closed here")
        elif fault == "deregister":
            me.end.rnic.deregister(me.region)
            me.memory.append(0)
            me.memory.pop()
        elif me.end.qp.state is QpState.RTS:
            wr_id = self.next_id = self.next_id + 1
            me.posted.append((wr_id, True))
            if fault == "overreach":
                me.end.write(peer.region, 0, SLOT * SLOTS - 10, 11, wr_id)
            elif fault == "local fault":
                me.end.send((SLOT * SLOTS - 10, 11), wr_id=wr_id)
            elif fault == "too long":
                peer.end.recv((10 * SLOT, 5), wr_id=wr_id)
                peer.received.append(wr_id)
                me.end.send((0, 6), wr_id=wr_id)


def balanced(each: Side) -> None:
    """Exactly once, in order, and one at most fails by itself."""
    completed = [wr_id for wr_id, _ in each.done]
    order = [wr_id for wr_id, _ in each.posted]
    assert completed == [wr_id for wr_id in order if wr_id in set(completed)]
    silent = [wr_id for wr_id, signalled in each.posted if not signalled]
    missing = set(order) - set(completed)
    assert missing <= set(silent)
    statuses = [status for _, status in each.done]
    # One request at most is at fault. (A Write completes when it has left: one that did succeeds
    # even behind a Read that never came back.)
    assert sum(status not in (OK, WcStatus.WR_FLUSH_ERR) for status in statuses) <= 1
    if any(status is not OK for status in statuses):
        assert each.end.qp.state is QpState.ERROR
    assert [wr_id for wr_id, _, _ in each.got] == each.received[: len(each.got)]
    receive_statuses = [status for _, status, _ in each.got]
    assert sorted(receive_statuses, key=lambda status: status is not OK) == receive_statuses


@pytest.mark.parametrize("seed", range(40))
def test_everything_succeeds_and_every_octet_is_right(seed: int) -> None:
    program = Program(seed)
    program.run(60, [])
    for each in program.sides:
        balanced(each)
        assert all(status is OK for _, status in each.done)
        signalled = [wr_id for wr_id, wanted in each.posted if wanted]
        assert [wr_id for wr_id, _ in each.done] == signalled
        assert [wr_id for wr_id, _, _ in each.got] == each.received
        assert [size for _, _, size in each.got] == [len(data) for data in each.expected_sends]
        assert each.memory == each.model
        assert not any(lent.stag in each.end.rnic.table.regions for lent in each.lent)
        assert each.end.qp.state is QpState.RTS
        assert each.end.qp.tx.depth() == 0


@pytest.mark.parametrize("seed", range(40))
def test_closing_in_order_loses_nothing_of_the_end_that_closes(seed: int) -> None:
    program = Program(seed)
    program.run(30, [])
    rng, link = program.rng, program.pair.link
    closer = program.sides[LEFT]
    for _ in range(10):
        program.post(LEFT)
    for _ in range(rng.randrange(5)):
        link.step()
    closer.end.qp.close()
    link.run()
    for each in program.sides:
        each.poll()
        balanced(each)
        assert each.end.qp.state is QpState.ERROR
        assert all(status is OK for _, status in each.done)
        assert each.memory == each.model
        assert each.end.qp.end_reason in ("closed", "peer closed")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_every_request_completes_once_and_in_order(
    seed: int, fault: str
) -> None:
    program = Program(seed * 1000 + FAULTS.index(fault))
    before = [bytes(each.memory) for each in program.sides]
    program.run(40, [fault])
    ended = [each.end.qp.state is QpState.ERROR for each in program.sides]
    assert ended[LEFT] == ended[RIGHT]
    if not any(ended):
        # A region that nobody used any more: that is no fault.
        assert fault == "deregister"
        program.sides[LEFT].end.qp.close()
        program.pair.link.run()
    for each, was in zip(program.sides, before, strict=True):
        each.poll()
        balanced(each)
        assert [wr_id for wr_id, _, _ in each.got] == each.received
        assert each.end.qp.tx.depth() == 0
        assert each.memory[: 4 * SLOT] == was[: 4 * SLOT]  # sources: nobody's sink
        each.end.rnic.deregister(each.region)
        each.memory.clear()


@pytest.mark.parametrize("seed", range(20))
def test_many_faults_at_once_are_no_worse_than_one(seed: int) -> None:
    program = Program(seed + 5000)
    program.run(40, [program.rng.choice(FAULTS) for _ in range(4)])
    program.pair.link.cut()
    for each in program.sides:
        each.poll()
        balanced(each)
        assert each.end.qp.state is QpState.ERROR
        assert [wr_id for wr_id, _, _ in each.got] == each.received


def test_one_seed_is_one_run() -> None:
    runs = []
    for _ in range(2):
        program = Program(77)
        program.run(40, ["overreach"])
        runs.append((program.pair.octets, [each.done for each in program.sides]))
    assert runs[0] == runs[1]
