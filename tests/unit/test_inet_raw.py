"""Raw and ping sockets of AF_INET_NEW_TCP."""

from __future__ import annotations

import errno
import random
import socket as std
import struct

import pytest

from steertag.inet import const as c
from steertag.testing.families import expect_errno
from tests.inet.packets import checksum, ip_header
from tests.support import require_root
from tests.unit.inet_sides import Side, ask_both, outcome, two_hosts
from tests.unit.inet_wire import packed, pseudo, udp, wire

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
PROTO = {4: std.IPPROTO_ICMP, 6: std.IPPROTO_ICMPV6}
ECHO = {4: (8, 0), 6: (128, 129)}
FAR = {4: "10.0.0.2", 6: "fd00::2"}
LOCAL = {4: "127.0.0.1", 6: "::1"}
EXPERIMENT = 253


def echo(version: int, ident: int = 7, number: int = 1, data: bytes = b"ping") -> bytes:
    """A request without its checksum."""
    return struct.pack("!BBHHH", ECHO[version][0], 0, 0, ident, number) + data


def summed(message: bytes) -> bytes:
    return message[:2] + struct.pack("!H", checksum(message) ^ 0xFFFF) + message[4:]


# -- ping sockets ---------------------------------------------------------------------------------


@VERSIONS
def test_a_ping_gets_its_answer(version: int) -> None:
    with two_hosts() as (near, _):
        sock, other = near.socket(proto=PROTO[version]), near.socket(proto=PROTO[version])
        other.sendto(echo(version), (LOCAL[version], 0))
        other.recv(99)
        sock.sendto(echo(version, ident=1, number=9, data=b"hello"), (FAR[version], 0))
        data, name = sock.recvfrom(99)
        kind, code, _, ident, number = struct.unpack_from("!BBHHH", data)
        assert (kind, code, number, data[8:]) == (ECHO[version][1], 0, 9, b"hello")
        assert (ident, name[0]) == (sock.getsockname()[1], FAR[version])
        assert len({ident, other.getsockname()[1]}) == 2
        expect_errno(lambda: other.recv(99), errno.EAGAIN)


@VERSIONS
def test_an_identifier_may_be_chosen_once(version: int) -> None:
    with two_hosts() as (near, _):
        sock, other = near.socket(proto=PROTO[version]), near.socket(proto=PROTO[version])
        sock.bind((LOCAL[version], 77))
        expect_errno(lambda: other.bind((LOCAL[version], 77)), errno.EADDRINUSE)
        sock.close()
        other.bind((LOCAL[version], 77))
        other.sendto(echo(version), (LOCAL[version], 0))
        assert struct.unpack_from("!H", other.recv(99), 4) == (77,)


@VERSIONS
def test_a_ping_socket_sends_echo_requests_alone(version: int) -> None:
    with two_hosts() as (near, _):
        sock = near.socket(proto=PROTO[version])
        there = (FAR[version], 0)
        for message in (b"", bytes(7), bytes(8), echo(10 - version), b"\x08\x01" + bytes(6)):
            expect_errno(lambda m=message: sock.sendto(m, there), errno.EINVAL)  # type: ignore[misc]
        expect_errno(lambda: sock.send(echo(version)), errno.EDESTADDRREQ)
        wrong = (FAR[10 - version], 0)
        expect_errno(lambda: sock.sendto(echo(version), wrong), errno.EAFNOSUPPORT)
        expect_errno(lambda: sock.connect(wrong), errno.EAFNOSUPPORT)


