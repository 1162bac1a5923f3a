"""The behaviour suite: built from C, run natively and supervised, compared observation by
observation with the table of what is known to differ (behaviour/differences.toml).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support import PROJECT, require_tool

SOURCES: Final = PROJECT / "tests" / "run" / "behaviour"
TABLE: Final = SOURCES / "differences.toml"
STAG: Final = (sys.executable, "-m", "steertag")
MODES: Final = {
    "host": ["--family", "host"],
    "relay": ["--family", "host", "--relay"],
    "new_tcp": ["--family", "new_tcp"],
    "sdp": ["--family", "sdp"],
}
"""What a program's sockets are served by: the options of `stag run`."""
PATIENT: Final = "net.sdp.hello_timeout=12000;net.sdp.listen_grace=12000"
TIMEOUT: Final = 170.0
Observations = dict[str, str]


@dataclass(frozen=True)
class Difference:
    """A row of the table.

    Attributes:
        key: "case.observation".
        modes: where it differs.
        native, supervised: what is observed; supervised may be "*": it depends.
        why: the reason, a sentence.
    """

    key: str
    modes: tuple[str, ...]
    native: str
    supervised: str
    why: str


def build(directory: Path) -> Path:
    """Compile the suite."""
    program = directory / "behaviour"
    sources = sorted(map(str, SOURCES.glob("*.c")))
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    done = subprocess.run(
        [require_tool("cc"), *flags, *sources, "-lresolv", "-o", str(program)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return program


def observe(command: Sequence[str], prefix: Sequence[str] = ()) -> Observations:
    """Run the suite, supervised by `prefix`; "case.observation" -> what was seen.

    An observation that is made several times is one value, in order.
    """
    done = subprocess.run(
        [*prefix, *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        # Both ends are SDP's: one that is slow to answer is not to be taken for one that isn't.
        env={**os.environ, "SDP_FALLBACK": "never", "STEERTAG_SYSCTL": PATIENT},
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stderr}\n{done.stdout[-2000:]}"
    assert "Traceback" not in done.stderr, done.stderr
    seen: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        seen.setdefault(key, []).append(value)
    return {key: ", ".join(values) for key, values in seen.items()}


def supervised(mode: str, *options: str) -> list[str]:
    return [*STAG, "run", *MODES[mode], *options, "--"]


def known() -> list[Difference]:
    with TABLE.open("rb") as file:
        rows = tomllib.load(file)["difference"]
    return [Difference(**{**row, "modes": tuple(row["modes"])}) for row in rows]


def differences(native: Observations, other: Observations) -> dict[str, tuple[str, str]]:
    """key -> what was seen natively, and supervised; "-": nothing."""
    return {
        key: (native.get(key, "-"), other.get(key, "-"))
        for key in sorted({*native, *other})
        if native.get(key) != other.get(key)
    }


def complaints(mode: str, native: Observations, other: Observations) -> list[str]:
    """What the table doesn't say of a mode, and what it says that isn't so."""
    rows = {row.key: row for row in known() if mode in row.modes}
    found = differences(native, other)
    wrong = []
    for key, (before, after) in found.items():
        row = rows.get(key)
        if row is None:
            wrong.append(f"{key}: natively {before}, supervised {after}: not in the table")
        elif row.native != before or row.supervised not in ("*", after):
            wrong.append(f"{key}: natively {before}, supervised {after}; the table has others")
    wrong += [
        f"{key}: in the table, and no difference"
        for key, row in rows.items()
        if key not in found and row.supervised != "*"
    ]
    return wrong


def as_table(rows: Sequence[Difference]) -> str:
    """The rows as the page has them: Markdown, those of one reason together."""
    lines = ["| observation | natively | supervised | where | why |", "|---|---|---|---|---|"]
    for row in rows:
        after = "depends" if row.supervised == "*" else row.supervised
        cells = (f"`{row.key}`", row.native, after, ", ".join(row.modes), row.why)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
