"""Programs under `stag run`, for tests: scripts for this interpreter, and how to run them."""

from __future__ import annotations

import functools
import socket as std
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from steertag.run import check

LIMIT = 60.0
STAG = (sys.executable, "-m", "steertag", "run")


@functools.cache
def _missing() -> str:
    return "; ".join(each.name for each in check.check() if each.needed and not each.ok)


def require_supervision() -> None:
    """Skip where the kernel or the container does not allow what `stag run` needs."""
    missing = _missing()
    if missing:
        pytest.skip(f"not possible here: {missing}")


def supervised(
    *argv: str, options: Sequence[str] = ("--family", "host", "--relay"), stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program under `stag run` to its end."""
    require_supervision()
    return subprocess.run(
        [*STAG, *options, "--", *argv],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=LIMIT,
        check=False,
    )


def script(
    text: str, *arguments: str, options: Sequence[str] = ("--family", "host", "--relay")
) -> str:
    """Run a script; what it said. Fails unless it ends well."""
    done = supervised(sys.executable, "-c", text, *arguments, options=options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def started(
    text: str, *arguments: str, options: Sequence[str] = ("--family", "host", "--relay")
) -> subprocess.Popen[str]:
    """Start a script; its standard input and output are pipes."""
    require_supervision()
    return subprocess.Popen(
        [*STAG, *options, "--", sys.executable, "-u", "-c", text, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with std.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def children(pid: int) -> list[int]:
    """Of a process, those that live."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
