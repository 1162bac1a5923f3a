"""MPA set-up between any two sides: they agree and messages flow, or both know why not; and a
responder that waits for ready-to-receive takes whatever comes instead."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from steertag.rdma.connection import Connection, Offer
from steertag.rdma.constants import WcStatus
from steertag.rdma.mpa_state import MpaState
from steertag.rdma.qp_state import QpState
from steertag.rdma.rtr import RTR_KINDS
from steertag.testing.link import Link
from tests.sim.ends import End, drain, feed, ids, terminates

KINDS = st.lists(st.sampled_from(RTR_KINDS), min_size=1, max_size=3, unique=True).map(tuple)
NUMBERS = st.sampled_from([0, 1, 2, 16, 0x3FFF])


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    peer_to_peer = draw(st.booleans())
    return Offer(
        private_data=draw(st.binary(max_size=30)),
        crc=draw(st.booleans()),
        crc_required=draw(st.booleans()),
        markers=draw(st.booleans()),
        ird=draw(NUMBERS),
        ord=draw(NUMBERS),
        revision=2 if peer_to_peer else draw(st.sampled_from([1, 2])),
        peer_to_peer=peer_to_peer,
        rtr=draw(KINDS),
        max_ulpdu=draw(st.sampled_from([128, 1442, 65534])),
    )


def exchange(first: End, second: End, link: Link) -> None:
    """A message each way, `first` beginning."""
    for end, peer in ((first, second), (second, first)):
        end.memory[:3000] = random.Random(1).randbytes(3000)
        peer.recv((4000, 3000), wr_id=7)
        end.send((0, 3000), wr_id=8)
        link.run()
        assert ids(end.sent()) == [(8, WcStatus.SUCCESS)]
        assert ids(peer.got()) == [(7, WcStatus.SUCCESS)]
        assert peer.memory[4000:7000] == end.memory[:3000]


@given(offers(), offers(), st.integers(0, 2**32))
@settings(deadline=None)
def test_two_sides_agree_and_messages_flow_or_both_know_why_not(
    offer: Offer, answer: Offer, seed: int
) -> None:
    client, server = End(1, size=8000), End(2, size=8000)
    client.connection = active = Connection.initiate(client.qp, offer, now=0.0)
    server.connection = passive = Connection.respond(now=0.0)
    link = Link(client, server, random.Random(seed))
    link.run()
    assert passive.state is MpaState.REQUESTED
    assert passive.private_data == offer.private_data
    passive.accept(server.qp, answer)
    link.run()
    if offer.peer_to_peer and not set(offer.rtr) & set(answer.rtr):
        assert {active.code, passive.code} <= {"rtr", "ird"}
        assert (active.state, passive.state) == (MpaState.FAILED, MpaState.FAILED)
        return
    assert (active.state, passive.state) == (MpaState.ESTABLISHED, MpaState.ESTABLISHED)
    assert active.private_data == answer.private_data
    ours, theirs = active.agreement, passive.agreement
    assert ours is not None
    assert theirs is not None
    assert (ours.crc, ours.rtr) == (theirs.crc, theirs.rtr)
    assert (ours.markers_sent, ours.markers_received) == (answer.markers, offer.markers)
    assert (theirs.markers_sent, theirs.markers_received) == (offer.markers, answer.markers)
    if offer.revision == 2 and 0x3FFF not in (offer.ord, offer.ird):
        assert ours.ord <= theirs.ird
        assert theirs.ord <= ours.ird
    if ours.rtr is None:
        exchange(client, server, link)
    else:
        exchange(server, client, link)


@given(st.binary(max_size=400), st.sampled_from(RTR_KINDS), st.booleans(), st.integers(0, 2**32))
@settings(deadline=None)
def test_whatever_comes_instead_of_ready_to_receive_ends_the_set_up_or_waits(
    octets: bytes, kind: str, markers: bool, seed: int
) -> None:
    end = End(2, size=100)
    end.connection = connection = Connection.respond(now=0.0)
    request = Offer(peer_to_peer=True, rtr=(kind,))  # type: ignore[arg-type]
    feed(end, request.request().emit())
    connection.accept(end.qp, Offer(markers=markers), now=0.0)
    drain(end)
    end.recv((0, 10), wr_id=5)
    feed(end, octets, random.Random(seed))
    if connection.state is MpaState.FAILED:
        assert len(terminates(drain(end))) <= 1
        assert connection.closing
    else:
        assert connection.state is MpaState.WAIT_RTR  # a right CRC doesn't come by chance
        assert connection.deadline is not None
        connection.handle_timer(connection.deadline)
    assert end.qp.state is QpState.ERROR
    assert ids(end.got()) == [(5, WcStatus.WR_FLUSH_ERR)]
