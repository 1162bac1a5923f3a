"""What a device can't do of a frame, done in software (validate_xmit_skb, net/core/gso.c)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from steertag.device.base import (
    CHECKSUM_NONE,
    CHECKSUM_PARTIAL,
    CHECKSUM_UNNECESSARY,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NETIF_F_GSO_UDP_L4,
    NETIF_F_HW_CSUM,
    NETIF_F_TSO,
    NETIF_F_TSO6,
    Device,
    Frame,
    Offload,
)
from steertag.family.skbuff import Buffer
from steertag.wire.checksum import checksum, fold, partial

_NEEDED: Final = {
    GSO_TCPV4: NETIF_F_TSO | NETIF_F_HW_CSUM,
    GSO_TCPV6: NETIF_F_TSO6 | NETIF_F_HW_CSUM,
    GSO_UDP_L4: NETIF_F_GSO_UDP_L4 | NETIF_F_HW_CSUM,
}
_U16: Final = struct.Struct("!H")
_U32: Final = struct.Struct("!I")
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80
_TCP: Final = 6
_UDP: Final = 17


def dev_queue_xmit(device: Device, parts: Sequence[Buffer], offload: Offload | None) -> None:
    """Send a frame, doing here what the device lacks of `offload`. Raises as `transmit`."""
    if offload is None:
        device.transmit(parts)
        return
    needed = _NEEDED.get(offload.gso_type & ~GSO_ECN, NETIF_F_HW_CSUM)
    if device.features & needed == needed:
        device.transmit(parts, offload)
    elif offload.gso_type == GSO_NONE:
        device.transmit(checksummed(parts, offload))
    else:
        for frame in segments(parts, offload, device.hard_header_len):
            device.transmit(frame)


def checksummed(parts: Sequence[Buffer], offload: Offload) -> list[Buffer]:
    """The frame with its transport checksum in place (skb_checksum_help)."""
    header = bytearray(parts[0])
    rest = list(parts[1:])
    if len(header) < offload.csum_start + offload.csum_offset + 2:
        header = bytearray(b"".join(parts))
        rest = []
    value = checksum(memoryview(header)[offload.csum_start :], *rest)
    # A UDP checksum of zero would mean that there is none.
    _U16.pack_into(header, offload.csum_start + offload.csum_offset, value or 0xFFFF)
    return [header, *rest]


def segments(parts: Sequence[Buffer], offload: Offload, l3: int = 0) -> Iterator[list[Buffer]]:
    """The frames of at most `gso_size` octets of payload that a super-segment stands for.

    Each has its own lengths, IP identification, sequence number and checksums; FIN and PSH go with
    the last, CWR with the first (net/ipv4/tcp_offload.c, udp_offload.c). `l3` says where the IP
    header starts.
    """
    headers = b"".join(parts) if len(parts[0]) < offload.hdr_len else parts[0]
    template = bytes(headers[: offload.hdr_len])
    if len(parts) == 2 and len(parts[0]) == offload.hdr_len:
        payload = memoryview(parts[1])
    else:
        payload = memoryview(b"".join(parts))[offload.hdr_len :]
    size = offload.gso_size
    total = len(payload)
    kind = offload.gso_type & ~GSO_ECN
    l4 = offload.csum_start
    version = template[l3] >> 4
    for at in range(0, total, size):
        piece = payload[at : at + size]
        header = bytearray(template)
        _fix_network(header, l3, version, len(header) - l3 + len(piece), at // size)
        if kind == GSO_UDP_L4:
            length = len(header) - l4 + len(piece)
            _U16.pack_into(header, l4 + 4, length)
        else:
            seq = _U32.unpack_from(template, l4 + 4)[0]
            _U32.pack_into(header, l4 + 4, (seq + at) & 0xFFFFFFFF)
            if at + size < total:
                header[l4 + 13] &= ~_FIN_PSH
            if at:
                header[l4 + 13] &= ~_CWR
        _fix_checksum(header, l4, offload.csum_offset, piece, total)
        yield [header, piece]


def _fix_network(header: bytearray, l3: int, version: int, length: int, number: int) -> None:
    if version == 4:
        _U16.pack_into(header, l3 + 2, length)
        ident = _U16.unpack_from(header, l3 + 4)[0]
        _U16.pack_into(header, l3 + 4, (ident + number) & 0xFFFF)
        _U16.pack_into(header, l3 + 10, 0)
        end = l3 + (header[l3] & 15) * 4
        _U16.pack_into(header, l3 + 10, checksum(bytes(header[l3:end])))
    else:
        _U16.pack_into(header, l3 + 4, length - 40)


def _fix_checksum(
    header: bytearray, l4: int, csum_offset: int, piece: memoryview, total: int
) -> None:
    """The field holds the sum of a pseudo-header with the super-segment's length: put it right."""
    at = l4 + csum_offset
    pseudo = _U16.unpack_from(header, at)[0]
    _U16.pack_into(header, at, 0)
    # 0xFFFF is zero in this arithmetic: adding multiples of it keeps the difference positive.
    shorter = pseudo + 0xFFFF * 2 - (total - len(piece))
    value = fold(shorter + partial(bytes(header[l4:])) + partial(piece)) ^ 0xFFFF
    _U16.pack_into(header, at, value or 0xFFFF)


def cut_frame(frame: Frame, l3: int) -> list[tuple[bytes, int]]:
    """What would have come over a wire, for a frame as received: octets and CHECKSUM_* of each.

    `l3`: where the IP header starts. A frame that is not what its `gso_type` says stays whole.
    """
    data = frame.data
    if frame.csum != CHECKSUM_PARTIAL:
        return [(bytes(data), frame.csum)]
    offload = _offload_of(frame, l3)
    if offload is None:
        return [(bytes(data), CHECKSUM_UNNECESSARY)]
    if not frame.gso_type or offload.gso_size <= 0:
        return [(b"".join(checksummed([data], offload)), CHECKSUM_NONE)]
    return [(b"".join(piece), CHECKSUM_NONE) for piece in segments([data], offload, l3)]


def _offload_of(frame: Frame, l3: int) -> Offload | None:
    """The Offload with which a frame that we received would have been sent."""
    data = frame.data
    if len(data) < l3 + 20:
        return None
    version = data[l3] >> 4
    l4 = l3 + ((data[l3] & 15) * 4 if version == 4 else 40)
    protocol = data[l3 + 9] if version == 4 else data[l3 + 6]
    if protocol == _TCP and len(data) >= l4 + 20:
        return Offload(l4, 16, frame.gso_type, frame.gso_size, l4 + (data[l4 + 12] >> 4) * 4)
    if protocol == _UDP and len(data) >= l4 + 8:
        return Offload(l4, 6, frame.gso_type, frame.gso_size, l4 + 8)
    return None
