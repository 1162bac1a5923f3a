"""Counters of AF_INET_NEW_TCP, with the kernel's names, as `netstat -s` and nstat(8) show them, and
of AF_INET_SDP."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steertag.observe.processes import Process, own_name
from steertag.observe.table import plain

if TYPE_CHECKING:
    from steertag.family.stack import Stack

Groups = dict[str, dict[str, int]]
"""By group ("TcpExt"), then by name ("TCPTimeouts")."""


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of one Stack, and the number and name of its process."""

    pid: int
    comm: str
    groups: Groups


def groups(stack: Stack) -> Groups:
    """Every counter of a Stack; empty where neither family is registered with it."""
    found: Groups = {}
    if "inet" in stack.generic:
        from steertag.inet.ip.net import inet_net  # only where there is something to show

        with stack.lock:
            found |= inet_net(stack).mib.groups()
    if "sdp" in stack.generic:
        from steertag.runtime.sdp import fabric_of

        with stack.lock:
            fabric = fabric_of(stack)
            if fabric is not None:
                found |= fabric.groups()
    return found


def owned(stack: Stack | None, processes: Iterable[Process] = ()) -> list[Counters]:
    """Those of this process's `stack`, and of the Stacks that other processes told of."""
    found = []
    if stack is not None and (mine := groups(stack)):
        found.append(Counters(os.getpid(), own_name(), mine))
    for process in processes:
        found += [Counters(process.pid, process.comm, _told(one)) for one in process.netstat]
    return found


def format(found: Iterable[Counters], *, zeros: bool = False) -> str:
    """A paragraph a Stack, in it a line a counter, in the kernel's order; zeros only if asked."""
    return "\n\n".join("\n".join(_lines(one, zeros)) for one in found)


def as_json(found: Iterable[Counters], *, zeros: bool = False) -> list[dict[str, object]]:
    """One object a Stack: `pid`, `comm`, `kernel`: what `nstat --json` has under that name."""
    return [
        {
            "pid": one.pid,
            "comm": one.comm,
            "kernel": {
                group + name: value
                for group, counters in one.groups.items()
                for name, value in counters.items()
                if value or zeros
            },
        }
        for one in found
    ]


def _lines(one: Counters, zeros: bool) -> Iterator[str]:
    yield f"{plain(one.comm)} (pid {one.pid})"
    for group, counters in one.groups.items():
        chosen = {name: value for name, value in counters.items() if value or zeros}
        if not chosen:
            continue
        yield f"{plain(group)}:"
        width = max(map(len, map(plain, chosen)))
        for name, value in chosen.items():
            yield f"    {plain(name):<{width}} {value}"


def _told(told: Mapping[str, object]) -> Groups:
    """Groups as another process told them; what isn't what it should be is left out."""
    return {
        group: {name: value for name, value in counters.items() if isinstance(value, int)}
        for group, counters in told.items()
        if isinstance(counters, dict)
    }
