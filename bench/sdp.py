"""AF_INET_SDP beside the host's TCP: large sends, small echoes, and where zero copy pays.

    uv run python bench/sdp.py [--rounds 5] [--only bulk echo sweep] [--keep] [--json | --markdown]

Two processes on loopback, each with a connection of every path; within a round the paths take
turns, so that a machine whose speed drifts drifts for all. A figure is the median of the rounds,
CPU time is that of both processes, all threads.

* bulk: calls of 1, 4, 16 and 64 MiB, as SDP does by itself, beside the raw socket
* echo: 64 octets there and back
* sweep: messages of 64 octets to 16 MiB by buffered copy alone, by zero copy alone, and by the raw
  socket; `--keep` writes what docs/tools/draw_sdp.py draws

The sender calls `sendall` with one `bytes` object, the receiver `recv_into` with room for what is
left of the message (small messages: 256 KiB), each path alike.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket as std
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import IO, Any, Final

HERE: Final = Path(__file__).resolve().parent
KEPT: Final = HERE / "sdp.json"
KIB: Final = 1024
MIB: Final = 1 << 20
DRAIN: Final = 256 * KIB
"""Octets of a receiver's buffer for messages that are smaller."""
ECHO: Final = 64
SWEEP: Final = tuple(64 << 2 * step for step in range(10))
"""64 octets, four times as many, ..., 16 MiB."""
BULK: Final = (MIB, 4 * MIB, 16 * MIB, 64 * MIB)
TIMEOUT: Final = 120.0
Conn = Any
"""A stream socket, the standard library's or steertag's."""
Figures = dict[str, float]


# -- paths ----------------------------------------------------------------------------------------

PATHS: Final = ("raw", "sdp", "bcopy", "zcopy")
THRESHOLDS: Final = {"bcopy": 0, "zcopy": 1}
"""Octets of a send from which it isn't copied: 0 is never, 1 always."""


def listener_of(path: str) -> Conn:
    if path == "raw":
        return std.create_server(("127.0.0.1", 0))
    from steertag.sdp.options import AF_INET_SDP
    from steertag.socket import create_server

    return create_server(("127.0.0.1", 0), family=AF_INET_SDP)


def connected_to(path: str, port: int) -> Conn:
    if path == "raw":
        return prepared(path, std.create_connection(("127.0.0.1", port)))
    from steertag.sdp.options import AF_INET_SDP
    from steertag.socket import socket

    conn = socket(AF_INET_SDP, std.SOCK_STREAM)
    conn.connect(("127.0.0.1", port))
    return prepared(path, conn)


def prepared(path: str, conn: Conn) -> Conn:
    conn.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
    if path in THRESHOLDS:
        from steertag.sdp.options import SDP_ZCOPY_THRESH, SOL_SDP

        conn.setsockopt(SOL_SDP, SDP_ZCOPY_THRESH, THRESHOLDS[path])
    return conn


# -- what either side does ------------------------------------------------------------------------


