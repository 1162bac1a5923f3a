"""The four ways a file can take, and which one `auto` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from steertag.transfer.errors import PathCode, PathFailed


class PathName(StrEnum):
    """A path, as `--path` and the protocol name it."""

    TCP_BUFFERED = "tcp-buffered"
    TCP_SENDFILE = "tcp-sendfile"
    RDMA_WRITE = "rdma-write"
    RDMA_READ = "rdma-read"

    @property
    def is_rdma(self) -> bool:
        return self in (PathName.RDMA_WRITE, PathName.RDMA_READ)


AUTO: Final = "auto"
CHOICES: Final = (AUTO, *(str(path) for path in PathName))
"""What `--path` takes."""

PREFERRED_RDMA: Final = PathName.RDMA_WRITE
PREFERRED_TCP: Final = PathName.TCP_SENDFILE


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether a side has RDMA, and if not, why."""

    rdma: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The path to try first, and why, in words for a person."""

    path: PathName
    why: str


def choose(asked: str, own: Callable[[], Capability], peer: Capability) -> Choice:
    """The path for `asked` ("auto" or a path's name).

    Raises:
        PathFailed: an RDMA path was to be used (asked for, or `auto` would have) and a side lacks
            RDMA; the caller falls back and says so.
    """
    path = PREFERRED_RDMA if asked == AUTO else PathName(asked)
    if not path.is_rdma:
        return Choice(path, "asked for")
    if not peer.rdma:
        raise PathFailed(PathCode.PEER_NO_RDMA, f"the server has no RDMA: {peer.reason}")
    mine = own()
    if not mine.rdma:
        raise PathFailed(PathCode.LOCAL_NO_RDMA, f"this side has no RDMA: {mine.reason}")
    return Choice(path, "both sides have RDMA" if asked == AUTO else "asked for")
