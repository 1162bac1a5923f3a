"""What a program's own mistakes, or those of its other parts, can't do: RFC 5042 section 7."""

from __future__ import annotations

import pytest

from steertag.rdma.constants import ACCESS_LOCAL_WRITE, WR_SEND, WcStatus
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SGE, SendWR
from steertag.wire import ddp, rdmap
from tests.sim.ends import SIZE, End, drain, feed, fpdus, ids, lone, tagged, terminates, write_fpdu
from tests.sim.refusals import TAGGED, refused

STEP = 20_000


@pytest.mark.parametrize("whole", [1, 3])
def test_a_region_made_smaller_under_a_read_ends_the_connection_and_nothing_else(
    whole: int,
) -> None:
    """The first segments still fit; where the rest would go isn't the region's any more."""
    end = lone()
    end.read(End(9).region, 0, 0, SIZE, wr_id=7)
    drain(end)
    region, pd = end.region, end.pd
    behind = memoryview(end.memory)[whole * STEP :]
    before = memoryview(end.memory)[: whole * STEP]
    end.rnic.reregister(region, pd, before, ACCESS_LOCAL_WRITE, region.base)
    segments = [
        tagged(
            rdmap.Opcode.READ_RESPONSE,
            region.stag,
            region.base + at,
            b"\xff" * STEP,
            last=at + STEP == SIZE,
        )
        for at in range(0, SIZE, STEP)
    ]
    feed(end, b"".join(segments))
    assert end.qp.state is QpState.TERMINATE
    assert terminates(drain(end))
    assert ids(end.sent()) == [(7, WcStatus.WR_FLUSH_ERR)]
    assert not any(behind)


def test_stags_of_one_rnic_are_nothing_to_another() -> None:
    """Each Context has a table of its own, so that its number is all that two of them share."""
    ours, theirs = lone(seed=1), lone(seed=2)
    stag, base = theirs.region.stag, theirs.region.base
    refused(ours, write_fpdu(stag, base, b"over there"), TAGGED, ddp.T_INVALID_STAG)
    assert not any(theirs.memory)
    assert theirs.qp.state is QpState.RTS


def test_a_stream_that_reads_all_it_may_takes_nothing_of_what_others_may() -> None:
    """Read Requests wait in a queue of the queue pair's own, within its ORD."""
    greedy = lone(ord=2)
    other = End(size=100, rnic=greedy.rnic, pd=greedy.pd)
    other.qp.connected(crc=True, ird=2, ord=2, held=False, max_ulpdu=60_000)
    for _ in range(200):
        greedy.read(greedy.region, 0, 0, 10)
    assert len(fpdus(drain(greedy))) == 2
    other.read(greedy.region, 0, 0, 10)
    assert len(fpdus(drain(other))) == 1


def test_a_queue_pair_does_not_send_memory_of_another_domain() -> None:
    end = lone()
    secret = bytearray(b"\x5asecret\x5a")
    region = end.rnic.register(end.rnic.alloc_pd(), secret, ACCESS_LOCAL_WRITE)
    end.qp.post_send(SendWR(1, sg=[SGE(region.base, 8, region.stag)], opcode=WR_SEND))
    assert bytes(secret) not in drain(end)
    assert ids(end.sent()) == [(1, WcStatus.LOC_PROT_ERR)]
