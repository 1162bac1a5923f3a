"""Codecs of MPA, DDP and RDMAP: parse inverts emit; hostile octets raise nothing unforeseen."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import ProtocolError, WireError
from steertag.wire import ddp, mpa, rdmap

U8, U32, U64 = st.integers(0, 0xFF), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
U14 = st.integers(0, mpa.MAX_IRD_ORD)
FLAG = st.booleans()
RESERVED = st.integers(0, 15).map(lambda bits: bits << 2)

START_FRAMES = st.builds(
    mpa.StartFrame,
    reply=FLAG,
    markers=FLAG,
    crc=FLAG,
    reject=FLAG,
    enhanced=FLAG,
    revision=U8,
    private_data=st.binary(max_size=mpa.MAX_PRIVATE_DATA),
    reserved=st.integers(0, 15),
)
ENHANCED = st.builds(
    mpa.Enhanced,
    ird=U14,
    ord=U14,
    peer_to_peer=FLAG,
    rtr_send=FLAG,
    rtr_write=FLAG,
    rtr_read=FLAG,
)
TAGGED = st.builds(ddp.Tagged, last=FLAG, ulp=U8, stag=U32, to=U64, reserved=RESERVED)
UNTAGGED = st.builds(
    ddp.Untagged,
    last=FLAG,
    ulp=U8,
    qn=U32,
    msn=U32,
    mo=U32,
    invalidate=U32,
    reserved=RESERVED,
)
READ_REQUESTS = st.builds(
    rdmap.ReadRequest, sink_stag=U32, sink_to=U64, size=U32, source_stag=U32, source_to=U64
)
BUFFERS = st.sampled_from([bytes, bytearray, memoryview])


@given(START_FRAMES)
def test_start_frame_parse_inverts_emit(frame: mpa.StartFrame) -> None:
    assert mpa.StartFrame.parse(frame.emit()) == frame


@given(ENHANCED)
def test_enhanced_parse_inverts_emit(words: mpa.Enhanced) -> None:
    assert mpa.Enhanced.parse(words.emit()) == words


@given(TAGGED | UNTAGGED)
def test_ddp_parse_inverts_emit(header: ddp.Tagged | ddp.Untagged) -> None:
    assert ddp.parse(header.emit()) == header


@given(READ_REQUESTS)
def test_read_request_parse_inverts_emit(request: rdmap.ReadRequest) -> None:
    assert rdmap.ReadRequest.parse(request.emit()) == request


@given(st.lists(st.binary(max_size=100), max_size=5), st.binary(max_size=9), FLAG)
def test_fpdu_parse_inverts_emit(parts: list[bytes], behind: bytes, crc: bool) -> None:
    octets = b"".join(mpa.emit_fpdu(parts, crc=crc))
    fpdu = mpa.Fpdu.parse(octets + behind)
    assert fpdu is not None
    assert (bytes(fpdu.ulpdu), fpdu.size) == (b"".join(parts), len(octets))
    assert fpdu.size % 4 == 0
    assert fpdu.crc_ok if crc else fpdu.crc == 0


@given(st.binary(max_size=80))
def test_what_a_terminate_is_parsed_from_is_what_it_emits(octets: bytes) -> None:
    with contextlib.suppress(WireError):
        assert rdmap.Terminate.parse(octets).emit() == octets


@given(st.binary(max_size=60), st.integers(0, 20), BUFFERS)
def test_hostile_octets_raise_only_wire_and_protocol_errors(
    octets: bytes, at: int, buffer: type[bytes | bytearray | memoryview]
) -> None:
    source = buffer(octets)
    for parse in (
        ddp.parse,
        mpa.StartFrame.parse,
        mpa.Fpdu.parse,
        rdmap.ReadRequest.parse,
        rdmap.Terminate.parse,
    ):
        with contextlib.suppress(WireError, ProtocolError):
            parse(source, at)
    with contextlib.suppress(ProtocolError):
        mpa.Enhanced.parse(source)


@given(st.sampled_from([mpa.KEY_REQUEST, mpa.KEY_REPLY]), st.binary(max_size=600))
def test_hostile_octets_behind_a_right_key_are_a_frame_or_a_protocol_error(
    key: bytes, octets: bytes
) -> None:
    with contextlib.suppress(ProtocolError):
        frame = mpa.StartFrame.parse(key + octets)
        if frame is not None:
            assert frame.emit() == (key + octets)[: len(frame)]
