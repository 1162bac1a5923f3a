"""AF_INET_NEW_TCP beside the host's TCP and PyTCP, one short turn of each: ratios, printed.

uv run pytest -m bench -s tests/bench/test_new_tcp.py
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.interop.namespace import require_tun
from tests.support import PROJECT

pytestmark = pytest.mark.bench


def run(*options: str) -> str:
    require_tun()
    command = [sys.executable, str(PROJECT / "bench" / "new_tcp.py"), "--rounds", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    # 1: a goal was missed, which one turn on a busy machine may well do.
    assert done.returncode in (0, 1), done.stderr
    print(done.stdout)
    return done.stdout


def test_bulk_beside_the_hosts_loopback() -> None:
    printed = run("--only", "bulk", "wire", "--seconds", "0.5")
    for line in ("send, offload", "receive, offload", "send, no offload", "receive, no offload"):
        assert line in printed


def test_round_trips_beside_the_hosts_over_the_same_device() -> None:
    assert "host over TUN" in run("--only", "latency")


def test_an_active_connection_among_many_open_sockets() -> None:
    assert "among 500" in run("--only", "many", "--count", "500", "--seconds", "0.5")
