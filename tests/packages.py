"""Packages of a third party, installed where a test's interpreter finds them."""

from __future__ import annotations

from pathlib import Path


def install(site: Path, module: str, source: str, group: str, entry: str) -> None:
    """What an installer leaves behind: the module, and metadata that names its entry point."""
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    name = module.replace("_", "-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
