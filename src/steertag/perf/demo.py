"""`stag demo`: one file, four paths, a server process and a client process, honest figures.

Every path moves the file several times, in turns with the others, into pages that are there
already: the first write of a page costs more than anything that a path adds or saves. CPU time is
what the operating system charged both processes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steertag.perf.figures import median
from steertag.transfer.client import Client, Request, connect
from steertag.transfer.report import TransferReport

PATHS: Final = ("tcp-buffered", "tcp-sendfile", "rdma-write", "rdma-read")
RUNS: Final = 5
SIZE: Final = 256 << 20
_NAME: Final = "demo.bin"
_RAM: Final = Path("/dev/shm")
_MIB: Final = 1 << 20
_STOP_TIMEOUT: Final = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Attributes:
    size: octets of the file.
    runs: counted runs of each path; one more comes first and isn't counted.
    directory: where the files go for the time of the run; None: in memory if there is room.
    """

    size: int = SIZE
    runs: int = RUNS
    directory: Path | None = None


def run(options: DemoOptions, say: Say) -> dict[str, object]:
    """Run it; the figures as a JSON-able object.

    Raises:
        OSError, TransferError: no room, no server.
    """
    where = options.directory or _place(3 * options.size)
    with tempfile.TemporaryDirectory(prefix="stag-demo-", dir=where) as folder:
        served, fetched = Path(folder, "served"), Path(folder, "fetched")
        served.mkdir()
        fetched.mkdir()
        say(f"a file of {options.size // _MIB} MiB in {folder}")
        _make_file(served / _NAME, options.size)
        reports = _four_paths(options, served, fetched, say)
        fallback = _fallback(served, fetched, say)
    return {
        "size": options.size,
        "runs": options.runs,
        "paths": {path: _figures(reports[path]) for path in PATHS},
        "fallback": fallback,
    }


def _four_paths(
    options: DemoOptions, served: Path, fetched: Path, say: Say
) -> dict[str, list[TransferReport]]:
    reports: dict[str, list[TransferReport]] = {path: [] for path in PATHS}
    with _server(served) as (port, pid), connect("127.0.0.1", port) as client:
        say(f"server: process {pid}, port {port} on loopback; client: process {os.getpid()}")
        for turn in range(options.runs + 1):
            for path in PATHS:
                report = _fetch(client, path, fetched)
                if turn:
                    reports[path].append(report)
    return reports


def _fetch(client: Client, path: str, fetched: Path) -> TransferReport:
    """One run into the pages of the run before."""
    target = fetched / _NAME
    if target.exists():
        target.rename(target.with_name(f"{_NAME}.part"))
    return client.fetch(_NAME, target, Request(path=path))


def _fallback(served: Path, fetched: Path, say: Say) -> dict[str, object]:
    """Ask a server without RDMA for an RDMA path."""
    with _server(served, "--no-rdma") as (port, _), connect("127.0.0.1", port) as client:
        report = _fetch(client, "rdma-read", fetched)
    if report.fallback is None:
        raise RuntimeError("a server without RDMA moved a file over RDMA")
    say("asked a server without RDMA for rdma-read")
    return {**report.to_json()["fallback"], "digest_ok": report.digest.ok}


def _figures(reports: list[TransferReport]) -> dict[str, object]:
    """Medians over the runs of one path."""
    size = reports[0].bytes

    def both(pick: Callable[[TransferReport], float]) -> float:
        return float(median(pick(report) for report in reports))

    return {
        "gb_per_s": both(lambda r: r.gb_per_s),
        "cpu_s_per_gb": both(lambda r: (r.own.cpu_s + r.peer.cpu_s) / size * 1e9),
        "staged_bytes_per_byte": both(lambda r: (r.own.staged_bytes + r.peer.staged_bytes) / size),
        "syscalls_per_mib": both(lambda r: (r.own.syscalls + r.peer.syscalls) / size * _MIB),
        "digest_ok": all(report.digest.ok for report in reports),
        "path_used": sorted({report.path for report in reports}),
    }


@contextmanager
def _server(served: Path, *options: str) -> Iterator[tuple[int, int]]:
    """A server process of its own: its port and process number."""
    command = [sys.executable, "-m", "steertag", "serve", str(served), "--bind", "127.0.0.1:0"]
    server = subprocess.Popen(
        [*command, "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise OSError(f"the server ended at once (exit code {server.wait(_STOP_TIMEOUT)})")
        yield int(json.loads(line)["port"]), server.pid
    finally:
        server.terminate()
        server.wait(_STOP_TIMEOUT)
        if server.stdout is not None:
            server.stdout.close()


def _place(octets: int) -> Path | None:
    """A directory in memory that has room for `octets`, or None for the usual one."""
    if os.access(_RAM, os.W_OK) and shutil.disk_usage(_RAM).free > 2 * octets:
        return _RAM
    return None


def _make_file(path: Path, size: int) -> None:
    """Random octets, no two MiB alike, fast to make."""
    block = bytearray(secrets.token_bytes(_MIB))
    with path.open("wb") as file:
        for index in range(-(-size // _MIB)):
            block[:8] = index.to_bytes(8, "big")
            file.write(block[: min(_MIB, size - index * _MIB)])
