"""What a peer that broke a rule is answered, and that no memory changed."""

from __future__ import annotations

import random

from steertag.rdma.qp_state import QpState
from steertag.wire import ddp, mpa, rdmap
from tests.sim.ends import (
    End,
    drain,
    feed,
    terminates,
)

SMALL, LARGE = 100, 60_000
"""Octets of payload that are parsed from the buffer, and that go straight into the region."""

TAGGED = (ddp.LAYER_DDP, ddp.ETYPE_TAGGED)
UNTAGGED = (ddp.LAYER_DDP, ddp.ETYPE_UNTAGGED)
PROTECTION = (rdmap.LAYER_RDMAP, rdmap.ETYPE_PROTECTION)
OPERATION = (rdmap.LAYER_RDMAP, rdmap.ETYPE_OPERATION)
LOCAL = (rdmap.LAYER_RDMAP, rdmap.ETYPE_CATASTROPHIC)
MPA = (mpa.LAYER_LLP, mpa.ETYPE_MPA)


def terminated_with(end: End, kind: tuple[int, int], code: int) -> rdmap.Terminate:
    """The end tells its peer just this, and comes to rest."""
    assert end.qp.state is QpState.TERMINATE
    (terminate,) = terminates(drain(end))
    assert (terminate.layer, terminate.etype, terminate.code) == (*kind, code)
    assert not terminate.swapped
    assert end.qp.state is QpState.ERROR
    assert end.qp.closing
    assert end.qp.counters.protocol_errors == 1
    assert end.qp.counters.terminates_sent == 1
    return terminate


def refused(
    end: End, octets: bytes, kind: tuple[int, int], code: int, *, cuts: int | None = None
) -> rdmap.Terminate:
    """`octets` are answered with this Terminate, and no memory of the end has changed."""
    before = bytes(end.memory)
    feed(end, octets, None if cuts is None else random.Random(cuts))
    assert bytes(end.memory) == before
    return terminated_with(end, kind, code)
