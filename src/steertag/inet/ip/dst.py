"""A route in use, and packets leaving by it (struct rtable, struct rt6_info; ip_queue_xmit).

What does not change from packet to packet is kept ready: the addresses, the sum of the header's
fixed words, the next hop's link-layer header. Segments of a stream pay for one `struct.pack`.
"""

from __future__ import annotations

import errno
import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from steertag.device.base import Offload
from steertag.device.gso import checksummed
from steertag.device.offload import dev_queue_xmit
from steertag.errors import os_error
from steertag.family.skbuff import Buffer
from steertag.inet.ip.fragment import fragments_v4, fragments_v6
from steertag.inet.ip.route import RTN_BROADCAST, RTN_LOCAL, RTN_MULTICAST, RTN_UNICAST
from steertag.wire.checksum import pseudo_v6
from steertag.wire.ipv6 import FRAGMENT_LEN, MIN_MTU

if TYPE_CHECKING:
    from steertag.device.base import Device
    from steertag.inet.ip.neigh import Neighbour
    from steertag.inet.ip.net import InetNet
    from steertag.inet.ip.route import Route

_HEADER4: Final = struct.Struct("!HHHHHH8s")
_HEADER6: Final = struct.Struct("!IHBB32s")
_HEADER4_LEN: Final = 20
_HEADER6_LEN: Final = 40
_DF: Final = 0x4000


