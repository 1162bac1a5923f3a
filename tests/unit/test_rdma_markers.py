"""Markers in the stream (RFC 5044 section 4.3): octet by octet, and beneath queue pairs."""

from __future__ import annotations

import random
import struct
from itertools import product

import pytest

from steertag.errors import ProtocolError
from steertag.rdma.connection import Connection, Offer
from steertag.rdma.constants import WcStatus
from steertag.rdma.markers import MAX_ULPDU, MarkerInserter, MarkerStripper
from steertag.rdma.mpa_state import MpaState
from steertag.rdma.qp_state import QpState
from steertag.rdma.rtr import RTR_KINDS, RtrKind
from steertag.wire import mpa
from steertag.wire.crc32c import crc32c
from tests.sim.ends import (
    End,
    Pair,
    drain,
    feed,
    ids,
    pair,
    pattern,
    send_fpdu,
    terminates,
    write_fpdu,
)

# RFC 5044 figures 5 and 6: an FPDU that begins the stream, and the second one of a stream.
FIRST = bytes.fromhex(
    "00000000 002a 4143 00000000 00000000 00000001 00000000" + "00" * 24 + "52239983"
)
SECOND = bytes.fromhex(
    "002a 4143 00000000 00000000 00000002 00000000 00000014" + "00" * 24 + "84925898"
)


def unmarked(payload: bytes, *, crc: bool = True) -> bytes:
    return b"".join(mpa.emit_fpdu([payload], crc=crc))


def markers_in(stream: bytes) -> list[tuple[int, int]]:
    """(reserved, FPDUPTR) of each marker in a stream of FPDUs."""
    return [struct.unpack_from("!HH", stream, at) for at in range(0, len(stream), 512)]


def strip(stripper: MarkerStripper, stream: bytes) -> bytes:
    out = b""
    while stream:
        size = stripper.size(stream)
        assert size <= len(stream)
        out += stripper.strip(memoryview(stream)[:size])
        stream = stream[size:]
    return out


# -- octets ----------------------------------------------------------------------------------------


def test_the_first_fpdu_of_the_rfc_is_marked_and_read_as_there() -> None:
    plain = unmarked(FIRST[6:48])
    assert MarkerInserter(crc=True).insert(plain) == FIRST
    assert strip(MarkerStripper(crc=True), FIRST) == plain


def test_the_second_fpdu_of_the_rfc_is_marked_and_read_as_there() -> None:
    before = unmarked(bytes(482))
    plain = unmarked(SECOND[2:20] + bytes(24))
    inserter, stripper = MarkerInserter(crc=True), MarkerStripper(crc=True)
    assert len(inserter.insert(before)) == 492
    assert inserter.insert(plain) == SECOND
    stream = MarkerInserter(crc=True).insert(before + plain)
    assert stream[492:] == SECOND
    assert strip(stripper, stream) == before + plain


def test_all_markers_of_an_fpdu_point_to_its_length_field() -> None:
    stream = MarkerInserter(crc=True).insert(unmarked(bytes(3000)))
    assert markers_in(stream) == [(0, 0)] + [(0, 512 * n - 4) for n in range(1, 6)]


def test_a_marker_between_two_fpdus_is_zero_and_counts_for_the_second() -> None:
    """504 octets of FPDU behind the first marker end at the second one's place."""
    first, second = unmarked(bytes(502)), unmarked(b"second")
    assert len(first) == 508
    stream = MarkerInserter(crc=True).insert(first + second)
    assert stream[508 + 4 : 508 + 8] == bytes(4)
    begin = 512
    assert stream[begin : begin + 6] == bytes(4) + b"\0\6"
    assert stream[-4:] == crc32c(stream[begin:-4]).to_bytes(4, "little")
    assert strip(MarkerStripper(crc=True), stream) == first + second


def test_a_marker_between_pad_and_crc_counts_for_the_crc() -> None:
    plain = unmarked(bytes(505))
    stream = MarkerInserter(crc=True).insert(plain)
    assert len(stream) == 4 + 508 + 4 + 4
    assert stream[512:516] == struct.pack("!HH", 0, 508)
    assert stream[516:] == crc32c(stream[:516]).to_bytes(4, "little")
    assert strip(MarkerStripper(crc=True), stream) == plain


def test_without_crc_the_field_is_zero_and_taken_as_it_comes() -> None:
    plain = unmarked(b"no CRC", crc=False)
    stream = MarkerInserter(crc=False).insert(unmarked(b"no CRC"))
    assert stream == bytes(4) + plain
    garbled = stream[:-4] + b"abcd"
    assert strip(MarkerStripper(crc=False), garbled) == plain[:-4] + b"abcd"


