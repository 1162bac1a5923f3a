"""The guest with siw, booted once for all tests that ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.guest.build import build
from tests.interop.guest.machine import Guest
from tests.interop.wire import Wire


@pytest.fixture(scope="session")
def booted_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with Guest(build(), tmp_path_factory.mktemp("guest")) as guest:
        yield guest


@pytest.fixture
def guest(booted_guest: Guest) -> Guest:
    """The guest, with siw's own parameters and without what an earlier test left behind."""
    booted_guest.kill_all()
    booted_guest.set_siw()
    return booted_guest


@pytest.fixture
def wire(guest: Guest, tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(guest, tmp_path / "wire.pcap")
    yield wire
    wire.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test is the first to ask for the guest waits until it is built and booted."""
    for item in items:
        if "booted_guest" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(600))
