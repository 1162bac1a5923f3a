"""Runs `stag` as processes, as a person would."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.processes import PATIENCE, Done, Running

STAG: Final = (sys.executable, "-m", "steertag")

PATHS: Final = ("tcp-buffered", "tcp-sendfile", "rdma-write", "rdma-read")


def environment(**extra: str) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("STAG_")}
    return env | {"PYTHONUNBUFFERED": "1"} | extra


class Command(Running):
    """A running `stag`."""

    def __init__(
        self, *arguments: str | Path, wrap: Sequence[str] = (), cwd: Path | None = None, **env: str
    ) -> None:
        self.process = subprocess.Popen(
            [*wrap, *STAG, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment(**env),
        )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> Done:
        """Its end; one error line at most, and never a traceback."""
        out, err = self.process.communicate(timeout=PATIENCE)
        text = err.decode(errors="surrogateescape")
        assert "Traceback" not in text, text
        return Done(self.process.returncode, out.decode(errors="surrogateescape"), text)

    def first_line(self) -> str:
        """What it prints first on standard output."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline().decode() if ready else ""
        if not line:
            self.process.kill()
            raise AssertionError(f"stag said nothing: {self.process.communicate()[1].decode()}")
        return line


class Serving(Command):
    """A running `stag serve`."""

    def __init__(
        self,
        directory: Path,
        *options: str | Path,
        bind: str = "127.0.0.1:0",
        wrap: Sequence[str] = (),
        **env: str,
    ) -> None:
        super().__init__(
            *("serve", directory, "--bind", bind, "--json", *options), wrap=wrap, **env
        )
        self.banner: dict[str, Any] = json.loads(self.first_line())
        self.url: str = self.banner["url"]
        self.port: int = self.banner["port"]

    def events(self) -> list[dict[str, Any]]:
        """Stop it and give what it logged."""
        self.signal(signal.SIGINT)
        done = self.wait()
        assert done.code == 0, done
        return [json.loads(line) for line in done.out.splitlines()]


def stag(*arguments: str | Path, cwd: Path | None = None, **env: str) -> Done:
    """Run a command to its end."""
    with Command(*arguments, cwd=cwd, **env) as command:
        return command.wait()


def make_file(path: Path, size: int, mode: int = 0o644) -> bytes:
    """A file of octets that no two 8-octet words have in common; gives the octets."""
    data = b"".join(number.to_bytes(8, "little") for number in range((size + 7) // 8))[:size]
    path.write_bytes(data)
    path.chmod(mode)
    return data


def assert_one_line(done: Done, code: int, *words: str) -> None:
    """`done` ended with `code` and a single line that holds `words`."""
    assert done.code == code, done
    lines = [line for line in done.err.splitlines() if not line.startswith("path: ")]
    assert len(lines) == 1, done.err
    for word in words:
        assert word in lines[0]
