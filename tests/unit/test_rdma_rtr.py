"""Peer-to-peer mode: ready-to-receive by Write, Read and Send, in both roles (RFC 6581)."""

from __future__ import annotations

import random

import pytest

from steertag.errors import ProtocolError
from steertag.rdma.connection import REQUEST_TIMEOUT, Connection, Offer
from steertag.rdma.constants import WcStatus
from steertag.rdma.mpa_state import MpaState
from steertag.rdma.qp_state import QpState
from steertag.rdma.rtr import RTR_KINDS, RtrKind, take_untrusted, terminate_ulpdu, ulpdu_of
from steertag.wire import ddp, mpa, rdmap
from tests.sim.ends import (
    End,
    Pair,
    drain,
    feed,
    fpdu,
    ids,
    pair,
    read_request_fpdu,
    send_fpdu,
    tagged,
    terminates,
    untagged,
    write_fpdu,
)
from tests.wire.mpa_stream import capture_octets, connections

KINDS = pytest.mark.parametrize("kind", RTR_KINDS)


def p2p(*kinds: RtrKind, **fields: object) -> Offer:
    return Offer(peer_to_peer=True, rtr=kinds or RTR_KINDS, **fields)  # type: ignore[arg-type]


def words_of(octets: bytes) -> mpa.Enhanced:
    frame = mpa.StartFrame.parse(octets)
    assert frame is not None
    return mpa.Enhanced.parse(frame.private_data)


def kinds_in(words: mpa.Enhanced) -> set[str]:
    named = {"write": words.rtr_write, "read": words.rtr_read, "send": words.rtr_send}
    return {kind for kind, there in named.items() if there}


def framed(ulpdu: bytes, *, crc: bool = True) -> bytes:
    return b"".join(mpa.emit_fpdu([ulpdu], crc=crc))


def waiting(kind: RtrKind = "write", *, crc: bool = True) -> tuple[End, Connection]:
    """A responder that has accepted, in peer-to-peer mode, and whose Reply has left."""
    end = End(2)
    end.connection = connection = Connection.respond(now=100.0)
    feed(end, p2p(kind, crc=crc).request().emit())
    connection.accept(end.qp, Offer(crc=crc), now=200.0)
    drain(end)
    assert connection.state is MpaState.WAIT_RTR
    return end, connection


def talk(joined: Pair) -> None:
    """Sends, Writes and Reads both ways, all of them exact."""
    for number, (end, peer) in enumerate(
        [(joined.server, joined.client), (joined.client, joined.server)]
    ):
        base = 1000 * number
        end.memory[base : base + 5] = b"hello"
        peer.recv((base + 100, 50), wr_id=number)
        end.send((base, 5))
        end.write(peer.region, base, base + 200, 5)
        end.read(peer.region, base + 300, base + 200, 5)
        joined.run()
        assert ids(end.sent()) == [(0, WcStatus.SUCCESS)] * 3
        assert ids(peer.got()) == [(number, WcStatus.SUCCESS)]
        assert peer.memory[base + 100 : base + 105] == b"hello"
        assert end.memory[base + 300 : base + 305] == b"hello"


# -- both ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("crc", [True, False])
@KINDS
def test_the_responder_may_be_the_first_to_send(kind: RtrKind, crc: bool) -> None:
    for seed in range(4):
        joined = pair(random.Random(seed), p2p(kind, crc=crc), Offer(crc=crc))
        for end in (joined.client, joined.server):
            assert end.connection is not None
            assert end.connection.state is MpaState.ESTABLISHED
            assert end.connection.agreement is not None
            assert end.connection.agreement.rtr == kind
            assert end.engine is end.qp
        assert joined.fpdus_sent(0) == [ulpdu_of(kind)]
        assert len(joined.fpdus_sent(1)) == (kind == "read")
        talk(joined)


@KINDS
def test_ready_to_receive_takes_no_posted_receive_and_completes_nothing(kind: RtrKind) -> None:
    client, server = End(1), End(2)
    server.recv((0, 10), wr_id=3)
    client.recv((0, 10), wr_id=4)
    joined = pair(offer=p2p(kind), client=client, server=server)
    for end in (client, server):
        assert end.sent() == []
        assert end.got() == []
    client.memory[:2] = b"hi"
    client.send((0, 2))
    joined.run()
    assert ids(server.got()) == [(3, WcStatus.SUCCESS)]


def test_what_was_posted_before_ready_to_receive_leaves_behind_it() -> None:
    end, connection = waiting()
    end.write(end.region, 0, 0, 4)
    assert drain(end) == b""
    feed(end, framed(ulpdu_of("write")))
    assert connection.state is MpaState.ESTABLISHED
    assert drain(end) == write_fpdu(end.region.stag, end.region.base, bytes(4))


