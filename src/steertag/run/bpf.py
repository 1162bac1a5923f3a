"""The filter: which system calls wait for the supervisor, which fail, and which don't notice.

Classic BPF over `struct seccomp_data` (linux/filter.h, linux/seccomp.h). The kernel keeps a bitmap
of the calls that are allowed whatever their arguments, so reads and writes pay nothing.

`evaluate` is what the kernel does with a program, for tests that prove what it lets through.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from steertag.run.abi import (
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_USER_NOTIF,
)
from steertag.run.syscalls import AUDIT_ARCH_X86_64, X32_SYSCALL_BIT, Syscalls

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jump if true, jump if false, k."""

LD_W_ABS: Final = 0x20
ALU_AND_K: Final = 0x54
JEQ_K: Final = 0x15
JGE_K: Final = 0x35
RET_K: Final = 0x06

_PACKED: Final = struct.Struct("=HBBI")
_DATA: Final = struct.Struct("=iIQ6Q")
_NR, _ARCH, _ARGS = 0, 4, 16
_LOW, _HIGH = (0, 4) if sys.byteorder == "little" else (4, 0)

ALWAYS: Final = (
    *("connect", "accept", "accept4", "bind", "listen", "getsockname", "getpeername"),
    *("getsockopt", "shutdown"),
)
"""Calls that are looked at whatever socket they are for: a filter sees no more than its number."""
OF_DATAGRAMS: Final = ("sendmsg", "sendmmsg")
"""Calls with an address that a filter doesn't see; looked at where datagrams are served, like those
of RECEIVING."""
RECEIVING: Final = {"recvfrom": 3, "recvmsg": 2, "recvmmsg": 3}
"""Calls that may ask for the error queue, which a socket pair knows nothing of, and which argument
has their flags."""
NATIVE_OPTIONS: Final = (
    socket.SO_RCVLOWAT,
    socket.SO_OOBINLINE,
)
"""Of SOL_SOCKET: what a socket pair does by itself, since reading and writing are native. (So it
does SO_RCVTIMEO and SO_SNDTIMEO, but accept and connect have to know them as well.)"""

NOTIFY: Final = [(RET_K, 0, 0, SECCOMP_RET_USER_NOTIF)]
ALLOW: Final = [(RET_K, 0, 0, SECCOMP_RET_ALLOW)]
ENOSYS: Final = [(RET_K, 0, 0, SECCOMP_RET_ERRNO | errno.ENOSYS)]


def program(
    calls: Syscalls,
    sockets: Mapping[int, Iterable[int]],
    *,
    others: Iterable[int] | None = None,
    datagrams: bool = False,
) -> list[Instruction]:
    """The filter.

    Args:
        calls: the processor's numbers.
        sockets: which `socket()` calls are looked at: the types, by family.
        others: if given, all further families are looked at too, but for these.
        datagrams: whether the calls that carry an address in memory are looked at as well.
    """
    rows = [
        *_foreign(calls),
        *_case(calls["io_uring_setup"], ENOSYS),  # what is asked for there passes no filter
        *_case(calls["socket"], _socket(sockets, others)),
        *_case(calls["setsockopt"], _setsockopt()),
        *_case(calls["sendto"], _unless_null(4)),
    ]
    for name, flags in RECEIVING.items():
        data = ALLOW if not datagrams else _unless_null(4) if name == "recvfrom" else NOTIFY
        rows += _case(calls[name], _if_set(flags, socket.MSG_ERRQUEUE, data))
    for name in (*ALWAYS, *OF_DATAGRAMS) if datagrams else ALWAYS:
        rows += _case(calls[name], NOTIFY)
    return rows + ALLOW


def pack(rows: Sequence[Instruction]) -> bytes:
    """An array of `struct sock_filter`."""
    return b"".join(_PACKED.pack(*row) for row in rows)


