"""The state tables in the documentation are those of the code."""

from __future__ import annotations

import runpy

from tests.support import PROJECT


def test_the_page_of_states_is_drawn_from_the_tables_as_they_are() -> None:
    tool = runpy.run_path(str(PROJECT / "docs" / "tools" / "draw_states.py"))
    page = tool["PAGE"].read_text(encoding="utf-8")
    assert tool["redrawn"](page) == page, "run: python docs/tools/draw_states.py"
    assert "| RTS |" in page


def test_the_diagrams_are_drawn_from_the_tables_as_they_are() -> None:
    tool = runpy.run_path(str(PROJECT / "docs" / "tools" / "draw_states.py"))
    page = tool["PAGE"].read_text(encoding="utf-8")
    for name, transitions in tool["MACHINES"].items():
        path = tool["diagram_path"](name)
        svg = path.read_text(encoding="utf-8")
        assert tool["source_mark"](transitions) in svg, "run: python docs/tools/draw_states.py"
        assert all(f">{state.name}</text>" in svg for state in transitions.values())
        assert f"({path.name})" in page
