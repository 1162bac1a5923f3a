"""ICMP and ICMPv6: errors that come in and what they are to the user, errors that go out."""

from __future__ import annotations

import errno

import pytest

from steertag.inet.ip.addr import parse
from steertag.wire import icmp, icmpv6
from steertag.wire.checksum import checksum
from steertag.wire.ipv4 import parse_untrusted
from tests.unit.inet_ip import UDP, icmp4, icmp6, pair, v4, v6, valid_icmp6, wired

OURS4 = v4("10.0.0.1", "10.0.0.9", b"8 octets and more")
OURS6 = v6("fd00::1", "fd00::9", b"8 octets and more")

# net/ipv4/icmp.c, icmp_err_convert; net/ipv4/udp.c, __udp4_lib_err
IPV4_ERRORS = [
    (3, 0, errno.ENETUNREACH, False),
    (3, 1, errno.EHOSTUNREACH, False),
    (3, 2, errno.ENOPROTOOPT, True),
    (3, 3, errno.ECONNREFUSED, True),
    (3, 4, errno.EMSGSIZE, False),
    (3, 5, errno.EOPNOTSUPP, False),
    (3, 6, errno.ENETUNREACH, True),
    (3, 7, errno.EHOSTDOWN, True),
    (3, 8, errno.ENONET, True),
    (3, 9, errno.ENETUNREACH, True),
    (3, 10, errno.EHOSTUNREACH, True),
    (3, 11, errno.ENETUNREACH, False),
    (3, 12, errno.EHOSTUNREACH, False),
    (3, 13, errno.EHOSTUNREACH, True),
    (3, 14, errno.EHOSTUNREACH, True),
    (3, 15, errno.EHOSTUNREACH, True),
    (11, 0, errno.EHOSTUNREACH, False),
    (12, 0, errno.EPROTO, True),
]

# net/ipv6/icmp.c, tab_unreach and icmpv6_err_convert
IPV6_ERRORS = [
    (1, 0, errno.ENETUNREACH, False),
    (1, 1, errno.EACCES, True),
    (1, 2, errno.EHOSTUNREACH, False),
    (1, 3, errno.EHOSTUNREACH, False),
    (1, 4, errno.ECONNREFUSED, True),
    (1, 5, errno.EACCES, True),
    (1, 6, errno.EACCES, True),
    (1, 7, errno.EPROTO, True),
    (2, 0, errno.EMSGSIZE, False),
    (3, 0, errno.EHOSTUNREACH, False),
    (3, 1, errno.EHOSTUNREACH, False),
    (4, 0, errno.EPROTO, True),
    (99, 0, errno.EPROTO, False),
]


@pytest.mark.parametrize(("kind", "code", "number", "fatal"), IPV4_ERRORS)
def test_each_icmp_error_is_the_kernels_errno(
    kind: int, code: int, number: int, fatal: bool
) -> None:
    host, wire = wired("10.0.0.1/24")
    wire.feed(icmp4("10.0.0.254", "10.0.0.1", icmp.Icmp(kind, code, 1400), OURS4))
    (error,) = host.errors
    assert (error.errno, error.fatal) == (number, fatal)
    assert (error.family, error.type, error.code, error.protocol) == (4, kind, code, UDP)
    assert (error.saddr, error.daddr) == (parse("10.0.0.1"), parse("10.0.0.9"))
    assert error.offender == parse("10.0.0.254")
    assert bytes(error.data) == b"8 octets and more"
    assert host.told == [error]


@pytest.mark.parametrize(("kind", "code", "number", "fatal"), IPV6_ERRORS)
def test_each_icmpv6_error_is_the_kernels_errno(
    kind: int, code: int, number: int, fatal: bool
) -> None:
    host, wire = wired("fd00::1/64")
    wire.feed(icmp6("fd00::254", "fd00::1", icmpv6.Icmpv6(kind, code, 1400), OURS6))
    (error,) = host.errors
    assert (error.errno, error.fatal) == (number, fatal)
    assert (error.family, error.type, error.code, error.protocol) == (6, kind, code, UDP)
    assert (error.saddr, error.daddr) == (parse("fd00::1"), parse("fd00::9"))
    assert error.offender == parse("fd00::254")
    assert bytes(error.data) == b"8 octets and more"


