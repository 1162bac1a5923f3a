"""The kernel's request_module(): families that installed packages bring, loaded when asked for.

A package names its family in its metadata, by the kernel's alias for one:

    [project.entry-points."steertag.families"]
    net-pf-77 = "acme.family:register"

and `acme.family.register(stack)` registers it with the public calls.

What wants to see the RNICs that are opened over a Stack announces itself likewise, by any name, in
the group `steertag.observers`; `acme.monitor.attach(stack)` then appends to `stack.observers`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

    from steertag.family.stack import Stack

GROUP: Final = "steertag.families"
OBSERVERS: Final = "steertag.observers"
_ALIAS: Final = "net-pf-"


def family_alias(family: int) -> str:
    return f"{_ALIAS}{family}"


def _entries(group: str = GROUP) -> EntryPoints:
    # Imported here: reading package metadata is slow, and most programs never need it.
    from importlib.metadata import entry_points

    return entry_points(group=group)


def announced() -> dict[int, EntryPoint]:
    """Every family that an installed package brings: number -> entry point."""
    found: dict[int, EntryPoint] = {}
    for entry in _entries():
        number = entry.name.removeprefix(_ALIAS)
        if number != entry.name and number.isdecimal():
            found.setdefault(int(number), entry)
    return found


def request_module(stack: Stack, family: int) -> None:
    """Load the package that brings `family` and let it register; nothing happens if none does.

    Raises:
        OSError: ENOEXEC when the package is there and broken, the reason chained.
    """
    for entry in _entries().select(name=family_alias(family)):
        _call(entry, stack)
        return


def request_observers(stack: Stack) -> None:
    """Let every package that brings an observer attach it.

    Raises:
        OSError: ENOEXEC when a package is there and broken, the reason chained.
    """
    for entry in _entries(OBSERVERS):
        _call(entry, stack)


def _call(entry: EntryPoint, stack: Stack) -> None:
    try:
        register = entry.load()
    except (ImportError, AttributeError) as exc:
        raise os_error(errno.ENOEXEC, f"{entry.name} = {entry.value}: {exc}") from exc
    register(stack)
