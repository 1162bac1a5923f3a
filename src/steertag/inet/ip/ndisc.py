"""Neighbor Discovery for IPv6 (net/ipv6/ndisc.c; RFC 4861).

Router solicitations, redirects and multicast listener queries are counted and passed over: a host
that does not forward has no answer to the first, and takes no route from strangers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.device.offload import dev_queue_xmit
from steertag.errors import WireError
from steertag.family.skbuff import Buffer
from steertag.inet.ip import addr as ip
from steertag.inet.ip.neigh import NUD_REACHABLE, NUD_STALE, NUD_VALID, Neighbour, NeighTable
from steertag.wire import icmpv6
from steertag.wire.ethernet import ADDRESS_LEN, ETH_P_IPV6, Ethernet, multicast_v6
from steertag.wire.icmpv6 import NA_OVERRIDE, NA_ROUTER, NA_SOLICITED, Icmpv6
from steertag.wire.ipv6 import Ipv6

if TYPE_CHECKING:
    from steertag.inet.ip.devinet import IfAddr, InDevice
    from steertag.inet.ip.packet import Packet

_HOPS: Final = 255
_TARGET_END: Final = icmpv6.HEADER_LEN + 16


class NdTable(NeighTable):
    """IPv6's neighbours."""

    # -- out ---------------------------------------------------------------------------------------

    def solicit(self, neigh: Neighbour, lladdr: bytes) -> None:
        """ndisc_solicit: to the group of the address, or to the one that is known."""
        indev = self.net.indev(neigh.device)
        target = neigh.address
        own = indev.of_family(16)
        saddr = indev.link_local() or (own[0].address if own else b"")
        for each in own:
            if ip.masked(target, each.prefixlen) == each.network:
                saddr = each.address
                break
        if not saddr:
            return  # nobody could answer
        daddr = target if lladdr else ip.solicited_node(target)
        self._solicit(indev, saddr, daddr, target, lladdr)

    def probe(self, indev: InDevice, added: IfAddr) -> None:
        """Ask whether somebody has an address already (RFC 4862 section 5.4.2)."""
        self._solicit(indev, ip.ANY6, ip.solicited_node(added.address), added.address, b"")

    def _solicit(
        self, indev: InDevice, saddr: bytes, daddr: bytes, target: bytes, lladdr: bytes
    ) -> None:
        body = target
        if saddr != ip.ANY6:
            body += icmpv6.link_address_option(icmpv6.OPT_SOURCE_LL, indev.device.dev_addr)
        message = Icmpv6(icmpv6.NEIGHBOR_SOLICIT)
        self._send(indev, saddr, daddr, lladdr or multicast_v6(daddr), message, body)

    def advertise(
        self, indev: InDevice, saddr: bytes, daddr: bytes, lladdr: bytes, flags: int
    ) -> None:
        """Tell who has `saddr` (ndisc_send_na)."""
        option = icmpv6.link_address_option(icmpv6.OPT_TARGET_LL, indev.device.dev_addr)
        message = Icmpv6(icmpv6.NEIGHBOR_ADVERT, 0, flags)
        self._send(indev, saddr, daddr, lladdr or multicast_v6(daddr), message, saddr + option)

    def _send(
        self,
        indev: InDevice,
        saddr: bytes,
        daddr: bytes,
        lladdr: bytes,
        message: Icmpv6,
        body: bytes,
    ) -> None:
        octets = message.emit(saddr, daddr, body) + body
        header = Ipv6(saddr, daddr, 58, _HOPS).emit(len(octets))
        device, mib = indev.device, self.net.mib
        frame: list[Buffer] = [header, octets]
        if indev.is_ethernet:
            frame.insert(0, Ethernet(lladdr, device.dev_addr, ETH_P_IPV6).emit())
        mib["Ip6OutRequests"] += 1
        try:
            dev_queue_xmit(device, frame)
        except OSError:
            mib["Ip6OutDiscards"] += 1
            return  # a question that got lost: it is asked again
        mib["Ip6OutTransmits"] += 1
        mib["Ip6OutOctets"] += len(header) + len(octets)
        self.net.icmp6.count_out(message.type)

    # -- in ----------------------------------------------------------------------------------------

    def receive(self, packet: Packet, message: Icmpv6) -> None:
        """ndisc_rcv. What is not as RFC 4861 sections 6.1 and 7.1 have it is passed over."""
        if packet.ttl != _HOPS or message.code or packet.reassembled:
            return  # it was not sent on this link, or by somebody who does not follow the rules
        indev = self.net.indev(packet.device)
        if message.type == icmpv6.ROUTER_ADVERT:
            self.net.autoconf.router_advert(indev, packet)
            return
        if len(packet.data) < _TARGET_END:
            return
        target = bytes(packet.data[icmpv6.HEADER_LEN : _TARGET_END])
        try:
            options = dict(icmpv6.parse_nd_options_untrusted(packet.data[_TARGET_END:]))
        except WireError:
            return
        if ip.is_multicast(target):
            return
        if message.type == icmpv6.NEIGHBOR_SOLICIT:
            self._solicited(indev, packet, target, options.get(icmpv6.OPT_SOURCE_LL))
        else:
            self._advertised(indev, packet, message.rest, target, options.get(icmpv6.OPT_TARGET_LL))

    def _solicited(
        self, indev: InDevice, packet: Packet, target: bytes, lladdr: bytes | None
    ) -> None:
        """ndisc_recv_ns."""
        saddr = packet.saddr
        probe = saddr == ip.ANY6
        if probe and (lladdr is not None or packet.daddr != ip.solicited_node(target)):
            return
        if lladdr is not None and (len(lladdr) != ADDRESS_LEN or lladdr[0] & 1):
            return
        mine = indev.find(target)
        if mine is None or mine.dadfailed:
            return
        if mine.tentative:
            if probe:
                self.net.autoconf.duplicate(indev, mine)
            return
        if probe:
            self.advertise(indev, target, ip.ALL_NODES, b"", NA_OVERRIDE)
            return
        if not indev.is_ethernet:
            return
        neigh = self.lookup(saddr, indev.device)
        if lladdr is not None:
            neigh.update(lladdr, NUD_STALE)
        to = lladdr or neigh.lladdr
        if to:
            self.advertise(indev, target, saddr, to, NA_SOLICITED | NA_OVERRIDE)

    def _advertised(
        self, indev: InDevice, packet: Packet, flags: int, target: bytes, lladdr: bytes | None
    ) -> None:
        """ndisc_recv_na; RFC 4861 section 7.2.5."""
        solicited = bool(flags & NA_SOLICITED)
        if solicited and ip.is_multicast(packet.daddr):
            return
        if lladdr is not None and (len(lladdr) != ADDRESS_LEN or lladdr[0] & 1):
            return
        mine = indev.find(target)
        if mine is not None:
            if mine.tentative:
                self.net.autoconf.duplicate(indev, mine)
            return
        neigh = self.find(target, indev.device)
        if neigh is None:
            return
        if lladdr is None and not neigh.state & NUD_VALID:
            return
        was_router = neigh.is_router
        state = NUD_REACHABLE if solicited else NUD_STALE
        neigh.update(lladdr or b"", state, override=bool(flags & NA_OVERRIDE))
        neigh.is_router = bool(flags & NA_ROUTER)
        if was_router and not neigh.is_router:
            self.net.autoconf.no_router(indev, target)
