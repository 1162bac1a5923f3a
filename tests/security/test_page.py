"""The security page answers every attack of RFC 5042, and names tests that exist."""

from __future__ import annotations

import re

import pytest

from steertag.rdma.connection import REQUEST_TIMEOUT
from steertag.rdma.offer import DEFAULT_IRD
from steertag.rdma.qp_rx import BUFFER_OCTETS
from steertag.rdma.qp_tx import GATHER_OCTETS, MAX_PARTS
from steertag.rdma.rnic import RnicLimits
from steertag.runtime.driver import CLOSE_OCTETS, CLOSE_TIMEOUT, LINGER
from steertag.transfer.server import ServerConfig
from steertag.verbs.cm.listener import DEFAULT_BACKLOG
from tests.support import PROJECT

PAGE = (PROJECT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
SECTIONS = (
    *("5.1.1", "5.1.2", "5.1.3", "5.2", "5.3", "5.4"),
    *("6.1.1", "6.2.1", "6.2.2", "6.2.3"),
    *("6.3.1", "6.3.2", "6.3.3", "6.3.4", "6.3.5", "6.3.6"),
    *("6.4.1", "6.4.2", "6.4.3", "6.4.3.1", "6.4.3.2", "6.4.3.3", "6.4.4", "6.4.5", "6.4.6"),
    *("6.5", "7.1", "7.2", "7.3"),
)
"""Of RFC 5042: each is an attack, or a kind of them."""
ROWS = re.findall(r"^\| ([5-7][.\d]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.M)
NAMED = sorted(set(re.findall(r"`(test_\w+)`", PAGE)))
TESTS = {
    name
    for file in (PROJECT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)\(", file.read_text(encoding="utf-8"), re.M)
}


def test_every_section_that_names_an_attack_has_its_row() -> None:
    assert tuple(section for section, *_ in ROWS) == SECTIONS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_attack_is_answered_by_tests_or_by_a_reason(row: tuple[str, str, str, str]) -> None:
    *_, tests = row
    if not tests.startswith("none: "):
        assert re.fullmatch(r"`test_\w+`(, `test_\w+`)*", tests)


@pytest.mark.parametrize("name", NAMED)
def test_each_test_on_the_page_exists(name: str) -> None:
    assert name in TESTS


@pytest.mark.parametrize(
    ("what", "numbers"),
    [
        ("connections that are being set up", [DEFAULT_BACKLOG]),
        ("time to send the Request", [int(REQUEST_TIMEOUT)]),
        (
            "queue pairs, regions, windows of a Context",
            [RnicLimits().max_qp],
        ),
        ("objects of one protection domain", [RnicLimits().max_pd_objects]),
        ("Read and atomic requests that we owe an answer", [DEFAULT_IRD, DEFAULT_IRD + 1]),
        ("answers on their way to a peer that doesn't read", [GATHER_OCTETS >> 20, MAX_PARTS + 3]),
        ("octets received and not placed yet", [16, BUFFER_OCTETS >> 10]),
        ("a Terminate to a peer that doesn't read it", [int(LINGER)]),
        (
            "closing, towards a peer that takes less than"
            f" {CLOSE_OCTETS >> 10} KiB in {CLOSE_TIMEOUT:g} seconds",
            [],
        ),
    ],
)
def test_the_bounds_on_the_page_are_the_codes(what: str, numbers: list[int]) -> None:
    (cells,) = re.findall(rf"^\| {re.escape(what)} \| (.*) \|$", PAGE, re.M)
    assert [int(number) for number in re.findall(r"\d+", cells)][: len(numbers)] == numbers


def test_queue_pairs_regions_and_windows_are_as_many() -> None:
    """As the page says of them."""
    limits = RnicLimits()
    assert limits.max_qp == limits.max_mr == limits.max_mw


def test_the_movers_bounds_on_the_page_are_the_codes() -> None:
    (cells,) = re.findall(r"^\| the mover's clients and strangers \| (.*) \|$", PAGE, re.M)
    defaults = {field.name: field.default for field in ServerConfig.__dataclass_fields__.values()}
    names = ("max_clients", "max_strangers", "hello_timeout", "idle_timeout")
    assert re.findall(r"\d+", cells) == [f"{defaults[name]:g}" for name in names]
