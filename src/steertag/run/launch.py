"""The way in: run a program with its sockets served by a family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steertag.family.rules import Rules

Endpoint = tuple[str, int]
"""Host and port; host "*" is any, port 0 is any."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What `stag run` was asked for.

    Attributes:
        family: what serves the program's AF_INET and AF_INET6 sockets: "sdp", "new_tcp", "host", or
            the number of a registered family ("45"). Numbers that the kernel doesn't know are
            served by the family of that number, whatever this says.
        rules: who goes where, by program, role, address and port; None: everything to `family`.
        maps: addresses that are replaced in bind, connect and sendto, (from, to).
        device: devices of AF_INET_NEW_TCP, as STEERTAG_DEVICE has them; None: the environment's.
        verbose: every call that is answered here is written to stderr.
        relay: the relayed path even for a family whose sockets are the host's own.
        rtt: seconds that a connection takes longer than it does, for tests.
        stats: at the end, counters on stderr.
        modules: to be imported first where the Stack is; they may register families with it.
    """

    family: str = "sdp"
    rules: Rules | None = None
    maps: Sequence[tuple[Endpoint, Endpoint]] = ()
    device: str | None = None
    verbose: bool = False
    relay: bool = False
    rtt: float = 0.0
    stats: bool = False
    modules: Sequence[str] = ()


def run(argv: Sequence[str], config: RunConfig) -> int:
    """Run `argv` until it ends; its exit status, or the negative of the signal that killed it.

    126: the program can't be executed; 127: there is no such program, as a shell says it.

    Raises:
        OSError: what the kernel refuses of what is needed (`stag run --check` says which).
    """
    raise NotImplementedError
