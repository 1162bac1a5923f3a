"""Draws the state machines in `explanation/states.md` from the tables that the code runs on.

    python docs/tools/draw_states.py

rewrites what stands between the markers of each machine; a test fails while the page is behind.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Final

from steertag.rdma.mpa_state import TRANSITIONS as MPA_TRANSITIONS
from steertag.rdma.qp_state import TRANSITIONS as QP_TRANSITIONS

PAGE: Final = Path(__file__).resolve().parent.parent / "explanation" / "states.md"
Table = Mapping[tuple[IntEnum, IntEnum], IntEnum]
# Comprehensions, since a mapping's keys are of one type to a type checker, not of a wider one.
MACHINES: Final[dict[str, Table]] = {
    "connection": {pair: after for pair, after in MPA_TRANSITIONS.items()},  # noqa: C416
    "queue pair": {pair: after for pair, after in QP_TRANSITIONS.items()},  # noqa: C416
}
_MEANING: Final = re.compile(r"^ +(\w+) = auto\(\)(?:  # (.+))?$", re.MULTILINE)


def meanings(kind: type[IntEnum]) -> dict[str, str]:
    """The comment behind each member of an enumeration."""
    return dict(_MEANING.findall(inspect.getsource(kind)))


def drawn(transitions: Table) -> str:
    """A Markdown table: a row for each state, with the events that it knows."""
    states = type(next(iter(transitions.values())))
    rows = ["| state | what it means | event → next state |", "|---|---|---|"]
    for state in states:
        moves = [
            f"{event.name} → {'stays' if after is state else after.name}"
            for (before, event), after in transitions.items()
            if before is state
        ]
        rows.append(f"| {state.name} | {meanings(states)[state.name]} | {'<br>'.join(moves)} |")
    return "\n".join(rows)


def redrawn(page: str) -> str:
    """The page's text with every table drawn anew."""
    for name, transitions in MACHINES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page has no place for {name!r}")
        page = head + begin + drawn(transitions) + end + tail
    return page


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
