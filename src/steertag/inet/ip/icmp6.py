"""ICMPv6 (net/ipv6/icmp.c; RFC 4443)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.errors import WireError
from steertag.family.skbuff import Buffer
from steertag.inet.ip import addr as ip
from steertag.inet.ip.packet import PACKET_HOST, IcmpError, Packet, l4_checksum_ok
from steertag.inet.ip.ratelimit import PeerLimit
from steertag.wire import icmpv6
from steertag.wire.ipv6 import (
    DSTOPTS,
    FRAGMENT,
    FRAGMENT_LEN,
    HEADER,
    HEADER_LEN,
    HOPOPTS,
    MIN_MTU,
    ROUTING,
    extension_untrusted,
    parse_fragment_untrusted,
)

if TYPE_CHECKING:
    from steertag.device.base import Device
    from steertag.inet.ip.net import InetNet

PROTOCOL: Final = 58

# net/ipv6/icmp.c: tab_unreach; by code of Destination Unreachable.
ERR_CONVERT: Final = (
    (errno.ENETUNREACH, False),  # no route
    (errno.EACCES, True),  # administratively prohibited
    (errno.EHOSTUNREACH, False),  # beyond the scope of the source
    (errno.EHOSTUNREACH, False),  # address unreachable
    (errno.ECONNREFUSED, True),  # port unreachable
    (errno.EACCES, True),  # source failed policy
    (errno.EACCES, True),  # reject route
)

_IN_COUNTERS: Final = {
    icmpv6.DEST_UNREACH: "DestUnreachs",
    icmpv6.PKT_TOOBIG: "PktTooBigs",
    icmpv6.TIME_EXCEEDED: "TimeExcds",
    icmpv6.PARAMPROB: "ParmProblems",
    icmpv6.ECHO_REQUEST: "Echos",
    icmpv6.ECHO_REPLY: "EchoReplies",
    icmpv6.MLD_QUERY: "GroupMembQueries",
    icmpv6.MLD_REPORT: "GroupMembResponses",
    icmpv6.MLD_REDUCTION: "GroupMembReductions",
    icmpv6.ROUTER_SOLICIT: "RouterSolicits",
    icmpv6.ROUTER_ADVERT: "RouterAdvertisements",
    icmpv6.NEIGHBOR_SOLICIT: "NeighborSolicits",
    icmpv6.NEIGHBOR_ADVERT: "NeighborAdvertisements",
    icmpv6.REDIRECT: "Redirects",
    icmpv6.MLD2_REPORT: "MLDv2Reports",
}
_ERRORS: Final = frozenset(
    {icmpv6.DEST_UNREACH, icmpv6.PKT_TOOBIG, icmpv6.TIME_EXCEEDED, icmpv6.PARAMPROB}
)
_FIRST_INFORMATIONAL: Final = 128
_MOST_HEADERS: Final = 64


def err_convert(kind: int, code: int) -> tuple[int, bool]:
    """icmpv6_err_convert: the errno of an error, and whether it is a hard one."""
    if kind == icmpv6.DEST_UNREACH:
        return ERR_CONVERT[code] if code < len(ERR_CONVERT) else (errno.EPROTO, True)
    if kind == icmpv6.PKT_TOOBIG:
        return errno.EMSGSIZE, False
    if kind == icmpv6.PARAMPROB:
        return errno.EPROTO, True
    if kind == icmpv6.TIME_EXCEEDED:
        return errno.EHOSTUNREACH, False
    return errno.EPROTO, False


class Icmp6:
    """ICMPv6 of one Stack."""

    def __init__(self, net: InetNet) -> None:
        self._net = net
        self._peers = PeerLimit(net.stack.clock)

    def register(self) -> None:
        self._net.inet_add_protocol(PROTOCOL, self.receive, families=(6,))

    # -- in ----------------------------------------------------------------------------------------

    def receive(self, packet: Packet) -> None:
        """icmpv6_rcv."""
        net = self._net
        mib = net.mib
        mib["Icmp6InMsgs"] += 1
        if not l4_checksum_ok(packet):
            mib["Icmp6InCsumErrors"] += 1
            mib["Icmp6InErrors"] += 1
            return
        try:
            message = icmpv6.parse_untrusted(packet.data)
        except WireError:
            mib["Icmp6InErrors"] += 1
            return
        kind = message.type
        if kind in _IN_COUNTERS:
            mib["Icmp6In" + _IN_COUNTERS[kind]] += 1
        if kind == icmpv6.ECHO_REQUEST:
            self._echo(packet, message)
        elif kind in _ERRORS:
            self._report(packet, message)
        elif kind in (icmpv6.NEIGHBOR_SOLICIT, icmpv6.NEIGHBOR_ADVERT, icmpv6.ROUTER_ADVERT):
            net.nd.receive(packet, message)
        elif kind < _FIRST_INFORMATIONAL:
            # RFC 4443 section 2.4 (a): errors that nobody knows are for the protocol concerned
            self._report(packet, message)

    def _echo(self, packet: Packet, message: icmpv6.Icmpv6) -> None:
        net = self._net
        group = ip.is_multicast(packet.daddr)
        if net.ctl.echo6_ignore_all[0] or (group and net.ctl.echo6_ignore_multicast[0]):
            return
        if packet.saddr == ip.ANY6:
            return
        body = packet.data[icmpv6.HEADER_LEN :]
        reply = icmpv6.Icmpv6(icmpv6.ECHO_REPLY, 0, message.rest)
        self._xmit(packet, b"" if group else packet.daddr, reply, body, packet.tos)

    def _xmit(
        self,
        packet: Packet,
        saddr: bytes,
        message: icmpv6.Icmpv6,
        body: bytes | memoryview,
        tos: int = 0,
    ) -> None:
        """To the sender of a packet."""
        net = self._net
        try:
            dst = net.route_output(packet.saddr, saddr, self._oif(packet))
            parts: list[Buffer] = [message.emit(dst.saddr, dst.daddr, body), body]
            dst.xmit(parts, PROTOCOL, tos=tos, df=False)
        except OSError:
            net.mib["Icmp6OutErrors"] += 1
            return
        self.count_out(message.type)

    def _oif(self, packet: Packet) -> int:
        """A link-local address is answered on its link."""
        return packet.device.ifindex if ip.is_link_local(packet.saddr) else 0

    def count_out(self, kind: int) -> None:
        mib = self._net.mib
        mib["Icmp6OutMsgs"] += 1
        mib["Icmp6Out" + _IN_COUNTERS[kind]] += 1

    def _report(self, packet: Packet, message: icmpv6.Icmpv6) -> None:
        """icmpv6_notify: an error about a packet that was sent from here."""
        net = self._net
        quoted = packet.data[icmpv6.HEADER_LEN :]
        if len(quoted) < HEADER_LEN:
            net.mib["Icmp6InErrors"] += 1
            return
        _, _, nexthdr, _, saddr, daddr = HEADER.unpack_from(quoted)
        try:
            protocol, at = transport_untrusted(quoted, nexthdr)
        except WireError:
            net.mib["Icmp6InErrors"] += 1
            return
        if len(quoted) < at + 8 or not net.is_local(saddr):
            net.mib["Icmp6InErrors"] += 1
            return
        error = IcmpError()
        error.family = 6
        error.type, error.code = message.type, message.code
        error.errno, error.fatal = err_convert(message.type, message.code)
        about = message.type in (icmpv6.PKT_TOOBIG, icmpv6.PARAMPROB)
        error.info = message.rest if about else 0
        error.protocol, error.saddr, error.daddr = protocol, saddr, daddr
        error.data = quoted[at:]
        error.offender, error.device, error.packet = packet.saddr, packet.device, packet
        for hook in net.raw_err:
            hook(error)
        known = net.l4v6.get(protocol)
        if known is not None and known.err_handler is not None:
            known.err_handler(error)

    # -- out ---------------------------------------------------------------------------------------

    def send(self, packet: Packet, kind: int, code: int, info: int = 0) -> None:
        """icmp6_send: report an error about a packet, where that is allowed at all."""
        net = self._net
        if not self._may_report(packet, kind, code):
            return
        saddr = packet.daddr if net.is_local(packet.daddr) else b""
        message = icmpv6.Icmpv6(kind, code, info)
        try:
            dst = net.route_output(packet.saddr, saddr, self._oif(packet))
        except OSError:
            net.mib["Icmp6OutErrors"] += 1
            return
        limited = dst.device is not net.lo and kind != icmpv6.PKT_TOOBIG
        if limited and not self._peers.take(packet.saddr, net.ctl.icmp6_ratelimit[0]):
            net.mib["Icmp6OutRateLimitHost"] += 1
            return
        quoted = bytes(packet.network[: MIN_MTU - HEADER_LEN - icmpv6.HEADER_LEN])
        self._xmit(packet, saddr, message, quoted)

    def _may_report(self, packet: Packet, kind: int, code: int) -> bool:
        """RFC 4443 section 2.4 (e)."""
        despite_group = kind == icmpv6.PKT_TOOBIG or (
            kind == icmpv6.PARAMPROB and code == icmpv6.UNK_OPTION
        )
        group = packet.pkt_type != PACKET_HOST or ip.is_multicast(packet.daddr)
        if group and not despite_group:
            return False
        if packet.saddr == ip.ANY6 or ip.is_multicast(packet.saddr):
            return False
        return not self._is_error(packet.network)

    def _is_error(self, network: memoryview) -> bool:
        """is_ineligible: an ICMPv6 error or a redirect, or a fragment that may be of one."""
        try:
            protocol, at = transport_untrusted(network, network[6])
        except WireError:
            return False
        if protocol != PROTOCOL:
            return False
        if len(network) <= at:
            return True
        kind = network[at]
        return kind < _FIRST_INFORMATIONAL or kind == icmpv6.REDIRECT

    def link_failure(self, packet: bytes, device: Device) -> None:
        """ip6_link_failure: the next hop of a packet of ours does not answer."""
        if len(packet) < HEADER_LEN:
            return
        _, _, nexthdr, hops, saddr, daddr = HEADER.unpack_from(packet)
        view = memoryview(packet)
        sent = Packet()
        sent.family, sent.network, sent.data = 6, view, view[HEADER_LEN:]
        sent.saddr, sent.daddr, sent.protocol = saddr, daddr, nexthdr
        sent.ttl, sent.tos, sent.pkt_type = hops, 0, PACKET_HOST
        sent.device, sent.flowlabel, sent.reassembled = device, 0, False
        sent.csum = sent.gso_size = sent.gso_type = 0
        if self._net.is_local(saddr):
            self.send(sent, icmpv6.DEST_UNREACH, icmpv6.ADDR_UNREACH)


def transport_untrusted(packet: memoryview, nexthdr: int) -> tuple[int, int]:
    """Protocol and offset of what follows the extension headers (ipv6_skip_exthdr).

    A fragment that is not the first has no transport header: WireError, as for what is cut off.
    """
    at = HEADER_LEN
    for _ in range(_MOST_HEADERS):
        if nexthdr in (HOPOPTS, ROUTING, DSTOPTS):
            nexthdr, size = extension_untrusted(packet[at:])
            at += size
        elif nexthdr == FRAGMENT:
            fragment = parse_fragment_untrusted(packet[at:])
            if fragment.offset:
                raise WireError("a later fragment")
            nexthdr = fragment.nexthdr
            at += FRAGMENT_LEN
        else:
            return nexthdr, at
    raise WireError("too many extension headers")
