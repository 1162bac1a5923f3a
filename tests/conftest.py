"""Suite-wide settings: hypothesis without deadlines, and no excusable skips under `.ci/run`."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Generator

import pytest
from hypothesis import settings

from tests.support import IN_CI, NEEDS

# What tests open shows itself to no command of whoever runs them, and the other way round.
os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="steertag-tests-")
os.environ.pop("STEERTAG_INSPECT", None)
atexit.register(shutil.rmtree, os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)

# A shared machine stalls now and then; how long an example takes says nothing about the code.
settings.register_profile("steertag", deadline=None)
settings.load_profile("steertag")


def _fail_excusable_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip for want of something that `.ci/run` installs into a failure."""
    if not (IN_CI and report.skipped and isinstance(report.longrepr, tuple)):
        return
    reason = str(report.longrepr[2]).removeprefix("Skipped: ")
    # pytest.importorskip() says "could not import".
    if reason.startswith((NEEDS, "could not import")):
        report.outcome = "failed"
        report.longrepr = f"skipped under .ci/run, which installs what tests need: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_excusable_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_excusable_skip(report)
    return report
