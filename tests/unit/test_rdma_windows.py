"""Memory windows of both types: what they open to the peer, and for how long."""

from __future__ import annotations

import errno

import pytest

from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    ACCESS_ZERO_BASED,
    MW_TYPE_1,
    MW_TYPE_2,
    WC_BIND_MW,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
    WcStatus,
)
from steertag.rdma.cq import CompletionQueue
from steertag.rdma.memory import Window
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SGE, SendWR
from steertag.wire import ddp, rdmap
from tests.sim.ends import (
    CAP,
    End,
    drain,
    feed,
    fpdu,
    ids,
    lone,
    pattern,
    read_request_fpdu,
    write_fpdu,
)
from tests.sim.operations import EVERYTHING, OK, bind, joined, post
from tests.sim.refusals import LARGE, PROTECTION, SMALL, TAGGED, refused

# -- memory windows --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, SMALL, LARGE])
@pytest.mark.parametrize("kind", [MW_TYPE_1, MW_TYPE_2])
def test_a_window_gives_the_peer_a_part_of_a_region(kind: int, size: int) -> None:
    both = joined()
    client, server = both.client, both.server
    window = server.rnic.alloc_window(server.pd, kind)
    stag = server.rnic.table.next_window_stag(window)
    access = ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ
    bind(server, window, stag, 1000, LARGE, access)
    server.qp.tx.held = False  # it speaks first here, which only a bind does
    both.run()
    (wc,) = server.sent()
    assert (wc.status, wc.opcode) == (OK, WC_BIND_MW)
    client.memory[:size] = pattern(size)
    for opcode in (WR_RDMA_WRITE, WR_RDMA_READ):
        at = 0 if opcode == WR_RDMA_WRITE else 100_000
        post(client, opcode, 1, (at, size), rkey=stag, remote_addr=server.region.base + 1000)
    both.run()
    assert ids(client.sent()) == [(1, OK), (1, OK)]
    assert server.memory[1000 : 1000 + size] == pattern(size)
    assert client.memory[100_000 : 100_000 + size] == pattern(size)
    # Beyond the window, though inside the region:
    post(client, WR_RDMA_WRITE, 2, (0, 8), rkey=stag, remote_addr=server.region.base)
    both.run()
    assert "outside" in server.qp.end_reason
    with pytest.raises(OSError, match="windows") as caught:
        server.rnic.deregister(server.region)
    assert caught.value.errno == errno.EBUSY
    server.rnic.dealloc_window(window)
    server.rnic.deregister(server.region)


def bound(kind: int, access: int = ACCESS_REMOTE_WRITE, *, to: int = 0) -> tuple[End, Window, int]:
    end = lone(access=EVERYTHING)
    window = end.rnic.alloc_window(end.pd, kind)
    stag = end.rnic.table.next_window_stag(window)
    bind(end, window, stag, to, 1000, access)
    drain(end)
    assert ids(end.sent()) == [(9, OK)]
    return end, window, stag


def test_a_window_grants_what_it_was_bound_with_and_no_more() -> None:
    end, _, stag = bound(MW_TYPE_1, ACCESS_REMOTE_WRITE)
    request = rdmap.ReadRequest(1, 1, 8, stag, end.region.base)
    refused(end, read_request_fpdu(request), PROTECTION, rdmap.P_ACCESS)


def test_a_window_with_offsets_of_its_own_begins_at_zero() -> None:
    end, _, stag = bound(MW_TYPE_2, ACCESS_REMOTE_WRITE | ACCESS_ZERO_BASED, to=500)
    feed(end, write_fpdu(stag, 3, b"abc"))
    assert end.memory[503:506] == b"abc"


def test_a_window_of_type_2_is_for_the_queue_pair_that_bound_it() -> None:
    for kind in (MW_TYPE_1, MW_TYPE_2):
        end, _, stag = bound(kind)
        other = end.rnic.create_qp(end.pd, CompletionQueue(8), CompletionQueue(8), CAP)
        other.connected(crc=True, ird=1, ord=1, held=False, max_ulpdu=65534)
        end.qp = other
        octets = write_fpdu(stag, end.region.base, b"abc")
        if kind == MW_TYPE_1:
            feed(end, octets)
            assert end.memory[:3] == b"abc"
        else:
            refused(end, octets, TAGGED, ddp.T_STAG_NOT_ASSOCIATED)


