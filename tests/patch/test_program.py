"""`python -m steertag.patch`: programs that know nothing of it, as their users see them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.patch.conftest import FAMILIES

PROGRAM = """
import socket, sys, threading

def serve():
    conn, _ = server.accept()
    with conn, conn.makefile("rwb") as file:
        file.write(file.readline().upper())

with socket.create_server(("127.0.0.1", 0)) as server:
    thread = threading.Thread(target=serve)
    thread.start()
    with socket.create_connection(server.getsockname(), 20) as client:
        client.sendall(b"hello\\n")
        print(client.recv(100).decode(), end="")
        kernel = getattr(client, "kernel", None)
        print("family", getattr(kernel, "family", "of the host"))
    thread.join()
print(__name__, sys.argv[1:])
sys.exit(7)
"""
NUMBERS = {"host": "of the host", "new_tcp": "46", "sdp": "27"}


def run(
    *arguments: object, folder: Path, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "steertag.patch", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_runs_over_the_family_with_its_arguments_and_its_status(
    program: Path, family: str
) -> None:
    done = run("--family", family, "program.py", "--family", "-m", folder=program.parent)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "HELLO",
        f"family {NUMBERS[family]}",
        "__main__ ['--family', '-m']",
    ]
    assert done.returncode == 7


def test_a_module_a_package_a_directory_and_an_archive_are_programs(program: Path) -> None:
    folder = program.parent
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(PROGRAM)
    with zipfile.ZipFile(folder / "archive.pyz", "w") as archive:
        archive.writestr("__main__.py", PROGRAM)
    for words in (["-m", "program"], ["-m", "package"], ["package"], ["archive.pyz"]):
        done = run("--family", "new_tcp", *words, "a", folder=folder)
        assert done.stdout.splitlines()[1:] == ["family 46", "__main__ ['a']"], words
        assert (done.returncode, done.stderr) == (7, "")


def test_rules_and_the_environment_choose_too(program: Path) -> None:
    policy = program.parent / "policy.conf"
    policy.write_text("use sdp * other *:*\nuse new_tcp * program 127.0.0.0/8:*\n")
    done = run("--rules", policy, "program.py", folder=program.parent)
    assert "family 46" in done.stdout
    done = run("program.py", folder=program.parent, environ={"SDP_CONFIG": str(policy)})
    assert "family 46" in done.stdout
    done = run("program.py", folder=program.parent, environ={"STEERTAG_FAMILY": "host"})
    assert "family of the host" in done.stdout
    done = run("program.py", folder=program.parent)
    assert "family 27" in done.stdout


def test_verbose_says_what_is_chosen(program: Path) -> None:
    policy = program.parent / "policy.conf"
    policy.write_text("use new_tcp * * *:*\n")
    done = run("--verbose", "--rules", "policy.conf", "program.py", folder=program.parent)
    lines = done.stderr.splitlines()
    assert lines[0] == (
        "steertag.patch: the rules of policy.conf; where none matches: the host's sockets"
    )
    assert lines[1] == "steertag.patch: server of 127.0.0.1:0: AF_INET_NEW_TCP"
    assert lines[2].startswith("steertag.patch: client of 127.0.0.1:")


def test_a_traceback_begins_in_the_program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("def f():\n    raise LookupError('lost')\n\nf()\n")
    for words in (["program.py"], ["-m", "program"]):
        done = run("--family", "new_tcp", *words, folder=tmp_path)
        lines = done.stderr.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert "program.py" in lines[1]
        assert "line 4, in <module>" in lines[1]
        assert lines[-1] == "LookupError: lost"
        assert "steertag" not in done.stderr
        assert done.returncode == 1


def test_a_program_that_is_interrupted_dies_of_it(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("raise KeyboardInterrupt\n")
    done = run("--family", "new_tcp", "program.py", folder=tmp_path)
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert done.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--family", "ipx", "program.py"], "'ipx' is no family: expected sdp, tcp, both, host"),
        (["--family", "99", "program.py"], "no family has the number 99: expected one that is"),
        (["--rules", "99.conf", "program.py"], "99.conf:3: no family has the number 99: expected"),
        (["/bin/sh"], "'/bin/sh' is no Python program: `stag run -- /bin/sh` is for those"),
        (["--rules", "bad.conf", "program.py"], "bad.conf:2: 'rds' is no family"),
        (["--rules", "none.conf", "program.py"], "none.conf: No such file or directory"),
        (["nowhere.py"], "can't open file 'nowhere.py': No such file or directory"),
        (["-m", "nowhere"], "no module named nowhere"),
        (["empty"], "can't find '__main__.py' in 'empty'"),
        (["--famly", "sdp", "program.py"], "unrecognized arguments: --famly"),
        ([], "which program?"),
        (["-m"], "argument -m: expected one argument"),
    ],
)
def test_what_cannot_be_started_is_one_line_and_status_2(
    program: Path, words: list[str], said: str
) -> None:
    (program.parent / "bad.conf").write_text("# rules\nuse rds * * *:*\n")
    (program.parent / "99.conf").write_text("# a third party's\nuse sdp * * *:1\nuse 99 * * *:*\n")
    (program.parent / "empty").mkdir()
    done = run(*words, folder=program.parent)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("python -m steertag.patch: ")
    assert said in done.stderr


def test_help_names_every_option(tmp_path: Path) -> None:
    done = run("--help", folder=tmp_path)
    assert done.returncode == 0
    for word in ("--family", "--rules", "--verbose", "-m MODULE", "STEERTAG_FAMILY", "SDP_CONFIG"):
        assert word in done.stdout
