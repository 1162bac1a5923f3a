"""`stag bench`: what it prints is there, adds up, and says what was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

STAG = [sys.executable, "-m", "steertag"]


def bench(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [*STAG, "bench", *arguments, "--json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("op", ["write", "read", "send"])
@pytest.mark.parametrize(("size", "count"), [(64, 4000), (4096, 500), (1 << 20, 20)])
def test_rates_of_both_are_measured_in_one_run(op: str, size: int, count: int) -> None:
    result = bench(op, "-s", str(size), "-n", str(count), "-r", "2")
    assert (result["op"], result["size"], result["count"]) == (op, size, count)
    assert result["crc"] is True
    for side in ("rdma", "raw"):
        figures = result[side]
        assert figures["gb_per_s"] == pytest.approx(figures["messages_per_s"] * size / 1e9)
    expected = result["rdma"]["gb_per_s"] / result["raw"]["gb_per_s"]
    assert result["ratio"]["gb_per_s"] == pytest.approx(expected)


@pytest.mark.parametrize("op", ["write", "read", "send"])
@pytest.mark.parametrize("poll", [(), ("--poll",)], ids=["sleeping", "polling"])
def test_latencies_are_in_order(op: str, poll: tuple[str, ...]) -> None:
    result = bench(op, "--lat", "-n", "300", "-r", "3", *poll)
    assert result["size"] == 8
    assert result["latency"] is True
    assert result["poll"] is bool(poll)
    for side in ("rdma", "raw"):
        figures = result[side]
        assert 0 < figures["min_us"] <= figures["p50_us"] <= figures["p99_us"]


def test_bulk_writes_stage_nothing_and_no_crc_means_none() -> None:
    result = bench("write", "-s", "1M", "-n", "40", "-r", "2", "--no-crc")
    assert result["crc"] is False
    # The notes that end a round are all that isn't placed or sent in place: 8 octets each.
    assert result["staged_bytes"] <= 8 * 2 * 2 + 64


def test_lists_are_posted_as_long_as_asked() -> None:
    assert bench("write", "-s", "64", "-n", "100", "-r", "1", "-l", "7")["post_list"] == 7


def test_a_person_gets_a_table() -> None:
    done = subprocess.run(
        [*STAG, "bench", "write", "-s", "64", "-n", "1000", "-r", "1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    title, head, rdma, raw, ratio = done.stdout.splitlines()
    assert title.startswith("RDMA Write, 64 octets, with CRC32C")
    assert head.split() == ["GB/s", "messages/s"]
    assert [line.split()[0] for line in (rdma, raw, ratio)] == ["RDMA", "raw", "ratio"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["write", "-s", "lots"], "no size"),
        (["write", "-s", "2G"], "out of range"),
        (["write", "-s", "0"], "out of range"),
        (["swap"], "'swap'"),
        (["write", "-n", "0"], "-n"),
    ],
)
def test_what_makes_no_sense_is_refused_with_exit_code_2(arguments: list[str], words: str) -> None:
    done = subprocess.run([*STAG, "bench", *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
