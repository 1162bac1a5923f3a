"""Who has which UDP port, and whose a datagram is (net/ipv4/udp.c, udp_table)."""

from __future__ import annotations

import errno
import zlib
from typing import TYPE_CHECKING, Final

from steertag.errors import StateError, os_error
from steertag.family.const import TcpState
from steertag.inet.datagram import DatagramSock
from steertag.inet.sock import addr_conflict, addr_covers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from steertag.family.sock import Sock
    from steertag.family.stack import Stack
    from steertag.inet.udp_tx import Cork

_NAME: Final = "udp"
Key = tuple[bytes, int, bytes, int]


class UdpSock(DatagramSock):
    """A UDP sock.

    Attributes:
        cork: what MSG_MORE or UDP_CORK holds back; cork_on: the option.
        gso_size: UDP_SEGMENT. gro: UDP_GRO. no_check: SO_NO_CHECK (IPv4 without checksums).
        no_check6_tx, no_check6_rx: the options of that name.
        key: under which it is in the table of connected ones.
    """

    __slots__ = (
        *("cork", "cork_on", "gro", "gso_size", "key"),
        *("no_check", "no_check6_rx", "no_check6_tx"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.cork: Cork | None = None
        self.cork_on = self.gro = False
        self.no_check = self.no_check6_tx = self.no_check6_rx = False
        self.gso_size = 0
        self.key: Key | None = None


def udp_sk(sk: Sock) -> UdpSock:
    """The sock as a UDP one. Raises StateError: it is none."""
    if not isinstance(sk, UdpSock):
        raise StateError(f"{sk!r} is no UDP sock")
    return sk


class UdpTable:
    """One per Stack.

    Attributes:
        bound: by port, in the order of binding.
        connected: by (own address, own port, peer's address, peer's port).
    """

    def __init__(self, seed: int) -> None:
        self.bound: dict[int, list[UdpSock]] = {}
        self.connected: dict[Key, list[UdpSock]] = {}
        self._seed = seed

    def lookup(
        self, saddr: bytes, sport: int, daddr: bytes, dport: int, ifindex: int
    ) -> UdpSock | None:
        """Whose a datagram from (saddr, sport) to (daddr, dport) is: the one that fits best.

        Among equals it is the one bound last, or with SO_REUSEPORT the one that the addresses
        hash to, so that a flow stays with its receiver.
        """
        for sk in self.connected.get((daddr, dport, saddr, sport), ()):
            if not sk.bound_dev_if or sk.bound_dev_if == ifindex:
                return sk
        best: list[UdpSock] = []
        best_score = 0
        for sk in self.bound.get(dport, ()):
            score = _score(sk, daddr, ifindex)
            if score > best_score:
                best, best_score = [sk], score
            elif score and score == best_score:
                best.append(sk)
        if not best:
            return None
        if len(best) == 1 or not best[-1].sk_reuseport:
            return best[-1]
        group = [sk for sk in best if sk.sk_reuseport]
        octets = b"%b%b%d %d" % (saddr, daddr, sport, dport)
        return group[zlib.crc32(octets, self._seed) % len(group)]

    def all_for(
        self, saddr: bytes, sport: int, daddr: bytes, dport: int, ifindex: int
    ) -> Iterable[UdpSock]:
        """Whose a broadcast or a multicast is: everybody's that it fits."""
        for sk in tuple(self.bound.get(dport, ())):
            if sk.sk_state == TcpState.TCP_ESTABLISHED:
                if (sk.inet_daddr, sk.inet_dport) != (saddr, sport):
                    continue
                # A connected one has a concrete address, which isn't the group's.
                fits = not sk.addr_locked or sk.inet_saddr == daddr
            else:
                fits = addr_covers(sk.inet_saddr, daddr)
            if fits and (not sk.bound_dev_if or sk.bound_dev_if == ifindex):
                yield sk

    def connect(self, sk: UdpSock) -> None:
        """It has a peer now."""
        self.disconnect(sk)
        sk.key = (sk.inet_saddr, sk.inet_num, sk.inet_daddr, sk.inet_dport)
        self.connected.setdefault(sk.key, []).append(sk)

    def disconnect(self, sk: UdpSock) -> None:
        if sk.key is None:
            return
        same = self.connected[sk.key]
        same.remove(sk)
        if not same:
            del self.connected[sk.key]
        sk.key = None

    def bind(self, sk: UdpSock, port: int) -> None:
        self.bound.setdefault(port, []).append(sk)
        sk.inet_num = port

    def unbind(self, sk: UdpSock) -> None:
        self.disconnect(sk)
        owners = self.bound.get(sk.inet_num)
        if owners is not None and sk in owners:
            owners.remove(sk)
            if not owners:
                del self.bound[sk.inet_num]
        sk.inet_num = 0


def udp_table(stack: Stack) -> UdpTable:
    """The Stack's, made when first asked for."""
    found = stack.generic.get(_NAME)
    if not isinstance(found, UdpTable):
        found = UdpTable(stack.rng.getrandbits(32))
        stack.generic[_NAME] = found
    return found


def _score(sk: UdpSock, daddr: bytes, ifindex: int) -> int:
    """How well an unconnected sock fits; 0: not at all (compute_score)."""
    if sk.key is not None or not addr_covers(sk.inet_saddr, daddr):
        return 0
    score = 1
    if sk.inet_saddr:
        score += 1 if sk.inet_saddr != daddr else 5
    if sk.bound_dev_if:
        if sk.bound_dev_if != ifindex:
            return 0
        score += 4
    return score


# -- ports --------------------------------------------------------------------------------------


def udp_get_port(sk: Sock, port: int) -> None:
    """`Proto.get_port`: take `port`, or for 0 a random free one (RFC 6056 section 3.3.1).

    Raises:
        OSError: EADDRINUSE.
    """
    up = udp_sk(sk)
    table = udp_table(sk.sk_stack)
    if not port:
        port = _ephemeral(up, table)
    elif _in_use(up, table, port):
        raise os_error(errno.EADDRINUSE)
    table.bind(up, port)


def _ephemeral(sk: UdpSock, table: UdpTable) -> int:
    low, high = sk.sk_stack.sysctl.read("net.ipv4.ip_local_port_range")
    count = high - low + 1
    start = sk.sk_stack.rng.randrange(count)
    ports = [low + (start + step) % count for step in range(min(count, 16))]
    for port in ports:
        if port not in table.bound:
            return port
    for step in range(count):
        port = low + (start + step) % count
        if port not in table.bound or not _in_use(sk, table, port):
            return port
    raise os_error(errno.EADDRINUSE, f"no port free in {low}..{high}")


def _in_use(sk: UdpSock, table: UdpTable, port: int) -> bool:
    """udp_lib_lport_inuse."""
    for other in table.bound.get(port, ()):
        if other is sk or (sk.sk_reuse and other.sk_reuse):
            continue
        if sk.bound_dev_if and other.bound_dev_if and sk.bound_dev_if != other.bound_dev_if:
            continue
        if sk.sk_reuseport and other.sk_reuseport:
            continue
        if addr_conflict(sk.inet_saddr, other.inet_saddr):
            return True
    return False


def udp_unhash(sk: Sock) -> None:
    """`Proto.unhash`."""
    udp_table(sk.sk_stack).unbind(udp_sk(sk))
