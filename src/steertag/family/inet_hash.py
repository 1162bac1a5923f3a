"""Tables of ports and connections for protocols with ports (net/ipv4/inet_hashtables.c)."""

from __future__ import annotations

import errno
import socket as host
from collections.abc import Hashable
from typing import ClassVar

from steertag.errors import os_error
from steertag.family.const import TcpState
from steertag.family.msg import Address
from steertag.family.sock import Sock


class InetSock(Sock):
    """A sock with a host address and a port at either end (`struct inet_sock`).

    A family with another form of host address overrides ANY and `check_address`.

    Attributes:
        inet_saddr, inet_num: own host address (ANY: every one) and port (0: none yet).
        inet_daddr, inet_dport: the peer's; port 0 when there is none.
    """

    __slots__ = ("inet_daddr", "inet_dport", "inet_num", "inet_saddr")

    ANY: ClassVar[Hashable] = ""

    def __init__(self) -> None:
        super().__init__()
        self.inet_saddr: Hashable = self.ANY
        self.inet_daddr: Hashable = self.ANY
        self.inet_num = 0
        self.inet_dport = 0

    def check_address(self, address: Address) -> tuple[Hashable, int]:
        """The user's address as (host, port).

        Raises:
            TypeError: it is no such pair.
            OverflowError: the port is not in 0..65535.
        """
        if not isinstance(address, tuple) or len(address) != 2:
            raise TypeError(f"address must be a (host, port) tuple, not {address!r}")
        node, port = address
        if not isinstance(node, str) or not isinstance(port, int):
            raise TypeError(f"address must be (str, int), not {address!r}")
        if not 0 <= port <= 65535:
            raise OverflowError("port must be 0-65535.")
        return node, port


def no_such_host(name: str) -> OSError:
    """What a family without a resolver raises for a name that is no address of its own."""
    return host.gaierror(
        host.EAI_NONAME, f"{name!r} is no numeric address, and no names are looked up"
    )


class HashInfo:
    """Who has which port and which connection (`inet_hashinfo`); one per protocol, `Proto.h`."""

    def __init__(self) -> None:
        self.bound: dict[int, list[InetSock]] = {}
        self.listening: dict[tuple[Hashable, int], InetSock] = {}
        self.established: dict[tuple[Hashable, int, Hashable, int], InetSock] = {}

    def lookup(self, saddr: Hashable, sport: int, daddr: Hashable, dport: int) -> InetSock | None:
        """Whose segment it is, coming from (saddr, sport): a connection, else a listener."""
        found = self.established.get((daddr, dport, saddr, sport))
        if found is None:
            found = self.listening.get((daddr, dport))
        if found is None:
            found = self.listening.get((InetSock.ANY, dport))
        return found

    def lookup_bound(
        self, saddr: Hashable, sport: int, daddr: Hashable, dport: int
    ) -> InetSock | None:
        """Whose datagram it is: of those bound to the port, the one that fits best."""
        best, best_score = None, -1
        for sk in self.bound.get(dport, ()):
            score = _score(sk, saddr, sport, daddr)
            if score > best_score:
                best, best_score = sk, score
        return best


def _score(sk: InetSock, saddr: Hashable, sport: int, daddr: Hashable) -> int:
    score = 0
    if sk.inet_saddr != sk.ANY:
        if sk.inet_saddr != daddr:
            return -1
        score += 1
    if sk.inet_dport:
        if (sk.inet_daddr, sk.inet_dport) != (saddr, sport):
            return -1
        score += 2
    return score


def inet_sk(sk: Sock) -> InetSock:
    """The sock as one with ports. Raises TypeError: the protocol's obj_size is none."""
    if not isinstance(sk, InetSock):
        raise TypeError(f"{sk.sk_prot.name}: inet_* functions need an InetSock, not {sk!r}")
    return sk


def hash_of(sk: Sock) -> HashInfo:
    """The protocol's tables. Raises TypeError: it has none."""
    if sk.sk_prot.h is None:
        raise TypeError(f"{sk.sk_prot.name}: the stock get_port, hash and unhash need Proto.h")
    return sk.sk_prot.h


def inet_get_port(sk: Sock, port: int) -> None:
    """Stock `get_port`: take `port`, or for 0 a free one of sysctl ip_local_port_range.

    Raises:
        OSError: EADDRINUSE.
    """
    inet, tables = inet_sk(sk), hash_of(sk)
    if port == 0:
        port = _ephemeral(inet, tables)
    elif _conflict(inet, tables, port):
        raise os_error(errno.EADDRINUSE)
    inet.inet_num = port
    owners = tables.bound.setdefault(port, [])
    if inet not in owners:
        owners.append(inet)


def _ephemeral(sk: InetSock, tables: HashInfo) -> int:
    low, high = sk.sk_stack.sysctl.read("net.ipv4.ip_local_port_range")
    count = high - low + 1
    start = sk.sk_stack.rng.randrange(count)
    for step in range(count):
        port = low + (start + step) % count
        if port not in tables.bound:
            return port
    raise os_error(errno.EADDRINUSE, f"no port free in {low}..{high}")


def _conflict(sk: InetSock, tables: HashInfo, port: int) -> bool:
    for other in tables.bound.get(port, ()):
        if other is sk:
            continue
        if sk.ANY not in (sk.inet_saddr, other.inet_saddr) and sk.inet_saddr != other.inet_saddr:
            continue
        if not (sk.sk_reuse and other.sk_reuse) or other.sk_state == TcpState.TCP_LISTEN:
            return True
    return False


def inet_bind_child(child: InetSock, parent: InetSock) -> None:
    """A child shares its listener's port (__inet_inherit_port)."""
    child.inet_num = parent.inet_num
    hash_of(child).bound.setdefault(child.inet_num, []).append(child)


def inet_hash(sk: Sock) -> None:
    """Stock `hash`: findable as a listener, or by its connection."""
    inet, tables = inet_sk(sk), hash_of(sk)
    if inet.sk_state == TcpState.TCP_LISTEN:
        tables.listening[(inet.inet_saddr, inet.inet_num)] = inet
    else:
        key = (inet.inet_saddr, inet.inet_num, inet.inet_daddr, inet.inet_dport)
        if tables.established.setdefault(key, inet) is not inet:
            raise os_error(errno.EADDRNOTAVAIL)


def inet_unhash(sk: Sock) -> None:
    """Stock `unhash`: out of every table, and the port is free again."""
    inet, tables = inet_sk(sk), hash_of(sk)
    listen = (inet.inet_saddr, inet.inet_num)
    if tables.listening.get(listen) is inet:
        del tables.listening[listen]
    key = (inet.inet_saddr, inet.inet_num, inet.inet_daddr, inet.inet_dport)
    if tables.established.get(key) is inet:
        del tables.established[key]
    owners = tables.bound.get(inet.inet_num)
    if owners is not None and inet in owners:
        owners.remove(inet)
        if not owners:
            del tables.bound[inet.inet_num]
