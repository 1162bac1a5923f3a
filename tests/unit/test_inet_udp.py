"""UDP of AF_INET_NEW_TCP beside the host kernel's: the same calls come to the same."""

from __future__ import annotations

import socket as std
import struct
from collections.abc import Callable

import pytest

from steertag.inet import const as c
from tests.unit.inet_sides import Side, ask_both, outcome

Script = Callable[[Side], object]
SCRIPTS: list[Script] = []


def script(function: Script) -> Script:
    SCRIPTS.append(function)
    return function


@script
def a_datagram_arrives_with_its_senders_name(side: Side) -> object:
    server, client = side.bound(), side.bound()
    sent = client.sendto(b"hello", server.getsockname())
    data, name = server.recvfrom(100)
    return sent, data, name == client.getsockname(), len(name)


@script
def an_empty_datagram_is_one(side: Side) -> object:
    server, client = side.bound(), side.bound()
    client.sendto(b"", server.getsockname())
    return server.recvfrom(10)[0], outcome(lambda: server.recv(10))


@script
def a_closed_port_is_told_to_the_connected_at_the_next_receive(side: Side) -> object:
    sock = side.socket()
    sock.connect((side.local, side.closed_port()))
    return [outcome(lambda: sock.send(b"x")), *(outcome(lambda: sock.recv(9)) for _ in range(2))]


@script
def a_closed_port_is_told_to_the_connected_at_the_next_send(side: Side) -> object:
    sock = side.socket()
    sock.connect((side.local, side.closed_port()))
    return [outcome(lambda: sock.send(b"x")) for _ in range(4)]


@script
def a_closed_port_is_told_by_so_error(side: Side) -> object:
    sock = side.socket()
    sock.connect((side.local, side.closed_port()))
    sock.send(b"x")
    return [sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) for _ in range(2)]


@script
def a_closed_port_is_not_told_to_the_unconnected(side: Side) -> object:
    sock = side.bound()
    nobody = (side.local, side.closed_port())
    return [outcome(lambda: sock.sendto(b"x", nobody)) for _ in range(2)], outcome(
        lambda: sock.recv(9)
    )


@script
def a_send_needs_a_destination(side: Side) -> object:
    sock = side.socket()
    return (
        outcome(lambda: sock.send(b"x")),
        outcome(lambda: sock.sendto(b"x", (side.local, 0))),
        outcome(sock.getpeername),
    )


@script
def what_is_too_long_is_refused(side: Side) -> object:
    server, client = side.bound(), side.bound()
    server.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 200000)
    client.connect(server.getsockname())
    most = 65507 if side.family == std.AF_INET else 65527
    return (
        outcome(lambda: client.send(bytes(most))),
        outcome(lambda: len(server.recv(70000))),
        outcome(lambda: client.send(bytes(most + 1))),
        outcome(lambda: client.send(bytes(65536))),
    )


@script
def addresses_are_checked(side: Side) -> object:
    foreign = "2001:db8::1" if side.family == std.AF_INET6 else "192.0.2.1"
    sock = side.socket()
    return (
        outcome(lambda: sock.bind((foreign, 0))),
        outcome(lambda: sock.bind((side.local, 70000))),
        outcome(lambda: sock.bind((side.local,))),
        outcome(lambda: sock.bind("nonsense")),
        outcome(lambda: sock.bind((side.local, "80"))),
        outcome(lambda: sock.bind((side.local, 0))),
        outcome(lambda: sock.bind((side.local, 0))),
    )


@script
def a_port_is_one_socket_s(side: Side) -> object:
    first, second, third = side.bound(), side.socket(), side.socket()
    port = first.getsockname()[1]
    return (
        outcome(lambda: second.bind((side.local, port))),
        outcome(lambda: second.bind((side.any, port))),
        outcome(lambda: third.connect((side.local, port))),
        third.getsockname()[1] != port,
    )


@script
def options_share_a_port(side: Side) -> object:
    found = []
    for one, other in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        for option in (std.SO_REUSEADDR, std.SO_REUSEPORT):
            first, second = side.socket(), side.socket()
            first.setsockopt(std.SOL_SOCKET, option, one)
            second.setsockopt(std.SOL_SOCKET, option, other)
            first.bind((side.local, 0))
            found.append(outcome(lambda f=first, s=second: s.bind(f.getsockname())))  # type: ignore[misc]
    return found


@script
def of_two_with_reuseaddr_the_later_receives(side: Side) -> object:
    first, second, client = side.socket(), side.socket(), side.bound()
    for sock in (first, second):
        sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
    first.bind((side.local, 0))
    second.bind(first.getsockname())
    client.sendto(b"x", first.getsockname())
    return outcome(lambda: first.recv(9)), outcome(lambda: second.recv(9))


