"""Ctrl-C and SIGTERM reach a command whatever it is doing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.processes import PATIENCE

PROGRAM = """
import select, signal, sys, weakref
from steertag.cli.interrupt import take_interrupts

class Watched: pass

take_interrupts()
watched = Watched()
watch = weakref.ref(watched, lambda _: signal.raise_signal({number}))
try:
    del watched  # Python drops what its call-back raises
    print("lost for the moment", flush=True)
    select.select([], [], [])
except KeyboardInterrupt:
    print("interrupted")
"""
OTHERS = """
from steertag.cli.interrupt import keep_interrupts

class Broken:
    def __del__(self): raise ValueError("of somebody else's")

keep_interrupts()
keep_interrupts()
Broken()
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("number", [2, 15], ids=["SIGINT", "SIGTERM"])
def test_an_interruption_amid_a_call_back_that_may_not_raise_is_not_lost(number: int) -> None:
    done = run(PROGRAM.format(number=number))
    assert done.stdout.split("\n") == ["lost for the moment", "interrupted", ""], done.stderr
    assert (done.stderr, done.returncode) == ("", 0)


def test_what_else_a_finalizer_raises_is_reported_as_ever() -> None:
    done = run(OTHERS)
    assert done.stderr.count("ValueError: of somebody else's") == 1
    assert done.returncode == 0
