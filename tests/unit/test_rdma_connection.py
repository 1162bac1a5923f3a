"""MPA set-up: who may connect to whom, what both ends agree on, and every way it ends early."""

from __future__ import annotations

import random
import struct

import pytest

from steertag.errors import StateError
from steertag.rdma.connection import REPLY_TIMEOUT, REQUEST_TIMEOUT, Connection, Offer
from steertag.rdma.mpa_state import MpaState
from steertag.rdma.qp_state import QpState
from steertag.wire import mpa
from tests.sim.ends import (
    End,
    drain,
    feed,
    lone,
    pair,
    pattern,
    send_fpdu,
    terminates,
    write_fpdu,
)


def initiator(offer: Offer | None = None) -> tuple[End, Connection]:
    end = End(1)
    end.connection = Connection.initiate(end.qp, offer or Offer(), now=100.0)
    return end, end.connection


def responder() -> tuple[End, Connection]:
    end = End(2)
    end.connection = Connection.respond(now=100.0)
    return end, end.connection


def request(
    *,
    revision: int = 2,
    enhanced: bool = True,
    ird: int = 7,
    ord: int = 5,
    private_data: bytes = b"",
    crc: bool = False,
    markers: bool = False,
    reply: bool = False,
    reject: bool = False,
) -> bytes:
    words = struct.pack("!HH", ird, ord) if enhanced else b""
    return mpa.StartFrame(
        reply=reply,
        revision=revision,
        enhanced=enhanced,
        crc=crc,
        markers=markers,
        reject=reject,
        private_data=words + private_data,
    ).emit()


def reply(**fields: object) -> bytes:
    return request(reply=True, **fields)  # type: ignore[arg-type]


def frame_of(octets: bytes) -> mpa.StartFrame:
    frame = mpa.StartFrame.parse(octets)
    assert frame is not None
    assert len(frame) == len(octets)
    return frame


# -- what is agreed on -----------------------------------------------------------------------------


def test_a_request_carries_the_offer() -> None:
    end, _ = initiator(Offer(private_data=b"hello", ird=3, ord=4))
    frame = frame_of(drain(end))
    assert not frame.reply
    assert frame.crc
    assert frame.enhanced
    assert not frame.markers
    assert frame.revision == 2
    assert frame.private_data[mpa.ENHANCED_LEN :] == b"hello"
    words = mpa.Enhanced.parse(frame.private_data)
    assert (words.ird, words.ord, words.peer_to_peer) == (3, 4, False)


@pytest.mark.parametrize(
    ("client", "server", "client_ord", "server_ird", "server_ord"),
    [
        ((16, 16), (16, 16), 16, 16, 16),
        ((2, 30), (4, 9), 4, 4, 2),  # each end's ORD is limited by what the other takes
        ((30, 2), (9, 9), 2, 2, 9),  # IRD beyond what the peer makes is of no use
        ((0, 0), (8, 8), 0, 0, 0),
        ((5, 7), (mpa.MAX_IRD_ORD, mpa.MAX_IRD_ORD), 7, 7, 5),
    ],
)
def test_ird_and_ord_are_limited_on_both_sides(
    client: tuple[int, int],
    server: tuple[int, int],
    client_ord: int,
    server_ird: int,
    server_ord: int,
) -> None:
    joined = pair(
        offer=Offer(ird=client[0], ord=client[1]), answer=Offer(ird=server[0], ord=server[1])
    )
    assert joined.client.qp.tx.ord == client_ord
    assert joined.client.qp.inbound.ird == client[0]
    assert (joined.server.qp.inbound.ird, joined.server.qp.tx.ord) == (server_ird, server_ord)
    answer = mpa.StartFrame.parse(bytes(joined.octets[1]))
    assert answer is not None
    words = mpa.Enhanced.parse(answer.private_data)
    assert (words.ird, words.ord) == (server_ird, server_ord)


