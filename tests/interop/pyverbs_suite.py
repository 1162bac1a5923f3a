"""rdma-core's own tests: which of them run on the RNIC, taking them from Debian, running them.

`pyverbs_suite.toml` says what is expected of each; docs/reference/pyverbs.md has `reference()`.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support import PROJECT

TABLE: Final = Path(__file__).with_suffix(".toml")
PAGE: Final = PROJECT / "docs" / "reference" / "pyverbs.md"
BEGIN: Final = "<!-- rdma-core's tests -->\n"
END: Final = "<!-- end of rdma-core's tests -->\n"
OF_A_VENDOR: Final = ("test_mlx5_", "test_efa")
"""Modules that are about one vendor's devices, and begin with that vendor's constants."""
_TIMEOUT: Final = 300
_RESULT: Final = re.compile(
    r"^test_\w+ \(tests\.(?P<id>[\w.]+)\).*?\.\.\. .*?(?:\b|^)"
    r"(?P<result>ok|FAIL|ERROR|skipped (?P<quote>['\"])(?P<reason>.*?)(?P=quote))$",
    re.MULTILINE | re.DOTALL,
)
_AS_ROOT: Final = (
    "ip link set lo up && mount -t tmpfs none /sys/class"
    ' && mkdir -p /sys/class/infiniband/steertag0/device/net/lo && exec "$@"'
)
"""A network of its own, and the place where the tests look for the device's network interface."""


@dataclass(frozen=True)
class Expected:
    """What the table says.

    Attributes:
        version: of rdma-core.
        runs: tests that pass.
        skips: tests that skip themselves, each with the key of the reason.
        left_out: tests that are not run, each with the reason in words.
        reasons: of each key: a sentence, and what a test says that skips for it.
    """

    package: str
    version: str
    runs: frozenset[str]
    skips: dict[str, str]
    left_out: dict[str, str]
    reasons: dict[str, tuple[str, re.Pattern[str]]]

    def modules(self) -> list[str]:
        names = {*self.runs, *self.skips, *self.left_out}
        return sorted({name.partition(".")[0] for name in names})


def expected() -> Expected:
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))

    def ids(modules: dict[str, list[str]]) -> list[str]:
        return [f"{module}.{test}" for module, tests in modules.items() for test in tests]

    return Expected(
        package=table["package"],
        version=table["version"],
        runs=frozenset(ids(table["runs"])),
        skips={test: key for key, modules in table["skips"].items() for test in ids(modules)},
        left_out={f"{one['module']}.{one['test']}": one["text"] for one in table["left_out"]},
        reasons={
            key: (one["text"], re.compile(one["says"])) for key, one in table["reasons"].items()
        },
    )


def prepare(unpacked: Path, directory: Path) -> None:
    """Copy the tests out of the unpacked package, as they are."""
    (start,) = unpacked.glob("usr/share/doc/**/tests/run_tests.py*")
    for file in start.parent.iterdir():
        name = file.name.removesuffix(".gz")
        if not name.startswith(OF_A_VENDOR):
            octets = file.read_bytes()
            text = gzip.decompress(octets) if file.suffix == ".gz" else octets
            (directory / name).write_bytes(text)


def run(directory: Path, arguments: Sequence[str], *, isolated: bool = False) -> str:
    """Run rdma-core's `run_tests.py`; gives what it prints. It has to end by itself."""
    command = [sys.executable, "-m", "steertag.compat.pyverbs", "run_tests.py", *arguments]
    if isolated:
        command = ["unshare", "--mount", "--net", "sh", "-c", _AS_ROOT, "sh", *command]
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_TIMEOUT,
    )
    return done.stdout


def names(directory: Path) -> list[str]:
    """Every test there is, without the `tests.` before it."""
    listed = run(directory, ["--list-tests"]).splitlines()
    return [line.removeprefix("tests.") for line in listed if line.startswith("tests.")]


def results(output: str) -> dict[str, str]:
    """What became of each test: ok, FAIL, ERROR, or the words it skipped itself with."""
    return {
        found["id"]: found["reason"] if found["reason"] is not None else found["result"]
        for found in _RESULT.finditer(output)
    }


def reference() -> str:
    """The part of the reference page that lists the tests."""
    known = expected()
    lines = [
        f"Of rdma-core {known.version}'s tests {len(known.runs)} run and pass,"
        f" {len(known.skips)} skip themselves and {len(known.left_out)} are left out.\n",
        "| module | pass | skip | left out |",
        "|---|---|---|---|",
    ]
    for module in known.modules():
        counts = [
            sum(name.startswith(f"{module}.") for name in group)
            for group in (known.runs, known.skips, known.left_out)
        ]
        lines.append(f"| `{module}` | {counts[0]} | {counts[1]} | {counts[2]} |")
    lines += ["\n### What passes\n"]
    lines += _list(sorted(known.runs))
    lines += ["\n### What skips itself, and why\n"]
    for key, (text, _) in known.reasons.items():
        lines += [f"{text}\n", *_list(sorted(n for n, k in known.skips.items() if k == key)), ""]
    lines += ["### What is left out, and why\n"]
    for name, text in known.left_out.items():
        lines += [f"- `{name}`: {text}"]
    return "\n".join(lines) + "\n"


def _list(tests: list[str]) -> list[str]:
    """One entry a class of tests."""
    groups: dict[str, list[str]] = {}
    for test in tests:
        group, _, name = test.rpartition(".")
        groups.setdefault(group, []).append(name)
    return [
        f"- `{group}`: " + ", ".join(f"`{name}`" for name in names)
        for group, names in groups.items()
    ]


def update_page() -> None:
    """Put the table's list into the reference page: `python -m tests.interop.pyverbs_suite`."""
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{reference()}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    update_page()
