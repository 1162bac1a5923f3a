"""tshark finds nothing wrong with what our RNIC sends, and we read it back ourselves."""

from __future__ import annotations

import random
import struct
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from steertag import verbs
from steertag.observe.pcap import Endpoint, PcapWriter
from steertag.rdma.connection import Offer
from steertag.rdma.constants import (
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
    WR_SEND_WITH_IMM,
    WR_SEND_WITH_INV,
    WcStatus,
)
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SendWR
from steertag.wire.rdmap import Opcode
from tests.interop import tshark
from tests.interop.rnic_pair import Pair
from tests.interop.tshark import judge
from tests.wire.mpa_stream import connections

CLIENT = Endpoint("10.0.0.1", 40000)
SERVER = Endpoint("10.0.0.2", 7471)
TIMEOUT = 30.0


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


def fields(path: Path, opcode: Opcode, *names: str) -> list[list[int]]:
    """What tshark reads in the fields of each FPDU with an opcode."""
    lines = tshark.shown(
        path,
        *("-T", "fields", "-Y", f"iwarp_rdma.opcode == {int(opcode)}"),
        *(option for name in names for option in ("-e", name)),
    ).splitlines()
    return [[int(value, 0) for value in line.split("\t")] for line in lines]


def test_atomic_operations_and_invalidation_are_read_as_they_were_meant(tmp_path: Path) -> None:
    path = tmp_path / "rnic.pcap"
    with PcapWriter(path) as writer:
        pair = Pair(writer.tap(CLIENT, SERVER), Offer(), Offer())
        client, server = pair.client, pair.server
        region = server.region
        server.memory[:8] = (40).to_bytes(8, sys.byteorder)
        for opcode, operand, swap in (
            (WR_ATOMIC_FETCH_AND_ADD, 2, 0),
            (WR_ATOMIC_CMP_AND_SWP, 42, 7),
        ):
            wr = SendWR(sg=[client.sge(0, 8)], opcode=opcode)
            wr.set_wr_atomic(region.stag, region.base, operand, swap)
            client.qp.post_send(wr)
            pair.run()
        server.post_recv(0, 0)
        server.post_recv(0, 100)
        client.qp.post_send(SendWR(opcode=WR_SEND_WITH_IMM, imm_data=5))
        client.qp.post_send(
            SendWR(sg=[client.sge(0, 10)], opcode=WR_SEND_WITH_INV, invalidate_rkey=region.stag)
        )
        pair.run()
    assert server.qp.state is QpState.RTS
    verdict = judge(path)
    fpdus = client.qp.counters.tx_fpdus + server.qp.counters.tx_fpdus
    assert (verdict.good, verdict.bad, verdict.malformed) == (fpdus, 0, 0)
    place = ("atomic.remote_stag", "atomic.remote_tagged_offset", "atomic.request_identifier")
    requests = fields(path, Opcode.ATOMIC_REQUEST, *(f"iwarp_rdma.{name}" for name in place))
    assert requests == [[region.stag, region.base, 0], [region.stag, region.base, 1]]
    assert "Add Data: 2" in verdict.text
    assert "Swap Data: 7" in verdict.text
    assert "Compare Data: 42" in verdict.text
    answer = "iwarp_rdma.atomic.original_remote_data_value"
    assert fields(path, Opcode.ATOMIC_RESPONSE, "iwarp_ddp.qn", "iwarp_ddp.msn", answer) == [
        [3, 1, 40],
        [3, 2, 42],
    ]
    assert fields(path, Opcode.SEND_INVALIDATE, "iwarp_rdma.inval_stag") == [[region.stag]]


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


def test_a_connection_over_the_hosts_tcp_is_recorded_by_its_tap(tmp_path: Path) -> None:
    """The same through the verbs, with the octets that really went over a socket."""
    path = tmp_path / "verbs.pcap"
    payload = random.Random(4).randbytes(1_000_000)
    with (
        PcapWriter(path) as writer,
        verbs.CMID(verbs.AddrInfo(src="127.0.0.1", flags=verbs.RAI_PASSIVE)) as listener,
        ThreadPoolExecutor(1) as server,
    ):
        listener.listen()
        host, port = listener.getsockname()
        serving = server.submit(serve_one, listener, len(payload))
        with verbs.CMID(verbs.AddrInfo(dst=host, dst_service=port)) as client:
            tap = writer.tap(CLIENT, Endpoint(host, port))
            client.connect(verbs.ConnParam(private_data=b"hello"), TIMEOUT, tap=tap)
            rkey, remote = struct.unpack("!IQ", client.private_data)
            source = verbs.MR(client.pd, payload, 0)
            sink = client.reg_msgs(len(payload))
            client.post_write(source, len(payload), remote, rkey)
            client.post_read(sink, len(payload), remote, rkey)
            for _ in range(2):
                assert client.get_send_comp(TIMEOUT).status is verbs.WcStatus.SUCCESS
            assert sink.read(len(payload)) == payload
            client.post_recv(sink)
            client.post_send(source, length=9)
            assert client.get_recv_comp(TIMEOUT).byte_len == 9
            assert client.qp is not None
            fpdus = client.qp.counters.tx_fpdus + client.qp.counters.rx_fpdus
            client.disconnect()
            assert client.wait_disconnected(TIMEOUT)
        assert serving.result(TIMEOUT) == b"hello"
    verdict = judge(path)
    assert (verdict.good, verdict.bad, verdict.malformed) == (fpdus, 0, 0)
    (connection,) = connections(path.read_bytes())
    assert connection.client.payload(Opcode.WRITE) == payload
    assert connection.server.payload(Opcode.READ_RESPONSE) == payload
    assert [side.rest for side in connection.directions] == [b"", b""]


def serve_one(listener: verbs.CMID, size: int) -> bytes:
    """Offer a region to one client, echo its first Send; gives the client's private data."""
    with listener.get_request(TIMEOUT) as request:
        access = verbs.IBV_ACCESS_LOCAL_WRITE
        access |= verbs.IBV_ACCESS_REMOTE_WRITE | verbs.IBV_ACCESS_REMOTE_READ
        region = verbs.MR(request.pd, size, access)
        message = verbs.MR(request.pd, 64, access)
        request.create_qp()
        request.post_recv(message)
        request.accept(verbs.ConnParam(private_data=struct.pack("!IQ", region.rkey, region.buf)))
        received = request.get_recv_comp(TIMEOUT)
        request.post_send(message, length=received.byte_len)
        assert request.wait_disconnected(TIMEOUT)
        return request.private_data