def test_an_initiator_that_negotiates_neither_ird_nor_ord_is_answered_alike() -> None:
    """RFC 6581 section 9.1: all ones says that the applications see to the numbers."""
    end, connection = responder()
    feed(end, request(ird=mpa.MAX_IRD_ORD, ord=mpa.MAX_IRD_ORD))
    connection.accept(end.qp, Offer(ird=8, ord=6))
    octets = drain(end)
    words = mpa.Enhanced.parse(frame_of(octets).private_data)
    assert (words.ird, words.ord) == (mpa.MAX_IRD_ORD, mpa.MAX_IRD_ORD)
    assert connection.agreement is not None
    assert (connection.agreement.ird, connection.agreement.ord) == (8, 6)
    client, active = initiator(Offer(ird=5, ord=4))
    drain(client)
    feed(client, octets)
    assert active.agreement is not None
    assert (active.agreement.ird, active.agreement.ord) == (5, 4)


def test_a_peer_that_makes_more_reads_than_are_taken_is_told_so() -> None:
    """RFC 6581 section 9.1: insufficient IRD is layer 2, type 0, code 6."""
    end, connection = initiator(Offer(ird=4))
    drain(end)
    feed(end, reply(ird=1, ord=5))
    assert (connection.state, connection.code) == (MpaState.FAILED, "ird")
    (said,) = terminates(drain(end))
    assert (said.layer, said.etype, said.code) == (2, 0, 6)
    assert connection.closing
    assert end.qp.state is QpState.INIT


@pytest.mark.parametrize(
    ("asked", "answered", "used"),
    [(True, True, True), (True, False, True), (False, True, True), (False, False, False)],
)
def test_crc_is_used_as_soon_as_one_side_asks(asked: bool, answered: bool, used: bool) -> None:
    joined = pair(offer=Offer(crc=asked), answer=Offer(crc=answered))
    for end in (joined.client, joined.server):
        assert end.connection is not None
        assert end.connection.crc is used
        assert end.qp.rx.crc is used
        assert end.qp.tx.crc is used
    joined.client.memory[:4] = b"abcd"
    joined.client.write(joined.server.region, 0, 0, 4)
    joined.run()
    framed = mpa.Fpdu.parse(joined.octets[0][-mpa.fpdu_len(18) :])
    assert framed is not None
    assert framed.crc == (framed.computed if used else 0)


def test_a_reply_without_crc_is_refused_where_crc_is_required() -> None:
    """Though RFC 5044 has CRCs used as soon as one side asks: siw's mpa_crc_required does so."""
    end, connection = initiator(Offer(crc=False, crc_required=True))
    assert frame_of(drain(end)).crc
    feed(end, reply(crc=False))
    assert (connection.state, connection.code) == (MpaState.FAILED, "crc")
    assert drain(end) == b""
    assert connection.closing


def test_a_responder_that_requires_crc_answers_with_it_whatever_was_asked() -> None:
    for asked in (False, True):
        end, connection = responder()
        feed(end, request(crc=asked))
        connection.accept(end.qp, Offer(crc=False, crc_required=True))
        assert frame_of(drain(end)).crc
        assert end.qp.rx.crc
        assert end.qp.tx.crc


def test_private_data_goes_both_ways() -> None:
    longest = pattern(mpa.MAX_PRIVATE_DATA - mpa.ENHANCED_LEN)
    joined = pair(offer=Offer(private_data=longest), answer=Offer(private_data=b"\0answer"))
    assert joined.server.connection is not None
    assert joined.client.connection is not None
    assert joined.server.connection.private_data == longest
    assert joined.client.connection.private_data == b"\0answer"


def test_a_revision_1_request_is_answered_in_revision_1_without_words() -> None:
    offer = Offer(revision=1, private_data=b"old", ord=9, ird=8)
    joined = pair(offer=offer, answer=Offer(private_data=b"too", ird=3, ord=4))
    sent = mpa.StartFrame.parse(bytes(joined.octets[0]))
    answer = mpa.StartFrame.parse(bytes(joined.octets[1]))
    assert sent is not None
    assert answer is not None
    assert (sent.revision, sent.enhanced, sent.private_data) == (1, False, b"old")
    assert (answer.revision, answer.enhanced, answer.private_data) == (1, False, b"too")
    # Nothing is negotiated: each side keeps its own numbers.
    assert (joined.client.qp.tx.ord, joined.client.qp.inbound.ird) == (9, 8)
    assert (joined.server.qp.tx.ord, joined.server.qp.inbound.ird) == (4, 3)


