"""What a peer may try with STags: RFC 5042 sections 6.1 to 6.3, played against the RNIC."""

from __future__ import annotations

import inspect
import itertools
import secrets
from collections.abc import Callable

import pytest

from steertag.rdma.connection import Offer
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_INVALIDATE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    MW_TYPE_2,
    WR_BIND_MW,
)
from steertag.rdma.memory import Region, WindowBind
from steertag.rdma.offer import answered
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SendWR
from steertag.verbs import MR, PD, Context
from steertag.verbs.enums import IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_READ
from steertag.wire import ddp, mpa, rdmap
from tests.sim.ends import (
    End,
    drain,
    feed,
    fpdu,
    fpdus,
    lone,
    pattern,
    read_request_fpdu,
    send_fpdu,
    tagged,
    untagged,
    write_fpdu,
)
from tests.sim.refusals import PROTECTION, TAGGED, refused

EVERYTHING = (
    ACCESS_LOCAL_WRITE
    | ACCESS_REMOTE_READ
    | ACCESS_REMOTE_WRITE
    | ACCESS_REMOTE_ATOMIC
    | ACCESS_REMOTE_INVALIDATE
)


def send_and_invalidate(stag: int, msn: int = 1) -> bytes:
    control = rdmap.control(rdmap.Opcode.SEND_INVALIDATE)
    return fpdu(ddp.Untagged(True, control, rdmap.QN_SEND, msn, 0, stag))


def fetch_add(stag: int, to: int) -> bytes:
    request = rdmap.AtomicRequest(rdmap.AtomicOpcode.FETCH_ADD, 1, stag, to, 1)
    return untagged(rdmap.Opcode.ATOMIC_REQUEST, rdmap.QN_READ_REQUEST, 1, request.emit())


USES: dict[str, Callable[[Region], bytes]] = {
    "Write": lambda region: write_fpdu(region.stag, region.base, b"\xff" * 8),
    "large Write": lambda region: write_fpdu(region.stag, region.base, b"\xff" * 60_000),
    "Read": lambda region: read_request_fpdu(rdmap.ReadRequest(9, 9, 8, region.stag, region.base)),
    "atomic": lambda region: fetch_add(region.stag, region.base),
    "invalidation": lambda region: send_and_invalidate(region.stag),
    "Read Response": lambda region: tagged(
        rdmap.Opcode.READ_RESPONSE, region.stag, region.base, b"\xff" * 8
    ),
}
"""Everything that a peer can do to an STag."""

uses = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


def two_streams(*, same_domain: bool = False) -> tuple[End, End]:
    """The ends of two streams of one RNIC, each with a region that its peer may do all with."""
    victim = lone(size=60_000, access=EVERYTHING)
    pd = victim.pd if same_domain else None
    other = End(size=60_000, access=EVERYTHING, rnic=victim.rnic, pd=pd)
    other.qp.connected(crc=True, ird=16, ord=16, held=False, max_ulpdu=60_000)
    return victim, other


# -- 6.1.1: an STag on a stream that it isn't for --------------------------------------------------


@uses
def test_an_stag_is_of_no_use_on_a_stream_of_another_domain(
    use: Callable[[Region], bytes],
) -> None:
    victim, attacker = two_streams()
    victim.memory[:] = before = pattern(60_000)
    attacker.recv((0, 100))
    feed(attacker, use(victim.region))
    answer = b"".join(fpdus(drain(attacker)))
    assert attacker.qp.state is QpState.ERROR
    assert attacker.qp.counters.terminates_sent == 1
    assert before[:8] not in answer
    assert bytes(victim.memory) == before
    # The stream that the STag is for goes on with it.
    feed(victim, write_fpdu(victim.region.stag, victim.region.base, b"fine"))
    assert victim.memory[:4] == b"fine"
    assert victim.qp.state is QpState.RTS