def test_what_else_an_error_tells() -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    wire.feed(
        icmp4("10.0.0.254", "10.0.0.1", icmp.Icmp(3, 4, 1400), OURS4),
        icmp4("10.0.0.254", "10.0.0.1", icmp.Icmp(12, 0, 9 << 24), OURS4),
        icmp6("fd00::254", "fd00::1", icmpv6.Icmpv6(2, 0, 1400), OURS6),
        icmp6("fd00::254", "fd00::1", icmpv6.Icmpv6(4, 0, 40), OURS6),
        icmp6("fd00::254", "fd00::1", icmpv6.Icmpv6(1, 4, 77), OURS6),
    )
    assert [error.info for error in host.errors] == [1400, 9, 1400, 40, 0]


def test_a_router_that_does_not_tell_the_mtu_is_guessed() -> None:
    host, wire = wired("10.0.0.1/24")
    quoted = bytearray(v4("10.0.0.1", "10.0.0.9", bytes(8), total_len=1500))
    wire.feed(icmp4("10.0.0.254", "10.0.0.1", icmp.Icmp(3, 4, 0), bytes(quoted)))
    assert host.errors[0].info == 1492  # RFC 1191 section 7.1


def test_behind_ipv6_extension_headers_the_transport_is_found() -> None:
    host, wire = wired("fd00::1/64")
    quoted = v6("fd00::1", "fd00::9", bytes.fromhex("1100010400000000") + bytes(8), 0)
    wire.feed(icmp6("fd00::254", "fd00::1", icmpv6.Icmpv6(1, 4), quoted))
    assert host.errors[0].protocol == UDP
    assert bytes(host.errors[0].data) == bytes(8)


@pytest.mark.parametrize(
    "quoted",
    [
        b"",
        OURS4[:27],  # fewer than 8 octets of transport header
        v4("10.0.0.7", "10.0.0.9", bytes(8)),  # not sent from here
        b"\x41" + OURS4[1:],
    ],
)
def test_an_error_about_nothing_of_ours_is_counted_only(quoted: bytes) -> None:
    host, wire = wired("10.0.0.1/24")
    wire.feed(icmp4("10.0.0.254", "10.0.0.1", icmp.Icmp(3, 1), quoted))
    assert host.errors == []
    assert host.mib["IcmpInErrors"] == 1


@pytest.mark.parametrize(
    "quoted",
    [
        b"",
        OURS6[:47],
        v6("fd00::7", "fd00::9", bytes(8)),
        v6("fd00::1", "fd00::9", bytes.fromhex("1100000900000001") + bytes(8), 44),
        v6("fd00::1", "fd00::9", bytes.fromhex("1109"), 60),
    ],
)
def test_an_icmpv6_error_about_nothing_of_ours_is_counted_only(quoted: bytes) -> None:
    host, wire = wired("fd00::1/64")
    wire.feed(icmp6("fd00::254", "fd00::1", icmpv6.Icmpv6(1, 4), quoted))
    assert host.errors == []
    assert host.mib["Icmp6InErrors"] == 1


@pytest.mark.parametrize(
    "message",
    [icmp.Icmp(4), icmp.Icmp(5, 1), icmp.Icmp(11, 1), icmp.Icmp(3, 16), icmp.Icmp(40)],
)
def test_messages_that_tell_a_host_nothing_are_passed_over(message: icmp.Icmp) -> None:
    host, wire = wired("10.0.0.1/24")
    wire.feed(icmp4("10.0.0.254", "10.0.0.1", message, OURS4))
    assert host.errors == []
    assert wire.sent == []


def test_a_wrong_checksum_is_counted() -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    echo4 = bytearray(icmp4("10.0.0.9", "10.0.0.1", icmp.Icmp(8), b"x"))
    echo6 = bytearray(icmp6("fd00::9", "fd00::1", icmpv6.Icmpv6(128), b"x"))
    echo4[-1] ^= 1
    echo6[-1] ^= 1
    wire.feed(bytes(echo4), bytes(echo6))
    assert wire.sent == []
    assert (host.mib["IcmpInCsumErrors"], host.mib["IcmpInErrors"]) == (1, 1)
    assert (host.mib["Icmp6InCsumErrors"], host.mib["Icmp6InErrors"]) == (1, 1)


# -- queries --------------------------------------------------------------------------------------


