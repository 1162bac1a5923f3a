"""Thousands of connections leave nothing behind: no descriptor, no memory, no entry.

STEERTAG_SOAK=10000 is the whole of it; less by default, since the machine is shared.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.run.applications import Application, need
from tests.run.behaviours import supervised

CONNECTIONS = int(os.environ.get("STEERTAG_SOAK", "1000"))
LEVELS_OFF = 32 * 1024
"""KiB that a process may grow by, however many connections: garbage, which levels off within some
thousands of them. 10,000 connections that each left 4 KiB behind would be more."""
TIME_WAIT = "net.ipv4.tcp_max_tw_buckets=500"
"""Those in TIME-WAIT stay for a minute: of all of them, a soak would measure nothing else."""
STATS = re.compile(r"(\S+)=(\d+)")
# What redis-benchmark does with -k 0: a connection for each request.
SOAK = """\
set -eu
redis-server --port {port} --bind 127.0.0.1 --save '' --appendonly no >server.log &
server=$!
tries=0
until redis-cli -p {port} ping >/dev/null 2>&1; do
  tries=$((tries + 1)); [ $tries -lt 300 ] || exit 1; sleep 0.1
done
measure() {{
  for each in $(ps -o pid= --ppid $1) $1; do
    echo "$2" $each $(ls /proc/$each/fd | wc -l) $(grep VmRSS /proc/$each/status | tr -dc 0-9)
  done
}}
control=$PPID
redis-benchmark -p {port} -k 0 -c 8 -n {warm} -t get -q >warm
measure $control before
redis-benchmark -p {port} -k 0 -c 8 -n {count} -t get -q >soak
redis-cli -p {port} info clients | grep -q connected_clients:1
measure $control after
redis-cli -p {port} shutdown nosave || true
wait $server || true
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["relay", "new_tcp", "sdp"])
def test_thousands_of_connections_leave_nothing_behind(mode: str, tmp_path: Path) -> None:
    need("redis-server", "redis-benchmark", "redis-cli", "ps")
    port = Application(mode, tmp_path).port
    text = SOAK.format(port=port, warm=CONNECTIONS // 2, count=CONNECTIONS)
    done = subprocess.run(
        [*supervised(mode, "--stats"), "sh", "-c", text],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        env={**os.environ, "STEERTAG_SYSCTL": TIME_WAIT},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_no_growth(done.stdout)
    stats = {name: int(value) for name, value in STATS.findall(done.stderr)}
    assert stats["data.accepted"] >= CONNECTIONS
    left = {name: stats[name] for name in ("sockets", "waiting", "data.sockets", "data.relays")}
    assert left == dict.fromkeys(left, 0)


def assert_no_growth(printed: str) -> None:
    """Of the control and the data process, between the first half and the end."""
    seen: dict[str, dict[str, tuple[int, int]]] = {"before": {}, "after": {}}
    for line in printed.splitlines():
        if line.startswith(("before ", "after ")):
            when, pid, descriptors, kib = line.split()
            seen[when][pid] = (int(descriptors), int(kib))
    both = seen["before"].keys() & seen["after"].keys()
    assert len(both) >= 3, printed  # control and data process, and the shell
    for pid in both:
        (descriptors, kib), (descriptors_then, kib_then) = seen["before"][pid], seen["after"][pid]
        assert descriptors_then <= descriptors + 8, printed
        assert kib_then <= kib + LEVELS_OFF, printed
