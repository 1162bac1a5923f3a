"""A link that loses, delays, repeats and damages, by a seed (as tc-netem(8) does)."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from steertag.device.base import Device
from steertag.device.frame import CHECKSUM_NONE, CHECKSUM_PARTIAL, Frame, Offload
from steertag.device.gso import checksummed, on_the_wire_untrusted, transport_untrusted
from steertag.device.middleware import Middleware
from steertag.errors import StateError
from steertag.family.skbuff import Buffer
from steertag.family.timer import Timer, TimerBase

_LEAST_LATE: Final = 0.005
"""Seconds, at least, within which a reordered packet is late on a link without delay."""
_BUDGET: Final = 300
"""Packets taken from the inner device in one go: a flood of those that are lost has an end too."""


@dataclass(slots=True)
class FaultStats:
    """What was done, in packets, of one direction.

    Attributes:
        passed: those that arrived, repetitions included.
        overlimits: those lost as too many were on their way. too_long: as longer than `Faults.mtu`.
        refused: those that the inner device would not send.
    """

    passed: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    reordered: int = 0
    overlimits: int = 0
    too_long: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may happen to a packet. Probabilities are from 0 to 1, times in seconds.

    Attributes:
        loss: of a packet. With `burst_exit` that of a burst's beginning.
        burst_exit: the Gilbert-Elliott model: the probability that a burst is over with the next
            packet; 0: no bursts, losses are independent.
        burst_loss: of a packet in a burst; 1 is Gilbert's model.
        duplicate: it arrives twice. corrupt: one bit of it is flipped, checksums being there.
        reorder: it is late, so that others overtake it.
        delay, jitter: the way takes `delay`, give or take `jitter`; the order is kept.
        rate: bits a second; None: no limit.
        limit: packets that may be on their way; what comes then is lost.
        mtu: octets of the longest packet that gets through, without its link-layer header: longer
            ones vanish, as where no ICMP message comes back. None: all do.
    """

    loss: float = 0.0
    burst_exit: float = 0.0
    burst_loss: float = 1.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None
    limit: int = 1000
    mtu: int | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "burst_exit", "burst_loss", "duplicate", "corrupt", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise StateError(f"{name} is a probability, not {getattr(self, name)}")
        for name in ("delay", "jitter"):
            if getattr(self, name) < 0.0:
                raise StateError(f"{name} is a time, not {getattr(self, name)}")
        if self.rate is not None and self.rate <= 0:
            raise StateError(f"rate is in bits a second, not {self.rate}")
        if self.limit < 1:
            raise StateError(f"limit is a number of packets, not {self.limit}")
        if self.mtu is not None and self.mtu < 1:
            raise StateError(f"mtu is a number of octets, not {self.mtu}")

    @property
    def chooses(self) -> bool:
        """Whether one packet may fare otherwise than the next, apart from when it arrives."""
        some = self.loss or self.duplicate or self.corrupt or self.reorder
        return bool(some) or self.mtu is not None


class _Way:
    """One direction. An item is what arrives; its octets are known here by `size` and `damage`."""

    __slots__ = (
        *("_faults", "_free_at", "_in_burst", "_l2", "_last", "_numbers", "_rng", "queue"),
        "stats",
    )

    def __init__(self, faults: Faults, rng: random.Random, l2: int) -> None:
        self._faults = faults
        self._rng = rng
        self._l2 = l2
        self._numbers = itertools.count()
        self._in_burst = False
        self._free_at = 0.0  # when what set out before is on the line, where there is a rate
        self._last = 0.0  # when the last one in order arrives
        self.stats = FaultStats()
        self.queue: list[tuple[float, int, Frame, Offload | None]] = []

    def enter(self, frame: Frame, offload: Offload | None, now: float) -> None:
        """A packet sets out; whether, when and how it arrives is decided here."""
        faults, rng, stats = self._faults, self._rng, self.stats
        if faults.mtu is not None and len(frame.data) > faults.mtu + self._l2:
            stats.too_long += 1
            return
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
            item: tuple[Frame, Offload | None] = (frame, offload)
            if faults.corrupt and frame.data and rng.random() < faults.corrupt:
                stats.corrupted += 1
                item = (self._damaged(frame, offload), None)
            arrival = self._arrival(len(frame.data), now)
            heapq.heappush(self.queue, (arrival, next(self._numbers), *item))

    def _is_lost(self) -> bool:
        faults, rng = self._faults, self._rng
        if self._in_burst:
            if rng.random() < faults.burst_exit:
                self._in_burst = False
                return False
            return rng.random() < faults.burst_loss
        if not faults.loss or rng.random() >= faults.loss:
            return False
        self._in_burst = faults.burst_exit > 0
        return not self._in_burst or rng.random() < faults.burst_loss

    def _damaged(self, frame: Frame, offload: Offload | None) -> Frame:
        """With one bit flipped. Checksums that nobody has computed yet are, before it is."""
        parts: Sequence[Buffer] = (frame.data,)
        if offload is None and frame.csum == CHECKSUM_PARTIAL:
            offload = transport_untrusted(frame.data, self._l2)
        if offload is not None:
            parts = checksummed(parts, offload)
        octets = bytearray(b"".join(parts))
        bit = self._rng.randrange(8 * len(octets))
        octets[bit >> 3] ^= 1 << (bit & 7)
        return Frame(memoryview(bytes(octets)), CHECKSUM_NONE, frame.gso_type, frame.gso_size)

    def _arrival(self, length: int, now: float) -> float:
        faults, rng = self._faults, self._rng
        when = now
        if faults.rate is not None:
            self._free_at = max(self._free_at, now) + 8 * length / faults.rate
            when = self._free_at
        when += faults.delay
        if faults.jitter:
            when = max(when + rng.uniform(-faults.jitter, faults.jitter), now)
        if faults.reorder and rng.random() < faults.reorder:
            self.stats.reordered += 1
            return when + rng.uniform(0, max(faults.delay, faults.jitter, _LEAST_LATE))
        self._last = max(self._last, when)
        return self._last

    def arrived(self, now: float) -> list[tuple[Frame, Offload | None]]:
        """What has arrived by `now`, in order."""
        found = []
        queue = self.queue
        while queue and queue[0][0] <= now:
            _, _, frame, offload = heapq.heappop(queue)
            self.stats.passed += 1
            found.append((frame, offload))
        return found


