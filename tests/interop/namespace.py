"""A network namespace of a test's own, with processes in it.

The host kernel in such a namespace is the peer of AF_INET_NEW_TCP: a TUN or TAP device, made by a
process inside, is the link between them. Root makes a network namespace; anybody else makes a
user namespace around it, as the page "A network without root" shows.
"""

from __future__ import annotations

import functools
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from steertag.runtime.interfaces import VARIABLE
from tests.processes import PATIENCE
from tests.support import PROJECT, require_tool

PROGRAM: Final = PROJECT / "tests" / "interop" / "new_tcp_program.py"
_HOLD: Final = "ip link set lo up && echo ready && exec cat"
_TRY_TUN: Final = (
    "import fcntl, os, struct; fd = os.open('/dev/net/tun', os.O_RDWR);"
    "fcntl.ioctl(fd, 0x400454CA, struct.pack('16sH22x', b'', 0x5001))"
)


class Running:
    """A process in a namespace; it is ended where the namespace is.

    Attributes:
        name: as it is called in messages.
    """

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.process = process
        self._said = ""
        self._unread = b""

    def line(self, timeout: float = PATIENCE) -> str:
        """The next line of its standard output."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                octets = os.read(fd, 65536) if selector.select(timeout) else b""
                if not octets:
                    raise AssertionError(f"{self.name} said nothing more: {self.stop()}")
                self._unread += octets
        octets, _, self._unread = self._unread.partition(b"\n")
        self._said += (line := octets.decode() + "\n")
        return line

    def object(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """The next line, a JSON object."""
        found = json.loads(self.line(timeout))
        assert isinstance(found, dict)
        return found

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self, timeout: float = PATIENCE) -> str:
        """Its end, which has to be a good one: what it said since the last `line`."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} goes on and on: {self.stop()}") from None
        assert self.process.returncode == 0, f"{self.name}: {self.process.returncode}\n{out}{err}"
        return self._unread.decode() + out

    def stop(self) -> str:
        """End it, however; what it still said, for a message."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            out, err = self.process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
        return f"code {self.process.returncode}\n{self._said}{self._unread.decode()}{out}{err}"


class Namespace:
    """A network namespace with `lo` up, for as long as the `with` block runs."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._prefix: list[str] = []

    def __enter__(self) -> Self:
        holder = subprocess.Popen(
            [*_unshare(), "sh", "-c", _HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(holder.communicate, timeout=PATIENCE)  # ends at the end of its input
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        self._prefix = ["nsenter", *user, "--net", f"--target={holder.pid}"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start(self, *command: str | Path, device: str = "", **env: str) -> Running:
        """Start a program. `device`: what STEERTAG_DEVICE describes for it."""
        process = subprocess.Popen(
            [*self._prefix, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", VARIABLE: device, **env},
        )
        running = Running(Path(command[0]).name, process)
        self._stack.callback(running.stop)
        return running

    def run(self, *command: str | Path, timeout: float = PATIENCE) -> str:
        """Run a program to its end, which has to be a good one; its standard output."""
        return self.start(*command).wait(timeout)

    def program(self, device: str, command: str, *arguments: object) -> Running:
        """Start `new_tcp_program.py`: over the host's TCP where `device` is empty, else over
        AF_INET_NEW_TCP with that device.
        """
        family = "new_tcp" if device else "host"
        words = [sys.executable, PROGRAM, family, command, *map(str, arguments)]
        running = self.start(*words, device=device)
        running.name = f"{family} {command}"
        return running

    def ip(self, *arguments: str) -> str:
        """iproute2's `ip`."""
        return self.run("ip", *arguments)


def _unshare() -> Sequence[str]:
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "-Urn"]


@functools.cache
def _refusal() -> str | None:
    """Why there can be no namespace with a TUN device here."""
    done = subprocess.run(
        [*_unshare(), sys.executable, "-c", _TRY_TUN],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]


def require_tun() -> None:
    """Skip unless a network namespace can be made, and a TUN device in it."""
    for tool in ("unshare", "nsenter", "ip"):
        require_tool(tool)
    refusal = _refusal()
    if refusal is not None:
        pytest.skip(f"not possible here: a TUN device in a namespace: {refusal}")
