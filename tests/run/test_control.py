"""`stag run` as its user sees it: a program's end, its signals, its descriptors, and ours."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket as std
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run.programs import (
    LIMIT,
    STAG,
    children,
    free_port,
    require_supervision,
    script,
    started,
    supervised,
)

SHELL = "/bin/sh"
HELLO = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, peer = listener.accept()
assert peer == client.getsockname(), peer
client.sendall(b"hello"); client.shutdown(socket.SHUT_WR)
print(server.recv(100).decode(), server.recv(1))
"""


def wait_for(fd: int, what: bytes) -> bytes:
    """Read from a descriptor until `what` has come."""
    got = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while what not in got:
        assert poll.poll(LIMIT * 1000), f"{what!r} did not come, but {got!r}"
        got += os.read(fd, 4096)
    return got


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None  # a pipe
    return process.stdout.readline().strip()


# -- the program's end -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_the_exit_status_is_the_programs(status: int) -> None:
    assert supervised(SHELL, "-c", f"exit {status}").returncode == status


def test_a_program_killed_by_a_signal_is_reported_as_a_shell_does() -> None:
    assert supervised(SHELL, "-c", "kill -USR1 $$").returncode == 128 + signal.SIGUSR1


def test_a_program_that_is_not_there_is_127_and_one_line() -> None:
    done = supervised("no-such-program")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == "stag run: no-such-program: there is no such program in PATH\n"


