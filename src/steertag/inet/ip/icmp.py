"""ICMP (net/ipv4/icmp.c; RFC 792, RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.8)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.device.base import CHECKSUM_NONE
from steertag.errors import WireError
from steertag.family.skbuff import Buffer
from steertag.inet.ip import addr as ip
from steertag.inet.ip.packet import PACKET_HOST, IcmpError, Packet
from steertag.inet.ip.ratelimit import PeerLimit, TokenBucket
from steertag.wire import icmp
from steertag.wire.checksum import partial
from steertag.wire.ipv4 import HEADER, HEADER_LEN, OFFSET_MASK

if TYPE_CHECKING:
    from steertag.device.base import Device
    from steertag.inet.ip.net import InetNet

PROTOCOL: Final = 1
_MAX_ERROR: Final = 576
"""Octets of an error message, headers included (RFC 1812 section 4.3.2.3)."""

# net/ipv4/icmp.c: icmp_err_convert: errno, fatal; by code of Destination Unreachable.
ERR_CONVERT: Final = (
    (errno.ENETUNREACH, False),  # network unreachable
    (errno.EHOSTUNREACH, False),  # host unreachable
    (errno.ENOPROTOOPT, True),  # protocol unreachable
    (errno.ECONNREFUSED, True),  # port unreachable
    (errno.EMSGSIZE, False),  # fragmentation needed
    (errno.EOPNOTSUPP, False),  # source route failed
    (errno.ENETUNREACH, True),  # network unknown
    (errno.EHOSTDOWN, True),  # host unknown
    (errno.ENONET, True),  # host isolated
    (errno.ENETUNREACH, True),  # network prohibited
    (errno.EHOSTUNREACH, True),  # host prohibited
    (errno.ENETUNREACH, False),  # network unreachable for this service
    (errno.EHOSTUNREACH, False),  # host unreachable for this service
    (errno.EHOSTUNREACH, True),  # filtered
    (errno.EHOSTUNREACH, True),  # precedence violation
    (errno.EHOSTUNREACH, True),  # precedence cut-off
)

_IN_COUNTERS: Final = {
    icmp.ECHOREPLY: "EchoReps",
    icmp.DEST_UNREACH: "DestUnreachs",
    icmp.SOURCE_QUENCH: "SrcQuenchs",
    icmp.REDIRECT: "Redirects",
    icmp.ECHO: "Echos",
    icmp.TIME_EXCEEDED: "TimeExcds",
    icmp.PARAMETERPROB: "ParmProbs",
    icmp.TIMESTAMP: "Timestamps",
    icmp.TIMESTAMPREPLY: "TimestampReps",
    icmp.ADDRESS: "AddrMasks",
    icmp.ADDRESSREPLY: "AddrMaskReps",
}
_TO_GROUPS: Final = frozenset({icmp.ECHO, icmp.TIMESTAMP, icmp.ADDRESS, icmp.ADDRESSREPLY})
_REPORTS: Final = frozenset({icmp.DEST_UNREACH, icmp.TIME_EXCEEDED, icmp.PARAMETERPROB})
_PREC_INTERNETCONTROL: Final = 0xC0
_TOS_MASK: Final = 0x1E
_NONSTANDARD_TIME: Final = 1 << 31
"""Of a timestamp: not milliseconds since midnight UT, which a Stack's clock can't tell."""


def err_convert(kind: int, code: int) -> tuple[int, bool]:
    """The errno of an ICMP error, and whether it is a hard one; 0: the user is not told."""
    if kind == icmp.DEST_UNREACH:
        return ERR_CONVERT[code] if code < len(ERR_CONVERT) else (errno.EHOSTUNREACH, True)
    if kind == icmp.TIME_EXCEEDED:
        return errno.EHOSTUNREACH, False
    if kind == icmp.PARAMETERPROB:
        return errno.EPROTO, True
    return 0, False


class Icmp4:
    """ICMP of one Stack."""

    def __init__(self, net: InetNet) -> None:
        self._net = net
        clock, ctl = net.stack.clock, net.ctl
        self._global = TokenBucket(clock, ctl.msgs_per_sec, ctl.msgs_burst)
        self._peers = PeerLimit(clock)

    def register(self) -> None:
        self._net.inet_add_protocol(PROTOCOL, self.receive, families=(4,))

    # -- in ----------------------------------------------------------------------------------------

    def receive(self, packet: Packet) -> None:
        """icmp_rcv."""
        mib = self._net.mib
        mib["IcmpInMsgs"] += 1
        if not _checksum_ok(packet):
            mib["IcmpInCsumErrors"] += 1
            mib["IcmpInErrors"] += 1
            return
        try:
            message = icmp.parse_untrusted(packet.data)
        except WireError:
            mib["IcmpInErrors"] += 1
            return
        kind = message.type
        name = _IN_COUNTERS.get(kind)
        if name is None:
            if kind > icmp.NR_TYPES:
                mib["IcmpInErrors"] += 1
            return
        mib["IcmpIn" + name] += 1
        if packet.pkt_type != PACKET_HOST and not self._group_ok(kind):
            mib["IcmpInErrors"] += kind not in _TO_GROUPS
            return
        if kind == icmp.ECHO:
            self._echo(packet, message)
        elif kind == icmp.TIMESTAMP:
            self._timestamp(packet, message)
        elif kind in _REPORTS:
            self._report(packet, message)

    def _group_ok(self, kind: int) -> bool:
        """Whether that may be sent to all (RFC 1122 section 3.2.2.6, 3.2.2.8)."""
        if kind in (icmp.ECHO, icmp.TIMESTAMP):
            return not self._net.ctl.echo_ignore_broadcasts[0]
        return kind in _TO_GROUPS

    def _echo(self, packet: Packet, message: icmp.Icmp) -> None:
        if not self._net.ctl.echo_ignore_all[0]:
            data = packet.data[icmp.HEADER_LEN :]
            self._reply(packet, icmp.Icmp(icmp.ECHOREPLY, 0, message.rest), data)

    def _timestamp(self, packet: Packet, message: icmp.Icmp) -> None:
        if len(packet.data) < icmp.HEADER_LEN + 4:
            self._net.mib["IcmpInErrors"] += 1
            return
        now = int(self._net.stack.clock() * 1000) % 86_400_000 | _NONSTANDARD_TIME
        octets = now.to_bytes(4, "big")
        data = bytes(packet.data[icmp.HEADER_LEN : icmp.HEADER_LEN + 4]) + octets + octets
        self._reply(packet, icmp.Icmp(icmp.TIMESTAMPREPLY, 0, message.rest), data)

    def _report(self, packet: Packet, message: icmp.Icmp) -> None:
        """icmp_unreach, icmp_socket_deliver: an error about a packet that was sent from here."""
        net = self._net
        quoted = packet.data[icmp.HEADER_LEN :]
        if len(quoted) < HEADER_LEN:
            net.mib["IcmpInErrors"] += 1
            return
        fields = HEADER.unpack_from(quoted)
        header = (fields[0] & 0x0F) << 2
        if header < HEADER_LEN or len(quoted) < header + 8 or not net.is_local(fields[8]):
            net.mib["IcmpInErrors"] += 1
            return
        if message.type == icmp.TIME_EXCEEDED and message.code == icmp.EXC_FRAGTIME:
            net.mib["IpReasmFails"] += 1  # the far end's: nobody here is told
            return
        if message.type == icmp.DEST_UNREACH and message.code >= len(ERR_CONVERT):
            return
        error = IcmpError()
        error.family = 4
        error.type, error.code = message.type, message.code
        error.errno, error.fatal = err_convert(message.type, message.code)
        error.info = 0
        if message.type == icmp.DEST_UNREACH and message.code == icmp.FRAG_NEEDED:
            error.info = message.rest & 0xFFFF or _plateau(fields[2], header)
        elif message.type == icmp.PARAMETERPROB:
            error.info = message.rest >> 24
        error.protocol, error.saddr, error.daddr = fields[6], fields[8], fields[9]
        error.data = quoted[header:]
        error.offender, error.device, error.packet = packet.saddr, packet.device, packet
        for hook in net.raw_err:
            hook(error)
        known = net.l4.get(error.protocol)
        if known is not None and known.err_handler is not None:
            known.err_handler(error)

    # -- out ---------------------------------------------------------------------------------------

    def _reply(self, packet: Packet, message: icmp.Icmp, data: bytes | memoryview) -> None:
        """icmp_reply: to the sender, from the address that was asked."""
        net = self._net
        saddr = packet.daddr if net.is_local(packet.daddr) else b""
        try:
            dst = net.route_output(packet.saddr, saddr)
            parts: list[Buffer] = [message.emit(data), data]
            dst.xmit(parts, PROTOCOL, tos=packet.tos, df=False)
        except OSError:
            net.mib["IcmpOutErrors"] += 1
            return
        self._count_out(message.type)

    def _count_out(self, kind: int) -> None:
        mib = self._net.mib
        mib["IcmpOutMsgs"] += 1
        mib["IcmpOut" + _IN_COUNTERS[kind]] += 1

    def send(self, packet: Packet, kind: int, code: int, info: int = 0) -> None:
        """icmp_send: report an error about a packet, where that is allowed at all."""
        net = self._net
        if not self._may_report(packet):
            return
        saddr = packet.daddr if net.is_local(packet.daddr) else b""
        message = icmp.Icmp(kind, code, info)
        try:
            dst = net.route_output(packet.saddr, saddr)
            if not self._allowed(dst.device, packet.saddr, kind, code):
                return
            room = min(dst.mtu, _MAX_ERROR) - HEADER_LEN - icmp.HEADER_LEN
            quoted = bytes(packet.network[:room])
            tos = packet.tos & _TOS_MASK | _PREC_INTERNETCONTROL
            dst.xmit([message.emit(quoted), quoted], PROTOCOL, tos=tos, df=False)
        except OSError:
            net.mib["IcmpOutErrors"] += 1
            return
        self._count_out(kind)

    def _may_report(self, packet: Packet) -> bool:
        """RFC 1122 section 3.2.2: never about groups, later fragments and ICMP errors."""
        network, saddr = packet.network, packet.saddr
        if packet.pkt_type != PACKET_HOST or ip.is_multicast(packet.daddr):
            return False
        if saddr[0] in (0, 127) and not self._net.is_local(saddr):
            return False
        if ip.is_multicast(saddr) or saddr == ip.BROADCAST4 or saddr in self._net.broadcasts:
            return False
        if int.from_bytes(network[6:8], "big") & OFFSET_MASK:
            return False
        if packet.protocol == PROTOCOL:
            at = (network[0] & 0x0F) << 2
            if len(network) <= at:
                return False
            kind = network[at]
            return kind <= icmp.NR_TYPES and kind not in icmp.ERRORS
        return True

    def _allowed(self, device: Device, peer: bytes, kind: int, code: int) -> bool:
        """icmpv4_xrlim_allow and icmp_global_allow."""
        net = self._net
        if device is net.lo or (kind == icmp.DEST_UNREACH and code == icmp.FRAG_NEEDED):
            return True
        if not net.ctl.icmp_ratemask[0] >> kind & 1:
            return True
        if not self._global.take():
            net.mib["IcmpOutRateLimitGlobal"] += 1
            return False
        if not self._peers.take(peer, net.ctl.icmp_ratelimit[0]):
            net.mib["IcmpOutRateLimitHost"] += 1
            return False
        return True

    def link_failure(self, packet: bytes, device: Device) -> None:
        """ipv4_link_failure: the next hop of a packet of ours does not answer."""
        if len(packet) < HEADER_LEN:
            return
        fields = HEADER.unpack_from(packet)
        view = memoryview(packet)
        sent = Packet()
        sent.family, sent.network, sent.data = 4, view, view[(fields[0] & 0x0F) << 2 :]
        sent.saddr, sent.daddr, sent.protocol = fields[8], fields[9], fields[6]
        sent.ttl, sent.tos, sent.pkt_type = fields[5], fields[1], PACKET_HOST
        sent.device, sent.flowlabel, sent.reassembled = device, 0, False
        sent.csum = sent.gso_size = sent.gso_type = 0
        if self._net.is_local(sent.saddr):
            self.send(sent, icmp.DEST_UNREACH, icmp.HOST_UNREACH)


def _checksum_ok(packet: Packet) -> bool:
    """ICMP's checksum is over the message alone."""
    return packet.csum != CHECKSUM_NONE or partial(packet.data) == 0xFFFF


# RFC 1191 section 7.1
_PLATEAUS: Final = (32000, 17914, 8166, 4352, 2002, 1492, 576, 296, 216, 128, 68)


def _plateau(total_len: int, header: int) -> int:
    """A guess of the MTU for a router that does not tell it: below the packet's own length."""
    return next((mtu for mtu in _PLATEAUS if mtu < total_len), _PLATEAUS[-1])