@script
def the_more_specific_receives(side: Side) -> object:
    client, wild, bound, connected = side.bound(), side.socket(), side.socket(), side.socket()
    for sock in (wild, bound, connected):
        sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
    connected.bind((side.local, 0))
    port = connected.getsockname()[1]
    wild.bind((side.any, port))
    bound.bind((side.local, port))
    connected.connect(client.getsockname())
    found = []
    for victim in (connected, bound, wild):
        client.sendto(b"x", (side.local, port))
        found.append([outcome(lambda s=s: s.recv(9)) for s in (connected, bound, wild)])  # type: ignore[misc]
        victim.close()
    return [[w for w in row if w != "EBADF"] for row in found]


@script
def the_connected_hears_its_peer_alone(side: Side) -> object:
    sock, peer, other = side.bound(), side.bound(), side.bound()
    sock.connect(peer.getsockname())
    other.sendto(b"other", sock.getsockname())
    peer.sendto(b"peer", sock.getsockname())
    return (
        sock.getpeername() == peer.getsockname(),
        outcome(lambda: sock.recv(9)),
        outcome(lambda: sock.recv(9)),
        outcome(lambda: sock.sendto(b"x", other.getsockname())),
        outcome(lambda: other.recv(9)),
    )


@script
def connecting_again_changes_the_peer(side: Side) -> object:
    sock, peers = side.socket(), [side.bound(), side.bound()]
    for peer in peers:
        sock.connect(peer.getsockname())
        sock.send(b"x")
    return [outcome(lambda p=p: p.recv(9)) for p in peers]  # type: ignore[misc]


@script
def shutdown_needs_a_peer(side: Side) -> object:
    sock = side.bound()
    found = outcome(lambda: sock.shutdown(std.SHUT_RDWR))
    sock.setblocking(True)
    return found, outcome(lambda: sock.recv(9))


@script
def shutdown_ends_either_way(side: Side) -> object:
    sock, peer = side.bound(), side.bound()
    sock.connect(peer.getsockname())
    sock.shutdown(std.SHUT_WR)
    sock.shutdown(std.SHUT_RD)
    sock.setblocking(True)
    return (
        outcome(lambda: sock.send(b"x")),
        outcome(lambda: sock.recv(9)),
        outcome(lambda: sock.shutdown(7)),
    )


@script
def peek_leaves_and_trunc_tells(side: Side) -> object:
    server, client = side.bound(), side.bound()
    client.sendto(b"0123456789", server.getsockname())
    client.sendto(b"next", server.getsockname())
    return (
        server.recv(4, std.MSG_PEEK),
        server.recvmsg(4, 0, std.MSG_PEEK)[2],
        server.recv_into(bytearray(4), 4, std.MSG_PEEK | std.MSG_TRUNC),
        server.recv_into(bytearray(4), 4, std.MSG_TRUNC),
        server.recvmsg(20)[::2],
    )


@script
def a_datagram_socket_does_not_listen(side: Side) -> object:
    sock = side.bound()
    sock.connect(sock.getsockname())
    return outcome(sock.listen), outcome(sock.accept)


def test_nobody_waits_for_the_error_queue() -> None:
    def ask(side: Side) -> object:
        sock = side.bound()
        sock.settimeout(None)
        return outcome(lambda: sock.recvmsg(100, 100, c.MSG_ERRQUEUE))

    assert ask_both(std.AF_INET, ask) == ("EAGAIN", "EAGAIN")


def test_there_is_no_urgent_data() -> None:
    def send(side: Side) -> object:
        sock = side.bound()
        sock.connect(sock.getsockname())
        return outcome(lambda: sock.send(b"", std.MSG_OOB))

    assert ask_both(std.AF_INET, send) == ("ENOTSUP", "ENOTSUP")


@script
def more_is_held_back(side: Side) -> object:
    server, client = side.bound(), side.bound()
    client.connect(server.getsockname())
    client.send(b"one ", std.MSG_MORE)
    empty = outcome(lambda: server.recv(99))
    client.send(b"two ", std.MSG_MORE)
    client.send(b"three")
    joined = server.recv(99)
    client.setsockopt(c.SOL_UDP, c.UDP_CORK, 1)
    client.send(b"four ")
    client.send(b"five")
    client.setsockopt(c.SOL_UDP, c.UDP_CORK, 0)
    too_long = [outcome(lambda: client.send(bytes(40000), std.MSG_MORE)) for _ in range(2)]
    client.send(b"after")
    return empty, joined, server.recv(99), too_long, server.recv(99)


@script
def segments_become_datagrams(side: Side) -> object:
    server, client = side.bound(), side.bound()
    client.connect(server.getsockname())
    cmsg = [(c.SOL_UDP, c.UDP_SEGMENT, struct.pack("=H", 4))]
    client.sendmsg([b"0123", b"456789"], cmsg)
    client.setsockopt(c.SOL_UDP, c.UDP_SEGMENT, 3)
    client.send(b"abcdefgh")
    found = [outcome(lambda: server.recv(99)) for _ in range(7)]
    client.setsockopt(c.SOL_UDP, c.UDP_SEGMENT, 1)
    return (
        found,
        client.getsockopt(c.SOL_UDP, c.UDP_SEGMENT),
        outcome(lambda: client.send(bytes(200))),
        outcome(lambda: client.setsockopt(c.SOL_UDP, c.UDP_SEGMENT, 70000)),
        outcome(lambda: client.setsockopt(c.SOL_UDP, c.UDP_SEGMENT, -1)),
    )


