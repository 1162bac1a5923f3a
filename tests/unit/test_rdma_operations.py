"""The rarer operations of the RNIC: invalidation, windows, atomics, Immediate Data, shared queues.

RFC 5040 sections 3 and 5.3, RFC 7306, and the verbs' rules for memory windows and shared queues.
"""

from __future__ import annotations

import errno
import random
import struct
import sys

import pytest

from steertag.errors import StateError
from steertag.rdma.connection import Offer
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_INVALIDATE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    ACCESS_ZERO_BASED,
    MW_TYPE_1,
    MW_TYPE_2,
    SEND_FENCE,
    SEND_INLINE,
    SEND_SIGNALED,
    SEND_SOLICITED,
    WC_BIND_MW,
    WC_COMP_SWAP,
    WC_FETCH_ADD,
    WC_FLAG_WITH_IMM,
    WC_FLAG_WITH_INV,
    WC_LOCAL_INV,
    WC_RECV,
    WC_RECV_RDMA_WITH_IMM,
    WC_SWAP,
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
from steertag.rdma.cq import CompletionQueue
from steertag.rdma.memory import Window, WindowBind
from steertag.rdma.qp import QpCap
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.wire import ddp, rdmap
from tests.sim.ends import (
    CAP,
    End,
    Pair,
    drain,
    feed,
    fpdu,
    fpdus,
    ids,
    lone,
    pair,
    pattern,
    read_request_fpdu,
    send_fpdu,
    tagged,
    untagged,
    write_fpdu,
)
from tests.sim.refusals import LARGE, OPERATION, PROTECTION, SMALL, TAGGED, UNTAGGED, refused

OK = WcStatus.SUCCESS
EVERYTHING = (
    ACCESS_LOCAL_WRITE
    | ACCESS_REMOTE_READ
    | ACCESS_REMOTE_WRITE
    | ACCESS_REMOTE_ATOMIC
    | ACCESS_MW_BIND
)
INLINE_CAP = QpCap(
    max_send_wr=64, max_recv_wr=64, max_send_sge=8, max_recv_sge=8, max_inline_data=512
)


def ends() -> tuple[End, End]:
    return End(1, access=EVERYTHING, cap=INLINE_CAP), End(2, access=EVERYTHING, cap=INLINE_CAP)


def joined() -> Pair:
    client, server = ends()
    return pair(client=client, server=server)


def post(end: End, opcode: int, wr_id: int = 1, *parts: tuple[int, int], **fields: int) -> None:
    flags = fields.pop("flags", SEND_SIGNALED)
    wr = SendWR(wr_id, sg=[end.sge(*part) for part in parts], opcode=opcode, send_flags=flags)
    for name, value in fields.items():
        setattr(wr, name, value)
    end.qp.post_send(wr)


def bind(end: End, window: Window, stag: int, at: int, length: int, access: int) -> None:
    wr = SendWR(9, opcode=WR_BIND_MW)
    wr.bind = WindowBind(window, stag, end.region, end.region.base + at, length, access)
    end.qp.post_send(wr)


def word(end: End, at: int) -> int:
    return int.from_bytes(end.memory[at : at + 8], sys.byteorder)


# -- Send with Invalidate --------------------------------------------------------------------------


@pytest.mark.parametrize("solicited", [False, True])
@pytest.mark.parametrize("size", [0, SMALL, LARGE])
def test_a_send_with_invalidate_ends_the_stag_it_names(size: int, solicited: bool) -> None:
    both = joined()
    client, server = both.client, both.server
    events: list[None] = []
    server.rcq._on_event = lambda: events.append(None)
    server.rcq.arm(solicited_only=True)
    lent = server.rnic.register(server.pd, bytearray(100), EVERYTHING | ACCESS_REMOTE_INVALIDATE)
    client.memory[:size] = pattern(size)
    server.recv((0, LARGE), wr_id=4)
    post(
        client,
        WR_SEND_WITH_INV,
        1,
        (0, size),
        invalidate_rkey=lent.stag,
        flags=SEND_SIGNALED | (SEND_SOLICITED if solicited else 0),
    )
    both.run()
    (wc,) = server.got()
    assert (wc.wr_id, wc.status, wc.opcode, wc.byte_len) == (4, OK, WC_RECV, size)
    assert (wc.wc_flags, wc.invalidated_rkey) == (WC_FLAG_WITH_INV, lent.stag)
    assert server.memory[:size] == pattern(size)
    assert len(events) == solicited
    assert ids(client.sent()) == [(1, OK)]
    opcode = rdmap.Opcode.SEND_SE_INVALIDATE if solicited else rdmap.Opcode.SEND_INVALIDATE
    assert {ulpdu[1] & 0x0F for ulpdu in both.fpdus_sent(0)} == {opcode}
    client.write(lent, 0, 0, 1)
    both.run()
    assert "invalid STag" in server.qp.end_reason
    server.rnic.deregister(lent)


