"""A program's sockets behave under `stag run` as they do without it, but for a table of exceptions.

The suite itself is C (behaviour/*.c). It mostly waits, so that its runs go on side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from tests.run.behaviours import (
    MODES,
    TABLE,
    Observations,
    as_table,
    build,
    complaints,
    known,
    observe,
    supervised,
)
from tests.support import PROJECT

pytestmark = pytest.mark.timeout(600)  # the first one waits for all
PAGE = PROJECT / "docs" / "reference" / "run-limits.md"
NATIVE = "natively"
STORM = ("-s", "2000")
ATTEMPTS = 3
VARIANTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    **{
        f"{mode} {milliseconds} ms away": (mode, ("--rtt", str(milliseconds / 1000)), ())
        for milliseconds in (20, 5)  # what takes longest begins first
        for mode in ("relay", "new_tcp", "sdp")
    },
    **{mode: (mode, (), ()) for mode in MODES},
    **{f"{mode} in a storm of signals": (mode, (), STORM) for mode in MODES},
}
"""name -> mode, options of `stag run`, options of the suite."""


class Runs:
    """Every run of the suite, begun when the first result is asked for."""

    def __init__(self, program: Path, pool: ThreadPoolExecutor) -> None:
        self._found: dict[str, Future[Observations]] = {
            NATIVE: pool.submit(observe, [str(program)]),
            f"{NATIVE} in a storm of signals": pool.submit(
                observe, [str(program), "-c", "127.0.0.2", *STORM]
            ),
        }
        self._commands: dict[str, tuple[list[str], list[str]]] = {}
        for number, (name, (mode, options, arguments)) in enumerate(VARIANTS.items(), 3):
            # An address for each, so that no run finds another's sockets on a port that it takes
            # for free; AF_INET_NEW_TCP has a loopback for itself.
            address = "127.0.0.1" if mode == "new_tcp" else f"127.0.0.{number}"
            command = [str(program), "-c", address, *arguments]
            self._commands[name] = command, supervised(mode, *options)
            self._found[name] = pool.submit(observe, *self._commands[name])

    def __getitem__(self, name: str) -> Observations:
        return self._found[name].result()

    def again(self, name: str) -> Observations:
        """Another run, by itself."""
        wait(self._found.values())
        return observe(*self._commands[name])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    program = build(tmp_path_factory.mktemp("behaviour"))
    pool = ThreadPoolExecutor(6)
    try:
        yield Runs(program, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def test_the_suite_itself_says_the_same_in_a_storm_of_signals(runs: Runs) -> None:
    assert runs[f"{NATIVE} in a storm of signals"] == runs[NATIVE]


def test_every_case_of_the_suite_comes_to_its_end(runs: Runs) -> None:
    ends = {"goes on and on", "killed by signal 9", "killed by signal 11"}
    assert [key for key, value in runs[NATIVE].items() if value in ends] == []
    assert [key for key in runs[NATIVE] if key.endswith(".gave_up")] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_what_differs_is_what_the_table_says(name: str, runs: Runs) -> None:
    """What is seen among six runs at a time, and not again in a run by itself, hangs on time."""
    mode = VARIANTS[name][0]
    wrong = complaints(mode, runs[NATIVE], runs[name])
    for _ in range(ATTEMPTS - 1):
        if wrong:
            found = complaints(mode, runs[NATIVE], runs.again(name))
            wrong = [line for line in wrong if line in found]
    assert wrong == []


def test_the_page_shows_the_table() -> None:
    assert as_table(known()) in PAGE.read_text(encoding="utf-8")


def test_the_page_says_how_many_cases_and_observations_there_are(runs: Runs) -> None:
    keys = runs[NATIVE].keys()
    cases = {key.partition(".")[0] for key in keys}
    counted = f"({len(cases)} cases, {len(keys)} observations)"
    assert counted in PAGE.read_text(encoding="utf-8")


def test_every_difference_has_a_reason() -> None:
    rows = known()
    assert rows, TABLE
    assert [row.key for row in rows if not row.why.strip() or not set(row.modes) <= {*MODES}] == []
    assert len({(row.key, mode) for row in rows for mode in row.modes}) == sum(
        len(row.modes) for row in rows
    )
