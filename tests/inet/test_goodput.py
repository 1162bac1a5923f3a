"""Goodput is what it was."""

from __future__ import annotations

import runpy

import pytest

from tests.inet.goodput import ALGORITHMS, RATE, kept, measure
from tests.support import PROJECT


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_goodput_over_a_bottleneck_is_what_is_kept(algorithm: str) -> None:
    assert measure(algorithm) == kept()[algorithm], "if it is meant: python -m tests.inet.goodput"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_path_without_loss_is_filled(algorithm: str) -> None:
    for rtt, loss, buffer, goodput in kept()[algorithm]:
        if not loss and rtt <= 0.02 and buffer >= 60_000:
            assert goodput > 0.8 * RATE, (rtt, buffer)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_stalls(algorithm: str) -> None:
    for rtt, loss, buffer, goodput in kept()[algorithm]:
        assert goodput > 1000 / rtt * 0.05, (rtt, loss, buffer)


def test_the_plot_is_drawn_from_what_is_kept() -> None:
    tool = runpy.run_path(str(PROJECT / "docs" / "tools" / "draw_goodput.py"))
    assert tool["recorded_mark"]() == tool["mark"](kept()), "run: python docs/tools/draw_goodput.py"
