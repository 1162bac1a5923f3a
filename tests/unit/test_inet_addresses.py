"""Addresses of AF_INET_NEW_TCP: what is taken, what is given back, and who receives."""

from __future__ import annotations

import errno
import socket as std

import pytest

from steertag.inet import const as c
from steertag.testing.families import expect_errno
from tests.unit.inet_sides import host, outcome, two_hosts


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("", ("0.0.0.0",)),
        ("0.0.0.0", ("0.0.0.0",)),
        ("::", ("::", 0, 0)),
        ("localhost", ("127.0.0.1",)),
        ("127.8.8.8", ("127.8.8.8",)),
        ("::1", ("::1", 0, 0)),
        ("0:0:0:0:0:0:0:1", ("::1", 0, 0)),
        ("::ffff:127.0.0.1", ("127.0.0.1",)),
        (b"127.0.0.1", ("127.0.0.1",)),
    ],
)
def test_a_name_is_given_back_in_its_version(asked: str | bytes, given: tuple[object, ...]) -> None:
    near = host()
    sock = near.socket()
    assert sock.getsockname() == ("0.0.0.0", 0)
    sock.bind((asked, 5353))
    assert sock.getsockname() == (given[0], 5353, *given[1:])
    near.close()


@pytest.mark.parametrize(
    ("address", "want"),
    [
        ("text", "TypeError"),
        (("127.0.0.1",), "TypeError"),
        (("127.0.0.1", 1, 2, 3, 4), "TypeError"),
        ((127, 1), "TypeError"),
        (("127.0.0.1", "1"), "TypeError"),
        (("127.0.0.1", -1), "OverflowError"),
        (("127.0.0.1", 65536), "OverflowError"),
        (("::1", 1, 1 << 20), "OverflowError"),
        (("::1", 1, 0, 1 << 32), "OverflowError"),
        (("10.0.0.9", 1), "EADDRNOTAVAIL"),
        (("2001:db8::1", 1), "EADDRNOTAVAIL"),
        (("fe80::1", 1), "EINVAL"),
        (("fe80::1", 1, 0, 99), "ENODEV"),
    ],
)
def test_what_is_no_address_is_told_as_the_standard_library_does(
    address: object, want: str
) -> None:
    near = host()
    sock = near.socket()
    assert outcome(lambda: sock.bind(address)) == want
    assert sock.getsockname() == ("0.0.0.0", 0)
    near.close()


@pytest.mark.parametrize("name", ["example.com", "10.0.0", "256.1.1.1", "::1::", "fd00::1%nowhere"])
def test_names_are_not_looked_up(name: str) -> None:
    near = host()
    sock = near.socket()
    for call in (sock.bind, sock.connect, lambda to: sock.sendto(b"x", to)):
        with pytest.raises(std.gaierror, match="no numeric address"):
            call((name, 5))
    near.close()


def test_freebind_takes_an_address_of_others() -> None:
    near = host()
    sock = near.socket()
    sock.setsockopt(c.SOL_IP, c.IP_FREEBIND, 1)
    sock.bind(("192.0.2.1", 53))
    assert sock.getsockname() == ("192.0.2.1", 53)
    near.close()


