"""Starting the program under the filter, and having the filter's listener."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from steertag.errors import os_error
from steertag.run.abi import (
    NOTIF_ADDFD,
    PR_SET_NO_NEW_PRIVS,
    SECCOMP_ADDFD_FLAG_SEND,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_IOCTL_NOTIF_ADDFD,
    SECCOMP_SET_MODE_FILTER,
    SOCK_FPROG,
    libc,
)
from steertag.run.bpf import Instruction, pack
from steertag.run.syscalls import Syscalls
from steertag.run.target import Target

_REPORT: Final = struct.Struct("=ii")
_FILTERED, _REFUSED, _NOT_EXECUTED = range(3)
_NONCE: Final = b"steertag"
_ROOM: Final = ctypes.create_string_buffer(len(_NONCE))
_SHELL: Final = "/bin/sh"
# Those that the interpreter ignores for itself, and a program expects as they are.
_RESTORED: Final = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(slots=True)
class Spawned:
    """A program that waits, under its filter, for `go`.

    Attributes:
        pid: of the process.
        listener: the filter's descriptor, ours.
    """

    pid: int
    listener: int
    _report: int
    _start: int

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """Ours, which nobody else may hold: the listener's end would not be noticed."""
        return self.listener, self._report, self._start

    def abandon(self) -> None:
        """End it before it has begun."""
        os.close(self._start)
        os.close(self._report)
        os.close(self.listener)
        os.waitpid(self.pid, 0)

    def go(self) -> int:
        """Let it execute; 0 when it has, else the errno. The listener must be served meanwhile."""
        os.write(self._start, b"!")
        os.close(self._start)
        try:
            report = os.read(self._report, _REPORT.size)
        finally:
            os.close(self._report)
        return int(_REPORT.unpack(report)[1]) if report else 0


def spawn(
    argv: Sequence[str],
    rows: Sequence[Instruction],
    calls: Syscalls,
    mask: set[int | signal.Signals],
) -> Spawned:
    """Fork a child that puts itself under the filter; while this process has one thread.

    The listener comes by pidfd_getfd, and not by a message: the filter may be one that looks at
    sendmsg, which nobody would answer yet.

    Args:
        argv: the program, found as a shell finds it, and its arguments.
        rows: the filter (`bpf.program`).
        calls: this processor's numbers.
        mask: signals that are blocked in the program.

    Raises:
        OSError: what was refused; EBUSY, this process is supervised itself.
    """
    report, theirs = os.pipe()
    waits, start = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(report)
        os.close(start)
        _child(argv, pack(rows), calls, mask, theirs, waits)
    os.close(theirs)
    os.close(waits)
    listener = -1
    try:
        listener = _listener(pid, os.read(report, _REPORT.size), calls)
        _try_what_is_needed(pid, listener, report, calls)
    except OSError:
        if listener >= 0:
            os.close(listener)
        os.close(report)
        os.close(start)  # which ends the child
        os.waitpid(pid, 0)
        raise
    return Spawned(pid, listener, report, start)


def _listener(pid: int, report: bytes, calls: Syscalls) -> int:
    if not report:
        raise os_error(errno.ECHILD, "the program's process died before it began")
    what, number = _REPORT.unpack(report)
    if what == _REFUSED:
        raise os_error(number, _reason(number))
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise _refused(error.errno or errno.EIO, "pidfd_open") from error
    try:
        got = libc.syscall(calls["pidfd_getfd"], pidfd, number, 0)
    finally:
        os.close(pidfd)
    if got < 0:
        raise _refused(ctypes.get_errno(), "pidfd_getfd")
    return int(got)


def _try_what_is_needed(pid: int, listener: int, fd: int, calls: Syscalls) -> None:
    """What each call of the program's will need: better refused now than by all of its calls.

    The child has our memory still. A notification that there isn't is ENOENT, once the kernel has
    found nothing wrong with the request.

    Raises:
        OSError: it is refused.
    """
    target = Target(calls)
    try:
        target.poke(pid, ctypes.addressof(_ROOM), _NONCE)
        target.peek(pid, ctypes.addressof(_ROOM), len(_NONCE))
    except OSError as error:
        raise _refused(error.errno or errno.EIO, "process_vm_writev or process_vm_readv") from error
    request = bytearray(NOTIF_ADDFD.pack(0, SECCOMP_ADDFD_FLAG_SEND, fd, 0, 0))
    try:
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, request, True)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise _refused(error.errno or errno.EIO, "SECCOMP_ADDFD_FLAG_SEND") from error


def _refused(number: int, what: str) -> OSError:
    return os_error(number, f"{what} is refused: `stag run --check` says what to do")


def _reason(number: int) -> str:
    if number == errno.EBUSY:
        return "this is under a `stag run` already, and there can be one only: leave this one out"
    return "a seccomp filter is refused: `stag run --check` says what to do"


def _child(
    argv: Sequence[str],
    rows: bytes,
    calls: Syscalls,
    mask: set[int | signal.Signals],
    report: int,
    start: int,
) -> None:
    try:
        listener = _install(rows, calls)
        if listener < 0:
            os.write(report, _REPORT.pack(_REFUSED, ctypes.get_errno()))
            os._exit(126)
        os.write(report, _REPORT.pack(_FILTERED, listener))
        if not os.read(start, 1):
            os._exit(126)  # nobody serves the listener
        os.close(listener)
        for number in _RESTORED:
            signal.signal(number, signal.SIG_DFL)
        if callable(signal.getsignal(signal.SIGINT)):  # one may wait already, for the program
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        error = _execute(argv)
        os.write(report, _REPORT.pack(_NOT_EXECUTED, error))
    finally:
        os._exit(126)


def _install(rows: bytes, calls: Syscalls) -> int:
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return -1
    held = ctypes.create_string_buffer(rows, len(rows))
    header = SOCK_FPROG.pack(len(rows) // 8, ctypes.addressof(held))
    fprog = ctypes.create_string_buffer(header, len(header))
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER
    return int(libc.syscall(calls["seccomp"], SECCOMP_SET_MODE_FILTER, flags, fprog))


def _execute(argv: Sequence[str]) -> int:
    """execvp(3); the errno of its failure."""
    if not argv[0]:
        return errno.ENOENT  # which Python has as a ValueError
    try:
        os.execvp(argv[0], list(argv))
    except OSError as exc:
        error = exc.errno or errno.ENOENT
    if error == errno.ENOEXEC:  # a script without #!: the shell's, as execvp(3) does
        with contextlib.suppress(OSError):
            os.execv(_SHELL, [_SHELL, *argv])
    return error
