"""Ports: who may bind beside whom, and which port a connection gets (RFC 6056)."""

from __future__ import annotations

import errno
import itertools
import random
import socket as std
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest

import steertag.socket
from steertag.device import memory_link
from steertag.family.stack import Stack
from steertag.inet import AF_INET_NEW_TCP, inet_net, register

Sock: TypeAlias = Any
"""The standard library's socket or ours: they have the same calls."""
RANGE = "net.ipv4.ip_local_port_range"


class World:
    """A Stack at 10.0.0.1 and 10.0.0.3, whose peers never answer."""

    def __init__(self, secret: bytes = bytes(range(16))) -> None:
        self.time = 1000.0
        self.stack = Stack(clock=lambda: self.time, rng=random.Random(1), load_family=None)
        register(self.stack, secret=secret)
        self.net = inet_net(self.stack)
        self.near, self.far = memory_link(("near", "far"), mtu=1500, features=0)
        self.net.add_device(self.near, ("10.0.0.1/24", "10.0.0.3/24", "fd00::1/64"))
        self.exit = ExitStack()

    def socket(self, **options: int) -> steertag.socket.socket:
        sock = steertag.socket.socket(AF_INET_NEW_TCP, std.SOCK_STREAM, stack=self.stack)
        self.exit.enter_context(sock)
        sock.setblocking(False)
        for name, value in options.items():
            sock.setsockopt(std.SOL_SOCKET, getattr(std, name), value)
        return sock

    def connecting(self, peer: tuple[str, int], sock: Sock | None = None) -> steertag.socket.socket:
        """A socket on its way there."""
        sock = sock or self.socket()
        assert sock.connect_ex(peer) == errno.EINPROGRESS
        return sock


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    with world.exit:
        yield world


def code_of(call: Callable[..., object], *args: object) -> str:
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


ADDR, PORT = "SO_REUSEADDR", "SO_REUSEPORT"
BESIDE = [
    # first: address, options, listens; second: address, options, listens; bind and listen give
    ("127.0.0.1", (), False, "127.0.0.1", (), False, "EADDRINUSE"),
    ("127.0.0.1", (), False, "127.0.0.2", (), True, "ok"),
    ("0.0.0.0", (), False, "127.0.0.1", (), False, "EADDRINUSE"),
    ("127.0.0.1", (), False, "0.0.0.0", (), False, "EADDRINUSE"),
    ("127.0.0.1", (ADDR,), False, "127.0.0.1", (ADDR,), False, "ok"),
    ("127.0.0.1", (ADDR,), False, "127.0.0.1", (), False, "EADDRINUSE"),
    ("127.0.0.1", (), False, "127.0.0.1", (ADDR,), False, "EADDRINUSE"),
    ("127.0.0.1", (ADDR,), True, "127.0.0.1", (ADDR,), False, "EADDRINUSE"),
    ("127.0.0.1", (ADDR,), False, "127.0.0.1", (ADDR,), True, "ok"),
    ("127.0.0.1", (PORT,), True, "127.0.0.1", (PORT,), True, "ok"),
    ("127.0.0.1", (PORT,), True, "127.0.0.1", (), True, "EADDRINUSE"),
    ("127.0.0.1", (), True, "127.0.0.1", (PORT,), True, "EADDRINUSE"),
    ("0.0.0.0", (PORT,), True, "127.0.0.1", (PORT,), True, "ok"),
    ("127.0.0.1", (ADDR, PORT), True, "127.0.0.1", (ADDR, PORT), True, "ok"),
    ("::1", (), True, "127.0.0.1", (), True, "ok"),
    ("::", (), True, "127.0.0.1", (), False, "EADDRINUSE"),
    ("::", (), True, "0.0.0.0", (), False, "EADDRINUSE"),
    ("127.0.0.1", (), True, "::", (), False, "EADDRINUSE"),
    ("::1", (), True, "::", (), False, "EADDRINUSE"),
    ("::", ("V6ONLY",), True, "0.0.0.0", (), True, "ok"),
    ("0.0.0.0", (), True, "::", ("V6ONLY",), True, "ok"),
    ("::", ("V6ONLY",), True, "::1", (), True, "EADDRINUSE"),
    ("::", (ADDR,), False, "0.0.0.0", (ADDR,), True, "ok"),
]


@pytest.mark.parametrize("side", ["ours", "host"])
@pytest.mark.parametrize("case", BESIDE, ids=lambda case: "-".join(map(str, case)))
def test_who_may_bind_beside_whom_is_as_the_host_has_it(
    world: World, side: str, case: tuple[Any, ...]
) -> None:
    one_host, one_options, one_listens, other_host, other_options, other_listens, expected = case

    def make(host: str, options: tuple[str, ...]) -> Sock:
        if side == "ours":
            sock: Sock = world.socket()
        else:
            family = std.AF_INET6 if ":" in host else std.AF_INET
            sock = world.exit.enter_context(std.socket(family, std.SOCK_STREAM))
        for option in options:
            if option == "V6ONLY":
                sock.setsockopt(std.IPPROTO_IPV6, std.IPV6_V6ONLY, 1)
            else:
                sock.setsockopt(std.SOL_SOCKET, getattr(std, option), 1)
        return sock

    one = make(one_host, one_options)
    one.bind((one_host, 0))
    if one_listens:
        one.listen()
    other = make(other_host, other_options)
    found = code_of(other.bind, (other_host, one.getsockname()[1]))
    if found == "ok" and other_listens:
        found = code_of(other.listen)
    assert found == expected