class Dst(ABC):
    """A destination with everything that is needed to send there. Shared by those who send there.

    Attributes:
        family: 4 or 6.
        saddr, daddr: the addresses that packets bear.
        device: where they leave. gateway: the next hop; b"" if that is `daddr` itself.
        mtu: octets of the largest packet that gets there whole, as far as is known now.
        mtu_locked: a router asked for less than net.ipv4.route.min_pmtu: DF is not set any more.
        local: it is this host. type: RTN_*.
        oif: index of the device that was asked for, or 0.
        features: RTAX_FEATURE_*: none are known.
    """

    __slots__ = (
        "_addresses",
        "_genid",
        "_ident",
        "_neigh",
        "_net",
        "_pseudo",
        "_route",
        "daddr",
        "device",
        "family",
        "features",
        "gateway",
        "local",
        "mtu",
        "mtu_locked",
        "oif",
        "saddr",
        "type",
    )

    family: int
    header_len: int

    def __init__(
        self,
        net: InetNet,
        saddr: bytes,
        daddr: bytes,
        device: Device,
        *,
        gateway: bytes = b"",
        mtu: int,
        local: bool = False,
        type: int = RTN_UNICAST,
        oif: int = 0,
        route: Route | None = None,
    ) -> None:
        self._net = net
        self.saddr, self.daddr = saddr, daddr
        self.device, self.gateway = device, gateway
        self.mtu, self.mtu_locked = mtu, False
        self.local, self.type, self.oif = local, type, oif
        self.features = 0
        self._genid = net.genid
        self._route = route
        self._addresses = saddr + daddr
        self._pseudo = pseudo_v6(saddr, daddr, 0, 0)
        self._ident = net.stack.rng.getrandbits(16)
        self._neigh: Neighbour | None = net.neighbour_of(self)

    def __repr__(self) -> str:
        via = f" via {self.gateway.hex()}" if self.gateway else ""
        return f"<Dst {self.saddr.hex()} > {self.daddr.hex()}{via} dev {self.device.name}>"

    def valid(self) -> bool:
        """Whether routes and addresses are still as they were; if not, look the route up again."""
        return self._genid == self._net.genid

    def pseudo(self, protocol: int, length: int) -> int:
        """The folded sum of the pseudo header, for a transport header and payload of `length`."""
        total = self._pseudo + protocol + length
        return total % 0xFFFF or 0xFFFF

    def confirm(self) -> None:
        """The next hop answers: what was sent to it got there (dst_confirm)."""
        if self._neigh is not None:
            self._neigh.confirm()

    def update_pmtu(self, mtu: int) -> None:
        """A router on the way carries no more than `mtu` octets, and the quoted packet was ours.

        Remembered for net.ipv4.route.mtu_expires seconds for everything that goes there; never
        raises it. Below the least that is believed it is the least, and for IPv4 packets then go
        without DF (net.ipv4.route.min_pmtu); for IPv6 that much is ignored.
        """
        self._net.pmtu.learn(self, mtu)

    @abstractmethod
    def xmit(
        self,
        parts: list[Buffer],
        protocol: int,
        *,
        ttl: int = 0,
        tos: int = 0,
        df: bool = True,
        offload: Offload | None = None,
        flowlabel: int = 0,
    ) -> None:
        """Send a transport header and its payload, given in parts; the list is used up.

        Args:
            ttl: 0: the Stack's default, or 1 to a multicast group.
            tos: DSCP and ECN bits.
            df: do not fragment. Without it, what is larger than `mtu` is sent in fragments.
            offload: checksum and segmentation that are left to do, counted from parts[0].

        Raises:
            OSError: EMSGSIZE, ENOBUFS, ENETDOWN.
        """

    def xmit_raw(self, packet: list[Buffer]) -> None:
        """Send a packet that has its IP header already (IP_HDRINCL). Raises as `xmit`."""
        length = sum(map(len, packet))
        if length > self.device.mtu:
            raise os_error(errno.EMSGSIZE, f"{length} octets, and the link carries {self.mtu}")
        prefix = "Ip" if self.family == 4 else "Ip6"
        self._net.mib[prefix + "OutRequests"] += 1
        self._count(length)
        self._link(packet, None)

    def _link(self, parts: list[Buffer], offload: Offload | None) -> None:
        """Hand a whole packet to the link."""
        neigh = self._neigh
        if neigh is None:
            dev_queue_xmit(self.device, parts, offload)
        else:
            neigh.output(parts, offload)

    def _count(self, length: int) -> None:
        """ip_finish_output: one packet on the wire, of `length` octets."""
        mib, kind = self._net.mib, self.type
        prefix, group = ("Ip", "IpExt") if self.family == 4 else ("Ip6", "Ip6")
        mib[prefix + "OutTransmits"] += 1
        mib[group + "OutOctets"] += length
        if kind == RTN_MULTICAST:
            mib[group + "OutMcastPkts"] += 1
            mib[group + "OutMcastOctets"] += length
        elif kind == RTN_BROADCAST:
            mib["IpExtOutBcastPkts"] += 1
            mib["IpExtOutBcastOctets"] += length

    def _too_long(self, length: int) -> OSError:
        prefix = "Ip" if self.family == 4 else "Ip6"
        self._net.mib[prefix + "FragFails"] += 1
        return os_error(errno.EMSGSIZE, f"{length} octets, and the path carries {self.mtu}")

    def _fragmented(self, pieces: list[list[Buffer]]) -> None:
        mib = self._net.mib
        prefix = "Ip" if self.family == 4 else "Ip6"
        for piece in pieces:
            self._count(len(piece[0]) + len(piece[1]))
            self._link(piece, None)
            mib[prefix + "FragCreates"] += 1
        mib[prefix + "FragOKs"] += 1


