"""A C program's sockets of a family that the kernel has never heard of, by its number: streams and
sequences of messages behave as those of the kernel's families.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest

from tests.run.programs import LIMIT, STAG, require_supervision, script
from tests.support import PROJECT, require_tool

OWN = "64"
STREAM = ("stream",)
SEQPACKET = ("seqpacket", "-u")
# type and addresses -> a family of the kernel's that has both
NATIVE = {STREAM: "2", SEQPACKET: "1"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("own") / "own_number"
    source = PROJECT / "tests" / "run" / "own_number.c"
    flags = ("-O1", "-Wall", "-Wextra", "-Werror")
    compile = [require_tool("cc"), *flags, str(source), "-o", str(path)]
    done = subprocess.run(compile, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return str(path)


def lines(*command: str, code: int = 0) -> list[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, check=False, cwd=PROJECT
    )
    assert (done.returncode, done.stderr) == (code, ""), done.stdout
    return done.stdout.splitlines()


def test_the_kernel_has_no_such_family(program: str) -> None:
    assert lines(program, OWN, *STREAM, code=1) == ["socket: EAFNOSUPPORT"]


@pytest.mark.parametrize("how", [STREAM, SEQPACKET], ids=lambda how: how[0])
@pytest.mark.parametrize(
    "options", [(), ("--family", "host"), ("--family", "new_tcp")], ids=" ".join
)
def test_a_third_partys_sockets_are_like_the_kernels(
    program: str, how: Sequence[str], options: Sequence[str]
) -> None:
    require_supervision()
    natively = lines(program, NATIVE[tuple(how)], *how)
    assert len(natively) > 40
    importing = ("--import", "tests.run.own_family", *options, "--")
    assert lines(*STAG, *importing, program, OWN, *how) == natively


def test_a_datagram_socket_that_sends_no_more_still_receives() -> None:
    text = """
import socket
one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
one.bind(("127.0.0.1", 0))
other.bind(("127.0.0.1", 0))
one.connect(other.getsockname())
other.connect(one.getsockname())
one.send(b"the last")
one.shutdown(socket.SHUT_WR)
print(other.recv(100).decode())
try:
    one.send(b"no more")
except BrokenPipeError:
    print("EPIPE")
other.send(b"received")
print(one.recv(100).decode())
"""
    assert script(text, options=("--family", "new_tcp")).split() == [
        "the",
        "last",
        "EPIPE",
        "received",
    ]
