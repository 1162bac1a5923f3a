"""AF_INET_SDP beside the host's TCP, one short turn of each: ratios, printed.

uv run pytest -m bench -s tests/bench/test_sdp.py
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import PROJECT

pytestmark = pytest.mark.bench


def run(*options: str) -> str:
    command = [sys.executable, str(PROJECT / "bench" / "sdp.py"), "--rounds", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return done.stdout


def test_large_sends_beside_the_raw_socket() -> None:
    printed = run("--only", "bulk", "--seconds", "0.2")
    for line in ("1 MiB calls", "4 MiB calls", "64 MiB calls", "GB/s ratio", "CPU ratio"):
        assert line in printed


def test_an_echo_beside_the_raw_sockets() -> None:
    assert "p50 ratio" in run("--only", "echo", "--seconds", "0.2")


def test_sizes_by_either_way_of_copying() -> None:
    printed = run("--only", "sweep", "--seconds", "0.1", "--sizes", "64", "65536", "4194304")
    for line in ("64 octets", "64 KiB", "4 MiB", "bcopy", "zcopy"):
        assert line in printed
