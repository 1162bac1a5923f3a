"""The exchange of rdma_client and rdma_server (librdmacm/examples): 16 octets each way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from steertag import verbs as v
from steertag.perf.fabric.errors import ExitCode, FabricError
from steertag.perf.fabric.link import Link, LinkOptions, Say, accepted, connected, listening

PORT: Final = 7471
ADDRESS: Final = "127.0.0.1"
SIZE: Final = 16


@dataclass(slots=True)
class Outcome:
    received: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


def _attr() -> v.QPInitAttr:
    return v.QPInitAttr(cap=v.QPCap(max_send_wr=1, max_recv_wr=1))


class _Exchange:
    """The two messages of one side."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._region: v.MR

    def prepare(self, link: Link) -> None:
        self._region = link.region(SIZE, v.IBV_ACCESS_LOCAL_WRITE)
        link.cmid.post_recv(self._region)

    def send(self, link: Link) -> None:
        link.cmid.post_send(self._region)
        link.complete()

    def receive(self, link: Link) -> None:
        octets = link.receive()
        if octets != SIZE:
            raise FabricError(
                ExitCode.DATA_MISMATCH, f"{link.peer} sent {octets} octets, not {SIZE}"
            )
        self._outcome.received = octets


def run_client(options: LinkOptions, outcome: Outcome, say: Say) -> None:
    """Send, receive, disconnect. Raises FabricError."""
    say("rdma_client: start")
    exchange = _Exchange(outcome)
    with connected(options, _attr(), exchange.prepare) as link:
        try:
            exchange.send(link)
            exchange.receive(link)
        finally:
            outcome.facts = link.facts()
        link.close()
    say("rdma_client: end 0")


def run_server(options: LinkOptions, outcome: Outcome, say: Say, announce: Say) -> None:
    """Take one client: receive, send, disconnect. Raises FabricError."""
    say("rdma_server: start")
    exchange = _Exchange(outcome)
    with (
        listening(options, _attr(), announce) as listener,
        accepted(listener.get_request(), options, exchange.prepare) as link,
    ):
        try:
            exchange.receive(link)
            exchange.send(link)
        finally:
            outcome.facts = link.facts()
        link.close()
    say("rdma_server: end 0")
