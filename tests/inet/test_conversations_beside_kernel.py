"""Conversations drawn at random, held with our Stack and with the host kernel: the same answers.

`STEERTAG_SEEDS` of 1000 and more holds a thousand of them; else some.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket as std
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.inet.ours import Ours
from tests.inet.packets import LETTERS, PSH, Tcp
from tests.inet.script import Kernel, Script, Side, Sock

SEEDS: Final = 1000 if int(os.environ.get("STEERTAG_SEEDS", "0")) >= 1000 else 60
BATCH: Final = 20
ATTEMPTS: Final = 6
STEPS: Final = 12
OPTIONS: Final = ("<mss 1000>", "<mss 1000,sackOK>", "<mss 1000,sackOK,wscale 5>")
Step = Callable[[], None]


class Peer:
    """The peer of one end: it draws what to do next, and notes what comes of it.

    Whatever it draws depends on the seed alone, not on the answers: both ends hear the same.
    """

    def __init__(self, s: Script, conn: Sock, rng: random.Random) -> None:
        self.s, self.conn, self.rng = s, conn, rng
        self.next = 1  # the peer's next octet
        self.sent = 1  # the end under test's
        self.acked = 1
        self.shut = False
        self.log: list[str] = []

    def inject(
        self, flags: str, seq: int, size: int, ack: int | None = None, more: str = ""
    ) -> None:
        ack = self.sent if ack is None else ack
        self.s.inject(f"{flags} {seq}:{seq + size}({size}) ack {ack}{more}")

    # -- what may happen --------------------------------------------------------------------------

    def data(self) -> None:
        size = self.rng.choice([1, 100, 1000])
        self.inject("P.", self.next, size)
        self.next += size

    def data_twice(self) -> None:
        size = min(self.rng.choice([1, 100, 1000]), self.next - 1)
        self.inject("P.", self.next - size, size)

    def overlap(self) -> None:
        back = min(50, self.next - 1)
        self.inject("P.", self.next - back, back + 50)
        self.next += 50

    def gap(self) -> None:
        ahead = self.rng.choice([10, 100, 500])
        self.inject("P.", self.next + ahead, 100)

    def far(self) -> None:
        self.inject("P.", self.next + 10_000_000, 100)

    def ack_some(self) -> None:
        self.acked = self.rng.randint(self.acked, self.sent)
        self.inject(".", self.next, 0, self.acked)

    def ack_all(self) -> None:
        self.acked = self.sent
        self.inject(".", self.next, 0)

    def probe(self) -> None:
        self.inject(".", self.next - 1, 0)

    def urgent(self) -> None:
        self.inject("PU.", self.next, 20, more=" win 60000 urg 7")
        self.next += 20

    def send(self) -> None:
        if self.shut:
            return
        size = self.rng.choice([1, 300, 1000, 2500])
        try:
            self.sent += self.conn.send(self.s.octets(size, self.sent))
        except OSError as error:
            self.log.append(f"send errno {error.errno}")

    def take(self) -> None:
        """Read: buffers that fill up differently would make windows differ."""
        try:
            octets = self.conn.recv(65536)
        except OSError as error:
            self.log.append(f"recv errno {error.errno}")
        else:
            self.log.append(f"recv {len(octets)}: {hashlib.sha256(octets).hexdigest()[:8]}")

    def recv_oob(self) -> None:
        try:
            self.log.append(f"recv oob {self.conn.recv(1, std.MSG_OOB).hex()}")
        except OSError as error:
            self.log.append(f"recv oob errno {error.errno}")

    def shutdown(self) -> None:
        if not self.shut:
            self.shut = True
            try:
                self.conn.shutdown(std.SHUT_WR)
                self.sent += 1
            except OSError as error:
                self.log.append(f"shutdown errno {error.errno}")

    def fin(self) -> None:
        """Acknowledged a tick later, whenever that is."""
        self.inject("F.", self.next, 0)
        self.s.sleep(0.01)

    def steps(self) -> list[Step]:
        usual = [self.data, self.gap, self.overlap, self.ack_all, self.ack_some, self.send]
        rare = [self.data_twice, self.far, self.probe, self.urgent, self.recv_oob]
        ends = [self.shutdown, self.fin]
        steps = self.rng.choices(usual * 4 + rare * 2 + ends, k=STEPS)
        return [self.ack_all, *steps]

    def converse(self) -> list[str]:
        for step in self.steps():
            self.log.append(step.__name__)
            step()
            self.take()
            self.log += [_brief(packet) for packet in self.s.skip(0.001)]
        info = self.conn.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 1)
        self.log.append(f"state {info[0]}")
        return self.log


def _brief(packet: Tcp) -> str:
    letters = "".join(letter for letter, bit in LETTERS.items() if packet.flags & ~PSH & bit)
    text = f" > {letters} {packet.seq}:{packet.length} ack {packet.ack} urg {packet.urgent}"
    # Data may be cut out of one super-segment or out of several: who carries a D-SACK is chance.
    return text if packet.length else f"{text} sack {packet.sacks}"


def conversation(side: Side, seed: int, port: int) -> list[str]:
    rng = random.Random(f"conversation {seed}")
    s = Script(side, 4)
    s.alone = False
    s.flow.port = port
    try:
        options = rng.choice(OPTIONS)
        # With SACK a tail is probed for in two round trips: not while the conversation is held.
        conn = s.accepted(options, rtt=0.05 if "sack" in options else 0.0, TCP_NODELAY=1)
        return Peer(s, conn, rng).converse()
    finally:
        s.close()
        s.inject("R 0:0(0)")
        while side.next_packet(0) is not None:
            pass


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Kernel(1500, {}) as side:
        yield side  # type: ignore[misc]  # of the class that was entered


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_a_conversation_goes_as_with_the_kernel(first: int, kernel: Kernel) -> None:
    ours = Ours(1500, {})
    wrong = []
    for seed in range(first, first + BATCH):
        mine = conversation(ours, seed, 10_000 + seed)
        for attempt in range(ATTEMPTS):
            theirs = conversation(kernel, seed, 20_000 + seed * ATTEMPTS + attempt)
            if theirs == mine:
                break
        else:
            wrong.append("\n".join([f"seed {seed}", *_side_by_side(mine, theirs)]))
    ours.close()
    assert not wrong, "\n\n".join(wrong)


def _side_by_side(mine: list[str], theirs: list[str]) -> Iterator[str]:
    """Up to the first difference, and what follows it on both sides."""
    same = next(
        (at for at, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(mine), len(theirs)),
    )
    yield from mine[:same]
    yield f"ours: {mine[same : same + 6]}"
    yield f"the kernel's: {theirs[same : same + 6]}"