@VERSIONS
def test_an_error_about_a_ping_comes_to_the_connected(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket(proto=PROTO[version])
        sock.connect((link.far, 0))
        sock.send(echo(version))
        link.report(link.packets()[0], (3, 3), (1, 4))
        expect_errno(lambda: sock.recv(99), errno.ECONNREFUSED)


@VERSIONS
def test_an_answer_with_a_wrong_checksum_is_none(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket(proto=PROTO[version])
        sock.bind((link.near, 77))
        reply = struct.pack("!BBHHH", ECHO[version][1], 0, 1, 77, 1)
        ends = packed(link.far), packed(link.near)
        link.inject(ip_header(*ends, PROTO[version], len(reply)) + reply)
        expect_errno(lambda: sock.recv(99), errno.EAGAIN)


# -- raw sockets ----------------------------------------------------------------------------------


def test_an_ipv4_packet_comes_with_its_header_and_goes_to_everybody() -> None:
    with two_hosts() as (near, far):
        socks = [far.socket(std.SOCK_RAW, std.IPPROTO_UDP) for _ in range(2)]
        server, client = far.socket(), near.socket()
        server.bind(("", 5000))
        client.bind(("", 4000))
        client.sendto(b"hello", ("10.0.0.2", 5000))
        whole = udp("10.0.0.1", "10.0.0.2", 4000, 5000, b"hello")
        for sock in socks:
            data, name = sock.recvfrom(99)
            assert name == ("10.0.0.1", 0)
            # The checksum may be left to the device, which then is never asked for it.
            assert (data[9], data[12:26], data[28:]) == (whole[9], whole[12:26], whole[28:])
        assert server.recv(9) == b"hello"


def test_an_ipv6_packet_comes_without_its_header() -> None:
    with two_hosts() as (near, far):
        sock, client = far.socket(std.SOCK_RAW, EXPERIMENT), near.socket(std.SOCK_RAW, EXPERIMENT)
        client.sendto(b"hello", ("fd00::2", 0))
        assert sock.recvfrom(99) == (b"hello", ("fd00::1", 0, 0, 0))


@VERSIONS
def test_a_protocol_that_nobody_has_is_unreachable_until_a_raw_socket_has_it(version: int) -> None:
    with two_hosts() as (near, far):
        client = near.socket(std.SOCK_RAW, EXPERIMENT)
        client.connect((FAR[version], 0))
        client.send(bytes(8))  # as many as an error has to quote
        expect_errno(lambda: client.recv(9), errno.ENOPROTOOPT if version == 4 else errno.EPROTO)
        far.socket(std.SOCK_RAW, EXPERIMENT)
        client.send(bytes(8))
        expect_errno(lambda: client.recv(9), errno.EAGAIN)


def test_bound_and_connected_ones_hear_what_is_theirs() -> None:
    with two_hosts() as (near, far):
        bound, elsewhere, connected = (far.socket(std.SOCK_RAW, EXPERIMENT) for _ in range(3))
        bound.bind(("10.0.0.2", 0))
        elsewhere.bind(("127.0.0.1", 0))
        connected.connect(("10.0.0.9", 0))
        near.socket(std.SOCK_RAW, EXPERIMENT).sendto(b"x", ("10.0.0.2", 0))
        heard = [outcome(lambda s=s: s.recv(99)[20:]) for s in (bound, elsewhere, connected)]  # type: ignore[misc]
        assert heard == [b"x", "EAGAIN", "EAGAIN"]


def test_the_header_may_be_the_user_s() -> None:
    with wire(4) as link:
        sock = link.host.socket(std.SOCK_RAW, 255)
        whole = udp("10.0.0.1", link.far, 7, 53, b"x", ttl=3)
        sock.sendto(whole, (link.far, 0))
        sloppy = bytearray(whole)
        sloppy[2:4] = sloppy[4:6] = sloppy[10:12] = b"\0\0"
        sloppy[12:16] = bytes(4)
        sock.sendto(bytes(sloppy), (link.far, 0))
        first, second = link.packets()
        assert first == whole
        assert checksum(second[:20]) == 0xFFFF
        assert (second[2:4], second[8:10], second[12:]) == (whole[2:4], whole[8:10], whole[12:])
        assert second[4:6] != b"\0\0"
        for short in (b"", whole[:19], b"\x4f" + whole[1:21]):
            expect_errno(lambda s=short: sock.sendto(s, (link.far, 0)), errno.EINVAL)  # type: ignore[misc]
        expect_errno(lambda: sock.sendto(whole + bytes(1500), (link.far, 0)), errno.EMSGSIZE)


def test_icmp_filter_leaves_types_out() -> None:
    with two_hosts() as (near, far):
        sock, client = far.socket(std.SOCK_RAW, std.IPPROTO_ICMP), near.socket(std.SOCK_RAW, 1)
        sock.setsockopt(c.SOL_RAW, c.ICMP_FILTER, ~(1 << 8) & 0xFFFFFFFF | -(1 << 31))
        client.sendto(summed(struct.pack("!BBHHH", 13, 0, 0, 1, 1) + bytes(12)), ("10.0.0.2", 0))
        client.sendto(summed(echo(4)), ("10.0.0.2", 0))
        assert sock.recv(99)[20] == 8
        expect_errno(lambda: sock.recv(99), errno.EAGAIN)
        other = far.socket(std.SOCK_RAW, EXPERIMENT)
        expect_errno(lambda: other.setsockopt(c.SOL_RAW, c.ICMP_FILTER, 0), errno.EOPNOTSUPP)


def test_icmpv6_filter_leaves_types_out_and_the_checksum_is_put_in() -> None:
    with two_hosts() as (near, far):
        sock = far.socket(std.SOCK_RAW, std.IPPROTO_ICMPV6)
        words = [0xFFFFFFFF] * 8
        words[128 >> 5] &= ~(1 << (128 & 31))
        sock.setsockopt(c.SOL_ICMPV6, c.ICMPV6_FILTER, struct.pack("<8I", *words))
        client = near.socket(std.SOCK_RAW, std.IPPROTO_ICMPV6)
        client.sendto(struct.pack("!BBHI", 200, 0, 0, 0), ("fd00::2", 0))
        client.sendto(echo(6), ("fd00::2", 0))
        data = sock.recv(99)
        assert data[0] == 128
        ends = packed("fd00::1"), packed("fd00::2")
        assert checksum(pseudo(*ends, std.IPPROTO_ICMPV6, len(data)) + data) == 0xFFFF
        expect_errno(lambda: sock.recv(99), errno.EAGAIN)


def test_a_checksum_anywhere_is_computed_and_checked() -> None:
    with two_hosts() as (near, far):
        sock, client, careless = (
            each.socket(std.SOCK_RAW, EXPERIMENT) for each in (far, near, near)
        )
        for one in (sock, client):
            one.setsockopt(c.SOL_IPV6, c.IPV6_CHECKSUM, 4)
            expect_errno(lambda o=one: o.setsockopt(c.SOL_IPV6, c.IPV6_CHECKSUM, 3), errno.EINVAL)  # type: ignore[misc]
        careless.sendto(b"01234567", ("fd00::2", 0))
        client.sendto(b"0123xx67", ("fd00::2", 0))
        data = sock.recv(99)
        assert (data[:4], data[6:]) == (b"0123", b"67")
        expect_errno(lambda: sock.recv(99), errno.EAGAIN)
        expect_errno(lambda: client.sendto(b"01234", ("fd00::2", 0)), errno.EINVAL)


@VERSIONS
def test_a_large_one_is_cut_and_put_together_again(version: int) -> None:
    with two_hosts() as (near, far):
        sock, client = far.socket(std.SOCK_RAW, EXPERIMENT), near.socket(std.SOCK_RAW, EXPERIMENT)
        data = random.Random(1).randbytes(4000)
        client.sendto(data, (FAR[version], 0))
        assert sock.recv(9999)[20 if version == 4 else 0 :] == data


def test_nobody_looks_at_packets_when_there_is_no_raw_socket() -> None:
    with two_hosts() as (near, _):
        hooks = near.net.raw_deliver, near.net.raw_err
        socks = [near.socket(std.SOCK_RAW, 1), near.socket(proto=1)]
        socks[1].bind(("", 7))
        assert [len(hook) for hook in hooks] == [2, 2]
        for sock in socks:
            sock.close()
        assert hooks == ([], [])


@VERSIONS
def test_a_raw_socket_answers_as_the_kernel_s(version: int) -> None:
    require_root()

    def script(side: Side) -> object:
        sock = side.socket(std.SOCK_RAW, EXPERIMENT)
        other = side.socket(std.SOCK_RAW, EXPERIMENT)
        found = [
            outcome(sock.getpeername),
            outcome(lambda: sock.send(b"x")),
            outcome(lambda: sock.sendto(bytes(70000), (side.local, 0))),
            outcome(lambda: sock.bind((side.local, 0))),
            sock.getsockname(),
            outcome(lambda: sock.bind((side.local, 0))),
            outcome(lambda: sock.sendto(b"hello", (side.local, 0))),
            outcome(lambda: sock.listen()),
        ]
        data = other.recv(99)
        header = 20 if side.family == std.AF_INET else 0
        found += [len(data), data[header:], data[8:10] if header else b""]
        other.connect((side.local, 0))
        found += [
            outcome(other.getpeername),
            outcome(lambda: other.send(b"again")),
            len(sock.recv(99)),
        ]
        return found

    ours, theirs = ask_both(std.AF_INET if version == 4 else std.AF_INET6, script)
    assert ours == theirs


def test_hostile_packets_neither_raise_nor_stay() -> None:
    with wire(4) as link:
        socks = [link.host.socket(std.SOCK_RAW, 1), link.host.socket(proto=1)]
        socks[1].bind(("", 7))
        source = random.Random(5)
        for length in range(120):
            body = source.randbytes(length)
            head = ip_header(packed(link.far), packed(link.near), 1, length)
            link.inject(head + body)
            link.inject(head[:20] + body[: length // 2])
            quoted = ip_header(packed(link.near), packed(link.far), 1, length) + body
            link.report(quoted, (3, 1), (1, 3))
        for sock in socks:
            while isinstance(outcome(lambda s=sock: s.recv(999)), bytes):  # type: ignore[misc]
                pass
            sock.close()
        assert not list(link.host.stack.socks)
