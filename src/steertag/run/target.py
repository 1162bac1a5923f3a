"""The program, seen from outside: its memory, its descriptors, and which socket one of them is.

All of it needs what ptrace needs (PTRACE_MODE_ATTACH): the same user, a process that can be dumped,
and with Yama's ptrace_scope 1 that the process descends from us. Where the kernel refuses, these
raise PermissionError. A thread's number is only good while its call waits: who has read something
asks afterwards whether it still does (`Listener.alive`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import Final

from steertag.errors import os_error
from steertag.run.abi import PIDFD_THREAD, Iovec, libc
from steertag.run.syscalls import Syscalls

_INT: Final = struct.Struct("=i")
_ROOM: Final = 4096
_LONGEST: Final = 1 << 20


class Target:
    """Reads and writes other processes; used by one thread at a time."""

    __slots__ = (
        "_buffer",
        "_by_process",
        "_calls",
        "_local",
        "_mine",
        "_read",
        "_remote",
        "_write",
    )

    def __init__(self, calls: Syscalls) -> None:
        self._calls = calls
        self._mine = bytearray(_ROOM)
        self._buffer = (ctypes.c_char * _ROOM).from_buffer(self._mine)
        self._local = Iovec(ctypes.addressof(self._buffer), 0)
        self._remote = Iovec(0, 0)
        self._read = libc.process_vm_readv
        self._write = libc.process_vm_writev
        self._by_process = False  # no PIDFD_THREAD: descriptors by way of the process

    # -- memory -----------------------------------------------------------------------------------

    def peek(self, tid: int, address: int, count: int) -> bytes:
        """`count` octets from `address`. Raises EFAULT if not all are there; EPERM, ESRCH."""
        if not count:
            return b""
        if count > _ROOM:
            return self._peek_much(tid, address, count)
        self._move(self._read, tid, address, count, self._local)
        return bytes(self._mine[:count])

    def poke(self, tid: int, address: int, data: bytes) -> None:
        """Put octets there. Raises EFAULT if not all fitted (some may be there)."""
        if not data:
            return
        if len(data) > _ROOM:
            whole = ctypes.create_string_buffer(data, len(data))
            self._move(self._write, tid, address, len(data), Iovec(ctypes.addressof(whole), 0))
            return
        self._mine[: len(data)] = data
        self._move(self._write, tid, address, len(data), self._local)

    def peek_int(self, tid: int, address: int) -> int:
        self._move(self._read, tid, address, 4, self._local)
        return int(_INT.unpack_from(self._mine)[0])

    def _peek_much(self, tid: int, address: int, count: int) -> bytes:
        if count > _LONGEST:
            raise os_error(errno.EMSGSIZE)
        whole = ctypes.create_string_buffer(count)
        self._move(self._read, tid, address, count, Iovec(ctypes.addressof(whole), 0))
        return whole.raw

    def _move(
        self, function: ctypes._NamedFuncPointer, tid: int, address: int, count: int, local: Iovec
    ) -> None:
        local.iov_len = count
        self._remote.iov_base = address
        self._remote.iov_len = count
        moved = function(tid, ctypes.byref(local), 1, ctypes.byref(self._remote), 1, 0)
        if moved != count:
            raise os_error(ctypes.get_errno() if moved < 0 else errno.EFAULT)

    # -- descriptors ------------------------------------------------------------------------------

    def identity(self, tid: int, number: int) -> str | None:
        """What a descriptor is, as /proc tells it: "socket:[inode]"; None: not open.

        Raises:
            PermissionError: the kernel doesn't let us look.
        """
        try:
            return os.readlink(f"/proc/{tid}/fd/{number}")
        except PermissionError:
            raise
        except OSError:
            return None

    def visible(self, tid: int) -> bool:
        """Whether we may look into it at all."""
        try:
            os.readlink(f"/proc/{tid}/fd/0")
        except PermissionError:
            return False
        except OSError:
            return True  # standard input is closed
        return True

    def nonblocking(self, tid: int, number: int) -> bool:
        """Whether O_NONBLOCK is set at this moment."""
        return bool(self.flags(tid, number) & os.O_NONBLOCK)

    def flags(self, tid: int, number: int) -> int:
        """The open file's flags, and O_CLOEXEC of this descriptor. Raises ENOENT: not open."""
        info = os.open(f"/proc/{tid}/fdinfo/{number}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(info, 256)
        finally:
            os.close(info)
        start = text.index(b"flags:") + 6
        return int(text[start : text.index(b"\n", start)], 8)

    def holding(self, tid: int, keys: set[str]) -> list[int]:
        """Which descriptors of a thread's are one of these sockets (`identity`), all of them."""
        found = [int(name) for name in os.listdir(f"/proc/{tid}/fd")]
        return [number for number in found if self.identity(tid, number) in keys]

    def getfd(self, tid: int, number: int) -> int:
        """A descriptor of ours for the same open file. Raises EBADF, EPERM, ESRCH."""
        pidfd = self._pidfd(tid)
        try:
            got = libc.syscall(self._calls["pidfd_getfd"], pidfd, ctypes.c_int(number), 0)
        finally:
            os.close(pidfd)
        if got < 0:
            raise os_error(ctypes.get_errno())
        return int(got)

    def socket(self, tid: int, number: int) -> socket.socket:
        """The same, as a socket object."""
        return socket.socket(fileno=self.getfd(tid, number))

    def _pidfd(self, tid: int) -> int:
        if not self._by_process:
            try:
                return os.pidfd_open(tid, PIDFD_THREAD)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                self._by_process = True  # before Linux 6.9; threads share their descriptors
        return os.pidfd_open(self.process(tid))

    def process(self, tid: int) -> int:
        """The process that a thread belongs to. Raises ESRCH."""
        try:
            with open(f"/proc/{tid}/status", "rb") as file:
                for line in file:
                    if line.startswith(b"Tgid:"):
                        return int(line[5:])
        except FileNotFoundError:
            raise os_error(errno.ESRCH) from None
        raise os_error(errno.ESRCH)

    def catches_signals(self, tid: int) -> bool:
        """Whether its process has a handler for any."""
        try:
            with open(f"/proc/{tid}/status", "rb") as file:
                return any(int(line[7:], 16) for line in file if line.startswith(b"SigCgt:"))
        except OSError:
            return False

    def executable(self, tid: int) -> str:
        """Path of the program that a thread runs; empty if it can't be told."""
        try:
            return os.readlink(f"/proc/{tid}/exe").removesuffix(" (deleted)")
        except OSError:
            return ""


def same_file(one: int, other: int) -> bool:
    """Whether two descriptors of ours are for the same open file's inode."""
    return os.path.sameopenfile(one, other)


def set_nonblocking(fd: int, on: bool) -> None:
    """O_NONBLOCK of an open file, in whosever hands it is."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK if on else flags & ~os.O_NONBLOCK)
