"""What `stag decode` costs beside tshark on the same capture: times and ratios, printed.

uv run pytest -m bench -s tests/bench/test_decode.py
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from steertag.wire.rdmap import Opcode
from tests.decode_support import Talk, pcap
from tests.support import require_tool

pytestmark = pytest.mark.bench

SIZE = 30_000_000
FIELDS = ("iwarp_mpa.ulpdulength", "iwarp_rdma.opcode", "iwarp_ddp.stag", "iwarp_ddp.msn")


def capture(payload: int, mss: int) -> bytes:
    """One direction full of Writes, or of Sends where they are small."""
    talk = Talk(mss=mss)
    octets = bytes(range(256)) * (payload // 256 + 1)
    for number in range(SIZE // (payload + 100)):
        if payload < 1000:
            talk.client.untagged(Opcode.SEND, octets[:payload])
        else:
            talk.client.tagged(payload=octets[:payload], to=number * payload)
    talk.close()
    return pcap(talk.packets)


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


@pytest.mark.parametrize(
    ("payload", "mss"),
    [(60_000, 65_000), (1424, 1448), (64, 1448)],
    ids=["64K", "MSS", "64 octets"],
)
def test_a_capture_against_tshark(payload: int, mss: int, tmp_path: Path) -> None:
    path = tmp_path / "capture.pcap"
    path.write_bytes(capture(payload, mss))
    size = path.stat().st_size / 1e6
    ours = seconds(sys.executable, "-m", "steertag", "decode", str(path))
    fields = [argument for field in FIELDS for argument in ("-e", field)]
    tshark = seconds(
        *(require_tool("tshark"), "--disable-protocol", "rpcordma"),
        *("-T", "fields", *fields, "-r", str(path)),
    )
    print(
        f"\n{size:.0f} MB of FPDUs with {payload} octets: stag decode {ours:.1f} s"
        f" ({size / ours:.0f} MB/s), tshark {tshark:.1f} s, ratio {ours / tshark:.2f}"
    )
