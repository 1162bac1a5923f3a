"""The state tables in the documentation are those of the code."""

from __future__ import annotations

import runpy

from tests.support import PROJECT


def test_the_page_of_states_is_drawn_from_the_tables_as_they_are() -> None:
    tool = runpy.run_path(str(PROJECT / "docs" / "tools" / "draw_states.py"))
    page = tool["PAGE"].read_text(encoding="utf-8")
    assert tool["redrawn"](page) == page, "run: python docs/tools/draw_states.py"
    assert "| RTS |" in page
