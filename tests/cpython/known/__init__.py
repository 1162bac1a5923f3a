"""What is known to fail, and what fails without us: the files of this folder.

`3.11/new_tcp.txt` lists what fails over a family with that minor version of the interpreter, and
`3.11/baseline.txt` what fails on the unpatched interpreter. One test a line, then why:

    test.test_socket.Class.test_name: the reason
    hangs test.test_socket.Class.test_name: the reason; it is not run
    flaky test.test_socket.Class.test_name: the reason; it may pass

Lines that begin with # and empty ones say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.cpython.suites import BASELINE, MINOR

if TYPE_CHECKING:
    from tests.cpython.run import Run

FOLDER: Final = Path(__file__).resolve().parent / MINOR


@dataclass(frozen=True, slots=True)
class Known:
    reason: str
    flaky: bool = False
    hangs: bool = False


def read_known(family: str) -> dict[str, Known]:
    """By test, what is known of a family. Raises ValueError: a line without a reason."""
    file = FOLDER / f"{family}.txt"
    known: dict[str, Known] = {}
    if not file.exists():
        return known
    for number, line in enumerate(file.read_text().splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        test, colon, reason = text.partition(": ")
        *marks, name = test.split()
        if not colon or not reason.strip() or not set(marks) <= {"flaky", "hangs"}:
            raise ValueError(f"{file.name}:{number}: expected [flaky|hangs] TEST: REASON")
        if name in known:
            raise ValueError(f"{file.name}:{number}: {name} is listed twice")
        known[name] = Known(reason.strip(), "flaky" in marks, "hangs" in marks)
    return known


def read_baseline() -> dict[str, Known]:
    """By test, why it fails on the unpatched interpreter."""
    return read_known(BASELINE)


def baseline_text(runs: Iterable[Run]) -> str:
    """Lines for baseline.txt."""
    lines = []
    for run in runs:
        for test, why in sorted(run.failed.items()):
            mark = "hangs " if run.outcomes[test] == "hang" else ""
            lines.append(f"{mark}{test}: {why}\n")
    return "".join(lines)
