"""Frames come in here: to IPv4, IPv6 or ARP (netif_receive_skb, eth_type_trans)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from steertag.errors import WireError
from steertag.inet.ip.input4 import ip_receiver
from steertag.inet.ip.input6 import ipv6_receiver
from steertag.inet.ip.packet import PACKET_BROADCAST, PACKET_HOST, PACKET_MULTICAST
from steertag.wire.ethernet import BROADCAST, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, HEADER, HEADER_LEN

if TYPE_CHECKING:
    from steertag.device.base import Frame
    from steertag.inet.ip.devinet import InDevice
    from steertag.inet.ip.net import InetNet


def receiver(net: InetNet, indev: InDevice) -> Callable[[Frame], None]:
    """What a device's frames are handed to. It raises WireError for what is no packet at all."""
    ip_rcv, ipv6_rcv = ip_receiver(net, indev), ipv6_receiver(net, indev)

    def receive(frame: Frame) -> None:
        data = frame.data
        version = data[0] >> 4 if len(data) else 0
        if version == 4:
            ip_rcv(frame, data, PACKET_HOST)
        elif version == 6:
            ipv6_rcv(frame, data, PACKET_HOST)
        else:
            raise WireError(f"a packet of IP version {version}")

    def receive_ethernet(frame: Frame) -> None:
        data = frame.data
        if len(data) < HEADER_LEN:
            raise WireError(f"Ethernet frame of {len(data)} octets")
        dest, source, ethertype = HEADER.unpack_from(data)
        kind = PACKET_HOST
        if dest[0] & 1:
            kind = PACKET_BROADCAST if dest == BROADCAST else PACKET_MULTICAST
        elif dest != indev.device.dev_addr:
            return  # for another host, flooded to us
        if ethertype == ETH_P_IP:
            ip_rcv(frame, data[HEADER_LEN:], kind)
        elif ethertype == ETH_P_IPV6:
            ipv6_rcv(frame, data[HEADER_LEN:], kind)
        elif ethertype == ETH_P_ARP:
            net.arp.receive(data[HEADER_LEN:], indev, source)

    return receive_ethernet if indev.is_ethernet else receive
