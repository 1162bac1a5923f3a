"""A real descriptor for a socket that lives in this process.

A socketpair of the host kernel: the user's end is what `fileno()` gives and what select, poll,
epoll and asyncio wait on; the other end is ours, and its state is made to say what the family's
`poll` says, whenever that may have changed:

=================  ===========================================================================
readable           a byte waits in the user's end
urgent data        a byte out of band waits there too (POLLPRI); such a byte makes the host's end
                   readable as well, so this is said only while there is data to be read
not writable       the send buffer of the user's end is full
end of stream      our end is shut down for sending (POLLIN, POLLRDHUP)
hang-up            our end is shut down both ways (POLLHUP)
error              readable and writable, so that whoever waits calls and is told
=================  ===========================================================================

News for an edge-triggered epoll while the byte is still there: another byte is written first and
one is read back after, so the level never drops and there is a new edge.
"""

from __future__ import annotations

import os
import select
import socket as std
from contextlib import suppress

from steertag.family.sock import POLLRDHUP
from steertag.family.socket import POLL_LOOK, Socket

_BYTE = b"!"
_FILLER = bytes(4096)


class Readiness:
    """The descriptor of one socket; made when first asked for. Guarded by the Stack's lock."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self._handed_out: set[int] = set()
        self._closing = False
        self._open()
        with sock.stack.lock:
            sock.wait_queue.append(self.update)
            self.update(0)

    def _open(self) -> None:
        self._user, self._ours = std.socketpair(std.AF_UNIX, std.SOCK_STREAM)
        for end in (self._user, self._ours):
            end.setblocking(False)
        # The smallest that the host allows: filling it is how "not writable" is said.
        self._user.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, 0)
        self._readable = self._urgent = self._blocked = self._eof = self._hung_up = False

    @property
    def inode(self) -> int:
        """What identifies the user's end, whatever the descriptor's number."""
        return os.fstat(self._user.fileno()).st_ino

    def new_fd(self) -> int:
        """Another descriptor of the user's end, the caller's to close (`forget_fd`)."""
        fd = os.dup(self._user.fileno())
        self._handed_out.add(fd)
        return fd

    def adopt_fd(self, fd: int) -> None:
        """A descriptor of the user's end that was made elsewhere, by os.dup."""
        self._handed_out.add(fd)

    def forget_fd(self, fd: int) -> None:
        self._handed_out.discard(fd)

    # -- state --------------------------------------------------------------------------------

    def update(self, news: int) -> None:
        """Make the descriptor say what the socket's state is; `news` are POLL* bits."""
        if self._closing:
            return
        if self._sock.released:
            self._hang_up()
            return
        mask = self._sock.ops.poll(self._sock)
        ended = bool(mask & (select.POLLHUP | POLLRDHUP))
        if self._eof and not ended:
            self._renew()
        self._set_writable(bool(mask & (select.POLLOUT | select.POLLERR | select.POLLHUP)))
        if mask & select.POLLHUP:
            self._hang_up()
        elif mask & POLLRDHUP:
            self._end_stream()
        else:
            self._set_urgent(bool(mask & select.POLLPRI and mask & select.POLLIN))
            self._set_readable(
                bool(mask & (select.POLLIN | select.POLLERR)), bool(news & ~POLL_LOOK)
            )

    def _set_readable(self, readable: bool, news: bool) -> None:
        if readable and not self._readable:
            self._ours.send(_BYTE)
        elif readable and news and self._urgent:
            with suppress(BlockingIOError):
                self._ours.send(_BYTE)  # to take one out may take the one that is out of band
        elif readable and news:
            self._ours.send(_BYTE)
            self._user.recv(1)
        elif self._readable and not readable:
            self._user.recv(len(_FILLER))
        self._readable = readable

    def _set_urgent(self, urgent: bool) -> None:
        if urgent == self._urgent:
            return
        with suppress(OSError):  # EOPNOTSUPP: a host without it has no third set
            if urgent:
                self._ours.send(_BYTE, std.MSG_OOB)
            else:
                self._user.recv(1, std.MSG_OOB)
                # What was out of band keeps it readable until the queue is looked at.
                self._readable = False
                while True:
                    self._user.recv(len(_FILLER))
        self._urgent = urgent

    def _set_writable(self, writable: bool) -> None:
        if self._hung_up or writable != self._blocked:
            return
        with suppress(BlockingIOError):
            while True:
                # Until the buffer is full, or empty: either ends with EAGAIN.
                if writable:
                    self._ours.recv(len(_FILLER))
                else:
                    self._user.send(_FILLER)
        self._blocked = not writable

    def _end_stream(self) -> None:
        if not self._eof:
            self._ours.shutdown(std.SHUT_WR)
        self._eof = True

    def _hang_up(self) -> None:
        if not self._hung_up:
            self._set_writable(True)
            self._ours.shutdown(std.SHUT_RDWR)
        self._eof = self._hung_up = True

    def _renew(self) -> None:
        """The socket was disconnected and is new again; an end of stream can't be taken back.

        The descriptors keep their numbers; a registration with epoll has to be made again.
        """
        old_user, old_ours = self._user, self._ours
        files = self._sock.stack.sockfs
        holder = files.pop(self.inode, None)
        self._open()
        if holder is not None:
            files[self.inode] = holder
        for fd in self._handed_out:
            os.dup2(self._user.fileno(), fd, inheritable=False)
        old_user.close()
        old_ours.close()

    def close(self) -> None:
        """Wake whoever waits on a descriptor, and close our own two."""
        with self._sock.stack.lock:
            self._hang_up()
            self._closing = True
            if self.update in self._sock.wait_queue:
                self._sock.wait_queue.remove(self.update)
            self._user.close()
            self._ours.close()
