"""How often ICMP errors are sent (icmp_global_allow, inet_peer_xrlim_allow; RFC 4443 2.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_PEERS: Final = 1024
_BURST: Final = 6


class TokenBucket:
    """So many a second to everybody, and a few at once (icmp_global).

    Args:
        rate, burst: rows of sysctls: messages a second, messages at once.
    """

    def __init__(self, clock: Callable[[], float], rate: list[int], burst: list[int]) -> None:
        self._clock, self._rate, self._burst = clock, rate, burst
        self._credit = float(burst[0])
        self._stamp = clock()

    def take(self) -> bool:
        now = self._clock()
        self._credit = min(self._burst[0], self._credit + (now - self._stamp) * self._rate[0])
        self._stamp = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True


class PeerLimit:
    """One in so many milliseconds to each peer, and six at once (inet_peer_xrlim_allow).

    Peers that nothing was sent to for longest are forgotten for new ones.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._peers: dict[bytes, tuple[float, float]] = {}  # tokens (seconds), last time

    def take(self, peer: bytes, milliseconds: int) -> bool:
        if not milliseconds:
            return True
        now, cost = self._clock(), milliseconds / 1000
        tokens, last = self._peers.pop(peer, (_BURST * cost, now))
        tokens = min(tokens + now - last, _BURST * cost)
        allowed = tokens >= cost
        if len(self._peers) >= _PEERS:
            del self._peers[next(iter(self._peers))]
        self._peers[peer] = (tokens - cost if allowed else tokens, now)
        return allowed
