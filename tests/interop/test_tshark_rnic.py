"""tshark finds nothing wrong with what our RNIC sends, and we read it back ourselves."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from steertag.observe.pcap import Endpoint, PcapWriter
from steertag.rdma.connection import Offer
from steertag.rdma.constants import WR_RDMA_READ, WR_RDMA_WRITE, WR_SEND, WcStatus
from steertag.wire.rdmap import Opcode
from tests.interop.rnic_pair import Pair
from tests.interop.tshark import judge
from tests.wire.mpa_stream import connections

CLIENT = Endpoint("10.0.0.1", 40000)
SERVER = Endpoint("10.0.0.2", 7471)


def exchange(pair: Pair) -> None:
    """Every operation both ways, over lengths that need every PAD and more than one FPDU."""
    client, server = pair.client, pair.server
    client.memory[:] = random.Random(3).randbytes(len(client.memory))
    for end, peer in ((client, server), (server, client)):
        for length in (0, 1, 2, 3, 4, 1460, 200_000):
            end.post(WR_RDMA_WRITE, 0, length, peer)
            end.post(WR_RDMA_READ, 0, length, peer)
            peer.post_recv(250_000, 50_000)
            end.post(WR_SEND, 200_000, length // 5, None)
            pair.run()
    for end in (client, server):
        done = end.completions()
        assert len(done) == 4 * 7
        assert {wc.status for wc in done} == {WcStatus.SUCCESS}
    assert server.memory[:200_000] == client.memory[:200_000]


def expected_terminate(pair: Pair) -> None:
    """A Write under an STag that the peer never gave out: refused, and the stream ends."""
    client, server = pair.client, pair.server
    before = bytes(server.memory)
    server.region.stag, given = server.region.stag ^ 1, server.region.stag
    client.post(WR_RDMA_WRITE, 0, 100, server)
    server.region.stag = given
    pair.run()
    assert bytes(server.memory) == before
    assert client.qp.end_reason.startswith("peer sent a Terminate")


@pytest.mark.parametrize("max_ulpdu", [1448, 65534])
def test_traffic_of_the_rnic_is_well_formed_and_every_crc_is_good(
    max_ulpdu: int, tmp_path: Path
) -> None:
    path = tmp_path / "rnic.pcap"
    with PcapWriter(path) as writer:
        tap = writer.tap(CLIENT, SERVER)
        offer = Offer(private_data=b"a file, please", max_ulpdu=max_ulpdu)
        pair = Pair(tap, offer, Offer(private_data=b"here it is", max_ulpdu=max_ulpdu))
        exchange(pair)
        expected_terminate(pair)
        tap.close()
    (connection,) = connections(path.read_bytes())
    segments = [segment for side in connection.directions for segment in side.segments]
    fpdus = pair.client.qp.counters.tx_fpdus + pair.server.qp.counters.tx_fpdus
    verdict = judge(path)
    assert (verdict.good, verdict.bad) == (fpdus, 0)
    assert (verdict.malformed, verdict.bad_checksums, verdict.start_frames) == (0, 0, 2)
    assert verdict.opcodes == Counter(segment.opcode for segment in segments)
    assert set(verdict.opcodes) == {
        Opcode.WRITE,
        Opcode.READ_REQUEST,
        Opcode.READ_RESPONSE,
        Opcode.SEND,
        Opcode.TERMINATE,
    }
    # What tshark was shown is what our codecs make of the same octets.
    assert [side.rest for side in connection.directions] == [b"", b""]
    assert all(segment.octets == segment.emitted(crc=True) for segment in segments)
    assert connection.client.start.private_data.endswith(b"a file, please")
    assert connection.server.start.private_data.endswith(b"here it is")


def test_traffic_without_crc_is_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "rnic.pcap"
    with PcapWriter(path) as writer:
        tap = writer.tap(CLIENT, SERVER)
        exchange(Pair(tap, Offer(crc=False), Offer(crc=False)))
    (connection,) = connections(path.read_bytes())
    assert not connection.crc
    verdict = judge(path)
    assert (verdict.good, verdict.bad, verdict.malformed) == (0, 0, 0)
    assert verdict.opcodes.total() == sum(len(side.segments) for side in connection.directions)


def test_a_revision_1_set_up_is_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "rnic.pcap"
    with PcapWriter(path) as writer:
        tap = writer.tap(CLIENT, SERVER)
        exchange(Pair(tap, Offer(revision=1, private_data=b"old"), Offer()))
    (connection,) = connections(path.read_bytes())
    assert (connection.client.start.revision, connection.server.start.revision) == (1, 1)
    verdict = judge(path)
    assert (verdict.good, verdict.bad, verdict.malformed) == (
        sum(len(side.segments) for side in connection.directions),
        0,
        0,
    )