@pytest.mark.parametrize(
    "use", [USES[name] for name in ("Write", "large Write", "Read", "atomic", "invalidation")]
)
def test_a_window_of_one_stream_is_of_no_use_on_another_of_the_same_domain(
    use: Callable[[Region], bytes],
) -> None:
    victim, attacker = two_streams(same_domain=True)
    region = victim.rnic.register(
        victim.pd, victim.memory, ACCESS_LOCAL_WRITE | ACCESS_MW_BIND, victim.region.base
    )
    victim.rnic.deregister(victim.region)
    window = victim.rnic.alloc_window(victim.pd, MW_TYPE_2)
    wr = SendWR(1, opcode=WR_BIND_MW)
    rights = ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE | ACCESS_REMOTE_ATOMIC
    wr.bind = WindowBind(window, window.stag ^ 1, region, region.base, 60_000, rights)
    victim.qp.post_send(wr)
    drain(victim)
    victim.memory[:] = before = pattern(60_000)
    named = Region(window.stag, victim.pd, 0, region.base, memoryview(b""))
    attacker.recv((0, 100))
    feed(attacker, use(named))
    assert before[:8] not in b"".join(fpdus(drain(attacker)))
    assert attacker.qp.state is QpState.ERROR
    assert bytes(victim.memory) == before
    feed(victim, write_fpdu(window.stag, window.base, b"fine"))
    assert victim.memory[:4] == b"fine"


# -- 6.2.2, 6.3.3: a buffer whose turn is over -----------------------------------------------------


@uses
def test_nothing_can_be_done_with_an_stag_once_its_region_is_closed(
    use: Callable[[Region], bytes],
) -> None:
    end = lone(access=EVERYTHING)
    stale = end.region
    end.rnic.deregister(stale)
    end.memory[:] = pattern(len(end.memory))
    # Other memory lies where the old one did, under another STag.
    end.region = end.rnic.register(end.pd, end.memory, EVERYTHING, base=stale.base)
    end.recv((0, 0))
    before = bytes(end.memory)
    feed(end, use(stale))
    assert before[:8] not in drain(end)
    assert end.qp.state is QpState.ERROR
    assert bytes(end.memory) == before


def test_a_receive_that_has_completed_is_not_written_again() -> None:
    end = lone()
    end.recv((0, 100), wr_id=1)
    feed(end, send_fpdu(b"first"))
    assert [wc.wr_id for wc in end.got()] == [1]
    end.recv((1000, 100), wr_id=2)
    feed(end, send_fpdu(b"second", 2))
    assert bytes(end.memory[:100]) == b"first".ljust(100, b"\0")
    assert end.memory[1000:1006] == b"second"


def test_memory_that_receives_sends_is_not_open_to_writes_for_that() -> None:
    end = lone(access=ACCESS_LOCAL_WRITE)
    end.recv((0, 100))
    refused(
        end,
        write_fpdu(end.region.stag, end.region.base, b"instead of a Send"),
        PROTECTION,
        rdmap.P_ACCESS,
    )


# -- 6.2.3, 6.3.6: several STags over one buffer ---------------------------------------------------


def test_each_stag_over_a_buffer_has_its_own_rights_bounds_and_life() -> None:
    end = lone(access=ACCESS_LOCAL_WRITE)
    part = memoryview(end.memory)[1000:2000]
    writable = end.rnic.register(end.pd, part, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE)
    readable = end.rnic.register(end.pd, end.memory, ACCESS_REMOTE_READ)
    elsewhere = end.rnic.register(
        end.rnic.alloc_pd(), end.memory, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE
    )
    assert len({end.region.stag, writable.stag, readable.stag, elsewhere.stag}) == 4
    feed(end, write_fpdu(writable.stag, writable.base, b"in"))
    assert end.memory[1000:1002] == b"in"
    end.rnic.deregister(writable)
    feed(end, read_request_fpdu(rdmap.ReadRequest(9, 9, 2, readable.stag, readable.base + 1000)))
    assert b"in" in drain(end)
    assert end.qp.state is QpState.RTS
    refused(end, write_fpdu(writable.stag, writable.base, b"no"), TAGGED, ddp.T_INVALID_STAG)


@pytest.mark.parametrize("known", ["readable", "elsewhere"])
def test_one_stag_over_a_buffer_does_not_open_what_another_does(known: str) -> None:
    end = lone(access=ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE)
    elsewhere = end.rnic.register(
        end.rnic.alloc_pd(), end.memory, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE
    )
    readable = end.rnic.register(end.pd, end.memory, ACCESS_REMOTE_READ)
    region = {"readable": readable, "elsewhere": elsewhere}[known]
    kind, code = {
        "readable": (PROTECTION, rdmap.P_ACCESS),
        "elsewhere": (TAGGED, ddp.T_STAG_NOT_ASSOCIATED),
    }[known]
    refused(end, write_fpdu(region.stag, region.base, b"no"), kind, code)


# -- 6.3.1: probing --------------------------------------------------------------------------------


