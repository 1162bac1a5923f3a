"""Checksums and segmentation in software (net/core/gso.c, net/ipv4/tcp_offload.c, udp_offload.c).

The super-segment's checksum field holds the pseudo-header's sum with the super-segment's length.
What all segments have in common is summed once; a segment adds what is its own, and its payload.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from steertag.device.frame import (
    CHECKSUM_PARTIAL,
    ETH_P_IP,
    ETH_P_IPV6,
    GSO_ECN,
    GSO_NONE,
    GSO_UDP_L4,
    Frame,
    Offload,
)
from steertag.family.skbuff import Buffer
from steertag.wire.checksum import checksum, partial

_U16: Final = struct.Struct("!H")
_U32: Final = struct.Struct("!I")
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80
_IPV4_LEN, _IPV4_CHECK, _IPV6_LEN = 2, 10, 4
_IPV4_MIN: Final = 20
_IPV6_MIN: Final = 40
_TCP, _UDP = 6, 17
_TCP_MIN, _UDP_HEADER = 20, 8
_CHECK_AT: Final = {_TCP: 16, _UDP: 6}
_EXTENSIONS: Final = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options
_MOST_EXTENSIONS: Final = 8


def checksummed(parts: Sequence[Buffer], offload: Offload) -> list[Buffer]:
    """The frame with its transport checksum in place (skb_checksum_help)."""
    field = offload.csum_start + offload.csum_offset
    header = bytearray(parts[0])
    taken = 1
    while len(header) < field + 2:
        header += parts[taken]
        taken += 1
    rest = parts[taken:]
    with memoryview(header) as view:
        value = checksum(view[offload.csum_start :], *rest)
    # A UDP checksum of zero would mean that there is none.
    _U16.pack_into(header, field, value or 0xFFFF)
    return [header, *rest]


def segments(
    parts: Sequence[Buffer], offload: Offload, l3: int, *, checksums: bool = True
) -> Iterator[list[Buffer]]:
    """The frames of at most `gso_size` octets of payload that a super-segment stands for.

    Each has its own lengths, IP identification and sequence number; FIN and PSH go with the last,
    CWR with the first.

    Args:
        l3: where the IP header starts.
        checksums: complete each transport checksum; else the field holds its pseudo-header's sum.
    """
    header, payload = _divided(parts, offload.hdr_len)
    template = _Template(header, offload, l3, len(payload))
    size = offload.gso_size
    for at in range(0, len(payload), size):
        piece = payload[at : at + size]
        yield [template.header(at, piece, at + size >= len(payload), checksums), piece]


def _divided(parts: Sequence[Buffer], hdr_len: int) -> tuple[bytearray, memoryview]:
    """The headers, and the payload as one."""
    if len(parts) == 2 and len(parts[0]) == hdr_len:
        return bytearray(parts[0]), memoryview(parts[1])
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    return bytearray(whole[:hdr_len]), memoryview(whole)[hdr_len:]


class _Template:
    """The headers of every segment of one super-segment, with the sums of what never changes.

    All that changes is zero in it, FIN, PSH and CWR too.
    """

    __slots__ = (
        *("_offload", "_l3", "_size", "_octets", "_udp", "_ipv4", "_ident", "_ip_sum", "_seq"),
        *("_flags", "_sum", "_pseudo"),
    )

    def __init__(self, header: bytearray, offload: Offload, l3: int, payload: int) -> None:
        l4 = offload.csum_start
        self._offload, self._l3, self._size = offload, l3, offload.gso_size
        field = l4 + offload.csum_offset
        # 0xFFFF is zero in this arithmetic: adding multiples of it keeps the difference positive.
        self._pseudo: int = _U16.unpack_from(header, field)[0] + 2 * 0xFFFF - payload
        _U16.pack_into(header, field, 0)
        self._udp = offload.gso_type & ~GSO_ECN == GSO_UDP_L4
        self._ipv4 = header[l3] >> 4 == 4
        if self._udp:
            self._seq = self._flags = 0
            _U16.pack_into(header, l4 + 4, 0)
        else:
            self._seq = _U32.unpack_from(header, l4 + 4)[0]
            self._flags = header[l4 + 13]
            _U32.pack_into(header, l4 + 4, 0)
            header[l4 + 13] &= ~(_FIN_PSH | _CWR)
        self._ident = self._ip_sum = 0
        if self._ipv4:
            self._ident = _U16.unpack_from(header, l3 + 4)[0]
            _U32.pack_into(header, l3 + _IPV4_LEN, 0)  # and the identification
            _U16.pack_into(header, l3 + _IPV4_CHECK, 0)
            self._ip_sum = partial(bytes(header[l3 : l3 + (header[l3] & 15) * 4]))
        self._sum = partial(bytes(header[l4:]))
        self._octets = bytes(header)

    def header(self, at: int, piece: memoryview, last: bool, checksums: bool) -> bytearray:
        """Of the segment whose payload is `piece`, from octet `at` on."""
        header = bytearray(self._octets)
        length, l3, l4 = len(piece), self._l3, self._offload.csum_start
        octets = len(header) - l3 + length
        if self._ipv4:
            ident = (self._ident + at // self._size) & 0xFFFF
            _U32.pack_into(header, l3 + _IPV4_LEN, octets << 16 | ident)
            value = (self._ip_sum + octets + ident) % 0xFFFF
            _U16.pack_into(header, l3 + _IPV4_CHECK, 0xFFFF - value)
        else:
            _U16.pack_into(header, l3 + _IPV6_LEN, octets - _IPV6_MIN)
        if self._udp:
            own = len(header) - l4 + length
            _U16.pack_into(header, l4 + 4, own)
        else:
            seq = (self._seq + at) & 0xFFFFFFFF
            _U32.pack_into(header, l4 + 4, seq)
            flags = self._flags & (_FIN_PSH if last else 0) | self._flags & (0 if at else _CWR)
            header[l4 + 13] |= flags
            own = (seq >> 16) + (seq & 0xFFFF) + flags
        value = self._pseudo + length
        if checksums:
            value = 0xFFFF - (value + self._sum + own + partial(piece)) % 0xFFFF
        else:
            value %= 0xFFFF
        _U16.pack_into(header, l4 + self._offload.csum_offset, value or 0xFFFF)
        return header


# -- what was received -----------------------------------------------------------------------------


def transport_untrusted(data: memoryview, l3: int) -> Offload | None:
    """Where a frame's TCP or UDP header is, as an Offload without segmentation. Never raises.

    None for anything else: another protocol, a fragment, octets that are no valid headers.
    """
    found = _l4_untrusted(data, l3)
    if found is None:
        return None
    l4, protocol = found
    if protocol == _UDP:
        hdr_len = l4 + _UDP_HEADER
    elif len(data) < l4 + _TCP_MIN:
        return None
    else:
        hdr_len = l4 + (data[l4 + 12] >> 4) * 4
        if hdr_len < l4 + _TCP_MIN:
            return None
    if hdr_len > len(data):
        return None
    return Offload(l4, _CHECK_AT[protocol], GSO_NONE, 0, hdr_len)


def _l4_untrusted(data: memoryview, l3: int) -> tuple[int, int] | None:
    """Where the transport header starts and whose it is; None unless it is TCP's or UDP's."""
    length = len(data)
    if length < l3 + _IPV4_MIN:
        return None
    version = data[l3] >> 4
    if l3 and int.from_bytes(data[l3 - 2 : l3], "big") != (
        ETH_P_IP if version == 4 else ETH_P_IPV6
    ):
        return None
    if version == 4:
        l4, protocol = l3 + (data[l3] & 15) * 4, data[l3 + 9]
        if l4 < l3 + _IPV4_MIN or (data[l3 + 6] & 0x3F) or data[l3 + 7]:  # a fragment
            return None
    elif version == 6 and length >= l3 + _IPV6_MIN:
        l4, protocol = l3 + _IPV6_MIN, data[l3 + 6]
        for _ in range(_MOST_EXTENSIONS):
            if protocol not in _EXTENSIONS or l4 + 8 > length:
                break
            l4, protocol = l4 + 8 + data[l4 + 1] * 8, data[l4]
    else:
        return None
    return (l4, protocol) if protocol in _CHECK_AT else None


def on_the_wire_untrusted(frame: Frame, l3: int) -> list[Buffer]:
    """What a received frame would have been on a wire: cut, its checksums complete. Never raises.

    What can't be made sense of comes back as it is.
    """
    data = frame.data
    if frame.csum != CHECKSUM_PARTIAL and not frame.gso_size:
        return [data]
    offload = transport_untrusted(data, l3)
    if offload is None:
        return [data]
    if frame.gso_size and len(data) > offload.hdr_len:
        offload.gso_type, offload.gso_size = frame.gso_type, frame.gso_size
        if offload.csum_offset == _CHECK_AT[_UDP]:
            offload.gso_type = GSO_UDP_L4
        elif frame.gso_type & ~GSO_ECN == GSO_UDP_L4:
            return [data]
        return [b"".join(parts) for parts in segments([data], offload, l3)]
    return [b"".join(checksummed([data], offload))]
