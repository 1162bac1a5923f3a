"""How octets get from the stream into memory: the gears of the receiver, and what they copy."""

from __future__ import annotations

import random

import pytest

from steertag.rdma.connection import Offer
from steertag.rdma.qp import QpCap
from steertag.rdma.qp_rx import BUFFER_OCTETS, DIRECT_MIN, SMALL_RUN
from steertag.rdma.qp_tx import MAX_PARTS
from tests.sim.ends import End, drain, feed, ids, lone, pair, pattern, send_fpdu, write_fpdu

IOV_MAX = 1024
BULK = 3 << 20


@pytest.mark.parametrize("crc", [True, False])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_no_octet_of_a_bulk_transfer_is_staged(seed: int | None, crc: bool) -> None:
    """Not on either side, not by Write, Read or Send, however the stream is cut."""
    rng = None if seed is None else random.Random(seed)
    client, server = End(1, BULK), End(2, BULK)
    joined = pair(rng, Offer(crc=crc), Offer(crc=crc), client=client, server=server)
    client.memory[:] = pattern(BULK)
    client.write(server.region, 0, 0, BULK)
    joined.run()
    assert server.memory == client.memory
    client.memory[:] = bytes(BULK)
    client.read(server.region, 0, 0, BULK)
    joined.run()
    assert server.memory == client.memory
    server.memory[:] = bytes(BULK)
    server.recv((0, BULK))
    client.send((0, BULK))
    joined.run()
    assert server.memory == client.memory
    assert len(client.sent()) == 3
    assert client.qp.counters.staged_bytes == server.qp.counters.staged_bytes == 0
    assert server.qp.counters.placed_bytes == 2 * BULK
    assert client.qp.counters.placed_bytes == BULK


def test_every_octet_of_many_small_writes_is_staged() -> None:
    """The other gear, on purpose: many FPDUs to a read, a copy of each payload."""
    joined = pair()
    client, server = joined.client, joined.server
    client.memory[:] = pattern(len(client.memory))
    for n in range(200):
        client.write(server.region, n * 64, n * 64, 64)
    joined.run()
    assert server.memory[: 200 * 64] == client.memory[: 200 * 64]
    assert server.qp.counters.staged_bytes == 200 * 64
    assert server.qp.counters.placed_bytes == 0
    assert client.qp.counters.staged_bytes == 200 * 64


def wanted(end: End) -> int:
    return sum(map(len, end.engine.buffers()))


def fill(end: End, octets: bytes) -> int:
    """Feed the octets; gives how many reads it took."""
    reads = 0
    while octets:
        size = min(len(octets), wanted(end))
        feed(end, octets[:size])
        octets = octets[size:]
        reads += 1
    return reads


def test_the_first_read_takes_no_more_than_a_header() -> None:
    end = lone()
    assert wanted(end) == 16


def test_a_read_never_goes_beyond_the_next_header_before_small_fpdus_have_come() -> None:
    """So that a large segment is never found in the buffer."""
    end = lone()
    small = write_fpdu(end.region.stag, end.region.base, bytes(100))
    feed(end, small[:16])
    assert wanted(end) == len(small) - 16 + 16


def test_the_payload_of_a_large_segment_goes_straight_into_the_region() -> None:
    end = lone()
    octets = write_fpdu(end.region.stag, end.region.base + 3, pattern(60_000))
    feed(end, octets[:16])
    buffers = end.engine.buffers()
    assert buffers[0].obj is end.memory
    assert len(buffers[0]) == 60_000
    assert sum(map(len, buffers[1:])) == len(octets) - 16 - 60_000 + 16  # trailer, next header
    assert fill(end, octets[16:]) == 1
    assert end.memory[3:60_003] == pattern(60_000)


def test_a_send_over_several_elements_goes_straight_into_each() -> None:
    end = lone()
    end.recv((0, 20_000), (50_000, 20_000), (100_000, 20_000))
    octets = send_fpdu(pattern(60_000))
    feed(end, octets[:20])
    buffers = end.engine.buffers()
    assert [len(view) for view in buffers[:3]] == [20_000] * 3
    assert all(view.obj is end.memory for view in buffers[:3])
    feed(end, octets[20:], random.Random(1))
    assert end.memory[50_000:70_000] == pattern(60_000)[20_000:40_000]
    assert end.qp.counters.staged_bytes <= 20  # what the read of the header took of the payload


