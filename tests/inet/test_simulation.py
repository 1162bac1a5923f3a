"""Thousands of worlds: whatever a link does, the octets arrive, and nothing is left over.

`STEERTAG_SEEDS` says how many seeds are run; a few hundred unless told.
"""

from __future__ import annotations

import os

import pytest

from tests.inet.scenarios import expected, play, scenario_of, start_of

SEEDS = int(os.environ.get("STEERTAG_SEEDS", "200"))
BATCH = 20
QUIET = 2000.0
"""Seconds in which everything has ended: TIME-WAIT is 60, a lost last ACK some time-outs more."""


def ends_well(seed: int) -> None:
    scenario = scenario_of(seed)
    world = play(scenario, start_of(scenario))
    received = [task.result() for task in scenario.ends]
    assert received == expected(scenario), scenario
    world.run_until_quiet(QUIET)
    assert world.left_over() == [], scenario


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_every_octet_arrives_and_nothing_is_left_over(first: int) -> None:
    for seed in range(first, min(first + BATCH, SEEDS)):
        ends_well(seed)


def test_the_same_seed_gives_the_same_packets_at_the_same_times() -> None:
    for seed in range(5):
        first, second = (play(scenario_of(seed)) for _ in range(2))
        assert (first.packets, first.digest()) == (second.packets, second.digest())


def test_another_seed_gives_other_packets() -> None:
    assert play(scenario_of(0)).digest() != play(scenario_of(1)).digest()
