"""The reference pages say what the code does: options, exit codes, frames, fallbacks."""

from __future__ import annotations

import importlib
import re

import click
import pytest

from steertag.cli.main import COMMANDS
from steertag.transfer import protocol, rdma
from steertag.transfer.errors import ExitCode, PathCode
from steertag.transfer.url import DEFAULT_PORT
from tests.support import PROJECT

REFERENCE = PROJECT / "docs" / "reference"


def test_every_exit_code_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", (REFERENCE / "exit-codes.md").read_text(), re.M)
    assert rows == [(str(int(code)), code.name.lower()) for code in ExitCode]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_the_reference(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    page = (REFERENCE / "cli.md").read_text()
    assert f"stag {name}" in page
    options = [p for p in command.params if isinstance(p, click.Option)]
    for option in options:
        for spelling in option.opts:
            assert re.search(rf"`{spelling}[` ]", page), f"{name} {spelling}"


def test_every_frame_has_its_row() -> None:
    page = (REFERENCE / "transfer-protocol.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", page, re.M)
    assert rows == [(str(int(kind)), kind.name) for kind in protocol.Kind]
    assert str(DEFAULT_PORT) in page
    assert str(protocol.MAX_BODY) in page
    assert str(rdma.SLOT) in page
    assert f"Request, {len(rdma.Ticket(bytes(16), 1, bytes(16)).pack())} octets" in page


def test_every_reason_of_a_fallback_has_its_row() -> None:
    page = (PROJECT / "docs" / "explanation" / "four-paths.md").read_text()
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert re.findall(r"`([a-z-]+)`", rows) == [str(code) for code in PathCode]
