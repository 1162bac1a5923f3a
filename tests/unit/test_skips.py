"""Under `.ci/run` a test that lacks something installable fails; elsewhere it is skipped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PROJECT

SUITE = """
import pytest
from tests.support import require_tool

def test_program():
    require_tool("no-such-program")

@pytest.mark.skipif(True, reason="needs a library")
def test_marked(): ...

def test_module():
    pytest.importorskip("no_such_module")

def test_forbidden():
    pytest.skip("not possible here: the kernel has no such thing")

@pytest.mark.xfail
def test_expected():
    assert False
"""
MODULE = "import pytest\npytest.importorskip('no_such_module')\ndef test_one(): ...\n"


def outcomes(directory: Path, suite: str, *, ci: bool) -> dict[str, int]:
    (directory / "conftest.py").write_text("from tests.conftest import *\n")
    (directory / "test_suite.py").write_text(suite)
    environment = {key: value for key, value in os.environ.items() if key != "STEERTAG_CI"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(directory)],
        cwd=directory,
        env={**environment, "PYTHONPATH": str(PROJECT), **({"STEERTAG_CI": "1"} if ci else {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = done.stdout.splitlines()[-1]
    return {kind.rstrip("s"): int(count) for count, kind in re.findall(r"(\d+) ([a-z]+)", last)}


@pytest.mark.parametrize(
    ("ci", "expected"),
    [
        (False, {"skipped": 4, "xfailed": 1}),
        # A mark's skip happens before the test is called, which pytest calls an error.
        (True, {"failed": 2, "error": 1, "skipped": 1, "xfailed": 1}),
    ],
)
def test_what_could_have_been_installed_is_no_excuse_in_ci(
    ci: bool, expected: dict[str, int], tmp_path: Path
) -> None:
    assert outcomes(tmp_path, SUITE, ci=ci) == expected


@pytest.mark.parametrize(("ci", "expected"), [(False, {"skipped": 1}), (True, {"error": 1})])
def test_nor_is_it_for_a_whole_module(ci: bool, expected: dict[str, int], tmp_path: Path) -> None:
    result = outcomes(tmp_path, MODULE, ci=ci)
    assert {kind: result.get(kind) for kind in expected} == expected
