"""The tests of the pages can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks
from tests.docs.session import Session


def test_a_command_that_fails_is_found(tmp_path: Path) -> None:
    with Session(tmp_path) as session, pytest.raises(AssertionError, match="no-such-option"):
        session.run("stag --no-such-option")


def test_a_server_that_does_not_start_is_found(tmp_path: Path) -> None:
    with Session(tmp_path) as session, pytest.raises(AssertionError, match="ended"):
        session.run("stag serve no-such-directory")


def test_a_server_runs_until_the_session_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with Session(tmp_path) as session:
        session.run("stag serve .")
        session.run("stag get -q stag://127.0.0.1/file copy")
    assert (tmp_path / "copy").read_bytes() == b"content"


def test_commands_are_taken_from_every_kind_of_block(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n```console\n$ one \\\n    more\noutput\n```\n"
        "* item\n\n    ```sh\n    # said\n    two\n    ```\n\n```text\n$ not this\n```\n"
    )
    found = blocks(page)
    assert [block.commands for block in found] == [["one more"], ["two"], []]
    assert found[2] == Block(page, 14, "text", "$ not this\n")