def test_an_echo_reply_is_from_the_address_that_was_asked() -> None:
    host, wire = wired("10.0.0.1/24", "10.0.0.3/24", "fd00::1/64", "fd00::3/64")
    wire.feed(
        icmp4("10.0.0.9", "10.0.0.3", icmp.Icmp(8, 0, 0x12340007), b"data", tos=0x20),
        icmp6("fd00::9", "fd00::3", icmpv6.Icmpv6(128, 0, 0x12340007), b"data"),
    )
    first, second = wire.take()
    header = parse_untrusted(first)
    assert (header.saddr, header.daddr, header.tos) == (parse("10.0.0.3"), parse("10.0.0.9"), 0x20)
    assert icmp.parse_untrusted(first[20:]) == icmp.Icmp(0, 0, 0x12340007)
    assert checksum(first[20:]) == 0
    assert second[8:24] == parse("fd00::3")
    assert icmpv6.parse_untrusted(second[40:]) == icmpv6.Icmpv6(129, 0, 0x12340007)
    assert valid_icmp6(second)
    assert first[28:] == second[48:] == b"data"
    assert host.mib["IcmpOutEchoReps"] == host.mib["Icmp6OutEchoReplies"] == 1
    assert host.mib["IcmpInEchos"] == host.mib["Icmp6InEchos"] == 1


@pytest.mark.parametrize(
    ("row", "address"),
    [
        ("net.ipv4.icmp_echo_ignore_all", "10.0.0.2"),
        ("net.ipv6.icmp.echo_ignore_all", "fd00::2"),
    ],
)
def test_echoes_may_be_ignored(row: str, address: str) -> None:
    left, right = pair()
    right.stack.sysctl[row] = 1
    left.ping(address)
    assert left.types() == []
    right.stack.sysctl[row] = 0
    left.ping(address)
    assert len(left.types()) == 1


def test_broadcast_echoes_are_answered_only_if_asked_for() -> None:
    host, wire = wired("10.0.0.1/24")
    echo = icmp4("10.0.0.9", "10.0.0.255", icmp.Icmp(8), b"x")
    wire.feed(echo)
    assert wire.sent == []
    host.stack.sysctl["net.ipv4.icmp_echo_ignore_broadcasts"] = 0
    wire.feed(echo)
    assert parse_untrusted(wire.take()[0]).saddr == parse("10.0.0.1")


def test_a_multicast_echo_is_answered_from_an_address_of_our_own() -> None:
    host, wire = wired("fd00::1/64")
    echo = icmp6("fd00::9", "ff02::1", icmpv6.Icmpv6(128), b"x")
    wire.feed(echo)
    assert wire.take()[0][8:24] == parse("fd00::1")
    host.stack.sysctl["net.ipv6.icmp.echo_ignore_multicast"] = 1
    wire.feed(echo)
    assert wire.sent == []


def test_a_timestamp_is_answered_and_says_that_it_is_no_time_of_day() -> None:
    _, wire = wired("10.0.0.1/24")
    wire.feed(icmp4("10.0.0.9", "10.0.0.1", icmp.Icmp(13, 0, 5), bytes.fromhex("00000001") * 3))
    message = wire.take()[0][20:]
    assert icmp.parse_untrusted(message) == icmp.Icmp(14, 0, 5)
    assert message[8:12] == bytes.fromhex("00000001")
    assert message[12] & 0x80  # RFC 792: not milliseconds since midnight
    assert message[12:16] == message[16:20]


# -- errors that are sent -------------------------------------------------------------------------


def test_an_unreachable_port_is_reported_with_what_was_sent() -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    sent4, sent6 = (
        v4("10.0.0.9", "10.0.0.1", bytes(600), tos=0x0B),
        v6("fd00::9", "fd00::1", bytes(1400)),
    )
    wire.feed(sent4, sent6)
    for packet in host.packets:
        host.net.icmp_port_unreachable(packet)
    first, second = wire.take()
    header = parse_untrusted(first)
    assert (header.protocol, header.daddr, header.saddr) == (
        1,
        parse("10.0.0.9"),
        parse("10.0.0.1"),
    )
    assert header.tos == 0xCA  # internetwork control, with the type of service that was asked
    assert len(first) == 576
    assert first[20:22] == bytes((3, 3))
    assert checksum(first[20:]) == 0
    assert first[28:] == sent4[:548]
    assert len(second) == 1280
    assert second[40:42] == bytes((1, 4))
    assert valid_icmp6(second)
    assert second[48:] == sent6[:1232]


