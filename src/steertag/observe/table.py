"""Columns of text."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Rows as lines, each column as wide as its widest; those in `right` to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(" ".join(cells).rstrip())
    return "\n".join(lines)


def plain(value: object) -> str:
    """What another process said, fit for a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))