def test_a_peer_invalidates_only_what_it_may() -> None:
    for access, kind, code in (
        (EVERYTHING, PROTECTION, rdmap.P_CANNOT_INVALIDATE),
        (None, PROTECTION, rdmap.P_INVALID_STAG),
    ):
        end = lone()
        stag = (
            0x55555555 if access is None else end.rnic.register(end.pd, bytearray(8), access).stag
        )
        end.recv((0, 8), wr_id=3)
        header = ddp.Untagged(True, rdmap.control(rdmap.Opcode.SEND_INVALIDATE), 0, 1, 0, stag)

        refused(end, fpdu(header), kind, code)
        assert ids(end.got()) == [(3, WcStatus.WR_FLUSH_ERR)]
        assert stag == 0x55555555 or stag in end.rnic.table.regions


def test_a_region_of_another_domain_is_not_the_peers_to_invalidate() -> None:

    end = lone()
    other = end.rnic.register(
        end.rnic.alloc_pd(), bytearray(8), EVERYTHING | ACCESS_REMOTE_INVALIDATE
    )
    end.recv((0, 8))
    header = ddp.Untagged(True, rdmap.control(rdmap.Opcode.SEND_INVALIDATE), 0, 1, 0, other.stag)
    refused(end, fpdu(header), PROTECTION, rdmap.P_STAG_NOT_ASSOCIATED)


def test_a_send_does_not_change_its_kind_on_the_way() -> None:
    end = lone()
    end.recv((0, 100))
    feed(end, send_fpdu(b"x" * 10, last=False))
    refused(
        end,
        untagged(rdmap.Opcode.SEND_SE, 0, 1, b"x" * 10, mo=10),
        OPERATION,
        rdmap.O_UNEXPECTED_OPCODE,
    )


# -- local invalidation ----------------------------------------------------------------------------


def test_a_local_invalidation_takes_its_turn_and_ends_the_stag() -> None:
    both = joined()
    client, server = both.client, both.server
    lent = client.rnic.register(client.pd, bytearray(b"y" * LARGE), EVERYTHING)
    client.qp.post_send(
        SendWR(
            1,
            sg=[SGE(lent.base, LARGE, lent.stag)],
            opcode=WR_RDMA_WRITE,
            rkey=server.region.stag,
            remote_addr=server.region.base,
        )
    )
    post(client, WR_LOCAL_INV, 2, invalidate_rkey=lent.stag)
    both.run()
    done = client.sent()
    assert ids(done) == [(1, OK), (2, OK)]
    assert done[1].opcode == WC_LOCAL_INV
    assert server.memory[:LARGE] == b"y" * LARGE
    server.read(lent, 0, 0, 8)
    both.run()
    assert "invalid STag" in client.qp.end_reason
    client.rnic.deregister(lent)
    assert server.sent()[0].status is WcStatus.REM_ACCESS_ERR


def test_an_invalidation_of_what_is_not_ours_is_a_local_fault() -> None:
    end = lone()
    post(end, WR_LOCAL_INV, 2, invalidate_rkey=0x12345678)
    drain(end)
    assert ids(end.sent()) == [(2, WcStatus.LOC_PROT_ERR)]
    assert end.qp.state is QpState.ERROR


def test_a_segment_on_its_way_into_an_invalidated_region_ends_the_connection() -> None:
    end = lone(access=EVERYTHING)
    octets = write_fpdu(end.region.stag, end.region.base, b"z" * LARGE)
    feed(end, octets[:20_000])
    post(end, WR_LOCAL_INV, 2, invalidate_rkey=end.region.stag)
    drain(end)
    assert end.qp.state is QpState.ERROR
    assert "invalidated" in end.qp.end_reason
    assert ids(end.sent())[0][0] == 2


