"""AF_INET_NEW_TCP over TUN beside the host's own TCP, and beside PyTCP: ratios, printed.

    uv run python bench/new_tcp.py [--rounds 3] [--only NAME...] [--json]

Runs in a network namespace of its own (`unshare`; as root, or where users may make namespaces).
The peer is always a program on the host's TCP. Every figure is the median of the rounds; what is
compared is measured in turns, in one run.

* send, receive: bulk over a TUN device with offload, against the host's TCP over loopback
* wire: the same without offload at an MTU of 1500, where every segment is a packet of its own
* latency: round trips of one octet, against the host's TCP over the same kind of device, whose far
  end sends every packet back, so that the host talks to itself
* pytcp: PyTCP (`pmd-pytcp` from PyPI) over the same device at the same MTU, against ours with
  offload and without; it is installed into an environment of its own (`--pytcp`)
* many: thousands of open sockets: memory for each, and what they cost an active one
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from steertag.device.hostside import configure, loopback_up

HERE: Final = Path(__file__).resolve().parent
SIDE: Final = HERE / "new_tcp_side.py"
PYTCP_SIDE: Final = HERE / "new_tcp_pytcp.py"
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
INSIDE: Final = "STEERTAG_BENCH_NAMESPACE"
PORT: Final = 7800
TIMEOUT: Final = 120.0
HOST: Final = "10.77.0.1"
DEVICE: Final = f"tun:,10.77.0.2/24,host={HOST}/24"
MIRROR: Final = ("bench1", "10.78.0.2/24", "10.78.0.1/24")
MIRRORED: Final = "10.78.0.2"
PYTCP: Final = ("bench2", "10.79.0.2/24", "10.79.0.1/24")
PYTCP_HOST: Final = "10.79.0.1"
PYTCP_SECONDS: Final = 3.0
ROUND_TRIPS: Final = 3000
Figures = dict[str, float]


@dataclass
class Options:
    """What the command line says."""

    rounds: int
    seconds: float
    block: int
    count: int
    pytcp: Path
    as_json: bool
    only: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """One line of the result.

    Attributes:
        key: the figure that is compared.
        goal: the ratio of ours to theirs to be reached; None: none was set.
        lower_is_better: a time; the ratio is to stay below the goal.
    """

    name: str
    ours: list[Figures]
    theirs: list[Figures]
    key: str
    goal: float | None
    lower_is_better: bool = False

    @property
    def figures(self) -> tuple[float, float]:
        return of(self.ours, self.key), of(self.theirs, self.key)

    @property
    def ratio(self) -> float:
        ours, theirs = self.figures
        return ours / theirs

    @property
    def reached(self) -> bool:
        if self.goal is None:
            return True
        return self.ratio <= self.goal if self.lower_is_better else self.ratio >= self.goal


def of(rounds: Sequence[Figures], key: str) -> float:
    return median(each[key] for each in rounds)


# -- processes ----------------------------------------------------------------------------------


@contextmanager
def running(*command: object) -> Iterator[subprocess.Popen[str]]:
    """A process from when it says that it is ready."""
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{command[1]} did not start")
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        process.wait()


def measured(device: str, address: str, job: str, *arguments: float, port: int = PORT) -> Figures:
    words = [sys.executable, SIDE, "measure", device, address, port, job, *arguments]
    done = subprocess.run(
        list(map(str, words)), stdout=subprocess.PIPE, text=True, timeout=TIMEOUT, check=True
    )
    found: Figures = json.loads(done.stdout)
    return found


def pytcp_measured(python: Path, mtu: int, job: str, argument: float) -> Figures:
    name, address, host = PYTCP
    words = (PYTCP_SIDE, name, mtu, address, PYTCP_HOST, PORT, job, argument)
    with running(python, *words) as process:
        configure(name, addresses=[host], mtu=mtu)
        out, _ = process.communicate("go\n", timeout=TIMEOUT)
    found: Figures = json.loads(out)
    return found


def install_pytcp(where: Path) -> None:
    """Make the environment that has PyTCP, if it isn't there; the package index is asked."""
    python = where / "bin" / "python"
    uv = shutil.which("uv")
    if python.exists() or uv is None:
        return
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        subprocess.run([uv, "venv", "-q", "--python", version, where], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", python, "pmd-pytcp"], check=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(where, ignore_errors=True)


# -- comparisons --------------------------------------------------------------------------------


def bulk(options: Options) -> list[Comparison]:
    rounds: dict[tuple[str, str], list[Figures]] = {}
    for _ in range(options.rounds):
        for job in ("send", "receive"):
            for who, address in ((DEVICE, HOST), ("host", "127.0.0.1")):
                found = measured(who, address, job, options.block, options.seconds)
                rounds.setdefault((job, who), []).append(found)
    return [
        Comparison(f"{job}, offload", rounds[job, DEVICE], rounds[job, "host"], "MB/s", 0.5)
        for job in ("send", "receive")
    ]


def wire(options: Options) -> list[Comparison]:
    device = DEVICE + ",mtu=1500,offload=no"
    rounds: dict[tuple[str, str], list[Figures]] = {}
    for _ in range(options.rounds):
        for job in ("send", "receive"):
            for who, address in ((device, HOST), ("host", "127.0.0.1")):
                found = measured(who, address, job, options.block, options.seconds)
                rounds.setdefault((job, who), []).append(found)
    return [
        Comparison(f"{job}, no offload", rounds[job, device], rounds[job, "host"], "MB/s", None)
        for job in ("send", "receive")
    ]


def delay(options: Options) -> list[Comparison]:
    ours, same, loopback = [], [], []
    with running(sys.executable, SIDE, "mirror", *MIRROR):
        for _ in range(options.rounds):
            ours.append(measured(DEVICE, HOST, "latency", ROUND_TRIPS))
            same.append(measured("host", MIRRORED, "latency", ROUND_TRIPS))
            loopback.append(measured("host", "127.0.0.1", "latency", ROUND_TRIPS))
    name = "round trip of 1 octet"
    return [
        Comparison(f"{name}, host over TUN", ours, same, "median us", 3.0, True),
        Comparison(f"{name}, host over lo", ours, loopback, "median us", None, True),
    ]


def beside_pytcp(options: Options) -> list[Comparison]:
    python = options.pytcp / "bin" / "python"
    if not python.exists():
        print("PyTCP can't be installed here: not compared", file=sys.stderr)
        return []
    wire = DEVICE + ",mtu=1500,offload=no"
    rounds: dict[tuple[str, str], list[Figures]] = {}
    for _ in range(options.rounds):
        for job in ("send", "receive"):
            found = pytcp_measured(python, 1500, job, PYTCP_SECONDS)
            rounds.setdefault((job, "pytcp"), []).append(found)
            for device in (wire, DEVICE):
                found = measured(device, HOST, job, options.block, options.seconds)
                rounds.setdefault((job, device), []).append(found)
    return [
        Comparison(f"{job}, {text}, PyTCP", rounds[job, device], rounds[job, "pytcp"], "MB/s", goal)
        for job in ("send", "receive")
        for device, text, goal in ((wire, "no offload", 20.0), (DEVICE, "offload", 100.0))
    ]


def among_many(options: Options) -> list[Comparison]:
    rounds = []
    for number in range(options.rounds):
        # The device goes with the round, before the peer hears that its sockets are closed: a peer
        # of its own, or its descriptors would run out.
        port = PORT + 10 * (number + 1)
        with running(sys.executable, SIDE, "serve", port):
            found = measured(DEVICE, HOST, "many", options.count, options.seconds, port=port)
        rounds.append(found)
    alone = [{"MB/s": each["MB/s alone"], "us": each["us alone"]} for each in rounds]
    among = [
        {"MB/s": each["MB/s among them"], "us": each["us among them"], "KiB": each["KiB each"]}
        for each in rounds
    ]
    print(f"{options.count} open sockets: {of(among, 'KiB'):.1f} KiB each", file=sys.stderr)
    return [
        Comparison(f"receive, among {options.count}, alone", among, alone, "MB/s", None),
        Comparison(f"round trip, among {options.count}, alone", among, alone, "us", None, True),
    ]


PARTS: Final = {
    "bulk": bulk,
    "wire": wire,
    "latency": delay,
    "pytcp": beside_pytcp,
    "many": among_many,
}


# -- the program --------------------------------------------------------------------------------


def in_namespace() -> int:
    """Run this program in a network namespace of its own; its exit code."""
    flags = "-n" if os.geteuid() == 0 else "-Urn"
    command = ["unshare", flags, sys.executable, __file__, *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode


def parsed(words: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description="AF_INET_NEW_TCP beside others, over TUN.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each bulk transfer")
    parser.add_argument("--block", type=int, default=1 << 16, help="octets of a call, both sides")
    parser.add_argument("--count", type=int, default=10_000, help="open sockets of `many`")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--pytcp", type=Path, default=CACHE / "steertag-bench" / "pytcp")
    parser.add_argument("--json", action="store_true", dest="as_json")
    return Options(**vars(parser.parse_args(words)))


def shown(comparison: Comparison) -> str:
    ours, theirs = comparison.figures
    goal = "" if comparison.goal is None else f"  goal {comparison.goal:g}"
    missed = "" if comparison.reached else "  missed"
    figures = f"{ours:10.1f} {theirs:10.1f}  ratio {comparison.ratio:7.2f}{goal}{missed}"
    return f"{comparison.name:42} {comparison.key:9} {figures}"


def main() -> int:
    options = parsed()
    if not os.environ.get(INSIDE):
        if "pytcp" in options.only:
            install_pytcp(options.pytcp)  # there is no network in the namespace
        return in_namespace()
    loopback_up()
    comparisons = []
    with running(sys.executable, SIDE, "serve", PORT):
        for name in options.only:
            found = PARTS[name](options)
            comparisons += found
            if not options.as_json:
                for comparison in found:
                    print(shown(comparison), flush=True)
    if options.as_json:
        print(json.dumps([{**vars(each), "ratio": each.ratio} for each in comparisons], indent=1))
    return 0 if all(each.reached for each in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
