"""Every pattern runs over the kinds that its module names: `SUBJECTS`.

`STEERTAG_EVERY_KIND=1` has every pattern run over every kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.sdp.world import KINDS, Kind, World


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kinds = KINDS if os.environ.get("STEERTAG_EVERY_KIND") else metafunc.module.SUBJECTS
    if "world" in metafunc.fixturenames:
        metafunc.parametrize("kind", kinds, ids=str)
    elif "neighbours" in metafunc.fixturenames:
        metafunc.parametrize("kind", [each for each in kinds if each.processes], ids=str)


@pytest.fixture
def world(kind: Kind) -> Iterator[World]:
    with World(kind) as made:
        yield made


@pytest.fixture
def neighbours(kind: Kind) -> Iterator[World]:
    """A World that other processes are in."""
    with World(kind) as made:
        yield made
