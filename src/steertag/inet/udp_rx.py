"""UDP: receiving (net/ipv4/udp.c, __udp4_lib_rcv, udp_recvmsg, __udp4_lib_err)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from steertag.inet import const as c
from steertag.inet.datagram import Datagram, datagram_err, queue_datagram, recv_datagram
from steertag.inet.ip.net import InetNet, inet_net
from steertag.inet.ip.packet import PACKET_HOST, l4_checksum_ok
from steertag.inet.sockopt import CMSG_RXQ_OVFL
from steertag.inet.udp_table import UdpSock, UdpTable, udp_sk
from steertag.wire.udp import HEADER, HEADER_LEN

if TYPE_CHECKING:
    from steertag.family.msg import Ancillary, MsgHdr
    from steertag.family.sock import Sock
    from steertag.inet.ip.packet import IcmpError, Packet

_INT: Final = struct.Struct("=i")
_U32: Final = struct.Struct("=I")
_GROUP: Final = {4: "Udp", 6: "Udp6"}


class UdpReceiver:
    """What the network layer calls for protocol 17."""

    def __init__(self, net: InetNet, table: UdpTable) -> None:
        self._net = net
        self._table = table

    def rcv(self, packet: Packet) -> None:
        """One datagram, or several of a flow joined in a super-segment."""
        data = packet.data
        group = _GROUP[packet.family]
        if len(data) < HEADER_LEN:
            self._net.mib[group + "InErrors"] += 1
            return
        sport, dport, length, value = HEADER.unpack_from(data)
        if packet.gso_size or (not length and packet.family == 6):
            length = len(data)
        if not HEADER_LEN <= length <= len(data):
            self._net.mib[group + "InErrors"] += 1
            return
        if length < len(data):
            packet.data = data = data[:length]
        sums = self._checksum_ok(packet, value)
        if sums is False:
            self._net.mib[group + "InCsumErrors"] += 1
            self._net.mib[group + "InErrors"] += 1
            return
        if packet.pkt_type != PACKET_HOST:
            self._deliver_to_all(packet, sport, dport, sums is None)
            return
        sk = self._table.lookup(packet.saddr, sport, packet.daddr, dport, packet.device.ifindex)
        if sk is None:
            self._net.mib[group + "NoPorts"] += 1
            self._net.icmp_port_unreachable(packet)
            return
        if sums is None and not sk.no_check6_rx:
            self._net.mib[group + "InErrors"] += 1
            return
        self._queue(sk, packet, sport, dport)

    def _checksum_ok(self, packet: Packet, value: int) -> bool | None:
        """None: it has none over IPv6, which is the receiving sock's to allow (RFC 6935)."""
        if not value:
            return True if packet.family == 4 else None
        return l4_checksum_ok(packet)

    def _deliver_to_all(self, packet: Packet, sport: int, dport: int, unsummed: bool) -> None:
        """__udp4_lib_mcast_deliver; nobody is told when there is none."""
        ifindex = packet.device.ifindex
        found = False
        for sk in self._table.all_for(packet.saddr, sport, packet.daddr, dport, ifindex):
            found = True
            if not unsummed or sk.no_check6_rx:
                self._queue(sk, packet, sport, dport)
        if not found:
            self._net.mib[_GROUP[packet.family] + "IgnoredMulti"] += 1

    def _queue(self, sk: UdpSock, packet: Packet, sport: int, dport: int) -> None:
        payload = packet.data[HEADER_LEN:]
        size = packet.gso_size
        if not size or len(payload) <= size:
            self._queue_one(sk, packet, payload, sport, dport, 0)
        elif sk.gro:
            self._queue_one(sk, packet, payload, sport, dport, size)
        else:
            for at in range(0, len(payload), size):
                self._queue_one(sk, packet, payload[at : at + size], sport, dport, 0)

    def _queue_one(
        self, sk: UdpSock, packet: Packet, payload: memoryview, sport: int, dport: int, gso: int
    ) -> None:
        skb = Datagram(packet, payload, sport, dport)
        skb.gso_size = gso
        err = queue_datagram(sk, skb)
        if err:
            mib, group = self._net.mib, _GROUP[packet.family]
            mib[group + ("RcvbufErrors" if err == errno.ENOMEM else "MemErrors")] += 1
            mib[group + "InErrors"] += 1

    def err(self, error: IcmpError) -> None:
        """An ICMP error about a datagram of ours."""
        sport, dport = HEADER.unpack_from(error.data)[:2]
        sk = self._table.lookup(error.daddr, dport, error.saddr, sport, error.device.ifindex)
        if sk is None:
            self._net.mib["IcmpInErrors" if error.family == 4 else "Icmp6InErrors"] += 1
            return
        datagram_err(sk, error, dport, error.data[HEADER_LEN:])


def udp_recvmsg(sk: Sock, msg: MsgHdr, flags: int) -> int:
    """One datagram. Raises EAGAIN if none waits, or the pending error."""
    up = udp_sk(sk)
    count = recv_datagram(up, msg, flags, _own_cmsgs)
    if not flags & (c.MSG_PEEK | c.MSG_ERRQUEUE) and msg.msg_name is not None:
        group = "Udp" if len(msg.msg_name) == 2 else "Udp6"  # type: ignore[arg-type]
        inet_net(sk.sk_stack).mib[group + "InDatagrams"] += 1
    return count


def _own_cmsgs(skb: Datagram) -> list[Ancillary]:
    control: list[Ancillary] = []
    sk = skb.sk
    assert sk is not None  # it is in a receive queue
    if skb.gso_size:
        control.append((c.SOL_UDP, c.UDP_GRO, _INT.pack(skb.gso_size)))
    up = udp_sk(sk)
    if up.cmsg_flags & CMSG_RXQ_OVFL and skb.drops:
        control.append((c.SOL_SOCKET, c.SO_RXQ_OVFL, _U32.pack(skb.drops & 0xFFFFFFFF)))
    return control
