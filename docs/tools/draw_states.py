"""Draws the state machines in `explanation/states.md` from the tables that the code runs on.

    python docs/tools/draw_states.py

rewrites what stands between the markers of each machine, and the diagrams beside the page (which
needs `dot`: on Debian the package graphviz); a test fails while either is behind.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import subprocess
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Final

from steertag.rdma.mpa_state import TRANSITIONS as MPA_TRANSITIONS
from steertag.rdma.qp_state import TRANSITIONS as QP_TRANSITIONS
from steertag.verbs.cm.state import TRANSITIONS as CM_TRANSITIONS

PAGE: Final = Path(__file__).resolve().parent.parent / "explanation" / "states.md"
Table = Mapping[tuple[IntEnum, IntEnum], IntEnum]
# Comprehensions, since a mapping's keys are of one type to a type checker, not of a wider one.
MACHINES: Final[dict[str, Table]] = {
    "connection": {pair: after for pair, after in MPA_TRANSITIONS.items()},  # noqa: C416
    "queue pair": {pair: after for pair, after in QP_TRANSITIONS.items()},  # noqa: C416
    "identifier": {pair: after for pair, after in CM_TRANSITIONS.items()},  # noqa: C416
}
_MEANING: Final = re.compile(r"^ +(\w+) = (?:auto\(\)|\d+)(?:  # (.+))?$", re.MULTILINE)


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


def graph(transitions: Table) -> str:
    """The machine in Graphviz's language: an arrow for each pair of states, its events on it."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, event), after in transitions.items():
        if before is not after:
            arrows.setdefault((before.name, after.name), []).append(event.name)
    lines = [
        "digraph {",
        '  graph [rankdir=TB, nodesep=0.6, ranksep=0.7, bgcolor="transparent"]',
        '  node [shape=box, style="rounded,filled", fillcolor="#eef2fb", fontname="sans-serif"]',
        '  edge [fontname="sans-serif", fontsize=10, color="#6b7280", fontcolor="#4b5563"]',
    ]
    for (before_name, after_name), events in arrows.items():
        label = "\\n".join(events)
        lines.append(f'  {before_name} -> {after_name} [label="{label}"]')
    return "\n".join([*lines, "}"])


def diagram_path(name: str) -> Path:
    return PAGE.with_name(f"states-{name.replace(' ', '-')}.svg")


def source_mark(transitions: Table) -> str:
    """A comment in a diagram that says which table it was drawn from."""
    return f"<!-- drawn from {hashlib.sha256(graph(transitions).encode()).hexdigest()[:16]} -->"


def draw(transitions: Table) -> str:
    """The diagram as SVG. Raises OSError without `dot`."""
    done = subprocess.run(
        ["dot", "-Tsvg"], input=graph(transitions), capture_output=True, text=True, check=True
    )
    svg = done.stdout[done.stdout.index("<svg") :]
    return f"{source_mark(transitions)}\n{re.sub(r'<!--.*?-->', '', svg, flags=re.DOTALL)}"


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
    for name, transitions in MACHINES.items():
        diagram_path(name).write_text(draw(transitions), encoding="utf-8")
    PAGE.write_text(redrawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
