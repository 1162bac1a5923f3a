"""One segment out of place, in every state: our answer is the host kernel's.

`STEERTAG_SEEDS` of 1000 and more tries every combination; else some of each state are drawn.
"""

from __future__ import annotations

import itertools
import os
import random
import select
import socket as std
from collections.abc import Iterator
from typing import Final

import pytest

from tests.inet.packets import ACK, LETTERS, RST, Tcp, emit
from tests.inet.script import Kernel, Script, Side
from tests.inet.states import STATES

EVERY: Final = int(os.environ.get("STEERTAG_SEEDS", "0")) >= 1000
SOME: Final = 60
MASK: Final = 0xFFFFFFFF
FLAGS: Final = (".", "P.", "F.", "R", "R.", "S", "S.", "P", "FP.", "SF", "F")
SEQS: Final = {"next": 0, "old": -10, "within": 50, "beyond": 1 << 29, "just before": -1}
ACKS: Final = {"all": 0, "none new": -1, "old": -100_000, "beyond": 1000}
Case = tuple[str, str, str, int]

# The peer's next sequence number, and the end of what we have sent (a FIN counts).
NEXT: Final = {"CLOSING": 2, "TIME_WAIT": 2, "CLOSE_WAIT": 2, "LAST_ACK": 2}
SENT: Final = {
    "ESTABLISHED": 3001,
    "FIN_WAIT1": 102,
    "FIN_WAIT2": 2,
    "FIN_WAIT2 of an orphan": 2,
    "CLOSING": 2,
    "TIME_WAIT": 2,
    "LAST_ACK": 2,
}


def cases(state: str) -> list[Case]:
    every = list(itertools.product(FLAGS, SEQS, ACKS, (0, 10)))
    return every if EVERY else random.Random(state).sample(every, SOME)


class Sides:
    """Both ends under test, each used for case after case."""

    def __init__(self) -> None:
        from tests.inet.ours import Ours

        self.kernel = Kernel(1500, {})
        self.kernel.sysctl("net.ipv4.tcp_max_syn_backlog", 10000)
        self.ours = Ours(1500, {})
        self.ports = itertools.count(10_000)

    def answer(self, side: Side, state: str, case: Case) -> list[str]:
        """What comes of the case, packets and what the calls say."""
        flags, seq, ack, size = case
        s = Script(side, 4)
        s.flow.port = next(self.ports)
        s.alone = False
        try:
            STATES[state](s)
            s.skip()
            theirs = SENT.get(state, 0 if state == "LISTEN" else 1)
            own = NEXT.get(state, 0 if state in ("LISTEN", "SYN_SENT") else 1)
            segment = Tcp(
                flags=sum(LETTERS[letter] for letter in flags),
                seq=(own + SEQS[seq]) & MASK,
                ack=(theirs + ACKS[ack]) & MASK,
                window=1000,
                payload=bytes(size),
                options=(),
            ).absolute(s.flow.isn, s.flow.their_isn or 0)
            segment.source, segment.dest = s.ours, s.theirs
            segment.sport, segment.dport = s.flow.port, s.flow.their_port
            side.inject(emit(segment))
            answers = [_brief(packet, s) for packet in s.skip(0 if side.exact else 0.0015)]
            return answers + list(_calls(s))
        finally:
            s.close()
            while side.next_packet(0) is not None:
                pass


def _brief(packet: Tcp, s: Script) -> str:
    if packet.flags == RST | ACK and not (packet.seq + (s.flow.their_isn or 0)) & MASK:
        return f"R. of 0, ack {packet.ack}"
    letters = "".join(letter for letter, bit in LETTERS.items() if packet.flags & bit)
    letters = letters.replace("P", "")
    return f"{letters} {packet.seq}:{packet.length} ack {packet.ack} sack {packet.sacks}"


def _differs_on_purpose(state: str, case: Case, ours: list[str], kernel: list[str]) -> bool:
    """What we do otherwise, knowing it."""
    flags = case[0]
    if state == "FIN_WAIT2 of an orphan" and "R" in flags:
        # The kernel acknowledges a RST outside of the window in this state only; RFC 9293 section
        # 3.10.7.4 has it dropped.
        return ours == kernel[1:] and kernel[0].startswith(". ")
    return False


def _calls(s: Script) -> Iterator[str]:
    """What the user sees of it."""
    for sock in s._socks:
        if sock.fileno() < 0:
            continue
        info = sock.getsockopt(std.IPPROTO_TCP, std.TCP_INFO, 1)
        # A descriptor of ours is a pipe's underneath: it can't show POLLERR.
        yield f"state {info[0]}, events {s.events(sock) & ~select.POLLERR:#x}"
        yield f"error {sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR)}"


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    both = Sides()
    yield both
    both.kernel.close()
    both.ours.close()


@pytest.mark.parametrize("state", STATES)
def test_a_segment_out_of_place_is_answered_as_the_kernel_does(state: str, sides: Sides) -> None:
    wrong = []
    for case in cases(state):
        ours = sides.answer(sides.ours, state, case)
        for _ in range(8):  # it may stall, and then send something again
            kernel = sides.answer(sides.kernel, state, case)
            if kernel == ours or _differs_on_purpose(state, case, ours, kernel):
                break
        else:
            wrong.append(f"{case}: ours {ours}, the kernel's {kernel}")
    assert wrong == [], "\n".join(wrong)
