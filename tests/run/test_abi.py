"""Numbers and layouts that the kernel's headers have too."""

from __future__ import annotations

import errno
import re
import struct
import subprocess
from pathlib import Path

import pytest

from steertag.run import abi
from steertag.run.syscalls import AARCH64, X86_64, of_machine
from tests.support import NEEDS, require_tool

INCLUDE = Path("/usr/include")


def header(*names: str) -> str:
    for name in names:
        for path in [INCLUDE / name, *INCLUDE.glob(f"*/{name}")]:
            if path.is_file():
                return path.read_text()
    pytest.skip(f"{NEEDS}linux-libc-dev, for {names[0]}")


def defined(text: str, prefix: str) -> dict[str, int]:
    found = re.findall(rf"^#define\s+{prefix}(\w+)\s+(\d+)\s*(?:/\*.*)?$", text, re.MULTILINE)
    return {name: int(number) for name, number in found}


def test_the_numbers_of_x86_64_are_the_kernels() -> None:
    kernel = defined(header("asm/unistd_64.h"), "__NR_")
    if kernel.get("read") != 0:
        pytest.skip("not possible here: the headers are another processor's")
    assert {name: kernel[name] for name in X86_64.numbers} == X86_64.numbers


def test_the_numbers_of_aarch64_are_the_generic_ones_of_the_kernel() -> None:
    kernel = defined(header("asm-generic/unistd.h"), "__NR_")
    assert {name: kernel[name] for name in AARCH64.numbers} == AARCH64.numbers


def test_both_processors_have_the_same_calls() -> None:
    assert X86_64.numbers.keys() == AARCH64.numbers.keys()


def test_the_audit_numbers_are_the_kernels() -> None:
    text = header("linux/audit.h")
    elf = defined(header("linux/elf-em.h"), "EM_")
    assert "AUDIT_ARCH_X86_64\t(EM_X86_64|__AUDIT_ARCH_64BIT|__AUDIT_ARCH_LE)" in text
    assert X86_64.arch == elf["X86_64"] | 0xC000_0000
    assert AARCH64.arch == elf["AARCH64"] | 0xC000_0000


def test_a_processor_without_a_table_is_named() -> None:
    with pytest.raises(OSError, match=r"x86_64 or aarch64, not vax") as caught:
        of_machine("vax")
    assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize(
    ("layout", "size"),
    [(abi.NOTIF, 80), (abi.NOTIF_RESP, 24), (abi.NOTIF_ADDFD, 24), (abi.NOTIF_ID, 8)],
)
def test_structures_have_the_kernels_sizes(layout: object, size: int) -> None:
    assert getattr(layout, "size") == size  # noqa: B009 - of each Struct


@pytest.mark.parametrize(
    ("request_number", "expected"),
    [
        (abi.SECCOMP_IOCTL_NOTIF_RECV, 0xC0502100),
        (abi.SECCOMP_IOCTL_NOTIF_SEND, 0xC0182101),
        (abi.SECCOMP_IOCTL_NOTIF_ID_VALID, 0x40082102),
        (abi.SECCOMP_IOCTL_NOTIF_ADDFD, 0x40182103),
        (abi.SECCOMP_IOCTL_NOTIF_SET_FLAGS, 0x40082104),
    ],
)
def test_requests_are_numbered_as_the_kernel_does(request_number: int, expected: int) -> None:
    assert request_number == expected


# What the compiler makes of the kernel's headers, as "name value" lines.
ASK = """
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#define SAY(name) printf(#name " %llu\\n", (unsigned long long)(name))
#define AT(type, field) \
    printf(#type "." #field " %zu\\n", offsetof(struct type, field))
int main(void)
{
    SAY(PR_SET_CHILD_SUBREAPER); SAY(PR_SET_NO_NEW_PRIVS);
    SAY(SECCOMP_SET_MODE_FILTER); SAY(SECCOMP_FILTER_FLAG_NEW_LISTENER);
    SAY(SECCOMP_RET_KILL_PROCESS); SAY(SECCOMP_RET_USER_NOTIF);
    SAY(SECCOMP_RET_ALLOW); SAY(SECCOMP_RET_ERRNO);
    SAY(SECCOMP_USER_NOTIF_FLAG_CONTINUE);
    SAY(SECCOMP_ADDFD_FLAG_SETFD); SAY(SECCOMP_ADDFD_FLAG_SEND);
    SAY(SECCOMP_IOCTL_NOTIF_RECV); SAY(SECCOMP_IOCTL_NOTIF_SEND);
    SAY(SECCOMP_IOCTL_NOTIF_ID_VALID); SAY(SECCOMP_IOCTL_NOTIF_ADDFD);
    AT(seccomp_notif, pid); AT(seccomp_notif, data.nr); AT(seccomp_notif, data.arch);
    AT(seccomp_notif, data.args[0]); AT(seccomp_notif_resp, val); AT(seccomp_notif_resp, error);
    AT(seccomp_notif_addfd, srcfd); AT(seccomp_notif_addfd, newfd_flags); AT(sock_fprog, filter);
    return 0;
}
"""
# Field -> the structure's layout, and which of its members it is.
MEMBERS = {
    "seccomp_notif.pid": (abi.NOTIF, 1),
    "seccomp_notif.data.nr": (abi.NOTIF, 3),
    "seccomp_notif.data.arch": (abi.NOTIF, 4),
    "seccomp_notif.data.args[0]": (abi.NOTIF, 6),
    "seccomp_notif_resp.val": (abi.NOTIF_RESP, 1),
    "seccomp_notif_resp.error": (abi.NOTIF_RESP, 2),
    "seccomp_notif_addfd.srcfd": (abi.NOTIF_ADDFD, 2),
    "seccomp_notif_addfd.newfd_flags": (abi.NOTIF_ADDFD, 4),
    "sock_fprog.filter": (abi.SOCK_FPROG, 1),
}


def offset(layout: struct.Struct, member: int) -> int:
    """Where a member is: the first octet that changes with it."""
    values = [0] * len(layout.unpack(bytes(layout.size)))
    values[member] = 0x7F7F7F7F
    return next(index for index, octet in enumerate(layout.pack(*values)) if octet)


def test_the_kernels_headers_say_the_same(tmp_path: Path) -> None:
    header("linux/seccomp.h")
    (tmp_path / "ask.c").write_text(ASK)
    compiler = require_tool("cc")
    subprocess.run([compiler, str(tmp_path / "ask.c"), "-o", str(tmp_path / "ask")], check=True)
    done = subprocess.run([tmp_path / "ask"], check=True, capture_output=True, text=True)
    said = {name: int(value) for name, value in map(str.split, done.stdout.splitlines())}
    assert len(said) > 20
    for name, value in said.items():
        if name in MEMBERS:
            assert offset(*MEMBERS[name]) == value, name
        else:
            assert getattr(abi, name) == value, name
