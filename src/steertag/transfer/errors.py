"""What can go wrong in a transfer, and the exit code that each kind has.

`TransferError` is what the mover raises for everything that a person has to hear of: one line of
text, an `ExitCode`, nothing else. `PathFailed` is not a failure of the transfer but of the way it
was tried: whoever catches it goes on over another path and says so.
"""

from __future__ import annotations

import errno
from enum import IntEnum, StrEnum
from typing import Final

from steertag.transfer.names import escape


class ExitCode(IntEnum):
    """Exit codes of `stag get`, `put`, `ls` and `serve`. Stable: scripts depend on them."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NO_SUCH_FILE = 3
    PERMISSION_DENIED = 4
    CANNOT_CONNECT = 5
    NOT_A_STAG_SERVER = 6
    AUTHENTICATION = 7
    CONNECTION_LOST = 8
    NO_SPACE = 9
    DIGEST_MISMATCH = 10
    SOURCE_CHANGED = 11
    OUTSIDE_DIRECTORY = 12
    BUSY = 13
    INTERRUPTED = 130


class PathCode(StrEnum):
    """Why a path was left for another; `code` of the `fallback` object in `--json`."""

    LOCAL_NO_RDMA = "local-no-rdma"
    PEER_NO_RDMA = "peer-no-rdma"
    REFUSED = "rdma-refused"
    RESET = "rdma-reset"
    TIMEOUT = "rdma-timeout"
    GARBLED = "rdma-garbled"
    LOST = "rdma-lost"
    STALLED = "rdma-stalled"
    RESOURCES = "rdma-resources"


class TransferError(Exception):
    """A transfer ended without its file.

    Attributes:
        code: the exit code that `stag` ends with.
        message: one line for a person; names in it are already escaped.
        told: whether the peer knows of it.
    """

    told = False

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ConnectionLost(TransferError):
    """The control connection ended, broke or fell silent."""

    told = True  # there is nobody to tell

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.CONNECTION_LOST, message)


class PeerFailed(TransferError):
    """The peer said that it cannot go on; its code and its words."""

    told = True


class PathFailed(Exception):
    """This path does not work here; another may. The control connection is intact."""

    def __init__(self, code: PathCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


_BY_ERRNO: Final[dict[int, ExitCode]] = {
    errno.ENOENT: ExitCode.NO_SUCH_FILE,
    errno.ENOTDIR: ExitCode.NO_SUCH_FILE,
    errno.EACCES: ExitCode.PERMISSION_DENIED,
    errno.EPERM: ExitCode.PERMISSION_DENIED,
    errno.EROFS: ExitCode.PERMISSION_DENIED,
    errno.ENOSPC: ExitCode.NO_SPACE,
    errno.EDQUOT: ExitCode.NO_SPACE,
    errno.EFBIG: ExitCode.NO_SPACE,
}

_ADVICE: Final[dict[ExitCode, str]] = {
    ExitCode.NO_SUCH_FILE: "check the name",
    ExitCode.PERMISSION_DENIED: "check the owner and mode",
    ExitCode.NO_SPACE: "free some space or choose another destination",
}


def from_os_error(error: OSError, name: str, served: bool = False) -> TransferError:
    """What an error of a file system call on `name` means to a person.

    Args:
        served: whether `name` is one of a server, that its clients can list.
    """
    code = _BY_ERRNO.get(error.errno or 0, ExitCode.FAILURE)
    text = f"{escape(name)}: {error.strerror or error}"
    advice = _ADVICE.get(code)
    if served and code is ExitCode.NO_SUCH_FILE:
        advice = f"{advice}; `stag ls` shows what a server has"
    return TransferError(code, f"{text}; {advice}" if advice else text)