def test_stags_come_from_the_systems_secure_source() -> None:
    assert inspect.signature(Context).parameters["randbits"].default is secrets.randbits


def test_stags_and_offsets_tell_nothing_of_one_another_or_of_memory() -> None:
    """Not counted up, not the buffer's address, another one in every Context."""
    seen: list[tuple[int, int]] = []
    with Context() as one, Context() as two:
        for pd in (PD(one), PD(two)):
            for _ in range(20):
                memory = bytearray(4096)
                mr = MR(pd, memory, IBV_ACCESS_LOCAL_WRITE)
                assert abs(mr.buf - id(memory)) > 1 << 32
                seen.append((mr.rkey, mr.buf))
    keys = [key for key, _ in seen]
    assert len(set(keys)) == len(keys)
    steps = {b - a for a, b in itertools.pairwise(keys)}
    assert len(steps) > len(keys) // 2
    assert seen[0][1] != seen[20][1]


def test_each_wrong_guess_costs_a_prober_its_connection() -> None:
    for guess in range(1, 200):
        end = lone(size=100)
        stag = (end.region.stag + guess * 0x9E3779B9) & 0xFFFFFFFF
        refused(end, write_fpdu(stag, end.region.base, b"?"), TAGGED, ddp.T_INVALID_STAG)
        assert end.qp.closing


def test_a_region_that_is_not_opened_to_the_peer_is_not() -> None:
    """Rights are what the program asks for; none is given for its own convenience."""
    for access in (0, ACCESS_LOCAL_WRITE, ACCESS_LOCAL_WRITE | ACCESS_MW_BIND):
        for name in ("Write", "Read", "atomic", "invalidation"):
            end = lone(access=access)
            secret = end.memory[:8] = b"\x5aSECRET\x5a"
            end.recv()
            feed(end, USES[name](end.region))
            assert secret not in drain(end)
            assert end.qp.state is QpState.ERROR
            assert end.memory[:8] == secret


@pytest.mark.parametrize("name", ["Write", "Read", "atomic"])
def test_a_queue_pair_can_deny_what_every_region_grants(name: str) -> None:
    end = lone(access=EVERYTHING)
    end.qp.inbound.access = 0
    refused(end, USES[name](end.region), PROTECTION, rdmap.P_ACCESS)


# -- 6.3.2: what memory held before ----------------------------------------------------------------


def test_memory_that_the_verbs_allocate_holds_nothing_of_before() -> None:
    with Context() as context, PD(context) as pd:
        access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ
        for _ in range(10):
            with MR(pd, 1 << 16, access) as mr:
                assert not any(mr.read(1 << 16, 0))
                mr.write(b"\xa5" * (1 << 16), 1 << 16)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_pad_and_reserved_fields_carry_no_memory(size: int) -> None:
    end = lone(crc=False)
    end.memory[:] = b"\xff" * len(end.memory)
    end.send((0, size))
    octets = drain(end)
    payload = 2 + ddp.UNTAGGED_LEN
    assert octets[payload : payload + size] == b"\xff" * size
    assert not any(octets[payload + size :])
    assert b"\xff" not in octets[:payload]


# -- 6.3.5: where a Read of ours is put ------------------------------------------------------------


@pytest.mark.parametrize("name", ["Write", "large Write", "Read", "atomic", "invalidation"])
def test_the_sink_of_a_read_is_open_to_its_response_only(name: str) -> None:
    """The peer learns its STag and offset from the Read Request, and may do nothing else there."""
    end = lone(access=ACCESS_LOCAL_WRITE)
    end.read(End(9).region, 0, 0, 60_000)
    (request,) = [rdmap.ReadRequest.parse(ulpdu[18:]) for ulpdu in fpdus(drain(end))]
    named = Region(request.sink_stag, 0, 0, request.sink_to, memoryview(b""))
    assert (named.stag, named.base) == (end.region.stag, end.region.base)
    end.recv()
    feed(end, USES[name](named))
    assert end.qp.state is QpState.TERMINATE
    assert not any(end.memory)


def test_what_a_peer_asks_for_in_the_set_up_does_not_widen_what_it_gets() -> None:
    """IRD is ours to choose: asking for 16383 Reads at once, or for no limit, gives no more."""
    for ord_ in (17, 16382, 16383):
        asked = mpa.Enhanced(ird=16383, ord=ord_)
        agreement, _ = answered(mpa.StartFrame(reply=False), asked, Offer(ird=16))
        assert agreement.ird == 16
