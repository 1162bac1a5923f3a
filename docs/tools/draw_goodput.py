"""Draws `reference/goodput.png` from what `tests/inet/goodput.json` keeps.

    uv run --group docs python docs/tools/draw_goodput.py

The picture carries a mark of the figures that it was drawn from; a test fails while it is behind.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).resolve().parent.parent
FIGURES: Final = DOCS.parent / "tests" / "inet" / "goodput.json"
PICTURE: Final = DOCS / "reference" / "goodput.png"
Rows = dict[str, list[list[float]]]


def mark(rows: Rows) -> str:
    """What the picture says it was drawn from."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def recorded_mark() -> str | None:
    """What it does say."""
    found = re.search(rb"drawn from ([0-9a-f]{16})", PICTURE.read_bytes())
    return found[1].decode() if found else None


def draw(rows: Rows) -> None:
    """One panel for each algorithm and buffer: goodput over the round-trip time, a line a loss."""
    import matplotlib.pyplot as plt

    buffers = sorted({row[2] for table in rows.values() for row in table})
    figure, axes = plt.subplots(
        len(rows), len(buffers), sharex=True, sharey=True, figsize=(11, 3.2 * len(rows))
    )
    for line, (algorithm, table) in enumerate(rows.items()):
        for column, buffer in enumerate(buffers):
            panel = axes[line][column]
            for loss in sorted({row[1] for row in table}):
                points = [
                    (row[0] * 1000, row[3] * 8e-6) for row in table if row[1:3] == [loss, buffer]
                ]
                panel.plot(*zip(*points, strict=True), marker="o", label=f"{loss:.1%} lost")
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
            panel.set_title(f"{algorithm}, buffer of {buffer / 1000:.0f} kB", fontsize=10)
    for panel in axes[-1]:
        panel.set_xlabel("round-trip time, ms")
    for panel in axes[:, 0]:
        panel.set_ylabel("goodput, Mbit/s")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=100, metadata={"Comment": f"drawn from {mark(rows)}"})


if __name__ == "__main__":
    draw(json.loads(FIGURES.read_text(encoding="utf-8")))
