"""multiprocessing.connection over sockets of this process: it reads and writes descriptors."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

from steertag.family.stack import Stack
from steertag.socket.base import socket
from steertag.socket.file import File
from steertag.socket.functions import close

_KEY = "_steertag_socket"


def replacements(stack: Stack, connection: Any) -> dict[str, Callable[..., Any]]:
    """Methods of the class `Connection` that know descriptors of ours; others go as before."""
    native_send, native_recv = connection._send, connection._recv

    def sock_of(self: Any) -> Any:
        """The socket behind the connection's descriptor; None for one of the host's."""
        known = self.__dict__
        if _KEY not in known:
            ours = File.of_fd(stack, self._handle) is not None
            known[_KEY] = socket(fileno=os.dup(self._handle), stack=stack) if ours else None
        return known[_KEY]

    def send(self: Any, buf: Any, *args: Any) -> None:
        sock = sock_of(self)
        if sock is None:
            native_send(self, buf, *args)
        else:
            sock.setblocking(True)
            sock.sendall(buf)

    def recv(self: Any, size: int, *args: Any) -> Any:
        sock = sock_of(self)
        if sock is None:
            return native_recv(self, size, *args)
        content = io.BytesIO()
        left = size
        while left > 0:
            data = sock.recv(left)
            if not data:
                raise EOFError if left == size else OSError("got end of file during message")
            content.write(data)
            left -= len(data)
        return content

    def end(self: Any, *args: Any) -> None:
        sock = self.__dict__.pop(_KEY, None)
        if sock is not None:
            sock.close()
        close(self._handle, stack=stack)

    return {"_send": send, "_recv": recv, "_close": end}
