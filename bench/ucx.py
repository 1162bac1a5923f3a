"""The RNIC beside UCX's TCP transport, on loopback, in turns: ratios, printed.

    uv run python bench/ucx.py [--rounds 5] [--json]

Needs `ucx_perftest` (Debian: ucx-utils). Each figure of UCX is the overall one that it reports of a
run, ours the median of the rounds of `stag bench`; both count until the last octet has arrived. The
ratio is that of the medians over all turns.

* put and get: `ucp_put_bw`, `ucp_get` against RDMA Write and Read of 1 MiB, with CRC32C
* put rate: `ucp_put_bw` of 64 octets against RDMA Writes posted in lists of 64
* put latency: `ucp_put_lat` of 8 octets, half a round trip at the median, both sides busy-polling

UCX has no digest of its own: where that counts, with small messages, we are measured with and
without.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Final

from steertag.perf.bench import BenchOptions, run

CRC: Final = (("", True), (", no CRC", False))
MIB: Final = 1 << 20
TOOL: Final = "ucx_perftest"
_ENVIRONMENT: Final = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo", "UCX_LOG_LEVEL": "error"}
_RUN_TIMEOUT: Final = 120.0
_FINAL: Final = re.compile(r"^Final:\s+([\d.\s]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Figure:
    """One comparison.

    Attributes:
        name, unit: for a person.
        test: options of `ucx_perftest`.
        ours: options of our own run.
        of_ucx: the figure among the columns of the last line that UCX prints: iterations, median,
            average and overall latency, average and overall MB/s, average and overall messages/s.
        of_ours: the figure in the result of our run.
        goal: the ratio of ours to UCX's to be reached.
        lower_is_better: a time; the ratio is to stay below the goal.
    """

    name: str
    unit: str
    test: tuple[str, ...]
    ours: BenchOptions
    of_ucx: Callable[[list[float]], float]
    of_ours: Callable[[dict[str, float]], float]
    goal: float
    lower_is_better: bool = False

    def reached(self, ratio: float) -> bool:
        return ratio <= self.goal if self.lower_is_better else ratio >= self.goal


def _bandwidth(columns: list[float]) -> float:
    return columns[5] * MIB / 1e9


def _rate(columns: list[float]) -> float:
    return columns[7]


def _ours_bandwidth(figures: dict[str, float]) -> float:
    return figures["gb_per_s"]


def figures(seconds: float) -> list[Figure]:
    """What is compared, each run of UCX about so long on a slow machine."""
    many, few = str(int(250_000 * seconds)), str(int(600 * seconds))
    return [
        Figure(
            "put, 1 MiB",
            "GB/s",
            ("-t", "ucp_put_bw", "-s", str(MIB), "-n", few, "-w", "50"),
            BenchOptions("write", MIB, rounds=3),
            _bandwidth,
            _ours_bandwidth,
            2.0,
        ),
        Figure(
            "get, 1 MiB",
            "GB/s",
            ("-t", "ucp_get", "-s", str(MIB), "-n", few, "-w", "50"),
            BenchOptions("read", MIB, rounds=3),
            _bandwidth,
            _ours_bandwidth,
            2.0,
        ),
        *(
            Figure(
                f"put rate, 64 octets{suffix}",
                "/s",
                ("-t", "ucp_put_bw", "-s", "64", "-n", many, "-w", "1000"),
                BenchOptions("write", 64, post_list=64, crc=crc, rounds=3),
                _rate,
                lambda figures: figures["messages_per_s"],
                2.0,
            )
            for suffix, crc in CRC
        ),
        *(
            Figure(
                f"put latency, 8 octets{suffix}",
                "us",
                ("-t", "ucp_put_lat", "-s", "8", "-n", str(int(20_000 * seconds)), "-w", "1000"),
                BenchOptions("write", 8, latency=True, poll=True, crc=crc, rounds=3),
                lambda columns: columns[1],
                lambda figures: figures["p50_us"] / 2,
                0.8,
                lower_is_better=True,
            )
            for suffix, crc in CRC
        ),
    ]


@contextmanager
def _server(port: int) -> Iterator[None]:
    server = subprocess.Popen(
        # Its "waiting" is otherwise held back in a buffer: stdout is no terminal here.
        ["stdbuf", "-oL", TOOL, "-p", str(port)],
        env={**os.environ, **_ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if "Waiting for connection" in line:
                break
        yield
    finally:
        server.kill()
        server.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ucx(figure: Figure) -> float:
    """The result of one run. Raises CalledProcessError, TimeoutExpired, ValueError."""
    port = _free_port()
    with _server(port):
        done = subprocess.run(
            [TOOL, "127.0.0.1", "-p", str(port), *figure.test],
            env={**os.environ, **_ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=_RUN_TIMEOUT,
            check=True,
        )
    found = _FINAL.search(done.stdout)
    columns = [float(value) for value in found.group(1).split()] if found is not None else []
    if len(columns) < 8:
        raise ValueError(f"{TOOL} printed no figures:\n{done.stdout}{done.stderr}")
    return figure.of_ucx(columns)


def ours(figure: Figure) -> float:
    result = run(figure.ours)["rdma"]
    assert isinstance(result, dict)
    return figure.of_ours(result)


def compare(rounds: int, seconds: float) -> list[dict[str, object]]:
    """The comparisons, `rounds` turns each."""
    results: list[dict[str, object]] = []
    for figure in figures(seconds):
        turns = [(ours(figure), ucx(figure)) for _ in range(rounds)]
        mine, theirs = median(t[0] for t in turns), median(t[1] for t in turns)
        ratios = sorted(a / b for a, b in turns)
        results.append(
            {
                "figure": figure.name,
                "unit": figure.unit,
                "steertag": mine,
                "ucx": theirs,
                "ratio": mine / theirs,
                "ratio_min": ratios[0],
                "ratio_max": ratios[-1],
                "goal": figure.goal,
                "reached": figure.reached(mine / theirs),
            }
        )
    return results


def table(results: list[dict[str, object]]) -> str:
    lines = [f"{'':32}{'steertag':>12}{'UCX tcp':>12}{'':6}{'ratio':>7}  {'range':14}goal"]
    for row in results:
        span = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
        goal = f"{'at most' if row['unit'] == 'us' else 'at least'} {row['goal']}"
        verdict = "" if row["reached"] else "  missed"
        lines.append(
            f"{row['figure']:32}{row['steertag']:12,.4g}{row['ucx']:12,.4g} {row['unit']:5}"
            f"{row['ratio']:7.2f}  {span:14}{goal}{verdict}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="about, for a run of UCX")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds are positive")
    if shutil.which(TOOL) is None:
        print(f"ucx: {TOOL} is not here; on Debian: apt-get install ucx-utils", file=sys.stderr)
        return 2
    results = compare(options.rounds, options.seconds)
    print(json.dumps(results, indent=2) if options.json else table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
