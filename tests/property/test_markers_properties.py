"""Markers: taking them out undoes putting them in, and a hostile stream only ends a connection."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steertag.errors import ProtocolError
from steertag.rdma.connection import Connection, Offer
from steertag.rdma.markers import MarkerInserter, MarkerStripper
from steertag.rdma.qp_state import QpState
from steertag.wire import mpa
from tests.sim.ends import End, drain, feed, send_fpdu, terminates

LENGTHS = st.one_of(st.integers(0, 1100), st.sampled_from([502, 506, 510, 65_012]))


@given(st.lists(LENGTHS, min_size=1, max_size=12), st.booleans(), st.integers(0, 2**32))
@settings(deadline=None)
def test_markers_come_out_as_they_went_in(lengths: list[int], crc: bool, seed: int) -> None:
    rng = random.Random(seed)
    fpdus = [b"".join(mpa.emit_fpdu([rng.randbytes(length)], crc=crc)) for length in lengths]
    stream = MarkerInserter(crc).insert(b"".join(fpdus))
    stripper, at = MarkerStripper(crc), 0
    for fpdu in fpdus:
        # The size is known as soon as the length field is there, and not before.
        head = 6 if at % 512 == 0 else 2
        assert stripper.size(stream[at : at + head - 1]) == head
        size = stripper.size(stream[at : at + head])
        assert stripper.strip(memoryview(stream)[at : at + size]) == fpdu
        at += size
    assert at == len(stream)
    for marker in range(0, at, 512):
        assert stream[marker : marker + 2] == b"\0\0"


def responder() -> End:
    end = End(2)
    end.connection = Connection.respond(now=0.0)
    feed(end, Offer(markers=True).request().emit())
    end.connection.accept(end.qp, Offer(markers=True))
    drain(end)
    for wr_id in range(3):
        end.recv((0, 2000), wr_id=wr_id)
    return end


def ends_well(end: End) -> None:
    """One Terminate at most, and every receive completes once."""
    sent = drain(end)
    if sent:
        stripper = MarkerStripper(crc=True)
        assert stripper.size(sent) == len(sent)
        assert len(terminates(bytes(stripper.strip(memoryview(sent))))) == 1
    end.engine.eof()
    assert end.qp.state is QpState.ERROR
    assert sorted(wc.wr_id for wc in end.got()) == [0, 1, 2]


@given(st.binary(max_size=3000), st.integers(0, 2**32))
@settings(deadline=None)
def test_any_octets_end_a_marked_connection_or_wait_for_more(octets: bytes, seed: int) -> None:
    end = responder()
    feed(end, octets, random.Random(seed))
    ends_well(end)


@given(st.data(), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_marked_stream_with_an_octet_changed_is_found_out(data: st.DataObject, seed: int) -> None:
    stream = MarkerInserter(crc=True).insert(send_fpdu(bytes(800)) + send_fpdu(bytes(300), msn=2))
    at = data.draw(st.integers(0, len(stream) - 1))
    flip = data.draw(st.integers(1, 255))
    spoilt = stream[:at] + bytes([stream[at] ^ flip]) + stream[at + 1 :]
    end = responder()
    feed(end, spoilt, random.Random(seed))
    # Either the CRC tells, or the length changed and the FPDU isn't whole yet.
    assert end.qp.state is QpState.TERMINATE or end.qp.counters.rx_fpdus < 2
    ends_well(end)


@given(st.integers(0, 0xFFFF))
@settings(deadline=None)
def test_any_pointer_but_the_right_one_is_refused(pointer: int) -> None:
    fpdu = bytearray(MarkerInserter(crc=False).insert(b"".join(mpa.emit_fpdu([bytes(700)]))))
    fpdu[514:516] = pointer.to_bytes(2, "big")
    if pointer & 0xFFFC == 508:
        assert len(MarkerStripper(crc=False).strip(memoryview(fpdu))) == len(fpdu) - 8
        return
    with pytest.raises(ProtocolError) as caught:
        MarkerStripper(crc=False).strip(memoryview(fpdu))
    assert (caught.value.layer, caught.value.etype, caught.value.code) == (2, 0, 3)
