"""Start-up frames and FPDUs, derived by hand from RFC 5044 and RFC 6581."""

from __future__ import annotations

import pytest

from steertag.errors import ProtocolError
from steertag.wire import mpa
from steertag.wire.mpa import Enhanced, Fpdu, StartFrame
from tests.wire.vectors import check_stream_vector

REQUEST_KEY = b"MPA ID Req Frame"
REPLY_KEY = b"MPA ID Rep Frame"

START_FRAMES = {
    "rev 1, nothing asked for": (
        REQUEST_KEY + bytes.fromhex("00 01 0000"),
        StartFrame(reply=False, revision=1),
    ),
    "rev 1, markers and CRC": (
        REQUEST_KEY + bytes.fromhex("c0 01 0000"),
        StartFrame(reply=False, revision=1, markers=True, crc=True),
    ),
    "rev 1, rejected": (
        REPLY_KEY + bytes.fromhex("20 01 0000"),
        StartFrame(reply=True, revision=1, reject=True),
    ),
    "rev 2, peer-to-peer, private data": (
        REQUEST_KEY + bytes.fromhex("50 02 0009 8020 c010") + b"hello",
        StartFrame(
            reply=False, crc=True, enhanced=True, private_data=b"\x80\x20\xc0\x10hello", revision=2
        ),
    ),
    "a revision and flags that nobody defined": (
        REPLY_KEY + bytes.fromhex("0f ff 0001 61"),
        StartFrame(reply=True, revision=255, reserved=0x0F, private_data=b"a"),
    ),
    "the most private data": (
        REPLY_KEY + bytes.fromhex("00 01 0200") + b"p" * 512,
        StartFrame(reply=True, revision=1, private_data=b"p" * 512),
    ),
}


@pytest.mark.parametrize("name", START_FRAMES)
def test_a_start_up_frame_is_read_however_it_is_cut(name: str) -> None:
    octets, frame = START_FRAMES[name]
    check_stream_vector(StartFrame.parse, octets, frame)
    assert len(frame) == len(octets)


@pytest.mark.parametrize("name", START_FRAMES)
def test_a_start_up_frame_is_emitted_as_it_was_read(name: str) -> None:
    octets, frame = START_FRAMES[name]
    assert frame.emit() == octets


@pytest.mark.parametrize(
    "octets", [b"GET ", b"\x16\x03\x01", b"MPA ID Rex", REQUEST_KEY[:-1] + b"f" + bytes(4)]
)
def test_a_wrong_key_is_refused_at_the_first_octet_that_shows_it(octets: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        StartFrame.parse(octets)
    assert (caught.value.layer, caught.value.etype) == (mpa.LAYER_LLP, mpa.ETYPE_MPA)
    assert caught.value.code == mpa.E_START_FRAME


def test_more_private_data_than_the_rfc_allows_is_refused_before_it_arrives() -> None:
    with pytest.raises(ProtocolError, match="513") as caught:
        StartFrame.parse(REQUEST_KEY + bytes.fromhex("00 01 0201"))
    assert caught.value.code == mpa.E_START_FRAME


def test_more_private_data_than_the_rfc_allows_is_not_emitted() -> None:
    with pytest.raises(ValueError, match="513"):
        StartFrame(reply=False, private_data=bytes(513)).emit()


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        ("0000 0000", Enhanced(ird=0, ord=0)),
        ("3fff 3fff", Enhanced(ird=0x3FFF, ord=0x3FFF)),
        ("8001 0002", Enhanced(ird=1, ord=2, peer_to_peer=True)),
        ("4001 0002", Enhanced(ird=1, ord=2, rtr_send=True)),
        ("0001 8002", Enhanced(ird=1, ord=2, rtr_write=True)),
        ("0001 4002", Enhanced(ird=1, ord=2, rtr_read=True)),
    ],
)
def test_ird_ord_and_the_control_flags(octets: str, words: Enhanced) -> None:
    assert Enhanced.parse(bytes.fromhex(octets)) == words
    assert Enhanced.parse(bytes.fromhex(octets) + b"more private data") == words
    assert words.emit() == bytes.fromhex(octets)


@pytest.mark.parametrize("size", range(4))
def test_an_enhanced_frame_too_short_for_ird_and_ord_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="IRD"):
        Enhanced.parse(bytes(size))


# ULPDU -> length, ULPDU and PAD: what the CRC covers.
COVERED = {
    b"": "0000 0000",
    b"a": "0001 61 00",
    b"ab": "0002 6162",
    b"abc": "0003 616263 000000",
    b"abcd": "0004 61626364 0000",
}


def by_the_book(octets: bytes) -> bytes:
    """The CRC field behind `octets`, one bit at a time (RFC 5044 section 4.4)."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


@pytest.mark.parametrize("ulpdu", COVERED)
def test_an_fpdu_is_length_ulpdu_pad_and_crc(ulpdu: bytes) -> None:
    covered = bytes.fromhex(COVERED[ulpdu])
    octets = covered + by_the_book(covered)
    assert b"".join(mpa.emit_fpdu([ulpdu])) == octets
    fpdu = Fpdu.parse(octets)
    assert fpdu is not None
    assert (bytes(fpdu.ulpdu), fpdu.size, fpdu.crc_ok) == (ulpdu, len(octets), True)
    check_stream_vector(Fpdu.parse, octets, fpdu)
    assert mpa.fpdu_len(len(ulpdu)) == len(octets)


@pytest.mark.parametrize("ulpdu", COVERED)
def test_with_crc_off_the_field_is_sent_as_zero(ulpdu: bytes) -> None:
    assert b"".join(mpa.emit_fpdu([ulpdu], crc=False)) == bytes.fromhex(COVERED[ulpdu]) + bytes(4)


def test_a_ulpdu_in_parts_is_emitted_without_copying_them() -> None:
    head, payload = b"header", memoryview(b"payload")
    parts = mpa.emit_fpdu([head, payload])
    assert any(part is payload for part in parts)
    assert b"".join(parts) == b"".join(mpa.emit_fpdu([b"headerpayload"]))


def test_what_pad_holds_counts_for_the_crc_and_is_otherwise_ignored() -> None:
    padded = bytes.fromhex("0001 61 7f")
    fpdu = Fpdu.parse(padded + by_the_book(padded))
    assert fpdu is not None
    assert (bytes(fpdu.ulpdu), fpdu.crc_ok) == (b"a", True)
    spoilt = Fpdu.parse(padded + by_the_book(bytes.fromhex(COVERED[b"a"])))
    assert spoilt is not None
    assert not spoilt.crc_ok


@pytest.mark.parametrize("bit", range(12 * 8))
def test_any_flipped_bit_shows_in_the_crc(bit: int) -> None:
    octets = bytearray(b"".join(mpa.emit_fpdu([b"abcd"])))
    octets[bit // 8] ^= 1 << bit % 8
    fpdu = Fpdu.parse(bytes(octets) + bytes(0x10000))
    assert fpdu is not None
    assert not fpdu.crc_ok


def test_the_longest_ulpdu_fits_and_one_octet_more_does_not() -> None:
    octets = b"".join(mpa.emit_fpdu([bytes(65535)]))
    fpdu = Fpdu.parse(octets)
    assert fpdu is not None
    assert (len(fpdu.ulpdu), fpdu.size) == (65535, len(octets))
    with pytest.raises(ValueError, match="65536"):
        mpa.emit_fpdu([bytes(65535), b"x"])
