"""What several files of tests of `stag run` share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run.applications import FAMILIES, Application, web_directory


@pytest.fixture(params=FAMILIES)
def application(request: pytest.FixtureRequest, tmp_path: Path) -> Application:
    """A server and its client, with files to serve in www; see `applications.everywhere`."""
    web_directory(tmp_path)
    return Application(request.param, tmp_path)
