"""Who has which port and which connection (inet_hashtables.c, inet_connection_sock.c).

One dictionary finds connections, requests and what is in TIME-WAIT by the four numbers; another
finds listeners by port; a third says who has a port. All are as fast with ten thousand sockets as
with one, but for a `bind` to a port that has many owners.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, cast

from steertag.errors import os_error
from steertag.family.const import SOCK_DEAD, TcpState
from steertag.family.inet_hash import HashInfo
from steertag.family.sock import Sock
from steertag.inet.ip.net import InetNet, inet_net
from steertag.inet.sock import addr_conflict, addr_covers
from steertag.inet.tcp.isn import keyed_hash, secure_port_offset

if TYPE_CHECKING:
    from steertag.inet.tcp.request import RequestSock
    from steertag.inet.tcp.sock import TcpSock
    from steertag.inet.tcp.timewait import TimeWaitSock

Key = tuple[bytes, int, bytes, int]
"""(own address, own port, peer's address, peer's port)"""

_PERTURB_SIZE: Final = 256


class BindBucket:
    """The owners of one port (inet_bind_bucket).

    Attributes:
        owners: socks bound to the port, and what is in TIME-WAIT; in the order they came.
        fastreuse: 1: every owner may be bound beside another (SO_REUSEADDR, and none listens); 0:
            look at each; -1: all got the port from `connect`, which may give it again, as long as
            the connections differ.
    """

    __slots__ = ("fastreuse", "owners", "port")

    def __init__(self, port: int) -> None:
        self.port = port
        self.owners: dict[TcpSock | TimeWaitSock, None] = {}
        self.fastreuse = 0


class TcpHash(HashInfo):
    """The tables of TCP; `Proto.h`.

    Attributes:
        ehash: connections, requests and TIME-WAIT socks, by Key.
        lhash: listeners, by port.
        bhash: owners of ports, by port.
        tw_count: TIME-WAIT socks.
        perturb: RFC 6056 algorithm 4's table: how far the search for ports went, for
            destinations of the same hash.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ehash: dict[Key, TcpSock | RequestSock | TimeWaitSock] = {}
        self.lhash: dict[int, list[TcpSock]] = {}
        self.bhash: dict[int, BindBucket] = {}
        self.tw_count = 0
        self.perturb: list[int] = []

    def put_owner(self, bucket: BindBucket, owner: TcpSock | TimeWaitSock) -> None:
        """An owner gives the port back."""
        bucket.owners.pop(owner, None)
        if not bucket.owners and self.bhash.get(bucket.port) is bucket:
            del self.bhash[bucket.port]

    def purge(self) -> None:
        """The family goes: nothing that has no sock is left (inet_twsk_purge)."""
        for entry in list(self.ehash.values()):
            if entry.sk_state == TcpState.TCP_TIME_WAIT:
                cast("TimeWaitSock", entry).deschedule()

    def lookup_listener(
        self,
        net: InetNet,
        laddr: bytes,
        lport: int,
        raddr: bytes,
        rport: int,
        ifindex: int = 0,
    ) -> TcpSock | None:
        """The listener that fits best; of several with SO_REUSEPORT, one by the addresses' hash."""
        candidates = self.lhash.get(lport)
        if candidates is None:
            return None
        best: list[TcpSock] = []
        best_score = 0
        for sk in candidates:
            score = _score(sk, laddr, ifindex)
            if score > best_score:
                best_score = score
                best = [sk]
            elif score and score == best_score:
                best.append(sk)
        if not best:
            return None
        if len(best) == 1 or not best[0].sk_reuseport:
            return best[0]
        group = [sk for sk in best if sk.sk_reuseport]
        ports = b"%b%b" % (lport.to_bytes(2, "big"), rport.to_bytes(2, "big"))
        spread = keyed_hash(net.secret, b"reuse", laddr, raddr, ports)
        return group[(spread >> 32) * len(group) >> 32]


def tables_of(sk: Sock) -> TcpHash:
    """The tables of the sock's protocol."""
    return cast("TcpHash", sk.sk_prot.h)  # calls.py makes the Proto with a TcpHash


