"""`stag` starts fast because it imports little; each command answers `--help`."""

from __future__ import annotations

import json
import subprocess
import sys
from time import perf_counter
from typing import NoReturn

import pytest
from click.testing import CliRunner

from steertag import __version__
from steertag.cli.main import COMMANDS, cli

MODULES_AFTER_HELP = """
import json, sys
from steertag.cli.main import main
sys.argv = ["stag", *json.loads(sys.argv[1])]
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
# Each of these costs milliseconds; those of steertag bring the rest of it along.
HEAVY = {
    "asyncio",
    "crc32c",
    "logging",
    "multiprocessing",
    "numpy",
    "rich",
    "socket",
    "ssl",
    "subprocess",
    "xxhash",
}
STEERTAG_AT_START = {"steertag", "steertag.cli", "steertag.cli.main", "steertag.cli.output"}


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=60, check=True
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_command_itself_imports_nothing_heavy(arguments: list[str]) -> None:
    done = run("-c", MODULES_AFTER_HELP, json.dumps(arguments))
    imported = set(json.loads(done.stderr))
    assert imported & HEAVY == set()
    assert {name for name in imported if name.partition(".")[0] == "steertag"} == STEERTAG_AT_START


def test_an_interrupt_while_a_command_is_imported_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_name: str) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    done = CliRunner().invoke(cli, ["demo"])
    assert (done.exit_code, done.output) == (130, "stag: interrupted\n")


def test_version_is_the_packages() -> None:
    assert run("-m", "steertag", "--version").stdout == f"stag, version {__version__}\n"


def test_help_lists_every_command_with_what_it_does() -> None:
    shown = " ".join(run("-m", "steertag", "--help").stdout.split())
    for name, (_, text) in COMMANDS.items():
        assert f"{name} {text}" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_imports_no_rich_for_it(name: str) -> None:
    done = run("-c", MODULES_AFTER_HELP, json.dumps([name, "--help"]))
    assert done.stdout.startswith(f"Usage: stag {name}")
    assert "rich" not in json.loads(done.stderr)


def test_a_command_that_does_not_exist_is_told_in_a_line_and_is_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "steertag", "fetch"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "No such command 'fetch'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.bench
def test_start_up_time_against_an_empty_program(capsys: pytest.CaptureFixture[str]) -> None:
    def median(*argv: str) -> float:
        def once() -> float:
            started = perf_counter()
            run(*argv)
            return perf_counter() - started

        return sorted(once() for _ in range(9))[4]

    empty, shown = median("-c", "pass"), median("-m", "steertag", "--help")
    with capsys.disabled():
        print(
            f"\nstag --help: {shown * 1000:.0f} ms, {shown / empty:.1f} times `python -c pass`"
            f" ({empty * 1000:.0f} ms)"
        )
    assert shown > empty
