"""What a transfer did and what it cost: the figures behind `--json` and `stag demo`."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Side:
    """What one side of a transfer spent.

    Attributes:
        cpu_s: user + system CPU seconds, from getrusage(2).
        syscalls: system calls of the data path, sockets and files.
        staged_bytes: octets that passed through a user-space buffer that is neither the file nor
            registered memory.
    """

    cpu_s: float
    syscalls: int
    staged_bytes: int


@dataclass(frozen=True, slots=True)
class Fallback:
    """A path that was to be used, the one that was used, and why. `code` is a `PathCode`."""

    source: str
    target: str
    reason: str
    code: str

    def to_json(self) -> dict[str, str]:
        return {"from": self.source, "to": self.target, "reason": self.reason, "code": self.code}


@dataclass(frozen=True, slots=True)
class DigestReport:
    """The digest that both sides computed. `ok` says that they agree."""

    algo: str
    hex: str
    ok: bool


@dataclass(frozen=True, slots=True)
class TransferReport:
    """One transfer that went well.

    Attributes:
        direction: "get" or "put".
        url: the remote file.
        file: the local file.
        asked: the path that was asked for, perhaps "auto".
        path: the path that moved the file.
        why: why this path.
        bytes: size of the file.
        seconds: from the request until the digests were compared: the space's reservation, the
            connection's set-up and any fallback included, the sync to disk not.
        sync_s: from there until the file was on disk under its name, as seen from here.
        own, peer: what either side spent in `seconds`.
    """

    direction: str
    url: str
    file: str
    asked: str
    path: str
    why: str
    bytes: int
    seconds: float
    sync_s: float
    own: Side
    peer: Side
    digest: DigestReport
    fallback: Fallback | None

    @property
    def gb_per_s(self) -> float:
        """10**9 octets a second."""
        return self.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "direction": self.direction,
            "url": self.url,
            "file": self.file,
            "asked": self.asked,
            "path": self.path,
            "why": self.why,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "sync_s": self.sync_s,
            "gb_per_s": self.gb_per_s,
            "own": asdict(self.own),
            "peer": asdict(self.peer),
            "digest": asdict(self.digest),
            "fallback": self.fallback.to_json() if self.fallback else None,
        }


class Meter:
    """Counts what this side spends from its construction on.

    Args:
        who: `resource.RUSAGE_SELF` for a process that does one transfer at a time,
            `resource.RUSAGE_THREAD` for a server's session, which has a thread of its own.
    """

    def __init__(self, who: int = resource.RUSAGE_SELF) -> None:
        self._who = who
        self.restart()

    def restart(self) -> None:
        """Begin anew, from zero."""
        self.syscalls = 0
        self.staged_bytes = 0
        self._cpu = self._cpu_now()
        self._begin = time.perf_counter()

    def _cpu_now(self) -> float:
        usage = resource.getrusage(self._who)
        return usage.ru_utime + usage.ru_stime

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._begin

    def side(self) -> Side:
        """The figures so far."""
        return Side(self._cpu_now() - self._cpu, self.syscalls, self.staged_bytes)
