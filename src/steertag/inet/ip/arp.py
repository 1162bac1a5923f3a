"""ARP (net/ipv4/arp.c; RFC 826, RFC 5227)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.device.offload import dev_queue_xmit
from steertag.errors import WireError
from steertag.inet.ip import addr as ip
from steertag.inet.ip.neigh import NUD_REACHABLE, NUD_STALE, NUD_VALID, Neighbour, NeighTable
from steertag.wire.arp import REPLY, REQUEST, Arp, parse_untrusted
from steertag.wire.ethernet import BROADCAST, ETH_P_ARP, Ethernet

if TYPE_CHECKING:
    from steertag.device.base import Device
    from steertag.inet.ip.devinet import InDevice


class ArpTable(NeighTable):
    """IPv4's neighbours."""

    def solicit(self, neigh: Neighbour, lladdr: bytes) -> None:
        """arp_solicit: a request to everybody, or to the one that is known."""
        device = neigh.device
        sender = self._source(neigh)
        request = Arp(REQUEST, device.dev_addr, sender, bytes(6), neigh.address)
        self._send(device, lladdr or BROADCAST, request)

    def _source(self, neigh: Neighbour) -> bytes:
        """The address to ask from: on the subnet that is asked about, if there is one."""
        own = self.net.indev(neigh.device).of_family(4)
        for each in own:
            if ip.masked(neigh.address, each.prefixlen) == each.network:
                return each.address
        return own[0].address if own else ip.ANY4

    def _send(self, device: Device, lladdr: bytes, packet: Arp) -> None:
        header = Ethernet(lladdr, device.dev_addr, ETH_P_ARP).emit()
        try:
            dev_queue_xmit(device, [header, packet.emit()])
        except OSError:
            return  # a question that got lost: it is asked again

    def receive(self, data: memoryview, indev: InDevice, source: bytes) -> None:
        """arp_process. Raises WireError for what is no ARP packet."""
        packet = parse_untrusted(data)
        if packet.sha[0] & 1 or packet.sha == bytes(6):
            raise WireError("ARP from a group's address")
        if ip.is_multicast(packet.tpa) or ip.is_loopback(packet.tpa):
            return
        for_us = self.net.is_local(packet.tpa)
        if packet.spa == ip.ANY4:  # a probe for an address conflict (RFC 5227)
            if packet.operation == REQUEST and for_us and indev.has(packet.tpa):
                self._reply(indev, packet)
            return
        if self.net.is_local(packet.spa) or not _unicast(packet.spa):
            return  # somebody says to be this host: not believed
        if packet.operation == REQUEST and for_us:
            self.lookup(packet.spa, indev.device).update(packet.sha, NUD_STALE)
            self._reply(indev, packet)
            return
        neigh = self.find(packet.spa, indev.device)
        if neigh is None:
            return
        # What is said to all, or unasked, is taken to be less certain.
        asked = packet.operation == REPLY and packet.tpa != packet.spa and for_us
        state = NUD_REACHABLE if asked else NUD_STALE
        locked = neigh.state & NUD_VALID and self.net.stack.clock() - neigh.updated < 1.0
        neigh.update(packet.sha, state, override=not locked)

    def _reply(self, indev: InDevice, packet: Arp) -> None:
        device = indev.device
        answer = Arp(REPLY, device.dev_addr, packet.tpa, packet.sha, packet.spa)
        self._send(device, packet.sha, answer)


def _unicast(address: bytes) -> bool:
    return address[0] not in (0, 127) and address[0] < 224
