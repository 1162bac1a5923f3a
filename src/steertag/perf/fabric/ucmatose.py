"""ucmatose's protocol (librdmacm/examples/cmatose.c), both sides.

Several connections at once. The server sends so many messages on each, then the client answers
with as many, then the server disconnects. Nobody looks at what is in them.

The server sends first, which iWARP allows only in peer-to-peer mode, or after the client's first
FPDU (RFC 5044 section 7.1, RFC 6581 section 9.2).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from steertag import verbs as v
from steertag.perf.fabric.errors import ExitCode, FabricError
from steertag.perf.fabric.link import LINGER, Link, LinkOptions, Say, accepted, connected, listening

PORT: Final = 7471
CONNECTIONS: Final = 1
COUNT: Final = 10
SIZE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class UcmatoseOptions:
    """Attributes:
    connections: how many.
    count: messages each way on each; 0 only connects.
    size: octets of a message; 0 only connects.
    migrate: take the events of the disconnection from another event channel.
    """

    link: LinkOptions
    connections: int = CONNECTIONS
    count: int = COUNT
    size: int = SIZE
    migrate: bool = False

    @property
    def messages(self) -> int:
        return self.count if self.size else 0

    def attr(self) -> v.QPInitAttr:
        depth = max(self.messages, 1)
        return v.QPInitAttr(cap=v.QPCap(max_send_wr=depth, max_recv_wr=depth))


@dataclass(slots=True)
class Outcome:
    """What a side has done."""

    sent: int = 0
    received: int = 0
    octets: int = 0
    facts: list[dict[str, Any]] = field(default_factory=list)


class _Nodes:
    """The connections of one side."""

    def __init__(self, options: UcmatoseOptions, outcome: Outcome) -> None:
        self._options, self._outcome = options, outcome
        self._links: list[tuple[Link, v.MR]] = []

    def prepare(self, link: Link) -> None:
        region = link.region(max(self._options.size, 1), v.IBV_ACCESS_LOCAL_WRITE)
        self._links.append((link, region))
        for _ in range(self._options.messages):
            link.cmid.post_recv(region)

    def receive(self) -> None:
        for link, _ in self._links:
            for _ in range(self._options.messages):
                octets = link.receive()
                if octets != self._options.size:
                    raise FabricError(
                        ExitCode.DATA_MISMATCH,
                        f"{link.peer} sent a message of {octets} octets, not"
                        f" {self._options.size}; give both sides the same -S",
                    )
                self._outcome.received += 1
                self._outcome.octets += octets

    def post_sends(self) -> None:
        for link, region in self._links:
            for _ in range(self._options.messages):
                link.cmid.post_send(region)

    def complete_sends(self) -> None:
        for link, _ in self._links:
            link.complete(self._options.messages)
            self._outcome.sent += self._options.messages
            self._outcome.octets += self._options.messages * self._options.size

    def check_who_sends_first(self) -> None:
        """Raises FabricError where the server may not send before the client."""
        for link, _ in self._links:
            if not link.cmid.peer_to_peer:
                raise FabricError(
                    ExitCode.CANNOT_CONNECT,
                    "the client did not ask for peer-to-peer mode, without which a server may not"
                    " send first over iWARP; stag ucmatose asks for it, siw with its"
                    " peer_to_peer set",
                )

    def close(self, say: Say) -> None:
        """Disconnect all, then wait for them."""
        self.wait_closed(say, disconnect=True)

    def wait_closed(self, say: Say, *, disconnect: bool = False) -> None:
        """Wait until all are disconnected, by us or by the peer."""
        channel = self._migrate(say) if self._options.migrate else None
        try:
            if disconnect:
                say("cmatose: disconnecting")
                for link, _ in self._links:
                    link.cmid.disconnect()
            for link, _ in self._links:
                link.cmid.wait_disconnected(LINGER)
            if channel is not None:
                self._take_disconnections(channel)
        finally:
            if channel is not None:
                for link, _ in self._links:
                    link.cmid.migrate_id(None)
                channel.close()

    def _migrate(self, say: Say) -> v.CMEventChannel:
        say("migrating to new event channel")
        channel = v.CMEventChannel()
        for link, _ in self._links:
            link.cmid.migrate_id(channel)
        return channel

    def _take_disconnections(self, channel: v.CMEventChannel) -> None:
        for _ in self._links:
            try:
                with channel.get_event(LINGER) as event:
                    found = event.event_type
            except TimeoutError:
                found = None
            if found != v.RDMA_CM_EVENT_DISCONNECTED:
                raise FabricError(
                    ExitCode.FAILURE, "the new event channel did not hear of a disconnection"
                )

    def note(self) -> None:
        self._outcome.facts = [link.facts() for link, _ in self._links]


def run_server(options: UcmatoseOptions, outcome: Outcome, say: Say, announce: Say) -> None:
    """Take the client's connections, send and receive. Raises FabricError."""
    say("cmatose: starting server")
    nodes = _Nodes(options, outcome)
    with ExitStack() as stack:
        listener = stack.enter_context(
            listening(options.link, options.attr(), announce, max(options.connections, 3))
        )
        for _ in range(options.connections):
            request = listener.get_request()
            stack.enter_context(accepted(request, options.link, nodes.prepare))
        try:
            if options.messages:
                nodes.check_who_sends_first()
                say("initiating data transfers")
                nodes.post_sends()
                say("completing sends")
                nodes.complete_sends()
                say("receiving data transfers")
                nodes.receive()
                say("data transfers complete")
            nodes.close(say)
            say("disconnected")
        finally:
            nodes.note()
    say("test complete")


def run_client(options: UcmatoseOptions, outcome: Outcome, say: Say) -> None:
    """Connect, receive and answer. Raises FabricError."""
    say("cmatose: starting client")
    say("cmatose: connecting")
    nodes = _Nodes(options, outcome)
    with ExitStack() as stack:
        context = stack.enter_context(v.Context())
        for _ in range(options.connections):
            pd = v.PD(context)
            stack.enter_context(connected(options.link, options.attr(), nodes.prepare, pd=pd))
        try:
            if options.messages:
                say("receiving data transfers")
                nodes.receive()
                say("sending replies")
                nodes.post_sends()
                nodes.complete_sends()
                say("data transfers complete")
            nodes.wait_closed(say)
        finally:
            nodes.note()
    say("test complete")
