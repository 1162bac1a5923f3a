"""Runs the commands of a page as a reader would: in order, in one directory.

Where the machine allows it, the session has a network of its own, with the addresses below: what a
page serves then takes no port of the machine, and no other session's.
"""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support import may_unshare

TIMEOUT: Final = 120
ADDRESSES: Final = ("192.0.2.1/24",)
"""Of the session's network, besides the loopback's (RFC 5737: for documentation)."""
_NETWORK: Final = " && ".join(
    [
        "ip link set lo up",
        *(f"ip address add {address} dev lo" for address in ADDRESSES),
        "echo ready",
        "exec cat",
    ]
)
_SERVER: Final = re.compile(
    r"^(stag (serve|rping -s|rdma-server|ucmatose(?!.* -s))\b(?!.*--help)"
    r"|env .* python examples/http|python -m steertag\.patch .*-m http\.server\b)"
)
_LISTENS: Final = re.compile(r"stag://|listening on |Serving HTTP on ")


class Session:
    """A shell session in `directory`; servers started in it run until it is closed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._servers: list[subprocess.Popen[str]] = []
        self._network: subprocess.Popen[str] | None = None
        self._prefix: list[str] = []
        if may_unshare("--net"):
            self._enter_network()
        # The environment that the tests run in is the one that `uv run` would use.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("XDG_", "STAG_"))  # nothing of whoever runs the tests
        }
        own = str(directory)
        self._environment = {**inherited, "PATH": path, "HOME": own, "XDG_RUNTIME_DIR": own}
        self._environment["PYTHONUNBUFFERED"] = "1"  # a server says at once where it listens

    def _enter_network(self) -> None:
        """Make a network namespace that lives as long as the process that holds it."""
        self._network = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", _NETWORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._network.stdout is not None
        assert self._network.stdout.readline() == "ready\n"
        self._prefix = ["nsenter", f"--net=/proc/{self._network.pid}/ns/net"]

    def run(self, command: str) -> None:
        """Run one command line; AssertionError if it fails."""
        command = re.sub(r"\buv run (?=stag|python)", "", command)
        if _SERVER.match(command):
            self._serve(command)
            return
        done = subprocess.run(
            [*self._prefix, "sh", "-c", command],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def _serve(self, command: str) -> None:
        """Start a server and wait until it says where it listens."""
        server = subprocess.Popen(
            [*self._prefix, "sh", "-c", f"exec {command}"],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._servers.append(server)
        assert server.stdout is not None
        said = ""
        with selectors.DefaultSelector() as selector:
            selector.register(server.stdout, selectors.EVENT_READ)
            while not _LISTENS.search(said):
                assert selector.select(TIMEOUT), f"{command}: silent; so far {said!r}"
                line = server.stdout.readline()
                assert line, f"{command}: ended; it said {said!r}"
                said += line

    def close(self) -> None:
        for server in self._servers:
            server.terminate()
            server.communicate(timeout=TIMEOUT)
        if self._network is not None:
            self._network.communicate(timeout=TIMEOUT)  # ends at the end of its input

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
