"""Every frame of Linux's siw in `captures/` is understood, and re-emitted octet for octet."""

from __future__ import annotations

import pytest

from steertag.wire import ddp, mpa, rdmap
from steertag.wire.rdmap import Opcode
from tests.wire.mpa_stream import CAPTURE_NAMES, Connection, capture_octets, connections

BAD_CRC = "user-pyrping-badcrc"
SPOILT = {BAD_CRC: 1}
SET_UP_TWICE = [name for name in CAPTURE_NAMES if name.startswith("ib_")]
RPING = [
    name for name in CAPTURE_NAMES if "rping" in name and "mpa1" not in name and name != BAD_CRC
]


def connections_of(name: str) -> list[Connection]:
    return connections(capture_octets(name))


def test_all_the_captures_are_there() -> None:
    assert len(CAPTURE_NAMES) == 33


@pytest.mark.parametrize("name", CAPTURE_NAMES)
def test_a_capture_is_start_up_frames_and_whole_fpdus_and_nothing_else(name: str) -> None:
    found = connections_of(name)
    assert len(found) == (2 if name in SET_UP_TWICE else 1)
    for connection in found:
        assert connection.stream.complete
        assert [direction.rest for direction in connection.directions] == [b"", b""]
        assert not connection.client.start.reply
        assert connection.server.start.reply


@pytest.mark.parametrize("name", CAPTURE_NAMES)
def test_start_up_frames_are_re_emitted_octet_for_octet(name: str) -> None:
    for connection in connections_of(name):
        sides = zip(
            connection.directions, (connection.stream.sent, connection.stream.received), strict=True
        )
        for direction, octets in sides:
            start = direction.start
            assert start.emit() == octets[: len(start)]
            assert start.revision == (1 if "mpa1" in name else 2)
            assert start.enhanced == (start.revision == 2)
            if start.enhanced:
                assert mpa.Enhanced.parse(start.private_data).emit() == start.private_data


@pytest.mark.parametrize("name", CAPTURE_NAMES)
def test_crc_is_on_exactly_where_it_was_switched_on(name: str) -> None:
    for connection in connections_of(name):
        assert connection.crc == ("crc" in name or "rtr" in name)


@pytest.mark.parametrize("name", CAPTURE_NAMES)
def test_every_crc_is_good_but_the_spoilt_one_and_zero_where_crc_is_off(name: str) -> None:
    fpdus = spoilt = 0
    for connection in connections_of(name):
        for direction in connection.directions:
            for segment in direction.segments:
                fpdus += 1
                if not connection.crc:
                    assert segment.fpdu.crc == 0
                elif not segment.fpdu.crc_ok:
                    spoilt += 1
    assert fpdus > 0
    assert spoilt == SPOILT.get(name, 0)


@pytest.mark.parametrize("name", [name for name in CAPTURE_NAMES if name != BAD_CRC])
def test_every_fpdu_is_re_emitted_octet_for_octet(name: str) -> None:
    for connection in connections_of(name):
        for direction in connection.directions:
            emitted = [segment.emitted(crc=connection.crc) for segment in direction.segments]
            assert emitted == [segment.octets for segment in direction.segments]


def test_the_spoilt_fpdu_differs_from_ours_in_the_crc_alone() -> None:
    (connection,) = connections_of(BAD_CRC)
    (segment,) = connection.client.segments
    emitted = segment.emitted(crc=True)
    assert emitted[: -mpa.CRC_LEN] == segment.octets[: -mpa.CRC_LEN]
    assert emitted != segment.octets


def test_siw_terminates_with_the_nibbles_exchanged_and_it_is_read_as_a_crc_error() -> None:
    (connection,) = connections_of(BAD_CRC)
    (segment,) = connection.server.segments
    assert isinstance(segment.ddp, ddp.Untagged)
    assert (segment.ddp.qn, segment.ddp.msn, segment.ddp.mo) == (rdmap.QN_TERMINATE, 1, 0)
    terminate = segment.body
    assert isinstance(terminate, rdmap.Terminate)
    assert (terminate.layer, terminate.etype, terminate.code) == (
        mpa.LAYER_LLP,
        mpa.ETYPE_MPA,
        mpa.E_CRC,
    )
    assert terminate.swapped


