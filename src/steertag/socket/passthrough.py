"""The socket object of families whose calls all end at the host's socket."""

from __future__ import annotations

import os
import socket as std
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from steertag.errors import StateError
from steertag.family import net
from steertag.socket.base import HostSocket, socket
from steertag.socket.file import File

if TYPE_CHECKING:
    from typing import Self


class PassthroughSocket(socket, HostSocket):  # type: ignore[misc]  # the interface is std's
    """The host's socket itself, under the same descriptor as the family's.

    Sending, receiving, options and the rest are the standard library's own methods: not a line of
    ours runs. What makes or ends a socket tells the Stack as well.

    As with the standard library, `close` does not wake another thread that waits in a call;
    `shutdown` does.
    """

    __module__ = "steertag.socket"

    def _setup(self, native: std.socket | None, file: File | None, fd: int) -> None:
        if native is None:
            raise StateError("no socket of the host's to stand for")
        HostSocket.__init__(self, native.family, native.type, native.proto, native.fileno())
        if (timeout := native.gettimeout()) != self.gettimeout():
            self.settimeout(timeout)

    def _real_close(self) -> None:
        # The family closes the descriptor that both have; what is left here is its number.
        net.sock_release(self.kernel)
        HostSocket.detach(self)

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        # Nothing was set up if the constructor raised.
        if getattr(self, "_closed", True):
            return
        _warn(f"unclosed {self!r}", ResourceWarning, source=self)
        self._io_refs = 0
        self.close()

    def accept(self) -> tuple[socket, Any]:  # type: ignore[override]
        """The next connection and its peer's address."""
        native, address = HostSocket.accept(self)
        return socket._wrap(self.kernel.stack.sock_adopt(native)), address

    def dup(self) -> Self:
        """Another socket object of the same socket."""
        fd = os.dup(self.fileno())
        native = HostSocket(self.family, self.type, self.proto, fd)
        copy = self._wrap(self.kernel.stack.sock_adopt(native))
        copy.settimeout(self.gettimeout())
        return copy

    def detach(self) -> int:
        """Give the descriptor away: this object is closed, the host's socket is not."""
        passthrough = self.kernel.ops.passthrough
        native = passthrough(self.kernel) if passthrough is not None else None
        if native is not None:
            native.detach()
        fd = HostSocket.detach(self)
        net.sock_release(self.kernel)
        return fd