def _foreign(calls: Syscalls) -> list[Instruction]:
    """Other ABIs of the processor have other numbers: they fail. Then the number is loaded."""
    rows = [(LD_W_ABS, 0, 0, _ARCH), (JEQ_K, 1, 0, calls.arch), *ENOSYS, (LD_W_ABS, 0, 0, _NR)]
    if calls.arch == AUDIT_ARCH_X86_64:
        rows += [(JGE_K, 0, 1, X32_SYSCALL_BIT), *ENOSYS]
    return rows


def _case(value: int, body: Sequence[Instruction]) -> list[Instruction]:
    """`body`, which ends in returns, where the accumulator is `value`."""
    if len(body) > 255:
        raise ValueError("a jump of more than 255 instructions")
    return [(JEQ_K, 0, len(body), value), *body]


def _load(argument: int, half: int = _LOW) -> Instruction:
    return (LD_W_ABS, 0, 0, _ARGS + 8 * argument + half)


def _socket(
    sockets: Mapping[int, Iterable[int]], others: Iterable[int] | None
) -> list[Instruction]:
    rows = [_load(0)]
    for family, kinds in sorted(sockets.items()):
        body = [_load(1), (ALU_AND_K, 0, 0, 0xF)]
        for kind in sorted(kinds):
            body += _case(kind, NOTIFY)
        rows += _case(family, body + ALLOW)
    if others is None:
        return rows + ALLOW
    for family in sorted(set(others) - set(sockets)):
        rows += _case(family, ALLOW)
    return rows + NOTIFY


def _setsockopt() -> list[Instruction]:
    options: list[Instruction] = [_load(2)]
    for name in NATIVE_OPTIONS:
        options += _case(name, ALLOW)
    return [_load(1), *_case(socket.SOL_SOCKET, options + NOTIFY), *NOTIFY]


def _unless_null(argument: int) -> list[Instruction]:
    """Looked at unless that argument, a pointer, is null."""
    return [
        _load(argument),
        *((JEQ_K, 0, 2, 0), _load(argument, _HIGH), (JEQ_K, 1, 0, 0)),
        *NOTIFY,
        *ALLOW,
    ]


def _if_set(argument: int, mask: int, otherwise: Sequence[Instruction]) -> list[Instruction]:
    """Looked at if one of these bits is set in that argument."""
    return [_load(argument), (ALU_AND_K, 0, 0, mask), (JEQ_K, 1, 0, 0), *NOTIFY, *otherwise]


def evaluate(
    rows: Sequence[Instruction], number: int, arch: int, arguments: Sequence[int] = ()
) -> int:
    """What the filter says of a call: SECCOMP_RET_*.

    Raises:
        ValueError: the kernel would not take the program.
    """
    check(rows)
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = _DATA.pack(number, arch, 0, *padded)
    accumulator = position = 0
    while True:
        code, true, false, k = rows[position]
        position += 1
        if code == RET_K:
            return k
        if code == LD_W_ABS:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == ALU_AND_K:
            accumulator &= k
        else:
            holds = accumulator == k if code == JEQ_K else accumulator >= k
            position += true if holds else false


def check(rows: Sequence[Instruction]) -> None:
    """What the kernel checks of a seccomp filter (net/core/filter.c, kernel/seccomp.c).

    Raises:
        ValueError: it would be refused.
    """
    if not 0 < len(rows) <= 4096:
        raise ValueError(f"{len(rows)} instructions")
    for position, (code, true, false, k) in enumerate(rows):
        if code not in (LD_W_ABS, ALU_AND_K, JEQ_K, JGE_K, RET_K):
            raise ValueError(f"instruction {position}: code {code:#x}")
        if code == LD_W_ABS and (k % 4 or not 0 <= k < _DATA.size):
            raise ValueError(f"instruction {position}: loads from {k}")
        if code in (JEQ_K, JGE_K) and position + 1 + max(true, false) >= len(rows):
            raise ValueError(f"instruction {position}: jumps out of the program")
        if not (0 <= true <= 255 and 0 <= false <= 255):
            raise ValueError(f"instruction {position}: jumps too far")
    if rows[-1][0] != RET_K:
        raise ValueError("the last instruction is not a return")