@pytest.mark.parametrize(
    "packet",
    [
        icmp4("10.0.0.9", "10.0.0.1", icmp.Icmp(3, 1), OURS4, frag=0),
        icmp4("10.0.0.9", "10.0.0.1", icmp.Icmp(77), b""),
        v4("10.0.0.9", "10.0.0.255", b"x" * 8, 253),
        v4("10.0.0.9", "224.0.0.1", b"x" * 8, 253),
        v4("0.0.0.0", "255.255.255.255", b"x" * 8, 253),
    ],
)
def test_some_packets_are_never_answered_with_an_error(packet: bytes) -> None:
    host, wire = wired("10.0.0.1/24")
    caught = []

    def look(received: object) -> bool:
        caught.append(received)
        return False

    host.net.raw_deliver.append(look)
    wire.feed(packet)
    for received in caught:
        host.net.icmp_send(received, 3, 2)  # type: ignore[arg-type]
    assert len(caught) == 1
    assert wire.sent == []


@pytest.mark.parametrize(
    "packet",
    [
        icmp6("fd00::9", "fd00::1", icmpv6.Icmpv6(1, 4), OURS6),
        icmp6("fd00::9", "fd00::1", icmpv6.Icmpv6(137), bytes(32)),
        v6("fd00::9", "ff02::1", b"x" * 8, 253),
        v6("::", "fd00::1", b"x" * 8, 253),
    ],
)
def test_some_ipv6_packets_are_never_answered_with_an_error(packet: bytes) -> None:
    host, wire = wired("fd00::1/64")
    caught = []

    def look(received: object) -> bool:
        caught.append(received)
        return False

    host.net.raw_deliver.append(look)
    wire.feed(packet)
    for received in caught:
        host.net.icmp_send(received, 1, 1)  # type: ignore[arg-type]
    assert len(caught) == 1
    assert wire.sent == []


def test_a_group_is_told_of_options_that_are_not_known() -> None:
    _, wire = wired("fd00::1/64")
    for kind in ("82", "c2"):  # only the first says: even if it was multicast
        options = bytes.fromhex(f"1100 {kind}04ffffffff")
        wire.feed(v6("fd00::9", "ff02::1", options, 60))
    assert [packet[40:42] for packet in wire.take()] == [bytes((4, 2))]


@pytest.mark.parametrize("version", [4, 6])
def test_errors_to_one_peer_are_limited(version: int) -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    packet = v4("10.0.0.9", "10.0.0.1", bytes(8), 253)
    other = v4("10.0.0.8", "10.0.0.1", bytes(8), 253)
    if version == 6:
        packet = v6("fd00::9", "fd00::1", bytes(8), 253)
        other = v6("fd00::8", "fd00::1", bytes(8), 253)
    wire.feed(*[packet] * 20)
    assert len(wire.take()) == 6
    group = "Icmp" if version == 4 else "Icmp6"
    assert host.mib[f"{group}OutRateLimitHost"] == 14
    wire.feed(other)
    assert len(wire.take()) == 1
    host.pass_time(2.0)
    wire.feed(*[packet] * 20)
    assert len(wire.take()) == 2


def test_errors_to_everybody_are_limited() -> None:
    host, wire = wired("10.0.0.1/16")
    wire.feed(*[v4(f"10.0.1.{number}", "10.0.0.1", bytes(8), 253) for number in range(1, 101)])
    assert len(wire.take()) == 50
    assert host.mib["IcmpOutRateLimitGlobal"] == 50
    host.pass_time(0.0105)
    wire.feed(*[v4(f"10.0.2.{number}", "10.0.0.1", bytes(8), 253) for number in range(1, 101)])
    assert len(wire.take()) == 10


def test_the_limit_is_a_parameter() -> None:
    host, wire = wired("10.0.0.1/24")
    host.stack.sysctl["net.ipv4.icmp_ratelimit"] = 0
    wire.feed(*[v4("10.0.0.9", "10.0.0.1", bytes(8), 253)] * 20)
    assert len(wire.take()) == 20


def test_echo_replies_are_not_limited() -> None:
    _, wire = wired("10.0.0.1/24")
    wire.feed(*[icmp4("10.0.0.9", "10.0.0.1", icmp.Icmp(8), b"x")] * 200)
    assert len(wire.take()) == 200
