"""A sock whose queues, buffers and states are the host kernel's."""

from __future__ import annotations

import socket as std
import struct
from typing import Final

from steertag.errors import StateError
from steertag.family.const import TcpState
from steertag.family.sock import Sock
from steertag.family.socket import Socket
from steertag.family.sockopt import sock_of

# struct tcp_info: tcpi_state, then tcpi_unacked and tcpi_sacked, which for a listener are the
# connections that wait and how many may (tcp_diag.c).
_TCP_INFO: Final = struct.Struct("@B 23x II")


class HostSock(Sock):
    """Its state and backlog are the host kernel's; `refresh` brings them here.

    Attributes:
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


def refresh(sk: Sock) -> None:
    """Bring `sk_state` and the backlog up to date: `Proto.diag` of the host families."""
    native = host_sk(sk).native
    try:
        if sk.sk_type == std.SOCK_STREAM and sk.sk_family != std.AF_UNIX:
            info = native.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, _TCP_INFO.size)
            state, sk.sk_ack_backlog, sk.sk_max_ack_backlog = _TCP_INFO.unpack(info)
            sk.sk_state = TcpState(state)
        elif native.getsockopt(std.SOL_SOCKET, std.SO_ACCEPTCONN):
            sk.sk_state = TcpState.TCP_LISTEN
        else:
            native.getpeername()
            sk.sk_state = TcpState.TCP_ESTABLISHED
    except OSError:
        sk.sk_state = TcpState.TCP_CLOSE
