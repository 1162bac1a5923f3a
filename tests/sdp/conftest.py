"""Every pattern runs over every kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sdp.world import KINDS, Kind, World


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def world(kind: Kind) -> Iterator[World]:
    with World(kind) as made:
        yield made


@pytest.fixture(params=[kind for kind in KINDS if kind.processes], ids=str)
def neighbours(request: pytest.FixtureRequest) -> Iterator[World]:
    """A World that other processes are in."""
    with World(request.param) as made:
        yield made
