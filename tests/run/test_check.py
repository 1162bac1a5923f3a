"""`stag run --check` in worlds that lack something: it says what, and what to do, on one screen;
and `stag run` itself, there, refuses before the program starts.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steertag.run import abi, check
from tests.run.programs import LIMIT, STAG, children, require_supervision
from tests.support import PROJECT, require_tool

RECV = f"ioctl:1:{abi.SECCOMP_IOCTL_NOTIF_RECV}"
ADDFD = f"ioctl:1:{abi.SECCOMP_IOCTL_NOTIF_ADDFD}"
SET_FLAGS = f"ioctl:1:{abi.SECCOMP_IOCTL_NOTIF_SET_FLAGS}"
LISTENER = f"seccomp:1:{abi.SECCOMP_FILTER_FLAG_NEW_LISTENER}"
NO_NEW_PRIVS = f"prctl:0:{abi.PR_SET_NO_NEW_PRIVS}"
CONNECT = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listener.getsockname())
print("connected")
"""


def restricted(
    refusals: tuple[str, ...], *words: str, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """`stag run WORDS` where these calls are refused (see `tests.run.restricted`)."""
    require_supervision()
    world = [sys.executable, "-m", "tests.run.restricted", *refusals, "--"]
    return subprocess.run(
        [*before, *world, *STAG, *words],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        cwd=PROJECT,
    )


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["possible"] is (done.returncode == 0)
    return {each["name"]: each for each in answer["findings"]}


# name of the finding, what is refused, what the advice says
LACKS = [
    ("seccomp user notification", "seccomp=EPERM", "--security-opt"),
    ("seccomp user notification", "seccomp=ENOSYS", "CONFIG_SECCOMP_FILTER"),
    ("seccomp user notification", "seccomp:0:2=EOPNOTSUPP", "older than Linux 5.0"),
    ("notification listener", f"{LISTENER}=EPERM", "--security-opt"),
    ("notification listener", f"{LISTENER}=EBUSY", "leave the outer `stag run`"),
    ("no_new_privs", f"{NO_NEW_PRIVS}=EINVAL", "--security-opt"),
    ("process_vm_readv", "process_vm_readv=EPERM", "--cap-add=SYS_PTRACE"),
    ("process_vm_writev", "process_vm_writev=ENOSYS", "--cap-add=SYS_PTRACE"),
    ("pidfd_getfd", "pidfd_getfd=EPERM", "--cap-add=SYS_PTRACE"),
    ("pidfd_getfd", "pidfd_open=ENOSYS", "--security-opt"),
    ("SECCOMP_IOCTL_NOTIF_RECV", f"{RECV}=EPERM", "--security-opt"),
    ("SECCOMP_ADDFD_FLAG_SEND", f"{ADDFD}=EINVAL", "Linux 5.14 has it"),
]


@pytest.mark.parametrize(("name", "refusal", "advice"), LACKS)
def test_what_is_refused_is_found_and_what_to_do_is_said(
    name: str, refusal: str, advice: str
) -> None:
    done = restricted((refusal,), "--check", "--json")
    assert done.returncode == 1
    found = findings(done)[name]
    assert not found["ok"]
    assert found["needed"]
    assert found["found"]  # the error
    assert advice in found["advice"]


# What is refused when a call of the program's is answered is not tried before: RECV.
EARLY = [each for each in LACKS if "EOPNOTSUPP" not in each[1] and each[1] != f"{RECV}=EPERM"]


@pytest.mark.parametrize("refusal", [refusal for _, refusal, _ in EARLY])
def test_where_something_is_refused_the_program_is_not_started(refusal: str) -> None:
    done = restricted((refusal,), "--family", "host", "--relay", "echo", "started")
    assert (done.returncode, done.stdout) == (125, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("stag run: ")
    assert "stag run" in line.partition(": ")[2]  # --check, or the one that is above already


def test_an_older_kernel_without_the_quicker_wake_up_will_do() -> None:
    require_tool("setarch")
    old = ("setarch", "--uname-2.6")
    done = restricted((f"{SET_FLAGS}=EINVAL",), "--check", "--json", before=old)
    assert done.returncode == 0
    found = findings(done)
    assert not found["kernel"]["ok"]
    assert "Linux 5.14" in found["kernel"]["advice"]
    wake_up = found["SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP"]
    assert (wake_up["ok"], wake_up["needed"]) == (False, False)
    assert "Linux 6.6" in wake_up["advice"]
    options = ("--family", "host", "--relay", "--", sys.executable, "-c", CONNECT)
    done = restricted((f"{SET_FLAGS}=EINVAL",), *options, before=old)
    assert (done.returncode, done.stdout, done.stderr) == (0, "connected\n", "")


def test_a_processor_without_a_table_is_named_and_nothing_is_tried_on_it() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("not possible here: no other processor's name can be had")
    require_tool("linux32")
    done = restricted((), "--check", "--json", before=("linux32",))
    assert done.returncode == 1
    found = findings(done)
    assert found["processor"]["found"] == "i686"
    assert "x86_64 and aarch64" in found["processor"]["advice"]
    assert "pidfd_getfd" not in found


def test_root_without_a_capability_has_all_that_is_needed() -> None:
    if os.geteuid() == 0:
        require_tool("setpriv")
        before = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
    else:
        before = ()
    done = restricted((), "--check", "--json", before=before)
    assert done.returncode == 0, done.stdout
    options = ("--family", "host", "--relay", "--", sys.executable, "-c", CONNECT)
    done = restricted((), *options, before=before)
    assert (done.returncode, done.stdout, done.stderr) == (0, "connected\n", "")


@pytest.mark.parametrize(
    ("scope", "ok", "said"),
    [
        (0, True, "which is enough"),
        (1, True, "which is enough"),
        (2, False, "only root"),
        (3, False, "nobody may look"),
    ],
)
def test_yamas_scope_is_explained(tmp_path: Path, scope: int, ok: bool, said: str) -> None:
    (tmp_path / "ptrace_scope").write_text(f"{scope}\n")
    found = {each.name: each for each in check.check(tmp_path / "ptrace_scope")}
    yama = found["yama"]
    assert (yama.ok, yama.needed) == (ok, False)
    assert said in yama.found + yama.advice


MUCH = (
    *("pidfd_getfd=EPERM", "process_vm_readv=EPERM", "process_vm_writev=EPERM"),
    *(f"{SET_FLAGS}=EINVAL", f"{ADDFD}=EINVAL"),
)


@pytest.mark.parametrize("refusals", [(), ("seccomp=EPERM",), MUCH], ids=["no", "one", "much"])
def test_the_report_is_one_screen(refusals: tuple[str, ...]) -> None:
    done = restricted(refusals, "--check")
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert done.returncode == (1 if refusals else 0)
    verdict = " ".join(done.stdout.partition("\n\n")[2].split())
    if not refusals:
        assert verdict == "stag run is possible here"
    else:
        missing = [
            line.split("  ")[0].removeprefix("MISSING ") for line in lines if "MISSING" in line
        ]
        assert verdict == f"stag run is not possible here: {', '.join(missing)}"


def test_nothing_is_left_by_a_check() -> None:
    """Neither a child nor a descriptor, however it went."""
    require_supervision()
    held, kept = sorted(os.listdir("/proc/self/fd")), children(os.getpid())
    check.check()
    assert sorted(os.listdir("/proc/self/fd")) == held
    assert children(os.getpid()) == kept
