"""Programs under `stag run` beside the same programs without it: ratios, printed.

    uv run python bench/run.py [--rounds 3] [--only NAME...] [--json]

Each figure is the median of the rounds, in which native and supervised runs take turns. Server and
client are under one supervisor, on loopback.

* connect: socket and connect of a Python program to itself, microseconds
* redis: redis-benchmark, SET and GET with 50 clients, requests a second
* bulk: iperf3, one stream
* http: wrk with 16 connections and nginx, requests a second
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

STAG: Final = (sys.executable, "-m", "steertag", "run")
MODES: Final = {
    "host": ["--family", "host"],
    "host, relayed": ["--family", "host", "--relay"],
    "new_tcp": ["--family", "new_tcp"],
    "sdp": ["--family", "sdp"],
}
GOALS: Final = {("redis SET", "host"): 0.5, ("redis GET", "host"): 0.5, ("bulk", "host"): 0.6}
TIMEOUT: Final = 120.0
Figures = dict[str, float]

_SCRIPT: Final = """\
set -u
cd {directory}
{server} >server.log 2>&1 &
server=$!
tries=0
until {ready} >/dev/null 2>&1; do
  tries=$((tries + 1)); [ $tries -lt 200 ] || exit 1; sleep 0.05
done
{client}
status=$?
kill $server 2>/dev/null
wait $server 2>/dev/null
exit $status
"""
_CONNECTS: Final = """\
import socket, statistics, time
listener = socket.create_server(("127.0.0.1", {port}))
taken = []
for _ in range({count}):
    start = time.perf_counter()
    client = socket.create_connection(("127.0.0.1", {port}))
    taken.append(time.perf_counter() - start)
    server, _ = listener.accept()
    client.close()
    server.close()
print(statistics.median(taken) * 1e6)
"""
_NGINX: Final = """\
daemon off; worker_processes 1; pid nginx.pid; error_log error.log;
{user}
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;
  uwsgi_temp_path temp; scgi_temp_path temp;
  server {{ listen 127.0.0.1:{port}; root .; keepalive_requests 1000000; }}
}}
"""


@dataclass(frozen=True)
class Row:
    """One line of the result: medians, and native over supervised such that more is better."""

    name: str
    mode: str
    unit: str
    native: float
    supervised: float

    @property
    def ratio(self) -> float:
        if self.unit == "us":
            return self.native / self.supervised
        return self.supervised / self.native

    @property
    def goal(self) -> float | None:
        return GOALS.get((self.name, self.mode))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def run(prefix: Sequence[str], command: Sequence[str]) -> str:
    done = subprocess.run(
        [*prefix, *command], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        raise SystemExit(f"{shlex.join([*prefix, *command])}: {done.returncode}\n{done.stderr}")
    return done.stdout


def script(directory: Path, server: str, ready: str, client: str) -> list[str]:
    text = _SCRIPT.format(directory=directory, server=server, ready=ready, client=client)
    return ["sh", "-c", text]


def connect(prefix: Sequence[str], _: Path, seconds: float) -> Figures:
    program = _CONNECTS.format(port=free_port(), count=int(300 * seconds))
    return {"connect": float(run(prefix, [sys.executable, "-c", program]))}


def redis(prefix: Sequence[str], directory: Path, seconds: float) -> Figures:
    port = free_port()
    printed = run(
        prefix,
        script(
            directory,
            f"redis-server --port {port} --bind 127.0.0.1 --save '' --appendonly no",
            f"redis-cli -p {port} ping",
            f"redis-benchmark -p {port} -c 50 -n {int(20000 * seconds)} -t set,get --csv",
        ),
    )
    found = dict(re.findall(r'"(SET|GET)","([\d.]+)"', printed))
    return {f"redis {name}": float(found[name]) for name in ("SET", "GET")}


def bulk(prefix: Sequence[str], directory: Path, seconds: float) -> Figures:
    port = free_port()
    printed = run(
        prefix,
        script(
            directory,
            f"iperf3 -s -B 127.0.0.1 -p {port}",
            f"iperf3 -c 127.0.0.1 -p {port} -n 1K",
            # The server is busy for a moment after the first test.
            f"until iperf3 -c 127.0.0.1 -p {port} -t {max(1, int(2 * seconds))} -J >out &&"
            " grep -q sum_received out; do"
            " sleep 0.1; done; cat out",
        ),
    )
    return {"bulk": json.loads(printed)["end"]["sum_received"]["bits_per_second"] / 8e6}


def http(prefix: Sequence[str], directory: Path, seconds: float) -> Figures:
    port = free_port()
    (directory / "index.html").write_text("hello\n" * 100)
    user = "user root;" if Path("/proc/self").stat().st_uid == 0 else ""
    (directory / "nginx.conf").write_text(_NGINX.format(port=port, user=user))
    printed = run(
        prefix,
        script(
            directory,
            "nginx -p . -c nginx.conf",
            f"curl -sf http://127.0.0.1:{port}/",
            f"wrk -t 1 -c 16 -d {max(1, int(2 * seconds))} http://127.0.0.1:{port}/",
        ),
    )
    found = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    if found is None:
        raise SystemExit(f"wrk: {printed}")
    return {"http": float(found[1])}


BENCHMARKS: Final[dict[str, Callable[[Sequence[str], Path, float], Figures]]] = {
    "connect": connect,
    "redis": redis,
    "bulk": bulk,
    "http": http,
}
UNITS: Final = {"connect": "us", "bulk": "MB/s"}


def measure(name: str, modes: Sequence[str], rounds: int, seconds: float) -> list[Row]:
    """Rounds of native and each mode, in turns."""
    found: dict[str, list[Figures]] = {}
    for _ in range(rounds):
        for mode in ("", *modes):
            prefix = [*STAG, *MODES[mode], "--"] if mode else []
            with tempfile.TemporaryDirectory() as directory:
                figures = BENCHMARKS[name](prefix, Path(directory), seconds)
            found.setdefault(mode, []).append(figures)
    middle = {
        mode: {key: median(each[key] for each in figures) for key in figures[0]}
        for mode, figures in found.items()
    }
    return [
        Row(key, mode, UNITS.get(name, "/s"), native, middle[mode][key])
        for key, native in middle[""].items()
        for mode in modes
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long, more or less")
    parser.add_argument("--only", nargs="*", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--modes", nargs="*", choices=list(MODES), default=list(MODES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in options.only:
        rows += measure(name, options.modes, options.rounds, options.seconds)
    if options.json:
        print(json.dumps([{**vars(row), "ratio": row.ratio, "goal": row.goal} for row in rows]))
    else:
        print(f"{'what':<12}{'mode':<16}{'native':>12}{'supervised':>12}  {'ratio':>5}  goal")
        for row in rows:
            goal = "" if row.goal is None else f"{row.goal:.1f}"
            print(
                f"{row.name:<12}{row.mode:<16}{row.native:>12,.0f}{row.supervised:>12,.0f}"
                f"  {row.ratio:>5.2f}  {goal} {row.unit}"
            )
    return int(any(row.goal is not None and row.ratio < row.goal for row in rows))


if __name__ == "__main__":
    sys.exit(main())
