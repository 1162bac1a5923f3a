"""One connection in each state of RFC 9293 section 3.3.2, its peer being the test."""

from __future__ import annotations

import socket as std
from collections.abc import Callable
from typing import Final

from tests.inet.script import Script

SYN: Final = "<mss 1000,sackOK,TS val 1000 ecr 0,wscale 3>"


def _listen(s: Script) -> None:
    s.listener()


def _syn_sent(s: Script) -> None:
    s.connect(s.socket())
    s.expect("S 0:0(0)")


def _syn_recv(s: Script) -> None:
    s.listener()
    s.inject(f"S 0:0(0) {SYN}")
    s.expect("S. 0:0(0) ack 1")


def _established(s: Script) -> None:
    conn = s.accepted(SYN)
    conn.send(s.octets(3000))
    s.skip()
    s.inject(". 201:301(100) ack 1")


def _fin_wait1(s: Script) -> None:
    conn = s.accepted(SYN)
    conn.send(s.octets(100))
    conn.shutdown(std.SHUT_WR)


def _fin_wait2(s: Script) -> None:
    s.accepted(SYN).shutdown(std.SHUT_WR)
    s.inject(". 1:1(0) ack 2")


def _orphan(s: Script) -> None:
    s.accepted(SYN).close()
    s.inject(". 1:1(0) ack 2")


def _closing(s: Script) -> None:
    s.accepted(SYN).shutdown(std.SHUT_WR)
    s.inject("F. 1:1(0) ack 1")


def _time_wait(s: Script) -> None:
    s.accepted(SYN).close()
    s.inject("F. 1:1(0) ack 2")


def _close_wait(s: Script) -> None:
    s.accepted(SYN)
    s.inject("F. 1:1(0) ack 1")
    s.expect(". 1:1(0) ack 2", within=0.3)


def _last_ack(s: Script) -> None:
    conn = s.accepted(SYN)
    s.inject("F. 1:1(0) ack 1")
    s.expect(". 1:1(0) ack 2", within=0.3)
    conn.close()


STATES: Final[dict[str, Callable[[Script], None]]] = {
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