@pytest.mark.parametrize("size", [1, SMALL, LARGE])
def test_a_read_with_invalidate_ends_its_sink_when_it_is_done(size: int) -> None:
    both = joined()
    client, server = both.client, both.server
    server.memory[:size] = pattern(size)
    sink = bytearray(size)
    lent = client.rnic.register(client.pd, sink, EVERYTHING)
    wr = SendWR(5, sg=[SGE(lent.base, size, lent.stag)], opcode=WR_RDMA_READ_WITH_INV)
    wr.set_wr_rdma(server.region.stag, server.region.base)
    client.qp.post_send(wr)
    both.run()
    assert ids(client.sent()) == [(5, OK)]
    assert sink == pattern(size)
    assert lent.stag not in client.rnic.table.regions
    client.rnic.deregister(lent)


# -- atomic operations -----------------------------------------------------------------------------

M = (1 << 64) - 1


@pytest.mark.parametrize(
    ("opcode", "wc_opcode", "old", "compare_add", "swap", "new"),
    [
        (WR_ATOMIC_FETCH_AND_ADD, WC_FETCH_ADD, 5, 7, 0, 12),
        (WR_ATOMIC_FETCH_AND_ADD, WC_FETCH_ADD, M, 1, 0, 0),
        (WR_ATOMIC_FETCH_AND_ADD, WC_FETCH_ADD, 1 << 63, 1 << 63, 0, 0),
        (WR_ATOMIC_FETCH_AND_ADD, WC_FETCH_ADD, 0x7FFFFFFFFFFFFFFF, 1, 0, 1 << 63),
        (WR_ATOMIC_CMP_AND_SWP, WC_COMP_SWAP, 5, 5, 9, 9),
        (WR_ATOMIC_CMP_AND_SWP, WC_COMP_SWAP, 5, 6, 9, 5),
        (WR_ATOMIC_CMP_AND_SWP, WC_COMP_SWAP, M, M, 0, 0),
        (WR_ATOMIC_SWAP, WC_SWAP, 5, 0, M, M),
    ],
)
def test_an_atomic_operation_changes_the_word_and_gives_its_old_value(
    opcode: int, wc_opcode: int, old: int, compare_add: int, swap: int, new: int
) -> None:
    both = joined()
    client, server = both.client, both.server
    server.memory[16:24] = old.to_bytes(8, sys.byteorder)
    wr = SendWR(3, sg=[client.sge(100, 8)], opcode=opcode)
    wr.set_wr_atomic(server.region.stag, server.region.base + 16, compare_add, swap)
    client.qp.post_send(wr)
    both.run()
    (wc,) = client.sent()
    assert (wc.wr_id, wc.status, wc.opcode, wc.byte_len) == (3, OK, wc_opcode, 8)
    assert word(server, 16) == new
    assert word(client, 100) == old


