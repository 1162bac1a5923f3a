"""The network layer of a Stack (struct net's ipv4 and ipv6; net/ipv4/devinet.c, addrconf.c).

`InetNet` is what the rest of the family sees of it: devices and their addresses, routes, the
transport protocols that receive, and the counters. Everything is guarded by the Stack's lock, which
the calls that change something take by themselves.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from steertag.device.base import (
    NETIF_F_HW_CSUM,
    Device,
    register_netdevice,
    unregister_netdevice,
)
from steertag.device.memory import loopback
from steertag.errors import os_error
from steertag.inet.ip import addr as ip
from steertag.inet.ip.arp import ArpTable
from steertag.inet.ip.autoconf import Autoconf
from steertag.inet.ip.devinet import IfAddr, InDevice
from steertag.inet.ip.dst import Dst
from steertag.inet.ip.frag import Defrag
from steertag.inet.ip.icmp import Icmp4
from steertag.inet.ip.icmp6 import Icmp6
from steertag.inet.ip.input import receiver
from steertag.inet.ip.ndisc import NdTable
from steertag.inet.ip.neigh import NUD_NOARP, NUD_PERMANENT, STATE_NAMES, Neighbour
from steertag.inet.ip.output import route_output
from steertag.inet.ip.packet import IcmpError, L4Protocol, Packet
from steertag.inet.ip.pmtu import PmtuCache
from steertag.inet.ip.route import RTN_BROADCAST, RTN_MULTICAST, RTN_UNICAST, FibTable, Route
from steertag.inet.ip.sysctl import IpSysctl
from steertag.inet.mib import Mib
from steertag.wire import checksum
from steertag.wire.ethernet import ADDRESS_LEN, BROADCAST, multicast_v4, multicast_v6

if TYPE_CHECKING:
    from steertag.family.stack import Stack

__all__ = ["IcmpError", "InetNet", "L4Protocol", "Packet", "inet_net", "init_net"]

_NAME: Final = "inet"
_DSTS: Final = 4096


class InetNet:
    """The network layer of one Stack; `inet_net(stack)` gives it.

    Attributes:
        stack, mib: the Stack, and the counters.
        secret: octets that sequence numbers, cookies and ports depend on.
        ctl: the parameters.
        lo: the loopback device.
        genid: goes up when routes or addresses change, and Dsts made before are not valid.
        l4, l4v6: transport protocols by number, of IPv4 and of IPv6.
        raw_deliver: called with every packet for this host, of any protocol, before its transport
            protocol; they return whether they took it. Empty while there is nobody who wants any.
        raw_err: called with every ICMP error about a packet that was sent from here.
    """

    def __init__(self, stack: Stack, secret: bytes | None = None) -> None:
        self.stack = stack
        self.mib = Mib()
        self.secret = os.urandom(16) if secret is None else secret
        self.ctl = IpSysctl()
        self.default_ttl = self.ctl.default_ttl
        self.genid = 0
        self.l4: dict[int, L4Protocol] = {}
        self.l4v6: dict[int, L4Protocol] = {}
        self.raw_deliver: list[Callable[[Packet], bool]] = []
        self.raw_err: list[Callable[[IcmpError], None]] = []
        self.fib4, self.fib6 = FibTable(4), FibTable(16)
        self.broadcasts: dict[bytes, InDevice] = {}
        self._local: dict[bytes, InDevice] = {}
        self._devices: dict[Device, InDevice] = {}
        self._dsts: dict[tuple[bytes, bytes, int], Dst] = {}
        self._completes: tuple[Callable[[InetNet], None], ...] = ()
        self.pmtu = PmtuCache(self)
        self.arp, self.nd = ArpTable(self), NdTable(self)
        self.autoconf = Autoconf(self)
        self.defrag = Defrag(self)
        self.icmp, self.icmp6 = Icmp4(self), Icmp6(self)
        self.lo: Device = loopback()

    # -- devices -----------------------------------------------------------------------------------

    def add_device(
        self, device: Device, addresses: Iterable[str] = (), *, up: bool = True
    ) -> InDevice:
        """Receive from a device and send by it; it becomes one of the Stack's (`ip link`, `addr`).

        Args:
            addresses: "10.0.0.2/24", "fd00::2/64": each brings the route to its subnet.

        Raises:
            OSError: EEXIST, a device of that name is there, or one with that address; EINVAL, no
                address. Nothing was added then.
        """
        parsed = [ip.parse_prefix(each) for each in addresses]
        with self.stack.lock:
            if device.name in self.stack.devices:
                raise os_error(errno.EEXIST, f"device {device.name}")
            device.up = up
            if device.mtu > checksum.LONG and not device.features & NETIF_F_HW_CSUM:
                checksum.prepare()
            indev = self._devices[device] = InDevice(self, device)
            self.bump_genid()
            # Registration may take in what has come already: the addresses have to be there.
            try:
                added = [self._addr_add(indev, *each) for each in parsed]
            except OSError:
                self._forget(indev)
                raise
            register_netdevice(self.stack, device, receiver(self, indev), self._complete)
            if indev.is_ethernet and not indev.link_local():
                added.append(self._addr_add(indev, indev.eui64_link_local(), 64, protocol="kernel"))
            for each in added:
                self.autoconf.start_dad(indev, each)
        return indev

    def del_device(self, device: Device) -> None:
        """Forget a device with its addresses and routes; it is not closed. Raises ENODEV."""
        with self.stack.lock:
            self._forget(self.indev(device))
            unregister_netdevice(self.stack, device)

    def _forget(self, indev: InDevice) -> None:
        device = indev.device
        for each in list(indev.addresses):
            self._addr_del(indev, each)
        for table in (self.fib4, self.fib6):
            for route in [route for route in table if route.device is device]:
                table.remove(route)
        self.autoconf.forget(indev)
        self.arp.forget(device)
        self.nd.forget(device)
        self.defrag.forget(device)
        del self._devices[device]
        self.bump_genid()

    def indev(self, device: Device) -> InDevice:
        """What is kept for a device. Raises ENODEV for one that was not added."""
        found = self._devices.get(device)
        if found is None:
            raise os_error(errno.ENODEV, f"device {device.name}")
        return found

    def indevs(self) -> list[InDevice]:
        """All devices that are up, in the order in which they were added."""
        return [each for each in self._devices.values() if each.device.up]

    def by_index(self, ifindex: int) -> InDevice | None:
        return next(
            (each for each in self._devices.values() if each.device.ifindex == ifindex), None
        )

    def by_name(self, name: str) -> InDevice | None:
        return next((each for each in self._devices.values() if each.device.name == name), None)

    # -- addresses ---------------------------------------------------------------------------------

    def addr_add(self, device: Device, address: str) -> IfAddr:
        """Give a device an address, "10.0.0.2/24", and the route to its subnet.

        Raises:
            OSError: EEXIST, some device has it; EINVAL, no such address, or a group's; ENODEV.
        """
        packed, prefixlen = ip.parse_prefix(address)
        with self.stack.lock:
            indev = self.indev(device)
            added = self._addr_add(indev, packed, prefixlen)
            self.autoconf.start_dad(indev, added)
            return added

    def addr_del(self, device: Device, address: str) -> None:
        """Take an address from a device. Raises EADDRNOTAVAIL if it has it not, ENODEV, EINVAL."""
        packed, _ = ip.parse_prefix(address)
        with self.stack.lock:
            indev = self.indev(device)
            found = indev.find(packed)
            if found is None:
                raise os_error(errno.EADDRNOTAVAIL, f"{address} of {device.name}")
            self._addr_del(indev, found)

    def _addr_add(
        self, indev: InDevice, packed: bytes, prefixlen: int, *, protocol: str = "static"
    ) -> IfAddr:
        if ip.is_multicast(packed) or ip.is_any(packed):
            raise os_error(errno.EINVAL, f"{ip.text(packed)} is no address of a host")
        if any(each.find(packed) for each in self._devices.values() if _clash(each, indev, packed)):
            raise os_error(errno.EEXIST, f"{ip.text(packed)}: a device of the Stack has it already")
        added = IfAddr(packed, prefixlen, _broadcast(packed, prefixlen), protocol=protocol)
        indev.addresses.append(added)
        indev.join_solicited(packed)
        self.addr_up(indev, added)
        if prefixlen < 8 * len(packed):
            route = Route(ip.masked(packed, prefixlen), prefixlen, b"", indev.device)
            route.protocol = "kernel"
            if len(packed) == 4:
                route.src = packed
            if not any(_same_route(each, route) for each in self._table(packed)):
                self._table(packed).insert(route)
        return added

    def addr_up(self, indev: InDevice, added: IfAddr) -> None:
        """An address may be used from now on."""
        self._local.setdefault(added.address, indev)
        if added.broadcast:
            self.broadcasts.setdefault(added.broadcast, indev)
        self.bump_genid()

    def addr_down(self, added: IfAddr) -> None:
        """An address may not be used now."""
        self._local.pop(added.address, None)
        self._broadcasts_again()
        self.bump_genid()

    def _addr_del(self, indev: InDevice, gone: IfAddr) -> None:
        if gone.timer is not None:
            gone.timer.delete()
        indev.addresses.remove(gone)
        indev.leave_solicited(gone.address)
        others = [each for each in indev.addresses if len(each.address) == len(gone.address)]
        table = self._table(gone.address)
        for route in [route for route in table if route.device is indev.device]:
            subnet = (route.prefix, route.prefixlen) == (gone.network, gone.prefixlen)
            kept = [each for each in others if each.network == gone.network]
            if route.src == gone.address or (
                subnet and route.protocol in ("kernel", "ra") and not kept
            ):
                table.remove(route)
                if subnet and kept:
                    route.src = kept[0].address if len(gone.address) == 4 else b""
                    table.insert(route)
        self.addr_down(gone)
        for each in self._devices.values():  # the same link-local address on another link
            if each.has(gone.address):
                self._local.setdefault(gone.address, each)

    def _broadcasts_again(self) -> None:
        self.broadcasts.clear()
        for indev in self._devices.values():
            for each in indev.addresses:
                if each.broadcast and each.usable:
                    self.broadcasts.setdefault(each.broadcast, indev)

    def is_local(self, address: bytes) -> bool:
        """Whether packets to it are for this host."""
        return address in self._local or (len(address) == 4 and address[0] == 127)

    def device_with(self, address: bytes) -> InDevice | None:
        """The device that has an address."""
        return self._local.get(address)

    def addresses(self) -> list[tuple[Device, IfAddr]]:
        """Every address with its device."""
        with self.stack.lock:
            return [
                (indev.device, each) for indev in self._devices.values() for each in indev.addresses
            ]

    def join_group(self, group: bytes, device: Device) -> None:
        """Receive what is sent to a multicast group. Raises EINVAL if it is none, ENODEV.

        Nothing is reported to routers (IGMP, MLD): on a link that floods groups, as TAP and most
        switches do, that isn't needed.
        """
        if not ip.is_multicast(group):
            raise os_error(errno.EINVAL, f"{ip.text(group)} is no group")
        with self.stack.lock:
            self.indev(device).join(group)

    def leave_group(self, group: bytes, device: Device) -> None:
        """Raises EADDRNOTAVAIL if it was not joined, ENODEV."""
        with self.stack.lock:
            if not self.indev(device).leave(group):
                raise os_error(errno.EADDRNOTAVAIL, ip.text(group))

    # -- routes ------------------------------------------------------------------------------------

    def route_add(
        self,
        prefix: str,
        via: str | None = None,
        device: Device | None = None,
        src: str | None = None,
        metric: int = 0,
        mtu: int = 0,
        type: int = RTN_UNICAST,
        protocol: str = "boot",
    ) -> Route:
        """Add a route, as `ip route add`.

        Args:
            prefix: "10.1.0.0/16", or "default" (IPv4), "default6" or "::/0".
            via: the gateway; it must be on a link (or be link-local, with `device`).
            type: RTN_*; one that leads nowhere (unreachable, blackhole, prohibit) has no device.

        Raises:
            OSError: EEXIST; EINVAL, no such thing; ENETUNREACH, nobody knows the gateway; ENODEV.
        """
        network, prefixlen = ip.parse_prefix(prefix)
        if ip.masked(network, prefixlen) != network:
            raise os_error(errno.EINVAL, f"{prefix} has bits behind its length")
        gateway = b"" if via is None else ip.parse(via)
        source = b"" if src is None else ip.parse(src)
        if any(len(each) != len(network) for each in (gateway, source) if each):
            raise os_error(errno.EINVAL, f"{via or src} is of another version than {prefix}")
        with self.stack.lock:
            if type == RTN_UNICAST:
                device = self._route_device(gateway, device)
            if source and not self.is_local(source):
                raise os_error(errno.EINVAL, f"{src} is no address of this host")
            route = Route(network, prefixlen, gateway, device, source, metric, mtu, type, protocol)
            self._table(network).insert(route)
            self.bump_genid()
            return route

    def _route_device(self, gateway: bytes, device: Device | None) -> Device:
        if device is not None:
            return self.indev(device).device
        if not gateway:
            raise os_error(errno.EINVAL, "a route needs a gateway or a device")
        through = self._table(gateway).lookup(gateway)
        if through is None or through.device is None or through.gateway:
            raise os_error(errno.ENETUNREACH, f"gateway {ip.text(gateway)}")
        return through.device

    def route_del(
        self,
        prefix: str,
        via: str | None = None,
        device: Device | None = None,
        metric: int | None = None,
    ) -> None:
        """Remove the first route that is as described. Raises ESRCH if there is none."""
        network, prefixlen = ip.parse_prefix(prefix)
        gateway = None if via is None else ip.parse(via)
        with self.stack.lock:
            for route in self._table(network):
                if (
                    (route.prefix, route.prefixlen) == (network, prefixlen)
                    and gateway in (None, route.gateway)
                    and (device is None or route.device is device)
                    and metric in (None, route.metric)
                ):
                    self.route_remove(route)
                    return
        raise os_error(errno.ESRCH, prefix)

    def route_remove(self, route: Route) -> None:
        """Remove that very route."""
        self._table(route.prefix).remove(route)
        self.bump_genid()

    def routes(self) -> list[Route]:
        """All routes but those to this host's own addresses."""
        with self.stack.lock:
            return [*self.fib4, *self.fib6]

    def _table(self, address: bytes) -> FibTable:
        return self.fib4 if len(address) == 4 else self.fib6

    def bump_genid(self) -> None:
        """Routes or addresses changed: nothing that was found out before holds."""
        self.genid += 1
        self._dsts.clear()
        for indev in self._devices.values():
            indev.flows.clear()

    def route_output(
        self, daddr: bytes, saddr: bytes = b"", oif: int = 0, *, any_source: bool = False
    ) -> Dst:
        """The way to an address.

        Args:
            daddr: packed; all zeros is this host.
            saddr: source address, b"": choose one.
            oif: index of the device that must be used; needed for link-local addresses.
            any_source: `saddr` need not be an address of this host (IP_FREEBIND, IP_HDRINCL).

        Raises:
            OSError: ENETUNREACH, no route; EHOSTUNREACH, EACCES, EINVAL, a route that says so;
                EADDRNOTAVAIL, no address to send from; EINVAL, `saddr` is not ours, or a
                link-local address without `oif`; ENODEV, ENETDOWN, of `oif`.
        """
        key = (daddr, saddr, oif)
        dst = self._dsts.get(key)
        if dst is None or any_source:
            dst = route_output(self, daddr, saddr, oif, any_source=any_source)
            if not any_source:
                if len(self._dsts) >= _DSTS:
                    self._dsts.clear()
                self._dsts[key] = dst
        return dst

    def hop_limit(self, device: Device) -> int:
        """The hop limit of packets that leave by a device."""
        indev = self._devices.get(device)
        return (indev.hop_limit if indev is not None else 0) or self.ctl.hop_limit[0]

    # -- neighbours --------------------------------------------------------------------------------

    def neighbour_of(self, dst: Dst) -> Neighbour | None:
        """Whom a Dst's packets go to on its link; None on a link without addresses."""
        device = dst.device
        indev = self._devices.get(device)
        if indev is None or not indev.is_ethernet:
            return None
        table = self.arp if dst.family == 4 else self.nd
        if dst.type in (RTN_MULTICAST, RTN_BROADCAST):
            lladdr = BROADCAST
            if dst.type == RTN_MULTICAST:
                lladdr = multicast_v4(dst.daddr) if dst.family == 4 else multicast_v6(dst.daddr)
            neigh = Neighbour(table, dst.daddr, device)
            neigh.update(lladdr, NUD_NOARP)
            return neigh
        return table.lookup(dst.gateway or dst.daddr, device)

    def neigh_add(self, device: Device, address: str, lladdr: bytes) -> None:
        """Set a neighbour for good (`ip neigh add ... nud permanent`). Raises EINVAL, ENODEV."""
        packed = ip.parse(address)
        if len(lladdr) != ADDRESS_LEN:
            raise os_error(errno.EINVAL, f"link-layer address of {len(lladdr)} octets")
        with self.stack.lock:
            table = self.arp if len(packed) == 4 else self.nd
            table.lookup(packed, self.indev(device).device).update(lladdr, NUD_PERMANENT)

    def neigh_del(self, device: Device, address: str) -> None:
        """Forget a neighbour. Raises ENOENT."""
        packed = ip.parse(address)
        with self.stack.lock:
            table = self.arp if len(packed) == 4 else self.nd
            if not table.delete(packed, device):
                raise os_error(errno.ENOENT, address)
            self.bump_genid()

    def neighbours(self) -> list[tuple[Device, bytes, bytes, str]]:
        """Device, address, link-layer address and state, by name, of every neighbour."""
        with self.stack.lock:
            return [
                (each.device, each.address, each.lladdr, STATE_NAMES[each.state])
                for table in (self.arp, self.nd)
                for each in table
            ]

    def try_output(self, neigh: Neighbour, packet: bytes) -> None:
        """Send a packet that waited for its neighbour; what the device refuses is lost."""
        prefix = "Ip" if len(neigh.address) == 4 else "Ip6"
        try:
            neigh.output([packet], None)
        except OSError:
            self.mib[f"{prefix}OutDiscards"] += 1

    def link_failure(self, packet: bytes, device: Device) -> None:
        """A packet of this host did not find its next hop: tell whoever sent it (by ICMP)."""
        if packet[0] >> 4 == 4:
            self.icmp.link_failure(packet, device)
        else:
            self.icmp6.link_failure(packet, device)

    # -- transport protocols -----------------------------------------------------------------------

    def inet_add_protocol(
        self,
        protocol: int,
        handler: Callable[[Packet], None],
        err_handler: Callable[[IcmpError], None] | None = None,
        complete: Callable[[InetNet], None] | None = None,
        families: tuple[int, ...] = (4, 6),
    ) -> None:
        """Have a transport protocol receive (inet_add_protocol, inet6_add_protocol).

        Args:
            handler: called with each packet.
            err_handler: called with each ICMP error about a packet of the protocol.
            complete: called when a device's turn is over, the frames of which have been handled.

        Raises:
            OSError: EEXIST, that number is taken.
        """
        with self.stack.lock:
            tables = [self.l4 if family == 4 else self.l4v6 for family in families]
            if any(protocol in table for table in tables):
                raise os_error(errno.EEXIST, f"protocol {protocol}")
            for table in tables:
                table[protocol] = L4Protocol(handler, err_handler, complete)
            if complete is not None:
                self._completes = (*self._completes, complete)

    def inet_del_protocol(self, protocol: int) -> None:
        """Receive no more. Raises ENOENT."""
        with self.stack.lock:
            gone = [table.pop(protocol) for table in (self.l4, self.l4v6) if protocol in table]
            if not gone:
                raise os_error(errno.ENOENT, f"protocol {protocol}")
            done = {id(each.complete) for each in gone}
            self._completes = tuple(each for each in self._completes if id(each) not in done)

    def _complete(self) -> None:
        """A device's turn is over (napi_complete)."""
        for complete in self._completes:
            complete(self)

    # -- ICMP --------------------------------------------------------------------------------------

    def icmp_send(self, packet: Packet, type: int, code: int, info: int = 0) -> None:
        """Report an error about a received packet to its sender, as far as one may.

        Args:
            type, code: of ICMP for an IPv4 packet, of ICMPv6 for an IPv6 packet.
            info: the second word of the message: an MTU, a pointer (of ICMP << 24).
        """
        if packet.family == 4:
            self.icmp.send(packet, type, code, info)
        else:
            self.icmp6.send(packet, type, code, info)

    def icmp_port_unreachable(self, packet: Packet) -> None:
        """Nobody has the port that a packet was for."""
        if packet.family == 4:
            self.icmp.send(packet, 3, 3)
        else:
            self.icmp6.send(packet, 1, 4)

    def close(self) -> None:
        """Take everything out again: devices, timers, parameters."""
        with self.stack.lock:
            for device in list(self._devices):
                self.del_device(device)
            self.lo.close()
            self.defrag.clear()
            self.pmtu.clear()
            self.ctl.unregister(self.stack)
            self.stack.generic.pop(_NAME, None)


