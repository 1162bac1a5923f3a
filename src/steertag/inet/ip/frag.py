"""Putting fragments together (net/ipv4/inet_fragment.c, ip_fragment.c, net/ipv6/reassembly.c).

Both versions follow the same rules: a fragment that is there already is passed over, one that
overlaps others in part makes an end of the whole packet (RFC 5722; for IPv4 the kernel does the
same since 2018), and what is not complete in time is dropped, which the sender is told if the first
fragment came. Memory is bounded, and so is what one source can have of it.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from steertag.errors import WireError
from steertag.family.timer import Timer
from steertag.inet.ip import input4, input6
from steertag.inet.ip.packet import Packet
from steertag.wire.checksum import checksum
from steertag.wire.icmp import EXC_FRAGTIME, TIME_EXCEEDED
from steertag.wire.icmpv6 import EXC_FRAGTIME as EXC_FRAGTIME6
from steertag.wire.icmpv6 import HDR_FIELD, PARAMPROB
from steertag.wire.icmpv6 import TIME_EXCEEDED as TIME_EXCEEDED6
from steertag.wire.ipv4 import MF, OFFSET_MASK
from steertag.wire.ipv6 import FRAGMENT_LEN, HEADER_LEN, parse_fragment_untrusted

if TYPE_CHECKING:
    from steertag.device.base import Device
    from steertag.inet.ip.net import InetNet

_TRUESIZE: Final = 512
"""Octets that a fragment is charged beyond its own (the kernel: of its sk_buff)."""
_QUEUES_OF_A_PEER: Final = 256
"""Packets that one source may have half here."""
_IDENT: Final = struct.Struct("!HH")
_NOT_ECT, _ECT1, _ECT0, _CE = (1 << value for value in range(4))

Key = tuple[object, ...]


class FragQueue:
    """The fragments of one packet (struct ipq, struct frag_queue).

    Attributes:
        length: octets of the payload as far as they are known; `last_in`: all of them are.
        meat: octets that are here.
        first: the fragment with offset 0.
        ecn: bits of the codepoints that came.
        rid: of its source's fragments, the number of the last that was for this packet.
    """

    __slots__ = (
        "charged",
        "ecn",
        "first",
        "key",
        "last_in",
        "length",
        "meat",
        "nexthdr_at",
        "peer",
        "pieces",
        "rid",
        "starts",
        "timer",
    )

    def __init__(self, key: Key, peer: bytes) -> None:
        self.key, self.peer = key, peer
        self.reset()

    timer: Timer

    def reset(self) -> None:
        self.starts: list[int] = []
        self.pieces: list[memoryview] = []
        self.length = self.meat = self.charged = 0
        self.last_in = False
        self.first: Packet | None = None
        self.nexthdr_at = 0
        self.ecn = 0
        self.rid = 0

    def overlaps(self, offset: int, end: int) -> bool | None:
        """Whether octets of it are here already; None: all of it is, in one piece."""
        at = bisect_left(self.starts, offset)
        if at < len(self.starts):
            start = self.starts[at]
            if start == offset and end <= start + len(self.pieces[at]):
                return None
            if start < end:
                return True
        if at:
            before = self.starts[at - 1] + len(self.pieces[at - 1])
            if end <= before:
                return None
            return before > offset
        return False

    def insert(self, offset: int, piece: memoryview) -> None:
        at = bisect_left(self.starts, offset)
        self.starts.insert(at, offset)
        self.pieces.insert(at, piece)
        self.meat += len(piece)

    @property
    def complete(self) -> bool:
        return self.last_in and self.first is not None and self.meat == self.length


class _Peer:
    """A source of fragments: how many packets of it are half here, and how many fragments came."""

    __slots__ = ("queues", "rid")

    def __init__(self) -> None:
        self.queues = self.rid = 0


class Defrag:
    """All half packets of a Stack."""

    def __init__(self, net: InetNet) -> None:
        self._net = net
        self._queues: dict[Key, FragQueue] = {}
        self._peers: dict[bytes, _Peer] = {}
        self._memory = {4: 0, 6: 0}

    @property
    def memory(self) -> int:
        """Octets that are charged to fragments, of both versions."""
        return self._memory[4] + self._memory[6]

    def __len__(self) -> int:
        return len(self._queues)

    # -- IPv4 --------------------------------------------------------------------------------------

    def v4(self, packet: Packet) -> Packet | None:
        """A fragment; returns the packet when it is the last that lacked."""
        mib = self._net.mib
        mib["IpReasmReqds"] += 1
        ident, frag = _IDENT.unpack_from(packet.network, 4)
        key = (4, packet.saddr, packet.daddr, ident, packet.protocol)
        queue = self._find(key, packet, self._net.ctl.frag_time[0])
        if queue is None:
            mib["IpReasmFails"] += 1
            return None
        self._check_distance(queue)
        offset = (frag & OFFSET_MASK) << 3
        if not self._enqueue(queue, packet, packet.data, offset, bool(frag & MF), 0xFFFF):
            return None
        return self._whole4(queue) if queue.complete else None

    def _check_distance(self, queue: FragQueue) -> None:
        """ip_frag_too_far: so much else came meanwhile that the identification may be used anew."""
        most = self._net.ctl.frag_max_dist[0]
        peer = self._peers[queue.peer]
        peer.rid += 1
        distance, queue.rid = peer.rid - queue.rid, peer.rid
        if most and queue.starts and distance > most:
            self._net.mib["IpReasmFails"] += 1
            self._uncharge(queue)
            queue.reset()
            queue.rid = peer.rid

    def _whole4(self, queue: FragQueue) -> Packet | None:
        mib, first = self._net.mib, queue.first
        assert first is not None
        self._remove(queue)
        header = (first.network[0] & 0x0F) << 2
        tos = _ecn(queue.ecn, first.tos)
        total = header + queue.length
        if tos is None or total > 0xFFFF:
            mib["IpReasmFails"] += 1
            return None
        head = bytearray(first.network[:header])
        head[1] = tos
        head[2:4] = total.to_bytes(2, "big")
        head[6:8] = head[10:12] = b"\0\0"
        head[10:12] = checksum(head).to_bytes(2, "big")
        mib["IpReasmOKs"] += 1
        return input4.whole_packet(first, b"".join((head, *queue.pieces)), header)

    # -- IPv6 --------------------------------------------------------------------------------------

    def v6(self, packet: Packet, at: int, nexthdr_at: int) -> None:
        """A packet with a fragment header at `at`; delivers what becomes whole by it."""
        net = self._net
        mib = net.mib
        mib["Ip6ReasmReqds"] += 1
        try:
            header = parse_fragment_untrusted(packet.network[at:])
        except WireError:
            mib["Ip6InHdrErrors"] += 1
            return
        if not header.offset and not header.more:  # an atomic fragment: whole (RFC 6946)
            mib["Ip6ReasmOKs"] += 1
            packet.reassembled = True
            input6.deliver(net, packet, header.nexthdr, at + FRAGMENT_LEN, at)
            return
        piece = packet.network[at + FRAGMENT_LEN :]
        fault = 0
        if header.more and len(piece) & 7:
            fault = 4  # the payload length
        elif header.offset + len(piece) + at - HEADER_LEN > 0xFFFF:
            fault = at + 2
        if fault:
            mib["Ip6InHdrErrors"] += 1
            mib["Ip6ReasmFails"] += 1
            net.icmp6.send(packet, PARAMPROB, HDR_FIELD, fault)
            return
        key = (6, packet.saddr, packet.daddr, header.ident, packet.device)
        queue = self._find(key, packet, net.ctl.frag6_time[0])
        if queue is None:
            mib["Ip6ReasmFails"] += 1
            return
        if not self._enqueue(queue, packet, piece, header.offset, header.more, 0xFFFF + HEADER_LEN):
            return
        if not header.offset:
            queue.nexthdr_at = nexthdr_at
        if queue.complete:
            self._whole6(queue)

    def _whole6(self, queue: FragQueue) -> None:
        net, first = self._net, queue.first
        assert first is not None
        self._remove(queue)
        nexthdr_at = queue.nexthdr_at
        at = len(first.network) - len(queue.pieces[0]) - FRAGMENT_LEN
        tos = _ecn(queue.ecn, first.tos)
        payload_len = at - HEADER_LEN + queue.length
        if tos is None or payload_len > 0xFFFF:
            net.mib["Ip6ReasmFails"] += 1
            return
        protocol = first.network[at]
        head = bytearray(first.network[:at])
        head[0], head[1] = 0x60 | tos >> 4, (tos & 0x0F) << 4 | head[1] & 0x0F
        head[4:6] = payload_len.to_bytes(2, "big")
        head[nexthdr_at] = protocol
        first.network = memoryview(b"".join((head, *queue.pieces)))
        first.tos = tos
        first.csum = first.gso_size = first.gso_type = 0
        first.reassembled = True
        net.mib["Ip6ReasmOKs"] += 1
        input6.deliver(net, first, protocol, at, nexthdr_at)

    # -- both --------------------------------------------------------------------------------------

    def _find(self, key: Key, packet: Packet, wait: int) -> FragQueue | None:
        """The queue of a packet, made if need be; None where there is no room for one more."""
        queue = self._queues.get(key)
        if queue is not None:
            return queue
        family, saddr = packet.family, packet.saddr
        high = self._net.ctl.frag_high if family == 4 else self._net.ctl.frag6_high
        peer = self._peers.get(saddr)
        if self._memory[family] > high[0] or (
            peer is not None and peer.queues >= _QUEUES_OF_A_PEER
        ):
            return None
        if peer is None:
            peer = self._peers[saddr] = _Peer()
        peer.queues += 1
        queue = self._queues[key] = FragQueue(key, saddr)
        queue.rid = peer.rid
        made = queue
        queue.timer = Timer(self._net.stack.timers, lambda: self._expired(made))
        queue.timer.mod(self._net.stack.clock() + wait)
        return queue

    def _enqueue(
        self,
        queue: FragQueue,
        packet: Packet,
        piece: memoryview,
        offset: int,
        more: bool,
        most: int,
    ) -> bool:
        """ip_frag_queue. False: it brought nothing, or was the end of its packet."""
        if more and len(piece) & 7:
            piece = piece[: len(piece) & ~7]
        end = offset + len(piece)
        wrong = not piece or end > most
        if not more:
            wrong = wrong or end < queue.length or (queue.last_in and end != queue.length)
        elif end > queue.length:
            wrong = wrong or queue.last_in
        family = packet.family
        high = self._net.ctl.frag_high if family == 4 else self._net.ctl.frag6_high
        if wrong or self._memory[family] > high[0]:
            self._kill(queue)
            return False
        overlap = queue.overlaps(offset, end)
        if overlap is None:
            return False  # it is here already
        if overlap:
            if family == 4:
                self._net.mib["IpExtReasmOverlaps"] += 1
            self._kill(queue)
            return False
        queue.length = max(queue.length, end)
        queue.last_in = queue.last_in or not more
        if not offset:
            queue.first = packet
        queue.ecn |= 1 << (packet.tos & 3)
        queue.insert(offset, piece)
        cost = len(packet.network) + _TRUESIZE
        queue.charged += cost
        self._memory[family] += cost
        return True

    def _uncharge(self, queue: FragQueue) -> None:
        self._memory[4 if len(queue.peer) == 4 else 6] -= queue.charged
        queue.charged = 0

    def _remove(self, queue: FragQueue) -> None:
        queue.timer.delete()
        self._uncharge(queue)
        del self._queues[queue.key]
        peer = self._peers[queue.peer]
        peer.queues -= 1
        if not peer.queues:
            del self._peers[queue.peer]

    def _kill(self, queue: FragQueue) -> None:
        prefix = "Ip" if len(queue.peer) == 4 else "Ip6"
        self._net.mib[f"{prefix}ReasmFails"] += 1
        self._remove(queue)

    def _expired(self, queue: FragQueue) -> None:
        """ip_expire: the rest did not come in time."""
        family = 4 if len(queue.peer) == 4 else 6
        prefix = "Ip" if family == 4 else "Ip6"
        self._net.mib[f"{prefix}ReasmTimeout"] += 1
        self._kill(queue)
        if queue.first is None:
            return
        if family == 4:
            self._net.icmp.send(queue.first, TIME_EXCEEDED, EXC_FRAGTIME)
        else:
            self._net.icmp6.send(queue.first, TIME_EXCEEDED6, EXC_FRAGTIME6)

    def forget(self, device: Device) -> None:
        """A device is gone: half packets whose first fragment came in by it are dropped."""
        for queue in list(self._queues.values()):
            if queue.first is not None and queue.first.device is device:
                self._remove(queue)

    def clear(self) -> None:
        for queue in list(self._queues.values()):
            self._remove(queue)


def _ecn(seen: int, tos: int) -> int | None:
    """The tos of the whole (ip_frag_ecn_table, RFC 3168 section 5.3); None: that can't be."""
    if seen & _NOT_ECT and seen & (_ECT0 | _ECT1 | _CE):
        return None
    if seen & _CE:
        return tos | 3
    return tos
