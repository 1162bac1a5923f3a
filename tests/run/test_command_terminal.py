"""`stag run` at a terminal, started by a shell with job control: keys stop, continue and end it.
And signals that come early.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.run.programs import LIMIT, STAG, require_supervision

OPTIONS = ("--family", "host", "--relay", "--")
# What a shell does with a job: a process group of its own, which has the terminal while it runs.
SHELL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        break
    os.tcsetpgrp(0, os.getpgrp())
    os.write(1, b"<stopped>")
    assert os.read(0, 100) == b"fg\\n"
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
os.write(1, b"<ended %d>" % os.waitstatus_to_exitcode(status))
"""
ECHO = ("sh", "-c", "echo '<ready>'; exec sed -u 's/.*/<got &>/'")


class Terminal:
    """The other side of a terminal: what a person types, and reads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = b""

    def press(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def wait_for(self, what: bytes) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while what not in self.seen:
            assert poll.poll(LIMIT * 1000), f"{what!r} did not come, but {self.seen!r}"
            self.seen += os.read(self.fd, 4096)
        self.seen = self.seen.partition(what)[2]


@contextmanager
def job(*program: str) -> Iterator[Terminal]:
    """`stag run PROGRAM` in a shell at a terminal."""
    require_supervision()
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", SHELL, *STAG, *OPTIONS, *program])
    terminal = Terminal(fd)
    try:
        yield terminal
    finally:
        os.close(fd)  # hangs up
        os.waitpid(pid, 0)


def test_control_c_ends_the_program_and_us_with_the_shells_code_for_it() -> None:
    with job(*ECHO) as terminal:
        terminal.wait_for(b"<ready>")
        terminal.press(b"\x03")
        terminal.wait_for(b"<ended 130>")


def test_control_z_stops_the_job_and_it_goes_on_in_the_foreground() -> None:
    with job(*ECHO) as terminal:
        terminal.wait_for(b"<ready>")
        for word in (b"once", b"again"):
            terminal.press(b"\x1a")
            terminal.wait_for(b"<stopped>")
            terminal.press(b"fg\n")
            terminal.press(word + b"\n")
            terminal.wait_for(b"<got " + word + b">")
        terminal.press(b"\x04")
        terminal.wait_for(b"<ended 0>")


CAUGHT = """
import os, signal
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"<caught>"))
os.write(1, b"<ready>")
while True:
    line = os.read(0, 100)
    if line == b"end\\n":
        break
raise SystemExit(7)
"""


def test_a_program_that_catches_control_c_goes_on_and_so_do_we() -> None:
    with job(sys.executable, "-c", CAUGHT) as terminal:
        terminal.wait_for(b"<ready>")
        for _ in range(2):
            terminal.press(b"\x03")
            terminal.wait_for(b"<caught>")
        terminal.press(b"end\n")
        terminal.wait_for(b"<ended 7>")


@pytest.mark.parametrize("ends", ["sleep 1000", "trap '' HUP; echo ignored; exit 0"])
def test_nobody_stays_when_the_terminal_hangs_up(ends: str) -> None:
    reads, writes = os.pipe()
    os.set_inheritable(writes, True)
    with job("sh", "-c", f"echo '<ready>'; read -r line; {ends}") as terminal:
        os.close(writes)
        terminal.wait_for(b"<ready>")
    poll = select.poll()
    poll.register(reads, select.POLLIN)
    assert poll.poll(LIMIT * 1000)
    assert os.read(reads, 1) == b""  # nobody holds the other end any more
    os.close(reads)


def blocked(pid: int) -> int:
    """The signals that a process has blocked, as a mask."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigBlk:"):
            return int(line.split()[1], 16)
    return 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_before_the_program_is_not_lost(number: signal.Signals) -> None:
    require_supervision()
    process = subprocess.Popen([*STAG, *OPTIONS, "sleep", "1000"], stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT
    while not blocked(process.pid) & 1 << (number - 1):  # from then on it is ours to pass on
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(LIMIT) == 128 + number
