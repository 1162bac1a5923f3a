"""Numbers that an outsider may not guess: initial sequence numbers, timestamp and port offsets.

RFC 6528 (ISN = M + F(4-tuple, secret)), RFC 7323 section 5.4 (timestamp offsets), RFC 6056.
All are keyed BLAKE2s over the addresses; the key is the network's secret.
"""

from __future__ import annotations

from hashlib import blake2s
from typing import Final

_MASK: Final = 0xFFFFFFFF


def keyed_hash(secret: bytes, use: bytes, *parts: bytes) -> int:
    """64 bits out of `parts`, which the key and the purpose (at most 8 octets) make unguessable."""
    digest = blake2s(b"\0".join(parts), digest_size=8, key=secret[:32], person=use)
    return int.from_bytes(digest.digest(), "big")


def _ends(laddr: bytes, lport: int, raddr: bytes, rport: int) -> bytes:
    return b"%b%b%b%b" % (laddr, lport.to_bytes(2, "big"), raddr, rport.to_bytes(2, "big"))


def secure_tcp_seq(
    secret: bytes, laddr: bytes, lport: int, raddr: bytes, rport: int, now: float
) -> int:
    """An initial sequence number: it advances by one in 64 ns, so that an old incarnation of the
    same connection lies behind (RFC 6528 section 3)."""
    offset = keyed_hash(secret, b"isn", _ends(laddr, lport, raddr, rport))
    return (offset + (int(now * 1e9) >> 6)) & _MASK


def secure_tcp_ts_off(secret: bytes, laddr: bytes, raddr: bytes) -> int:
    """What is added to the clock in timestamps to that peer: one value for all connections to it,
    so that TIME-WAIT and PAWS can compare them."""
    return keyed_hash(secret, b"ts_off", laddr, raddr) & _MASK


def tcp_clock_ms(now: float) -> int:
    """The timestamp clock, in milliseconds, before the offset (tcp_clock_ts)."""
    return int(now * 1000) & _MASK


def secure_port_offset(secret: bytes, laddr: bytes, raddr: bytes, rport: int) -> int:
    """Where the search for an ephemeral port to that destination starts: 64 bits (RFC 6056)."""
    return keyed_hash(secret, b"port", laddr, raddr, rport.to_bytes(2, "big"))