def test_the_last_marker_of_the_longest_fpdu_still_points_to_its_start() -> None:
    for before in range(0, 512, 4):
        inserter = MarkerInserter(crc=False)
        lead = inserter.insert(unmarked(bytes(before))) if before else b""
        stream = lead + inserter.insert(unmarked(bytes(MAX_ULPDU)))
        begin = len(lead) + (4 if len(lead) % 512 == 0 else 0)
        distances = [at - begin for at in range(begin, len(stream)) if at % 512 == 0]
        assert max(distances) <= 0xFFFC


def test_a_marker_that_points_elsewhere_is_an_error_where_the_crc_is_right() -> None:
    stream = bytearray(MarkerInserter(crc=True).insert(unmarked(bytes(1000))))
    stream[514:516] = b"\0\x14"
    framed = mpa.Fpdu.parse(strip(MarkerStripper(crc=True), bytes(stream)))
    assert framed is not None
    assert not framed.crc_ok  # so far it is the CRC that is wrong
    with pytest.raises(ProtocolError) as caught:
        strip(MarkerStripper(crc=True), resealed(stream))
    assert (caught.value.layer, caught.value.etype, caught.value.code) == (2, 0, 3)


def test_reserved_bits_and_the_low_bits_of_the_pointer_are_not_looked_at() -> None:
    plain = unmarked(bytes(1000))
    stream = bytearray(MarkerInserter(crc=True).insert(plain))
    stream[512:516] = b"\xff\xff\x01\xff"
    assert strip(MarkerStripper(crc=True), resealed(stream)) == plain


def resealed(stream: bytearray) -> bytes:
    """One FPDU with a right CRC."""
    stream[-4:] = crc32c(stream[:-4]).to_bytes(4, "little")
    return bytes(stream)


# -- queue pairs -----------------------------------------------------------------------------------


def bulk(joined: Pair, size: int = 100_000) -> None:
    """Messages of every kind both ways."""
    client, server = joined.client, joined.server
    for seed, (end, peer) in enumerate([(client, server), (server, client)]):
        end.memory[:size] = pattern(size, seed)
        peer.recv((200_000, 5000))
        end.write(peer.region, 0, 0, size)
        end.send((0, 4321))
        end.read(peer.region, 250_000, 0, 3000)
        joined.run()
        assert ids(end.sent()) == [(0, WcStatus.SUCCESS)] * 3
        assert [wc.byte_len for wc in peer.got()] == [4321]
        assert peer.memory[:size] == end.memory[:size]
        assert peer.memory[200_000:204_321] == end.memory[:4321]
        assert end.memory[250_000:253_000] == peer.memory[:3000]


def fpdus_of(joined: Pair, side: int) -> bytes:
    octets = bytes(joined.octets[side])
    frame = mpa.StartFrame.parse(octets)
    assert frame is not None
    return octets[len(frame) :]


@pytest.mark.parametrize(("asked", "answered", "crc"), list(product((False, True), repeat=3)))
def test_each_side_gets_markers_where_it_asks_for_them(
    asked: bool, answered: bool, crc: bool
) -> None:
    for seed in range(3):
        rng = random.Random(seed) if seed else None
        offer, answer = Offer(markers=asked, crc=crc), Offer(markers=answered, crc=crc)
        joined = pair(rng, offer, answer)
        bulk(joined)
        for side, wanted in ((0, answered), (1, asked)):
            stream = fpdus_of(joined, side)
            if wanted:
                assert strip(MarkerStripper(crc), stream)
                assert markers_in(stream)[0] == (0, 0)
            else:
                assert len(joined.fpdus_sent(side)) >= 5


@pytest.mark.parametrize("kind", RTR_KINDS)
def test_ready_to_receive_is_marked_too(kind: RtrKind) -> None:
    for seed in range(3):
        offer = Offer(peer_to_peer=True, rtr=(kind,), markers=True)
        joined = pair(random.Random(seed), offer, Offer(markers=True))
        assert fpdus_of(joined, 0)[:4] == bytes(4)
        bulk(joined, 20_000)


def test_a_connection_without_markers_goes_without_them() -> None:
    joined = pair()
    assert joined.client.engine is joined.client.qp
    assert joined.server.engine is joined.server.qp


