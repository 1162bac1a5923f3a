"""Socket options of supervised programs: who answers, and what the manual says of it."""

from __future__ import annotations

import errno
import socket as std
import struct
from collections.abc import Iterator

import pytest

from steertag.run import options
from steertag.run.options import How
from tests.run.support import Control, Refused, running
from tests.support import PROJECT

INT = struct.Struct("@i")


@pytest.fixture(scope="module", params=["host", "new_tcp"])
def control(request: pytest.FixtureRequest) -> Iterator[Control]:
    with running(request.param) as control:
        yield control


def test_the_manual_has_the_table_as_it_is() -> None:
    page = (PROJECT / "docs/reference/run-options.md").read_text()
    assert options.markdown() in page


def test_no_option_has_two_rows() -> None:
    keys = [(option.level, option.number) for option in options.TABLE]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("option", options.TABLE, ids=lambda option: option.name)
def test_a_row_is_whole(option: options.Option) -> None:
    refused = How.REFUSE in (option.set, option.get)
    assert bool(option.error) == refused
    known = getattr(std, option.name, option.number)
    assert known == option.number
    assert options.setting(option.level, option.number) == (option.set, option.error)
    assert options.getting(option.level, option.number) == (option.get, option.error)
    assert options.find(option.level, option.number) is option


@pytest.mark.parametrize(
    ("level", "number"),
    [
        (std.IPPROTO_TCP, 31),
        (std.SOL_SOCKET, 60),
        (std.IPPROTO_TCP, 23),
        (std.IPPROTO_TCP, 30),
        (std.SOL_SOCKET, std.SO_TYPE),
        (std.SOL_SOCKET, 26),
        (std.IPPROTO_IP, 8),
        (282, 1),
    ],
)
def test_what_would_be_accepted_and_not_kept_is_refused(level: int, number: int) -> None:
    how, error = options.setting(level, number)
    assert how is How.REFUSE
    assert error


def test_what_has_no_row_is_the_familys_to_judge() -> None:
    assert options.setting(std.IPPROTO_TCP, 9999) == (How.FAMILY, 0)
    assert options.getting(4711, 1) == (How.FAMILY, 0)
    assert options.find(4711, 1) is None


@pytest.mark.parametrize(
    ("level", "number", "value"),
    [
        (std.SOL_SOCKET, std.SO_REUSEADDR, 1),
        (std.SOL_SOCKET, std.SO_KEEPALIVE, 1),
        (std.IPPROTO_TCP, std.TCP_NODELAY, 1),
        (std.IPPROTO_TCP, std.TCP_KEEPIDLE, 77),
        (std.IPPROTO_TCP, std.TCP_KEEPCNT, 3),
        (std.IPPROTO_IP, std.IP_TTL, 33),
    ],
)
def test_an_option_of_the_familys_is_kept_there(
    control: Control, level: int, number: int, value: int
) -> None:
    socket = control.socket()
    control.ask(control.client.setsockopt, socket, level, number, INT.pack(value))
    got = control.ask(control.client.getsockopt, socket, level, number, INT.size)
    assert INT.unpack(got) == (value,)
    control.client.close(socket)


def test_an_option_that_the_family_lacks_is_refused_by_it(control: Control) -> None:
    socket = control.socket()
    with pytest.raises(Refused) as caught:
        control.ask(control.client.setsockopt, socket, std.IPPROTO_TCP, 9999, INT.pack(1))
    assert caught.value.errno == errno.ENOPROTOOPT
    control.client.close(socket)


def test_the_congestion_algorithm_is_one_that_the_family_has(control: Control) -> None:
    socket = control.socket()
    ask, client = control.ask, control.client
    ask(client.setsockopt, socket, std.IPPROTO_TCP, std.TCP_CONGESTION, b"reno")
    got = ask(client.getsockopt, socket, std.IPPROTO_TCP, std.TCP_CONGESTION, 16)
    assert got.rstrip(b"\0") == b"reno"
    with pytest.raises(Refused) as caught:
        ask(client.setsockopt, socket, std.IPPROTO_TCP, std.TCP_CONGESTION, b"nosuch")
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)
    client.close(socket)


def test_tcp_info_is_the_familys_connection(control: Control) -> None:
    listener, address = control.listen()
    number, program = control.connect(address)
    info = control.ask(control.client.getsockopt, number, std.IPPROTO_TCP, std.TCP_INFO, 104)
    assert info[0] == 1  # TCP_ESTABLISHED
    program.close()
    control.client.close(listener)
    control.client.close(number)


def test_octets_not_delivered_yet_are_counted_where_they_lie(control: Control) -> None:
    listener, address = control.listen()
    number, program = control.connect(address)
    waiting = control.ask(control.client.ioctl, number, 0x5411)
    assert waiting == 0
    program.setblocking(False)
    sent = 0
    try:
        while True:
            sent += program.send(bytes(65536))
    except BlockingIOError:
        control.wait(lambda: control.ask(control.client.ioctl, number, 0x5411) > 0)
    assert 0 < control.ask(control.client.ioctl, number, 0x5411) <= sent
    program.close()
    for each in (listener, number):
        control.client.close(each)