def test_ready_to_receive_leaves_before_anything_else_of_the_initiator() -> None:
    end = End(1)
    end.connection = Connection.initiate(end.qp, p2p("send"), now=0.0)
    drain(end)
    server = End(2)
    server.connection = Connection.respond(now=0.0)
    feed(server, p2p("send").request().emit())
    server.connection.accept(server.qp, Offer())
    feed(end, drain(server))
    end.send((0, 1))
    octets = drain(end)
    assert octets == framed(ulpdu_of("send")) + send_fpdu(b"\0", msn=2)


def test_the_answer_to_a_ready_to_receive_read_may_come_behind_other_messages() -> None:
    end = End(1)
    end.connection = Connection.initiate(end.qp, p2p("read"), now=0.0)
    drain(end)
    words = mpa.Enhanced(ird=4, ord=4, peer_to_peer=True, rtr_read=True).emit()
    feed(end, mpa.StartFrame(reply=True, crc=True, enhanced=True, private_data=words).emit())
    drain(end)
    end.recv((0, 10))
    response = tagged(rdmap.Opcode.READ_RESPONSE, 0, 0)
    feed(end, send_fpdu(b"early") + response)
    assert [wc.byte_len for wc in end.got()] == [5]
    end.read(end.region, 0, 0, 4)
    header = ddp.parse(mpa.Fpdu.parse(drain(end)).ulpdu)  # type: ignore[union-attr]
    assert isinstance(header, ddp.Untagged)
    assert header.msn == 2
    assert end.qp.state is QpState.RTS


def test_client_server_mode_knows_no_ready_to_receive() -> None:
    joined = pair(offer=Offer(), answer=Offer(peer_to_peer=True))
    assert words_of(bytes(joined.octets[0])) == mpa.Enhanced(ird=16, ord=16)
    assert words_of(bytes(joined.octets[1])) == mpa.Enhanced(ird=16, ord=16)
    assert joined.fpdus_sent(0) == []
    assert joined.server.connection is not None
    assert joined.server.connection.state is MpaState.ESTABLISHED


# -- who knows what --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "known", "named"),
    [
        (RTR_KINDS, RTR_KINDS, {"write"}),  # as siw's responder: a Write where it is offered
        (("read", "send"), RTR_KINDS, {"read"}),
        (("send",), RTR_KINDS, {"send"}),
        (RTR_KINDS, ("send", "read"), {"send"}),
        (("write",), ("read", "send"), {"read", "send"}),  # no match: it says what it knows
    ],
)
def test_the_responder_names_the_frame_that_it_likes_best(
    offered: tuple[RtrKind, ...], known: tuple[RtrKind, ...], named: set[str]
) -> None:
    end = End(2)
    end.connection = connection = Connection.respond(now=0.0)
    request = p2p(*offered).request().emit()
    assert kinds_in(words_of(request)) == set(offered)
    feed(end, request)
    connection.accept(end.qp, Offer(rtr=known))
    words = words_of(drain(end))
    assert words.peer_to_peer
    assert kinds_in(words) == named


def replied(offer: Offer, **fields: object) -> tuple[End, Connection]:
    """An initiator that gets a Reply with these words."""
    end = End(1)
    end.connection = connection = Connection.initiate(end.qp, offer, now=0.0)
    drain(end)
    words = mpa.Enhanced(**{"ird": 4, "ord": 4, **fields}).emit()  # type: ignore[arg-type]
    feed(end, mpa.StartFrame(reply=True, enhanced=True, private_data=words).emit())
    return end, connection


def test_the_initiator_chooses_among_several_by_its_own_preference() -> None:
    end, _ = replied(p2p("send", "write"), peer_to_peer=True, rtr_write=True, rtr_send=True)
    assert drain(end) == framed(ulpdu_of("send"))


@pytest.mark.parametrize(
    "words",
    [
        {"peer_to_peer": True, "rtr_read": True},
        {"peer_to_peer": True},
        {"rtr_write": True},  # without flag A the others don't count
    ],
)
def test_no_matching_frame_ends_the_set_up_with_a_terminate(words: dict[str, bool]) -> None:
    """RFC 6581 section 9.2: layer 2, type 0, code 7."""
    end, connection = replied(p2p("write", "send"), **words)
    assert (connection.state, connection.code) == (MpaState.FAILED, "rtr")
    (said,) = terminates(drain(end))
    assert (said.layer, said.etype, said.code) == (2, 0, 7)
    assert connection.closing
    assert end.qp.state is QpState.INIT


def test_a_read_asked_for_by_a_peer_that_takes_none_is_insufficient_ird() -> None:
    end, connection = replied(p2p("read"), peer_to_peer=True, rtr_read=True, ird=0)
    assert (connection.state, connection.code) == (MpaState.FAILED, "ird")
    (said,) = terminates(drain(end))
    assert (said.layer, said.etype, said.code) == (2, 0, 6)