@pytest.mark.parametrize("name", RPING)
def test_what_rping_read_is_what_it_wrote_back(name: str) -> None:
    """The octets in the Read Responses go out again in Writes: payloads were cut out right."""
    (connection,) = connections_of(name)
    read = connection.client.payload(Opcode.READ_RESPONSE)
    assert len(read) > 0
    assert read == connection.server.payload(Opcode.WRITE)


@pytest.mark.parametrize("name", CAPTURE_NAMES)
def test_every_read_request_is_answered_with_as_many_octets_at_the_sink_it_names(name: str) -> None:
    for connection in connections_of(name):
        for asking, answering in (connection.directions, connection.directions[::-1]):
            answers = iter(
                segment for segment in answering.segments if segment.opcode is Opcode.READ_RESPONSE
            )
            for segment in asking.segments:
                if not isinstance(request := segment.body, rdmap.ReadRequest):
                    continue
                at, last = request.sink_to, False
                while not last:
                    answer = next(answers)
                    assert isinstance(answer.ddp, ddp.Tagged)
                    assert isinstance(answer.body, bytes)
                    assert (answer.ddp.stag, answer.ddp.to) == (request.sink_stag, at)
                    at, last = at + len(answer.body), answer.ddp.last
                assert at == request.sink_to + request.size
            assert next(answers, None) is None


@pytest.mark.parametrize("name", CAPTURE_NAMES)
def test_untagged_messages_are_numbered_from_one_on_each_queue(name: str) -> None:
    for connection in connections_of(name):
        for direction in connection.directions:
            msn: dict[int, int] = {}
            placed: dict[int, int] = {}
            for segment in direction.segments:
                header = segment.ddp
                if not isinstance(header, ddp.Untagged):
                    continue
                qn = header.qn
                assert (header.msn, header.mo) == (msn.get(qn, 1), placed.get(qn, 0))
                payload = len(segment.fpdu.ulpdu) - len(header)
                placed[qn] = 0 if header.last else header.mo + payload
                msn[qn] = header.msn + 1 if header.last else header.msn


@pytest.mark.parametrize(
    ("name", "client", "server"),
    [
        # Opcode counts, as tshark has them.
        (
            "rping-crc-S5000",
            {Opcode.SEND: 10, Opcode.READ_RESPONSE: 20},
            {Opcode.READ_REQUEST: 5, Opcode.SEND: 10, Opcode.WRITE: 20},
        ),
        (
            "rping-rtr-read",
            {Opcode.READ_REQUEST: 1, Opcode.SEND: 4, Opcode.READ_RESPONSE: 2},
            {Opcode.READ_RESPONSE: 1, Opcode.READ_REQUEST: 2, Opcode.SEND: 4, Opcode.WRITE: 2},
        ),
        (BAD_CRC, {Opcode.SEND: 1}, {Opcode.TERMINATE: 1}),
    ],
)
def test_messages_by_opcode(
    name: str, client: dict[Opcode, int], server: dict[Opcode, int]
) -> None:
    (connection,) = connections_of(name)
    for direction, expected in ((connection.client, client), (connection.server, server)):
        assert {opcode: direction.count(opcode) for opcode in expected} == expected
        assert len(direction.segments) == sum(expected.values())


def test_peer_to_peer_is_offered_and_the_zero_length_write_comes_first() -> None:
    (connection,) = connections_of("rping-p2p-S64")
    offer = mpa.Enhanced.parse(connection.client.start.private_data)
    answer = mpa.Enhanced.parse(connection.server.start.private_data)
    assert offer == mpa.Enhanced(ird=1, ord=1, peer_to_peer=True, rtr_write=True, rtr_read=True)
    assert answer == mpa.Enhanced(ird=1, ord=1, peer_to_peer=True, rtr_write=True)
    first = connection.client.segments[0]
    assert first.opcode is Opcode.WRITE
    assert first.ddp == ddp.Tagged(last=True, ulp=rdmap.control(Opcode.WRITE), stag=1, to=0)
    assert first.body == b""


def test_siw_makes_fpdus_of_nearly_64_kib_where_the_mtu_allows() -> None:
    _, transfer = connections_of("ib_write_bw-64k-lomtu65536")
    assert max(len(segment.fpdu.ulpdu) for segment in transfer.client.segments) == 65474
