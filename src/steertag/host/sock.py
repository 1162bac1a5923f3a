"""A sock whose queues, buffers and states are the host kernel's."""

from __future__ import annotations

import socket as std

from steertag.errors import StateError
from steertag.family.sock import Sock
from steertag.family.socket import Socket
from steertag.family.sockopt import sock_of


class HostSock(Sock):
    """Attributes:
    native: the host's socket.
    """

    __slots__ = ("native",)

    native: std.socket

    def nonblocking(self) -> std.socket:
        """The host's socket, made non-blocking: what ops and protocol functions call."""
        if self.native.gettimeout() != 0.0:
            self.native.setblocking(False)
        return self.native


def host_sk(sk: Sock) -> HostSock:
    if not isinstance(sk, HostSock):
        raise StateError(f"{sk!r} is no sock of the host families")
    return sk


def native_of(sock: Socket) -> std.socket:
    """The host's socket behind `sock`; also these families' `ProtoOps.passthrough`."""
    return host_sk(sock_of(sock)).native
