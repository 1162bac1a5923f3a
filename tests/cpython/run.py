"""CPython's own test suites over a family of ours, against what is known to fail.

    python -m tests.cpython.run --family new_tcp [--all] [--write-baseline] [MODULE ...]

Each module runs in a process of its own. A test that does not come back is ended, counts as a
`hang`, and the module's rest is run in a new process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.cpython.known import Known, baseline_text, read_baseline, read_known
from tests.cpython.suites import (
    BASELINE,
    FAMILIES,
    MODULES,
    STREAM_CLASSES,
    Family,
    everything,
    find_test_package,
)

PROJECT: Final = Path(__file__).resolve().parent.parent.parent
TEST_LIMIT: Final = 15.0
"""Seconds for one test; the longest of CPython's own takes less than ten."""
MODULE_LIMIT: Final = 240.0
FAILED: Final = ("fail", "error", "hang")


@dataclass(slots=True)
class Run:
    """What became of one module's tests.

    Attributes:
        outcomes: by test: pass, skip, fail, error, hang.
        why: by test, for what did not pass.
        log: what the processes wrote to standard error.
    """

    outcomes: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    log: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> dict[str, str]:
        return {test: self.why[test] for test, got in self.outcomes.items() if got in FAILED}


def run_module(family: Family, module: str, classes: tuple[str, ...] = ()) -> Run:
    """All tests of a module, in as many processes as it takes.

    The suites lean on time, and machines are shared: what fails and is not known to is run once
    more, by itself, and what passes then has passed.
    """
    run, started = Run(), time.monotonic()
    known = read_known(family.name)
    leave_out = {test for test, item in (read_baseline() | known).items() if item.hangs}
    _run_all(family, module, classes, leave_out, run)
    again = run.failed.keys() - known.keys()
    if again and family.name != BASELINE:
        second = Run()
        _run_all(family, module, classes, (run.outcomes.keys() | leave_out) - again, second)
        run.outcomes |= second.outcomes
        run.why |= second.why
        run.log += second.log
    run.seconds = time.monotonic() - started
    return run


def _run_all(
    family: Family, module: str, classes: tuple[str, ...], leave_out: set[str], run: Run
) -> None:
    deadline = time.monotonic() + MODULE_LIMIT
    with tempfile.TemporaryDirectory(prefix="steertag-cpython-") as folder:
        while True:
            ended, at = _run_rest(family, module, classes, Path(folder), leave_out, run, deadline)
            if ended:
                return
            name = at or f"{module}.(outside of a test)"
            run.outcomes[name], run.why[name] = "hang", "did not come back, or ended its process"
            if at is None or time.monotonic() > deadline:
                return


def _run_rest(
    family: Family,
    module: str,
    classes: tuple[str, ...],
    folder: Path,
    leave_out: set[str],
    run: Run,
    deadline: float,
) -> tuple[bool, str | None]:
    """One process, with what has not run yet: whether it came to its end; the test it was at."""
    results, skip, log = folder / "results", folder / "skip", folder / "log"
    results.write_text("")
    skip.write_text("\n".join(leave_out | run.outcomes.keys()))
    command = [sys.executable, "-m", "tests.cpython.child", family.name, module, str(results)]
    command += [str(TEST_LIMIT), "--skip", str(skip)]
    command += [word for name in classes for word in ("--class", name)]
    environment = os.environ | dict(family.environment) | {"PYTHONPATH": str(PROJECT)}
    work = folder / "work"  # tests leave files where they run
    work.mkdir(exist_ok=True)
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 1.0))
        finally:
            # Its session: what it started is ended with it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    run.log += log.read_text(errors="replace")
    return _take(results, run)


def _take(results: Path, run: Run) -> tuple[bool, str | None]:
    at, ended = None, False
    for line in results.read_text().splitlines():
        record = json.loads(line)
        if "start" in record:
            at = record["start"]
        elif "test" in record:
            run.outcomes[record["test"]], run.why[record["test"]] = record["outcome"], record["why"]
            at = None
        else:
            ended = True
    return ended, at


def complaints(run: Run, known: dict[str, Known], baseline: dict[str, Known]) -> list[str]:
    """What differs from what is known: one line each."""
    lines = []
    for test, why in sorted(run.failed.items()):
        if test not in known and test not in baseline:
            lines.append(f"{run.outcomes[test]}: {test}: {why}")
    for test, item in sorted(known.items()):
        if run.outcomes.get(test) == "pass" and not item.flaky and test not in baseline:
            lines.append(f"passes, though listed: {test}: {item.reason}")
    return lines


def classes_of(family: Family, module: str, *, whole: bool) -> tuple[str, ...]:
    """Which of a module's classes are run; () for all."""
    part = module == "test_socket" and not whole and family.name not in ("host", BASELINE)
    return STREAM_CLASSES if part else ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--all", action="store_true", help="test_socket's datagram classes too")
    parser.add_argument("--write-baseline", action="store_true", help="record what fails")
    parser.add_argument("--log", type=Path, help="where the tracebacks go")
    parser.add_argument("modules", nargs="*", metavar="MODULE", default=MODULES)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    if find_test_package() is None:
        sys.exit("this interpreter came without its test package: install libpython3-testsuite")
    family = FAMILIES[args.family]
    known, baseline = read_known(family.name), read_baseline()
    found: dict[str, Run] = {}
    bad = 0
    for module in args.modules or MODULES:
        classes = classes_of(family, module, whole=args.all or everything())
        run = found[module] = run_module(family, module, classes)
        counts = {kind: list(run.outcomes.values()).count(kind) for kind in ("pass", "skip")}
        print(
            f"{family.name} {module}: {counts['pass']} passed, {counts['skip']} skipped, "
            f"{len(run.failed)} failed, {run.seconds:.1f} s",
            flush=True,
        )
        lines = complaints(run, known, baseline) if family.name != BASELINE else []
        for line in lines:
            print(f"  {line}", flush=True)
        bad += len(lines)
        if args.log:
            args.log.open("a").write(run.log)
    if args.write_baseline:
        print(baseline_text(found.values()), end="")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
