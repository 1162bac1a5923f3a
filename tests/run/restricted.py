"""A program in a world where some system calls are refused, as a container's profile does.

    python -m tests.run.restricted NAME=ERROR... -- PROGRAM ARGUMENT...

NAME is a call's, ERROR an errno's; NAME:ARGUMENT:VALUE=ERROR refuses only the calls whose argument
of that index, from 0, has the value. The filter is one that notifies nobody, so that another one
above it may.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Sequence
from typing import Final

from steertag.errors import os_error
from steertag.run import bpf
from steertag.run.abi import (
    PR_SET_NO_NEW_PRIVS,
    SECCOMP_RET_ERRNO,
    SECCOMP_SET_MODE_FILTER,
    SOCK_FPROG,
    libc,
)
from steertag.run.bpf import ALLOW, JEQ_K, LD_W_ABS, RET_K, Instruction
from steertag.run.syscalls import of_machine

_NUMBER: Final = 0
_ARGUMENTS: Final = 16
PRCTL: Final = {"x86_64": 157, "aarch64": 167}


def number_of(name: str) -> int:
    calls = of_machine()
    return PRCTL[calls.machine] if name == "prctl" else calls[name]


def refusing(what: str) -> list[Instruction]:
    """`NAME[:ARGUMENT:VALUE]=ERROR` as a filter's instructions."""
    call, _, error = what.partition("=")
    name, *condition = call.split(":")
    refuse = [(RET_K, 0, 0, SECCOMP_RET_ERRNO | getattr(errno, error))]
    if condition:
        argument, value = (int(each, 0) for each in condition)
        load = (LD_W_ABS, 0, 0, _ARGUMENTS + 8 * argument)
        refuse = [load, (JEQ_K, 0, 1, value), *refuse, *ALLOW]
    return [
        (LD_W_ABS, 0, 0, _NUMBER),
        (JEQ_K, 0, len(refuse), number_of(name)),
        *refuse,
    ]


def restrict(refusals: Sequence[str]) -> None:
    """Put this process under such filters, one for each; where there is one supervisor above, too.

    Raises:
        OSError: the kernel refuses them.
    """
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) and os.geteuid():
        raise os_error(ctypes.get_errno())
    for each in refusals:
        rows = bpf.pack([*refusing(each), *ALLOW])
        held = ctypes.create_string_buffer(rows, len(rows))
        header = SOCK_FPROG.pack(len(rows) // 8, ctypes.addressof(held))
        argument = ctypes.create_string_buffer(header, len(header))
        if libc.syscall(number_of("seccomp"), SECCOMP_SET_MODE_FILTER, 0, argument):
            raise os_error(ctypes.get_errno())


def main() -> None:
    words = sys.argv[1:]
    border = words.index("--")
    restrict(words[:border])
    program = words[border + 1 :]
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
