"""Addresses: text and octets, kinds and scopes (net/ipv6/addrconf_core.c; RFC 4291, RFC 6890).

Inside they are octets, 4 or 16; text is for users.
"""

from __future__ import annotations

import errno
import ipaddress
from typing import Final

from steertag.errors import os_error

ANY4: Final = bytes(4)
ANY6: Final = bytes(16)
BROADCAST4: Final = b"\xff" * 4
LOOPBACK4: Final = b"\x7f\x00\x00\x01"
LOOPBACK6: Final = bytes(15) + b"\x01"
LINK_LOCAL_PREFIX: Final = b"\xfe\x80" + bytes(6)
ALL_NODES: Final = b"\xff\x02" + bytes(13) + b"\x01"
NODE_LOCAL_ALL_NODES: Final = b"\xff\x01" + bytes(13) + b"\x01"
ALL_HOSTS4: Final = b"\xe0\x00\x00\x01"

SCOPE_LINK: Final = 2
SCOPE_SITE: Final = 5
SCOPE_GLOBAL: Final = 14


def parse(text: str) -> bytes:
    """Octets of an address in text. Raises EINVAL for what is none."""
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        raise os_error(errno.EINVAL, f"{text!r} is no IP address") from None


def parse_prefix(text: str) -> tuple[bytes, int]:
    """Octets and length of "10.0.0.2/24", "fd00::/8", "default", "default6"; no length: all bits.

    Raises:
        OSError: EINVAL.
    """
    if text == "default":
        return ANY4, 0
    if text == "default6":
        return ANY6, 0
    address, slash, length = text.partition("/")
    packed = parse(address)
    bits = 8 * len(packed)
    if not slash:
        return packed, bits
    if not (length.isascii() and length.isdigit() and int(length) <= bits):
        raise os_error(errno.EINVAL, f"{text!r} is no prefix")
    return packed, int(length)


def text(address: bytes) -> str:
    """As inet_ntop(3) writes it."""
    return str(ipaddress.ip_address(address)) if address else "any"


def masked(address: bytes, length: int) -> bytes:
    """The address with all but its first `length` bits cleared."""
    size = len(address)
    shift = 8 * size - length
    return (int.from_bytes(address, "big") >> shift << shift).to_bytes(size, "big")


def common_prefix(first: bytes, second: bytes) -> int:
    """How many bits two addresses of one size start with alike."""
    differing = int.from_bytes(first, "big") ^ int.from_bytes(second, "big")
    return 8 * len(first) - differing.bit_length()


def is_any(address: bytes) -> bool:
    return not any(address)


def is_multicast(address: bytes) -> bool:
    if len(address) == 4:
        return address[0] & 0xF0 == 0xE0
    return address[0] == 0xFF


def is_loopback(address: bytes) -> bool:
    if len(address) == 4:
        return address[0] == 127
    return address == LOOPBACK6


def is_link_local(address: bytes) -> bool:
    """fe80::/10, or a multicast address of that scope; of IPv4 169.254/16."""
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe"
    if address[0] == 0xFF:
        return address[1] & 0x0F == SCOPE_LINK
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def scope(address: bytes) -> int:
    """Of an IPv6 address, in the numbers of multicast addresses (RFC 4291 section 2.7)."""
    if address[0] == 0xFF:
        return address[1] & 0x0F
    if address == LOOPBACK6 or is_link_local(address):
        return SCOPE_LINK
    if address[0] == 0xFE and address[1] & 0xC0 == 0xC0:
        return SCOPE_SITE
    return SCOPE_GLOBAL


def solicited_node(address: bytes) -> bytes:
    """The group that Neighbor Discovery asks (RFC 4291 section 2.7.1)."""
    return b"\xff\x02" + bytes(9) + b"\x01\xff" + address[13:]


# RFC 6724 section 2.1: prefix, label. The longest that matches counts.
_POLICY: Final = (
    (LOOPBACK6, 128, 0),
    (bytes(10) + b"\xff\xff" + bytes(4), 96, 4),
    (bytes(16), 96, 3),
    (b"\x20\x01" + bytes(14), 32, 5),
    (b"\x20\x02" + bytes(14), 16, 2),
    (b"\x3f\xfe" + bytes(14), 16, 12),
    (b"\xfe\xc0" + bytes(14), 10, 11),
    (b"\xfc" + bytes(15), 7, 13),
    (ANY6, 0, 1),
)


def label(address: bytes) -> int:
    """Of an IPv6 address, by the default policy table of RFC 6724."""
    return next(value for prefix, size, value in _POLICY if masked(address, size) == prefix)
