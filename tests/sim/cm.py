"""Connections made by events: channels, and what is expected to come through them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from steertag.verbs import (
    CMID,
    PD,
    AddrInfo,
    CMEvent,
    CMEventChannel,
    CMEventType,
    ConnParam,
    Context,
    QPInitAttr,
)
from steertag.verbs.device import Progress
from steertag.verbs.enums import RAI_PASSIVE
from tests.sim.verbs import CAP, HOST, TIMEOUT

E = CMEventType


@contextmanager
def channel(progress: Progress = "thread") -> Iterator[CMEventChannel]:
    """A channel with a Context of its own."""
    with Context(progress=progress) as context, CMEventChannel(context) as made:
        yield made


def expect(channel: CMEventChannel, kind: CMEventType) -> CMEvent:
    """The next event, which is to be one of `kind`; acknowledged."""
    event = channel.get_event(TIMEOUT)
    event.ack_cm_event()
    assert event.event_str() == kind.name, (event, event.status)
    return event


def nothing_more(*channels: CMEventChannel) -> bool:
    for one in channels:
        try:
            one.get_event(0)
        except TimeoutError:
            continue
        return False
    return True


def listening_on(channel: CMEventChannel, backlog: int = 0, host: str = HOST) -> CMID:
    listener = CMID(channel, QPInitAttr(cap=CAP))
    listener.bind_addr(AddrInfo(src=host, src_service=0, flags=RAI_PASSIVE))
    listener.listen(backlog)
    return listener


def resolved(channel: CMEventChannel, port: int, pd: PD | None = None, host: str = HOST) -> CMID:
    """A CMID that is ready to connect."""
    cmid = CMID(channel, QPInitAttr(cap=CAP), pd)
    resolve(cmid, channel, AddrInfo(dst=host, dst_service=port))
    return cmid


def resolve(cmid: CMID, channel: CMEventChannel, address: AddrInfo) -> None:
    """Resolve the address and the route to it."""
    cmid.resolve_addr(address)
    assert expect(channel, E.RDMA_CM_EVENT_ADDR_RESOLVED).id is cmid
    cmid.resolve_route()
    assert expect(channel, E.RDMA_CM_EVENT_ROUTE_RESOLVED).id is cmid


def request_on(channel: CMEventChannel) -> tuple[CMID, CMEvent]:
    """The next connection request, which is to be the next event, and its CMID."""
    event = channel.get_event(TIMEOUT)
    assert event.event_type is E.RDMA_CM_EVENT_CONNECT_REQUEST, event
    request = event.id
    event.ack_cm_event()
    return request, event


def connect_both(
    ours: CMEventChannel,
    theirs: CMEventChannel,
    listener: CMID,
    offer: ConnParam | None = None,
    answer: ConnParam | None = None,
) -> tuple[CMID, CMID]:
    """A client on `ours`, and the listener's side of its connection on `theirs`."""
    client = resolved(ours, listener.get_src_port())
    client.connect(offer)
    server, _ = request_on(theirs)
    server.accept(answer)
    assert expect(theirs, E.RDMA_CM_EVENT_ESTABLISHED).id is server
    assert expect(ours, E.RDMA_CM_EVENT_ESTABLISHED).id is client
    return client, server
