"""Datagrams through the data process: both ways, with and without a fixed peer, bounds kept."""

from __future__ import annotations

import errno
import select
import socket as std
from collections.abc import Iterator

import pytest

from steertag.run.sockaddr import emit
from tests.run.support import LOCAL, Control, Refused, running

DGRAM = std.SOCK_DGRAM


@pytest.fixture(scope="module", params=["host", "new_tcp"])
def control(request: pytest.FixtureRequest) -> Iterator[Control]:
    with running(request.param) as control:
        yield control


class Endpoint:
    """A datagram socket of a program's, bound."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.number = control.socket(DGRAM)
        self.address = control.ask(control.client.bind, self.number, LOCAL)
        self.program = control.attach(self.number, DGRAM)

    def connect(self, address: bytes) -> None:
        self.control.ask(self.control.client.connect, self.number, address)

    def sendto(self, data: bytes, address: bytes) -> int:
        sent: int = self.control.ask(self.control.client.sendto, self.number, address, data, 0)
        return sent

    def recvfrom(self) -> tuple[bytes, bytes]:
        """As control does it: look, hear what was said, and then take it."""
        self.program.recv(1, std.MSG_PEEK)
        self.control.stats()
        return self.program.recv(1 << 16), self.control.sources[self.number][-1]

    def close(self) -> None:
        self.program.close()
        self.control.wait(lambda: self.number in self.control.ended)


@pytest.fixture
def two(control: Control) -> Iterator[tuple[Endpoint, Endpoint]]:
    pair = Endpoint(control), Endpoint(control)
    yield pair
    for each in pair:
        each.close()
    assert control.stats()["relays"] == 0


def test_a_datagram_brings_its_source(two: tuple[Endpoint, Endpoint]) -> None:
    one, other = two
    assert one.sendto(b"question", other.address) == 8
    data, source = other.recvfrom()
    assert (data, source) == (b"question", one.address)
    other.sendto(b"answer", source)
    assert one.recvfrom() == (b"answer", other.address)


def test_of_many_senders_each_datagram_has_its_own_source(control: Control) -> None:
    server = Endpoint(control)
    clients = [Endpoint(control) for _ in range(5)]
    for turn in range(3):
        for client in clients:
            client.sendto(b"%d" % turn, server.address)
    got = [server.recvfrom() for _ in range(15)]
    assert sorted(got) == sorted(
        (b"%d" % turn, client.address) for client in clients for turn in range(3)
    )
    for each in [server, *clients]:
        each.close()


def test_connected_sockets_move_datagrams_by_the_pair_alone(
    two: tuple[Endpoint, Endpoint],
) -> None:
    one, other = two
    one.connect(other.address)
    other.connect(one.address)
    for size in (1, 100, 1400, 9000):
        one.program.send(b"x" * size)
        assert len(other.program.recv(1 << 16)) == size
    other.program.send(b"back")
    assert one.program.recv(100) == b"back"


def test_many_datagrams_keep_their_order_and_their_bounds(two: tuple[Endpoint, Endpoint]) -> None:
    one, other = two
    one.connect(other.address)
    other.connect(one.address)
    for turn in range(20):
        sent = [b"%d:%d" % (turn, each) + b"." * each for each in range(10)]
        for data in sent:
            one.program.send(data)
        assert [other.program.recv(1 << 16) for _ in sent] == sent


def test_an_empty_datagram_is_one(two: tuple[Endpoint, Endpoint]) -> None:
    one, other = two
    one.connect(other.address)
    one.program.send(b"")
    assert select.select([other.program], [], [], 30)[0]
    assert other.program.recv(100) == b""
    one.program.send(b"next")
    assert other.program.recv(100) == b"next"


@pytest.mark.parametrize("how", ["shut down", "closed"])
def test_an_empty_datagram_arrives_though_its_socket_is_shut_at_once(
    control: Control, how: str
) -> None:
    one, other = Endpoint(control), Endpoint(control)
    one.connect(other.address)
    for data in (b"first", b"", b"last", b""):
        one.program.send(data)
    if how == "closed":
        one.program.close()
    else:
        one.program.shutdown(std.SHUT_WR)
    assert [other.program.recv(100) for _ in range(4)] == [b"first", b"", b"last", b""]
    one.close()
    other.close()


def test_a_datagram_larger_than_the_room_is_cut_there(two: tuple[Endpoint, Endpoint]) -> None:
    one, other = two
    one.connect(other.address)
    one.program.send(b"0123456789")
    data, _, flags, _ = other.program.recvmsg(4)
    assert data == b"0123"
    assert flags & std.MSG_TRUNC


def test_connecting_shuts_out_others_and_disconnecting_lets_them_in(control: Control) -> None:
    server, friend, stranger = (Endpoint(control) for _ in range(3))
    server.connect(friend.address)
    stranger.sendto(b"no", server.address)
    friend.sendto(b"yes", server.address)
    assert server.program.recv(100) == b"yes"
    control.ask(control.client.connect, server.number, bytes(16))
    with pytest.raises(Refused) as caught:
        control.ask(control.client.getpeername, server.number)
    assert caught.value.errno == errno.ENOTCONN
    for each in (server, friend, stranger):
        each.close()


def test_a_destination_that_cannot_be_is_refused(two: tuple[Endpoint, Endpoint]) -> None:
    one, _ = two
    with pytest.raises(Refused) as caught:
        one.sendto(b"x" * 65536, emit(std.AF_INET, ("127.0.0.1", 9)))
    assert caught.value.errno == errno.EMSGSIZE
    with pytest.raises(Refused) as caught:
        one.sendto(b"x", b"\x0a\0" + bytes(26))
    assert caught.value.errno == errno.EAFNOSUPPORT


def test_a_lost_errand_does_not_end_the_socket(two: tuple[Endpoint, Endpoint]) -> None:
    """An ICMP error of something sent is no reason to stop: the next datagram comes."""
    one, other = two
    with std.socket(std.AF_INET, DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    one.connect(emit(std.AF_INET, ("127.0.0.1", port)))
    for _ in range(3):
        one.program.send(b"into the void")
    one.connect(other.address)
    other.sendto(b"here", one.address)
    assert one.program.recv(100) == b"here"


def test_a_resolvers_question_is_answered_by_the_hosts_server() -> None:
    """As a DNS lookup goes: connect, send, receive, over the host, with a peer that is not ours."""
    with running("host") as control, std.socket(std.AF_INET, DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(30)
        client = Endpoint(control)
        client.connect(emit(std.AF_INET, server.getsockname()))
        client.program.send(b"who is example.org")
        question, source = server.recvfrom(1000)
        assert emit(std.AF_INET, source) == client.address
        server.sendto(question.upper(), source)
        assert client.program.recv(1000) == b"WHO IS EXAMPLE.ORG"
        client.close()
