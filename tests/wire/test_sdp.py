"""SDP's messages, written down by hand from the layouts of docs/reference/sdp-wire.md."""

from __future__ import annotations

import pytest

from steertag.errors import WireError
from steertag.wire import sdp
from tests.wire.vectors import check_header_vector

BASE = {
    "Data of 4 octets, 16 buffers posted": (
        "ff 00 0010 00000014 00000007 00000003",
        sdp.Bsdh(sdp.DATA, 0, 16, 20, 7, 3),
    ),
    "DisConn with out-of-band data pending": (
        "02 02 ffff 00000010 ffffffff 00000000",
        sdp.Bsdh(sdp.DISCONN, sdp.OOB_PEND, 0xFFFF, 16, 0xFFFFFFFF, 0),
    ),
    "a RdmaRdCompl that asks for pipelined mode": (
        "06 04 0001 00000014 00000001 00000001",
        sdp.Bsdh(sdp.RDMA_RD_COMPL, sdp.REQ_PIPE, 1, 20, 1, 1),
    ),
}

HELLO_V4 = bytes.fromhex(
    "00 00 0020 00000044 00000000 00000000"
    "22 40 00 08 00008000 00004000 1389 0000"
    "000000000000000000000000 7f000001 000000000000000000000000 0a000002 0000 0000"
)
HELLO_V6 = bytes.fromhex(
    "00 00 0005 00000044 00000000 00000000"
    "22 62 00 ff 00008000 00004000 0001 0000"
    "fe800000000000000000000000000001 fe800000000000000000000000000002 0000 1000"
)
HELLO_ACK = bytes.fromhex("01 00 0020 00000018 00000000 00000000 22 00 00 08 00004000")

BODIES = {
    "SrcAvail": (
        sdp.SRC_AVAIL,
        "00100000 11223344 0000123400000000",
        sdp.SrcAvail(1 << 20, 0x11223344, 0x1234_0000_0000),
    ),
    "SinkAvail": (
        sdp.SINK_AVAIL,
        "00000001 00000002 ffffffffffffffff 00000003",
        sdp.SinkAvail(1, 2, (1 << 64) - 1, 3),
    ),
    "ModeChange of the source to pipelined": (
        sdp.MODE_CHANGE,
        "a0000000",
        sdp.ModeChange(True, sdp.PIPELINED),
    ),
    "ModeChange that the sink asks for, to buffered": (
        sdp.MODE_CHANGE,
        "10000000",
        sdp.ModeChange(False, sdp.BUFFERED),
    ),
    "SuspComm": (sdp.SUSP_COMM, "0000000000010203", sdp.SuspComm(0x10203)),
}
NUMBERS = (sdp.RDMA_WR_COMPL, sdp.RDMA_RD_COMPL, sdp.CH_RCV_BUF, sdp.CH_RCV_BUF_ACK)
BARE = (
    sdp.DISCONN,
    sdp.ABORT_CONN,
    sdp.SEND_SM,
    sdp.SRC_AVAIL_CANCEL,
    sdp.SINK_AVAIL_CANCEL,
    sdp.SINK_CANCEL_ACK,
    sdp.SUSP_COMM_ACK,
)


@pytest.mark.parametrize(("octets", "expected"), BASE.values(), ids=BASE)
def test_the_base_header_is_parsed_and_emitted(octets: str, expected: sdp.Bsdh) -> None:
    raw = bytes.fromhex(octets)
    check_header_vector(lambda view, at: sdp.Bsdh.parse(view[at:]), raw, expected)
    assert expected.emit() == raw


@pytest.mark.parametrize(
    "octets",
    [
        "0f 00 0010 00000010 00000000 00000000",
        "fc 00 0010 00000010 00000000 00000000",
        "ff 08 0010 00000010 00000000 00000000",
    ],
)
def test_kinds_and_flags_that_do_not_exist_are_no_header(octets: str) -> None:
    with pytest.raises(WireError):
        sdp.Bsdh.parse(bytes.fromhex(octets))