class Dst4(Dst):
    """To an IPv4 address."""

    __slots__ = ()

    family = 4
    header_len = _HEADER4_LEN

    def xmit(
        self,
        parts: list[Buffer],
        protocol: int,
        *,
        ttl: int = 0,
        tos: int = 0,
        df: bool = True,
        offload: Offload | None = None,
        flowlabel: int = 0,
    ) -> None:
        length = _HEADER4_LEN
        for part in parts:
            length += len(part)
        segments = 1
        if length > self.mtu:
            gso_size = 0 if offload is None else offload.gso_size
            if not gso_size or length > 0xFFFF:
                self._long(parts, length, protocol, ttl, tos, df, offload)
                return
            segments = length // gso_size + 1
        net = self._net
        word = (ttl or self._ttl()) << 8 | protocol
        ident = self._ident
        self._ident = ident + segments & 0xFFFF
        frag = _DF if df and not self.mtu_locked else 0
        header = _HEADER4.pack(
            0x4500 | tos,
            length,
            ident,
            frag,
            word,
            -(self._pseudo + 0x4500 + word + tos + length + ident + frag) % 0xFFFF,
            self._addresses,
        )
        parts.insert(0, header)
        if offload is not None:
            offload.csum_start += _HEADER4_LEN
            offload.hdr_len += _HEADER4_LEN
        mib = net.mib
        mib["IpOutRequests"] += 1
        mib["IpOutTransmits"] += 1
        mib["IpExtOutOctets"] += length
        if self.type > RTN_LOCAL:
            self._count_special(length)
        neigh = self._neigh
        if neigh is None:
            dev_queue_xmit(self.device, parts, offload)
        else:
            neigh.output(parts, offload)

    def _ttl(self) -> int:
        return 1 if self.type == RTN_MULTICAST else self._net.default_ttl[0]

    def _count_special(self, length: int) -> None:
        mib = self._net.mib
        kind = "Mcast" if self.type == RTN_MULTICAST else "Bcast"
        mib[f"IpExtOut{kind}Pkts"] += 1
        mib[f"IpExtOut{kind}Octets"] += length

    def _long(
        self,
        parts: list[Buffer],
        length: int,
        protocol: int,
        ttl: int,
        tos: int,
        df: bool,
        offload: Offload | None,
    ) -> None:
        """ip_fragment."""
        mib = self._net.mib
        mib["IpOutRequests"] += 1
        if (df and not self.mtu_locked) or length > 0xFFFF:
            raise self._too_long(length)
        word = (ttl or self._ttl()) << 8 | protocol
        ident = self._ident
        self._ident = ident + 1 & 0xFFFF
        if offload is not None:
            parts = checksummed(parts, offload)
        payload = b"".join(parts)
        self._fragmented(fragments_v4(payload, self.mtu, tos, ident, word, self._addresses))


class Dst6(Dst):
    """To an IPv6 address."""

    __slots__ = ()

    family = 6
    header_len = _HEADER6_LEN

    def xmit(
        self,
        parts: list[Buffer],
        protocol: int,
        *,
        ttl: int = 0,
        tos: int = 0,
        df: bool = True,
        offload: Offload | None = None,
        flowlabel: int = 0,
    ) -> None:
        length = 0
        for part in parts:
            length += len(part)
        if length + _HEADER6_LEN > self.mtu:
            gso_size = 0 if offload is None else offload.gso_size
            if not gso_size or length > 0xFFFF:
                self._long(parts, length, protocol, ttl, tos, df, offload, flowlabel)
                return
        parts.insert(
            0,
            _HEADER6.pack(
                0x60000000 | tos << 20 | flowlabel,
                length,
                protocol,
                ttl or self._hops(),
                self._addresses,
            ),
        )
        if offload is not None:
            offload.csum_start += _HEADER6_LEN
            offload.hdr_len += _HEADER6_LEN
        mib = self._net.mib
        mib["Ip6OutRequests"] += 1
        mib["Ip6OutTransmits"] += 1
        mib["Ip6OutOctets"] += length + _HEADER6_LEN
        if self.type > RTN_LOCAL:
            mib["Ip6OutMcastPkts"] += 1
            mib["Ip6OutMcastOctets"] += length + _HEADER6_LEN
        neigh = self._neigh
        if neigh is None:
            dev_queue_xmit(self.device, parts, offload)
        else:
            neigh.output(parts, offload)

    def _hops(self) -> int:
        if self.type == RTN_MULTICAST:
            return 1
        return self._net.hop_limit(self.device)

    def _long(
        self,
        parts: list[Buffer],
        length: int,
        protocol: int,
        ttl: int,
        tos: int,
        df: bool,
        offload: Offload | None,
        flowlabel: int,
    ) -> None:
        """ip6_fragment."""
        net = self._net
        net.mib["Ip6OutRequests"] += 1
        if df or length > 0xFFFF or self.mtu < MIN_MTU:
            raise self._too_long(length + _HEADER6_LEN)
        if offload is not None:
            parts = checksummed(parts, offload)
        payload = b"".join(parts)
        first = 0x60000000 | tos << 20 | flowlabel
        room = self.mtu - _HEADER6_LEN - FRAGMENT_LEN & ~7
        ident = net.stack.rng.getrandbits(32)
        ends = (ttl or self._hops(), self._addresses)
        self._fragmented(fragments_v6(payload, room, first, protocol, ident, ends))
