"""tshark agrees with the RNIC on markers and on ready-to-receive frames."""

from __future__ import annotations

import re
import struct
from collections import Counter
from pathlib import Path

import pytest

from steertag.observe.pcap import Endpoint, PcapWriter
from steertag.rdma.connection import Offer
from steertag.rdma.constants import WR_RDMA_READ, WR_RDMA_WRITE, WR_SEND, WcStatus
from steertag.rdma.rtr import RTR_KINDS, RtrKind
from steertag.wire import mpa
from steertag.wire.rdmap import Opcode
from tests.interop.rnic_pair import Pair
from tests.interop.tshark import judge

CLIENT = Endpoint("10.0.0.1", 40000)
SERVER = Endpoint("10.0.0.2", 7471)
LENGTHS = (
    0,
    1,
    5,
    100,
    300,
    400,
    17,
    480,
    1000,
    508,
    1300,
)  # tshark 4.0 loses count in longer ones
_POINTER = re.compile(r"FPDU back pointer: (\d+) bytes")


class Recorder:
    """A tap that also keeps what each side sent."""

    def __init__(self, writer: PcapWriter) -> None:
        self.tap = writer.tap(CLIENT, SERVER)
        self.out = [bytearray(), bytearray()]

    def sent(self, data: bytes) -> None:
        self.out[0] += data
        self.tap.sent(data)

    def received(self, data: bytes) -> None:
        self.out[1] += data
        self.tap.received(data)

    def pointers(self) -> list[int]:
        """FPDUPTR of every marker that was sent, if both sides send markers."""
        found = []
        for octets in self.out:
            start = mpa.StartFrame.parse(octets)
            assert start is not None
            fpdus = octets[len(start) :]
            found += [
                struct.unpack_from("!H", fpdus, at + 2)[0] for at in range(0, len(fpdus), 512)
            ]
        return sorted(found)


def exchange(pair: Pair) -> None:
    for end, peer in ((pair.client, pair.server), (pair.server, pair.client)):
        for length in LENGTHS:
            end.post(WR_RDMA_WRITE, 0, length, peer)
            pair.run()
            end.post(WR_RDMA_READ, 0, length, peer)
            pair.run()
        peer.post_recv(0, 100)
        end.post(WR_SEND, 0, 10)
        pair.run()
    for end in (pair.client, pair.server):
        assert {wc.status for wc in end.completions()} == {WcStatus.SUCCESS}


def test_tshark_finds_every_marker_and_every_crc_with_it_good(tmp_path: Path) -> None:
    path = tmp_path / "markers.pcap"
    with PcapWriter(path) as writer:
        recorder = Recorder(writer)
        pair = Pair(recorder, Offer(markers=True), Offer(markers=True))  # type: ignore[arg-type]
        exchange(pair)
        recorder.tap.close()
    fpdus = pair.client.qp.counters.tx_fpdus + pair.server.qp.counters.tx_fpdus
    verdict = judge(path)
    assert (verdict.good, verdict.bad, verdict.malformed) == (fpdus, 0, 0)
    assert verdict.opcodes.total() == fpdus
    pointers = recorder.pointers()
    assert sorted(map(int, _POINTER.findall(verdict.text))) == pointers
    assert len(set(pointers)) > 20


@pytest.mark.parametrize("kind", RTR_KINDS)
def test_tshark_reads_each_ready_to_receive_frame(kind: RtrKind, tmp_path: Path) -> None:
    path = tmp_path / "rtr.pcap"
    with PcapWriter(path) as writer:
        tap = writer.tap(CLIENT, SERVER)
        pair = Pair(tap, Offer(peer_to_peer=True, rtr=(kind,)), Offer())
        pair.server.post(WR_RDMA_WRITE, 0, 100, pair.client)
        pair.run()
        tap.close()
    expected = {
        "write": [Opcode.WRITE],
        "read": [Opcode.READ_REQUEST, Opcode.READ_RESPONSE],
        "send": [Opcode.SEND],
    }
    verdict = judge(path)
    assert verdict.opcodes == Counter([*expected[kind], Opcode.WRITE])
    assert (verdict.good, verdict.bad, verdict.malformed) == (verdict.opcodes.total(), 0, 0)
