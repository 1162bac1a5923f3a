"""Programs that people run, server and client, under `stag run`, as shell scripts.

Over SDP each end has a supervisor of its own, as on two hosts. The loopback of AF_INET_NEW_TCP is a
Stack's own: there both ends are under one.
"""

from __future__ import annotations

import random
import shlex
import signal
import socket
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.run.behaviours import MODES, supervised
from tests.support import require_tool

PATIENCE: Final = 100.0
LARGE: Final = 3 << 20
FAMILIES: Final = ("new_tcp", "sdp")
everywhere: Final = pytest.mark.parametrize(
    "application", ["host", "relay", *FAMILIES], indirect=True
)
"""For those tests that the host's TCP has to pass, too, with and without a relay."""
TOGETHER: Final = ("host", "relay", "new_tcp")
_READY: Final = """\
set -eu
ready() {
  tries=0
  until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { echo "never ready: $*" >&2; return 1; }
    sleep 0.1
  done
}
"""


def free_port() -> int:
    """A TCP port of the host that nobody uses at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Application:
    """A server and what talks to it.

    Args:
        mode: of `behaviours.MODES`.
        directory: where both run. `port`: what scripts know as $port.
    """

    def __init__(self, mode: str, directory: Path) -> None:
        assert mode in MODES
        self.mode = mode
        self.directory = directory
        self.port = free_port()

    def talk(self, server: str, client: str) -> str:
        """Run the client's script while the server's command runs; what the client printed.

        Shell scripts; `ready COMMAND` tries a command until it succeeds.
        """
        head = f"{_READY}port={self.port}\n"
        serve = f"{head}exec {server}\n"
        (self.directory / "server.sh").write_text(serve)
        (self.directory / "client.sh").write_text(head + client)
        if self.mode in TOGETHER:
            (self.directory / "both.sh").write_text(
                "sh server.sh >server.log 2>&1 &\nserver=$!\n"
                "status=0\nsh client.sh || status=$?\n"
                "kill $server 2>/dev/null\nwait $server\nexit $status\n"
            )
            return self._run([*supervised(self.mode), "sh", "both.sh"])
        with (self.directory / "server.log").open("w") as log:
            running = subprocess.Popen(
                [*supervised(self.mode), "sh", "server.sh"],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            return self._run([*supervised(self.mode), "sh", "client.sh"])
        finally:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                running.kill()
                raise

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        log = self.directory / "server.log"
        said = log.read_text(errors="replace")[-3000:] if log.exists() else ""
        assert done.returncode == 0, (
            f"{shlex.join(command)}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            f"\nserver: {said}"
        )
        return done.stdout


def web_directory(directory: Path) -> None:
    """Files to serve, in www."""
    (directory / "www").mkdir()
    (directory / "www" / "small.txt").write_text("hello\n")
    (directory / "www" / "large").write_bytes(random.Random(1).randbytes(LARGE))


def need(*programs: str) -> None:
    for program in programs:
        require_tool(program)
