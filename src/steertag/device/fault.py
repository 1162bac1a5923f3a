"""A link that loses, delays, repeats and damages, by a seed (as tc-netem(8) does)."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from steertag.device.base import Device
from steertag.device.frame import (
    CHECKSUM_NONE,
    CHECKSUM_PARTIAL,
    CHECKSUM_UNNECESSARY,
    Frame,
    Offload,
)
from steertag.device.gso import on_the_wire_untrusted
from steertag.device.middleware import Middleware
from steertag.errors import StateError
from steertag.family.skbuff import Buffer
from steertag.family.timer import Timer, TimerBase

_LEAST_LATE: Final = 0.005
"""Seconds, at least, within which a reordered packet is late on a link without delay."""


@dataclass(slots=True)
class FaultStats:
    """What was done, in packets, of one direction."""

    passed: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    reordered: int = 0
    overlimits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may happen to a packet. Probabilities are from 0 to 1, times in seconds.

    Attributes:
        loss: of a packet. With `burst_exit` that of a burst's beginning.
        burst_exit: Gilbert's model: while a burst lasts everything is lost, and this is the
            probability that the next packet ends it; 0: no bursts, losses are independent.
        duplicate: it arrives twice. corrupt: one bit of it is flipped.
        reorder: it is late, so that others overtake it.
        delay, jitter: the way takes `delay`, give or take `jitter`; the order is kept.
        rate: bits a second; None: no limit.
        limit: packets that may be on their way; what comes then is lost.
    """

    loss: float = 0.0
    burst_exit: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None
    limit: int = 1000

    def __post_init__(self) -> None:
        for name in ("loss", "burst_exit", "duplicate", "corrupt", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise StateError(f"{name} is a probability, not {getattr(self, name)}")
        for name in ("delay", "jitter"):
            if getattr(self, name) < 0.0:
                raise StateError(f"{name} is a time, not {getattr(self, name)}")
        if self.rate is not None and self.rate <= 0:
            raise StateError(f"rate is in bits a second, not {self.rate}")
        if self.limit < 1:
            raise StateError(f"limit is a number of packets, not {self.limit}")


@dataclass(slots=True)
class _Way:
    """One direction."""

    faults: Faults
    rng: random.Random
    stats: FaultStats = field(default_factory=FaultStats)
    queue: list[tuple[float, int, bytes, int]] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    in_burst: bool = False
    free_at: float = 0.0
    last: float = 0.0

    def enter(self, packet: bytes, csum: int, now: float) -> None:
        """A packet sets out; whether, when and how it arrives is decided here."""
        faults, rng, stats = self.faults, self.rng, self.stats
        if self._is_lost():
            stats.lost += 1
            return
        copies = 1
        if faults.duplicate and rng.random() < faults.duplicate:
            stats.duplicated += 1
            copies = 2
        for _ in range(copies):
            if len(self.queue) >= faults.limit:
                stats.overlimits += 1
                return
            octets = packet
            known = csum
            if faults.corrupt and packet and rng.random() < faults.corrupt:
                stats.corrupted += 1
                octets = self._damaged(packet)
                known = CHECKSUM_NONE
            heapq.heappush(
                self.queue, (self._arrival(len(packet), now), next(self.numbers), octets, known)
            )

    def _is_lost(self) -> bool:
        faults, rng = self.faults, self.rng
        if not faults.loss and not self.in_burst:
            return False
        if self.in_burst:
            if rng.random() < faults.burst_exit:
                self.in_burst = False
                return False
            return True
        if rng.random() >= faults.loss:
            return False
        self.in_burst = faults.burst_exit > 0
        return True

    def _damaged(self, packet: bytes) -> bytes:
        octets = bytearray(packet)
        bit = self.rng.randrange(8 * len(octets))
        octets[bit >> 3] ^= 1 << (bit & 7)
        return bytes(octets)

    def _arrival(self, length: int, now: float) -> float:
        faults, rng = self.faults, self.rng
        when = now
        if faults.rate is not None:
            self.free_at = max(self.free_at, now) + 8 * length / faults.rate
            when = self.free_at
        when += faults.delay
        if faults.jitter:
            when = max(when + rng.uniform(-faults.jitter, faults.jitter), now)
        if faults.reorder and rng.random() < faults.reorder:
            self.stats.reordered += 1
            return when + rng.uniform(0, max(faults.delay, faults.jitter, _LEAST_LATE))
        self.last = max(self.last, when)
        return self.last

    def arrived(self, now: float) -> list[tuple[bytes, int]]:
        """What has arrived by `now`, in order."""
        found = []
        while self.queue and self.queue[0][0] <= now:
            _, _, packet, csum = heapq.heappop(self.queue)
            self.stats.passed += 1
            found.append((packet, csum))
        return found


class FaultDevice(Middleware):
    """Faults on both ways of a device; super-segments are cut first, so that each packet of a wire
    has its own fate.

    Args:
        inner: any device.
        rng: decides; seeded, a run can be repeated.
        clock, timers: the Stack's.
        transmit, receive: the faults of each way; None for those that the keywords give.
        keywords: as of `Faults`, for the ways that have none of their own.

    Attributes:
        sent, received: what was done on each way.
    """

    def __init__(
        self,
        inner: Device,
        *,
        rng: random.Random,
        clock: Callable[[], float],
        timers: TimerBase,
        transmit: Faults | None = None,
        receive: Faults | None = None,
        loss: float = 0.0,
        burst_exit: float = 0.0,
        duplicate: float = 0.0,
        corrupt: float = 0.0,
        reorder: float = 0.0,
        delay: float = 0.0,
        jitter: float = 0.0,
        rate: float | None = None,
        limit: int = 1000,
    ) -> None:
        super().__init__(inner, features=0)
        both = Faults(
            loss=loss,
            burst_exit=burst_exit,
            duplicate=duplicate,
            corrupt=corrupt,
            reorder=reorder,
            delay=delay,
            jitter=jitter,
            rate=rate,
            limit=limit,
        )
        self._clock = clock
        # One rng for each way: how much goes one way doesn't change what happens on the other.
        self._out = _Way(transmit or both, random.Random(rng.getrandbits(64)))
        self._in = _Way(receive or both, random.Random(rng.getrandbits(64)))
        self._out_timer = Timer(timers, self._send_arrived)
        self._in_timer = Timer(timers, self._news)
        self._ready: deque[Frame] = deque()

    @property
    def sent(self) -> FaultStats:
        return self._out.stats

    @property
    def received(self) -> FaultStats:
        return self._in.stats

    def transmit(self, parts: Sequence[Buffer], offload: Offload | None = None) -> None:
        packet = b"".join(parts)
        self.count_transmit(len(packet), offload)
        self._out.enter(packet, CHECKSUM_NONE, self._clock())
        self._send_arrived()

    def _send_arrived(self) -> None:
        for packet, _ in self._out.arrived(self._clock()):
            try:
                self.inner.transmit([packet])
            except OSError:
                self.stats.tx_dropped += 1
        self._set(self._out_timer, self._out)

    def receive(self) -> Frame | None:
        if not self._ready:
            self._take_in()
        return self._ready.popleft() if self._ready else None

    def _take_in(self) -> None:
        now = self._clock()
        while (frame := self.inner.receive()) is not None:
            known = CHECKSUM_NONE if frame.csum == CHECKSUM_PARTIAL else frame.csum
            for packet in on_the_wire_untrusted(frame, self.hard_header_len):
                self._in.enter(bytes(packet), known, now)
        for packet, csum in self._in.arrived(now):
            self._ready.append(Frame(memoryview(packet), csum and CHECKSUM_UNNECESSARY))
        self._set(self._in_timer, self._in)

    def _set(self, timer: Timer, way: _Way) -> None:
        if way.queue:
            timer.mod(way.queue[0][0])
        else:
            timer.delete()

    def close(self) -> None:
        self._out_timer.delete()
        self._in_timer.delete()
        super().close()