def test_reads_and_atomics_are_answered_in_their_order_within_the_peers_ird() -> None:
    client, server = ends()
    both = pair(offer=Offer(ord=2), answer=Offer(ird=2), client=client, server=server)
    for n in range(20):
        if n % 2:
            client.read(server.region, 1000 + 8 * n, 0, 8, wr_id=n)
        else:
            wr = SendWR(n, sg=[client.sge(1000 + 8 * n, 8)], opcode=WR_ATOMIC_FETCH_AND_ADD)
            wr.set_wr_atomic(server.region.stag, server.region.base, 1)
            client.qp.post_send(wr)
    both.run()
    assert ids(client.sent()) == [(n, OK) for n in range(20)]
    seen = [word(client, 1000 + 8 * n) for n in range(20)]
    assert seen == [(n + 1) // 2 for n in range(20)]


def test_a_write_behind_an_atomic_operation_does_not_overtake_it() -> None:
    both = joined()
    client, server = both.client, both.server
    server.memory[0:8] = (5).to_bytes(8, sys.byteorder)
    client.memory[0:8] = (100).to_bytes(8, sys.byteorder)
    wr = SendWR(1, sg=[client.sge(8, 8)], opcode=WR_ATOMIC_FETCH_AND_ADD)
    wr.set_wr_atomic(server.region.stag, server.region.base, 1)
    client.qp.post_send(wr)
    client.write(server.region, 0, 0, 8)
    both.run()
    assert (word(client, 8), word(server, 0)) == (5, 100)


def test_the_masks_of_an_atomic_request_choose_bits_and_fields() -> None:
    end = lone(access=EVERYTHING)
    end.memory[0:8] = (0x00FF_00FF_0000_00FF).to_bytes(8, sys.byteorder)
    base, stag = end.region.base, end.region.stag

    def add(data: int, mask: int) -> rdmap.AtomicRequest:
        return rdmap.AtomicRequest(rdmap.AtomicOpcode.FETCH_ADD, 7, stag, base, data, mask)

    def swap(data: int, mask: int) -> rdmap.AtomicRequest:
        return rdmap.AtomicRequest(rdmap.AtomicOpcode.SWAP, 7, stag, base, data, mask)

    def cmp_swap(data: int, mask: int, compare: int, compare_mask: int) -> rdmap.AtomicRequest:
        return rdmap.AtomicRequest(
            rdmap.AtomicOpcode.CMP_SWAP, 7, stag, base, data, mask, compare, compare_mask
        )

    requests = [
        # Fields of 16 bits: no carry out of the lowest, and the highest one wraps.
        (add(0xFF01_0001_0000_FF01, 0x8000_8000_8000_8000), 0x0000_0100_0000_0000),
        (swap(0x1_0000_00FF, 0xFF), 0x1_0000_00FF),  # which has no masks
        (cmp_swap(0, 0xFF, 0x1234_00FF, 0xFF), 0x1_0000_0000),
        (cmp_swap(M, M, 1, M), 0x1_0000_0000),
    ]
    for msn, (request, new) in enumerate(requests, 1):
        old = word(end, 0)
        feed(end, untagged(rdmap.Opcode.ATOMIC_REQUEST, 1, msn, request.emit()))
        (ulpdu,) = fpdus(drain(end))
        header = ddp.parse(ulpdu)
        assert isinstance(header, ddp.Untagged)
        assert (header.qn, header.msn, header.last) == (rdmap.QN_ATOMIC_RESPONSE, msn, True)
        response = rdmap.AtomicResponse.parse(ulpdu[ddp.UNTAGGED_LEN :])
        assert (response.identifier, response.value) == (7, old)
        assert word(end, 0) == new


def atomic_fpdu(end: End, *, to: int = 0, stag: int | None = None, msn: int = 1) -> bytes:
    request = rdmap.AtomicRequest(
        rdmap.AtomicOpcode.FETCH_ADD,
        1,
        end.region.stag if stag is None else stag,
        end.region.base + to,
        1,
    )
    return untagged(rdmap.Opcode.ATOMIC_REQUEST, rdmap.QN_READ_REQUEST, msn, request.emit())


def test_an_atomic_request_that_may_not_be_is_refused() -> None:
    end = lone(access=EVERYTHING & ~ACCESS_REMOTE_ATOMIC)
    refused(end, atomic_fpdu(end), PROTECTION, rdmap.P_ACCESS)
    end = lone(access=EVERYTHING)
    refused(end, atomic_fpdu(end, to=4), OPERATION, rdmap.O_CATASTROPHIC_STREAM)
    end = lone(access=EVERYTHING)
    refused(end, atomic_fpdu(end, to=-8), PROTECTION, rdmap.P_BASE_BOUNDS)
    end = lone(access=EVERYTHING)
    refused(end, atomic_fpdu(end, stag=0x7777), PROTECTION, rdmap.P_INVALID_STAG)
    end = lone(access=EVERYTHING)
    refused(end, atomic_fpdu(end, msn=2), UNTAGGED, ddp.U_MSN_RANGE)
    end = lone(access=EVERYTHING, ird=0)
    refused(end, atomic_fpdu(end), UNTAGGED, ddp.U_NO_BUFFER)
    end = lone(access=EVERYTHING)
    short = untagged(rdmap.Opcode.ATOMIC_REQUEST, 1, 1, bytes(51))
    refused(end, short, UNTAGGED, ddp.U_INVALID_MO)


def atomic_response(identifier: int = 0, msn: int = 1) -> bytes:
    payload = rdmap.AtomicResponse(identifier, 7).emit()
    return untagged(rdmap.Opcode.ATOMIC_RESPONSE, rdmap.QN_ATOMIC_RESPONSE, msn, payload)


def test_an_atomic_response_that_nobody_waits_for_is_refused() -> None:
    refused(lone(), atomic_response(), OPERATION, rdmap.O_UNEXPECTED_OPCODE)
    end = lone(access=EVERYTHING)
    end.read(end.region, 0, 0, 8)
    drain(end)
    refused(end, atomic_response(), OPERATION, rdmap.O_UNEXPECTED_OPCODE)
    for response, kind, code in (
        (atomic_response(identifier=9), OPERATION, rdmap.O_UNEXPECTED_OPCODE),
        (atomic_response(msn=2), UNTAGGED, ddp.U_MSN_RANGE),
        (tagged(rdmap.Opcode.READ_RESPONSE, 1, 0, bytes(8)), OPERATION, rdmap.O_UNEXPECTED_OPCODE),
    ):
        end = lone(access=EVERYTHING)
        wr = SendWR(1, sg=[end.sge(0, 8)], opcode=WR_ATOMIC_FETCH_AND_ADD)
        wr.set_wr_atomic(1, 0, 1)
        end.qp.post_send(wr)
        drain(end)
        refused(end, response, kind, code)
        assert ids(end.sent()) == [(1, WcStatus.WR_FLUSH_ERR)]


def test_fields_that_an_atomic_operation_does_not_use_are_sent_as_the_rfc_has_it() -> None:
    """RFC 7306 section 5.2.1."""
    sent = []
    for opcode in (WR_ATOMIC_FETCH_AND_ADD, WR_ATOMIC_SWAP, WR_ATOMIC_CMP_AND_SWP):
        end = lone()
        post(end, opcode, 1, (0, 8), compare_add=3, swap=4)
        (ulpdu,) = fpdus(drain(end))
        request = rdmap.AtomicRequest.parse(ulpdu[ddp.UNTAGGED_LEN :])
        masks = (request.swap_mask, request.compare_mask)
        sent.append((request.swap_data, request.compare_data, masks))
    assert sent == [(3, 0, (0, M)), (4, 0, (M, M)), (4, 3, (M, M))]


@pytest.mark.parametrize(
    ("fields", "length"),
    [({"remote_addr": 4}, 8), ({}, 4), ({"compare_add": 1 << 64}, 8), ({"swap": -1}, 8)],
)
def test_an_atomic_operation_that_cannot_be_is_einval(fields: dict[str, int], length: int) -> None:
    end = lone()
    with pytest.raises(OSError, match="atomic") as caught:
        post(end, WR_ATOMIC_CMP_AND_SWP, 1, (0, length), **fields)
    assert caught.value.errno == errno.EINVAL


# -- Immediate Data --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 8, SMALL, LARGE])
@pytest.mark.parametrize("solicited", [False, True])
def test_immediate_data_follows_its_write_and_takes_a_receive(size: int, solicited: bool) -> None:
    both = joined()
    client, server = both.client, both.server
    client.memory[:size] = pattern(size)
    server.recv(wr_id=6)
    post(
        client,
        WR_RDMA_WRITE_WITH_IMM,
        2,
        (0, size),
        rkey=server.region.stag,
        remote_addr=server.region.base + 1,
        imm_data=0x89ABCDEF,
        flags=SEND_SIGNALED | (SEND_SOLICITED if solicited else 0),
    )
    both.run()
    assert ids(client.sent()) == [(2, OK)]
    (wc,) = server.got()
    assert (wc.wr_id, wc.status, wc.opcode) == (6, OK, WC_RECV_RDMA_WITH_IMM)
    assert (wc.wc_flags, wc.imm_data) == (WC_FLAG_WITH_IMM, 0x89ABCDEF)
    assert server.memory[1 : size + 1] == pattern(size)
    last = both.fpdus_sent(0)[-1]
    opcode = rdmap.Opcode.IMMEDIATE_SE if solicited else rdmap.Opcode.IMMEDIATE
    assert last[1] & 0x0F == opcode
    assert last[ddp.UNTAGGED_LEN :] == struct.pack("!II", 0x89ABCDEF, 0)


def test_immediate_data_and_sends_share_one_sequence() -> None:
    both = joined()
    client, server = both.client, both.server
    for n in range(4):
        server.recv((100 * n, 100), wr_id=n)
    post(client, WR_SEND, 1, (0, 10))
    post(client, WR_SEND_WITH_IMM, 2, imm_data=2)
    post(client, WR_SEND, 3, (0, 30))
    post(client, WR_SEND_WITH_IMM, 4, imm_data=4)
    both.run()
    assert [(wc.wr_id, wc.byte_len, wc.imm_data) for wc in server.got()] == [
        (0, 10, 0),
        (1, 0, 2),
        (2, 30, 0),
        (3, 0, 4),
    ]


def test_immediate_data_has_no_payload_and_32_bits() -> None:
    end = lone()
    with pytest.raises(OSError, match="Immediate") as caught:
        post(end, WR_SEND_WITH_IMM, 1, (0, 1))
    assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError, match="32 bits") as caught:
        post(end, WR_SEND_WITH_IMM, 1, imm_data=1 << 32)
    assert caught.value.errno == errno.EINVAL