def test_a_write_is_sent_where_a_read_would_find_no_room() -> None:
    words = {"peer_to_peer": True, "rtr_read": True, "rtr_write": True, "ird": 0}
    end, _ = replied(p2p("read", "write"), **words)
    assert drain(end) == framed(ulpdu_of("write"))


def test_a_ready_to_receive_read_works_for_applications_that_never_read() -> None:
    """RFC 6581 section 9.1: the responder's IRD may be raised to 1 for it."""
    joined = pair(offer=p2p("read", ird=0, ord=0), answer=Offer(ird=0, ord=0))
    assert words_of(bytes(joined.octets[0])).ord == 1
    assert words_of(bytes(joined.octets[1])).ird == 1
    client, server = joined.client, joined.server
    assert client.engine is client.qp
    assert server.engine is server.qp
    with pytest.raises(OSError, match="ORD is 0"):
        client.read(server.region, 0, 0, 4)
    client.write(server.region, 0, 0, 4)
    joined.run()
    assert ids(client.sent()) == [(0, WcStatus.SUCCESS)]


# -- a responder whose peer isn't ready ------------------------------------------------------------


def test_a_responder_waits_for_ready_to_receive_no_longer_than_for_the_request() -> None:
    end, connection = waiting()
    end.recv((0, 4), wr_id=1)
    assert connection.deadline == 200.0 + REQUEST_TIMEOUT
    feed(end, framed(ulpdu_of("write"))[:-1])
    connection.handle_timer(200.0 + REQUEST_TIMEOUT)
    assert (connection.state, connection.code) == (MpaState.FAILED, "timeout")
    assert ids(end.got()) == [(1, WcStatus.WR_FLUSH_ERR)]
    assert connection.closing


def test_an_initiator_that_ends_the_set_up_is_heard() -> None:
    for code, word in ((6, "ird"), (7, "rtr"), (5, "terminated")):
        end, connection = waiting()
        said = rdmap.Terminate(2, 0, code).emit()
        feed(end, untagged(rdmap.Opcode.TERMINATE, rdmap.QN_TERMINATE, 1, said))
        assert (connection.state, connection.code) == (MpaState.FAILED, word)
        assert end.qp.state is QpState.ERROR
        assert drain(end) == b""


READ = rdmap.ReadRequest(0, 0, 0, 1, 0)
NOT_READY = {
    "another kind": framed(ulpdu_of("send")),
    "a Write with payload": write_fpdu(1, 0, b"1"),
    "a Write that goes on": tagged(rdmap.Opcode.WRITE, 1, 0, last=False),
    "a Send with payload": send_fpdu(b"1"),
    "a second Send": send_fpdu(b"", msn=2),
    "a Send with Solicited Event": send_fpdu(b"", solicited=True),
    "a Read of an octet": read_request_fpdu(rdmap.ReadRequest(0, 0, 1, 1, 0)),
    "a Read cut short": untagged(rdmap.Opcode.READ_REQUEST, 1, 1, READ.emit()[:-1]),
    "a Read with more behind it": untagged(rdmap.Opcode.READ_REQUEST, 1, 1, READ.emit() + b"1"),
    "a Read Response": tagged(rdmap.Opcode.READ_RESPONSE, 1, 0),
    "a Terminate on another queue": untagged(rdmap.Opcode.TERMINATE, 0, 1, bytes(4)),
    "a Send on the Terminate queue": untagged(rdmap.Opcode.SEND, 2, 1, bytes(4)),
    "a Terminate cut short": untagged(rdmap.Opcode.TERMINATE, 2, 1, bytes(3)),
    "too long for any": b"\xff\xff",
    "no octets": framed(b""),
    "half a header": framed(ulpdu_of("write")[:9]),
}


@pytest.mark.parametrize("octets", NOT_READY.values(), ids=NOT_READY.keys())
def test_anything_else_than_ready_to_receive_is_answered_with_a_terminate(octets: bytes) -> None:
    end, connection = waiting()
    end.recv((0, 4), wr_id=1)
    feed(end, octets)
    assert (connection.state, connection.code) == (MpaState.FAILED, "rtr")
    (said,) = terminates(drain(end))
    assert (said.layer, said.etype, said.code) == (2, 0, 7)
    assert connection.closing
    assert ids(end.got()) == [(1, WcStatus.WR_FLUSH_ERR)]