def test_revision_1_has_room_for_512_octets_of_private_data() -> None:
    longest = pattern(512)
    joined = pair(offer=Offer(revision=1, private_data=longest), answer=Offer())
    assert joined.server.connection is not None
    assert joined.server.connection.private_data == longest


def test_a_revision_2_request_without_the_enhanced_flag_is_answered_alike() -> None:
    end, connection = responder()
    feed(end, request(enhanced=False, private_data=b"plain"))
    assert connection.private_data == b"plain"
    connection.accept(end.qp, Offer(ird=3, ord=4))
    frame = frame_of(drain(end))
    assert (frame.revision, frame.enhanced, frame.private_data) == (2, False, b"")
    assert end.qp.tx.ord == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"revision": 3},
        {"revision": 0},
        {"ird": -1},
        {"ord": mpa.MAX_IRD_ORD + 1},
        {"private_data": bytes(509)},
        {"private_data": bytes(513), "revision": 1},
        {"max_ulpdu": 127},
        {"max_ulpdu": mpa.MAX_ULPDU + 1},
        {"rtr": ()},
        {"rtr": ("write", "atomic")},
        {"peer_to_peer": True, "revision": 1},
    ],
)
def test_an_offer_that_no_frame_can_hold_is_a_callers_error(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"MPA|IRD|private|ULPDU|RTR"):
        Offer(**fields)  # type: ignore[arg-type]


def test_an_answer_too_long_for_the_request_leaves_it_to_be_answered_again() -> None:
    """508 octets fit beside IRD and ORD; what fits a frame of revision 1 may not."""
    end, connection = responder()
    feed(end, request())
    with pytest.raises(ValueError, match="private data"):
        connection.accept(end.qp, Offer(revision=1, private_data=bytes(510)))
    with pytest.raises(ValueError, match="private data"):
        connection.reject(bytes(509))
    assert connection.state is MpaState.REQUESTED
    connection.accept(end.qp, Offer())
    assert frame_of(drain(end)).reply


# -- refusals --------------------------------------------------------------------------------------


def test_a_rejection_carries_private_data() -> None:
    server, passive = responder()
    feed(server, request(ird=1, ord=1))
    passive.reject(b"not today")
    octets = drain(server)
    frame = frame_of(octets)
    assert frame.reject
    assert passive.state is MpaState.REJECTED
    assert passive.closing
    client, active = initiator()
    drain(client)
    feed(client, octets)
    assert active.state is MpaState.REJECTED
    assert active.code == "rejected"
    assert active.private_data == b"not today"
    assert active.closing
    assert client.qp.state is QpState.INIT


@pytest.mark.parametrize("revision", [0, 3, 255])
def test_a_request_of_another_revision_ends_the_set_up_without_a_reply(revision: int) -> None:
    end, connection = responder()
    feed(end, request(revision=revision))
    assert (connection.state, connection.code) == (MpaState.FAILED, "revision")
    assert str(revision) in connection.reason
    assert drain(end) == b""
    assert connection.closing


def test_a_reply_without_ird_and_ord_to_a_request_with_them_ends_the_set_up() -> None:
    end, connection = initiator()
    drain(end)
    feed(end, reply(enhanced=False))
    assert (connection.state, connection.code) == (MpaState.FAILED, "garbled")


@pytest.mark.parametrize("revision", [0, 1, 3])
def test_a_reply_in_another_revision_than_asked_ends_the_set_up(revision: int) -> None:
    end, connection = initiator()
    drain(end)
    feed(end, reply(revision=revision, enhanced=False))
    assert (connection.state, connection.code) == (MpaState.FAILED, "revision")


