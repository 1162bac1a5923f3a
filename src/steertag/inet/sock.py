"""What every sock of the family has (struct inet_sock, struct ipv6_pinfo), and its addresses.

An address is packed octets, 4 for IPv4 and 16 for IPv6. What a sock is bound to may also be one of
three wildcards: `ANY` (b"": both versions), `ANY4` and `ANY6` (either alone).
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING, ClassVar, Final

from steertag.errors import StateError
from steertag.family.inet_hash import InetSock, no_such_host
from steertag.family.sock import Sock
from steertag.inet.const import IP_PMTUDISC_WANT

if TYPE_CHECKING:
    from steertag.family.msg import Address
    from steertag.inet.errqueue import ErrorEntry

ANY: Final = b""
ANY4: Final = bytes(4)
ANY6: Final = bytes(16)
BROADCAST: Final = b"\xff\xff\xff\xff"
MAPPED: Final = bytes(10) + b"\xff\xff"
_NAMES: Final = {
    "": (ANY, 0),
    "localhost": (b"\x7f\0\0\1", 0),
    "<broadcast>": (BROADCAST, 0),
}

Name = tuple[str, int] | tuple[str, int, int, int]
"""An address as the user sees it: (host, port), for IPv6 (host, port, flowinfo, scope id)."""


class IpSock(InetSock):
    """A sock of AF_INET_NEW_TCP. `inet_saddr` is what it is bound to, `inet_daddr` its peer.

    An option that IPv4 and IPv6 both have is one field, whichever level it is set at: a sock
    speaks both.

    Attributes:
        uc_ttl: IP_TTL, IPV6_UNICAST_HOPS; -1: the default. `ttl_for_send` is the same for the IP
            layer, to which 0 means the default.
        tos: IP_TOS, IPV6_TCLASS. mtu_discover: IP_MTU_DISCOVER (IP_PMTUDISC_*).
        min_ttl: IP_MINTTL: what comes with less is dropped.
        bound_dev_if: SO_BINDTODEVICE, or a link-local address's scope: 0: any interface.
        sk_reuseport, freebind, bind_no_port, v6only, hdrincl, dontfrag: the options of that name.
        recverr: IP_RECVERR: ICMP errors are queued in `error_queue` (errqueue.py).
        cmsg_flags: what ancillary data the receiver asked for (sockopt.CMSG_*).
        mc_ttl, mc_index: IP_MULTICAST_TTL, _IF.
        flowlabel: of the IPv6 packets it sends (from sin6_flowinfo).
        named6: it was bound by an IPv6 wildcard, and its name is given back as one.
        addr_locked, port_locked: `bind` named it (SOCK_BINDADDR_LOCK, SOCK_BINDPORT_LOCK), so that
            disconnecting keeps it.
    """

    __slots__ = (
        "addr_locked",
        "bind_no_port",
        "bound_dev_if",
        "cmsg_flags",
        "dontfrag",
        "error_queue",
        "flowlabel",
        "freebind",
        "hdrincl",
        "mc_index",
        "mc_ttl",
        "min_ttl",
        "mtu_discover",
        "named6",
        "port_locked",
        "recverr",
        "sk_reuseport",
        "tos",
        "ttl_for_send",
        "uc_ttl",
        "v6only",
    )

    ANY: ClassVar[bytes] = ANY
    inet_saddr: bytes
    inet_daddr: bytes

    def __init__(self) -> None:
        super().__init__()
        self.uc_ttl = -1
        self.ttl_for_send = 0
        self.tos = 0
        self.min_ttl = 0
        self.mtu_discover = IP_PMTUDISC_WANT
        self.bound_dev_if = 0
        self.sk_reuseport = self.freebind = self.bind_no_port = False
        self.v6only = self.hdrincl = self.dontfrag = False
        self.recverr = False
        self.error_queue: deque[ErrorEntry] | None = None
        self.cmsg_flags = 0
        self.mc_ttl = 1
        self.mc_index = 0
        self.flowlabel = 0
        self.named6 = self.addr_locked = self.port_locked = False

    def check_address(self, address: Address) -> tuple[bytes, int]:
        """The user's address as (packed, port); see `parse_address` for the rest of it."""
        return self.parse_address(address)[:2]

    def parse_address(self, address: Address) -> tuple[bytes, int, int, int]:
        """The user's address as (packed, port, flowinfo, scope id).

        Raises:
            TypeError, OverflowError: as the standard library's sockets.
            OSError: socket.gaierror for a name; only numbers, "localhost", "" and "<broadcast>"
                are known here.
        """
        if not isinstance(address, tuple):
            kind = type(address).__name__
            raise TypeError(f"AF_INET_NEW_TCP address must be tuple, not {kind}")
        if not 2 <= len(address) <= 4:
            raise TypeError("AF_INET_NEW_TCP address must be (host, port[, flowinfo[, scope_id]])")
        host, port, *rest = address
        if isinstance(host, bytes | bytearray):
            host = host.decode("ascii", "replace")
        if not isinstance(host, str):
            raise TypeError(f"host must be str or bytes, not {type(host).__name__}")
        for number in (port, *rest):
            if not isinstance(number, int):
                raise TypeError(f"an integer is required (got type {type(number).__name__})")
        if not 0 <= port <= 65535:
            raise OverflowError("port must be 0-65535.")
        flowinfo, scope = (*rest, 0, 0)[:2]
        if not 0 <= flowinfo <= 0xFFFFF:
            raise OverflowError("flowinfo must be 0-1048575.")
        if not 0 <= scope <= 0xFFFFFFFF:
            raise OverflowError("scope_id must be 0-4294967295.")
        packed, zone = _pack(host)
        if zone:
            scope = self._interface(zone, host)
        return packed, port, flowinfo, scope

    def _interface(self, zone: str, host: str) -> int:
        """The index of the interface after the percent sign of an address."""
        if zone.isdecimal():
            return int(zone)
        device = self.sk_stack.devices.get(zone)
        if device is None:
            raise no_such_host(host)
        return int(getattr(device, "ifindex", 0))

    def inherit(self, parent: IpSock) -> None:
        """A child's options are its listener's (inet_csk_clone_lock copies the whole struct)."""
        self.uc_ttl = parent.uc_ttl
        self.ttl_for_send = parent.ttl_for_send
        self.tos = parent.tos
        self.min_ttl = parent.min_ttl
        self.mtu_discover = parent.mtu_discover
        self.bound_dev_if = parent.bound_dev_if
        self.sk_reuseport = parent.sk_reuseport
        self.freebind = parent.freebind
        self.v6only = parent.v6only
        self.dontfrag = parent.dontfrag
        self.recverr = parent.recverr
        self.cmsg_flags = parent.cmsg_flags