def test_immediate_data_that_breaks_a_rule_is_refused() -> None:
    immediate = rdmap.Opcode.IMMEDIATE
    refused(lone(), untagged(immediate, 0, 1, bytes(8)), UNTAGGED, ddp.U_NO_BUFFER)
    for octets, code in (
        (untagged(immediate, 0, 1, bytes(7)), ddp.U_INVALID_MO),
        (untagged(immediate, 0, 1, bytes(LARGE)), ddp.U_INVALID_MO),
        (untagged(immediate, 0, 1, bytes(8), last=False), ddp.U_INVALID_MO),
        (untagged(immediate, 0, 2, bytes(8)), ddp.U_MSN_RANGE),
    ):
        end = lone()
        end.recv((0, 8))
        refused(end, octets, UNTAGGED, code)
    end = lone()
    end.recv((0, 100))
    feed(end, send_fpdu(b"x" * 10, last=False))
    refused(end, untagged(immediate, 0, 1, bytes(8)), OPERATION, rdmap.O_UNEXPECTED_OPCODE)


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


# -- inline data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [WR_SEND, WR_RDMA_WRITE, WR_RDMA_WRITE_WITH_IMM])
@pytest.mark.parametrize("parts", [((0, 100),), ((0, 60), (60, 40)), ()])
def test_inline_data_is_what_the_memory_held_when_it_was_posted(
    opcode: int, parts: tuple[tuple[int, int], ...]
) -> None:
    both = joined()
    client, server = both.client, both.server
    size = sum(length for _, length in parts)
    client.memory[:size] = pattern(size)
    server.recv((0, 1000), wr_id=1)
    post(
        client,
        opcode,
        1,
        *parts,
        rkey=server.region.stag,
        remote_addr=server.region.base,
        flags=SEND_SIGNALED | SEND_INLINE,
    )
    client.memory[:size] = bytes(size)
    both.run()
    assert ids(client.sent()) == [(1, OK)]
    assert server.memory[:size] == pattern(size)


def test_inline_data_needs_no_key_but_has_a_limit() -> None:
    both = joined()
    client, server = both.client, both.server
    client.memory[:4] = b"abcd"
    server.recv((0, 1000))
    wr = SendWR(1, opcode=WR_SEND, send_flags=SEND_INLINE, sg=[SGE(client.region.base, 4, 0)])
    client.qp.post_send(wr)
    both.run()
    assert server.memory[:4] == b"abcd"
    for addr, length in ((client.region.base, 513), (0, 4)):
        wr = SendWR(1, opcode=WR_SEND, send_flags=SEND_INLINE, sg=[SGE(addr, length, 0)])
        with pytest.raises(OSError, match="inline") as caught:
            client.qp.post_send(wr)
        assert caught.value.errno == errno.EINVAL


# -- shared receive queues -------------------------------------------------------------------------


def sharing(count: int) -> tuple[list[Pair], End, list[str], list[None]]:
    """`count` connections to queue pairs of one RNIC that share a receive queue."""
    events: list[str] = []
    limits: list[None] = []
    first = End(2)
    srq = first.rnic.create_srq(first.pd, 64, 4, lambda: limits.append(None))
    first.rnic.on_event = lambda name, _: events.append(name)
    pairs = []
    for n in range(count):
        server = End(50 + n)
        server.rnic, server.pd, server.region = first.rnic, first.pd, first.region
        server.memory = first.memory
        server.qp = first.rnic.create_qp(first.pd, server.scq, server.rcq, CAP, None, srq)
        pairs.append(pair(client=End(10 + n), server=server))
    return pairs, first, events, limits


def test_queue_pairs_take_their_receives_from_a_shared_queue_in_turn() -> None:
    pairs, first, _, _ = sharing(3)
    (srq,) = first.rnic.srqs
    for n in range(6):
        srq.post_recv(RecvWR(n, sg=[first.sge(1000 * n, 1000)]))
    for n in range(6):
        client = pairs[n % 3].client
        client.memory[:4] = b"%04d" % n
        client.send((0, 4))
        pairs[n % 3].run()
        (wc,) = pairs[n % 3].server.got()
        assert (wc.wr_id, wc.status, wc.qp_num) == (n, OK, pairs[n % 3].server.qp.qp_num)
        assert first.memory[1000 * n : 1000 * n + 4] == b"%04d" % n
    pairs[0].client.send((0, 4))
    pairs[0].run()
    assert "without a posted receive" in pairs[0].server.qp.end_reason
    srq.post_recv(RecvWR(9, sg=[first.sge(0, 100)]))
    pairs[1].client.send((0, 4))
    pairs[1].run()
    assert ids(pairs[1].server.got()) == [(9, OK)]