def test_of_two_that_share_a_port_the_second_to_listen_is_refused(world: World) -> None:
    one, other = world.socket(SO_REUSEADDR=1), world.socket(SO_REUSEADDR=1)
    one.bind(("10.0.0.1", 7000))
    other.bind(("10.0.0.1", 7000))
    one.listen()
    assert code_of(other.listen) == "EADDRINUSE"
    one.close()
    other.listen()


def test_bind_to_port_zero_gives_a_port_of_the_range_that_nobody_has(world: World) -> None:
    world.stack.sysctl[RANGE] = "40000 40009"
    ports = []
    for _ in range(10):
        sock = world.socket()
        sock.bind(("10.0.0.1", 0))
        ports.append(sock.getsockname()[1])
    assert sorted(ports) == list(range(40000, 40010))
    assert code_of(world.socket().bind, ("10.0.0.1", 0)) == "EADDRINUSE"


def test_connections_to_one_destination_have_ports_of_their_own(world: World) -> None:
    world.stack.sysctl[RANGE] = "40000 40007"
    ports = [world.connecting(("10.0.0.2", 80)).getsockname()[1] for _ in range(8)]
    assert sorted(ports) == list(range(40000, 40008))
    assert code_of(world.socket().connect, ("10.0.0.2", 80)) == "EADDRNOTAVAIL"


def test_connections_to_different_destinations_share_ports(world: World) -> None:
    world.stack.sysctl[RANGE] = "40000 40003"
    names = Counter(
        world.connecting((f"10.0.0.{host}", 80)).getsockname()[1]
        for host in range(10, 20)
        for _ in range(4)
    )
    assert names == dict.fromkeys(range(40000, 40004), 10)


def test_a_port_given_to_bind_is_not_given_to_connect(world: World) -> None:
    world.stack.sysctl[RANGE] = "40000 40003"
    for port in (40000, 40001, 40002):
        world.socket().bind(("10.0.0.1", port))
    assert world.connecting(("10.0.0.2", 80)).getsockname()[1] == 40003


def test_connect_takes_ports_of_one_parity_and_leaves_the_other_to_bind(world: World) -> None:
    connected = {world.connecting(("10.0.0.2", 80)).getsockname()[1] % 2 for _ in range(50)}
    bound = set()
    for _ in range(50):
        sock = world.socket()
        sock.bind(("10.0.0.1", 0))
        bound.add(sock.getsockname()[1] % 2)
    assert connected == {0}
    assert bound == {1}


def test_ports_depend_on_the_secret_and_do_not_follow_each_other() -> None:
    runs = []
    for secret in (bytes(16), bytes(range(16))):
        world = World(secret)
        with world.exit:
            runs.append([world.connecting(("10.0.0.2", 80)).getsockname()[1] for _ in range(10)])
    assert runs[0] != runs[1]
    for ports in runs:
        steps = {b - a for a, b in itertools.pairwise(ports)}
        assert len(steps) > 2


def test_a_port_is_free_again_once_its_last_owner_is_gone(world: World) -> None:
    sock = world.socket()
    sock.bind(("10.0.0.1", 7000))
    assert code_of(world.socket().bind, ("10.0.0.1", 7000)) == "EADDRINUSE"
    sock.close()
    world.socket().bind(("10.0.0.1", 7000))


def test_bind_without_a_port_leaves_the_choice_to_connect(world: World) -> None:
    world.stack.sysctl[RANGE] = "40000 40001"
    ip_bind_address_no_port = 24
    names = []
    for host in range(10, 14):
        sock = world.socket()
        sock.setsockopt(std.IPPROTO_IP, ip_bind_address_no_port, 1)
        sock.bind(("10.0.0.3", 0))
        assert sock.getsockname() == ("10.0.0.3", 0)
        world.connecting((f"10.0.0.{host}", 80), sock)
        names.append(sock.getsockname())
    assert {name[0] for name in names} == {"10.0.0.3"}
    assert {name[1] for name in names} <= {40000, 40001}


def test_a_connection_that_is_there_already_is_eaddrnotavail(world: World) -> None:
    for first in (True, False):
        sock = world.socket(SO_REUSEADDR=1)
        sock.bind(("10.0.0.1", 7000))
        code = sock.connect_ex(("10.0.0.2", 80))
        assert code == (errno.EINPROGRESS if first else errno.EADDRNOTAVAIL)


def test_listeners_of_one_port_share_connections_by_their_hash(world: World) -> None:
    listeners = []
    for _ in range(4):
        sock = world.socket(SO_REUSEPORT=1)
        sock.bind(("127.0.0.1", 7000))
        sock.listen(64)
        listeners.append(sock)
    for _ in range(64):
        client = world.socket()
        client.connect_ex(("127.0.0.1", 7000))
    shares = []
    for sock in listeners:
        share = 0
        while code_of(lambda sock=sock: world.exit.enter_context(sock.accept()[0])) == "ok":
            share += 1
        shares.append(share)
    assert sum(shares) == 64
    assert all(share >= 4 for share in shares), shares


def test_the_listener_that_fits_best_gets_the_connection(world: World) -> None:
    everywhere, here = world.socket(SO_REUSEPORT=1), world.socket(SO_REUSEPORT=1)
    everywhere.bind(("", 7000))
    here.bind(("127.0.0.1", 7000))
    everywhere.listen()
    here.listen()
    world.connecting(("127.0.0.2", 7000))
    world.connecting(("127.0.0.1", 7000))
    assert world.exit.enter_context(here.accept()[0]).getsockname()[0] == "127.0.0.1"
    assert world.exit.enter_context(everywhere.accept()[0]).getsockname()[0] == "127.0.0.2"
    assert code_of(everywhere.accept) == code_of(here.accept) == "EAGAIN"
