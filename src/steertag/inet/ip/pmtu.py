"""Path MTUs that routers told of (ip_rt_update_pmtu, rt6_do_update_pmtu; RFC 1191, RFC 8201)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.family.timer import Timer
from steertag.wire.ipv6 import MIN_MTU

if TYPE_CHECKING:
    from steertag.inet.ip.dst import Dst
    from steertag.inet.ip.net import InetNet

_MOST: Final = 4096
"""Destinations that are remembered; the oldest is forgotten for another."""


class PmtuCache:
    """What is known of the paths to destinations, each for net.ipv4.route.mtu_expires seconds."""

    def __init__(self, net: InetNet) -> None:
        self._net = net
        self._entries: dict[bytes, tuple[int, bool, float]] = {}  # mtu, locked, expires
        self._timer = Timer(net.stack.timers, self._expire)

    def learn(self, dst: Dst, mtu: int) -> None:
        """`Dst.update_pmtu`."""
        if dst.family == 6:
            if mtu < MIN_MTU:
                return
            locked = False
        else:
            least = min(self._net.ctl.min_pmtu[0], dst.mtu)
            locked = mtu < least
            mtu = max(mtu, least)
        if mtu > dst.mtu or (mtu == dst.mtu and locked == dst.mtu_locked):
            return
        now = self._net.stack.clock()
        self._entries.pop(dst.daddr, None)
        if len(self._entries) >= _MOST:
            del self._entries[next(iter(self._entries))]
        self._entries[dst.daddr] = (mtu, locked, now + self._net.ctl.mtu_expires[0])
        self._arm()
        self._net.bump_genid()
        dst.mtu, dst.mtu_locked = mtu, locked

    def lookup(self, daddr: bytes) -> tuple[int, bool] | None:
        """MTU of the path to that address, and whether DF may not be set; None: not known."""
        entry = self._entries.get(daddr)
        if entry is None or entry[2] <= self._net.stack.clock():
            return None
        return entry[0], entry[1]

    def entries(self) -> dict[bytes, tuple[int, bool, float]]:
        """MTU, locked, and when it is forgotten, of each destination (a copy)."""
        return dict(self._entries)

    def clear(self) -> None:
        self._entries.clear()
        self._timer.delete()

    def _arm(self) -> None:
        if self._entries:  # in the order in which they expire
            self._timer.mod(next(iter(self._entries.values()))[2])

    def _expire(self) -> None:
        """The path may have become wider: try."""
        now = self._net.stack.clock()
        for daddr in [daddr for daddr, entry in self._entries.items() if entry[2] <= now]:
            del self._entries[daddr]
        self._net.bump_genid()
        self._arm()
