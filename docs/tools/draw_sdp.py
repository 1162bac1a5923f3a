"""Draws `reference/sdp.png` from what `bench/sdp.json` keeps.

    uv run --group docs python docs/tools/draw_sdp.py

The picture carries a mark of the figures that it was drawn from; a test fails while it is behind.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).resolve().parent.parent
FIGURES: Final = DOCS.parent / "bench" / "sdp.json"
PICTURE: Final = DOCS / "reference" / "sdp.png"
PATHS: Final = {
    "raw": "the host's TCP",
    "bcopy": "SDP, buffered copy",
    "zcopy": "SDP, zero copy",
}
Rows = list[dict[str, Any]]


def kept() -> Rows:
    rows: Rows = json.loads(FIGURES.read_text(encoding="utf-8"))
    return rows


def mark(rows: Rows) -> str:
    """What the picture says it was drawn from."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def recorded_mark() -> str | None:
    """What it does say."""
    found = re.search(rb"drawn from ([0-9a-f]{16})", PICTURE.read_bytes())
    return found[1].decode() if found else None


def draw(rows: Rows) -> None:
    """Throughput, and CPU time of both sides for a GB, over the size of a message."""
    import matplotlib.pyplot as plt

    figure, (rate, cost) = plt.subplots(1, 2, figsize=(11, 4.2))
    sizes = [row["size"] for row in rows]
    for panel, key, label in (
        (rate, "GB/s", "GB/s"),
        (cost, "CPU s/GB", "CPU seconds per GB, both sides"),
    ):
        for path, name in PATHS.items():
            panel.plot(sizes, [row[path][key] for row in rows], marker="o", label=name)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(sizes, [named(size) for size in sizes], rotation=45)
        panel.set_xlabel("octets of a message")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    rate.legend(fontsize=9)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=100, metadata={"Comment": f"drawn from {mark(rows)}"})


def named(size: int) -> str:
    for unit, text in ((1 << 20, "M"), (1 << 10, "K")):
        if size >= unit:
            return f"{size // unit}{text}"
    return str(size)


if __name__ == "__main__":
    draw(kept())