def test_an_unbound_or_rebound_window_is_no_longer_found_under_its_old_stag() -> None:
    end, window, stag = bound(MW_TYPE_1)
    later = end.rnic.table.next_window_stag(window)
    assert (later >> 8, later != stag) == (stag >> 8, True)
    bind(end, window, later, 0, 1000, ACCESS_REMOTE_WRITE)
    drain(end)
    feed(end, write_fpdu(later, end.region.base, b"abc"))
    assert end.memory[:3] == b"abc"
    refused(end, write_fpdu(stag, end.region.base, b"xyz"), TAGGED, ddp.T_INVALID_STAG)


def test_a_window_of_type_1_is_unbound_by_binding_it_to_nothing() -> None:
    end, window, stag = bound(MW_TYPE_1)
    later = end.rnic.table.next_window_stag(window)
    bind(end, window, later, 0, 0, 0)
    drain(end)
    assert not end.region.windows
    refused(end, write_fpdu(stag, end.region.base, b"abc"), TAGGED, ddp.T_INVALID_STAG)


@pytest.mark.parametrize("by_peer", [False, True])
def test_a_window_of_type_2_is_invalidated_by_either_side(by_peer: bool) -> None:

    end, window, stag = bound(MW_TYPE_2)
    if by_peer:
        end.recv((0, 8), wr_id=4)
        header = ddp.Untagged(True, rdmap.control(rdmap.Opcode.SEND_INVALIDATE), 0, 1, 0, stag)
        feed(end, fpdu(header))
        (wc,) = end.got()
        assert (wc.wr_id, wc.invalidated_rkey) == (4, stag)
    else:
        post(end, WR_LOCAL_INV, 2, invalidate_rkey=stag)
        drain(end)
        assert ids(end.sent()) == [(2, OK)]
    assert window.region is None
    bind(end, window, stag ^ 1, 0, 8, ACCESS_REMOTE_WRITE)
    drain(end)
    assert ids(end.sent()) == [(9, OK)]
    refused(end, write_fpdu(stag, end.region.base, b"abc"), TAGGED, ddp.T_INVALID_STAG)


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("another index", MW_TYPE_2),
        ("bound twice", MW_TYPE_2),
        ("bound to nothing", MW_TYPE_2),
        ("more octets than there are", MW_TYPE_1),
        ("a right that is no remote one", MW_TYPE_1),
        ("a region without the right to bind", MW_TYPE_1),
        ("writing into what isn't writable", MW_TYPE_2),
        ("another domain", MW_TYPE_1),
    ],
)
def test_a_bind_that_may_not_be_fails_and_ends_the_queue_pair(what: str, kind: int) -> None:
    end = lone(access=EVERYTHING)
    window = end.rnic.alloc_window(end.pd, kind)
    stag, length, access = window.stag ^ 1, 100, ACCESS_REMOTE_WRITE
    if what == "another index":
        stag ^= 1 << 8
    elif what == "bound twice":
        bind(end, window, stag, 0, 8, access)
        drain(end)
        assert ids(end.sent()) == [(9, OK)]
    elif what == "bound to nothing":
        length = 0
    elif what == "more octets than there are":
        length = len(end.memory) + 1
    elif what == "a right that is no remote one":
        access = ACCESS_LOCAL_WRITE
    elif what == "a region without the right to bind":
        end.region = end.rnic.register(end.pd, end.memory, EVERYTHING & ~ACCESS_MW_BIND)
    elif what == "writing into what isn't writable":
        rights = ACCESS_REMOTE_READ | ACCESS_MW_BIND
        end.region = end.rnic.register(end.pd, end.memory, rights)
    else:
        window = end.rnic.alloc_window(end.rnic.alloc_pd(), kind)
        stag = window.stag ^ 1
    bind(end, window, stag, 0, length, access)
    drain(end)
    assert ids(end.sent()) == [(9, WcStatus.MW_BIND_ERR)]
    assert end.qp.state is QpState.ERROR


def test_a_window_is_not_a_local_key() -> None:
    end, _, stag = bound(MW_TYPE_1)
    end.qp.post_send(SendWR(4, sg=[SGE(end.region.base, 8, stag)], opcode=WR_SEND))
    drain(end)
    assert ids(end.sent()) == [(4, WcStatus.LOC_PROT_ERR)]


def test_a_domain_with_a_window_is_busy() -> None:
    end = lone()
    pd = end.rnic.alloc_pd()
    window = end.rnic.alloc_window(pd, MW_TYPE_1)
    with pytest.raises(OSError, match="belong") as caught:
        end.rnic.dealloc_pd(pd)
    assert caught.value.errno == errno.EBUSY
    end.rnic.dealloc_window(window)
    end.rnic.dealloc_pd(pd)
