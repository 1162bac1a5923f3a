"""Two SDP engines, two applications, and a seed: every octet arrives once, in order.

`STEERTAG_SEEDS` says how many seeds are run; a few hundred unless told.
"""

from __future__ import annotations

import os
import random
from typing import Final

import pytest

from steertag.sdp.transfer import Transfer
from steertag.sdp.tuning import Tuning
from tests.sim.sdp_ends import End, Ends

SEEDS: Final = int(os.environ.get("STEERTAG_SEEDS", "300"))
BATCH: Final = 50
_SIZES: Final = (1, 7, 64, 500, 3000, 20_000, 70_000)


def a_tuning(rng: random.Random) -> Tuning:
    """Few credits and small buffers as often as not: that is where it gets tight."""
    return Tuning(
        zcopy_threshold=rng.choice((0, 1, 200, 4000)),
        sink_threshold=rng.choice((0, 1, 1000)),
        recv_size=rng.choice((128, 300, 4096)),
        recv_count=rng.choice((5, 5, 6, 9, 32)),
        send_count=rng.choice((16, 20, 128)),
        max_adverts=rng.choice((1, 2, 8)),
        snd_bytes=rng.choice((500, 5000, 200_000)),
        rcv_bytes=rng.choice((1, 1000, 200_000)),
        read_size=rng.choice((100, 5000, 1 << 20)),
        read_ahead=rng.random() < 0.3,
        inline=rng.choice((0, 0, 50)),
        buffered=rng.random() < 0.15,
    )


class App:
    """What uses one side: `sent` is what the other side is to receive, piece by piece."""

    def __init__(self, end: End, rng: random.Random) -> None:
        self.end, self.rng = end, rng
        self.sent: list[bytes | tuple[bytes, Transfer]] = []
        self.sending: list[tuple[Transfer, bytearray]] = []
        self.receiving: tuple[Transfer, bytearray] | None = None
        self.left = rng.choice((0, 3, 10, 25))

    def step(self) -> None:
        """One call of one kind, or another."""
        engine = self.end.engine
        choice = self.rng.random()
        self.look()
        if choice < 0.45:
            if self.left:
                self.left -= 1
                self.send()
        elif choice < 0.85:
            self.receive()
        elif choice < 0.9 and self.sending:
            self.rng.choice(self.sending)[0].cancel()
        elif choice < 0.95 and self.receiving is not None:
            self.receiving[0].cancel()
        else:
            assert (engine.outq == 0) <= (not self.sending)

    def send(self) -> None:
        engine, rng = self.end.engine, self.rng
        data = rng.randbytes(rng.choice(_SIZES))
        kind = rng.random()
        if kind < 0.3:
            memory = bytearray(data)
            transfer = engine.send_in_place(memoryview(memory))
            self.sent.append((data, transfer))
            self.sending.append((transfer, memory))
        elif kind < 0.5:
            half = len(data) // 2
            parts = [memoryview(data)[:half], memoryview(bytearray(data[half:]))]
            self.sent.append(data[: engine.sendmsg(parts)])
        else:
            memory = bytearray(data)
            whole = memoryview(data) if kind < 0.8 else memoryview(memory)
            taken = engine.sendmsg([whole])
            # What was copied may change at once.
            memory[:] = bytes(len(memory))
            self.sent.append(data[:taken])

    def look(self) -> None:
        """Transfers that are done give their memory back."""
        for transfer, memory in self.sending:
            if transfer.done:
                memory[:] = b"!" * len(memory)
        self.sending = [each for each in self.sending if not each[0].done]
        if self.receiving is not None and self.receiving[0].done:
            transfer, memory = self.receiving
            assert not transfer.error
            self.end.taken += memory[: transfer.octets]
            self.receiving = None
            memory[:] = bytes(len(memory))

    def receive(self) -> None:
        rng = self.rng
        if self.receiving is not None:
            return
        room = rng.choice(_SIZES)
        if rng.random() < 0.5:
            memory = bytearray(room)
            self.receiving = self.end.engine.recv_in_place(memoryview(memory)), memory
            self.look()
        else:
            if rng.random() < 0.2:
                self.peek(room)
            self.end.read(room)

    def peek(self, room: int) -> None:
        """What is peeked at is what is read next."""
        seen = bytearray()

        def write(offset: int, data: bytes | bytearray | memoryview, /) -> int:
            seen.extend(data)
            return len(data)

        self.end.engine.recv_into(write, room, peek=True)
        before = len(self.end.taken)
        self.end.read(len(seen))
        assert self.end.taken[before:] == seen

    def expected(self) -> bytes:
        return b"".join(
            piece if isinstance(piece, bytes) else piece[0][: piece[1].octets]
            for piece in self.sent
        )


def run(seed: int) -> Ends:
    """One conversation to its end."""
    rng = random.Random(seed)
    ends = Ends(seed, a_tuning(rng), a_tuning(rng), ord=rng.choice((16, 16, 1, 0)))
    apps = [App(end, rng) for end in ends.both]
    for _ in range(rng.choice((20, 200, 1000))):
        if rng.random() < 0.5:
            rng.choice(apps).step()
        else:
            ends.move(rng.choice(ends.both), rng)
    for app in apps:
        app.end.engine.shutdown_send()
    for _ in range(20_000):
        for app in apps:
            app.receive()
            app.look()
            ends.move(app.end, rng if rng.random() < 0.5 else None)
        if all(app.end.engine.eof and app.receiving is None for app in apps):
            break
    ends.settle()
    for app in apps:
        app.look()
        assert not app.sending, f"seed {seed}: a transfer never ends"
    for app, other in (apps, reversed(apps)):
        assert other.end.taken == app.expected(), f"seed {seed}"
    for end in ends.both:
        engine = end.engine
        assert engine.ended, f"seed {seed}: {engine.state.name}"
        assert not engine.error, f"seed {seed}: {engine.reason}"
        assert not end.regions, f"seed {seed}: memory stays registered"
    return ends


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_every_octet_arrives_once_in_order(first: int) -> None:
    for seed in range(first, min(first + BATCH, SEEDS)):
        run(seed)


def test_the_seeds_meet_every_mode() -> None:
    """So that the test above says something: each way of moving octets is taken, and crossed."""
    ends = [end for seed in range(40) for end in run(seed).both]
    for name in (
        "rx_bcopy_bytes",
        "rx_read_bytes",
        "rx_write_bytes",
        "rx_inplace_bytes",
        "credit_updates",
        "credit_waits",
        "src_cancels",
        "sink_cancels",
        "sink_void",
        "refused",
        "mode_changes",
    ):
        assert sum(getattr(end.counters, name) for end in ends), name