def _score(sk: TcpSock, laddr: bytes, ifindex: int) -> int:
    """How well a listener fits a segment's destination; 0: not at all (compute_score)."""
    bound = sk.inet_saddr
    if not addr_covers(bound, laddr):
        return 0
    if sk.bound_dev_if and sk.bound_dev_if != ifindex:
        return 0
    return 1 + (4 if bound == laddr else 0) + (2 if sk.bound_dev_if else 0) + bool(bound)


# -- ports --------------------------------------------------------------------------------------


def tcp_v_get_port(sk: Sock, port: int) -> None:
    """`Proto.get_port`: take `port`, or for 0 a free one (inet_csk_get_port). Raises EADDRINUSE.

    With IP_BIND_ADDRESS_NO_PORT and port 0, `connect` chooses.
    """
    tp = cast("TcpSock", sk)
    tables = tables_of(tp)
    listening = tp.sk_state == TcpState.TCP_LISTEN
    named = bool(port)
    if not named:
        if tp.bind_no_port and not listening:
            return
        port = _find_open_port(tp, tables)
    else:
        bucket = tables.bhash.get(port)
        if (
            bucket is not None
            and not (bucket.fastreuse > 0 and tp.sk_reuse and not listening)
            and _bind_conflict(tp, bucket, explicit=True)
        ):
            raise os_error(errno.EADDRINUSE)
    bucket = tables.bhash.get(port)
    if bucket is None:
        bucket = tables.bhash[port] = BindBucket(port)
    if named and not listening:
        tp.port_locked = True
    reuse = tp.sk_reuse and not listening
    if not bucket.owners:
        bucket.fastreuse = int(reuse)
    elif not reuse:
        bucket.fastreuse = 0
    _bind_hash(tp, bucket)


def _bind_hash(sk: TcpSock, bucket: BindBucket) -> None:
    sk.inet_num = bucket.port
    sk.bind_bucket = bucket
    bucket.owners[sk] = None


def _bind_conflict(sk: TcpSock, bucket: BindBucket, *, explicit: bool) -> bool:
    """Would `sk` and an owner of the port be in each other's way (inet_csk_bind_conflict)?

    All socks of a Stack have one owner, so SO_REUSEPORT asks for nothing but itself on both.
    `explicit`: the user named the port; else one is sought, and a shared one won't do.
    """
    for other in bucket.owners:
        if other is sk:
            continue
        if sk.bound_dev_if and other.bound_dev_if and sk.bound_dev_if != other.bound_dev_if:
            continue
        if explicit:
            if sk.sk_reuse and other.sk_reuse and other.sk_state != TcpState.TCP_LISTEN:
                continue
            if sk.sk_reuseport and other.sk_reuseport:
                continue
        if addr_conflict(sk.inet_saddr, other.inet_saddr):
            return True
    return False


def _port_range(sk: TcpSock) -> tuple[int, int]:
    """The first port, and how many there are: an even number, so that parity can be told apart."""
    low, high = sk.sk_stack.sysctl.read("net.ipv4.ip_local_port_range")
    count = high - low + 1
    return low, count & ~1 if count > 1 else count


def _find_open_port(sk: TcpSock, tables: TcpHash) -> int:
    """A port for `bind`: of the parity that `connect` leaves for it, if there is one."""
    low, count = _port_range(sk)
    first = sk.sk_stack.rng.randrange(count) | 1
    for start in (first, first + 1):
        for step in range(0, count, 2):
            port = low + (start + step) % count
            bucket = tables.bhash.get(port)
            if bucket is None or not _bind_conflict(sk, bucket, explicit=False):
                return port
    raise os_error(errno.EADDRINUSE, f"no port is free from {low} on")


