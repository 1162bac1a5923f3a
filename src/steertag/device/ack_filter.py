"""Leaves out acknowledgements that a later one of the same turn says again, and more.

A sender gets one for every one or two segments; taken in together, the last says all: the sender is
not helped by the others, and each costs the whole way up. (Linux: ack-filter of tc-cake(8), which
drops them on a link's way up; RFC 3449, section 5.2.1.)

Left out is a plain acknowledgement: ACK the only flag, no payload, no option but timestamps, right
behind it one of the same connection which is like it in all but that it acknowledges more. What
says anything else, a repeated number, a SACK block, ECN-Echo, a window that alone has changed, is
never left out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from steertag.device.frame import CHECKSUM_NONE, Frame
from steertag.wire.checksum import partial

_IPV4: Final = struct.Struct("!BBHHHBBH12sIII")
"""As far as TCP's data offset, flags and window; see gro.py."""
_IPV6: Final = struct.Struct("!IHBB36sIII")
_IPV4_LEN: Final = 20
_IPV6_LEN: Final = 40
_TCP: Final = 6
_FRAGMENT: Final = 0x3FFF
_LONGEST: Final = _IPV6_LEN + 32
_FLAGS: Final = 0x0FFF0000
_ACK: Final = 0x00100000
_BARE: Final = 20
_STAMPED: Final = 32
_TIMESTAMPS: Final = b"\x01\x01\x08\x0a"
_HALF: Final = 1 << 31


class AckFilter:
    """Of one device.

    Args:
        deliver: takes a frame; may not raise.
        l3: where the IP header starts: octets of the link-layer header.
    """

    __slots__ = ("_ack", "_deliver", "_held", "_l3", "_like", "_longest")

    def __init__(self, deliver: Callable[[Frame], None], l3: int = 0) -> None:
        self._deliver = deliver
        self._l3 = l3
        self._longest = l3 + _LONGEST
        self._held: Frame | None = None
        self._like: object = None  # what is to be alike
        self._ack = 0

    def receive(self, frame: Frame) -> None:
        """Take a frame: it is delivered now, or at the latest by `flush`, or left out."""
        held = self._held
        data = frame.data
        if len(data) > self._longest:
            if held is not None:
                self._held = None
                self._deliver(held)
            self._deliver(frame)
            return
        plain = self._plain(data)
        if held is not None:
            self._held = None
            if (
                plain is None
                or plain[0] != self._like
                or not 0 < (plain[1] - self._ack) & 0xFFFFFFFF < _HALF
                or (frame.csum == CHECKSUM_NONE and not self._verified(data))
            ):
                self._deliver(held)
        if plain is None:
            self._deliver(frame)
        else:
            self._held = frame
            self._like, self._ack = plain

    def flush(self) -> None:
        """Deliver what is held back."""
        held = self._held
        if held is not None:
            self._held = None
            self._deliver(held)

    def _plain(self, data: memoryview) -> tuple[object, int] | None:
        """What a plain acknowledgement has to be like to say the same, and the number it says."""
        l3 = self._l3
        length = len(data) - l3
        if length >= _IPV4_LEN + _BARE and data[l3] == 0x45:
            _, tos, total, _, fragment, ttl, protocol, _, key, seq, ack, word = _IPV4.unpack_from(
                data, l3
            )
            l4 = _IPV4_LEN
            if total != length or fragment & _FRAGMENT:
                return None
        elif length >= _IPV6_LEN + _BARE and data[l3] >> 4 == 6:
            tos, payload, protocol, ttl, key, seq, ack, word = _IPV6.unpack_from(data, l3)
            l4 = _IPV6_LEN
            if payload + l4 != length:
                return None
        else:
            return None
        header = word >> 28 << 2
        if protocol != _TCP or word & _FLAGS != _ACK or header + l4 != length:
            return None
        options = l3 + l4 + _BARE
        if header != _BARE and (
            header != _STAMPED or bytes(data[options : options + 4]) != _TIMESTAMPS
        ):
            return None
        return (key, seq, tos, ttl, header, bytes(data[:l3])), ack

    def _verified(self, data: memoryview) -> bool:
        """Whether TCP's checksum is right, and the IPv4 header's."""
        l3 = self._l3
        if data[l3] == 0x45:
            l4, addresses = l3 + _IPV4_LEN, data[l3 + 12 : l3 + _IPV4_LEN]
            if int.from_bytes(data[l3:l4], "big") % 0xFFFF:
                return False
        else:
            l4, addresses = l3 + _IPV6_LEN, data[l3 + 8 : l3 + _IPV6_LEN]
        total = partial(data[l4:]) + partial(addresses) + _TCP + len(data) - l4
        return total % 0xFFFF == 0
