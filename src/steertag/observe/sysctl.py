"""A Stack's parameters, as sysctl(8) prints them."""

from __future__ import annotations

from collections.abc import Iterable

from steertag.family.stack import Stack


def format(stack: Stack, names: Iterable[str] | None = None) -> str:
    """Lines "name = value"; all of them when no names are given. Raises ENOENT."""
    chosen = stack.sysctl if names is None else [stack.sysctl.table(name).name for name in names]
    return "\n".join(f"{name} = {stack.sysctl.format(name)}" for name in chosen)


def as_json(stack: Stack, names: Iterable[str] | None = None) -> dict[str, dict[str, object]]:
    """Name -> value (a list of integers), meaning and whether it may be set."""
    chosen = stack.sysctl if names is None else [stack.sysctl.table(name).name for name in names]
    return {
        name: {
            "value": list(stack.sysctl.read(name)),
            "doc": stack.sysctl.table(name).doc,
            "writable": stack.sysctl.table(name).writable,
        }
        for name in chosen
    }
