"""The socket through which a running process is looked into: who may, and what can go wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from steertag.cli.main import cli
from tests.processes import PATIENCE
from tests.support import PROJECT, require_root
from tests.transfer.harness import Serving
from tests.unit.inspected import Program, environment_of, socket_of

QUESTION = json.dumps({"version": 1, "want": ["rdma", "sockets", "sysctl"]}).encode() + b"\n"
ONE_RNIC = "from steertag import verbs as v\ncontext = v.Context()\nprint('ready', flush=True)\n"


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sockets go, of the programs and of the commands. No directory above it is kept from
    other users, as pytest's are."""
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "steertag"
        monkeypatch.setenv("STEERTAG_INSPECT", str(path))
        yield path


@pytest.fixture
def program(directory: Path) -> Iterator[Program]:
    with Program(STEERTAG_INSPECT=str(directory)) as program:
        yield program


def stag(*args: str) -> Result:
    result = CliRunner().invoke(cli, args)
    assert "Traceback" not in result.output
    return result


def contexts() -> list[dict[str, object]]:
    """What `stag rdma resource show ctx` lists."""
    listed = json.loads(stag("rdma", "-j", "resource", "show", "ctx").stdout)
    assert isinstance(listed, list)
    return listed


def ask(path: Path, question: bytes) -> bytes:
    """Send octets to a socket, end the sending, read to the end."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(PATIENCE)
        peer.connect(str(path))
        answer = b""
        try:
            peer.sendall(question)
            peer.shutdown(socket.SHUT_WR)
            while octets := peer.recv(65536):
                answer += octets
        except (BrokenPipeError, ConnectionResetError):
            return answer  # it was hung up on
        return answer


# -- life of the socket --------------------------------------------------------------------------


def test_only_the_user_can_reach_the_socket(directory: Path, program: Program) -> None:
    status = socket_of(directory, program.pid).stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [entry.name for entry in directory.iterdir()] == [f"{program.pid}.sock"]


def test_another_user_is_not_answered_even_if_the_files_let_it_in(
    directory: Path, program: Program
) -> None:
    require_root()
    path = socket_of(directory, program.pid)
    for entry, mode in ((path, 0o666), (directory, 0o755), (directory.parent, 0o755)):
        entry.chmod(mode)
    stranger = (
        "import os, socket, sys\n"
        "peer = socket.socket(socket.AF_UNIX)\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "peer.connect(sys.argv[1])\n"
        "try:\n"
        "    peer.sendall(sys.argv[2].encode())\n"
        "    print(peer.recv(100))\n"
        "except (BrokenPipeError, ConnectionResetError):\n"
        "    print(b'')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", stranger, str(path), QUESTION.decode()],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("b''\n", 0), done.stderr


def test_a_process_that_ends_takes_its_socket_along(directory: Path, program: Program) -> None:
    assert program.end() == ""
    assert list(directory.iterdir()) == []


def test_what_a_killed_process_left_is_passed_over_and_removed(
    directory: Path, program: Program
) -> None:
    program.process.kill()
    program.process.wait(PATIENCE)
    assert socket_of(directory, program.pid).exists()
    assert contexts() == []
    assert list(directory.iterdir()) == []


def test_the_next_process_removes_what_a_killed_one_left(directory: Path) -> None:
    with Program(ONE_RNIC, STEERTAG_INSPECT=str(directory)) as killed:
        pass
    with Program(ONE_RNIC, STEERTAG_INSPECT=str(directory)) as living:
        left = [entry.name for entry in directory.iterdir()]
        assert left == [f"{living.pid}.sock"], killed.pid


def test_without_a_variable_the_runtime_directory_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("STEERTAG_INSPECT", raising=False)
    with Program(ONE_RNIC, XDG_RUNTIME_DIR=str(tmp_path)) as program:
        assert socket_of(tmp_path / "steertag", program.pid).exists()
        assert [row["pid"] for row in contexts()] == [program.pid]


def test_a_process_that_is_told_off_has_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERTAG_INSPECT", "off")
    with Program(ONE_RNIC, STEERTAG_INSPECT="off", XDG_RUNTIME_DIR=str(tmp_path)):
        assert list(tmp_path.iterdir()) == []
        assert contexts() == []


def _a_link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    path.symlink_to(elsewhere)


def _open_to_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def _a_file(path: Path) -> None:
    path.touch(0o600)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "missing" / "sockets"
    with Program(ONE_RNIC, STEERTAG_INSPECT=str(directory)) as program:
        errors = program.end()
    assert errors == (
        f"steertag: this process can't be inspected: {directory}: No such file or directory\n"
    )


@pytest.mark.parametrize("spoil", [_a_link, _open_to_others, _a_file])
def test_a_directory_that_cannot_be_trusted_is_not_used(directory: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(directory)
    with Program(ONE_RNIC, STEERTAG_INSPECT=str(directory)) as program:
        assert [entry.name for entry in directory.parent.rglob("*.sock")] == []
        errors = program.end()
    assert errors.count("\n") == 1
    assert f"steertag: this process can't be inspected: {directory}" in errors.replace(
        "Operation not permitted: ", ""
    )
    shown = stag("rdma", "resource", "show")
    assert shown.exit_code == 1
    assert str(directory) in shown.output


def test_a_long_path_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / ("long" * 30)
    monkeypatch.setenv("STEERTAG_INSPECT", str(directory))
    with Program(ONE_RNIC, STEERTAG_INSPECT=str(directory)) as program:
        assert [row["pid"] for row in contexts()] == [program.pid]


def test_a_forked_child_leaves_the_socket_to_its_parent(directory: Path, program: Program) -> None:
    program.do("import os; child = os.fork() or os._exit(0); os.waitpid(child, 0)")
    program.do("child = os.fork() or sys.exit(0); os.waitpid(child, 0)")
    assert [row["pid"] for row in contexts()] == [program.pid]


def test_a_forked_child_shows_the_rnics_that_it_opens_itself(
    directory: Path, program: Program
) -> None:
    program.do(
        "import os; (read, write), (stop, go) = os.pipe(), os.pipe();"
        "child = os.fork() or (v.Context(), os.write(write, b'x'), os.read(stop, 1), os._exit(0));"
        "os.read(read, 1)"
    )
    listed = [(row["pid"], row["ctxn"]) for row in contexts()]
    program.do("os.write(go, b'x'); os.waitpid(child, 0)")
    assert len(listed) == 2
    assert (program.pid, 1) in listed
    assert contexts() == [row for row in contexts() if row["pid"] == program.pid]


# -- answers -------------------------------------------------------------------------------------


def test_one_json_document_answers_a_question(directory: Path, program: Program) -> None:
    document = json.loads(ask(socket_of(directory, program.pid), QUESTION))
    assert document["version"] == 1
    assert document["pid"] == program.pid
    assert document["sysctl"]["net.core.somaxconn"]["value"] == [4096]
    assert f"127.0.0.1:{program.said}" in [row["local"] for row in document["sockets"]]
    (rnic,) = document["rdma"]
    assert len(rnic["qp"]) == 2


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b'{"version": 2, "want": []}\n',
        b'{"version": 1, "want": ["passwords"]}\n',
        b'{"version": 1, "want": [["rdma"]]}\n',
        b'{"version": 1, "want": "rdma"}\n',
        b'{"version": 1}\n',
        b"[" * 4000 + b"\n",
        QUESTION[:-1],
        b" " * 100_000 + QUESTION,
        struct.pack("!I", 1) * 1000,
    ],
)
def test_what_is_no_question_gets_no_answer_and_does_no_harm(
    directory: Path, program: Program, question: bytes
) -> None:
    path = socket_of(directory, program.pid)
    assert ask(path, question) == b""
    assert json.loads(ask(path, QUESTION))["pid"] == program.pid


def test_peers_that_say_nothing_or_do_not_read_do_not_keep_others_out(
    directory: Path, program: Program
) -> None:
    path = socket_of(directory, program.pid)
    program.do("more = [v.MR(pd, bytearray(8), 1) for _ in range(5000)]")
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as deaf:
        silent.connect(str(path))
        deaf.connect(str(path))
        deaf.sendall(QUESTION)
        deaf.shutdown(socket.SHUT_RD)
        (rnic,) = json.loads(ask(path, QUESTION))["rdma"]
    assert len(rnic["mr"]) == 5001


def test_a_program_that_sleeps_in_its_own_progress_answers(directory: Path) -> None:
    """It holds its Context's lock meanwhile."""
    source = (
        "import socket, sys, threading\nfrom steertag import verbs as v\n"
        "context = v.Context(progress='caller')\npd = v.PD(context)\ncmid = v.CMID(pd=pd)\n"
        "mine, peers = socket.socketpair()\nother = v.CMID(pd=v.PD(v.Context()))\n"
        "def accept():\n    other.adopt_passive(peers)\n    other.accept()\n"
        "thread = threading.Thread(target=accept)\nthread.start()\n"
        "cmid.adopt_active(mine)\nthread.join()\n"
        "threading.Thread(target=context.progress, args=(None,), daemon=True).start()\n"
        "print('ready', flush=True)\n"
    )
    with Program(source, STEERTAG_INSPECT=str(directory)) as program:
        rnics = json.loads(ask(socket_of(directory, program.pid), QUESTION))["rdma"]
        assert [qp["state"] for rnic in rnics for qp in rnic["qp"]] == ["RTS", "RTS"]