def test_a_reply_of_revision_2_to_a_request_of_revision_1_ends_the_set_up() -> None:
    end, connection = initiator(Offer(revision=1))
    drain(end)
    feed(end, reply(revision=2))
    assert (connection.state, connection.code) == (MpaState.FAILED, "revision")


GARBLED = {
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "one wrong octet": b"MPA ID Rxq Frame" + bytes(4),
    "first octet": b"\0",
    "private data over 512": mpa.KEY_REQUEST + b"\x10\x02\x02\x01",
    "IRD and ORD cut off": mpa.KEY_REQUEST + b"\x10\x02\x00\x03abc",
    "the other direction's key": reply(),
    "enhanced in revision 1": request(revision=1, enhanced=True),
}


@pytest.mark.parametrize("octets", GARBLED.values(), ids=GARBLED.keys())
def test_a_garbled_request_ends_the_set_up_without_a_reply(octets: bytes) -> None:
    end, connection = responder()
    feed(end, octets)
    assert (connection.state, connection.code) == (MpaState.FAILED, "garbled")
    assert connection.reason
    assert drain(end) == b""
    assert connection.closing


@pytest.mark.parametrize("octets", GARBLED.values(), ids=GARBLED.keys())
def test_a_garbled_reply_ends_the_set_up(octets: bytes) -> None:
    end, connection = initiator()
    drain(end)
    mirrored = {mpa.KEY_REQUEST: mpa.KEY_REPLY, mpa.KEY_REPLY: mpa.KEY_REQUEST}
    feed(end, mirrored.get(octets[:16], octets[:16]) + octets[16:])
    assert (connection.state, connection.code) == (MpaState.FAILED, "garbled")
    assert end.qp.state is QpState.INIT


@pytest.mark.parametrize("have", [0, 1, 19, 20, 23])
def test_a_peer_that_closes_during_the_set_up_ends_it(have: int) -> None:
    for end, connection in (responder(), initiator()):
        drain(end)
        octets = request() if connection.state is MpaState.WAIT_REQUEST else reply()
        feed(end, octets[:have])
        connection.engine.eof()
        assert (connection.state, connection.code) == (MpaState.FAILED, "closed")


def test_losing_the_stream_ends_the_set_up_with_its_reason() -> None:
    end, connection = initiator()
    end.engine.stream_lost("no route to host")
    assert (connection.state, connection.code) == (MpaState.FAILED, "lost")
    assert connection.reason == "no route to host"


def test_the_first_reason_is_kept() -> None:
    end, connection = responder()
    feed(end, b"\0")
    reason = connection.reason
    connection.eof()
    connection.stream_lost("later")
    assert (connection.code, connection.reason) == ("garbled", reason)


# -- time ------------------------------------------------------------------------------------------


def test_an_initiator_waits_10_seconds_for_the_reply() -> None:
    end, connection = initiator()
    drain(end)
    assert connection.deadline == 100.0 + REPLY_TIMEOUT
    connection.handle_timer(100.0 + REPLY_TIMEOUT - 0.01)
    assert connection.state is MpaState.WAIT_REPLY
    connection.handle_timer(100.0 + REPLY_TIMEOUT)
    assert (connection.state, connection.code) == (MpaState.FAILED, "timeout")
    assert connection.closing


def test_a_responder_waits_5_seconds_for_the_request_however_it_trickles_in() -> None:
    end, connection = responder()
    feed(end, request()[:10])
    assert connection.deadline == 100.0 + REQUEST_TIMEOUT
    connection.handle_timer(100.0 + REQUEST_TIMEOUT)
    assert (connection.state, connection.code) == (MpaState.FAILED, "timeout")


def test_an_application_that_never_answers_a_request_times_it_out() -> None:
    end, connection = responder()
    feed(end, request())
    assert connection.deadline is not None
    connection.handle_timer(connection.deadline)
    assert (connection.state, connection.code) == (MpaState.FAILED, "timeout")
    with pytest.raises(StateError):
        connection.accept(end.qp, Offer())