def _clash(other: InDevice, indev: InDevice, packed: bytes) -> bool:
    """Whether an address of one device may not be another's too."""
    return other is indev or not ip.is_link_local(packed)


def _broadcast(packed: bytes, prefixlen: int) -> bytes:
    """The address of all on an IPv4 subnet; b"" where there are no such."""
    if len(packed) != 4 or prefixlen > 30 or ip.is_loopback(packed):
        return b""
    return (int.from_bytes(packed, "big") | (1 << 32 - prefixlen) - 1).to_bytes(4, "big")


def _same_route(one: Route, other: Route) -> bool:
    return (one.prefix, one.prefixlen, one.device, one.gateway) == (
        other.prefix,
        other.prefixlen,
        other.device,
        other.gateway,
    )


def init_net(stack: Stack, secret: bytes | None = None) -> InetNet:
    """Give a Stack its network layer, with parameters and the device "lo".

    Args:
        secret: see `InetNet`; None: random octets.

    Raises:
        OSError: EEXIST, it has one.
    """
    with stack.lock:
        if _NAME in stack.generic:
            raise os_error(errno.EEXIST, "the network layer")
        net = InetNet(stack, secret)
        net.ctl.register(stack)
        stack.generic[_NAME] = net
        net.icmp.register()
        net.icmp6.register()
        net.add_device(net.lo, ("127.0.0.1/8", "::1/128"))
    return net


def inet_net(stack: Stack) -> InetNet:
    """The network layer of a Stack. Raises ENETDOWN if it has none: register the family."""
    net = stack.generic.get(_NAME)
    if not isinstance(net, InetNet):
        raise os_error(errno.ENETDOWN, "AF_INET_NEW_TCP is not registered with this Stack")
    return net
