"""The comparisons of `bench/`, one short turn of each: ratios, printed.

uv run pytest -m bench -s tests/bench/test_beside_peers.py
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import PROJECT, require_tool

pytestmark = pytest.mark.bench


def run(script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "bench" / script), *options],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return done.stdout


def test_the_rnic_beside_ucx() -> None:
    require_tool("ucx_perftest")
    printed = run("ucx.py", "--rounds", "1", "--seconds", "0.5")
    for figure in ("put, 1 MiB", "get, 1 MiB", "put rate, 64 octets", "put latency, 8 octets"):
        assert figure in printed


def test_an_active_connection_among_a_thousand() -> None:
    printed = run("many.py", "--count", "1000", "--rounds", "2")
    assert "1000 idle connections" in printed
    assert "KiB active side" in printed
