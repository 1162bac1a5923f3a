"""What the end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transfer.harness import Serving


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A directory to serve."""
    path = tmp_path / "served"
    path.mkdir()
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The client's directory."""
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def server(served: Path) -> Iterator[Serving]:
    """A writable server of `served`."""
    with Serving(served, "--writable") as serving:
        yield serving
