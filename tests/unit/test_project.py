"""What holds the project together: one version, a typed package, a complete set of pages."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import steertag
from tests.support import PROJECT


def pyproject() -> dict[str, Any]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_installed_version_is_the_packages() -> None:
    assert importlib.metadata.version("steertag") == steertag.__version__


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files(steertag).joinpath("py.typed").is_file()


def test_every_changelog_fragment_has_an_issue_and_a_type_that_towncrier_knows() -> None:
    types = "|".join(entry["directory"] for entry in pyproject()["tool"]["towncrier"]["type"])
    name = re.compile(rf"\d+\.({types})(\.\d+)?\.md")
    fragments = [path.name for path in (PROJECT / "changes").iterdir()]
    assert [fragment for fragment in fragments if not name.fullmatch(fragment)] == []


def test_the_changelog_has_the_line_that_towncrier_writes_behind() -> None:
    marker = pyproject()["tool"]["towncrier"]["start_string"]
    assert marker in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_page_of_the_documentation_is_in_the_navigation() -> None:
    navigation = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"(\S+\.md)$", navigation, re.MULTILINE))
    docs = PROJECT / "docs"
    assert listed == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}


def test_the_import_contract_names_every_package() -> None:
    contract = pyproject()["tool"]["importlinter"]["contracts"][0]
    named = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    source = Path(steertag.__file__).parent
    packages = {path.name for path in source.iterdir() if (path / "__init__.py").is_file()}
    assert packages <= named


def test_the_page_on_architecture_has_the_import_contracts_layers() -> None:
    layers = pyproject()["tool"]["importlinter"]["contracts"][0]["layers"]
    page = (PROJECT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    chain = " → ".join(layer for layer in layers if layer != "__main__")
    assert chain in " ".join(page.split())


def ci_script(directory: Path, uv: str) -> subprocess.CompletedProcess[str]:
    """Run the CI script with `uv` replaced by a shell script that has the body `uv`."""
    fake = directory / "uv"
    fake.write_text(f"#!/bin/sh\n{uv}\n")
    fake.chmod(0o755)
    for program in ("tshark", "strace", "unshare", "mount", "ip"):
        there = directory / program
        there.write_text("#!/bin/sh\n")
        there.chmod(0o755)
    return subprocess.run(
        [str(PROJECT / ".ci" / "run")],
        env={"PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_ci_script_succeeds_when_every_step_does(tmp_path: Path) -> None:
    done = ci_script(tmp_path, "exit 0")
    assert (done.returncode, "FAILED" in done.stdout) == (0, False)


@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("bench", "run pytest -m bench"),
        ("lint", "run ruff check"),
        ("types", "run mypy"),
        ("docs", "run --group docs mkdocs*"),
    ],
)
def test_the_ci_script_fails_for_one_failed_step_and_runs_the_others(
    step: str, call: str, tmp_path: Path
) -> None:
    done = ci_script(tmp_path, f'case "$*" in "{call.rstrip("*")}"*) exit 3;; esac')
    assert done.returncode == 1
    summary = done.stdout.partition("=== summary")[2].splitlines()[1:]
    failed = [line.split()[0] for line in summary if "FAILED" in line]
    assert failed == [step]
    steps = re.findall(r"^step (\w+)", (PROJECT / ".ci" / "run").read_text(), re.MULTILINE)
    assert [line.split()[0] for line in summary] == steps
    assert "(exit 3)" in done.stdout


def test_the_ci_script_makes_a_skip_for_want_of_a_program_a_failure(tmp_path: Path) -> None:
    done = ci_script(tmp_path, 'test "$STEERTAG_CI" = 1')
    assert done.returncode == 0