def test_a_limit_is_told_once_when_too_few_receives_are_left() -> None:
    pairs, first, _, limits = sharing(1)
    (srq,) = first.rnic.srqs
    for n in range(4):
        srq.post_recv(RecvWR(n, sg=[first.sge(0, 100)]))
    srq.arm_limit(3)
    for told in (0, 1, 1):
        pairs[0].client.send((0, 4))
        pairs[0].run()
        assert (len(limits), srq.limit) == (told, 0 if told else 3)
    srq.arm_limit(2)
    assert len(limits) == 2


def test_a_queue_pair_that_ends_leaves_the_shared_receives_to_the_others() -> None:
    pairs, first, events, _ = sharing(2)
    (srq,) = first.rnic.srqs
    for n in range(3):
        srq.post_recv(RecvWR(n, sg=[first.sge(0, 100_000)]))
    pairs[0].client.send((0, 60_000))
    for _ in range(3):
        pairs[0].link.step()
    pairs[0].link.cut()
    assert [wc.status for wc in pairs[0].server.got()] in ([], [WcStatus.WR_FLUSH_ERR], [OK])
    assert events == ["IBV_EVENT_QP_LAST_WQE_REACHED"]
    pairs[1].client.send((0, 4))
    pairs[1].run()
    assert [wc.status for wc in pairs[1].server.got()] == [OK]
    with pytest.raises(OSError, match="use the shared") as caught:
        first.rnic.destroy_srq(srq)
    assert caught.value.errno == errno.EBUSY
    for each in pairs:
        first.rnic.destroy_qp(each.server.qp)
    first.rnic.destroy_srq(srq)


