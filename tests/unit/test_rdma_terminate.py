"""Terminates, sent and received; and requests that end a connection on our own side."""

from __future__ import annotations

import errno

import pytest

from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    WcStatus,
)
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SendWR
from steertag.wire import ddp, rdmap
from tests.sim.ends import (
    SIZE,
    drain,
    feed,
    fpdus,
    ids,
    lone,
    pair,
    terminates,
    untagged,
    write_fpdu,
)
from tests.sim.refusals import (
    LARGE,
    LOCAL,
    TAGGED,
    UNTAGGED,
    refused,
    terminated_with,
)

READ_REQUEST = rdmap.ReadRequest(9, 9, 10, 1, 1).emit()


# -- the peer is told, and what it tells -----------------------------------------------------------


def test_both_ends_of_a_refused_write_know_why() -> None:
    joined = pair()
    client, server = joined.client, joined.server
    client.write(server.region, 0, SIZE, 10, wr_id=1)
    client.recv((0, 10), wr_id=2)
    server.recv((0, 10), wr_id=3)
    joined.run()
    assert client.qp.state is QpState.ERROR
    assert server.qp.state is QpState.ERROR
    assert "outside STag" in server.qp.end_reason
    assert "Terminate" in client.qp.end_reason
    # The Write had left, which is all that iWARP completes; the error reaches what comes after.
    assert ids(client.sent()) == [(1, WcStatus.SUCCESS)]
    (flushed,) = client.got()
    assert (flushed.wr_id, flushed.status) == (2, WcStatus.WR_FLUSH_ERR)
    assert flushed.vendor_err == ddp.LAYER_DDP << 12 | ddp.ETYPE_TAGGED << 8 | ddp.T_BASE_BOUNDS
    assert ids(server.got()) == [(3, WcStatus.WR_FLUSH_ERR)]
    assert (client.qp.counters.terminates_received, server.qp.counters.terminates_sent) == (1, 1)


def test_a_refused_read_completes_with_a_remote_access_error() -> None:
    joined = pair()
    client, server = joined.client, joined.server
    for wr_id in (1, 2):
        client.read(server.region, 0, SIZE, 10, wr_id=wr_id)
    joined.run()
    assert ids(client.sent()) == [(1, WcStatus.REM_ACCESS_ERR), (2, WcStatus.WR_FLUSH_ERR)]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("quote", [False, True])
def test_a_terminate_is_understood_in_the_rfcs_form_and_in_siws(swapped: bool, quote: bool) -> None:
    end = lone()
    end.recv((0, 10), wr_id=1)
    end.read(end.region, 0, 0, 10, wr_id=2)
    end.write(end.region, 0, 0, 10, wr_id=3)
    drain(end)
    terminate = rdmap.Terminate(
        rdmap.LAYER_RDMAP,
        rdmap.ETYPE_PROTECTION,
        rdmap.P_ACCESS,
        segment_length=46 if quote else None,
        ddp_header=ddp.Untagged(True, rdmap.control(1), 1, 1).emit() if quote else b"",
        rdma_header=READ_REQUEST if quote else b"",
        swapped=swapped,
    )
    feed(end, untagged(rdmap.Opcode.TERMINATE, 2, 1, terminate.emit()))
    assert end.qp.state is QpState.ERROR
    assert drain(end) == b""
    assert ids(end.sent()) == [(2, WcStatus.REM_ACCESS_ERR), (3, WcStatus.SUCCESS)]
    (wc,) = end.got()
    assert (wc.status, wc.vendor_err) == (WcStatus.WR_FLUSH_ERR, 0x0102)
    assert end.qp.counters.terminates_received == 1


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x01\x02\xc0", b"\x10\x00\xe0\x00" + bytes(3)])
def test_a_terminate_that_can_not_be_read_still_ends_the_stream(payload: bytes) -> None:
    end = lone()
    feed(end, untagged(rdmap.Opcode.TERMINATE, 2, 1, payload))
    assert end.qp.state is QpState.ERROR
    assert drain(end) == b""


@pytest.mark.parametrize("size", [257, LARGE])
def test_a_terminate_of_a_length_that_no_terminate_has_is_refused(size: int) -> None:
    refused(lone(), untagged(7, 2, 1, bytes(size)), UNTAGGED, ddp.U_TOO_LONG)


def test_what_follows_a_terminate_is_not_looked_at() -> None:
    end = lone()
    octets = untagged(7, 2, 1, rdmap.Terminate(0, 2, 0xFF).emit())
    feed(end, octets + write_fpdu(end.region.stag, end.region.base, b"late") + octets)
    assert not any(end.memory)
    assert end.qp.counters.terminates_received == 1


# -- behind a Terminate of our own -----------------------------------------------------------------


def test_nothing_is_sent_behind_a_terminate() -> None:
    end = lone()
    for wr_id in range(3):
        end.send((0, 10), wr_id=wr_id)
    feed(end, write_fpdu(0, 0, b"x"))
    sent = drain(end)
    assert len(terminates(sent)) == len(fpdus(sent)) == 1
    assert end.qp.state is QpState.ERROR
    assert ids(end.sent()) == [(wr_id, WcStatus.WR_FLUSH_ERR) for wr_id in range(3)]


