"""Looks into the running processes of a user, through the sockets of `observe.inspect`."""

from __future__ import annotations

import json
import os
import socket as host
import struct
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from steertag.errors import WireError
from steertag.observe import rendezvous

VERSION: Final = 1
MAX_ANSWER: Final = 256 << 20
_SECONDS: Final = 30.0
_SILENCE: Final = 2.0
"""Seconds without a word after which a process is taken for stopped."""
_CHUNK: Final = 1 << 16
_AT_ONCE: Final = 8
_CREDENTIALS: Final = struct.Struct("@3i")

Object = dict[str, object]


@dataclass(slots=True)
class Process:
    """One process that answered.

    Attributes:
        pid, comm: its number, as the kernel says, and its name.
        closed: counters of the RNICs that it has closed.
        rdma: its RNICs; see `observe.resources.contexts_json`.
        sockets: of its Stacks. sysctl: of its default Stack. See the modules of these names.
        netstat: of each Stack with AF_INET_NEW_TCP, the groups of `observe.netstat`.
        links: the network devices of its Stacks; see `observe.links.links`.
    """

    pid: int
    comm: str
    closed: Object = field(default_factory=dict)
    rdma: list[Object] = field(default_factory=list)
    sockets: list[Object] = field(default_factory=list)
    sysctl: dict[str, Object] = field(default_factory=dict)
    netstat: list[Object] = field(default_factory=list)
    links: list[Object] = field(default_factory=list)


@dataclass(slots=True)
class Listing:
    """Attributes:
    processes: those that answered, by number.
    silent: number and reason of those that live and didn't.
    """

    processes: list[Process] = field(default_factory=list)
    silent: list[tuple[int, str]] = field(default_factory=list)


def own_name() -> str:
    """This process's name as ps(1) has it."""
    try:
        return Path("/proc/self/comm").read_text(encoding="ascii", errors="backslashreplace")[:-1]
    except OSError:
        return "?"


def listing(want: Iterable[str], pids: Iterable[int] | None = None) -> Listing:
    """Ask this user's processes; `pids` limits it to some.

    Raises:
        OSError: EPERM where the directory of the sockets can't be trusted; ESRCH where one of
            `pids` can't be asked: it is no process of this user's that opened an RNIC or drives a
            network device.
    """
    found = Listing()
    path = rendezvous.directory()
    chosen = None if pids is None else set(pids)
    asked: dict[int, Process | str] = {}
    if path is not None and path.exists():
        with rendezvous.opened(path, create=False) as fd:
            asked = _ask_all(fd, list(want), chosen)
    for pid, answer in sorted(asked.items()):
        if isinstance(answer, Process):
            found.processes.append(answer)
        else:
            found.silent.append((pid, answer))
    missing = (chosen or set()) - set(asked)
    if missing:
        raise ProcessLookupError(
            f"process {min(missing)} has no inspection socket in {path or 'any directory'}"
        )
    return found


def _ask_all(fd: int, want: list[str], pids: set[int] | None) -> dict[int, Process | str]:
    """What each process in the directory answers, or why it doesn't."""
    names = {rendezvous.process_of(name): name for name in os.listdir(fd)}
    chosen = [
        (pid, name)
        for pid, name in names.items()
        if pid is not None and (pids is None or pid in pids)
    ]

    def ask(entry: tuple[int, str]) -> tuple[int, Process | str] | None:
        pid, name = entry
        try:
            answer = _ask(fd, name, want)
        except WireError as exc:
            return pid, str(exc)
        except TimeoutError:
            return pid, "it does not answer; is it stopped?"
        except OSError as exc:
            return pid, exc.strerror or str(exc)
        return None if answer is None else (answer.pid, answer)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(entry for entry in pool.map(ask, chosen) if entry is not None)


def _ask(fd: int, name: str, want: list[str]) -> Process | None:
    """One process's answer; None where it has died."""
    peer = rendezvous.connect(fd, name)
    if peer is None:
        return None
    with peer:
        pid, uid, _ = _CREDENTIALS.unpack(
            peer.getsockopt(host.SOL_SOCKET, host.SO_PEERCRED, _CREDENTIALS.size)
        )
        if uid != os.fstat(fd).st_uid:
            raise WireError(f"its socket belongs to user {uid}")
        deadline = time.monotonic() + _SECONDS
        peer.settimeout(_SILENCE)
        peer.sendall(json.dumps({"version": VERSION, "want": want}).encode() + b"\n")
        answer = bytearray()
        while True:
            if time.monotonic() > deadline or len(answer) > MAX_ANSWER:
                raise WireError("its answer has no end")
            octets = peer.recv(_CHUNK)
            if not octets:
                break
            answer += octets
    # In another process namespace the kernel has no number for it here: then its own word counts.
    return _parse_untrusted(bytes(answer), pid or rendezvous.process_of(name) or 0)


def _parse_untrusted(answer: bytes, pid: int) -> Process:
    """Raises WireError only."""
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        raise WireError("it does not answer in JSON") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise WireError("it speaks another version of the protocol")
    comm, rdma = document.get("comm", "?"), document.get("rdma", [])
    closed = document.get("closed", {})
    sockets, sysctl = document.get("sockets", []), document.get("sysctl", {})
    netstat, links = document.get("netstat", []), document.get("links", [])
    if not (
        isinstance(comm, str)
        and isinstance(closed, dict)
        and _objects(rdma)
        and _objects(sockets)
        and isinstance(sysctl, dict)
        and _objects(list(sysctl.values()))
        and _objects(netstat)
        and _objects(links)
    ):
        raise WireError("its answer is not what it should be")
    return Process(pid, comm, closed, rdma, sockets, sysctl, netstat, links)


def _objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)
