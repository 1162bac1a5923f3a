"""Numbers of the SDP engine that no message carries."""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Final

# What an engine tells its owner about, numbered as poll(2) does.
POLLIN: Final = 0x001
POLLPRI: Final = 0x002
POLLOUT: Final = 0x004
POLLERR: Final = 0x008
POLLHUP: Final = 0x010
POLLRDHUP: Final = 0x2000

MIN_BUFS: Final = 5
"""Receive buffers without which a direction can come to a halt: see `channel.DATA_FLOOR`."""


class SdpState(IntEnum):
    """Where a stream is; `engine.TRANSITIONS` says what leads from one to the next."""

    INIT = auto()  # Hello not exchanged
    ESTABLISHED = auto()
    FIN_SENT = auto()  # our DisConn is out
    FIN_RECEIVED = auto()  # the peer's DisConn is here
    CLOSING = auto()  # both are; the queue pair is being closed
    ABORTING = auto()  # AbortConn is on its way out
    CLOSED = auto()  # the queue pair has ended
