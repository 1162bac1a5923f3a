"""Numbers and layouts that the kernel's headers have too."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from steertag.run import abi
from steertag.run.syscalls import AARCH64, X86_64, of_machine
from tests.support import NEEDS

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
