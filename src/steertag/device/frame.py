"""Frames, and what is known of them or left to be done (Linux: the offload fields of sk_buff)."""

from __future__ import annotations

from typing import Final

# What is known of a received frame's transport checksum (linux/skbuff.h).
CHECKSUM_NONE: Final = 0
CHECKSUM_UNNECESSARY: Final = 1
CHECKSUM_PARTIAL: Final = 3

# gso_type (linux/virtio_net.h)
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

# features
NETIF_F_HW_CSUM: Final = 1
NETIF_F_RXCSUM: Final = 2
NETIF_F_TSO: Final = 4
NETIF_F_TSO6: Final = 8
NETIF_F_GSO_UDP_L4: Final = 16
NETIF_F_ALL: Final = 31
"""All that a device itself can do."""

# type (linux/if_arp.h)
ARPHRD_ETHER: Final = 1
ARPHRD_LOOPBACK: Final = 772
ARPHRD_NONE: Final = 0xFFFE

ETH_HLEN: Final = 14
ETH_P_IP: Final = 0x0800
ETH_P_IPV6: Final = 0x86DD
MAX_SUPER_FRAME: Final = 65535


class Frame:
    """A frame as it was received.

    Attributes:
        data: its octets; they live, unchanged, as long as somebody holds them.
        csum: CHECKSUM_NONE: the transport checksum is still to be verified. Else it is not, as
            somebody did (CHECKSUM_UNNECESSARY), or as the frame never was on a wire, and the field
            holds the pseudo-header's sum alone (CHECKSUM_PARTIAL).
        gso_type, gso_size: of a super-segment: what it is, and the payload of each segment in it.
    """

    __slots__ = ("csum", "data", "gso_size", "gso_type")

    def __init__(
        self,
        data: memoryview,
        csum: int = CHECKSUM_NONE,
        gso_type: int = GSO_NONE,
        gso_size: int = 0,
    ) -> None:
        self.data = data
        self.csum = csum
        self.gso_type = gso_type
        self.gso_size = gso_size

    def __len__(self) -> int:
        return len(self.data)


class Offload:
    """What is left to the device, or to software on its behalf (offload.py), of a frame to send.

    The checksum field holds the sum of the pseudo-header, folded, not complemented, as virtio has
    it. Positions count from the start of the frame's parts: whoever puts octets in front adds their
    number (`moved`).

    Attributes:
        csum_start: where the checksummed octets begin. csum_offset: of the field, from there.
        gso_type, gso_size: cut the payload into segments of that many octets; GSO_NONE: leave it.
        hdr_len: octets of all headers, the transport's included.
    """

    __slots__ = ("csum_offset", "csum_start", "gso_size", "gso_type", "hdr_len")

    def __init__(
        self, csum_start: int, csum_offset: int, gso_type: int, gso_size: int, hdr_len: int
    ) -> None:
        self.csum_start = csum_start
        self.csum_offset = csum_offset
        self.gso_type = gso_type
        self.gso_size = gso_size
        self.hdr_len = hdr_len

    def moved(self, octets: int) -> None:
        """So many octets were put in front."""
        self.csum_start += octets
        self.hdr_len += octets