def test_an_established_connection_has_no_deadline() -> None:
    joined = pair()
    for end in (joined.client, joined.server):
        assert end.connection is not None
        assert end.connection.deadline is None
        end.connection.handle_timer(1e9)
        assert end.connection.state is MpaState.ESTABLISHED


def test_a_connection_without_a_set_up_is_its_queue_pairs_from_the_first_octet() -> None:
    end = lone(crc=False)
    end.connection = Connection.established(end.qp, now=100.0)
    assert end.engine is end.qp
    assert (end.connection.state, end.connection.crc) == (MpaState.ESTABLISHED, False)
    assert end.connection.deadline is None
    end.recv((0, 10))
    feed(end, send_fpdu(b"first"))
    assert [wc.byte_len for wc in end.got()] == [5]


# -- the border between set-up and FPDUs -----------------------------------------------------------


def test_octets_behind_the_reply_are_the_queue_pairs_however_they_are_cut() -> None:
    for seed in range(8):
        end, connection = initiator()
        drain(end)
        early = write_fpdu(end.region.stag, end.region.base, b"early!")
        octets = reply(crc=True, private_data=b"pd") + early
        assert feed(end, octets, random.Random(seed)) == len(octets)
        assert connection.state is MpaState.ESTABLISHED
        assert end.memory[:6] == b"early!"


def test_a_responder_takes_no_fpdu_before_its_reply_has_left() -> None:
    end, connection = responder()
    early = send_fpdu(b"x")
    assert feed(end, request() + early) == len(request())
    connection.accept(end.qp, Offer())
    assert feed(end, early) == 0
    drain(end)
    end.recv((0, 10))
    assert feed(end, early) == len(early)
    assert [wc.byte_len for wc in end.got()] == [1]


def test_a_responder_holds_its_first_fpdu_until_one_has_arrived() -> None:
    end = lone(held=True)
    end.recv((0, 100))
    end.write(end.region, 0, 0, 4)
    assert not end.engine.wants_to_send
    assert drain(end) == b""
    octets = send_fpdu(b"first")
    feed(end, octets[:-1])
    assert not end.engine.wants_to_send
    feed(end, octets[-1:])
    assert end.engine.wants_to_send
    assert len(drain(end)) == mpa.fpdu_len(18)


def test_a_queue_pair_that_ended_during_the_set_up_is_not_connected() -> None:
    """Its completion queue overran, say: the Reply then finds nobody to give the stream to."""
    end, connection = initiator()
    drain(end)
    end.qp.stream_lost("completion queue overrun")
    feed(end, reply())
    assert connection.state is MpaState.FAILED
    (said,) = terminates(drain(end))  # RFC 6581 section 9.3: a local error
    assert (said.layer, said.etype, said.code) == (2, 0, 5)
    assert connection.closing
    server, passive = responder()
    feed(server, request())
    server.qp.stream_lost("completion queue overrun")
    passive.accept(server.qp, Offer())
    assert passive.state is MpaState.FAILED
    assert drain(server) == b""


def test_a_stream_lost_before_the_reply_has_left_is_lost_for_the_queue_pair() -> None:
    end, connection = responder()
    end.recv((0, 10), wr_id=5)
    feed(end, request())
    connection.accept(end.qp, Offer())
    assert end.engine is connection
    end.engine.stream_lost("reset")
    assert end.qp.state is QpState.ERROR
    assert [wc.wr_id for wc in end.got()] == [5]


def test_every_change_of_state_is_told() -> None:
    seen: list[MpaState] = []
    connection = Connection.respond(0.0, on_change=lambda: seen.append(connection.state))
    end = End(1)
    end.connection = connection
    feed(end, request())
    connection.accept(end.qp, Offer())
    assert seen == [MpaState.REQUESTED, MpaState.ESTABLISHED]


def test_accepting_twice_is_a_callers_bug() -> None:
    end, connection = responder()
    feed(end, request())
    connection.accept(end.qp, Offer())
    with pytest.raises(StateError):
        connection.accept(end.qp, Offer())
    with pytest.raises(StateError):
        connection.reject()
