"""Numbers and structures of seccomp's user notification (linux/seccomp.h), and the C library.

A notification is a system call that waits for an answer. Layouts, in the machine's byte order:
`struct seccomp_notif` is id (8), pid (4), flags (4) and seccomp_data: number (4), arch (4),
instruction pointer (8), six arguments (8 each). `struct seccomp_notif_resp` is id (8), value (8),
error (4), flags (4). `struct seccomp_notif_addfd` is id (8), flags (4), srcfd (4), newfd (4),
newfd_flags (4).
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3

SECCOMP_RET_KILL_PROCESS: Final = 0x8000_0000
SECCOMP_RET_USER_NOTIF: Final = 0x7FC0_0000
SECCOMP_RET_ALLOW: Final = 0x7FFF_0000
SECCOMP_RET_ERRNO: Final = 0x0005_0000

SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = 1
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: Final = 1  # Linux 6.6
SECCOMP_ADDFD_FLAG_SETFD: Final = 1
SECCOMP_ADDFD_FLAG_SEND: Final = 2  # Linux 5.14

NOTIF: Final = struct.Struct("=QIIiIQ6Q")
NOTIF_RESP: Final = struct.Struct("=QqiI")
NOTIF_ADDFD: Final = struct.Struct("=QIIII")
NOTIF_ID: Final = struct.Struct("=Q")


def _request(direction: int, number: int, size: int) -> int:
    """_IOC('!', number, size): direction 1 writes to the kernel, 2 reads, 3 does both."""
    return direction << 30 | size << 16 | ord("!") << 8 | number


SECCOMP_IOCTL_NOTIF_RECV: Final = _request(3, 0, NOTIF.size)
SECCOMP_IOCTL_NOTIF_SEND: Final = _request(3, 1, NOTIF_RESP.size)
SECCOMP_IOCTL_NOTIF_ID_VALID: Final = _request(1, 2, NOTIF_ID.size)
SECCOMP_IOCTL_NOTIF_ADDFD: Final = _request(1, 3, NOTIF_ADDFD.size)
SECCOMP_IOCTL_NOTIF_SET_FLAGS: Final = _request(1, 4, 8)

# struct sock_fprog: number of instructions (2), padding, address (8).
SOCK_FPROG: Final = struct.Struct("@HP")

PIDFD_THREAD: Final = 0o200  # O_EXCL; Linux 6.9

# A PyDLL keeps the interpreter's lock: these calls are short, and giving it up costs more.
libc: Final = ctypes.PyDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Iovec(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))
