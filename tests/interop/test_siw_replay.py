"""Our RNIC put in the place of one end of a recorded connection of Linux's siw.

What the kernel sent is fed to our queue pair, which must take all of it; and given the same work,
our queue pair must send the messages that the kernel sent.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from steertag.rdma.connection import Connection, Offer
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    WC_RECV,
    WR_SEND,
    WcStatus,
)
from steertag.rdma.cq import WC, CompletionQueue
from steertag.rdma.memory import Region
from steertag.rdma.qp import QpCap
from steertag.rdma.rnic import Rnic
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.wire import ddp, mpa, rdmap
from steertag.wire.rdmap import Opcode
from tests.wire.mpa_stream import Connection as Recorded
from tests.wire.mpa_stream import Direction, capture_octets, connections, take_apart

ALL_ACCESS = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE
OWN_STAG = 0x5A5A5A5A
SIW_ULPDU = 1442
"""The longest ULPDU that siw makes of a TCP segment of 1448 octets."""
SIW_TERMINATES = "user-pyrping-badcrc"


class StandIn:
    """One queue pair, with a region of its own and those that the recording names."""

    def __init__(self, receives: int = 0, receive_size: int = 4096) -> None:
        rnic = Rnic(random.Random(0).getrandbits)
        self.pd = rnic.alloc_pd()
        self.table = rnic.table
        self.cq = CompletionQueue(4096)
        self.qp = rnic.create_qp(self.pd, self.cq, self.cq, QpCap(1024, 1024))
        self.memory = self.region(OWN_STAG, 0, max(receives, 1) * receive_size)
        for number in range(receives):
            sge = SGE(number * receive_size, receive_size, OWN_STAG)
            self.qp.post_recv(RecvWR(wr_id=number, sg=[sge]))
        self.connection: Connection
        self.sent = b""

    def region(self, stag: int, base: int, size: int) -> memoryview:
        """Memory under the STag and offset that the recording has, instead of random ones."""
        view = memoryview(bytearray(size))
        self.table.regions[stag] = Region(stag, self.pd, ALL_ACCESS, base, view)
        return view

    def respond(self, request: bytes, *, crc: bool) -> None:
        self.connection = Connection.respond(now=0.0)
        self.feed(request)
        self.connection.accept(self.qp, Offer(crc=crc))
        self.collect()

    def initiate(self, offer: Offer) -> None:
        self.connection = Connection.initiate(self.qp, offer, now=0.0)
        self.collect()

    def feed(self, octets: bytes, cut: int | None = None) -> None:
        """Let the stream bring `octets`, at most `cut` of them to a read."""
        while octets:
            views = self.connection.engine.buffers()
            size = min(len(octets), cut or len(octets), sum(map(len, views)))
            part, octets = octets[:size], octets[size:]
            for view in views:
                view[: len(part)] = part[: len(view)]
                part = part[len(view) :]
            self.connection.engine.received(size)

    def collect(self) -> None:
        """Take everything that is to be sent."""
        while self.connection.engine.wants_to_send:
            octets = b"".join(self.connection.engine.data_to_send())
            self.connection.engine.sent(len(octets))
            self.sent += octets

    def completions(self) -> list[WC]:
        return self.cq.poll(4096)


def transfers(name: str) -> Recorded:
    """The last connection of a capture: perftest's first one only exchanges parameters."""
    return connections(capture_octets(name))[-1]


def split_start(octets: bytes, recorded: mpa.StartFrame) -> tuple[bytes, bytes]:
    return octets[: len(recorded)], octets[len(recorded) :]


@pytest.mark.parametrize("cut", [None, 1448, 100, 7])
@pytest.mark.parametrize("name", ["ib_send_bw-crc", "ib_send_bw-plain", "ib_send_bw-mpa1"])
def test_sends_of_siw_fill_posted_receives(name: str, cut: int | None) -> None:
    recorded = transfers(name)
    messages = sum(segment.ddp.last for segment in recorded.client.segments)
    end = StandIn(receives=messages)
    request, fpdus = split_start(recorded.stream.sent, recorded.client.start)
    end.respond(request, crc=recorded.crc)
    end.feed(fpdus, cut)
    done = end.completions()
    assert messages in (10, 40)
    assert [(wc.wr_id, wc.status, wc.opcode, wc.byte_len) for wc in done] == [
        (number, WcStatus.SUCCESS, WC_RECV, 4096) for number in range(messages)
    ]
    assert bytes(end.memory) == recorded.client.payload(Opcode.SEND)


@pytest.mark.parametrize("cut", [None, 4096, 1448, 31])
@pytest.mark.parametrize(
    "name", ["ib_write_bw-crc", "ib_write_bw-64k-crc", "ib_write_bw-64k-lomtu65536"]
)
def test_writes_of_siw_land_where_they_say(name: str, cut: int | None) -> None:
    recorded = transfers(name)
    headers = [segment.ddp for segment in recorded.client.segments]
    tagged = [header for header in headers if isinstance(header, ddp.Tagged)]
    assert len(tagged) == len(headers)
    (stag,) = {header.stag for header in tagged}
    base = min(header.to for header in tagged)
    expected = bytearray(200_000)
    for header, segment in zip(tagged, recorded.client.segments, strict=True):
        assert isinstance(segment.body, bytes)
        at = header.to - base
        expected[at : at + len(segment.body)] = segment.body
    end = StandIn()
    memory = end.region(stag, base, len(expected))
    request, fpdus = split_start(recorded.stream.sent, recorded.client.start)
    end.respond(request, crc=recorded.crc)
    end.feed(fpdus, cut)
    assert bytes(memory) == bytes(expected)
    assert end.qp.counters.rx_fpdus == len(headers)
    assert end.qp.counters.protocol_errors == 0
    payload = len(recorded.client.payload(Opcode.WRITE))
    assert end.qp.counters.placed_bytes + end.qp.counters.staged_bytes == payload