@lru_cache(1)
def message(size: int) -> bytes:
    """Octets to send, in memory of their own: no pages of zeros that are all one."""
    return bytes(range(256)) * (size // 256) + bytes(size % 256)


@lru_cache(1)
def room(size: int) -> memoryview:
    """A receiver's buffer. It is used again and again, as a program's would be."""
    return memoryview(bytearray(b"x") * size)


def send(conn: Conn, size: int, count: int) -> None:
    """Messages, and the octet that says that all of them are there."""
    data = message(size)
    sendall = conn.sendall
    for _ in range(count):
        sendall(data)
    receive_exactly(conn, memoryview(bytearray(1)))


def receive(conn: Conn, size: int, count: int, step: int) -> None:
    """`step`: octets that a call has room for at most; 0: the whole message."""
    whole = room(step or max(size, DRAIN))
    if step or size < DRAIN:
        left = size * count
        while left:
            left -= taken(conn, whole if left >= len(whole) else whole[:left])
    else:
        for _ in range(count):
            receive_exactly(conn, whole)
    conn.sendall(b"!")


def taken(conn: Conn, view: memoryview) -> int:
    count: int = conn.recv_into(view)
    if not count:
        raise EOFError("the other process has gone")
    return count


def receive_exactly(conn: Conn, view: memoryview) -> None:
    got = 0
    while got < len(view):
        got += taken(conn, view[got:] if got else view)


def ping(conn: Conn, size: int, count: int) -> list[float]:
    """Seconds of each round trip."""
    data, buffer = message(size), memoryview(bytearray(size))
    clock, times = time.perf_counter, []
    for _ in range(count):
        began = clock()
        conn.sendall(data)
        receive_exactly(conn, buffer)
        times.append(clock() - began)
    return times


def pong(conn: Conn, size: int, count: int) -> None:
    buffer = memoryview(bytearray(size))
    for _ in range(count):
        receive_exactly(conn, buffer)
        conn.sendall(buffer)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def pin(cpu_number: int) -> None:
    """Keep this process on one of the processors that it may use, if there are two."""
    able = sorted(os.sched_getaffinity(0))
    if len(able) > 1:
        os.sched_setaffinity(0, {able[cpu_number % len(able)]})


# -- the other process ----------------------------------------------------------------------------


def tell(stream: IO[str], **message: object) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def hear(stream: IO[str]) -> dict[str, Any]:
    line = stream.readline()
    if not line:
        raise EOFError("the other process has gone")
    found: dict[str, Any] = json.loads(line)
    return found


def serve(paths: Sequence[str]) -> None:
    """The receiver, until standard input ends."""
    conns = {}
    for path in paths:
        with listener_of(path) as listener:
            tell(sys.stdout, port=listener.getsockname()[1])
            conns[path] = prepared(path, listener.accept()[0])
    tell(sys.stdout, ready=True)
    while line := sys.stdin.readline():
        job = json.loads(line)
        if "pin" in job:
            pin(job["pin"])
            continue
        conn, before = conns[job["path"]], cpu()
        if job["what"] == "echo":
            pong(conn, job["size"], job["count"])
        else:
            receive(conn, job["size"], job["count"], job["step"])
        tell(sys.stdout, cpu=cpu() - before)
    for conn in conns.values():
        conn.close()


class Pair:
    """This process and the other one, connected by every path."""

    def __init__(self, paths: Sequence[str], pinned: bool) -> None:
        self.paths = paths
        words = [sys.executable, __file__, "--serve", *paths]
        self._peer = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._peer.stdin is not None
        assert self._peer.stdout is not None
        self._to, self._from = self._peer.stdin, self._peer.stdout
        self._conns = {path: connected_to(path, hear(self._from)["port"]) for path in paths}
        hear(self._from)
        if pinned:
            tell(self._to, pin=1)
            pin(0)

    def close(self) -> None:
        for conn in self._conns.values():
            conn.close()
        self._to.close()
        try:
            self._peer.wait(TIMEOUT)
        finally:
            self._peer.kill()
            self._peer.wait()
            self._from.close()

    def bulk(self, path: str, size: int, count: int, step: int) -> Figures:
        """GB/s, and seconds of CPU for a GB on both sides."""
        tell(self._to, what="bulk", path=path, size=size, count=count, step=step)
        before, began = cpu(), time.perf_counter()
        send(self._conns[path], size, count)
        took, spent = time.perf_counter() - began, cpu() - before
        spent += hear(self._from)["cpu"]
        gb = size * count / 1e9
        return {"GB/s": gb / took, "CPU s/GB": spent / gb, "seconds": took}

    def echo(self, path: str, count: int) -> Figures:
        tell(self._to, what="echo", path=path, size=ECHO, count=count)
        before = cpu()
        times = sorted(ping(self._conns[path], ECHO, count))
        spent = cpu() - before + hear(self._from)["cpu"]
        return {
            "p50 us": median(times) * 1e6,
            "p99 us": times[len(times) * 99 // 100] * 1e6,
            "CPU us": spent / count * 1e6,
        }


@contextmanager
def connected(paths: Sequence[str], pinned: bool) -> Iterator[Pair]:
    pair = Pair(paths, pinned)
    try:
        yield pair
    finally:
        pair.close()


# -- measuring ------------------------------------------------------------------------------------


@dataclass
class Options:
    """What the command line says."""

    rounds: int
    seconds: float
    only: list[str]
    sizes: list[int] | None
    step: int
    pinned: bool
    keep: bool
    as_json: bool
    as_markdown: bool
    serve: list[str] | None


Rows = list[dict[str, Any]]


def medians(rounds: Sequence[Figures]) -> Figures:
    return {key: median(each[key] for each in rounds) for key in rounds[0]}


def in_turns(pair: Pair, options: Options, size: int) -> dict[str, Figures]:
    """Every path with messages of so many octets: rounds in turns, and their medians."""
    counts = {path: choose_count(pair, path, options, size) for path in pair.paths}
    rounds: dict[str, list[Figures]] = {path: [] for path in pair.paths}
    for _ in range(options.rounds):
        for path in pair.paths:
            rounds[path].append(pair.bulk(path, size, counts[path], options.step))
    return {path: medians(found) for path, found in rounds.items()}


def choose_count(pair: Pair, path: str, options: Options, size: int) -> int:
    """Messages for rounds of about the seconds asked for: a path may be a thousand times as slow as
    another. It is warm then, too."""
    count = 1
    while True:
        seconds = pair.bulk(path, size, count, options.step)["seconds"]
        if seconds > options.seconds / 8:
            return max(1, int(count * options.seconds / seconds))
        count *= 4


def measure_bulk(options: Options) -> Rows:
    rows = []
    with connected(("raw", "sdp"), options.pinned) as pair:
        for size in options.sizes or BULK:
            found = in_turns(pair, options, size)
            row: dict[str, Any] = {"what": "bulk", "size": size, **found}
            row["GB/s ratio"] = found["sdp"]["GB/s"] / found["raw"]["GB/s"]
            row["CPU ratio"] = found["sdp"]["CPU s/GB"] / found["raw"]["CPU s/GB"]
            rows.append(row)
            show(options, row, f"{named(size)} calls", ("GB/s", "CPU s/GB"))
    return rows


def measure_echo(options: Options) -> Rows:
    rounds: dict[str, list[Figures]] = {"raw": [], "sdp": []}
    count = max(10, int(options.seconds * 10_000))
    with connected(tuple(rounds), options.pinned) as pair:
        for turn in range(options.rounds + 1):
            for path, found in rounds.items():
                figures = pair.echo(path, count)
                if turn:  # the first is for warming up
                    found.append(figures)
    both = {path: medians(each) for path, each in rounds.items()}
    row: dict[str, Any] = {"what": "echo", "size": ECHO, **both}
    row["p50 ratio"] = both["sdp"]["p50 us"] / both["raw"]["p50 us"]
    show(options, row, f"echo of {ECHO} octets", ("p50 us", "p99 us", "CPU us"))
    return [row]


def measure_sweep(options: Options) -> Rows:
    rows = []
    with connected(("raw", "bcopy", "zcopy"), options.pinned) as pair:
        for size in options.sizes or SWEEP:
            row: dict[str, Any] = {"what": "sweep", "size": size, **in_turns(pair, options, size)}
            rows.append(row)
            show(options, row, f"messages of {named(size)}", ("GB/s", "CPU s/GB"))
    return rows


AIMS: Final = {
    "bulk": (
        ("GB/s", "sends of {size}", "at least 0.8"),
        ("CPU s/GB", "CPU time of sends of {size}, both sides", "at most 1"),
    ),
    "echo": (("p50 us", "echo of {size}, p50", "at most 2.5"),),
}
"""What a row of either part says of which figure, and what the figure is to be."""
PARTS: Final = {"bulk": measure_bulk, "echo": measure_echo, "sweep": measure_sweep}


# -- the program ----------------------------------------------------------------------------------


def named(size: int) -> str:
    for unit, text in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {text}"
    return f"{size} octets"


def show(options: Options, row: dict[str, Any], name: str, keys: Sequence[str]) -> None:
    if options.as_json or options.as_markdown:
        return
    parts = [f"{name:22}"]
    for path in PATHS:
        if path in row:
            figures = " ".join(f"{row[path][key]:8.3f} {key}" for key in keys)
            parts.append(f"{path}: {figures}")
    parts += [f"{key} {value:.2f}" for key, value in row.items() if key.endswith("ratio")]
    print("   ".join(parts), flush=True)


def table(rows: Rows) -> str:
    """What the documentation says of bulk and echo, ready to be put there."""
    lines = ["| what | SDP | raw socket | ratio | aimed at |", "|---|---|---|---|---|"]
    for row in rows:
        for key, text, aim in AIMS.get(row["what"], ()):
            sdp, raw = row["sdp"][key], row["raw"][key]
            name = text.format(size=named(row["size"]))
            unit = key.removeprefix("CPU ").removeprefix("p50 ")
            figures = f"{sdp:.3g} {unit} | {raw:.3g} {unit} | **{sdp / raw:.2f}**"
            lines.append(f"| {name} | {figures} | {aim} |")
    return "\n".join(lines)


def parsed(words: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description="AF_INET_SDP beside the host's TCP.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each path in each round")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", type=int, help="octets, instead of the usual ones")
    parser.add_argument(
        "--step", type=int, default=0, help="octets of a receiving call; 0: what is left"
    )
    parser.add_argument("--pinned", action="store_true", help="a processor for each process")
    parser.add_argument("--keep", action="store_true", help="the sweep is what is drawn from now")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--markdown", action="store_true", dest="as_markdown")
    parser.add_argument("--serve", nargs="+", choices=PATHS, help=argparse.SUPPRESS)
    return Options(**vars(parser.parse_args(words)))


def main() -> int:
    options = parsed()
    if options.serve:
        serve(options.serve)
        return 0
    rows = [row for name in options.only for row in PARTS[name](options)]
    if options.as_json:
        print(json.dumps(rows, indent=1))
    if options.as_markdown:
        print(table(rows))
    if options.keep:
        sweep = [row for row in rows if row["what"] == "sweep"]
        KEPT.write_text(json.dumps(sweep, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
