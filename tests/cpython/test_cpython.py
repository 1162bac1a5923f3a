"""CPython's own suites pass over our sockets, but for what is listed with its reason.

Which of them are run here is chosen for their time; all of them, over every family, with
STEERTAG_CPYTHON_ALL=1 or `python -m tests.cpython.run`.
"""

from __future__ import annotations

import pytest

from tests.cpython.known import FOLDER, read_baseline, read_known
from tests.cpython.run import classes_of, complaints, run_module
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
# test_ssl and test_ftplib wait for most of their time; SDP is what they are run over. Over TCP/IP
# in user space test_sendfile, whose buffers are smaller than a segment, takes minutes.
CHOSEN = {
    "host": QUICK,
    "new_tcp": ("test_socket", *(name for name in QUICK if not name.endswith("sendfile"))),
    "sdp": MODULES,
    "sdp_fallback": ("test_socket", "test_asyncio.test_streams"),
}
RUNS = [
    pytest.param(family, module, id=f"{family}-{module}")
    for family, chosen in CHOSEN.items()
    for module in (MODULES if everything() else chosen)
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("family", "module"), RUNS)
def test_what_fails_is_what_is_known_to_fail(family: str, module: str) -> None:
    if find_test_package() is None:
        pytest.skip(f"{NEEDS}the interpreter's test package (libpython3.N-testsuite)")
    if not FOLDER.is_dir():
        pytest.skip(f"not possible here: nothing is recorded for Python {FOLDER.name}")
    chosen = FAMILIES[family]
    run = run_module(chosen, module, classes_of(chosen, module, whole=everything()))
    lines = complaints(run, read_known(family), read_baseline())
    assert not lines, "\n".join([*lines, run.log[-20000:]])
    assert run.outcomes, "nothing was run"


@pytest.mark.parametrize("family", [*CHOSEN, BASELINE])
def test_every_failure_that_is_known_has_its_reason(family: str) -> None:
    listed = read_known(family)  # raises ValueError for a line without one
    assert all(test.startswith("test.") for test in listed)
