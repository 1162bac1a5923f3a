"""One connection of our Stack in each state of RFC 9293 section 3.3.2, its peer being the test."""

from __future__ import annotations

import socket as std
from collections.abc import Callable
from typing import Final

from tests.inet.ours import Ours
from tests.inet.script import Script

SYN: Final = "<mss 1000,sackOK,TS val 1000 ecr 0,wscale 3>"


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


def _listen(s: Subject) -> None:
    s.listener()


def _syn_sent(s: Subject) -> None:
    s.connect(s.socket())
    s.expect("S 0:0(0)")


def _syn_recv(s: Subject) -> None:
    s.listener()
    s.inject(f"S 0:0(0) {SYN}")
    s.expect("S. 0:0(0) ack 1")


def _established(s: Subject) -> None:
    conn = s.accepted(SYN)
    conn.send(s.octets(3000))
    s.skip()
    s.inject(". 201:301(100) ack 1")


def _fin_wait1(s: Subject) -> None:
    conn = s.accepted(SYN)
    conn.send(s.octets(100))
    conn.shutdown(std.SHUT_WR)


def _fin_wait2(s: Subject) -> None:
    s.accepted(SYN).shutdown(std.SHUT_WR)
    s.inject(". 1:1(0) ack 2")


def _orphan(s: Subject) -> None:
    s.accepted(SYN).close()
    s.inject(". 1:1(0) ack 2")


def _closing(s: Subject) -> None:
    s.accepted(SYN).shutdown(std.SHUT_WR)
    s.inject("F. 1:1(0) ack 1")


def _time_wait(s: Subject) -> None:
    s.accepted(SYN).close()
    s.inject("F. 1:1(0) ack 2")


def _close_wait(s: Subject) -> None:
    s.accepted(SYN)
    s.inject("F. 1:1(0) ack 1")


def _last_ack(s: Subject) -> None:
    conn = s.accepted(SYN)
    s.inject("F. 1:1(0) ack 1")
    conn.close()


STATES: Final[dict[str, Callable[[Subject], None]]] = {
    "LISTEN": _listen,
    "SYN_SENT": _syn_sent,
    "SYN_RECV": _syn_recv,
    "ESTABLISHED": _established,
    "FIN_WAIT1": _fin_wait1,
    "FIN_WAIT2": _fin_wait2,
    "FIN_WAIT2 of an orphan": _orphan,
    "CLOSING": _closing,
    "TIME_WAIT": _time_wait,
    "CLOSE_WAIT": _close_wait,
    "LAST_ACK": _last_ack,
}