def test_what_a_shared_queue_cannot_take_is_refused() -> None:
    end = End()
    srq = end.rnic.create_srq(end.pd, 2, 1)
    for n in range(2):
        srq.post_recv(RecvWR(n, sg=[end.sge(0, 1)]))
    with pytest.raises(OSError, match="full") as caught:
        srq.post_recv(RecvWR(2))
    assert caught.value.errno == errno.ENOMEM
    for change in (lambda: srq.arm_limit(3), lambda: srq.resize(1), lambda: srq.arm_limit(-1)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            change()
        assert caught.value.errno == errno.EINVAL
    srq.resize(3)
    with pytest.raises(OSError, match="elements") as caught:
        srq.post_recv(RecvWR(2, sg=[end.sge(0, 1), end.sge(0, 1)]))
    assert caught.value.errno == errno.EINVAL
    other = end.rnic.alloc_pd()
    with pytest.raises(OSError, match="domain"):
        end.rnic.create_qp(other, end.scq, end.rcq, CAP, None, srq)
    qp = end.rnic.create_qp(end.pd, end.scq, end.rcq, CAP, None, srq)
    with pytest.raises(OSError, match="SRQ"):
        qp.post_recv(RecvWR(1))


# -- states ----------------------------------------------------------------------------------------


def test_a_drained_queue_pair_finishes_what_has_begun_and_begins_nothing() -> None:
    both = joined()
    client, server = both.client, both.server
    events: list[str] = []
    client.rnic.on_event = lambda name, _: events.append(name)
    client.read(server.region, 0, 0, LARGE, wr_id=1)
    assert client.qp.data_to_send()
    client.qp.modify(QpState.SQD)
    for wr_id in (2, 3):
        client.write(server.region, 0, 0, 8, wr_id=wr_id)
    both.run()
    assert ids(client.sent()) == [(1, OK)]
    assert events == ["IBV_EVENT_SQ_DRAINED"]
    # The peer's requests are still answered.
    server.read(client.region, 0, 0, 8, wr_id=7)
    both.run()
    assert ids(server.sent()) == [(7, OK)]
    client.qp.modify(QpState.RTS)
    both.run()
    assert ids(client.sent()) == [(2, OK), (3, OK)]
    assert len(events) == 1


def test_a_queue_pair_in_error_flushes_and_one_that_was_reset_begins_anew() -> None:
    both = joined()
    client = both.client
    client.recv((0, 8), wr_id=1)
    client.qp.modify(QpState.SQD)
    client.write(both.server.region, 0, 0, 8, wr_id=2)
    client.qp.modify(QpState.ERROR)
    assert ids(client.sent()) == [(2, WcStatus.WR_FLUSH_ERR)]
    assert ids(client.got()) == [(1, WcStatus.WR_FLUSH_ERR)]
    both.run()
    assert both.server.qp.state is QpState.ERROR
    client.qp.modify(QpState.RESET)
    with pytest.raises(OSError, match="RESET"):
        client.recv((0, 8))
    client.qp.modify(QpState.INIT)
    again = pair(client=client, server=End(5))
    client.write(again.server.region, 0, 0, 8, wr_id=3)
    again.run()
    assert ids(client.sent()) == [(3, OK)]


def test_closing_a_queue_pair_that_has_ended_changes_nothing() -> None:
    reasons: list[str] = []
    end = End()
    end.qp = end.rnic.create_qp(end.pd, end.scq, end.rcq, CAP, reasons.append)
    end.qp.connected(crc=True, ird=1, ord=1, held=False, max_ulpdu=65534)
    end.qp.stream_lost("reset")
    end.qp.close()
    assert (reasons, end.qp.end_reason) == (["reset"], "reset")


def test_a_change_of_state_that_there_is_none_of_is_a_state_error() -> None:
    end = lone()
    for state in (QpState.RESET, QpState.INIT, QpState.CLOSING, QpState.TERMINATE):
        with pytest.raises(StateError):
            end.qp.modify(state)
    with pytest.raises(StateError):
        End().qp.modify(QpState.RTS)
    with pytest.raises(StateError):
        End().qp.modify(QpState.SQD)


def test_a_fence_waits_for_reads_and_atomics_before_it() -> None:
    both = joined()
    client, server = both.client, both.server
    server.memory[:8] = (41).to_bytes(8, sys.byteorder)
    wr = SendWR(1, sg=[client.sge(0, 8)], opcode=WR_ATOMIC_FETCH_AND_ADD)
    wr.set_wr_atomic(server.region.stag, server.region.base, 1)
    client.qp.post_send(wr)
    # What the operation brought here goes out again.
    client.write(server.region, 0, 100, 8, 2, SEND_SIGNALED | SEND_FENCE)
    both.run()
    assert ids(client.sent()) == [(1, OK), (2, OK)]
    assert (word(server, 0), word(server, 100)) == (42, 41)


@pytest.mark.parametrize("size", [SMALL, LARGE // 2])
@pytest.mark.parametrize("cut", [None, 7])
def test_tagged_and_untagged_segments_of_a_peer_may_interleave(size: int, cut: int | None) -> None:
    """RFC 5041 section 5: those of one message are in order, whatever comes between them."""
    end = lone()
    end.recv((0, 2 * size), wr_id=1)
    peer_stag = 0x1234
    end.qp.post_send(
        SendWR(
            2,
            sg=[end.sge(2 * size, 2 * size)],
            opcode=WR_RDMA_READ,
            rkey=peer_stag,
        )
    )
    drain(end)
    sent, read, written = pattern(2 * size, 1), pattern(2 * size, 2), pattern(size, 3)
    sink, stag = end.region.base + 2 * size, end.region.stag
    response = rdmap.Opcode.READ_RESPONSE
    octets = b"".join(
        (
            send_fpdu(sent[:size], last=False),
            tagged(response, stag, sink, read[:size], last=False),
            write_fpdu(stag, end.region.base + 4 * size, written[: size // 2], last=False),
            send_fpdu(sent[size:], mo=size),
            write_fpdu(stag, end.region.base + 4 * size + size // 2, written[size // 2 :]),
            tagged(response, stag, sink + size, read[size:]),
        )
    )
    feed(end, octets, None if cut is None else random.Random(cut))
    assert ids(end.got()) == [(1, OK)]
    assert ids(end.sent()) == [(2, OK)]
    assert end.memory[: 5 * size] == sent + read + written


def test_sequence_numbers_wrap_at_32_bits() -> None:
    client, server = ends()
    last = 0xFFFFFFFE
    both = pair(offer=Offer(), client=client, server=server)
    client.qp.tx.send_msn = server.qp.inbound.receive_msn = last
    client.qp.tx.read_msn = server.qp.inbound.request_msn = last
    for n in range(5):
        server.recv((0, 8), wr_id=n)
        client.send((0, 8), wr_id=n)
        client.read(server.region, 0, 0, 8, wr_id=n + 10)
    both.run()
    assert ids(server.got()) == [(n, OK) for n in range(5)]
    assert len(client.sent()) == 10
    assert client.qp.tx.send_msn == client.qp.tx.read_msn == 3
