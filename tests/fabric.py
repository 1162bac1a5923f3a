"""The fabric commands as processes, for tests that put one at an end of a connection."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Final

from tests.processes import PATIENCE, Done, Running

_LISTENING: Final = re.compile(r"stag: listening on \S+:(\d+)\n")


class Stag(Running):
    """`stag ARGUMENTS`, running."""

    def __init__(self, *arguments: str | int) -> None:
        command = [sys.executable, "-m", "steertag", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._said = ""

    def wait_listening(self) -> int:
        """Wait until it listens; gives the port."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said += line
            if match := _LISTENING.fullmatch(line):
                return int(match[1])
        raise AssertionError(f"the server did not listen: {self._said}")

    def read_until(self, text: str) -> None:
        """Read standard error up to a line with `text`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said += line
            if text in line:
                return
        raise AssertionError(f"it never said {text!r}: {self._said}")

    def wait(self) -> Done:
        out, err = self.process.communicate(timeout=PATIENCE)
        return Done(self.process.returncode, out, self._said + err)

    def interrupt(self, signal: int) -> Done:
        self.process.send_signal(signal)
        return self.wait()


def stag(*arguments: str | int) -> Done:
    """Run `stag ARGUMENTS` to its end."""
    with Stag(*arguments) as running:
        return running.wait()