def ip_sk(sk: Sock) -> IpSock:
    """The sock as one of this family. Raises StateError: it is none."""
    if not isinstance(sk, IpSock):
        raise StateError(f"{sk!r} is no sock of AF_INET_NEW_TCP")
    return sk


# -- addresses ----------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _pack(host: str) -> tuple[bytes, str | None]:
    """A numeric address as octets, and its zone. Raises socket.gaierror."""
    if host in _NAMES:
        return _NAMES[host][0], None
    try:
        if ":" not in host:
            return IPv4Address(host).packed, None
        parsed = IPv6Address(host)
    except AddressValueError:
        raise no_such_host(host) from None
    packed = parsed.packed
    if packed[:12] == MAPPED:
        return packed[12:], None
    return packed, parsed.scope_id


@lru_cache(maxsize=4096)
def host_text(addr: bytes) -> str:
    """An address as text (RFC 5952); a wildcard of both versions is 0.0.0.0."""
    if len(addr) == 4:
        return "%d.%d.%d.%d" % tuple(addr)  # noqa: UP031  # twice as fast as the others
    return str(IPv6Address(addr)) if addr else "0.0.0.0"


def address_text(addr: bytes, port: int, flowinfo: int = 0, scope: int = 0) -> Name:
    """The address as the user is given it; `scope` counts for link-local ones alone."""
    if len(addr) != 16:
        return host_text(addr), port
    return host_text(addr), port, flowinfo, scope if is_link_local(addr) else 0


def is_link_local(addr: bytes) -> bool:
    """fe80::/10, and the multicast groups of link and interface scope."""
    if len(addr) != 16:
        return False
    if addr[0] == 0xFE:
        return addr[1] & 0xC0 == 0x80
    return addr[0] == 0xFF and addr[1] & 0xF in (1, 2)


def is_multicast(addr: bytes) -> bool:
    if len(addr) == 4:
        return addr[0] & 0xF0 == 0xE0
    return len(addr) == 16 and addr[0] == 0xFF


def is_wildcard(addr: bytes) -> bool:
    """ANY, ANY4 or ANY6."""
    return not addr or addr in (ANY4, ANY6)


def addr_covers(bound: bytes, addr: bytes) -> bool:
    """Does a sock bound to `bound` receive what is sent to `addr`?"""
    return not bound or bound == addr or (len(bound) == len(addr) and not any(bound))


def addr_conflict(one: bytes, other: bytes) -> bool:
    """Is there an address that both would receive? (inet_rcv_saddr_equal)"""
    if not one or not other or one == other:
        return True
    return len(one) == len(other) and (not any(one) or not any(other))