def test_a_file_that_is_no_program_is_126(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("no program")
    done = supervised(str(file))
    assert done.returncode == 126
    assert done.stderr == f"stag run: {file}: Permission denied\n"


def test_a_script_without_an_interpreter_is_the_shells(tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_text("echo from the shell: $1")
    file.chmod(0o755)
    assert supervised(str(file), "argument").stdout == "from the shell: argument\n"


def test_input_and_output_are_the_programs() -> None:
    done = supervised("tr", "a-z", "A-Z", stdin="through a pipe")
    assert (done.returncode, done.stdout, done.stderr) == (0, "THROUGH A PIPE", "")


def test_a_descriptor_is_inherited_by_the_program_and_by_nobody_else() -> None:
    require_supervision()
    ours, theirs = os.pipe()
    writes = f"import os; os.write({theirs}, b'here')"
    process = subprocess.Popen(
        [*STAG, "--family", "host", "--relay", "--", sys.executable, "-c", writes],
        pass_fds=(theirs,),
    )
    os.close(theirs)
    with open(ours, "rb") as file:
        assert file.read() == b"here"  # to the end: nobody holds the other one
    assert process.wait(LIMIT) == 0


def test_signals_ignored_by_the_interpreter_are_not_by_the_program() -> None:
    done = supervised(SHELL, "-c", "kill -PIPE $$; echo not reached")
    assert (done.returncode, done.stdout) == (128 + signal.SIGPIPE, "")


# -- signals and the terminal ----------------------------------------------------------------------

CATCHER = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [{number}])
print("ready", flush=True)
signal.sigwait([{number}])
print("caught", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_that_is_sent_to_us_reaches_the_program(number: signal.Signals) -> None:
    process = started(CATCHER.format(number=int(number)))
    assert line(process) == "ready"
    process.send_signal(number)
    assert line(process) == "caught"
    assert process.wait(LIMIT) == 0
    process.communicate()


TERMINAL = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
os.write(1, b"<ready>")
signal.sigwait([signal.SIGINT])
os.write(1, b"<caught>" if not signal.sigpending() else b"<caught twice>")
signal.sigwait([signal.SIGINT])
os.write(1, b"<over>")
"""


def test_keys_of_the_terminal_reach_the_program_once_and_stop_us_with_it() -> None:
    require_supervision()
    pid, terminal = pty.fork()
    if pid == 0:
        command = [*STAG, "--family", "host", "--relay", "--", sys.executable, "-c", TERMINAL]
        os.execv(command[0], command)
    try:
        wait_for(terminal, b"<ready>")
        os.write(terminal, b"\x03")
        wait_for(terminal, b"<caught>")
        # We lead the session here, and so are in an orphaned process group, which keys don't
        # stop: it is the program that is, as by kill.
        program = _program(pid)
        os.kill(program, signal.SIGSTOP)
        _, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        os.kill(program, signal.SIGCONT)
        os.kill(pid, signal.SIGCONT)
        os.write(terminal, b"\x03")
        wait_for(terminal, b"<over>")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)


def _program(front: int) -> int:
    """Of `stag run`'s first process: control is its child, and the program control's."""
    (control,) = children(front)
    for pid in children(control):
        if b"steertag" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("no such process")


# -- descendants -----------------------------------------------------------------------------------


def test_connections_are_served() -> None:
    assert script(HELLO) == "hello b''\n"


def test_children_and_their_programs_are_served() -> None:
    done = supervised(SHELL, "-c", '"$0" -c "$1"; "$0" -c "$1"', sys.executable, HELLO)
    assert done.stdout == "hello b''\n" * 2, done.stderr


DAEMON = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    for fd in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    while True:
        connection, _ = listener.accept()
        word = connection.recv(100)
        connection.sendall(word.upper())
        connection.close()
        if word == b"end":
            os._exit(0)
os.wait()
"""


def test_a_daemon_keeps_its_sockets_though_its_parent_has_ended() -> None:
    port = free_port()
    done = supervised(sys.executable, "-c", DAEMON, str(port))
    assert (done.returncode, done.stderr) == (0, "")
    for word in (b"one", b"end"):
        with std.create_connection(("127.0.0.1", port), LIMIT) as sock:
            sock.sendall(word)
            assert sock.recv(100) == word.upper()


def test_a_second_supervisor_inside_the_first_says_why_it_cannot_be() -> None:
    done = supervised(*STAG, "--family", "host", "--relay", "true")
    assert done.returncode == 125
    assert "under a `stag run` already" in done.stderr
    assert "Traceback" not in done.stderr


# -- our own end -----------------------------------------------------------------------------------

ORPHAN = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
print("ready", flush=True)
sys.stdin.readline()
def attempt(what):
    try:
        return repr(what())
    except OSError as error:
        return "error"
print(attempt(lambda: client.recv(1)), flush=True)
print(attempt(lambda: socket.create_connection(listener.getsockname())), flush=True)
print(attempt(lambda: socket.create_server(("127.0.0.1", 0))), flush=True)
sys.exit(9)
"""


def victims(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Control, and the data process: of its children, the one that is not the program."""
    (control,) = children(process.pid)
    here = Path(f"/proc/{control}/cmdline").read_bytes()
    (data,) = [
        pid for pid in children(control) if Path(f"/proc/{pid}/cmdline").read_bytes() == here
    ]
    return control, data


@pytest.mark.parametrize("which", ["control", "data"])
def test_our_death_leaves_the_program_with_errors_and_its_own_status(which: str) -> None:
    process = started(ORPHAN)
    assert line(process) == "ready"
    control, data = victims(process)
    os.kill(control if which == "control" else data, signal.SIGKILL)
    output, errors = process.communicate("go on\n", timeout=LIMIT)
    received, connected, served = output.split("\n")[:3]
    assert received in ("b''", "error")
    assert (connected, served) == ("error", "error")
    assert process.returncode == 9, errors
    assert f"the {which} process has died" in errors


def test_a_call_that_waits_when_the_data_process_dies_ends_with_an_error() -> None:
    process = started(
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print('ready', flush=True)\n"
        "try:\n    listener.accept()\nexcept OSError as error:\n    print(error.errno)\n"
    )
    assert line(process) == "ready"
    os.kill(victims(process)[1], signal.SIGKILL)
    output, errors = process.communicate(timeout=LIMIT)
    assert output.strip() == "100", errors  # ENETDOWN


def test_nothing_is_left_over_at_the_end() -> None:
    rounds = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
for _ in range(200):
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.sendall(b"x"); assert server.recv(1) == b"x"
    client.close(); assert server.recv(1) == b""
    server.close()
listener.close()
other = socket.socket()
"""
    options = ("--family", "host", "--relay", "--stats")
    done = supervised(sys.executable, "-c", rounds, options=options)
    assert done.returncode == 0, done.stderr
    counters = dict(
        pair.split("=") for pair in done.stderr.split("stag run: ")[-1].split() if "=" in pair
    )
    assert counters["data.connected"] == counters["data.accepted"] == "200"
    assert counters["waiting"] == counters["data.relays"] == "0"
