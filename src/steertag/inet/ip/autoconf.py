"""Addresses and routers of IPv6 links (net/ipv6/addrconf.c, ndisc.c; RFC 4861, RFC 4862).

Duplicate address detection is done if net.ipv6.conf.all.dad_transmits asks for it, and what routers
advertise is taken if net.ipv6.conf.all.accept_ra does: a Stack's addresses are usually given by
whoever made it.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from steertag.errors import WireError
from steertag.family.timer import Timer
from steertag.inet.ip import addr as ip
from steertag.inet.ip.neigh import NUD_STALE
from steertag.inet.ip.route import Route
from steertag.wire import icmpv6
from steertag.wire.ethernet import ADDRESS_LEN, modified_eui64
from steertag.wire.ipv6 import MIN_MTU

if TYPE_CHECKING:
    from steertag.inet.ip.devinet import IfAddr, InDevice
    from steertag.inet.ip.net import InetNet
    from steertag.inet.ip.packet import Packet

_RETRANS: Final = 1.0
_ADVERT: Final = struct.Struct("!4xBBHII")
"""After type, code and checksum: hop limit, flags, router lifetime, reachable time, retransmit."""
_RA_METRIC: Final = 1024
_MOST_PREFIXES: Final = 16
"""Addresses that advertisements may add to a device (the kernel: max_addresses)."""
_FOR_EVER: Final = 0xFFFFFFFF
_TWO_HOURS: Final = 7200


class Autoconf:
    """Duplicate address detection, and what routers advertise."""

    def __init__(self, net: InetNet) -> None:
        self._net = net
        self._routers: dict[tuple[InDevice, bytes], tuple[Route, Timer]] = {}

    # -- duplicate address detection ---------------------------------------------------------------

    def start_dad(self, indev: InDevice, added: IfAddr) -> None:
        """addrconf_dad_start."""
        most = self._net.ctl.dad_transmits[0]
        if not most or not indev.is_ethernet or len(added.address) != 16:
            return
        added.tentative = True
        added.probes = 0
        self._net.addr_down(added)
        added.timer = Timer(self._net.stack.timers, lambda: self._dad(indev, added))
        self._dad(indev, added)

    def _dad(self, indev: InDevice, added: IfAddr) -> None:
        if added.probes >= self._net.ctl.dad_transmits[0]:
            added.tentative = False
            added.timer = None
            self._net.addr_up(indev, added)
            self.start_expiry(indev, added)
            return
        added.probes += 1
        self._net.nd.probe(indev, added)
        if added.timer is not None:
            added.timer.mod(self._net.stack.clock() + _RETRANS)

    def duplicate(self, indev: InDevice, added: IfAddr) -> None:
        """addrconf_dad_failure: somebody has it; it stays listed and is not used."""
        added.tentative = False
        added.dadfailed = True
        if added.timer is not None:
            added.timer.delete()
            added.timer = None

    # -- router advertisements ---------------------------------------------------------------------

    def router_advert(self, indev: InDevice, packet: Packet) -> None:
        """ndisc_router_discovery."""
        net = self._net
        if not net.ctl.accept_ra[0] or indev.is_loopback or not ip.is_link_local(packet.saddr):
            return
        data = packet.data
        if len(data) < _ADVERT.size:
            return
        try:
            options = icmpv6.parse_nd_options_untrusted(data[_ADVERT.size :])
        except WireError:
            return
        hop_limit, _, lifetime, _, _ = _ADVERT.unpack_from(data)
        if hop_limit:
            indev.hop_limit = hop_limit
        for kind, value in options:
            if kind == icmpv6.OPT_SOURCE_LL and len(value) == ADDRESS_LEN and not value[0] & 1:
                if indev.is_ethernet:
                    neigh = net.nd.lookup(packet.saddr, indev.device)
                    neigh.update(value, NUD_STALE)
                    neigh.is_router = True
            elif kind == icmpv6.OPT_MTU and len(value) == 6:
                self._mtu(indev, int.from_bytes(value[2:], "big"))
            elif kind == icmpv6.OPT_PREFIX:
                self._prefix(indev, value)
        self._router(indev, packet.saddr, lifetime)

    def _mtu(self, indev: InDevice, mtu: int) -> None:
        if MIN_MTU <= mtu <= indev.device.mtu and mtu != indev.mtu6:
            indev.mtu6 = mtu
            self._net.bump_genid()

    def _router(self, indev: InDevice, address: bytes, lifetime: int) -> None:
        """A default router, for that many seconds; 0: not any more."""
        known = self._routers.get((indev, address))
        if not lifetime:
            self.no_router(indev, address)
            return
        if known is None:
            if len(self._routers) >= _MOST_PREFIXES:
                return
            route = Route(ip.ANY6, 0, address, indev.device, metric=_RA_METRIC, protocol="ra")
            try:
                self._net.fib6.insert(route)
            except FileExistsError:
                return  # the user has such a route
            self._net.bump_genid()
            timer = Timer(self._net.stack.timers, lambda: self.no_router(indev, address))
            known = self._routers[indev, address] = (route, timer)
        known[1].mod(self._net.stack.clock() + lifetime)

    def no_router(self, indev: InDevice, address: bytes) -> None:
        """It is no router any more, or did not say for too long that it is."""
        known = self._routers.pop((indev, address), None)
        if known is None:
            return
        route, timer = known
        timer.delete()
        if any(each is route for each in self._net.fib6):
            self._net.route_remove(route)

    def _prefix(self, indev: InDevice, value: bytes) -> None:
        """addrconf_prefix_rcv: an address of our own for each autonomous prefix of 64 bits."""
        try:
            prefix = icmpv6.parse_prefix_untrusted(value)
        except WireError:
            return
        if (
            not prefix.autonomous
            or prefix.prefixlen != 64
            or prefix.preferred > prefix.valid
            or ip.is_link_local(prefix.prefix)
            or ip.is_multicast(prefix.prefix)
            or not indev.is_ethernet
        ):
            return
        net = self._net
        address = prefix.prefix[:8] + modified_eui64(indev.device.dev_addr)
        now = net.stack.clock()
        mine = indev.find(address)
        if mine is None:
            made = sum(each.protocol == "ra" for each in indev.addresses)
            if not prefix.valid or made >= _MOST_PREFIXES:
                return
            try:
                mine = net.addr_add(indev.device, f"{ip.text(address)}/64")
            except OSError as exc:
                if exc.errno != errno.EEXIST:
                    raise
                return  # another device has it
            mine.protocol = "ra"
        elif mine.protocol != "ra":
            return
        self._lifetimes(mine, prefix, now)
        self.start_expiry(indev, mine)

    def _lifetimes(self, mine: IfAddr, prefix: icmpv6.Prefix, now: float) -> None:
        """RFC 4862 section 5.5.3 (e): nobody may shorten a lifetime to less than two hours."""
        valid = prefix.valid
        if mine.expires is not None:
            remaining = mine.expires - now
            if valid < _TWO_HOURS and valid < remaining:
                valid = int(min(remaining, _TWO_HOURS))
        mine.expires = None if valid == _FOR_EVER else now + valid
        forever = prefix.preferred == _FOR_EVER
        mine.preferred_until = None if forever else now + prefix.preferred
        mine.deprecated = not prefix.preferred

    def start_expiry(self, indev: InDevice, mine: IfAddr) -> None:
        """Have an address with a lifetime deprecated, and then removed."""
        if mine.tentative or mine.dadfailed:
            return
        if mine.timer is None:
            mine.timer = Timer(self._net.stack.timers, lambda: self._lifetime_over(indev, mine))
        self._arm(mine)

    def _arm(self, mine: IfAddr) -> None:
        until = mine.expires
        if not mine.deprecated and mine.preferred_until is not None:
            until = mine.preferred_until if until is None else min(until, mine.preferred_until)
        if mine.timer is not None and until is not None:
            mine.timer.mod(until)

    def _lifetime_over(self, indev: InDevice, mine: IfAddr) -> None:
        now = self._net.stack.clock()
        if mine.expires is not None and mine.expires <= now:
            self._net.addr_del(indev.device, str(mine))
            return
        mine.deprecated = True
        self._net.bump_genid()
        self._arm(mine)

    def forget(self, indev: InDevice) -> None:
        """A device is gone."""
        for each, address in list(self._routers):
            if each is indev:
                self._routers.pop((each, address))[1].delete()