def test_a_spoilt_crc_is_answered_with_a_terminate_in_the_rfcs_form() -> None:
    recorded = transfers(SIW_TERMINATES)
    end = StandIn(receives=1)
    request, fpdus = split_start(recorded.stream.sent, recorded.client.start)
    end.respond(request, crc=True)
    end.feed(fpdus)
    end.collect()
    (segment,) = take_apart(end.sent).segments
    assert isinstance(segment.body, rdmap.Terminate)
    cause = segment.body.layer, segment.body.etype, segment.body.code
    assert cause == (mpa.LAYER_LLP, mpa.ETYPE_MPA, mpa.E_CRC)
    assert not segment.body.swapped
    (siws,) = recorded.server.segments
    assert isinstance(siws.body, rdmap.Terminate)
    assert cause == (siws.body.layer, siws.body.etype, siws.body.code)
    assert [wc.status for wc in end.completions()] == [WcStatus.WR_FLUSH_ERR]


def test_siws_terminate_ends_our_connection_and_says_why() -> None:
    recorded = transfers(SIW_TERMINATES)
    end = StandIn(receives=1)
    end.initiate(Offer(ird=1, ord=1))
    end.feed(recorded.stream.received)
    assert end.qp.end_reason == "peer sent a Terminate: layer 2, type 0, code 0x02"


def read_sources(recorded: Recorded) -> list[tuple[rdmap.ReadRequest, bytes]]:
    """The server's Read Requests, each with the octets that the client answered it with."""
    answers = recorded.client.payload(Opcode.READ_RESPONSE)
    found = []
    for segment in recorded.server.segments:
        if isinstance(segment.body, rdmap.ReadRequest):
            found.append((segment.body, answers[: segment.body.size]))
            answers = answers[segment.body.size :]
    return found


def reads_answered(end: StandIn) -> int:
    return sum(
        segment.opcode is Opcode.READ_RESPONSE and segment.ddp.last
        for segment in take_apart(end.sent).segments
    )


def messages(direction: Direction) -> list[tuple[bytes, bytes]]:
    """The messages of one direction, however they are cut: header of the first segment, payload."""
    found = []
    header, payload = b"", b""
    for segment in direction.segments:
        assert isinstance(segment.body, bytes)
        header = header or replace(segment.ddp, last=True).emit()
        payload += segment.body
        if segment.ddp.last:
            found.append((header, payload))
            header, payload = b"", b""
    return found


def play_client(end: StandIn, recorded: Recorded) -> None:
    """Do what `rping -c` did: its Sends, and whatever the server's segments call for."""
    sources = iter(read_sources(recorded))
    arrivals = iter(recorded.server.segments)
    scratch = end.region(OWN_STAG ^ 1, 0, 4096)
    answered = 0

    def bring_next_segment() -> bool:
        segment = next(arrivals, None)
        if segment is None:
            return False
        if isinstance(segment.body, rdmap.ReadRequest):
            request, octets = next(sources)
            memory = end.region(request.source_stag, request.source_to, request.size)
            memory[:] = octets
        elif isinstance(segment.ddp, ddp.Tagged) and segment.ddp.stag not in end.table.regions:
            end.region(segment.ddp.stag, segment.ddp.to, 8192)
        end.feed(segment.octets)
        end.collect()
        return True

    for segment in recorded.client.segments:
        if segment.opcode is Opcode.SEND:
            assert isinstance(segment.body, bytes)
            size = len(segment.body)
            scratch[:size] = segment.body
            sge = SGE(0, size, OWN_STAG ^ 1)
            end.qp.post_send(SendWR(sg=[sge], opcode=WR_SEND))
            end.collect()
        elif segment.ddp.last:
            answered += 1
            while reads_answered(end) < answered:
                assert bring_next_segment(), "siw answered here, and we did not"
    while bring_next_segment():
        pass


@pytest.mark.parametrize("size", [64, 1000, 5000])
@pytest.mark.parametrize("kind", ["plain", "crc"])
def test_in_the_place_of_the_rping_client_we_send_what_siw_sent(kind: str, size: int) -> None:
    """The start-up frame, the Sends and the Read Responses: octet for octet, where the message is
    one segment; longer ones are the same messages, cut otherwise.
    """
    recorded = transfers(f"rping-{kind}-S{size}")
    sends = recorded.server.count(Opcode.SEND)
    end = StandIn(receives=sends)
    end.initiate(Offer(crc=kind == "crc", ird=1, ord=1, max_ulpdu=SIW_ULPDU))
    end.feed(recorded.server.start.emit())
    play_client(end, recorded)
    if size + ddp.TAGGED_LEN <= SIW_ULPDU:
        assert end.sent == recorded.stream.sent
    sent = take_apart(end.sent)
    assert sent.start == recorded.client.start
    assert messages(sent) == messages(recorded.client)
    assert max(len(segment.fpdu.ulpdu) for segment in sent.segments) <= SIW_ULPDU
    assert end.qp.counters.rx_fpdus == len(recorded.server.segments)
    assert end.qp.counters.protocol_errors == 0
    done = [wc for wc in end.completions() if wc.opcode == WC_RECV]
    assert [wc.status for wc in done] == [WcStatus.SUCCESS] * sends
