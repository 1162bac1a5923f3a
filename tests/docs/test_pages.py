"""What the pages show works: commands run, Python runs, and nothing is left to trust."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, blocks
from tests.docs.elsewhere import ELSEWHERE
from tests.docs.session import TIMEOUT, Session
from tests.interop.namespace import require_tun
from tests.support import PROJECT, require_unshare

# Addresses that only a session's own network has (RFC 5737).
DOCUMENTATION_NETWORK = "192.0.2."
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)(?:#[^)]*)?\)")


def page_id(page: Path) -> str:
    return str(page.relative_to(PROJECT))


WITH_COMMANDS = [page for page in PAGES if any(block.commands for block in blocks(page))]
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=page_id)
def test_every_command_shown_runs(page: Path, tmp_path: Path) -> None:
    """In a directory that holds, of a checkout, the examples."""
    (tmp_path / "examples").symlink_to(PROJECT / "examples")
    commands = [command for block in blocks(page) for command in block.commands]
    if any(DOCUMENTATION_NETWORK in command for command in commands):
        require_unshare("--net")
    if any("new_tcp" in command for command in commands):
        require_unshare("--net")
        require_tun()
    with Session(tmp_path) as session:
        for command in commands:
            if command not in ELSEWHERE:
                session.run(command)


@pytest.mark.parametrize("command", ELSEWHERE)
def test_a_command_run_elsewhere_is_shown_and_is_run_there(command: str) -> None:
    shown = {command for page in PAGES for block in blocks(page) for command in block.commands}
    assert command in shown, "no page shows it any more"
    where = ELSEWHERE[command]
    path, _, test = where.partition("::")
    if test:
        assert f"def {test}(" in (PROJECT / path).read_text(encoding="utf-8")
    else:
        path, _, text = where.partition(": ")
        assert text in (PROJECT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_id)
def test_the_python_shown_runs(page: Path, tmp_path: Path) -> None:
    """The blocks of a page are one program, so that later ones build on earlier ones."""
    program = ""
    for block in blocks(page):
        if block.language == "python":
            # Blank lines keep the line numbers of a traceback those of the page.
            program += "\n" * (block.line - program.count("\n")) + block.text
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_code_block_says_its_language(page: Path) -> None:
    """Else a command could stand in a block that no test looks into."""
    known = {"console", "sh", "bash", "python", "text", "json", "yaml", "toml", "c", "mermaid"}
    assert [block.where for block in blocks(page) if block.language not in known] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == PROJECT], ids=page_id)
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    """Those inside are mkdocs' to check."""
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []
