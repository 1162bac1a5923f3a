"""Thousands of connections leave nothing behind: no descriptor, no memory, no entry.

STEERTAG_SOAK=10000 is the whole of it, as in `.ci/run`; less by default: it takes minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run.applications import Application, need
from tests.run.behaviours import supervised
from tests.support import IN_CI

CONNECTIONS = int(os.environ.get("STEERTAG_SOAK", "10000" if IN_CI else "1000"))
LEVELS_OFF = 32 * 1024
"""KiB that a process may grow by, however many connections: garbage, which levels off within some
thousands of them. 10,000 connections that each left 4 KiB behind would be more."""
TIME_WAIT = "net.ipv4.tcp_max_tw_buckets=500"
"""Those in TIME-WAIT stay for a minute: of all of them, a soak would measure nothing else."""
STATS = re.compile(r"(\S+)=(\d+)")
# What `load COUNT` does: a connection for each request, eight at a time.
REDIS = """\
serve() { exec redis-server --port $port --bind 127.0.0.1 --save '' --appendonly no; }
answers() { redis-cli -p $port ping; }
load() { redis-benchmark -p $port -k 0 -c 8 -n $1 -t get -q; }
idle() { redis-cli -p $port info clients | grep -q connected_clients:1; }
"""
NGINX = """\
cat >nginx.conf <<END
daemon off; worker_processes 2; pid nginx.pid; error_log error.log;
events { worker_connections 256; use epoll; }
http {
  access_log off; client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;
  uwsgi_temp_path temp; scgi_temp_path temp;
  server { listen 127.0.0.1:$port; location / { return 200 hello; } }
}
END
serve() { exec nginx -p . -c nginx.conf; }
answers() { curl -sf http://127.0.0.1:$port/; }
load() { "$python" fetch.py $port $1; }
idle() { true; }
"""
SERVERS = {"redis": REDIS, "nginx": NGINX}
FETCH = """\
import socket, sys, threading
port, count = map(int, sys.argv[1:])
def fetch():
    for _ in range(count // 8):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            answer = b"".join(iter(lambda: sock.recv(1000), b""))
            assert answer.endswith(b"hello"), answer
            done.append(None)
done = []
threads = [threading.Thread(target=fetch) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(done) == count // 8 * 8
"""
SOAK = """\
measure() {
  for each in $(ps -o pid= --ppid $1) $1; do
    echo "$2" $each $(ls /proc/$each/fd | wc -l) $(grep VmRSS /proc/$each/status | tr -dc 0-9)
  done
}
control=$PPID
(serve) >server.log 2>&1 &
server=$!
tries=0
until answers >/dev/null 2>&1; do
  tries=$((tries + 1)); [ $tries -lt 300 ] || exit 1; sleep 0.1
done
load $((count / 2)) >warm
measure $control before
load $count >soak
idle
measure $control after
kill $server
wait $server || true
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("mode", ["relay", "new_tcp", "sdp"])
def test_thousands_of_connections_leave_nothing_behind(
    mode: str, server: str, tmp_path: Path
) -> None:
    need("redis-server", "redis-benchmark", "redis-cli", "nginx", "curl", "ps")
    port = Application(mode, tmp_path).port
    (tmp_path / "fetch.py").write_text(FETCH)
    head = f"set -eu\nport={port} count={CONNECTIONS} python={sys.executable}\n"
    done = subprocess.run(
        [*supervised(mode, "--stats"), "sh", "-c", head + SERVERS[server] + SOAK],
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
