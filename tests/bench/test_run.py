"""Programs under `stag run` beside themselves, one short turn of each: ratios, printed.

uv run pytest -m bench -s tests/bench/test_run.py
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import PROJECT, require_tool

pytestmark = pytest.mark.bench


def test_programs_beside_themselves() -> None:
    for tool in ("redis-server", "redis-benchmark", "iperf3", "nginx", "wrk", "curl"):
        require_tool(tool)
    command = [
        sys.executable,
        str(PROJECT / "bench" / "run.py"),
        "--rounds",
        "1",
        "--seconds",
        "0.3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    # 1: a goal was missed, which one turn on a busy machine may well do.
    assert done.returncode in (0, 1), done.stderr
    print(done.stdout)
    for word in ("connect", "redis SET", "redis GET", "bulk", "http"):
        assert done.stdout.count(word) == 4
