"""Our Stack over a memory link, with a clock set by hand: a side of tests.inet.script."""

from __future__ import annotations

import random
from collections import deque
from typing import Final

import steertag.socket
from steertag.device import memory_link
from steertag.family.stack import Stack
from steertag.inet import AF_INET_NEW_TCP, inet_net, register
from tests.inet import namespace
from tests.inet.script import Script
from tests.inet.states import STATES

_QUIET: Final = 4000.0
"""Seconds after which nothing may be left of a connection whose peer is silent."""


class Ours:
    """Our Stack over a memory link, with a clock set by hand."""

    exact = True

    def __init__(self, mtu: int, sysctls: dict[str, int | str]) -> None:
        self._now = 1000.0
        self.stack = Stack(clock=self.now, rng=random.Random(1), load_family=None)
        register(self.stack, secret=bytes(range(16)))
        self.net = inet_net(self.stack)
        near, self._far = memory_link(("near", "far"), mtu=mtu, features=0)
        addresses = (f"{namespace.THEIRS[0]}/24", f"{namespace.THEIRS[1]}/64")
        self.net.add_device(near, addresses)
        for name, value in sysctls.items():
            self.sysctl(name, value)
        self._sent: deque[bytes] = deque()

    def now(self) -> float:
        return self._now

    def inject(self, packet: bytes) -> None:
        self._far.transmit([packet])

    def _collect(self) -> None:
        while (frame := self._far.receive()) is not None:
            self._sent.append(bytes(frame.data))

    def _to_next_timer(self, end: float) -> bool:
        """Run what comes next; False, and the clock at `end`, if nothing does until then."""
        deadline = self.stack.timers.deadline
        if deadline is None or deadline > end:
            self._now = max(self._now, end)
            return False
        self._now = max(self._now, deadline)
        with self.stack.lock:
            self.stack.timers.run(self._now)
        return True

    def next_packet(self, timeout: float) -> bytes | None:
        end = self._now + timeout
        while True:
            self._collect()
            if self._sent:
                return self._sent.popleft()
            # What is due at this very moment comes with the next one: as with the kernel's ticks.
            if timeout <= 0 or not self._to_next_timer(end):
                return None

    def sleep(self, seconds: float) -> None:
        end = self._now + seconds
        while self._to_next_timer(end):
            pass

    def socket(self, family: int, kind: int) -> steertag.socket.socket:
        sock = steertag.socket.socket(AF_INET_NEW_TCP, kind, stack=self.stack)
        sock.setblocking(False)
        return sock

    def sysctl(self, name: str, value: int | str) -> None:
        self.stack.sysctl.write(name, str(value))

    def close(self) -> None:
        """Everything must end by itself, with a peer that is silent."""
        self.sleep(_QUIET)
        left = [repr(sk) for sk in self.stack.socks]
        charged = {
            prot.name: prot.memory_allocated.value
            for prot in self.stack.protocols
            if prot.memory_allocated is not None and prot.memory_allocated.value
        }
        pending = self.stack.timers.pending
        assert (left, charged, pending) == ([], {}, 0), "left over after the script"


class Subject(Script):
    """A script on our Stack whose connection is in a state."""

    def __init__(self, state: str = "LISTEN", v: int = 4) -> None:
        self.ours_side = Ours(1500, {})
        super().__init__(self.ours_side, v)
        self.state = state
        STATES[state](self)
        self.skip()

    @property
    def stack_socks(self) -> int:
        """Socks alive."""
        return len(self.ours_side.stack.socks)

    def charged(self) -> int:
        """Quanta of memory taken by all protocols."""
        accounts = (prot.memory_allocated for prot in self.ours_side.stack.protocols)
        return sum(account.value for account in accounts if account is not None)

    def timers(self) -> int:
        """Timers set."""
        return self.ours_side.stack.timers.pending

    def raw(self, packet: bytes) -> None:
        """Inject octets as they are."""
        self.side.inject(packet)

    def answers(self) -> list[bytes]:
        """Everything that was sent and not looked at."""
        found = []
        while (packet := self.side.next_packet(0)) is not None:
            found.append(packet)
        return found

    def finish(self) -> None:
        """Close everything, and see that it ends."""
        self.close()
        self.side.close()
