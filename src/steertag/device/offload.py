"""The way out to a device, which does in software what the device lacks (validate_xmit_skb)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from steertag.device.base import Device
from steertag.device.frame import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NETIF_F_GSO_UDP_L4,
    NETIF_F_HW_CSUM,
    NETIF_F_TSO,
    NETIF_F_TSO6,
    Offload,
)
from steertag.device.gso import checksummed, segments
from steertag.errors import os_error
from steertag.family.skbuff import Buffer

_NEEDED: Final = {
    GSO_NONE: NETIF_F_HW_CSUM,
    GSO_TCPV4: NETIF_F_TSO | NETIF_F_HW_CSUM,
    GSO_TCPV6: NETIF_F_TSO6 | NETIF_F_HW_CSUM,
    GSO_UDP_L4: NETIF_F_GSO_UDP_L4 | NETIF_F_HW_CSUM,
}
_KIND: Final = ~GSO_ECN


def dev_queue_xmit(device: Device, parts: Sequence[Buffer], offload: Offload | None = None) -> None:
    """Send a frame, doing here what the device lacks of `offload`.

    Raises:
        OSError: as `Device.transmit`; ENETDOWN too where the device is not `up`. Of a super-segment
            that is cut here nothing was sent then.
    """
    if not device.up:
        device.stats.tx_dropped += 1
        raise os_error(errno.ENETDOWN)
    if offload is None:
        device.transmit(parts)
        return
    needed = _NEEDED[offload.gso_type & _KIND]
    features = device.features
    if features & needed == needed:
        device.transmit(parts, offload)
    elif offload.gso_size:
        _transmit_segments(device, parts, offload)
    else:
        device.transmit(checksummed(parts, offload))


def _transmit_segments(device: Device, parts: Sequence[Buffer], offload: Offload) -> None:
    """The first segment that can't be sent is an error; later ones are lost, as on the wire."""
    checksums = not device.features & NETIF_F_HW_CSUM
    rest = Offload(offload.csum_start, offload.csum_offset, GSO_NONE, 0, offload.hdr_len)
    left = None if checksums else rest
    sent = False
    for frame in segments(parts, offload, device.hard_header_len, checksums=checksums):
        try:
            device.transmit(frame, left)
        except OSError:
            if not sent:
                raise
        sent = True
