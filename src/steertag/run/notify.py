"""The listener's descriptor: receiving system calls, and answering them.

Nothing in here waits but `receive`. An answer can come too late, since a signal may have ended the
wait of the caller, who will make the same call again or give it up; every function that answers
says whether it was in time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
from typing import Final

from steertag.run.abi import (
    NOTIF,
    NOTIF_ADDFD,
    NOTIF_ID,
    NOTIF_RESP,
    SECCOMP_ADDFD_FLAG_SEND,
    SECCOMP_ADDFD_FLAG_SETFD,
    SECCOMP_IOCTL_NOTIF_ADDFD,
    SECCOMP_IOCTL_NOTIF_ID_VALID,
    SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND,
    SECCOMP_IOCTL_NOTIF_SET_FLAGS,
    SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP,
    SECCOMP_USER_NOTIF_FLAG_CONTINUE,
)

Notification = tuple[int, ...]
"""id, thread, flags, number of the call, arch, instruction pointer, six arguments."""

_ZERO: Final = bytes(NOTIF.size)
_TOO_LATE: Final = (errno.ENOENT, errno.EINPROGRESS, errno.ESRCH)
"""The call is not there, or not any more; ESRCH: a signal ended it while it got a descriptor."""
_TRANSIENT: Final = (errno.ENOENT, errno.EINTR, errno.EAGAIN)


class Listener:
    """A seccomp listener.

    Args:
        fd: the descriptor; closed by `close`.

    Attributes:
        stale: answers that came too late.
    """

    __slots__ = ("_buffer", "fd", "stale")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.stale = 0
        self._buffer = bytearray(NOTIF.size)

    def close(self) -> None:
        os.close(self.fd)

    def wake_in_place(self) -> bool:
        """Have callers wake us on their own processor (Linux 6.6). False: the kernel can't."""
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
        except OSError:
            return False
        return True

    def receive(self) -> Notification | None:
        """Wait for the next call. None: interrupted, or its caller died; look whether `over`."""
        buffer = self._buffer
        buffer[:] = _ZERO  # the kernel insists
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_RECV, buffer, True)
        except OSError as exc:
            if exc.errno in _TRANSIENT:
                return None
            raise
        return NOTIF.unpack(buffer)

    def over(self) -> bool:
        """Whether nobody is left who could make a call."""
        poller = select.poll()
        poller.register(self.fd, 0)
        return bool(poller.poll(0))

    def alive(self, ident: int) -> bool:
        """Whether the call still waits, and so its thread's number still means that thread."""
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_ID_VALID, NOTIF_ID.pack(ident))
        except OSError:
            return False
        return True

    def reply(self, ident: int, value: int) -> bool:
        """End the call with a result, or with an error when it is negative."""
        if value < 0:
            return self._send(NOTIF_RESP.pack(ident, 0, value, 0))
        return self._send(NOTIF_RESP.pack(ident, value, 0, 0))

    def proceed(self, ident: int) -> bool:
        """Have the kernel carry out the call after all."""
        return self._send(NOTIF_RESP.pack(ident, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE))

    def give(self, ident: int, fd: int, flags: int) -> int | None:
        """Put our descriptor into the caller as the result of its call; its number there.

        None: too late, and the caller has nothing. Flags: O_CLOEXEC or 0.

        Raises:
            OSError: EMFILE, the caller has no number left; it still waits for its answer.
        """
        return self._add(NOTIF_ADDFD.pack(ident, SECCOMP_ADDFD_FLAG_SEND, fd, 0, flags))

    def put(self, ident: int, fd: int, number: int, flags: int) -> bool:
        """Put our descriptor into the caller in the place of its own `number`; no answer yet."""
        packed = NOTIF_ADDFD.pack(ident, SECCOMP_ADDFD_FLAG_SETFD, fd, number, flags)
        return self._add(packed) is not None

    def _send(self, response: bytes) -> bool:
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_SEND, response)
        except OSError as exc:
            if exc.errno not in _TOO_LATE:
                raise
            self.stale += 1
            return False
        return True

    def _add(self, request: bytes) -> int | None:
        try:
            # Only with a buffer that may change does `ioctl` return what the kernel did.
            return int(fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_ADDFD, bytearray(request), True))
        except OSError as exc:
            if exc.errno not in _TOO_LATE:
                raise
            self.stale += 1
            return None
