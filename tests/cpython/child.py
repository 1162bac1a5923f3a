"""One of CPython's test modules in this process, over one family; results as JSON lines.

    python -m tests.cpython.child FAMILY MODULE RESULTS SECONDS [--skip FILE] [--class NAME]...

RESULTS gets `{"start": test}` before each test and `{"test": ..., "outcome": ..., "why": ...}`
after it; `--skip` names a file of tests that are not run. A test that takes more than SECONDS ends
the process: the stacks of all threads are written to standard error first.
"""

# ruff: noqa: ANN401 - what unittest hands over has many types
from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.cpython.substitute import substitute
from tests.cpython.suites import FAMILIES, ON_LOOPBACK, find_test_package


class Recorder(unittest.TestResult):
    """Writes down what becomes of each test, at once: the next may not come back."""

    def __init__(self, out: IO[str], limit: float) -> None:
        super().__init__()
        self._out, self._limit = out, limit
        self._outcome, self._why = "", ""

    def _write(self, **record: str) -> None:
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._outcome, self._why = "pass", ""
        self._write(start=test.id())
        faulthandler.dump_traceback_later(self._limit, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        faulthandler.cancel_dump_traceback_later()
        self._write(test=test.id(), outcome=self._outcome, why=self._why)
        super().stopTest(test)

    def _bad(self, test: Any, outcome: str, err: Any) -> None:
        text = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]
        print(f"--- {outcome}: {test.id()}\n{text}", file=sys.stderr, flush=True)
        last = [line for line in text.splitlines() if line and not line.startswith(" ")]
        why = last[-1] if last else ""
        if isinstance(test, unittest.TestCase):
            self._outcome, self._why = outcome, why
        else:
            # setUpModule or setUpClass: no test of it is started.
            self._write(test=test.id(), outcome=outcome, why=why)

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        self._bad(test, "error", err)

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        self._bad(test, "fail", err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        if err is not None:
            self._bad(test, "fail", err)

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        if isinstance(test, unittest.TestCase):
            if self._outcome == "pass":
                self._outcome, self._why = "skip", reason
        else:
            self._write(test=test.id(), outcome="skip", why=reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        self._outcome = "pass"

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
        self._outcome, self._why = "fail", "an unexpected success"


def cases(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from cases(item)
        else:
            yield item


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("module")
    parser.add_argument("results", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--skip", type=Path)
    parser.add_argument("--class", dest="classes", action="append", default=[])
    args = parser.parse_args()
    faulthandler.enable()
    sources = find_test_package()
    if sources is None:
        sys.exit("this interpreter came without its test package")
    if str(sources) not in sys.path:
        sys.path.append(str(sources))
    substitute(FAMILIES[args.family])

    from test import support

    # What reaches out to the Internet, or takes minutes of a processor, is left out.
    support.use_resources = ["network"] if args.module in ON_LOOPBACK else []
    warnings.simplefilter("default")
    skip = set(args.skip.read_text().splitlines()) if args.skip else set()
    faulthandler.dump_traceback_later(args.seconds, exit=True)
    loaded = unittest.defaultTestLoader.loadTestsFromName(f"test.{args.module}")
    chosen = [
        case
        for case in cases(loaded)
        if case.id() not in skip and (not args.classes or type(case).__name__ in args.classes)
    ]
    with args.results.open("a", encoding="utf-8") as out:
        unittest.TestSuite(chosen).run(Recorder(out, args.seconds))
        out.write('{"end": true}\n')
        out.flush()
        # Threads that a failed test left behind must not keep the process.
        faulthandler.cancel_dump_traceback_later()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
