"""stag:// URLs and addresses."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.transfer.errors import ExitCode, TransferError
from steertag.transfer.names import escape, printable
from steertag.transfer.url import DEFAULT_PORT, Url, parse_address, parse_url

PATHS = st.binary(max_size=60).filter(lambda b: b"\0" not in b).map(os.fsdecode)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("stag://host/file", Url("host", DEFAULT_PORT, "file")),
        ("stag://host:99/a/b", Url("host", 99, "a/b")),
        ("stag://host", Url("host", DEFAULT_PORT, "")),
        ("stag://[::1]:99/a", Url("::1", 99, "a")),
        ("stag://[fe80::1%eth0]/a", Url("fe80::1%eth0", DEFAULT_PORT, "a")),
        ("stag://h/a%20b%0Ac", Url("h", DEFAULT_PORT, "a b\nc")),
        ("stag://h/a?b#c", Url("h", DEFAULT_PORT, "a?b#c")),
        ("stag://h/%ff", Url("h", DEFAULT_PORT, "\udcff")),
        ("stag://h//etc/passwd", Url("h", DEFAULT_PORT, "/etc/passwd")),
        ("stag://h/..%2f..%2fx", Url("h", DEFAULT_PORT, "../../x")),
    ],
)
def test_a_url_is_host_port_and_decoded_path(text: str, url: Url) -> None:
    assert parse_url(text) == url


@given(PATHS)
def test_a_printed_url_parses_back(path: str) -> None:
    url = Url("2001:db8::1", 7, path)
    assert parse_url(str(url)) == url


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("http://h/x", "begins with stag://"),
        ("host:1/x", "begins with stag://"),
        ("stag://", "host:port"),
        ("stag://::1/x", "brackets"),
        ("stag://h:99999/x", "65535"),
        ("stag://h:0/x", "port 0"),
        ("stag://h:x/x", "host:port"),
        ("stag://user@h/x", "host:port"),
        ("stag://h/a%00b", "NUL"),
    ],
)
def test_a_bad_url_is_a_usage_error_that_says_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(TransferError, match=hint) as caught:
        parse_url(text)
    assert caught.value.code is ExitCode.USAGE


def test_an_address_may_leave_out_the_port() -> None:
    assert parse_address("0.0.0.0") == ("0.0.0.0", DEFAULT_PORT)
    assert parse_address("[::]:5", 7) == ("::", 5)


@given(st.text() | PATHS)
def test_an_escaped_name_holds_nothing_that_a_terminal_acts_on(name: str) -> None:
    assert escape(name).isprintable()
    assert printable(name).isprintable()


@given(PATHS, PATHS)
def test_escaping_keeps_names_apart(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


def test_escapes_are_those_that_people_know() -> None:
    assert escape("a\x1b[31m\n\\\udcff\u202e") == "a\\x1b[31m\\x0a\\\\\\xff\\u202e"
    assert printable(escape("a\nb")) == "a\\x0ab"