@script
def gro_gives_them_whole(side: Side) -> object:
    server, client = side.bound(), side.bound()
    server.setsockopt(c.SOL_UDP, c.UDP_GRO, 1)
    client.connect(server.getsockname())
    client.setsockopt(c.SOL_UDP, c.UDP_SEGMENT, 1000)
    client.send(bytes(2500))
    client.setsockopt(c.SOL_UDP, c.UDP_SEGMENT, 0)
    client.send(b"alone")
    found = []
    for _ in range(2):
        data, control, flags, _ = server.recvmsg(9000, 100)
        found.append((len(data), [(a, b, bytes(d)) for a, b, d in control], flags))
    return found


@script
def ancillary_data_is_given_as_asked(side: Side) -> object:
    server, client = side.bound(), side.bound()
    if side.family == std.AF_INET:
        asked = [(c.SOL_IP, o) for o in (c.IP_PKTINFO, c.IP_RECVTTL, c.IP_RECVTOS)]
        sent = [
            (c.SOL_IP, c.IP_TTL, struct.pack("=i", 33)),
            (c.SOL_IP, c.IP_TOS, struct.pack("=i", 0x28)),
        ]
    else:
        options = (c.IPV6_RECVPKTINFO, c.IPV6_RECVHOPLIMIT, c.IPV6_RECVTCLASS)
        asked = [(c.SOL_IPV6, o) for o in options]
        sent = [
            (c.SOL_IPV6, c.IPV6_HOPLIMIT, struct.pack("=i", 33)),
            (c.SOL_IPV6, c.IPV6_TCLASS, struct.pack("=i", 0x28)),
        ]
    for level, name in asked:
        server.setsockopt(level, name, 1)
    client.sendmsg([b"x"], sent, 0, server.getsockname())
    client.sendmsg([b"x"], sent, 0, server.getsockname())
    _, control, flags, _ = server.recvmsg(9, 200)
    cut = server.recvmsg(9, std.CMSG_SPACE(4))
    return control, flags, cut[1:3]


@script
def wrong_ancillary_data_is_refused(side: Side) -> object:
    server, client = side.bound(), side.bound()

    def send(level: int, kind: int, data: bytes) -> object:
        return outcome(
            lambda: client.sendmsg([b"x"], [(level, kind, data)], 0, server.getsockname())
        )

    if side.family == std.AF_INET:
        return (
            send(c.SOL_IP, c.IP_TTL, struct.pack("=i", 0)),
            send(c.SOL_IP, c.IP_TTL, b"\0"),
            send(c.SOL_IP, 250, b"\0"),
            send(c.SOL_UDP, c.UDP_SEGMENT, b"\0"),
            send(c.SOL_UDP, 9, b"\0\0"),
        )
    return (
        send(c.SOL_IPV6, c.IPV6_HOPLIMIT, struct.pack("=i", 256)),
        send(c.SOL_IPV6, c.IPV6_TCLASS, b"\0"),
        send(c.SOL_IPV6, 250, b"\0"),
    )


@script
def errors_are_queued_where_asked_for(side: Side) -> object:
    level, option = (
        (c.SOL_IP, c.IP_RECVERR) if side.family == std.AF_INET else (c.SOL_IPV6, c.IPV6_RECVERR)
    )
    sock = side.bound()
    sock.setsockopt(level, option, 1)
    nobody = (side.local, side.closed_port())
    sock.sendto(b"payload", nobody)
    data, control, flags, name = sock.recvmsg(99, 200, std.MSG_ERRQUEUE)
    return (
        data,
        control,
        flags,
        name[:2] == nobody,
        outcome(lambda: sock.recvmsg(9, 9, std.MSG_ERRQUEUE)),
        outcome(lambda: sock.recv(9)),
    )


@script
def a_datagram_that_may_not_be_cut_is_refused(side: Side) -> object:
    sock, server = side.bound(), side.bound()
    sock.connect(server.getsockname())
    if side.family == std.AF_INET:
        level, name, value = c.SOL_IP, c.IP_MTU_DISCOVER, c.IP_PMTUDISC_DO
    else:
        level, name, value = c.SOL_IPV6, c.IPV6_MTU_DISCOVER, c.IP_PMTUDISC_DO
    sock.setsockopt(level, name, value)
    return sock.getsockopt(level, name), outcome(lambda: sock.send(bytes(70000)))


@pytest.mark.parametrize("family", [std.AF_INET, std.AF_INET6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("which", SCRIPTS, ids=lambda which: which.__name__)
def test_as_the_kernel(which: Script, family: int) -> None:
    ours, theirs = ask_both(family, which)
    assert ours == theirs
