"""CPython's own suites pass over our sockets, but for what is listed with its reason.

Which of them are run here is chosen for their time; all of them, over every family, with
STEERTAG_CPYTHON_ALL=1 or `python -m tests.cpython.run`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.cpython.known import FOLDER, read_baseline, read_known
from tests.cpython.run import Run, classes_of, complaints, run_module
from tests.cpython.suites import BASELINE, FAMILIES, MODULES, everything, find_test_package
from tests.support import NEEDS

QUICK = (
    "test_asyncio.test_streams",
    "test_asyncio.test_sock_lowlevel",
    "test_asyncio.test_sendfile",
    "test_httplib",
    "test_smtplib",
    "test_socketserver",
)
CHOSEN = {
    "host": QUICK,
    "new_tcp": MODULES,
    "sdp": MODULES,
    "sdp_fallback": ("test_socket", *QUICK),
}
RUNS = [
    pytest.param(family, module, id=f"{family}-{module}")
    for family, chosen in CHOSEN.items()
    for module in (MODULES if everything() else chosen)
]


SIDE_BY_SIDE = 4
"""Modules that run at once: they sleep for most of their time."""
LONGEST_FIRST = ("test_socket", "test_ssl", "test_ftplib", *QUICK)


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[Mapping[tuple[str, str], Future[Run]]]:
    """By family and module, the runs that this session is to judge, under way."""
    asked = [
        (str(item.callspec.params["family"]), str(item.callspec.params["module"]))
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.function is test_what_fails_is_what_is_known_to_fail
    ]
    asked.sort(key=lambda run: LONGEST_FIRST.index(run[1]))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        try:
            yield {run: pool.submit(run_one, *run) for run in asked}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run_one(family: str, module: str) -> Run:
    chosen = FAMILIES[family]
    return run_module(chosen, module, classes_of(chosen, module, whole=everything()))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("family", "module"), RUNS)
def test_what_fails_is_what_is_known_to_fail(
    request: pytest.FixtureRequest, family: str, module: str
) -> None:
    if find_test_package() is None:
        pytest.skip(f"{NEEDS}the interpreter's test package (libpython3.N-testsuite)")
    if not FOLDER.is_dir():
        pytest.skip(f"not possible here: nothing is recorded for Python {FOLDER.name}")
    run = request.getfixturevalue("running")[family, module].result()
    lines = complaints(run, read_known(family), read_baseline())
    assert not lines, "\n".join([*lines, run.log[-20000:]])
    assert run.outcomes, "nothing was run"


@pytest.mark.parametrize("family", [*CHOSEN, BASELINE])
def test_every_failure_that_is_known_has_its_reason(family: str) -> None:
    listed = read_known(family)  # raises ValueError for a line without one
    assert all(test.startswith("test.") for test in listed)
