"""tshark reads what `--pcap` wrote."""

from __future__ import annotations

from pathlib import Path

from steertag.wire.rdmap import Opcode
from tests.interop.tshark import judge
from tests.transfer.harness import Serving, stag


def test_tshark_decodes_a_recorded_benchmark_with_good_crcs(tmp_path: Path) -> None:
    capture = tmp_path / "bench.pcap"
    done = stag("bench", "write", "-s", "100000", "-n", "6", "-r", "1", "--pcap", capture)
    assert done.code == 0, done.err
    verdict = judge(capture)
    assert (verdict.bad, verdict.malformed, verdict.bad_checksums) == (0, 0, 0)
    assert verdict.start_frames == 2
    assert verdict.good == sum(verdict.opcodes.values())
    assert verdict.opcodes[Opcode.WRITE] >= 6


def test_tshark_decodes_what_a_killed_server_recorded(tmp_path: Path) -> None:
    served, capture = tmp_path / "served", tmp_path / "server.pcap"
    served.mkdir()
    (served / "file").write_bytes(bytes(300_000))
    with Serving(served, "--pcap", capture) as server:
        for turn, path in enumerate(("rdma-write", "rdma-read")):
            done = stag("get", f"{server.url}file", tmp_path / f"{turn}", "--path", path)
            assert done.code == 0, done.err
        server.process.kill()
        server.process.wait(60)
    verdict = judge(capture)
    assert (verdict.bad, verdict.malformed, verdict.bad_checksums) == (0, 0, 0)
    assert verdict.start_frames == 4
    assert {Opcode.WRITE, Opcode.READ_REQUEST, Opcode.READ_RESPONSE} <= set(verdict.opcodes)
