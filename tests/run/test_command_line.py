"""`stag run`'s own refusals: what is wrong, in a line, and the exit code that says whose it is."""

from __future__ import annotations

import socket as std
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.run.programs import LIMIT, STAG, require_supervision
from tests.support import PROJECT


def stag_run(*words: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STAG, *words], capture_output=True, text=True, timeout=LIMIT, check=False, cwd=cwd
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Its one line; above that of click's are the lines that name the usage and --help."""
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    if lines[0].startswith("Usage: "):
        assert lines[1].startswith("Try ")
        lines = lines[2:]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a program to run, as in: stag run curl"),
        (("--",), "name a program to run"),
        (("--check", "true"), "--check runs nothing; leave the program out"),
        (("--json", "true"), "--json is of --check"),
        (("--nonsense", "true"), "--nonsense"),
        (("--family", "SCTP", "true"), "write sdp, new_tcp, host or a family's number"),
        (("--family", "0", "true"), "write sdp, new_tcp, host or a family's number"),
        (("--map", "80", "true"), "write ADDR:PORT=ADDR:PORT"),
        (("--map", "*:80=127.0.0.1", "true"), "'127.0.0.1' is no ADDR:PORT"),
        (("--map", "*:80=127.0.0.1:0", "true"), "write 1 to 65535, or * for any"),
        (("--map", "*:80=localhost:80", "true"), "'localhost' is no IP address"),
        (("--map", "*:80=::1:80", "true"), "write [::1]:80"),
        (("--rtt", "soon", "true"), "--rtt"),
        (("--rtt", "-1", "true"), "--rtt"),
        (("--family", "host", "--rtt", "1", "true"), "add --relay"),
        (("--family", "host", "--device", "tun:x,10.9.0.2/24", "true"), "--device is of"),
        (("--device", "tun:x,10.9.0.2/24", "true"), "unless STEERTAG_SDP_TRANSPORT is new_tcp"),
        (("--family", "new_tcp", "--device", "tun:x", "true"), "it has no address"),
        (("--rules", "no-such-file", "true"), "--rules no-such-file: No such file"),
        (("--rules", ".", "true"), "--rules .: Is a directory"),
    ],
)
def test_a_command_line_that_is_wrong_is_2(words: tuple[str, ...], said: str) -> None:
    done = stag_run(*words)
    assert done.returncode == 2
    assert said in refusal(done)


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        ("use sdp * * *:*\nuse carrier_pigeon * * *:*\n", ":2: ", "expected sdp, tcp, both"),
        ("# none\n\nuse sdp\n", ":3: ", "use"),
        ("use sdp * * 10.0.0.0/99:*\n", ":1: ", "10.0.0.0/99"),
        ("use sdp * * *:80-70\n", ":1: ", "80-70"),
        ("\xff\n", ":1: ", ""),
    ],
)
def test_a_bad_rule_is_2_and_named_by_its_file_and_line(
    tmp_path: Path, text: str, where: str, expected: str
) -> None:
    (tmp_path / "rules.conf").write_text(text, encoding="latin-1")
    done = stag_run("--rules", "rules.conf", "true", cwd=tmp_path)
    assert done.returncode == 2
    said = refusal(done)
    assert f"--rules rules.conf{where}" in said
    assert expected in said


def test_a_family_that_nobody_registered_is_125_before_the_program_starts(tmp_path: Path) -> None:
    require_supervision()
    done = stag_run("--family", "77", "touch", str(tmp_path / "started"))
    assert done.returncode == 125
    assert "--family 77: nobody has registered that family" in refusal(done)
    assert "--import" in done.stderr
    assert not (tmp_path / "started").exists()


def test_a_rules_family_that_nobody_registered_is_125_and_the_rules_line(tmp_path: Path) -> None:
    require_supervision()
    (tmp_path / "rules.conf").write_text("use tcp * curl *:*\nuse 77 * * *:*\n")
    done = stag_run("--rules", "rules.conf", "true", cwd=tmp_path)
    assert done.returncode == 125
    assert "--rules rules.conf:2: 77: nobody has registered that family" in refusal(done)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "ModuleNotFoundError: No module named 'mine'"),
        ("x = (\n", "SyntaxError"),
        ("def register(stack):\n    raise RuntimeError('not today')\n", "RuntimeError: not today"),
    ],
)
def test_a_module_that_cannot_be_imported_is_125_and_says_why(
    tmp_path: Path, text: str | None, said: str
) -> None:
    require_supervision()
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    done = stag_run("--import", "mine", "true", cwd=tmp_path)
    assert done.returncode == 125
    line = refusal(done)
    assert line.startswith("stag run: --import mine: ")
    assert said in line


def test_a_module_may_lie_in_the_working_directory(tmp_path: Path) -> None:
    require_supervision()
    (tmp_path / "mine.py").write_text("def register(stack):\n    assert stack.sysctl\n")
    done = stag_run("--import", "mine", "echo", "started", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("no-such-program", 127, "there is no such program in PATH"),
        ("", 127, "there is no such program in PATH"),
        (
            "echo one word",
            127,
            "there is no such program; its arguments are words of their own, unquoted",
        ),
        ("./no-such-program", 127, "No such file or directory"),
        ("./interpreter", 127, "what its first line names, or its loader, is not there"),
        ("./data", 126, "Permission denied"),
        (".", 126, "Is a directory"),
        ("./data/program", 126, "Not a directory"),
    ],
)
def test_what_is_no_program_is_127_or_126(tmp_path: Path, name: str, code: int, said: str) -> None:
    require_supervision()
    (tmp_path / "data").write_text("no program")
    (tmp_path / "interpreter").write_text("#!/no/such/interpreter\n")
    (tmp_path / "interpreter").chmod(0o755)
    done = stag_run("--family", "host", "--", name, cwd=tmp_path)
    assert done.returncode == code
    assert refusal(done) == f"stag run: {name or repr(name)}: {said}"


def test_a_fallback_to_tcp_is_a_line_of_ours_among_the_programs() -> None:
    require_supervision()
    with std.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):  # who asks for SDP, and then without
                sock, _ = server.accept()
                with sock:
                    if sock.recv(1) == b"o":
                        sock.sendall(b"plain")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        text = f"import socket; s = socket.create_connection(('127.0.0.1', {port}))"
        text += "; s.sendall(b'o'); print(s.recv(10).decode())"
        done = stag_run(sys.executable, "-c", text)
        thread.join(LIMIT)
    assert (done.returncode, done.stdout) == (0, "plain\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("stag run: ")
    assert "has plain TCP, not SDP" in line


@pytest.mark.parametrize("words", [("--",), ()])
def test_options_behind_the_program_are_the_programs(words: tuple[str, ...]) -> None:
    require_supervision()
    done = stag_run("--family", "host", *words, "echo", "--family", "--", "new_tcp")
    assert (done.returncode, done.stdout) == (0, "--family -- new_tcp\n")


def test_the_page_of_exit_codes_has_those_that_are_used_here() -> None:
    page = (PROJECT / "docs/reference/exit-codes.md").read_text()
    section = page.partition("`stag run` ends as the program did")[2].partition("The other")[0]
    for code in ("125", "126", "127", "128 + N", "2"):
        assert f"| {code} |" in section
