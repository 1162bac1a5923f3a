"""Who has which port and which connection (inet_hashtables.c, inet_connection_sock.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.family.inet_hash import HashInfo
from steertag.family.sock import Sock

if TYPE_CHECKING:
    from steertag.inet.tcp.listen import RequestSock
    from steertag.inet.tcp.sock import TcpSock
    from steertag.inet.tcp.timewait import TimeWaitSock

Key = tuple[bytes, int, bytes, int]
"""(own address, own port, peer's address, peer's port)"""


class TcpHash(HashInfo):
    """The tables of TCP; `Proto.h`.

    Attributes:
        ehash: connections, requests and TIME-WAIT socks, by Key.
        lhash: listeners, by port.
        bhash: owners of ports, by port.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ehash: dict[Key, TcpSock | RequestSock | TimeWaitSock] = {}
        self.lhash: dict[int, list[TcpSock]] = {}


def tcp_v_get_port(sk: Sock, port: int) -> None:
    """`Proto.get_port`: take `port`, or for 0 a free one. Raises EADDRINUSE."""
    raise NotImplementedError


def tcp_hash(sk: Sock) -> None:
    """`Proto.hash`: findable as a listener, or by its connection."""
    raise NotImplementedError


def tcp_unhash(sk: Sock) -> None:
    """`Proto.unhash`: out of every table, and the port given back."""
    raise NotImplementedError


def inet_unhash(sk: TcpSock) -> None:
    """Not findable any more; the port stays."""
    raise NotImplementedError


def inet_put_port(sk: TcpSock) -> None:
    """Give the port back."""
    raise NotImplementedError