def test_what_is_posted_while_a_terminate_is_on_its_way_is_flushed_in_order() -> None:
    end = lone()
    end.send((0, 10), wr_id=1)
    end.recv((0, 10), wr_id=11)
    feed(end, write_fpdu(0, 0, b"x"))
    assert end.qp.state is QpState.TERMINATE
    end.send((0, 10), wr_id=2)
    end.recv((0, 10), wr_id=12)
    assert len(terminates(drain(end))) == 1
    end.send((0, 10), wr_id=3)
    end.recv((0, 10), wr_id=13)
    flushed = WcStatus.WR_FLUSH_ERR
    assert ids(end.sent()) == [(1, flushed), (2, flushed), (3, flushed)]
    assert ids(end.got()) == [(11, flushed), (12, flushed), (13, flushed)]


def test_the_first_error_wins() -> None:
    end = lone()
    feed(end, write_fpdu(0, 0, b"x"))
    reason = end.qp.end_reason
    feed(end, write_fpdu(end.region.stag, end.region.base + SIZE, b"x"))
    end.rnic.deregister(end.region)
    terminated_with(end, TAGGED, ddp.T_INVALID_STAG)
    assert end.qp.end_reason == reason


def test_a_stream_lost_under_a_terminate_does_not_hide_the_cause() -> None:
    for lose in (lambda end: end.engine.stream_lost("reset"), lambda end: end.engine.eof()):
        end = lone()
        feed(end, write_fpdu(0, 0, b"x"))
        lose(end)
        assert end.qp.state is QpState.ERROR
        assert "invalid STag" in end.qp.end_reason


def test_a_frame_that_is_half_sent_is_completed_before_the_terminate() -> None:
    end = lone()
    end.memory[:LARGE] = b"\x07" * LARGE
    end.write(end.region, 0, 0, LARGE, wr_id=1)
    octets = b"".join(end.engine.data_to_send())
    end.engine.sent(1000)
    feed(end, write_fpdu(0, 0, b"x"))
    sent = octets[:1000] + drain(end)
    assert sent[: len(octets)] == octets
    assert len(terminates(sent)) == 1
    assert ids(end.sent()) == [(1, WcStatus.SUCCESS)]


# -- local requests --------------------------------------------------------------------------------


def test_a_request_on_local_memory_outside_its_region_completes_with_a_protection_error() -> None:
    for offset, length in ((-1, 10), (SIZE - 9, 10), (SIZE, 1)):
        end = lone()
        end.write(end.region, 0, 0, 4, wr_id=1)
        end.write(end.region, offset, 0, length, wr_id=2)
        end.write(end.region, 0, 0, 4, wr_id=3)
        sent = drain(end)
        (terminate,) = terminates(sent)
        assert (terminate.layer, terminate.etype, terminate.code) == (*LOCAL, 0)
        assert ids(end.sent()) == [
            (1, WcStatus.SUCCESS),
            (2, WcStatus.LOC_PROT_ERR),
            (3, WcStatus.WR_FLUSH_ERR),
        ]
        assert end.qp.counters.protocol_errors == 0
        assert end.qp.end_reason.startswith("local fault")


def test_memory_of_another_domain_is_no_local_memory_either() -> None:
    end = lone()
    other = end.rnic.register(end.rnic.alloc_pd(), end.memory, ACCESS_LOCAL_WRITE)
    end.region, mine = other, end.region
    end.send((0, 10), wr_id=1)
    end.region = mine
    drain(end)
    assert ids(end.sent()) == [(1, WcStatus.LOC_PROT_ERR)]


def test_a_read_into_memory_without_local_write_completes_with_a_protection_error() -> None:
    end = lone()
    source = end.rnic.register(end.pd, bytes(100), ACCESS_REMOTE_READ)
    end.region, mine = source, end.region
    end.read(mine, 0, 0, 10, wr_id=1)
    drain(end)
    assert ids(end.sent()) == [(1, WcStatus.LOC_PROT_ERR)]


def test_a_second_element_outside_its_region_fails_the_request() -> None:
    end = lone(max_ulpdu=1000)
    end.send((0, 1500), (SIZE - 1, 2), wr_id=1)
    drain(end)
    assert ids(end.sent()) == [(1, WcStatus.LOC_PROT_ERR)]


# -- what can't be posted --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rkey", "addr", "length"),
    [(-1, 0, 9), (1 << 32, 0, 9), (5, -1, 9), (5, 1 << 64, 9), (5, (1 << 64) - 9, LARGE)],
)
def test_a_remote_address_that_no_header_can_hold_is_einval(
    rkey: int, addr: int, length: int
) -> None:
    for opcode in (0, 4):
        end = lone()
        wr = SendWR(1, sg=[end.sge(0, length)], opcode=opcode, rkey=rkey, remote_addr=addr)
        with pytest.raises(OSError, match="remote") as caught:
            end.qp.post_send(wr)
        assert caught.value.errno == errno.EINVAL
        assert drain(end) == b""


def test_elements_of_negative_length_are_einval() -> None:
    for parts in ([(0, -1)], [(0, 10), (0, -1)]):
        end = lone()
        with pytest.raises(OSError, match="octets"):
            end.send(*parts)
        with pytest.raises(OSError, match="octets"):
            end.recv(*parts)
        assert drain(end) == b""
