"""`stag bench`: memory to memory between two processes, and a raw socket in the same run.

Rounds of both take turns, so that a machine whose speed drifts drifts for both; figures are the
medians of the rounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from steertag.perf.figures import latency_figures, median
from steertag.perf.job import Control, Job, job_message
from steertag.perf.peer import LOOPBACK
from steertag.perf.raw import RawSocket
from steertag.perf.rdma import RdmaSide
from steertag.runtime.interfaces import VARIABLE
from steertag.socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    TCP_NODELAY,
    create_server,
    socket,
)

ROUNDS: Final = 5
_START_TIMEOUT: Final = 30.0
_SMALL: Final = 8192
_POST_LIST: Final = 32
_ROUND_SECONDS: Final = 0.4
_MAX_COUNT: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Attributes:
    op: write, read or send.
    size: octets of a message.
    count: messages in all, over all rounds; None chooses about half a second a round.
    latency: one message at a time and its echo.
    crc: CRC32C in every FPDU.
    post_list: requests posted with one call; None: 32 for messages under 8 KiB, else 1.
    poll: busy-wait (both the RDMA side and the raw socket's process do).
    rounds: how often each of the two is measured.
    family: of this process's sockets; 0 is the host's TCP. The other process has the host's.
    address: where they meet.
    """

    op: str
    size: int
    count: int | None = None
    latency: bool = False
    crc: bool = True
    post_list: int | None = None
    poll: bool = False
    rounds: int = ROUNDS
    family: int = 0
    address: str = LOOPBACK


def run(options: BenchOptions) -> dict[str, object]:
    """Run it; the figures as a JSON-able object.

    Raises:
        OSError: the other process could not be started or went away.
    """
    with _two_processes(options) as (control, raw, rdma):
        post_list = options.post_list or (_POST_LIST if options.size < _SMALL else 1)
        count = options.count or _choose_count(control, raw, options, post_list)
        per_round = max(1, count // options.rounds)
        job = Job(options.op, options.size, per_round, options.latency, post_list, options.poll)
        sides: dict[str, RawSocket | RdmaSide] = {"raw": raw, "rdma": rdma}
        samples: dict[str, list[list[float]]] = {"raw": [], "rdma": []}
        warm = Job(job.op, job.size, min(job.count, 256), job.latency, post_list, job.poll)
        for name, side in sides.items():
            _round(control, name, side, warm)
        staged = rdma.counters.staged_bytes
        for _ in range(options.rounds):
            for name, side in sides.items():
                samples[name].append(_round(control, name, side, job))
        result: dict[str, object] = {
            "op": job.op,
            "size": job.size,
            "count": per_round * options.rounds,
            "rounds": options.rounds,
            "post_list": post_list,
            "crc": rdma.crc,
            "latency": job.latency,
            "poll": job.poll,
        }
        figures = {name: _figures(job, rounds) for name, rounds in samples.items()}
        result |= figures
        result["ratio"] = _ratio(job, figures)
        result["staged_bytes"] = rdma.counters.staged_bytes - staged
        return result


def _figures(job: Job, rounds: list[list[float]]) -> dict[str, float]:
    if job.latency:
        each = [latency_figures(samples) for samples in rounds]
        return {key: median(figures[key] for figures in each) for key in each[0]}
    seconds = median(samples[0] for samples in rounds)
    return {
        "gb_per_s": job.size * job.count / seconds / 1e9,
        "messages_per_s": job.count / seconds,
        "seconds_per_round": seconds,
    }


def _ratio(job: Job, figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """RDMA over raw: above 1 is better for rates, worse for latencies."""
    keys = ("p50_us",) if job.latency else ("gb_per_s", "messages_per_s")
    return {key: figures["rdma"][key] / figures["raw"][key] for key in keys}


def _round(control: Control, name: str, side: RawSocket | RdmaSide, job: Job) -> list[float]:
    control.send(job_message(name, job))
    control.receive()
    return side.ping(job) if job.latency else [side.active(job)]


def _choose_count(control: Control, raw: RawSocket, options: BenchOptions, post_list: int) -> int:
    """Messages for rounds of about half a second, judged by the raw socket."""
    count = 64
    while True:
        job = Job(options.op, options.size, count, options.latency, post_list, options.poll)
        started = time.perf_counter()
        _round(control, "raw", raw, job)
        seconds = time.perf_counter() - started
        if seconds > _ROUND_SECONDS / 8 or count >= _MAX_COUNT:
            return max(options.rounds, int(count * _ROUND_SECONDS / seconds) * options.rounds)
        count *= 4


def _environment() -> dict[str, str]:
    """Without our devices: nobody else can have them."""
    return {name: value for name, value in os.environ.items() if name != VARIABLE}


@contextmanager
def _two_processes(options: BenchOptions) -> Iterator[tuple[Control, RawSocket, RdmaSide]]:
    """Start the other process and connect to it three ways."""
    size, crc, address = options.size, options.crc, options.address
    family = options.family or (AF_INET6 if ":" in address else AF_INET)
    with create_server((address, 0), family=family, backlog=4) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-m", "steertag.perf.peer", address, str(port)]
        peer = subprocess.Popen(command, env=_environment())
        try:
            server.settimeout(_START_TIMEOUT)
            streams: list[socket] = []
            for _ in range(3):
                streams.append(server.accept()[0])
                streams[-1].settimeout(None)
            control, raw_stream = Control(streams[0]), streams[1]
            control.send({"size": size, "crc": crc})
            raw_stream.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            raw = RawSocket(raw_stream, size)
            rdma = RdmaSide(streams[2], active=True, size=size, crc=crc)
            try:
                yield control, raw, rdma
                control.send({"transport": None})
            finally:
                rdma.close()
                raw_stream.close()
                control.close()
            peer.wait(_START_TIMEOUT)
        finally:
            if peer.poll() is None:
                peer.kill()
                peer.wait()
