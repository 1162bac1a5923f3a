"""What becomes of a command whose output nobody takes: `stag ls | head`, a full disk."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def reader_left() -> bool:
    """Whether standard output or error is a pipe that nobody reads any more.

    This tells the EPIPE of our output from that of a connection.
    """
    return any(_is_broken(stream) for stream in (sys.stdout, sys.stderr))


def _is_broken(stream: TextIO | None) -> bool:
    if stream is None:  # closed by whoever started us
        return False
    try:
        fd = stream.fileno()
    except (OSError, ValueError):  # not a file: captured by a test
        return False
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def mute() -> None:
    """Let what is still in the buffers, and all further output, go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and (stream is sys.stdout or _is_broken(stream)):
            os.dup2(null, stream.fileno())
    os.close(null)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """A reader that has what it wanted ends the command, which has not failed: exit code 0."""
    try:
        yield
    except BrokenPipeError:
        if not reader_left():
            raise
        mute()
        raise SystemExit(0) from None


def settle() -> None:
    """Write out what is buffered; what can't be written is dropped, and was reported before."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            mute()
