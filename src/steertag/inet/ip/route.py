"""The routing table (net/ipv4/fib_trie.c, net/ipv6/ip6_fib.c): longest prefix, then metric.

A dict for each length of prefix: there are few lengths, and a look-up is a dict look-up each.
"""

from __future__ import annotations

import errno
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steertag.errors import os_error
from steertag.inet.ip.addr import masked, text

if TYPE_CHECKING:
    from steertag.device.base import Device

RTN_UNICAST = 1
RTN_LOCAL = 2
RTN_BROADCAST = 3
RTN_MULTICAST = 5
RTN_BLACKHOLE = 6
RTN_UNREACHABLE = 7
RTN_PROHIBIT = 8

ROUTE_ERRORS = {
    RTN_BLACKHOLE: errno.EINVAL,
    RTN_UNREACHABLE: errno.EHOSTUNREACH,
    RTN_PROHIBIT: errno.EACCES,
}


@dataclass(slots=True, eq=False)
class Route:
    """One route.

    Attributes:
        prefix, prefixlen: destinations, octets and bits.
        gateway: next hop; b"": the destinations are on the link.
        device: where to; None with a type that leads nowhere (`ROUTE_ERRORS`).
        src: source address to prefer; b"": chosen by rule.
        metric: of several to one prefix, the lowest is taken.
        mtu: octets; 0: the device's.
        protocol: who made it, as ip(8) prints it: kernel, boot, ra.
    """

    prefix: bytes
    prefixlen: int
    gateway: bytes
    device: Device | None
    src: bytes = b""
    metric: int = 0
    mtu: int = 0
    type: int = RTN_UNICAST
    protocol: str = "boot"

    def __str__(self) -> str:
        kinds = {6: "blackhole ", 7: "unreachable ", 8: "prohibit "}
        words = [f"{kinds.get(self.type, '')}{text(self.prefix)}/{self.prefixlen}"]
        if not self.prefixlen:
            words = ["default" if len(self.prefix) == 4 else "default6"]
        if self.gateway:
            words.append(f"via {text(self.gateway)}")
        if self.device is not None:
            words.append(f"dev {self.device.name}")
        words.append(f"proto {self.protocol}")
        if self.src:
            words.append(f"src {text(self.src)}")
        if self.metric:
            words.append(f"metric {self.metric}")
        if self.mtu:
            words.append(f"mtu {self.mtu}")
        return " ".join(words)


class FibTable:
    """The routes of one version of IP."""

    def __init__(self, octets: int) -> None:
        self._octets = octets
        self._lengths: list[int] = []  # longest first
        self._routes: dict[int, dict[bytes, list[Route]]] = {}

    def insert(self, route: Route) -> None:
        """Add a route. Raises EEXIST if there is one of that prefix, metric, device and gateway."""
        by_prefix = self._routes.get(route.prefixlen)
        if by_prefix is None:
            by_prefix = self._routes[route.prefixlen] = {}
            insort(self._lengths, route.prefixlen, key=lambda size: -size)
        same = by_prefix.setdefault(route.prefix, [])
        for other in same:
            if _key(other) == _key(route):
                raise os_error(errno.EEXIST, str(route))
        insort(same, route, key=lambda each: each.metric)

    def remove(self, route: Route) -> None:
        """Take out a route that is in."""
        by_prefix = self._routes[route.prefixlen]
        same = by_prefix[route.prefix]
        same.remove(route)
        if not same:
            del by_prefix[route.prefix]
            if not by_prefix:
                del self._routes[route.prefixlen]
                self._lengths.remove(route.prefixlen)

    def lookup(self, address: bytes, device: Device | None = None) -> Route | None:
        """The route to an address, through that device if one is given."""
        for size in self._lengths:
            for route in self._routes[size].get(masked(address, size), ()):
                if route.device is None or (
                    route.device.up and (device is None or route.device is device)
                ):
                    return route
        return None

    def __iter__(self) -> Iterator[Route]:
        for size in reversed(self._lengths):
            for same in list(self._routes[size].values()):
                yield from list(same)


def _key(route: Route) -> tuple[bytes, int, Device | None, int]:
    return route.gateway, route.metric, route.device, route.type