@pytest.mark.parametrize(("size", "straight"), [(DIRECT_MIN - 100, False), (DIRECT_MIN, True)])
def test_the_threshold_between_the_gears_is_direct_min(size: int, straight: bool) -> None:
    end = lone()
    fill(end, write_fpdu(end.region.stag, end.region.base, pattern(size)))
    assert end.memory[:size] == pattern(size)
    assert (end.qp.counters.placed_bytes > 0) is straight
    assert (end.qp.counters.staged_bytes == 0) is straight


def test_after_a_run_of_small_fpdus_the_receiver_reads_ahead_more_and_more() -> None:
    end = lone()
    small = write_fpdu(end.region.stag, end.region.base, bytes(64))
    assert fill(end, small * SMALL_RUN) >= SMALL_RUN
    first = wanted(end)
    assert first > len(small) * 8
    many = small * (4 * BUFFER_OCTETS // len(small))
    reads = fill(end, many)
    assert wanted(end) > first
    assert reads < len(many) // len(small) // 100


def test_a_large_segment_after_small_ones_ends_reading_ahead() -> None:
    end = lone()
    small = write_fpdu(end.region.stag, end.region.base, bytes(64))
    fill(end, small * 100)
    large = write_fpdu(end.region.stag, end.region.base, pattern(60_000))
    fill(end, large)
    staged = end.qp.counters.staged_bytes
    assert end.memory[:60_000] == pattern(60_000)
    fill(end, large * 4)
    assert end.qp.counters.staged_bytes == staged


def test_octets_read_ahead_of_a_large_segment_are_counted_as_staged() -> None:
    end = lone()
    small = write_fpdu(end.region.stag, end.region.base, bytes(64)) * 100
    fill(end, small + write_fpdu(end.region.stag, end.region.base, pattern(60_000)))
    assert end.memory[:60_000] == pattern(60_000)
    counters = end.qp.counters
    assert counters.staged_bytes > 6400
    assert counters.staged_bytes + counters.placed_bytes == 6400 + 60_000


def test_staged_and_placed_add_up_to_what_arrived() -> None:
    """To the octet, whatever mixture of sizes came."""
    rng = random.Random(3)
    for _ in range(5):
        end = lone()
        octets, total = b"", 0
        for _ in range(60):
            size = rng.choice([0, 1, 64, 500, 4000, DIRECT_MIN, 20_000, 65_000])
            octets += write_fpdu(end.region.stag, end.region.base + 5, pattern(size, size))
            total += size
        feed(end, octets, rng)
        counters = end.qp.counters
        assert counters.staged_bytes + counters.placed_bytes == total
        assert counters.rx_bytes == len(octets)
        assert counters.rx_fpdus == 60


def test_counters_of_both_ends_agree_on_the_stream() -> None:
    joined = pair(random.Random(1))
    joined.client.write(joined.server.region, 0, 0, 200_000)
    joined.client.read(joined.server.region, 0, 0, 100)
    joined.run()
    client, server = joined.client.qp.counters, joined.server.qp.counters
    assert client.tx_bytes == server.rx_bytes
    assert server.tx_bytes == client.rx_bytes
    assert client.tx_fpdus == server.rx_fpdus
    assert server.tx_fpdus == client.rx_fpdus == 1


def test_one_call_to_the_stream_never_has_more_parts_than_the_kernel_takes() -> None:
    end = lone(max_ulpdu=128)
    end.send(*[(n, 20) for n in range(8)])
    end.send((0, 100_000))
    assert len(end.engine.data_to_send()) <= IOV_MAX
    end = lone()
    for n in range(200):
        end.write(end.region, n, 0, 2000)
    assert len(end.engine.data_to_send()) <= MAX_PARTS + 3


def test_posts_while_the_stream_takes_nothing_do_not_pile_up_parts() -> None:
    """Each read finds new small Writes to add to what waits already."""
    end = lone(cap=QpCap(max_send_wr=4096))
    for n in range(2000):
        end.write(end.region, 0, n, 8, wr_id=n)
        assert len(end.engine.data_to_send()) <= IOV_MAX
    drain(end)
    assert [wr_id for wr_id, _ in ids(end.sent())] == list(range(2000))
