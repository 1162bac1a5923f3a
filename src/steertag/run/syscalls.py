"""System call numbers of the processors that `stag run` knows (arch/*/include/.../unistd.h)."""

from __future__ import annotations

import errno
import platform
from dataclasses import dataclass
from typing import Final

from steertag.errors import os_error

AUDIT_ARCH_X86_64: Final = 0xC000_003E
AUDIT_ARCH_AARCH64: Final = 0xC000_00B7
X32_SYSCALL_BIT: Final = 0x4000_0000
"""Set in the number of a call of the x32 ABI, which has AUDIT_ARCH_X86_64 too."""


@dataclass(frozen=True, slots=True)
class Syscalls:
    """The numbers of one processor.

    Attributes:
        machine: as uname(2) has it.
        arch: AUDIT_ARCH_* of its 64-bit ABI (`seccomp_data.arch`).
        numbers: by the call's name; those that the filter looks for, and those made here.
    """

    machine: str
    arch: int
    numbers: dict[str, int]

    def __getitem__(self, name: str) -> int:
        return self.numbers[name]


# The same everywhere since Linux 5.1.
_COMMON: Final = {"io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438}

X86_64: Final = Syscalls(
    "x86_64",
    AUDIT_ARCH_X86_64,
    {
        "ioctl": 16,
        "socket": 41,
        "connect": 42,
        "accept": 43,
        "sendto": 44,
        "recvfrom": 45,
        "sendmsg": 46,
        "recvmsg": 47,
        "shutdown": 48,
        "bind": 49,
        "listen": 50,
        "getsockname": 51,
        "getpeername": 52,
        "setsockopt": 54,
        "getsockopt": 55,
        "accept4": 288,
        "recvmmsg": 299,
        "sendmmsg": 307,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "seccomp": 317,
        **_COMMON,
    },
)
AARCH64: Final = Syscalls(
    "aarch64",
    AUDIT_ARCH_AARCH64,
    {
        "ioctl": 29,
        "socket": 198,
        "bind": 200,
        "listen": 201,
        "accept": 202,
        "connect": 203,
        "getsockname": 204,
        "getpeername": 205,
        "sendto": 206,
        "recvfrom": 207,
        "setsockopt": 208,
        "getsockopt": 209,
        "shutdown": 210,
        "sendmsg": 211,
        "recvmsg": 212,
        "accept4": 242,
        "recvmmsg": 243,
        "sendmmsg": 269,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "seccomp": 277,
        **_COMMON,
    },
)
BY_ARCH: Final = {table.arch: table for table in (X86_64, AARCH64)}
BY_MACHINE: Final = {table.machine: table for table in (X86_64, AARCH64)}


def of_machine(machine: str | None = None) -> Syscalls:
    """The table of a processor, by default this one.

    Raises:
        OSError: ENOSYS, there is no table for it.
    """
    name = platform.machine() if machine is None else machine
    try:
        return BY_MACHINE[name]
    except KeyError:
        known = " or ".join(BY_MACHINE)
        raise os_error(errno.ENOSYS, f"stag run needs {known}, not {name}") from None