def inet_hash_connect(sk: TcpSock) -> None:
    """Enter a connection whose addresses are known, with a port if it has none yet.

    RFC 6056 algorithm 4, as Linux has it (__inet_hash_connect): a hash of the destination says
    where to start, a table how far earlier searches got; ports of even distance first, odd ones
    being `bind`'s. A port may serve connections to different destinations.

    Raises:
        OSError: EADDRNOTAVAIL, the connection exists, or there is no port for it.
    """
    tables = tables_of(sk)
    if sk.bind_bucket is not None:
        waiting = _check_established(sk, tables, sk.inet_num, bound=True)
        if waiting is False:
            raise os_error(errno.EADDRNOTAVAIL)
        _enter(sk, tables, waiting)
        return
    net = inet_net(sk.sk_stack)
    low, count = _port_range(sk)
    laddr, raddr = sk.inet_saddr, sk.inet_daddr
    offset = secure_port_offset(net.secret, laddr, raddr, sk.inet_dport)
    if not tables.perturb:
        tables.perturb = [
            keyed_hash(net.secret, b"perturb", bytes((index,))) & 0xFFFFFFFF
            for index in range(_PERTURB_SIZE)
        ]
    index = offset & (_PERTURB_SIZE - 1)
    first = (tables.perturb[index] + (offset >> 32)) % count & ~1
    for start in (first, first + 1):
        for step in range(0, count, 2):
            port = low + (start + step) % count
            bucket = tables.bhash.get(port)
            if bucket is not None and bucket.fastreuse >= 0:
                continue
            waiting = _check_established(sk, tables, port, bound=False)
            if waiting is False:
                continue
            noise = 2 * sk.sk_stack.rng.randrange(8)
            tables.perturb[index] += max(step, noise) + 2
            if bucket is None:
                bucket = tables.bhash[port] = BindBucket(port)
                bucket.fastreuse = -1
            _bind_hash(sk, bucket)
            _enter(sk, tables, waiting)
            return
    raise os_error(errno.EADDRNOTAVAIL, f"no port is free from {low} on")


def _check_established(
    sk: TcpSock, tables: TcpHash, port: int, *, bound: bool
) -> TimeWaitSock | bool | None:
    """None: nobody has that connection; a TIME-WAIT sock: it may be taken over; False: no."""
    found = tables.ehash.get((sk.inet_saddr, port, sk.inet_daddr, sk.inet_dport))
    if found is None or found is sk:
        return None
    if found.sk_state == TcpState.TCP_TIME_WAIT:
        tw = cast("TimeWaitSock", found)
        if tw.twsk_unique(sk, bound=bound):
            return tw
    return False


def _enter(sk: TcpSock, tables: TcpHash, waiting: TimeWaitSock | bool | None) -> None:
    if waiting:
        cast("TimeWaitSock", waiting).deschedule()
        sk.mib["TcpExtTWRecycled"] += 1
    inet_ehash_insert(sk)


# -- finding and not finding --------------------------------------------------------------------


def inet_ehash_insert(sk: TcpSock) -> None:
    """Findable by its connection, in place of whatever was there."""
    key = (sk.inet_saddr, sk.inet_num, sk.inet_daddr, sk.inet_dport)
    sk.hash_key = key
    tables_of(sk).ehash[key] = sk


def inet_inherit_port(parent: TcpSock, child: TcpSock) -> None:
    """A child shares its listener's port (__inet_inherit_port)."""
    bucket = parent.bind_bucket
    assert bucket is not None  # a listener is bound
    _bind_hash(child, bucket)


def tcp_hash(sk: Sock) -> None:
    """`Proto.hash`: findable as a listener, or by its connection."""
    tp = cast("TcpSock", sk)
    if tp.sk_state == TcpState.TCP_LISTEN:
        listeners = tables_of(tp).lhash.setdefault(tp.inet_num, [])
        if tp not in listeners:
            listeners.append(tp)
    elif tp.sk_state != TcpState.TCP_CLOSE:
        inet_ehash_insert(tp)


def inet_unhash(sk: TcpSock) -> None:
    """Not findable any more; the port stays."""
    tables = tables_of(sk)
    key = sk.hash_key
    if key is not None:
        if tables.ehash.get(key) is sk:
            del tables.ehash[key]
        sk.hash_key = None
    listeners = tables.lhash.get(sk.inet_num)
    if listeners is not None and sk in listeners:
        listeners.remove(sk)
        if not listeners:
            del tables.lhash[sk.inet_num]


def inet_put_port(sk: TcpSock) -> None:
    """Give the port back. `inet_num` stays, for a RST that may have to go out, and for its name."""
    bucket = sk.bind_bucket
    if bucket is not None:
        sk.bind_bucket = None
        tables_of(sk).put_owner(bucket, sk)


def tcp_unhash(sk: Sock) -> None:
    """`Proto.unhash`: out of every table. The port is given back, unless the user chose it (`bind`
    to a number) and still holds the socket."""
    tp = cast("TcpSock", sk)
    inet_unhash(tp)
    if not tp.port_locked or tp.sk_flags & SOCK_DEAD:
        inet_put_port(tp)