class FaultDevice(Middleware):
    """Faults on both ways of a device.

    Args:
        inner: any device.
        rng: decides; seeded, a run can be repeated.
        clock, timers: the Stack's.
        transmit, receive: the faults of each way; None for those that the keywords give.
        whole: super-segments share one fate. Else they are cut first, so that each packet of a wire
            has its own. None: whole where faults are of time only.
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
        whole: bool | None = None,
        loss: float = 0.0,
        burst_exit: float = 0.0,
        burst_loss: float = 1.0,
        duplicate: float = 0.0,
        corrupt: float = 0.0,
        reorder: float = 0.0,
        delay: float = 0.0,
        jitter: float = 0.0,
        rate: float | None = None,
        limit: int = 1000,
        mtu: int | None = None,
    ) -> None:
        both = Faults(
            loss=loss,
            burst_exit=burst_exit,
            burst_loss=burst_loss,
            duplicate=duplicate,
            corrupt=corrupt,
            reorder=reorder,
            delay=delay,
            jitter=jitter,
            rate=rate,
            limit=limit,
            mtu=mtu,
        )
        out, into = transmit or both, receive or both
        self._whole = not (out.chooses or into.chooses) if whole is None else whole
        super().__init__(inner, None if self._whole else 0)
        self._clock = clock
        # One rng for each way: how much goes one way doesn't change what happens on the other.
        self._out = _Way(out, random.Random(rng.getrandbits(64)), self.hard_header_len)
        self._in = _Way(into, random.Random(rng.getrandbits(64)), self.hard_header_len)
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
        octets = b"".join(parts)
        self.check_length(len(octets), offload)
        if offload is not None:  # the caller's again when this is over
            offload = Offload(
                offload.csum_start,
                offload.csum_offset,
                offload.gso_type,
                offload.gso_size,
                offload.hdr_len,
            )
        self._out.enter(Frame(memoryview(octets)), offload, self._clock())
        self._send_arrived()

    def _send_arrived(self) -> None:
        for frame, offload in self._out.arrived(self._clock()):
            try:
                self.inner.transmit((frame.data,), offload)
            except OSError:  # a full device, or octets damaged so that the host takes them for none
                self._out.stats.refused += 1
        _set(self._out_timer, self._out)

    def receive(self) -> Frame | None:
        if not self._ready:
            self._take_in()
        return self._ready.popleft() if self._ready else None

    def _take_in(self) -> None:
        now = self._clock()
        for _ in range(_BUDGET):
            frame = self.inner.receive()
            if frame is None:
                break
            if self._whole:
                self._in.enter(frame, None, now)
                continue
            known = CHECKSUM_NONE if frame.csum == CHECKSUM_PARTIAL else frame.csum
            for packet in on_the_wire_untrusted(frame, self.hard_header_len):
                self._in.enter(Frame(memoryview(packet), known), None, now)
        else:
            self._news()  # there may be more
        self._ready.extend(frame for frame, _ in self._in.arrived(now))
        _set(self._in_timer, self._in)

    def close(self) -> None:
        for timer, way in ((self._out_timer, self._out), (self._in_timer, self._in)):
            timer.delete()
            way.queue.clear()
        self._ready.clear()
        super().close()


def _set(timer: Timer, way: _Way) -> None:
    if way.queue:
        timer.mod(way.queue[0][0])
    else:
        timer.delete()
