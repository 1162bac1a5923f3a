"""Finding the way out (ip_route_output_key, ip6_route_output)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from steertag.errors import os_error
from steertag.inet.ip import addr as ip
from steertag.inet.ip.dst import Dst, Dst4, Dst6
from steertag.inet.ip.route import (
    ROUTE_ERRORS,
    RTN_BROADCAST,
    RTN_LOCAL,
    RTN_MULTICAST,
    RTN_UNICAST,
    Route,
)
from steertag.inet.ip.saddr import select_v4, select_v6

if TYPE_CHECKING:
    from steertag.device.base import Device
    from steertag.inet.ip.devinet import InDevice
    from steertag.inet.ip.net import InetNet

_MAX_MTU4 = 0xFFFF
_MAX_MTU6 = 0xFFFF + 40


def route_output(
    net: InetNet, daddr: bytes, saddr: bytes, oif: int, *, any_source: bool = False
) -> Dst:
    """`InetNet.route_output`, without its memory."""
    if not daddr:
        daddr = ip.ANY6 if len(saddr) == 16 else ip.ANY4
    octets = len(daddr)
    if octets not in (4, 16) or (saddr and len(saddr) != octets):
        raise os_error(errno.EINVAL, f"{saddr.hex()} to {daddr.hex()}")
    if saddr and ip.is_any(saddr):
        saddr = b""
    out = net.by_index(oif) if oif else None
    if oif and (out is None or not out.device.up):
        raise os_error(errno.ENODEV if out is None else errno.ENETDOWN, f"device {oif}")
    if saddr and not any_source and (ip.is_multicast(saddr) or not net.is_local(saddr)):
        raise os_error(errno.EINVAL, f"{ip.text(saddr)} is no address of this host")
    if octets == 4:
        return _output4(net, daddr, saddr, out)
    return _output6(net, daddr, saddr, out)


def _output4(net: InetNet, daddr: bytes, saddr: bytes, out: InDevice | None) -> Dst:
    if daddr == ip.ANY4:  # 0.0.0.0 is this host
        daddr = saddr or ip.LOOPBACK4
        out = None
    if net.is_local(daddr):
        source = saddr or (ip.LOOPBACK4 if ip.is_loopback(daddr) else daddr)
        return _local(net, Dst4, source, daddr, _MAX_MTU4)
    kind = RTN_UNICAST
    if ip.is_multicast(daddr):
        kind = RTN_MULTICAST
    elif daddr == ip.BROADCAST4 or daddr in net.broadcasts:
        kind = RTN_BROADCAST
    if out is None and kind != RTN_UNICAST and saddr:
        out = net.device_with(saddr)  # of such packets the source says where they go
    if out is None and kind == RTN_BROADCAST and daddr != ip.BROADCAST4:
        out = net.broadcasts[daddr]
    route = net.fib4.lookup(daddr, out.device if out is not None else None)
    device, route = _device_of(net, route, out, "Ip")
    indev = net.indev(device)
    gateway = b"" if route is None or kind != RTN_UNICAST else route.gateway
    source = saddr or (route.src if route is not None else b"")
    source = source or select_v4(net.indevs(), indev, gateway or daddr)
    if not source:
        raise os_error(errno.EADDRNOTAVAIL, f"no address to send from to {ip.text(daddr)}")
    mtu = min(_MAX_MTU4, (route.mtu if route is not None else 0) or device.mtu)
    dst = Dst4(
        net,
        source,
        daddr,
        device,
        gateway=gateway,
        mtu=mtu,
        type=kind,
        oif=device.ifindex if out is not None else 0,
    )
    return _with_pmtu(net, dst)


def _output6(net: InetNet, daddr: bytes, saddr: bytes, out: InDevice | None) -> Dst:
    if daddr == ip.ANY6:
        daddr = saddr or ip.LOOPBACK6
    if net.is_local(daddr):
        return _local(net, Dst6, saddr or daddr, daddr, _MAX_MTU6)
    kind = RTN_MULTICAST if ip.is_multicast(daddr) else RTN_UNICAST
    if ip.is_link_local(daddr) and out is None:
        out = net.device_with(saddr) if saddr and ip.is_link_local(saddr) else None
        if out is None:
            raise os_error(errno.EINVAL, f"{ip.text(daddr)} needs a scope: which link?")
    if kind == RTN_MULTICAST and out is None and saddr:
        out = net.device_with(saddr)
    route = net.fib6.lookup(daddr, out.device if out is not None else None)
    device, route = _device_of(net, route, out, "Ip6", narrow=ip.is_link_local(daddr))
    indev = net.indev(device)
    gateway = b"" if route is None or kind != RTN_UNICAST else route.gateway
    source = saddr or (route.src if route is not None else b"")
    source = source or select_v6(net.indevs(), indev, daddr)
    if not source:
        raise os_error(errno.EADDRNOTAVAIL, f"no address to send from to {ip.text(daddr)}")
    mtu = min(_MAX_MTU6, (route.mtu if route is not None else 0) or indev.mtu6 or device.mtu)
    dst = Dst6(
        net,
        source,
        daddr,
        device,
        gateway=gateway,
        mtu=mtu,
        type=kind,
        oif=device.ifindex if out is not None else 0,
    )
    return _with_pmtu(net, dst)


def _local(net: InetNet, make: type[Dst], saddr: bytes, daddr: bytes, most: int) -> Dst:
    device = net.lo
    return make(net, saddr, daddr, device, mtu=min(most, device.mtu), local=True, type=RTN_LOCAL)


def _device_of(
    net: InetNet, route: Route | None, out: InDevice | None, group: str, *, narrow: bool = True
) -> tuple[Device, Route | None]:
    """Where a route leads; without one, to the device that was asked for: all of it is on link."""
    if route is None:
        if out is not None and (group == "Ip" or narrow):
            return out.device, None
        net.mib[f"{group}OutNoRoutes"] += 1
        raise os_error(errno.ENETUNREACH)
    if route.device is None:
        net.mib[f"{group}OutNoRoutes"] += 1
        raise os_error(ROUTE_ERRORS[route.type], str(route))
    return route.device, route


def _with_pmtu(net: InetNet, dst: Dst) -> Dst:
    known = net.pmtu.lookup(dst.daddr)
    if known is not None and known[0] < dst.mtu:
        dst.mtu, dst.mtu_locked = known
    return dst
