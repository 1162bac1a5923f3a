"""Many connections in one process: memory for each, and what they cost an active one. Printed.

    uv run python bench/many.py [--count 1000] [--json]

Two processes hold `--count` idle connections (two QPs each, one in either process) in one Context
besides the one that is measured: first without the others, then with them, then without again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Final

from steertag import verbs as v
from steertag.perf.figures import latency_figures
from steertag.perf.job import Control, Job, job_from, job_message
from steertag.perf.rdma import RdmaSide
from steertag.socket import create_connection, create_server

LOOPBACK: Final = "127.0.0.1"
MIB: Final = 1 << 20
PAGE: Final = resource.getpagesize()
SPARE_DESCRIPTORS: Final = 200
IDLE_CAP: Final = v.QPCap(max_send_wr=16, max_recv_wr=16)
LATENCY: Final = Job("write", 8, 3000, latency=True)
BANDWIDTH: Final = Job("write", MIB, 600)
JOBS: Final = {"latency": LATENCY, "bandwidth": BANDWIDTH}


def resident() -> int:
    """Octets of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def allow_descriptors(count: int) -> None:
    """Raises ValueError where the file limit doesn't allow so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_DESCRIPTORS
    if wanted > soft:
        if hard not in (resource.RLIM_INFINITY,) and wanted > hard:
            raise ValueError(f"{wanted} descriptors, and the limit is {hard} (ulimit -n)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Process:
    """What either process holds: one Context, the active connections, the idle ones."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.context = v.Context(progress="caller")
        self.sides: dict[str, RdmaSide] = {}
        self.idle: list[v.CMID] = []
        self._pd = v.PD(self.context)
        self._cq = v.CQ(self.context, 1 << 16)

    def idle_cmid(self) -> v.CMID:
        attr = v.QPInitAttr(scq=self._cq, rcq=self._cq, cap=IDLE_CAP)
        cmid = v.CMID(None, attr, self._pd)
        self.idle.append(cmid)
        return cmid

    def drop_idle(self) -> None:
        while self.idle:
            self.idle.pop().close()


def serve(port: int) -> None:
    """The other process: does what the first one asks for."""
    control = Control(create_connection((LOOPBACK, port)))
    here = Process(control)
    with create_server((LOOPBACK, 0), backlog=1024) as server:
        control.send({"port": server.getsockname()[1]})
        while True:
            order = control.receive()
            match order.pop("do"):
                case "side":
                    name, size = str(order["name"]), JOBS[str(order["name"])].size
                    side = RdmaSide(
                        server.accept()[0], active=False, size=size, crc=True, context=here.context
                    )
                    here.sides[name] = side
                case "idle":
                    allow_descriptors(int(str(order["count"])))
                    before, started = resident(), time.perf_counter()
                    for _ in range(int(str(order["count"]))):
                        cmid = here.idle_cmid()
                        cmid.adopt_passive(server.accept()[0])
                        cmid.accept()
                    seconds = time.perf_counter() - started
                    control.send({"octets": resident() - before, "seconds": seconds})
                case "drop":
                    here.drop_idle()
                    control.send({})
                case "round":
                    job = job_from(order)
                    side = here.sides[str(order["transport"])]
                    (side.pong if job.latency else side.passive)(job)
                case _:
                    return


def measure(here: Process, rounds: int) -> dict[str, list[float]]:
    """Microseconds a round trip, and GB/s, of each round."""
    found: dict[str, list[float]] = {name: [] for name in JOBS}
    for _ in range(rounds):
        for name, job in JOBS.items():
            here.control.send({"do": "round", **job_message(name, job)})
            side = here.sides[name]
            if job.latency:
                found[name].append(latency_figures(side.ping(job))["p50_us"])
            else:
                found[name].append(job.size * job.count / side.active(job) / 1e9)
    return found


def compare(count: int, rounds: int) -> dict[str, object]:
    """Raises ValueError where the file limit is too low."""
    allow_descriptors(count)
    with create_server((LOOPBACK, 0)) as server:
        peer = subprocess.Popen([sys.executable, __file__, "--peer", str(server.getsockname()[1])])
        here = Process(Control(server.accept()[0]))
    try:
        port = int(str(here.control.receive()["port"]))
        for name, job in JOBS.items():
            here.control.send({"do": "side", "name": name})
            stream = create_connection((LOOPBACK, port))
            here.sides[name] = RdmaSide(
                stream, active=True, size=job.size, crc=True, context=here.context
            )
        measure(here, 1)
        alone = measure(here, rounds)
        before = resident()
        here.control.send({"do": "idle", "count": count})
        for _ in range(count):
            here.idle_cmid().adopt_active(create_connection((LOOPBACK, port)))
        octets = resident() - before
        report = here.control.receive()
        among = measure(here, rounds)
        here.drop_idle()
        here.control.send({"do": "drop"})
        here.control.receive()
        again = measure(here, rounds)
        here.control.send({"do": "end"})
        peer.wait(30)
    finally:
        if peer.poll() is None:
            peer.kill()
            peer.wait()
        here.context.close()
        here.control.close()
    figures = {
        name: {
            "alone": median(alone[name] + again[name]),
            "among": median(among[name]),
            "ratio": median(among[name]) / median(alone[name] + again[name]),
        }
        for name in JOBS
    }
    return {
        "count": count,
        "octets_per_qp": {
            "active": octets / count,
            "passive": float(str(report["octets"])) / count,
        },
        "connects_per_s": count / float(str(report["seconds"])),
        **figures,
    }


def text(result: dict[str, object]) -> str:
    octets, latency, bandwidth = (result[key] for key in ("octets_per_qp", "latency", "bandwidth"))
    assert isinstance(octets, dict)
    assert isinstance(latency, dict)
    assert isinstance(bandwidth, dict)
    return (
        f"{result['count']} idle connections, {result['connects_per_s']:,.0f} set up in a second\n"
        f"memory of a QP and its connection: {octets['active'] / 1024:.1f} KiB active side,"
        f" {octets['passive'] / 1024:.1f} KiB passive side\n"
        f"an active one, 8 octets there and back: {latency['alone']:.1f} us alone,"
        f" {latency['among']:.1f} us among them, ratio {latency['ratio']:.2f}\n"
        f"an active one, 1 MiB Writes: {bandwidth['alone']:.2f} GB/s alone,"
        f" {bandwidth['among']:.2f} GB/s among them, ratio {bandwidth['ratio']:.2f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="idle connections (default 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer is not None:
        serve(options.peer)
        return 0
    if options.count < 1 or options.rounds < 1:
        parser.error("--count and --rounds are positive")
    try:
        result = compare(options.count, options.rounds)
    except ValueError as exc:
        print(f"many: {exc}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2) if options.json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
