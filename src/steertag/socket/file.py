"""`struct file`: what several holders of one socket share (fs/file_table.c)."""

from __future__ import annotations

import os
import socket as std

from steertag.family.net import sock_release
from steertag.family.socket import Socket
from steertag.family.stack import Stack
from steertag.socket.readiness import Readiness


class File:
    """A socket that lives in this process, and how many hold it.

    Attributes:
        sock: the socket.
        holders: socket objects, and descriptors given away by `detach`.
    """

    def __init__(self, sock: Socket) -> None:
        self.sock = sock
        self.holders = 1
        self._readiness: Readiness | None = None
        self._native_inode = -1
        self._detached: set[int] = set()

    @classmethod
    def of_fd(cls, stack: Stack, fd: int) -> File | None:
        """Whose descriptor it is, if a socket's in this process: by inode, so dups are known."""
        found = stack.sockfs.get(os.fstat(fd).st_ino)
        return found if isinstance(found, cls) else None

    def readiness(self) -> Readiness:
        with self.sock.stack.lock:
            if self._readiness is None:
                self._readiness = Readiness(self.sock)
                self.sock.stack.sockfs[self._readiness.inode] = self
            return self._readiness

    # -- descriptors ---------------------------------------------------------------------------

    def native(self) -> std.socket | None:
        """The host's socket that it is by now, unless a descriptor was given out before."""
        sock = self.sock
        if sock.released or self._readiness is not None or sock.ops.direct is None:
            return None
        return sock.ops.direct(sock)

    def new_fd(self) -> int:
        """A descriptor to wait on, the caller's to close (`forget_fd`). With the lock held."""
        native = self.native()
        if native is None:
            return self.readiness().new_fd()
        fd = os.dup(native.fileno())
        self._native_inode = os.fstat(fd).st_ino
        self.sock.stack.sockfs[self._native_inode] = self
        return fd

    def forget_fd(self, fd: int) -> None:
        """It is about to be closed: so is what holds the socket by this number alone."""
        if self._readiness is not None:
            self._readiness.forget_fd(fd)
        if fd in self._detached:
            self._detached.remove(fd)
            self.put()

    def _adopt_fd(self, fd: int) -> None:
        if self._readiness is not None:
            self._readiness.adopt_fd(fd)

    # -- holders -------------------------------------------------------------------------------

    def get(self) -> File:
        """One holder more."""
        with self.sock.stack.lock:
            self.holders += 1
        return self

    def take_fd(self, fd: int) -> None:
        """A new holder comes with its descriptor; one that was detached is a holder already."""
        with self.sock.stack.lock:
            self._adopt_fd(fd)
            if fd in self._detached:
                self._detached.remove(fd)
            else:
                self.holders += 1

    def detach_fd(self, fd: int) -> None:
        """A holder leaves and its descriptor stays."""
        with self.sock.stack.lock:
            self._detached.add(fd)

    def put(self) -> None:
        """A holder leaves; with the last one the socket is released."""
        with self.sock.stack.lock:
            self.holders -= 1
            if self.holders:
                return
            readiness = self._readiness
            inode = readiness.inode if readiness is not None else -1
            try:
                sock_release(self.sock)
            finally:
                self.sock.stack.sockfs.pop(self._native_inode, None)
                if readiness is not None:
                    self.sock.stack.sockfs.pop(inode, None)
                    readiness.close()
