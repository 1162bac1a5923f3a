"""Joins the segments of a TCP flow that come one after the other (net/core/gro.c, tcp_offload.c).

A device that gives frames as they were on a wire costs the whole way up for each of them. What is
joined here goes up once: one frame with `gso_size`, checksums verified, its payload copied once.

Joined is what follows in the octet stream and is alike in all else: acknowledgment number, window,
flags, every option (the timestamps' values too), TOS or traffic class, TTL. A segment that is
shorter than the first, or pushed, ends a frame; the end of a device's turn ends all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from steertag.device.frame import (
    CHECKSUM_NONE,
    CHECKSUM_UNNECESSARY,
    ETH_P_IP,
    ETH_P_IPV6,
    GSO_TCPV4,
    GSO_TCPV6,
    MAX_SUPER_FRAME,
    Frame,
)
from steertag.wire.checksum import partial

MAX_FLOWS: Final = 64
"""Flows with a frame held back; above it the oldest goes up."""

_IPV4: Final = struct.Struct("!BBHHHBBH12sIII")
"""Version and header length, TOS, length, identification, fragment, TTL, protocol, checksum,
addresses and ports, seq, ack, and the word of data offset, flags and window."""
_IPV6: Final = struct.Struct("!IHBB36sIII")
_U16: Final = struct.Struct("!H")
_IPV4_TCP: Final = _IPV4.size + 4
_IPV6_TCP: Final = _IPV6.size + 4
_IPV4_LEN: Final = 20
_IPV6_LEN: Final = 40
_TCP: Final = 6
_FRAGMENT: Final = 0x3FFF

# In the word of data offset, flags and window:
_FIN: Final = 0x01 << 16
_SYN: Final = 0x02 << 16
_RST: Final = 0x04 << 16
_PSH: Final = 0x08 << 16
_URG: Final = 0x20 << 16
_CWR: Final = 0x80 << 16
_MAY_DIFFER: Final = ~(_FIN | _PSH | _CWR)
_NOT_HELD: Final = _FIN | _SYN | _RST | _PSH | _URG
_ENDS: Final = _FIN | _PSH


class _Flow:
    """A frame that is held back, and what has been joined to it."""

    __slots__ = (
        *("ack", "body", "frame", "header", "l4", "next_seq", "octets", "options", "parts"),
        *("pseudo", "same", "size", "word"),
    )

    ack: int
    body: int  # where the payload starts
    frame: Frame
    l4: int
    next_seq: int
    octets: int  # of the IP packet that it is by now
    options: bytes
    parts: list[memoryview]
    pseudo: int  # sum of the addresses and the protocol
    same: object  # what is to be alike in the headers below TCP
    size: int
    word: int


class Gro:
    """Of one device.

    Args:
        deliver: takes a frame; may not raise.
        l3: where the IP header starts: octets of the link-layer header.
    """

    __slots__ = ("_deliver", "_flows", "_l3")

    def __init__(self, deliver: Callable[[Frame], None], l3: int = 0) -> None:
        self._deliver = deliver
        self._l3 = l3
        self._flows: dict[bytes, _Flow] = {}

    def receive(self, frame: Frame) -> None:
        """Take a frame: it is delivered now, or at the latest by `flush`."""
        data, l3 = frame.data, self._l3
        length = len(data) - l3
        if frame.gso_size:
            self.flush()  # joined already, and behind what came before
        elif length >= _IPV4_TCP and data[l3] == 0x45:
            _, tos, total, _, fragment, ttl, protocol, _, key, seq, ack, word = _IPV4.unpack_from(
                data, l3
            )
            if protocol == _TCP and total == length and not fragment & _FRAGMENT:
                same = fragment << 16 | tos << 8 | ttl
                if self._tcp(frame, key, same, l3 + _IPV4_LEN, seq, ack, word):
                    return
        elif length >= _IPV6_TCP and data[l3] >> 4 == 6:
            first, payload, protocol, hops, key, seq, ack, word = _IPV6.unpack_from(data, l3)
            if protocol == _TCP and payload + _IPV6_LEN == length:
                same = first << 8 | hops
                if self._tcp(frame, key, same, l3 + _IPV6_LEN, seq, ack, word):
                    return
        self._deliver(frame)

    def flush(self) -> None:
        """Deliver all that is held back (napi_gro_flush)."""
        flows = self._flows
        if flows:
            self._flows = {}
            for flow in flows.values():
                self._finish(flow)

    def _tcp(
        self, frame: Frame, key: bytes, same: int, l4: int, seq: int, ack: int, word: int
    ) -> bool:
        """Join or hold a segment; False: deliver it, what came before it in its flow has been."""
        data = frame.data
        body = l4 + (word >> 28 << 2)
        size = len(data) - body
        flow = self._flows.get(key)
        if flow is not None:
            if (
                seq == flow.next_seq
                and ack == flow.ack
                and 0 < size <= flow.size
                and not (word ^ flow.word) & _MAY_DIFFER
                and not word & _CWR
                and same == flow.same
                and flow.octets + size <= MAX_SUPER_FRAME
                and flow.options == data[l4 + 20 : body]
                and (not self._l3 or data[: self._l3] == flow.frame.data[: self._l3])
                and (frame.csum != CHECKSUM_NONE or self._verified(data, l4, flow.pseudo))
            ):
                flow.parts.append(data[body:])
                flow.next_seq = (seq + size) & 0xFFFFFFFF
                flow.octets += size
                if size < flow.size or word & _ENDS:
                    flow.word |= word & _ENDS
                    del self._flows[key]
                    self._finish(flow)
                return True
            del self._flows[key]
            self._finish(flow)
        if size <= 0 or word & _NOT_HELD or body < l4 + 20 or not self._is_ip(data):
            return False
        pseudo = int.from_bytes(key[:-4], "big") + _TCP
        if frame.csum == CHECKSUM_NONE and not self._verified(data, l4, pseudo):
            return False
        self._hold(frame, key, same, l4, seq, ack, word, pseudo)
        return True

    def _hold(
        self,
        frame: Frame,
        key: bytes,
        same: int,
        l4: int,
        seq: int,
        ack: int,
        word: int,
        pseudo: int,
    ) -> None:
        flows = self._flows
        if len(flows) >= MAX_FLOWS:
            self._finish(flows.pop(next(iter(flows))))
        flow = flows[key] = _Flow()
        body = flow.body = l4 + (word >> 28 << 2)
        flow.frame, flow.same, flow.l4, flow.ack, flow.word = frame, same, l4, ack, word
        flow.pseudo = pseudo
        flow.size = len(frame.data) - body
        flow.next_seq = (seq + flow.size) & 0xFFFFFFFF
        flow.octets = len(frame.data) - self._l3
        flow.options = bytes(frame.data[l4 + 20 : body])
        flow.parts = []

    def _verified(self, data: memoryview, l4: int, pseudo: int) -> bool:
        """Whether TCP's checksum and the IPv4 header's are right."""
        l3 = self._l3
        if l4 - l3 == _IPV4_LEN:
            # A right header's sum is zero, modulo 0xFFFF: summed along, it changes nothing.
            if int.from_bytes(data[l3:l4], "big") % 0xFFFF:
                return False
            total = partial(data[l3:] if l3 else data)
        else:
            total = partial(data[l4:])
        return (total + pseudo + len(data) - l4) % 0xFFFF == 0

    def _is_ip(self, data: memoryview) -> bool:
        """Whether the link-layer header says so too."""
        l3 = self._l3
        if not l3:
            return True
        kind: int = _U16.unpack_from(data, l3 - 2)[0]
        return kind == (ETH_P_IP if data[l3] >> 4 == 4 else ETH_P_IPV6)

    def _finish(self, flow: _Flow) -> None:
        frame = flow.frame
        if not flow.parts:
            if frame.csum == CHECKSUM_NONE:
                frame.csum = CHECKSUM_UNNECESSARY
            self._deliver(frame)
            return
        l3, l4 = self._l3, flow.l4
        data = frame.data
        header = bytearray(data[: flow.body])
        header[l4 + 13] |= (flow.word & _ENDS) >> 16
        if data[l3] == 0x45:
            kind = GSO_TCPV4
            _U16.pack_into(header, l3 + 2, flow.octets)
            _U16.pack_into(header, l3 + 10, 0)
            value = 0xFFFF - partial(bytes(header[l3:l4]))
            _U16.pack_into(header, l3 + 10, value)
        else:
            kind = GSO_TCPV6
            _U16.pack_into(header, l3 + 4, flow.octets - _IPV6_LEN)
        octets = b"".join((header, data[flow.body :], *flow.parts))
        self._deliver(Frame(memoryview(octets), CHECKSUM_UNNECESSARY, kind, flow.size))