@pytest.mark.parametrize(
    ("octets", "triple"),
    [
        (framed(ulpdu_of("write"))[:-1] + b"!", (2, 0, 2)),
        (fpdu(ddp.Tagged(True, 0x00, 1, 0)), (0, 2, 5)),
        (framed(b"\xc2" + ulpdu_of("write")[1:]), (1, 1, 4)),
    ],
    ids=["CRC", "RDMAP version", "DDP version"],
)
def test_a_first_fpdu_that_is_garbled_gets_its_own_terminate(
    octets: bytes, triple: tuple[int, int, int]
) -> None:
    end, connection = waiting()
    feed(end, octets)
    assert (connection.state, connection.code) == (MpaState.FAILED, "garbled")
    (said,) = terminates(drain(end))
    assert (said.layer, said.etype, said.code) == triple


def test_without_crc_the_field_of_ready_to_receive_is_not_looked_at() -> None:
    end, connection = waiting(crc=False)
    feed(end, framed(ulpdu_of("write"))[:-4] + b"\1\2\3\4")
    assert connection.state is MpaState.ESTABLISHED
    assert end.engine is end.qp


@pytest.mark.parametrize("have", [0, 1, 19])
def test_a_peer_that_leaves_instead_ends_the_set_up(have: int) -> None:
    for how in ("eof", "stream_lost"):
        end, connection = waiting()
        feed(end, framed(ulpdu_of("write"))[:have])
        if how == "eof":
            end.engine.eof()
        else:
            end.engine.stream_lost("reset")
        assert connection.state is MpaState.FAILED
        assert end.qp.state is QpState.ERROR


def test_octets_behind_ready_to_receive_are_the_queue_pairs_however_they_are_cut() -> None:
    for seed, kind in enumerate(RTR_KINDS * 3):
        end, _ = waiting(kind)
        end.recv((0, 10))
        ready = framed(ulpdu_of(kind))
        message = send_fpdu(b"behind", msn=2 if kind == "send" else 1)
        rng = random.Random(seed)
        taken = feed(end, ready + message, rng)
        if kind == "read":  # its answer leaves first
            assert taken == len(ready)
            drain(end)
            feed(end, message, rng)
        assert [wc.byte_len for wc in end.got()] == [6]


# -- the octets ------------------------------------------------------------------------------------


def test_the_frames_are_those_that_siw_sends() -> None:
    """Out of recordings of siw, whose CRC is the frame's too."""
    write = "000ec140000000010000000000000000ebd34c5f"
    read = (
        "002e414100000000000000010000000100000000000000000000000000000000"
        "00000000000000010000000000000000ba10e3c9"
    )
    assert framed(ulpdu_of("write")).hex() == write
    assert framed(ulpdu_of("read")).hex() == read
    answer = "000ec1420000000000000000000000006975d6ca"
    kind, ulpdu = take_untrusted(memoryview(ulpdu_of("read")))  # type: ignore[misc]
    assert kind == "read"
    assert framed(ulpdu).hex() == answer


def test_a_terminate_of_the_set_up_reads_back() -> None:
    end, connection = waiting()
    feed(end, b"\xff\xff")
    ulpdu = mpa.Fpdu.parse(drain(end))
    assert ulpdu is not None
    read = take_untrusted(ulpdu.ulpdu)
    assert isinstance(read, rdmap.Terminate)
    assert bytes(ulpdu.ulpdu) == terminate_ulpdu(ProtocolError(2, 0, 7, ""))
    assert connection.code == "rtr"


RECORDINGS = ["rping-rtr-write", "rping-rtr-read", "rping-p2p-S64", "rping-crc-p2p-S64"]


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recorded_initiator_of_siw_is_taken_as_siw_takes_it(name: str) -> None:
    (recorded,) = connections(capture_octets(name))
    end = End(2)
    end.connection = connection = Connection.respond(now=0.0)
    feed(end, recorded.client.start.emit())
    connection.accept(end.qp, Offer(crc=False))
    siws, ours = recorded.server.start.emit(), drain(end)
    assert kinds_in(words_of(ours)) == kinds_in(words_of(siws))
    feed(end, recorded.client.segments[0].octets)
    assert connection.state is MpaState.ESTABLISHED
    answer = recorded.server.segments[0].octets if "read" in name else b""
    assert drain(end) == answer


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recorded_responder_of_siw_gets_what_siw_sends(name: str) -> None:
    (recorded,) = connections(capture_octets(name))
    siws = recorded.client.start.emit()
    kinds = tuple(kind for kind in RTR_KINDS if kind in kinds_in(words_of(siws)))
    end = End(1)
    offer = p2p(*kinds, crc=recorded.client.start.crc)
    end.connection = connection = Connection.initiate(end.qp, offer, now=0.0)
    assert kinds_in(words_of(drain(end))) == set(kinds)
    feed(end, recorded.server.start.emit())
    assert connection.state is MpaState.ESTABLISHED
    assert drain(end) == recorded.client.segments[0].octets
    if "read" in name:
        feed(end, recorded.server.segments[0].octets)
        assert end.qp.counters.rx_fpdus == 1
        assert end.qp.state is QpState.RTS
