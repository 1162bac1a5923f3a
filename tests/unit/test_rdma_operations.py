"""Send with Invalidate, Reads that invalidate, atomic operations, Immediate Data, inline data.

RFC 5040 sections 3 and 5.3, RFC 7306.
"""

from __future__ import annotations

import errno
import struct
import sys

import pytest

from steertag.rdma.connection import Offer
from steertag.rdma.constants import (
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_INVALIDATE,
    SEND_INLINE,
    SEND_SIGNALED,
    SEND_SOLICITED,
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
    WR_LOCAL_INV,
    WR_RDMA_READ_WITH_INV,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
    WcStatus,
)
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SGE, SendWR
from steertag.wire import ddp, rdmap
from tests.sim.ends import (
    End,
    drain,
    feed,
    fpdu,
    fpdus,
    ids,
    lone,
    pair,
    pattern,
    send_fpdu,
    tagged,
    untagged,
    write_fpdu,
)
from tests.sim.operations import EVERYTHING, OK, ends, joined, post, word
from tests.sim.refusals import LARGE, OPERATION, PROTECTION, SMALL, UNTAGGED, refused

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
