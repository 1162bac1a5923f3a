"""What a program's own mistakes, or those of its other parts, can't do: RFC 5042 section 7."""

from __future__ import annotations

import pytest

from steertag.rdma.constants import ACCESS_LOCAL_WRITE, WcStatus
from steertag.rdma.qp_state import QpState
from steertag.wire import rdmap
from tests.sim.ends import SIZE, End, drain, feed, ids, lone, tagged, terminates

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
