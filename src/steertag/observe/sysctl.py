"""A Stack's parameters, as sysctl(8) prints them."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

from steertag.family.stack import Stack
from steertag.observe.table import plain


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


def format_told(told: Mapping[str, Mapping[str, object]], names: Iterable[str] | None) -> str:
    """The same, of parameters that another process told of. Raises OSError ENOENT."""
    chosen = told if names is None else names
    return "\n".join(f"{plain(name)} = {told_value(told, name)}" for name in chosen)


def told_value(told: Mapping[str, Mapping[str, object]], name: str) -> str:
    """One of these, as text. Raises OSError ENOENT."""
    if name not in told:
        raise OSError(errno.ENOENT, f"no sysctl {name!r} in that process")
    value = told[name].get("value")
    return "\t".join(map(plain, value)) if isinstance(value, list) else "?"
