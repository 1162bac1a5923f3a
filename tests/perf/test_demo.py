"""`stag demo`: the first thing that a person runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steertag.perf.demo import PATHS

STAG = [sys.executable, "-m", "steertag"]
KEYS = {"gb_per_s", "cpu_s_per_gb", "staged_bytes_per_byte", "syscalls_per_mib", "digest_ok"}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    done = subprocess.run(
        [*STAG, "demo", "--size", "32M", "--runs", "2", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_every_path_was_run_on_itself_and_verified(result: dict[str, Any]) -> None:
    assert set(result["paths"]) == set(PATHS)
    for path, figures in result["paths"].items():
        assert set(figures) >= KEYS
        assert figures["digest_ok"] is True
        assert figures["path_used"] == [path]
        assert figures["gb_per_s"] > 0
        assert figures["cpu_s_per_gb"] > 0
        assert figures["syscalls_per_mib"] > 0


def test_only_the_conventional_paths_stage(result: dict[str, Any]) -> None:
    staged = {path: figures["staged_bytes_per_byte"] for path, figures in result["paths"].items()}
    assert staged["tcp-buffered"] == pytest.approx(2, abs=0.01)
    assert staged["tcp-sendfile"] == pytest.approx(1, abs=0.01)
    # Steering messages of some 40 octets a MiB are all that is parsed from a buffer.
    assert 0 <= staged["rdma-write"] < 0.001
    assert 0 <= staged["rdma-read"] < 0.001


def test_the_fallback_is_shown_with_its_reason(result: dict[str, Any]) -> None:
    fallback = result["fallback"]
    assert fallback["from"] == "rdma-read"
    assert fallback["to"].startswith("tcp-")
    assert fallback["code"]
    assert "no-rdma" in fallback["reason"]
    assert fallback["digest_ok"] is True


def test_a_person_gets_a_table_and_what_to_try_next(tmp_path: Path) -> None:
    done = subprocess.run(
        [*STAG, "demo", "--size", "4M", "--runs", "1", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for path in PATHS:
        assert re.search(rf"^{path} .* ok$", done.stdout, re.MULTILINE)
    assert "Fallback: rdma-read was asked for" in done.stdout
    assert "What to try next" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_one_line(tmp_path: Path) -> None:
    target = tmp_path / "readonly"
    target.mkdir(mode=0o500)
    if os.access(target, os.W_OK):
        done = subprocess.run(
            [*STAG, "demo", "--size", "1M", "--dir", str(tmp_path / "missing")],
            capture_output=True,
            text=True,
            timeout=30,
        )
    else:
        done = subprocess.run(
            [*STAG, "demo", "--size", "1M", "--dir", str(target)],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--dir" in done.stderr
