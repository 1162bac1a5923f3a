"""Acknowledgements that the next one says again are left out; whatever says more is not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.device.ack_filter import AckFilter
from steertag.device.frame import CHECKSUM_NONE, CHECKSUM_UNNECESSARY, Frame
from steertag.wire import tcp
from tests.unit.device_frames import TCP, V4, ethernet, ip_header, segment, tcp_of


def delivered(packets: Sequence[bytes], l3: int = 0, csum: int = CHECKSUM_NONE) -> list[bytes]:
    """What is left of packets that come in one turn."""
    left: list[Frame] = []
    acks = AckFilter(left.append, l3)
    for packet in packets:
        acks.receive(Frame(memoryview(packet), csum))
    acks.flush()
    return [bytes(frame.data) for frame in left]


def ack(number: int, **settings: Any) -> bytes:  # noqa: ANN401 - as of `segment`
    return segment(b"", ack=number, **settings)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("csum", [CHECKSUM_NONE, CHECKSUM_UNNECESSARY])
def test_of_a_row_of_acknowledgements_the_last_is_left(version: int, link: bool, csum: int) -> None:
    l2 = ethernet(version) if link else b""
    row = [ack(9 + 100 * n, version=version, l2=l2, tsval=n, window=500 - n) for n in range(5)]
    assert delivered(row, len(l2), csum) == row[-1:]


def test_the_numbers_may_wrap() -> None:
    row = [ack(0xFFFFFF00), ack(0x10)]
    assert delivered(row) == row[-1:]


@pytest.mark.parametrize(
    "second",
    [
        ack(9),  # a duplicate: it counts
        ack(9, window=600),  # the window alone
        ack(8),  # an old one
        ack(10, seq=8),
        ack(10, flags=tcp.ACK | tcp.ECE),
        ack(10, flags=tcp.ACK | tcp.FIN),
        ack(10, flags=tcp.ACK | tcp.PSH),
        ack(10, port=1001),
        ack(10, tos=3),
        ack(10, ttl=63),
        ack(10, version=6),
        ack(10, damage=1),
        segment(b"x", ack=10),
        segment(bytes(1000), ack=10),
        b"\x45",
        b"",
    ],
)
def test_both_are_delivered_in_order_where_the_second_says_something_else(second: bytes) -> None:
    first = ack(9)
    assert delivered([first, second]) == [first, second]


def test_selective_acknowledgements_are_all_delivered() -> None:
    def with_block(number: int) -> bytes:
        options = tcp.timestamps_option(1, 2) + b"\x01\x01\x05\x0a" + bytes(7) + b"\x01"
        header = tcp.emit(1000, 2000, 7, number, tcp.ACK, 512, options)
        return ip_header(4, TCP, len(header)) + header

    row = [with_block(number) for number in (9, 10, 11)]
    assert delivered(row, csum=CHECKSUM_UNNECESSARY) == row


def test_acknowledgements_of_connections_in_turn_are_all_delivered() -> None:
    row = [ack(9 + n, port=1000 + n % 2) for n in range(6)]
    assert delivered(row) == row


def test_a_packet_with_octets_behind_it_is_left_alone() -> None:
    row = [ack(9) + b"\0", ack(10) + b"\0"]
    assert delivered(row) == row


@given(
    st.lists(
        st.one_of(
            st.builds(ack, st.integers(0, 2000), window=st.integers(0, 3)),
            st.builds(segment, st.binary(min_size=1, max_size=20), ack=st.integers(0, 2000)),
            st.binary(max_size=90),
        ),
        max_size=12,
    )
)
def test_what_is_left_out_is_said_by_what_follows_it(packets: list[bytes]) -> None:
    left = delivered(packets)
    kept = iter(left)
    at = next(kept, None)
    for packet, following in itertools.pairwise(packets):
        if packet == at:
            at = next(kept, None)
            continue
        said, again = tcp_of(packet), tcp_of(following)
        assert not said.payload
        assert not again.payload
        assert again.ack_seq - said.ack_seq > 0
    assert at in (None, packets[-1] if packets else None)


@given(st.binary(max_size=100))
def test_any_octets_are_passed_on(octets: bytes) -> None:
    assert delivered([octets]) == [octets]
    assert delivered([b"\x45" + octets, V4[0]]) == [b"\x45" + octets, V4[0]]
