"""Two queue pairs on a link, driven by hypothesis: every request completes exactly once, in order.

The machine posts every kind of request on either side, valid and not, lets octets move in pieces of
any size, and ends the connection in every way there is, at any moment. `test_random_programs` looks
at the octets too; here it is only the books: what was posted, and what completed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from steertag.rdma.connection import Offer
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE,
    ACCESS_REMOTE_INVALIDATE,
    ACCESS_REMOTE_WRITE,
    MW_TYPE_1,
    MW_TYPE_2,
    SEND_FENCE,
    SEND_INLINE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_BIND_MW,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_READ_WITH_INV,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
    WcStatus,
)
from steertag.rdma.memory import Region, WindowBind
from steertag.rdma.qp import QpCap
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SGE, RecvWR, SendWR
from tests.sim.ends import End, Pair, pair

SIZE = 100_000
EVERYTHING = ACCESS_LOCAL_WRITE | ACCESS_REMOTE | ACCESS_MW_BIND | ACCESS_REMOTE_INVALIDATE
CAP = QpCap(max_send_wr=24, max_recv_wr=24, max_send_sge=4, max_recv_sge=4, max_inline_data=64)
SIDES = st.sampled_from((0, 1))
STEPS = st.integers(0, 40)
SIZES = st.sampled_from((0, 1, 8, 40, 64, 1024, 1025, 9000, 70_000, SIZE))
PAYLOAD = (WR_RDMA_WRITE, WR_RDMA_WRITE_WITH_IMM, WR_SEND, WR_SEND_WITH_INV)
TAKES_RECEIVE = (WR_RDMA_WRITE_WITH_IMM, WR_SEND, WR_SEND_WITH_INV, WR_SEND_WITH_IMM)
READS = (WR_RDMA_READ, WR_RDMA_READ_WITH_INV)
ATOMICS = (WR_ATOMIC_CMP_AND_SWP, WR_ATOMIC_FETCH_AND_ADD, WR_ATOMIC_SWAP)
OK, FLUSHED = WcStatus.SUCCESS, WcStatus.WR_FLUSH_ERR
POSTING = (QpState.RTS, QpState.SQD, QpState.TERMINATE, QpState.ERROR)


@dataclass
class Side:
    """One end, and its books."""

    end: End
    lent: list[Region] = field(default_factory=list)
    posted: list[tuple[int, bool]] = field(default_factory=list)
    receives: list[int] = field(default_factory=list)
    done: list[tuple[int, WcStatus]] = field(default_factory=list)
    got: list[tuple[int, WcStatus]] = field(default_factory=list)
    reason: str = ""

    def poll(self) -> None:
        self.done += [(wc.wr_id, wc.status) for wc in self.end.sent()]
        self.got += [(wc.wr_id, wc.status) for wc in self.end.got()]


def rough(machine: QueuePairs) -> bool:
    return machine.next_id >= machine.calm


class QueuePairs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.next_id = 0
        self.sides: list[Side] = []
        self.calm = 0

    @initialize(
        seed=st.integers(0, 2**32),
        crc=st.booleans(),
        reads=st.sampled_from((1, 2, 16)),
        max_ulpdu=st.sampled_from((128, 1448, 65534)),
        capacity=st.sampled_from((200, 40_000, 1 << 20)),
        calm=st.sampled_from((2, 20, 60, 1000)),
    )
    def connect(
        self, seed: int, crc: bool, reads: int, max_ulpdu: int, capacity: int, calm: int
    ) -> None:
        self.calm = calm
        offer = Offer(crc=crc, ord=reads, max_ulpdu=max_ulpdu)
        ends = [End(n + 1, SIZE, EVERYTHING, CAP) for n in range(2)]
        self.pair: Pair = pair(
            random.Random(seed),
            offer,
            Offer(crc=False, ird=reads),
            capacity=capacity,
            client=ends[0],
            server=ends[1],
        )
        self.sides = [Side(end) for end in ends]

    def _id(self) -> int:
        self.next_id += 1
        return self.next_id

    def _post(self, who: int, wr: SendWR) -> None:
        """Post; what can't be posted isn't in the books."""
        me = self.sides[who]
        depth, state = me.end.qp.tx.depth(), me.end.qp.state
        try:
            me.end.qp.post_send(wr)
        except OSError:
            assert depth >= CAP.max_send_wr or state not in POSTING
            return
        assert state in POSTING
        me.posted.append((wr.wr_id, bool(wr.send_flags & SEND_SIGNALED)))

    def _room_for(self, who: int, opcode: int) -> None:
        """In calm times a Send finds its receive, as programs see to."""
        if self.calm > self.next_id and opcode in TAKES_RECEIVE:
            self.receive(1 - who, 1, SIZE)

    def _move(self, steps: int) -> None:
        for _ in range(steps):
            self.pair.link.step()
            for side in self.sides:
                side.poll()

    @rule(
        who=SIDES,
        opcode=st.sampled_from(PAYLOAD + READS),
        size=SIZES,
        flags=st.sets(st.sampled_from((SEND_FENCE, SEND_SIGNALED, SEND_SOLICITED, SEND_INLINE))),
        lent=st.booleans(),
        steps=STEPS,
    )
    def move_octets(
        self, who: int, opcode: int, size: int, flags: set[int], lent: bool, steps: int
    ) -> None:
        me, peer = self.sides[who], self.sides[1 - who]
        if size > CAP.max_inline_data or lent:
            flags -= {SEND_INLINE}
        regions = me.lent if lent else []
        region = regions[-1] if regions else me.end.region
        target = peer.lent[-1] if lent and peer.lent else peer.end.region
        size = min(size, region.length, target.length)
        wr = SendWR(self._id(), sg=[SGE(region.base, size, region.stag)], opcode=opcode)
        wr.send_flags = sum(flags)
        wr.set_wr_rdma(target.stag, target.base)
        if opcode == WR_SEND_WITH_INV:
            region = peer.end.rnic.register(peer.end.pd, bytearray(8), EVERYTHING)
            peer.lent.insert(0, region)
            wr.invalidate_rkey = region.stag
        if opcode in PAYLOAD and not regions:
            wr.sg = [me.end.sge(0, size // 3), me.end.sge(5, size - size // 3 - min(5, size))]
        if opcode == WR_RDMA_READ_WITH_INV and size:
            region = me.end.rnic.register(me.end.pd, bytearray(size), EVERYTHING)
            me.lent.insert(0, region)
            wr.sg = [SGE(region.base, size, region.stag)]
        elif opcode == WR_RDMA_READ_WITH_INV:
            wr.opcode = WR_RDMA_READ
        self._room_for(who, opcode)
        self._post(who, wr)
        self._move(steps)

    @rule(who=SIDES, opcode=st.sampled_from(ATOMICS), signalled=st.booleans(), steps=STEPS)
    def atomic(self, who: int, opcode: int, signalled: bool, steps: int) -> None:
        me, peer = self.sides[who], self.sides[1 - who]
        flags = SEND_SIGNALED if signalled else 0
        wr = SendWR(self._id(), sg=[me.end.sge(0, 8)], opcode=opcode, send_flags=flags)
        wr.set_wr_atomic(peer.end.region.stag, peer.end.region.base, 1, 2)
        self._post(who, wr)
        self._move(steps)

    @rule(who=SIDES)
    def immediate(self, who: int) -> None:
        self._room_for(who, WR_SEND_WITH_IMM)
        self._post(who, SendWR(self._id(), opcode=WR_SEND_WITH_IMM, imm_data=7))

    @rule(who=SIDES, count=st.integers(1, 6), size=st.sampled_from((0, 10)))
    @precondition(rough)
    def short_receive(self, who: int, count: int, size: int) -> None:
        self.receive(who, count, size)

    def receive(self, who: int, count: int, size: int) -> None:
        me = self.sides[who]
        for _ in range(count):
            wr_id = self._id()
            try:
                me.end.qp.post_recv(RecvWR(wr_id, sg=[me.end.sge(0, size)]))
            except OSError:
                assert len(me.end.qp.inbound.rq) >= CAP.max_recv_wr
                return
            me.receives.append(wr_id)

    @rule(who=SIDES, size=st.sampled_from((8, 9000, SIZE)))
    def lend(self, who: int, size: int) -> None:
        end = self.sides[who].end
        self.sides[who].lent.append(end.rnic.register(end.pd, bytearray(size), EVERYTHING))

    @rule(who=SIDES, kind=st.sampled_from((MW_TYPE_1, MW_TYPE_2)))
    def bind_window(self, who: int, kind: int) -> None:
        end = self.sides[who].end
        window = end.rnic.alloc_window(end.pd, kind)
        stag = end.rnic.table.next_window_stag(window)
        bind = WindowBind(window, stag, end.region, end.region.base, 100, ACCESS_REMOTE_WRITE)
        self._post(who, SendWR(self._id(), opcode=WR_BIND_MW, bind=bind))

    @rule(steps=st.integers(1, 300))
    def move(self, steps: int) -> None:
        self._move(steps)

    # -- what ends things --------------------------------------------------------------------------

    @rule(who=SIDES)
    @precondition(rough)
    def local_invalidate(self, who: int) -> None:
        if self.sides[who].lent:
            stag = self.sides[who].lent[-1].stag
            self._post(who, SendWR(self._id(), opcode=WR_LOCAL_INV, invalidate_rkey=stag))

    @rule(who=SIDES)
    @precondition(rough)
    def deregister(self, who: int) -> None:
        if self.sides[who].lent:
            self.sides[who].end.rnic.deregister(self.sides[who].lent.pop())

    @rule(who=SIDES)
    @precondition(rough)
    def overreach(self, who: int) -> None:
        me, peer = self.sides[who], self.sides[1 - who]
        wr = SendWR(self._id(), sg=[me.end.sge(0, 8)], opcode=WR_RDMA_WRITE)
        wr.set_wr_rdma(peer.end.region.stag, peer.end.region.base - 1)
        self._post(who, wr)

    @rule(who=SIDES)
    def pause(self, who: int) -> None:
        qp = self.sides[who].end.qp
        if qp.state in (QpState.RTS, QpState.SQD):
            qp.modify(QpState.SQD)

    @rule(who=SIDES)
    def resume(self, who: int) -> None:
        qp = self.sides[who].end.qp
        if qp.state in (QpState.RTS, QpState.SQD):
            qp.modify(QpState.RTS)

    @rule(who=SIDES)
    @precondition(rough)
    def disconnect(self, who: int) -> None:
        self.sides[who].end.qp.close()

    @rule(who=SIDES)
    @precondition(rough)
    def abort(self, who: int) -> None:
        self.sides[who].end.qp.modify(QpState.ERROR)

    @rule()
    @precondition(rough)
    def lose_the_stream(self) -> None:
        self.pair.link.cut()

    # -- the books ---------------------------------------------------------------------------------

    @invariant()
    def everything_completes_at_most_once_and_in_order(self) -> None:
        for side in self.sides:
            side.poll()
            completed = [wr_id for wr_id, _ in side.done]
            seen = set(completed)
            assert len(seen) == len(completed)
            assert completed == [wr_id for wr_id, _ in side.posted if wr_id in seen]
            # A signalled request never lets a later one complete before it.
            if completed:
                ids = [wr_id for wr_id, _ in side.posted]
                before = side.posted[: ids.index(completed[-1])]
                assert all(wr_id in seen for wr_id, signalled in before if signalled)
            assert [wr_id for wr_id, _ in side.got] == side.receives[: len(side.got)]
            failed = [s for _, s in side.done + side.got if s not in (OK, FLUSHED)]
            assert len(failed) <= 1
            if side.end.qp.state is QpState.ERROR:
                side.reason = side.reason or side.end.qp.end_reason
                assert side.end.qp.end_reason == side.reason
            assert not failed or side.end.qp.state in (QpState.TERMINATE, QpState.ERROR)

    def teardown(self) -> None:
        if not self.sides:
            return
        for side in self.sides:
            if side.end.qp.state is QpState.SQD:
                side.end.qp.modify(QpState.RTS)
        self.pair.link.run()
        self.pair.link.cut()
        self.everything_completes_at_most_once_and_in_order()
        for side in self.sides:
            assert side.end.qp.state is QpState.ERROR
            assert side.end.qp.tx.depth() == 0
            done = {wr_id for wr_id, _ in side.done}
            assert all(wr_id in done for wr_id, signalled in side.posted if signalled)
            assert [wr_id for wr_id, _ in side.got] == side.receives
            # Nothing holds the memory any more.
            side.end.rnic.destroy_qp(side.end.qp)
            for region in [*side.lent, side.end.region]:
                for window in list(region.windows):
                    side.end.rnic.dealloc_window(window)
                side.end.rnic.deregister(region)
            side.end.memory.clear()


QueuePairs.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestQueuePairs = QueuePairs.TestCase