def test_a_process_that_answers_nonsense_is_left_out(directory: Path, program: Program) -> None:
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(str(socket_of(directory, os.getpid())))
        impostor.listen()
        command = subprocess.Popen(
            [sys.executable, "-m", "steertag", "rdma", "resource", "show", "ctx"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env=environment_of(STEERTAG_INSPECT=str(directory)),
        )
        peer, _ = impostor.accept()
        with peer:
            assert peer.recv(4096)
            peer.sendall(b'{"version": 1, "rdma": [7]}')
        out, err = command.communicate(timeout=PATIENCE)
    assert command.returncode == 1
    assert out.splitlines() == [f"dev steertag0 ctxn 1 pid {program.pid} comm {_comm(program.pid)}"]
    assert f"process {os.getpid()} is left out: its answer is not what it should be" in err


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_a_stopped_process_is_left_out_and_told_of(directory: Path, program: Program) -> None:
    program.process.send_signal(signal.SIGSTOP)
    try:
        shown = stag("rdma", "resource", "show", "ctx")
    finally:
        program.process.send_signal(signal.SIGCONT)
    assert shown.exit_code == 1
    assert f"process {program.pid} is left out: it does not answer" in shown.output


def test_counters_outlive_their_queue_pairs_and_their_rnic(
    directory: Path, program: Program
) -> None:
    def sent() -> int:
        (link,) = json.loads(stag("rdma", "-j", "statistic", "show").stdout)
        return int(link["sent_pkts"])

    program.do("mr2 = active.reg_msgs(8); mr3 = active.reg_msgs(8); accepted[0].post_recv(mr2)")
    program.do("active.post_send(mr3); accepted[0].get_recv_comp(); active.get_send_comp()")
    before = sent()
    assert before > 0
    program.do("active.close(); accepted[0].close()")
    assert sent() == before
    program.do("context.close(); v.Context()")
    assert sent() == before


# -- stag sockets, stag sysctl -------------------------------------------------------------------


def test_sockets_of_running_programs_are_listed_with_their_owner(program: Program) -> None:
    listed = stag("sockets", "-l").output.splitlines()
    assert listed[0].split()[-1] == "Process"
    (line,) = (line for line in listed if f"127.0.0.1:{program.said} " in line)
    assert line.endswith(f'users:(("{_comm(program.pid)}",pid={program.pid}))')
    (row,) = json.loads(stag("sockets", "-l", "--json", "-p", str(program.pid)).stdout)
    assert (row["local"], row["pid"]) == (f"127.0.0.1:{program.said}", program.pid)
    assert len(json.loads(stag("sockets", "--json", "-p", str(program.pid)).stdout)) == 2


def test_a_server_without_rdma_shows_its_sockets_too(directory: Path, tmp_path: Path) -> None:
    with Serving(tmp_path, "--no-rdma", STEERTAG_INSPECT=str(directory)) as server:
        listed = json.loads(stag("sockets", "-l", "--json").stdout)
        pid = server.process.pid
        assert (f"127.0.0.1:{server.port}", pid) in [(row["local"], row["pid"]) for row in listed]


def test_parameters_of_a_running_program_can_be_read(directory: Path) -> None:
    settings = "net.core.somaxconn=77"
    source = ONE_RNIC
    with Program(source, STEERTAG_INSPECT=str(directory), STEERTAG_SYSCTL=settings) as program:
        pid = str(program.pid)
        assert stag("sysctl", "-p", pid, "net/core/somaxconn").output == (
            "net.core.somaxconn = 77\n"
        )
        assert stag("sysctl", "-p", pid, "-n", "net.core.somaxconn").output == "77\n"
        whole = json.loads(stag("sysctl", "-p", pid, "-a", "--json").output)
        assert whole["net.core.somaxconn"]["value"] == [77]
        assert stag("sysctl", "-p", pid, "-a", "-n").output.count("\n") == len(whole)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("sysctl", "-p", "1", "-a"), 1, "process 1 has no inspection socket in"),
        (("sysctl", "-p", "PID", "net.core.nope"), 1, "no sysctl 'net.core.nope'"),
        (("sysctl", "-p", "PID", "net.core.nope", "--json"), 1, "no sysctl 'net.core.nope'"),
        (("sysctl", "-p", "PID", "net.core.somaxconn=1"), 2, "STEERTAG_SYSCTL"),
        (("sockets", "-p", "1"), 1, "process 1 has no inspection socket in"),
        (("sockets", "-p", "x"), 2, "'x' is not a valid integer"),
    ],
)
def test_what_a_program_cannot_be_asked_is_one_line_and_an_exit_code(
    program: Program, args: tuple[str, ...], code: int, message: str
) -> None:
    result = stag(*(str(program.pid) if arg == "PID" else arg for arg in args))
    assert result.exit_code == code
    assert message in result.output