def test_bind_without_a_port_leaves_it_for_later() -> None:
    near = host()
    sock = near.socket()
    sock.setsockopt(c.SOL_IP, c.IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind(("127.0.0.2", 0))
    assert sock.getsockname() == ("127.0.0.2", 0)
    sock.connect(("127.0.0.1", 9))
    name, port = sock.getsockname()
    assert name == "127.0.0.2"
    assert port > 0
    near.close()


RECEIVERS = {"": "46", "::": "46", "0.0.0.0": "4", "10.0.0.2": "4", "fd00::2": "6"}


@pytest.mark.parametrize(("bound", "versions"), RECEIVERS.items())
def test_a_wildcard_is_of_both_versions_unless_one_is_named(bound: str, versions: str) -> None:
    with two_hosts() as (near, far):
        server, client = far.socket(), near.socket()
        server.bind((bound, 5000))
        client.sendto(b"4", ("10.0.0.2", 5000))
        client.sendto(b"6", ("fd00::2", 5000))
        got = ""
        while isinstance(data := outcome(lambda: server.recv(9)), bytes):
            got += data.decode()
        assert got == versions


def test_v6only_leaves_the_other_version_to_others() -> None:
    with two_hosts() as (near, far):
        six, four, client = far.socket(), far.socket(), near.socket()
        six.setsockopt(c.SOL_IPV6, c.IPV6_V6ONLY, 1)
        six.bind(("::", 5000))
        four.bind(("0.0.0.0", 5000))
        expect_errno(lambda: far.socket().bind(("", 5000)), errno.EADDRINUSE)
        client.sendto(b"4", ("10.0.0.2", 5000))
        client.sendto(b"6", ("fd00::2", 5000))
        assert (six.recv(9), four.recv(9)) == (b"6", b"4")
        expect_errno(lambda: six.sendto(b"x", ("10.0.0.1", 9)), errno.ENETUNREACH)


def test_a_socket_bound_in_one_version_does_not_send_in_the_other() -> None:
    with two_hosts() as (near, _):
        four, six = near.socket(), near.socket()
        four.bind(("10.0.0.1", 0))
        six.bind(("fd00::1", 0))
        expect_errno(lambda: four.sendto(b"x", ("fd00::2", 9)), errno.EAFNOSUPPORT)
        expect_errno(lambda: six.connect(("10.0.0.2", 9)), errno.ENETUNREACH)


def test_a_peer_is_named_with_what_was_asked_for() -> None:
    with two_hosts() as (near, far):
        far.socket().bind(("::", 5000))
        sock = near.socket()
        sock.connect(("fd00::2", 5000, 7))
        assert sock.getpeername() == ("fd00::2", 5000, 7, 0)
        assert sock.getsockname()[0] == "fd00::1"
        sock.disconnect()
        expect_errno(sock.getpeername, errno.ENOTCONN)
        assert sock.getsockname() == ("0.0.0.0", 0)


def test_disconnecting_keeps_what_bind_named() -> None:
    with two_hosts() as (near, _):
        sock = near.socket()
        sock.bind(("10.0.0.1", 4000))
        sock.connect(("10.0.0.2", 5000))
        sock.disconnect()
        assert sock.getsockname() == ("10.0.0.1", 4000)


def test_link_local_addresses_go_with_their_interface() -> None:
    with two_hosts() as (near, far):
        for side, device in ((near, "mem0"), (far, "mem1")):
            side.net.addr_add(side.device(device), f"fe80::{1 if side is near else 2}/64")
        index = far.device("mem1").ifindex
        server, client = far.socket(), near.socket()
        server.bind(("fe80::2%mem1", 5000))
        assert server.getsockname() == ("fe80::2", 5000, 0, index)
        expect_errno(lambda: client.sendto(b"x", ("fe80::2", 5000)), errno.EINVAL)
        client.sendto(b"x", ("fe80::2", 5000, 0, near.device("mem0").ifindex))
        data, name = server.recvfrom(9)
        assert (data, name[0], name[3]) == (b"x", "fe80::1", index)
        server.sendto(b"back", name)
        assert client.recv(9) == b"back"


def test_the_unspecified_destination_is_this_host() -> None:
    near = host()
    server, client = near.socket(), near.socket()
    server.bind(("", 5000))
    for name in ("", "0.0.0.0", "::"):
        client.sendto(name.encode(), (name, 5000))
        data, sender = server.recvfrom(9)
        assert (data.decode(), sender[0]) == (name, "::1" if name == "::" else "127.0.0.1")
    near.close()


def test_ports_are_random_within_their_range() -> None:
    near = host()
    near.stack.sysctl["net.ipv4.ip_local_port_range"] = (40000, 40009)
    socks = [near.socket() for _ in range(11)]
    for sock in socks[:10]:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in socks[:10]]
    assert sorted(ports) == list(range(40000, 40010))
    assert ports != sorted(ports)
    expect_errno(lambda: socks[10].bind(("127.0.0.1", 0)), errno.EADDRINUSE)
    expect_errno(lambda: socks[10].sendto(b"", ("127.0.0.1", 9)), errno.EADDRNOTAVAIL)
    socks[10].bind(("127.0.0.2", 0))  # another address has the ports once more
    near.close()


def test_reuseport_shares_flows_out_and_keeps_each_with_its_receiver() -> None:
    near = host()
    group, clients = [near.socket() for _ in range(4)], [near.socket() for _ in range(40)]
    for sock in group:
        sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 5000))
    for client in clients * 3:
        client.sendto(b"x", ("127.0.0.1", 5000))
    heard = []
    for sock in group:
        names = []
        while isinstance(got := outcome(lambda s=sock: s.recvfrom(9)), tuple):  # type: ignore[misc]
            names.append(got[1])
        assert all(names.count(name) == 3 for name in names)
        heard.append(len(names))
    assert sum(heard) == 120
    assert min(heard) > 0
    near.close()
