"""A program to look into from outside: an RNIC with a listener and a connection to itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.processes import PATIENCE, Running
from tests.support import PROJECT

# Says its port, then does what it is told: a line of Python at a time, whose end it says.
PROGRAM: Final = """\
import sys, threading
from steertag import verbs as v

context = v.Context()
pd = v.PD(context)
passive = v.AddrInfo(src="127.0.0.1", src_service=0, flags=v.RAI_PASSIVE)
listener = v.CMID(passive, pd=pd)
listener.listen(3)
port = listener.getsockname()[1]
active = v.CMID(v.AddrInfo(dst="127.0.0.1", dst_service=port), pd=pd)
accepted = []

def accept():
    accepted.append(listener.get_request())
    accepted[-1].accept()

thread = threading.Thread(target=accept)
thread.start()
active.connect()
thread.join()
mr = v.MR(pd, bytearray(4096), v.IBV_ACCESS_LOCAL_WRITE | v.IBV_ACCESS_REMOTE_READ)
print(port, flush=True)
"""
OBEY: Final = """\
import sys
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Program(Running):
    """A running process; `source` runs first and has to print a line."""

    def __init__(self, source: str = PROGRAM, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", source + OBEY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env=environment_of(**environment),
        )
        self.pid = self.process.pid
        self.said = self._line()

    def do(self, line: str) -> None:
        """Have it run a line of Python."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self._line() == "done"

    def end(self) -> str:
        """Let it end by itself; what it wrote to standard error."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, errors
        return errors

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate(timeout=PATIENCE)[1])
        return line.rstrip("\n")


def environment_of(**more: str) -> dict[str, str]:
    """This process's environment without what would move or turn off the sockets."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("STEERTAG_", "XDG_"))}
    return {**kept, **more}


def socket_of(directory: Path, pid: int) -> Path:
    return directory / f"{pid}.sock"
