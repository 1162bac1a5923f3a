"""The picture in the documentation is of the figures that are kept."""

import runpy

from tests.support import PROJECT

SUBJECTS = ()


def test_the_plot_is_drawn_from_what_is_kept() -> None:
    tool = runpy.run_path(str(PROJECT / "docs" / "tools" / "draw_sdp.py"))
    assert tool["recorded_mark"]() == tool["mark"](tool["kept"]()), "run: docs/tools/draw_sdp.py"
