"""What control and data process of `stag run` say to each other."""

from __future__ import annotations

import errno
import os
import socket as std
from typing import Any

import pytest

from steertag.run.channel import Channel, DataClient
from steertag.run.launch import RunConfig
from steertag.run.sockaddr import emit, family_of, parse, unspecified
from tests.run.support import LOCAL, Control, Refused, running


class Silent:
    """Events that nobody expects."""

    def __init__(self) -> None:
        self.dead = 0

    def pending(self, listener: int, token: int, local: bytes, peer: bytes) -> None:
        raise AssertionError("pending")

    def source(self, socket: int, address: bytes) -> None:
        raise AssertionError("source")

    def reset(self, socket: int, error: int) -> None:
        raise AssertionError("reset")

    def gone(self, socket: int, error: int) -> None:
        raise AssertionError("gone")

    def died(self) -> None:
        self.dead += 1


def test_messages_arrive_whole_and_in_order() -> None:
    one, other = Channel.pair()
    sent: list[tuple[Any, ...]] = [(1, 2, 3), (4, 5, b"\0" * 70000), (6, "x", None, ("a", 1))]
    for message in sent:
        one.send(message)
    assert [message for message, _ in other.receive()] == sent
    assert other.receive() == []
    one.close()
    other.close()


def test_a_descriptor_travels_and_is_closed_at_its_origin() -> None:
    one, other = Channel.pair()
    end, far = std.socketpair()
    number = end.detach()
    one.send((7,), number)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)
    [(_, fd)] = other.receive()
    assert not os.get_inheritable(fd)
    with std.socket(fileno=fd) as arrived:
        arrived.send(b"through")
        assert far.recv(10) == b"through"
    far.close()
    one.close()
    other.close()


def test_a_sender_never_waits_for_a_reader_who_does_not_read() -> None:
    one, other = Channel.pair()
    count = 0
    while not one.wants_write:
        one.send((count, b"x" * 1000))
        count += 1
    for _ in range(50):
        one.send((count, b"x" * 1000))
        count += 1
    read: list[int] = []
    while len(read) < count:
        read += [message[0] for message, _ in other.receive()]
        one.flush()
    assert read == list(range(count))
    assert not one.wants_write
    one.close()
    other.close()


def test_queued_descriptors_are_closed_with_the_channel() -> None:
    one, other = Channel.pair()
    while not one.wants_write:
        one.send((0, b"x" * 1000))
    end, far = std.socketpair()
    one.send((1,), end.detach())
    one.close()
    assert far.recv(1) == b""
    far.close()
    other.close()


def test_the_other_ends_death_fails_every_open_request_once() -> None:
    ours, theirs = Channel.pair()
    events = Silent()
    client = DataClient(ours, events)
    answers: list[int] = []
    client.getsockname(1, lambda error, _: answers.append(error))
    serial = client.getsockname(2, lambda error, _: answers.append(-1))
    client.cancel(serial)
    theirs.close()
    client.dispatch()
    client.dispatch()
    assert answers == [errno.ENETDOWN]
    assert events.dead == 1
    ours.close()


def test_what_is_said_to_a_dead_end_harms_nobody() -> None:
    ours, theirs = Channel.pair()
    theirs.close()
    end, far = std.socketpair()
    ours.send((1,), end.detach())
    assert ours.closed
    assert far.recv(1) == b""
    far.close()
    ours.close()


@pytest.mark.parametrize("address", [("127.0.0.1", 80), ("0.0.0.0", 0), ("255.255.255.255", 65535)])
def test_ipv4_addresses_keep_through_octets(address: tuple[str, int]) -> None:
    raw = emit(std.AF_INET, address)
    assert len(raw) == 16
    assert parse(std.AF_INET, raw) == address


@pytest.mark.parametrize("address", [("::1", 80, 0, 0), ("fe80::1", 1, 5, 3)])
def test_ipv6_addresses_keep_through_octets(address: tuple[str, int, int, int]) -> None:
    raw = emit(std.AF_INET6, address)
    assert len(raw) == 28
    assert parse(std.AF_INET6, raw) == address
    assert parse(std.AF_INET6, raw[:24])[:2] == address[:2]  # type: ignore[index]


def test_an_ipv4_address_is_mapped_for_a_program_of_ipv6() -> None:
    raw = emit(std.AF_INET6, ("10.0.0.1", 5))
    assert parse(std.AF_INET6, raw) == ("::ffff:10.0.0.1", 5, 0, 0)
    assert parse(std.AF_INET6, emit(std.AF_INET6, ("0.0.0.0", 0))) == ("::", 0, 0, 0)
    assert parse(std.AF_INET, emit(std.AF_INET, ("::", 7, 0, 0))) == ("0.0.0.0", 7)


@pytest.mark.parametrize(
    ("domain", "raw", "error"),
    [
        (std.AF_INET, b"", errno.EINVAL),
        (std.AF_INET, b"\2\0\0\0", errno.EINVAL),
        (std.AF_INET, bytes([10, 0]) + bytes(26), errno.EAFNOSUPPORT),
        (std.AF_INET6, bytes([10, 0]) + bytes(10), errno.EINVAL),
        (45, bytes([44, 0]) + bytes(14), errno.EAFNOSUPPORT),
    ],
)
def test_octets_that_are_no_address_of_the_domain_are_refused(
    domain: int, raw: bytes, error: int
) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
        parse(domain, raw)
    assert caught.value.errno == error


def test_a_familys_own_addresses_go_by_their_shape() -> None:
    assert parse(45, b"\x2d\0\0\x50\x7f\0\0\1" + bytes(8)) == ("127.0.0.1", 80)
    assert parse(45, b"\x2d\0node-7") == b"node-7"
    assert emit(45, b"node-7") == b"\x2d\0node-7"
    assert emit(45, ("127.0.0.1", 80)) == b"\x2d\0\0\x50\x7f\0\0\1" + bytes(8)
    assert family_of(unspecified(std.AF_INET)) == std.AF_INET


def test_requests_of_an_unknown_socket_are_answered() -> None:
    with running() as control:
        with pytest.raises(Refused) as caught:
            control.ask(control.client.getsockname, 999)
        assert caught.value.errno == errno.ENOTCONN


def test_a_family_that_is_not_there_is_the_next_answer() -> None:
    with running() as control:
        control.client.open(1, 99, std.AF_INET, std.SOCK_STREAM, 0)
        with pytest.raises(Refused) as caught:
            control.ask(control.client.bind, 1, LOCAL)
        assert caught.value.errno == errno.EAFNOSUPPORT


def test_a_stack_that_cannot_be_had_fails_the_start_in_one_line() -> None:
    from steertag.run.data import start

    with pytest.raises(OSError, match=r"no\.such\.module") as caught:
        start(RunConfig(family="host", modules=["no.such.module"]))
    assert "\n" not in str(caught.value)


def test_a_killed_data_process_is_seen_and_its_ends_are_closed() -> None:
    from steertag.run.data import start

    control = Control(*start(RunConfig(family="host")))
    listener, address = control.listen()
    _, program = control.connect(address)
    _, accepted = control.accept(listener)
    os.kill(control.pid, 9)
    os.waitpid(control.pid, 0)
    control.wait(lambda: control.dead)
    with pytest.raises(Refused) as caught:
        control.ask(control.client.bind, listener, LOCAL)
    assert caught.value.errno == errno.ENETDOWN
    for end in (program, accepted):
        assert end.recv(1) == b""
        end.close()
    control.channel.close()
