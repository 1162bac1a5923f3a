"""The data process: owns the Stack, opens the family's sockets, moves the octets."""

from __future__ import annotations

import os

from steertag.run.channel import Channel
from steertag.run.launch import RunConfig


def start(config: RunConfig) -> tuple[int, Channel]:
    """Fork the data process; its pid, and our end of the channel to it.

    To be called while the process has one thread. The child ignores the terminal's signals, and
    ends when this end of the channel is closed and what programs had sent is delivered.

    Raises:
        OSError: the Stack or the family can't be had, in one line; no process is left behind.
    """
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid == 0:
        os._exit(1)
    theirs.close()
    return pid, ours
