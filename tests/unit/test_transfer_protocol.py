"""The control protocol's codec: parse inverts emit, and hostile octets raise WireError only."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.errors import WireError
from steertag.transfer.protocol import (
    FRAME,
    MAX_BODY,
    MAX_CHUNK,
    Done,
    Entry,
    Failed,
    File,
    Get,
    Hello,
    HelloReply,
    Kind,
    Listing,
    Message,
    Put,
    Start,
    emit,
    parse_body,
    parse_chunk_header,
    parse_header,
)

NAMES = st.binary(min_size=0, max_size=200).filter(lambda b: b"\0" not in b).map(os.fsdecode)
COUNTS = st.integers(0, 2**63 - 1)
TIMES = st.integers(-(2**63), 2**63 - 1)
MODES = st.integers(0, 0o7777)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)

MESSAGES = st.one_of(
    st.builds(Hello, COUNTS, st.binary(max_size=64)),
    st.builds(
        HelloReply,
        *(COUNTS, st.binary(max_size=64), st.binary(max_size=64)),
        *(st.booleans(), st.booleans(), st.booleans(), TEXTS),
    ),
    st.builds(
        Listing,
        COUNTS,
        st.lists(st.builds(Entry, NAMES, TEXTS, COUNTS, MODES, TIMES), max_size=5).map(tuple),
        st.booleans(),
    ),
    st.builds(Get, COUNTS, NAMES, TEXTS),
    st.builds(File, COUNTS, COUNTS, MODES, TIMES),
    st.builds(Put, COUNTS, NAMES, COUNTS, MODES, TIMES, TEXTS, st.booleans()),
    st.builds(Start, COUNTS, TEXTS, TEXTS, TEXTS),
    st.builds(Done, COUNTS, st.binary(max_size=64), st.floats(0, 1e9), COUNTS, COUNTS),
    st.builds(Failed, COUNTS, COUNTS, TEXTS),
)


def parse(frame: bytes) -> Message:
    kind, length = parse_header(frame)
    assert length == len(frame) - FRAME.size
    return parse_body(kind, frame[FRAME.size :])


@given(MESSAGES)
def test_parse_inverts_emit(message: Message) -> None:
    assert parse(emit(message)) == message


@pytest.mark.parametrize(
    "octets", [b"plain", b"a b\n\x1b[31m", b"caf\xc3\xa9", b"\xff\xfe broken", b"\xed\xb2\x80"]
)
def test_any_file_name_survives(octets: bytes) -> None:
    message = parse(emit(Get(1, os.fsdecode(octets), "xxh3_128")))
    assert isinstance(message, Get)
    assert os.fsencode(message.name) == octets


def test_unknown_keys_are_ignored_so_that_a_newer_peer_can_say_more() -> None:
    body = json.dumps({"serial": 1, "path": "p", "code": "", "reason": "", "colour": "red"})
    assert parse_body(Kind.START, body.encode()) == Start(1, "p", "", "")


@given(st.binary(max_size=200))
def test_hostile_headers_and_bodies_raise_wire_error_only(octets: bytes) -> None:
    for parse_some in (parse_header, parse_chunk_header):
        try:
            parse_some(octets)
        except WireError:
            continue
    for kind in Kind:
        with pytest.raises(WireError):
            parse_body(kind, b"[" + octets)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = ["serial", "name", "size", "mode", "mtime_ns", "digest", "replace", "entries", "last"]


@given(st.sampled_from(list(Kind)), st.dictionaries(st.sampled_from(KEYS), JSON))
def test_hostile_json_raises_wire_error_only(kind: Kind, values: dict[str, object]) -> None:
    try:
        message = parse_body(kind, json.dumps(values).encode())
    except WireError:
        return
    assert message.KIND is kind


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 60000,
        b'{"serial":' + b"9" * 5000 + b"}",
        b'{"serial":-1,"size":1,"mode":1,"mtime_ns":1}',
        b'{"serial":1,"size":9223372036854775808,"mode":1,"mtime_ns":1}',
        b'{"serial":1,"size":1,"mode":4096,"mtime_ns":1}',
        b'{"serial":1,"size":true,"mode":1,"mtime_ns":1}',
        b'{"serial":1,"size":1.5,"mode":1,"mtime_ns":1}',
        b'{"serial":1,"size":1,"mode":1,"mtime_ns":1e400}',
    ],
)
def test_a_file_message_out_of_bounds_is_a_wire_error(body: bytes) -> None:
    with pytest.raises(WireError):
        parse_body(Kind.FILE, body)


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "x" * 5000])
def test_a_name_that_no_file_system_holds_is_a_wire_error(name: str) -> None:
    body = json.dumps({"serial": 1, "name": name, "digest": "d"}).encode()
    with pytest.raises(WireError):
        parse_body(Kind.GET, body)


def test_lengths_above_the_limits_are_wire_errors() -> None:
    with pytest.raises(WireError, match="at most"):
        parse_header(FRAME.pack(Kind.GET, MAX_BODY + 1))
    with pytest.raises(WireError, match="at most"):
        parse_chunk_header((MAX_CHUNK + 1).to_bytes(4, "big"))
    assert parse_chunk_header(MAX_CHUNK.to_bytes(4, "big")) == MAX_CHUNK


def test_an_unknown_kind_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="unknown kind"):
        parse_header(FRAME.pack(200, 0))
