"""What can go wrong in a test of a fabric, and the exit code that each kind has."""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Final

from steertag import verbs


class ExitCode(IntEnum):
    """Exit codes of `stag rping`, `ucmatose`, `rdma-client` and `rdma-server`. Stable."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CANNOT_CONNECT = 5
    NO_IWARP_PEER = 6
    CONNECTION_LOST = 8
    DATA_MISMATCH = 10
    INTERRUPTED = 130


class FabricError(Exception):
    """A test ended early; its text is one line for a person."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Disconnected(FabricError):
    """The peer closed the connection between two messages."""


_NOT_IWARP: Final = frozenset({"garbled", "closed", "revision", "timeout"})
_ADVICE: Final = {
    "rejected": "is it the program that you meant to reach?",
    "timeout": "does it speak iWARP?",
    "closed": "does it speak iWARP? siw closes like this for an MPA revision it doesn't know",
    "garbled": "it does not speak iWARP",
    "revision": "try --mpa-revision 1",
    "markers": "markers are off here",
    "crc": "try --no-crc",
    "rtr": "try another --rtr, or none",
    "ird": "the peer has to take fewer Read Requests at once",
}


def cannot_connect(error: OSError, where: str) -> FabricError:
    """What an error of `CMID.connect` means to a person."""
    if isinstance(error, verbs.ConnectError):
        code = ExitCode.NO_IWARP_PEER if error.code in _NOT_IWARP else ExitCode.CANNOT_CONNECT
        advice = _ADVICE.get(error.code)
        text = f"cannot connect to {where}: {error.strerror}"
        return FabricError(code, f"{text}; {advice}" if advice else text)
    text = f"cannot connect to {where}: {error.strerror or error}"
    if error.errno == errno.ECONNREFUSED:
        text += "; is a server running there?"
    return FabricError(ExitCode.CANNOT_CONNECT, text)