def test_counters_count_markers_as_octets_of_the_stream() -> None:
    joined = pair(offer=Offer(markers=True), answer=Offer(markers=True))
    bulk(joined, 20_000)
    for side, (end, peer) in enumerate(
        [(joined.client, joined.server), (joined.server, joined.client)]
    ):
        octets = len(fpdus_of(joined, side))
        assert (end.qp.counters.tx_bytes, peer.qp.counters.rx_bytes) == (octets, octets)


def marked_responder() -> tuple[End, Connection]:
    """It takes and sends markers; the test plays the initiator."""
    end = End(2)
    end.connection = connection = Connection.respond(now=0.0)
    feed(end, Offer(markers=True).request().emit())
    connection.accept(end.qp, Offer(markers=True))
    drain(end)
    return end, connection


def test_a_request_completes_when_its_last_octet_has_left() -> None:
    end, _ = marked_responder()
    feed(end, MarkerInserter(crc=True).insert(write_fpdu(end.region.stag, end.region.base, b"x")))
    end.write(end.region, 0, 1000, 2000)
    (part,) = end.engine.data_to_send()
    for _ in range(len(part) - 1):
        assert end.engine.sent(1)
        assert end.sent() == []
        assert end.engine.wants_to_send
    end.engine.sent(1)
    assert ids(end.sent()) == [(0, WcStatus.SUCCESS)]
    assert not end.engine.wants_to_send


@pytest.mark.parametrize(
    ("spoil", "code", "counted"), [(False, mpa.E_MARKER, 0), (True, mpa.E_CRC, 1)]
)
def test_a_wrong_marker_ends_the_connection_with_a_marked_terminate(
    spoil: bool, code: int, counted: int
) -> None:
    end, _ = marked_responder()
    end.recv((0, 2000), wr_id=4)
    stream = bytearray(MarkerInserter(crc=True).insert(send_fpdu(bytes(1000))))
    stream[514:516] = b"\0\x14"
    feed(end, bytes(stream) if spoil else resealed(stream))
    assert end.qp.state is QpState.TERMINATE
    feed(end, b"whatever comes then")
    (said,) = terminates(strip(MarkerStripper(crc=True), drain(end)))
    assert (said.layer, said.etype, said.code) == (2, 0, code)
    assert (end.qp.counters.protocol_errors, end.qp.counters.crc_errors) == (1, counted)
    assert ids(end.got()) == [(4, WcStatus.WR_FLUSH_ERR)]
    assert end.engine.closing


def test_what_was_framed_when_a_terminate_came_is_not_sent_on() -> None:
    end, _ = marked_responder()
    inserter = MarkerInserter(crc=True)
    feed(end, inserter.insert(write_fpdu(end.region.stag, end.region.base, b"x")))
    end.write(end.region, 0, 1000, 2000, wr_id=7)
    end.engine.data_to_send()
    end.engine.sent(10)
    terminate = bytes.fromhex("0016 4147 00000000 00000002 00000001 00000000 00010000") + bytes(4)
    feed(end, inserter.insert(terminate))
    assert end.qp.state is QpState.ERROR
    assert not end.engine.wants_to_send
    assert end.engine.data_to_send() == []
    assert ids(end.sent()) == [(7, WcStatus.WR_FLUSH_ERR)]


@pytest.mark.parametrize("have", [1, 5, 600])
def test_a_peer_that_closes_within_a_marked_fpdu_closes_within_a_message(have: int) -> None:
    end, _ = marked_responder()
    end.recv((0, 2000))
    stream = MarkerInserter(crc=True).insert(send_fpdu(bytes(1000)))
    feed(end, stream[:have])
    end.engine.eof()
    assert end.qp.end_reason == "peer closed in the middle of a message"


def test_a_peer_that_closes_between_marked_fpdus_has_just_closed() -> None:
    end, _ = marked_responder()
    end.recv((0, 2000))
    feed(end, MarkerInserter(crc=True).insert(send_fpdu(bytes(1000))))
    end.engine.eof()
    assert end.qp.end_reason == "peer closed"


def test_a_refusal_of_the_set_up_is_marked_where_the_peer_wants_markers() -> None:
    end = End(1)
    end.connection = connection = Connection.initiate(end.qp, Offer(ird=1), now=0.0)
    drain(end)
    words = mpa.Enhanced(ird=4, ord=4).emit()
    reply = mpa.StartFrame(reply=True, markers=True, enhanced=True, private_data=words)
    feed(end, reply.emit())
    assert (connection.state, connection.code) == (MpaState.FAILED, "ird")
    (said,) = terminates(strip(MarkerStripper(crc=True), drain(end)))
    assert said.code == mpa.E_INSUFFICIENT_IRD