def test_a_hello_over_ipv4_has_its_addresses_at_the_end_of_the_fields() -> None:
    hello = sdp.Hello(32, 8, 0x8000, 0x4000, 5001, bytes((127, 0, 0, 1)), bytes((10, 0, 0, 2)))
    check_header_vector(lambda view, at: sdp.Hello.parse(view[at:]), HELLO_V4, hello)
    assert hello.emit() == HELLO_V4


def test_a_hello_may_have_more_advertisements_than_an_octet_says() -> None:
    hello = sdp.Hello.parse(HELLO_V6)
    assert (hello.max_adverts, len(hello.source), hello.source[-1]) == (0x1000, 16, 1)
    assert hello.capabilities == sdp.CAP_EXT_ADVERTS
    assert hello.emit() == HELLO_V6


def test_a_hello_ack_is_parsed_and_emitted() -> None:
    ack = sdp.HelloAck(32, 8, 0x4000)
    check_header_vector(lambda view, at: sdp.HelloAck.parse(view[at:]), HELLO_ACK, ack)
    assert ack.emit() == HELLO_ACK


@pytest.mark.parametrize(
    "octets",
    [
        HELLO_ACK,
        b"\x02" + HELLO_V4[1:],
        b"\0\x01" + HELLO_V4[2:],
        HELLO_V4[:7] + b"\x43" + HELLO_V4[8:],
        HELLO_V4[:7] + b"\x45" + HELLO_V4[8:],
        HELLO_V4[:17] + b"\x50" + HELLO_V4[18:],
    ],
)
def test_what_is_no_hello_is_refused(octets: bytes) -> None:
    with pytest.raises(WireError):
        sdp.Hello.parse(octets)


@pytest.mark.parametrize(("mid", "octets", "expected"), BODIES.values(), ids=BODIES)
def test_a_body_is_parsed_and_emitted(mid: int, octets: str, expected: sdp.SrcAvail) -> None:
    raw = bytes.fromhex(octets)
    assert sdp.parse_body(mid, raw) == expected
    assert expected.emit() == raw
    for size in range(len(raw)):
        with pytest.raises(WireError):
            sdp.parse_body(mid, raw[:size])


@pytest.mark.parametrize("mid", NUMBERS)
def test_a_body_that_is_a_number_of_octets(mid: int) -> None:
    assert sdp.parse_body(mid, bytes.fromhex("00010002")) == 0x10002
    assert sdp.emit_u32(0x10002) == bytes.fromhex("00010002")
    for octets in (b"", b"\0\0\0", b"\0\0\0\0\0"):
        with pytest.raises(WireError):
            sdp.parse_body(mid, octets)


@pytest.mark.parametrize("mid", BARE)
def test_messages_without_a_body_have_none(mid: int) -> None:
    assert sdp.parse_body(mid, b"") is None
    with pytest.raises(WireError):
        sdp.parse_body(mid, b"\0")


@pytest.mark.parametrize(
    ("mid", "octets"),
    [
        (sdp.SRC_AVAIL, "00000000 00000001 0000000000000000"),
        (sdp.SRC_AVAIL, "00000002 00000001 ffffffffffffffff"),
        (sdp.SRC_AVAIL, "00000001 00000001 0000000000000000 6161"),
        (sdp.SINK_AVAIL, "00000000 00000001 0000000000000000 00000000"),
        (sdp.SINK_AVAIL, "00000001 00000001 0000000000000000 00000000 00"),
        (sdp.MODE_CHANGE, "30000000"),
        (sdp.MODE_CHANGE, "00000001"),
    ],
)
def test_bodies_that_cannot_be_meant_are_refused(mid: int, octets: str) -> None:
    with pytest.raises(WireError):
        sdp.parse_body(mid, bytes.fromhex(octets))


def test_inline_data_follows_a_source() -> None:
    octets = sdp.SrcAvail(100, 1, 2).emit() + b"first"
    assert sdp.SrcAvail.parse(octets) == sdp.SrcAvail(100, 1, 2)
