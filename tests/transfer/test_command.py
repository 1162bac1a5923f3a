"""What a person sees of `stag serve`, `get`, `put`, `ls` and `completion`."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import require_tool
from tests.transfer.harness import (
    PATIENCE,
    STAG,
    Command,
    Serving,
    assert_one_line,
    environment,
    make_file,
    stag,
)


def on_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Run `stag` with its standard output and error on a terminal; its code and what it wrote."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*STAG, *map(str, arguments)],
        stdout=slave,
        stderr=slave,
        env=environment(TERM="xterm", COLUMNS="120"),
    )
    os.close(slave)
    written = b""
    while True:
        try:
            some = os.read(master, 65536)
        except OSError:  # EIO: the last writer is gone
            break
        if not some:
            break
        written += some
    os.close(master)
    return process.wait(PATIENCE), written.decode(errors="replace")


def test_serve_says_in_one_line_what_is_where(served: Path) -> None:
    with Command("serve", served, "--bind", "127.0.0.1:0") as command:
        line = command.first_line()
        assert re.fullmatch(
            rf"serving {served} on stag://127\.0\.0\.1:\d+/ \(read-only, rdma: yes\)\n", line
        )
    with Command("serve", served, "--bind", "[::1]:0", "--writable", "--no-rdma") as command:
        line = command.first_line()
        assert re.fullmatch(
            rf"serving {served} on stag://\[::1\]:\d+/ \(writable, rdma: no, off by --no-rdma\)\n",
            line,
        )


def test_an_ipv6_address_serves_all_paths(served: Path, here: Path) -> None:
    data = make_file(served / "file", 100_000)
    with Serving(served, bind="[::1]:0") as server:
        for path in ("rdma-write", "tcp-sendfile"):
            done = stag("get", server.url + "file", here / path, "--path", path, "--json")
            assert done.report["path"] == path
            assert (here / path).read_bytes() == data


def test_the_address_in_use_is_one_line(served: Path, server: Serving) -> None:
    done = stag("serve", served, "--bind", f"127.0.0.1:{server.port}")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "in use" in done.err
    assert "--bind" in done.err


def test_the_server_logs_what_clients_do(served: Path, here: Path) -> None:
    make_file(served / "a\nb", 10)
    with Serving(served) as server:
        assert stag("get", server.url + "a%0Ab", here).code == 0
        assert stag("ls", server.url).code == 0
        assert stag("get", server.url + "none", here).code == 3
        events = {event["event"]: event for event in server.events()}
        assert events["get"]["name"] == "a\nb"
        assert events["get"]["bytes"] == 10
        assert events["failed"]["code"] == 3
        assert "list" in events
    with Command("serve", served, "--bind", "127.0.0.1:0") as command:
        url = command.first_line().split()[3]
        assert stag("get", url + "a%0Ab", here).code == 0
        command.signal(2)
        done = command.wait()
        assert done.code == 0
        assert "name=a\\x0ab" in done.err


def test_a_terminal_gets_a_bar_with_rate_and_time_left(served: Path, here: Path) -> None:
    size = 64 * 1024 * 1024
    make_file(served / "a\x1b[31mb", 64)
    os.truncate(served / "a\x1b[31mb", size)
    with Serving(served) as server:
        code, written = on_terminal("get", server.url + "a%1b%5b31mb", here)
    assert code == 0, written
    assert "moving" in written
    assert "MB/s" in written or "GB/s" in written
    assert "left" in written
    assert "a\\x1b[31mb" in written
    assert "\x1b[31mb" not in written


def test_a_pipe_gets_no_bar(server: Serving, served: Path, here: Path) -> None:
    make_file(served / "file", 1_000_000)
    done = stag("get", server.url + "file", here, "--path", "tcp-buffered")
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert "\x1b" not in done.err
    assert "verified" in done.err
    assert stag("get", server.url + "file", here, "-q").err == ""


def test_ls_escapes_names_on_a_terminal_only(server: Serving, served: Path) -> None:
    (served / "a\x1b]0;title\x07b").write_bytes(b"12345")
    code, written = on_terminal("ls", server.url)
    assert code == 0
    assert "a\\x1b]0;title\\x07b" in written
    assert "\x07" not in written
    assert stag("ls", server.url).out == "a\x1b]0;title\x07b\n"
    done = stag("ls", server.url, "--long")
    assert re.match(r"-rw-r--r--\s+5 \d{4}-\d\d-\d\d \d\d:\d\d a", done.out)


def test_ls_lists_more_than_a_frame_holds(server: Serving, served: Path) -> None:
    names = [f"{number:04}" + "\x01" * 200 for number in range(500)]
    for name in names:
        (served / name).touch()
    done = stag("ls", server.url, "--json")
    assert [json.loads(line)["name"] for line in done.out.splitlines()] == names


def test_a_reader_that_goes_away_is_no_error(server: Serving, served: Path) -> None:
    for number in range(2000):
        (served / f"{number:04}").touch()
    line = f"{' '.join(STAG)} ls {server.url} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=environment(),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0000\n", "")


@pytest.mark.parametrize(
    "command", ["--help", "--version", "get --help", "completion bash", "protocols", "sysctl -a"]
)
def test_no_command_minds_a_reader_that_has_left(command: str) -> None:
    assert without_reader(command) == (0, "")


def test_a_failure_keeps_its_exit_code_when_nobody_reads(server: Serving) -> None:
    assert without_reader(f"ls --json {server.url}nosuch")[0] == 3


def test_a_server_goes_on_when_nobody_reads_its_log(served: Path, here: Path) -> None:
    make_file(served / "file", 10)
    with Serving(served) as server:
        assert server.process.stdout is not None
        server.process.stdout.close()
        for _ in range(2):
            assert stag("get", server.url + "file", here).code == 0
        server.signal(signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("command", ["--help", "protocols", "completion bash"])
def test_output_that_cannot_be_written_is_one_line(command: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*STAG, *command.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE,
            env=environment(),
        )
    assert done.returncode == 1
    assert done.stderr == "stag: cannot write the output: No space left on device\n"


def test_only_a_name_at_a_server_is_looked_up_with_ls(
    server: Serving, served: Path, here: Path
) -> None:
    make_file(served / "file", 10)
    hint = "`stag ls` shows"
    for done in (
        stag("put", here / "nosuch", server.url),
        stag("get", server.url + "file", here / "nosuch" / "file"),
        stag("serve", here / "nosuch"),
    ):
        assert_one_line(done, 3, "No such file or directory; check the name")
        assert hint not in done.err
    assert_one_line(stag("get", server.url + "nosuch", here), 3, hint)


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    wrap = ("sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh")
    with Command("protocols", "--import", "json", wrap=wrap, cwd=tmp_path) as command:
        assert_one_line(command.wait(), 2, "--import json", "No such file or directory")


def without_reader(command: str) -> tuple[int, str]:
    """Exit code and standard error of a command whose standard output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*STAG, *command.split()],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE,
            env=environment(),
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["serve", "get", "put", "ls", "completion"])
def test_every_command_has_help(command: str) -> None:
    done = stag(command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: stag {command} ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(shell: str) -> None:
    done = stag("completion", shell)
    assert done.code == 0
    assert f"_STAG_COMPLETE={shell}_complete" in done.out


def test_the_completion_script_completes_in_bash(tmp_path: Path) -> None:
    bash = require_tool("bash")
    require_tool("stag")
    words = 'COMP_WORDS=(stag get --pa) COMP_CWORD=2; _stag_completion stag; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        [bash, "-c", f'eval "$(stag completion bash)"; {words}'],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=environment(),
    )
    assert done.stdout.strip() == "--path", done


def test_putting_a_url_says_what_to_do_instead() -> None:
    done = stag("put", "stag://h/a", "stag://h/b")
    assert_one_line(done, 2, "stag get")
