"""A hostile peer at the doors: whatever it sends, nothing raises and nothing is left over.

Seeded conversations that are nearly right: sequence numbers, cookies and timestamps are mostly
those that were seen, the rest is chance. Calls of the user's and time go on in between.
"""

from __future__ import annotations

import random
import socket as std
from contextlib import suppress

import pytest

from tests.inet.ours import Ours
from tests.inet.packets import ACK, FIN, RST, SYN, Tcp, emit, icmp_error, parse
from tests.inet.script import Script, Sock

MSG_FASTOPEN, TCP_DEFER_ACCEPT, TCP_FASTOPEN, TCP_SAVE_SYN = 0x20000000, 9, 23, 27
STEPS, ROUNDS = 300, 12
PORTS = range(40000, 40004)


class Attacker:
    """One world, one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        pick = self.rng.choice
        self.end = Ours(
            1500,
            {
                "net.ipv4.tcp_syncookies": pick([0, 1, 2]),
                "net.ipv4.tcp_fastopen": pick([3, 0x207, 0x602]),
                "net.ipv4.tcp_ecn": pick([0, 1, 2]),
                "net.ipv4.tcp_abort_on_overflow": pick([0, 1]),
                "net.ipv4.tcp_tw_reuse": 1,
            },
        )
        self.s = Script(self.end, pick([4, 6]))
        self.listener = self.s.listener(backlog=pick([0, 1, 4]))
        for option, value in (
            (TCP_FASTOPEN, pick([0, 1, 5])),
            (TCP_DEFER_ACCEPT, pick([0, 3])),
            (TCP_SAVE_SYN, 1),
        ):
            self.listener.setsockopt(std.IPPROTO_TCP, option, value)
        self.socks: list[Sock] = []
        self.heard: list[bytes] = []
        self.latest: dict[tuple[int, int], Tcp] = {}

    def listen(self) -> None:
        """Take in what came out."""
        while (octets := self.end.next_packet(0)) is not None:
            self.heard = [*self.heard[-20:], octets]
            packet = parse(octets)
            if packet is not None:
                self.latest[packet.dport, packet.sport] = packet

    def packet(self) -> bytes:
        pick, below = self.rng.choice, self.rng.randrange
        sport, dport = pick(PORTS), pick([8080, 8080, 8080, 9, below(65536)])
        packet = Tcp(
            flags=pick([SYN, SYN, ACK, ACK, ACK | FIN, RST, SYN | ACK, SYN | 0xC0, below(256)]),
            seq=pick([0, 1, 100, below(2**32)]),
            ack=pick([0, below(2**32)]),
            window=pick([0, 1, 65535]),
            payload=bytes(pick([0, 0, 0, 10, 1400])),
            source=self.s.ours,
            dest=self.s.theirs,
            sport=sport,
            dport=dport,
        )
        seen = self.latest.get((sport, dport))
        if seen is not None and self.rng.random() < 0.8:
            length = len(seen.payload) + bool(seen.flags & SYN) + bool(seen.flags & FIN)
            packet.ack = (seen.seq + length + pick([0, 0, 0, 0, 1, -1])) % 2**32
            if seen.flags & ACK:
                packet.seq = (seen.ack + pick([0, 0, 0, 0, 1, -1, 50])) % 2**32
        self.options(packet, seen)
        return emit(packet)

    def options(self, packet: Tcp, seen: Tcp | None) -> None:
        pick, below = self.rng.choice, self.rng.randrange
        packet.options = tuple(kind for kind in (2, 4, 8, 3, 34) if self.rng.random() < 0.6)
        packet.mss = pick([0, 1, 40, 536, 1460, 65535])
        packet.wscale = below(256)
        packet.sack_ok = True
        packet.tsval = pick([1000, self.s.tsval(), below(2**32)])
        echo = seen.tsval if seen is not None else None
        packet.tsecr = echo if echo and self.rng.random() < 0.8 else pick([0, below(2**32)])
        known = seen.fast_open if seen is not None else None
        packet.fast_open = known or pick([b"", bytes(4), bytes(8), bytes(16)])
        if sum({2: 4, 4: 2, 8: 10, 3: 3, 34: 18}[kind] for kind in packet.options) > 36:
            packet.options = packet.options[:3]

    def attack(self) -> None:
        chance = self.rng.random()
        octets = self.packet()
        if chance < 0.1 and self.heard:
            kind, code = self.rng.randrange(16), self.rng.randrange(16)
            info = self.rng.choice([0, 68, 1300, 9000])
            octets = icmp_error(
                self.rng.choice(self.heard), self.s.ours, self.s.theirs, kind, code, info
            )
        elif chance < 0.15:
            spoilt = bytearray(octets)
            for _ in range(3):
                spoilt[self.rng.randrange(len(spoilt))] = self.rng.randrange(256)
            octets = bytes(spoilt)
        self.end.inject(octets)
        self.listen()

    def use(self) -> None:
        """What the user does meanwhile; that calls fail is as it should be."""
        what = self.rng.randrange(100)
        some = self.rng.choice(self.socks) if self.socks else None
        with suppress(OSError):
            if what < 5:
                conn, _ = self.listener.accept()
                conn.setblocking(False)
                self.socks.append(conn)
            elif what < 10 and some is not None:
                some.send(bytes(self.rng.choice([1, 3000])))
                some.recv(5000)
            elif what < 12 and some is not None:
                self.socks.remove(some)
                some.close()
            elif what < 14:
                sock = self.end.socket(std.AF_INET, std.SOCK_STREAM)
                self.socks.append(sock)
                there = (self.s.ours, self.rng.choice(PORTS))
                if self.rng.random() < 0.5:
                    sock.connect(there)
                else:
                    sock.sendto(b"hello", MSG_FASTOPEN, there)
            elif what < 20:
                self.end.sleep(self.rng.choice([0.1, 1, 10]))
        self.listen()

    def finish(self) -> None:
        for sock in self.socks:
            sock.close()
        self.s.close()
        self.end.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_hostile_peer_neither_raises_nor_leaves_anything(seed: int) -> None:
    for turn in range(ROUNDS):
        attacker = Attacker(seed * 1000 + turn)
        for _ in range(STEPS):
            attacker.attack()
            attacker.use()
        tables = attacker.end.stack.generic["tcp"].hash  # type: ignore[attr-defined]
        assert len(tables.ehash) < 400
        attacker.finish()
        assert not tables.ehash
        assert not tables.bhash
