"""Packets between hosts: echo, delivery, what is not for us, sending, loopback."""

from __future__ import annotations

import errno
import random

import pytest

from steertag.device import Offload, loopback
from steertag.inet.ip.addr import parse
from steertag.inet.ip.net import inet_net
from steertag.wire import icmp, icmpv6
from steertag.wire.arp import Arp
from steertag.wire.ipv4 import DF, parse_untrusted
from steertag.wire.ipv6 import parse_untrusted as parse6_untrusted
from tests.unit.inet_ip import UDP, Host, Wire, icmp4, icmp6, mac, pair, v4, v6, valid_icmp6, wired


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
@pytest.mark.parametrize("size", [0, 56, 1472, 5000])
@pytest.mark.parametrize("ethernet", [False, True])
def test_an_echo_is_answered(address: str, size: int, ethernet: bool) -> None:
    left, right = pair(ethernet=ethernet)
    left.ping(address, size)
    answers = [each for each in left.replies if each.data[0] in (0, 129)]
    assert len(answers) == 1
    asked = next(each for each in right.replies if each.data[0] in (8, 128))
    assert answers[0].data[8:] == asked.data[8:]
    assert len(answers[0].data) == size + 8
    assert answers[0].saddr == parse(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "10.0.0.1", "0.0.0.0"])
def test_this_host_answers_itself_over_ipv4(address: str) -> None:
    left, _ = pair()
    left.ping(address)
    assert left.types() == [8, 0]


@pytest.mark.parametrize("address", ["::1", "fd00::1", "::"])
def test_this_host_answers_itself_over_ipv6(address: str) -> None:
    left, _ = pair()
    left.ping(address, 4000)
    assert left.types() == [128, 129]


def test_a_packet_comes_to_its_protocol_with_what_its_header_says() -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    packets = (
        v4("10.0.0.9", "10.0.0.1", b"payload", ttl=7, tos=0xB9),
        v6("fd00::9", "fd00::1", b"payload", hops=7, tos=0xB9),
    )
    for packet in packets * 2:  # the second goes the short way
        wire.feed(packet + b"padding")
    assert [each.family for each in host.packets] == [4, 6] * 2
    for each, packet in zip(host.packets, packets * 2, strict=True):
        assert (each.ttl, each.tos, each.protocol) == (7, 0xB9, UDP)
        assert bytes(each.data) == b"payload"
        assert bytes(each.network) == packet
        assert each.device is wire
        assert not each.reassembled
    assert host.mib["IpInDelivers"] == 2
    assert host.mib["IpExtInECT1Pkts"] == 2
    assert host.mib["Ip6InECT1Pkts"] == 2


def test_what_leaves_is_as_the_header_of_its_version() -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    net = host.net
    net.route_output(parse("10.0.0.2")).xmit([b"head", b"body"], UDP, ttl=9, tos=0x10)
    net.route_output(parse("fd00::2")).xmit([b"head", b"body"], UDP, tos=0x10, flowlabel=0x12345)
    first, second = wire.take()
    header = parse_untrusted(first)
    assert (header.ttl, header.tos, header.frag, header.total_len) == (9, 0x10, DF, 28)
    assert first[20:] == b"headbody"
    header6 = parse6_untrusted(second)
    assert (header6.hop_limit, header6.tos, header6.flowlabel) == (64, 0x10, 0x12345)
    assert second[40:] == b"headbody"


def test_without_df_packets_may_be_fragmented_by_others() -> None:
    host, wire = wired("10.0.0.1/24")
    host.send("10.0.0.2", b"x", df=False)
    assert parse_untrusted(wire.take()[0]).frag == 0


def test_identifications_go_up() -> None:
    host, wire = wired("10.0.0.1/24")
    for _ in range(3):
        host.send("10.0.0.2", b"x")
    idents = [parse_untrusted(packet).ident for packet in wire.take()]
    assert [(idents[0] + n) & 0xFFFF for n in range(3)] == idents


def test_the_default_ttl_is_a_parameter() -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    host.send("10.0.0.2", b"x")
    host.stack.sysctl["net.ipv4.ip_default_ttl"] = 33
    host.stack.sysctl["net.ipv6.conf.all.hop_limit"] = 34
    host.send("10.0.0.2", b"x")
    host.send("fd00::2", b"x")
    assert [packet[8] for packet in wire.sent[:2]] == [64, 33]
    assert wire.sent[2][7] == 34


def test_an_offloaded_checksum_is_completed_before_the_wire() -> None:
    left, right = pair(ethernet=True)
    dst = left.net.route_output(parse("10.0.0.2"))
    length = 8 + 3
    header = bytes((0, 7, 0, 9, 0, length)) + dst.pseudo(UDP, length).to_bytes(2, "big")
    dst.xmit([header, b"abc"], UDP, offload=Offload(0, 6, 0, 0, 8))
    (packet,) = right.packets
    from steertag.inet.ip.packet import l4_checksum_ok

    assert l4_checksum_ok(packet)
    assert bytes(packet.data[8:]) == b"abc"


# -- what is not for this host, or can't be -------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "dest", "counter"),
    [
        ("10.0.0.9", "10.0.0.3", "IpInAddrErrors"),
        ("10.0.0.9", "8.8.8.8", "IpInAddrErrors"),
        ("224.0.0.1", "10.0.0.1", None),
        ("255.255.255.255", "10.0.0.1", None),
        ("127.0.0.1", "10.0.0.1", None),
        ("10.0.0.1", "10.0.0.1", None),  # our own address from outside
        ("10.0.0.255", "10.0.0.1", None),
        ("0.1.2.3", "10.0.0.1", None),
        ("10.0.0.9", "127.0.0.1", None),
        ("10.0.0.9", "0.0.0.0", None),
        ("10.0.0.9", "224.0.0.251", None),  # not joined
        ("fd00::9", "fd00::3", "Ip6InAddrErrors"),
        ("ff02::1", "fd00::1", "Ip6InHdrErrors"),
        ("::1", "fd00::1", "Ip6InHdrErrors"),
        ("fd00::9", "::1", "Ip6InHdrErrors"),
        ("fd00::9", "ff01::1", "Ip6InHdrErrors"),
        ("fd00::9", "ff00::1", "Ip6InHdrErrors"),
        ("fd00::9", "ff02::1234", None),
    ],
)
def test_what_cannot_be_for_this_host_is_dropped(
    source: str, dest: str, counter: str | None
) -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    make = v6 if ":" in source else v4
    wire.feed(make(source, dest, b"x"))
    assert host.packets == []
    assert wire.sent == []
    if counter is not None:
        assert host.mib[counter] == 1


def test_an_address_is_the_hosts_by_whichever_device() -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    host.net.add_device(Wire("wire1"), ("10.1.0.1/24", "fd01::1/64"))
    wire.feed(v4("10.0.0.9", "10.1.0.1"), v6("fd00::9", "fd01::1"))
    assert len(host.packets) == 2


def test_reverse_path_filtering_is_off_unless_asked_for() -> None:
    host, wire = wired("10.0.0.1/24")
    wire.feed(v4("8.8.8.8", "10.0.0.1"))
    assert len(host.packets) == 1
    host.stack.sysctl["net.ipv4.conf.all.rp_filter"] = 1
    host.net.bump_genid()
    wire.feed(v4("8.8.8.8", "10.0.0.1"), v4("10.0.0.9", "10.0.0.1"))
    assert len(host.packets) == 2
    assert host.mib["TcpExtIPReversePathFilter"] == 1


@pytest.mark.parametrize(
    ("change", "counter"),
    [
        ({0: 0x44}, "IpInHdrErrors"),
        ({0: 0x4F}, "IpInHdrErrors"),
        ({10: 0}, "IpExtInCsumErrors"),
        ({2: 0xFF}, "IpExtInCsumErrors"),
    ],
)
def test_a_broken_header_is_counted(change: dict[int, int], counter: str) -> None:
    host, wire = wired("10.0.0.1/24")
    octets = bytearray(v4("10.0.0.9", "10.0.0.1", b"x"))
    for at, value in change.items():
        octets[at] = value
    for _ in range(2):
        wire.feed(v4("10.0.0.9", "10.0.0.1", b"x"))
        wire.feed(bytes(octets))
    assert host.mib[counter] == 2
    assert len(host.packets) == 2


def test_a_packet_that_is_shorter_than_it_says_is_counted_as_truncated() -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    wire.feed(v4("10.0.0.9", "10.0.0.1", b"xyz")[:-1], v6("fd00::9", "fd00::1", b"xyz")[:-1])
    assert host.mib["IpExtInTruncatedPkts"] == 1
    assert host.mib["Ip6InTruncatedPkts"] == 1
    assert host.packets == []


def test_a_frame_of_no_known_version_is_an_error_of_the_device() -> None:
    _, wire = wired("10.0.0.1/24")
    wire.feed(b"", b"\x55rest")
    assert wire.stats.rx_errors == 2


@pytest.mark.parametrize(
    "dest", ["255.255.255.255", "10.0.0.255", "224.0.0.1", "224.0.0.99", "ff02::1", "ff02::99"]
)
def test_what_is_for_all_is_received_and_marked(dest: str) -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    if dest.endswith("99"):
        host.net.join_group(parse(dest), wire)
    wire.feed((v6 if ":" in dest else v4)("fd00::9" if ":" in dest else "10.0.0.9", dest))
    (packet,) = host.packets
    assert packet.pkt_type == (1 if dest.endswith("255") else 2)


def test_a_group_that_was_left_is_not_received() -> None:
    host, wire = wired("10.0.0.1/24")
    group = parse("224.0.0.99")
    host.net.join_group(group, wire)
    host.net.leave_group(group, wire)
    wire.feed(v4("10.0.0.9", "224.0.0.99"))
    assert host.packets == []
    with pytest.raises(OSError, match=r"224\.0\.0\.99") as caught:
        host.net.leave_group(group, wire)
    assert caught.value.errno == errno.EADDRNOTAVAIL


# -- options --------------------------------------------------------------------------------------


def test_ipv4_options_are_passed_over() -> None:
    host, wire = wired("10.0.0.1/24")
    options = bytes.fromhex("94040000 07070400000000 00")
    wire.feed(v4("10.0.0.9", "10.0.0.1", b"payload", options=options))
    assert bytes(host.packets[0].data) == b"payload"


def test_source_routes_are_not_followed() -> None:
    host, wire = wired("10.0.0.1/24")
    wire.feed(v4("10.0.0.9", "10.0.0.1", options=bytes.fromhex("8303040083030400")[:4]))
    assert host.packets == []


def test_a_malformed_ipv4_option_is_a_parameter_problem() -> None:
    host, wire = wired("10.0.0.1/24")
    wire.feed(v4("10.0.0.9", "10.0.0.1", b"x", options=bytes.fromhex("01070000")))
    assert host.packets == []
    message = wire.take()[0][20:]
    assert message[:2] == bytes((icmp.PARAMETERPROB, 0))
    assert message[4] == 21
    assert host.mib["IpInHdrErrors"] == 1


HOP_BY_HOP, ROUTING, DEST_OPTIONS, NONE = 0, 43, 60, 59


def extension(following: int, area: bytes) -> bytes:
    assert (len(area) + 2) % 8 == 0
    return bytes((following, (len(area) + 2) // 8 - 1)) + area


@pytest.mark.parametrize(
    "headers",
    [
        [(HOP_BY_HOP, "010400000000")],
        [(HOP_BY_HOP, "050200000100")],
        [(DEST_OPTIONS, "1e0401020304")],
        [(HOP_BY_HOP, "010400000000"), (DEST_OPTIONS, "010400000000"), (ROUTING, "000000000000")],
    ],
)
def test_ipv6_extension_headers_are_passed_over(headers: list[tuple[int, str]]) -> None:
    host, wire = wired("fd00::1/64")
    kinds = [kind for kind, _ in headers] + [UDP]
    chain = b"".join(
        extension(following, bytes.fromhex(area))
        for following, (_, area) in zip(kinds[1:], headers, strict=True)
    )
    wire.feed(v6("fd00::9", "fd00::1", chain + b"payload", kinds[0]))
    assert bytes(host.packets[0].data) == b"payload"
    assert wire.sent == []


@pytest.mark.parametrize(
    ("first", "octets", "code", "pointer"),
    [
        (253, b"x" * 8, icmpv6.UNK_NEXTHDR, 6),  # unknown protocol
        (HOP_BY_HOP, extension(253, bytes.fromhex("010400000000")), icmpv6.UNK_NEXTHDR, 40),
        (HOP_BY_HOP, extension(UDP, bytes.fromhex("8204ffffffff")), icmpv6.UNK_OPTION, 42),
        (DEST_OPTIONS, extension(UDP, bytes.fromhex("c204ffffffff")), icmpv6.UNK_OPTION, 42),
        (HOP_BY_HOP, extension(UDP, bytes.fromhex("c20400010000")), icmpv6.HDR_FIELD, 42),
        (ROUTING, extension(UDP, bytes.fromhex("000100000000")), icmpv6.HDR_FIELD, 42),
        (
            DEST_OPTIONS,
            extension(HOP_BY_HOP, bytes.fromhex("010400000000"))
            + extension(UDP, bytes.fromhex("010400000000")),
            icmpv6.UNK_NEXTHDR,
            40,
        ),
    ],
)
def test_what_an_ipv6_packet_may_not_have_is_a_parameter_problem(
    first: int, octets: bytes, code: int, pointer: int
) -> None:
    host, wire = wired("fd00::1/64")
    wire.feed(v6("fd00::9", "fd00::1", octets, first))
    assert host.packets == []
    (answer,) = wire.take()
    assert valid_icmp6(answer)
    message = icmpv6.parse_untrusted(answer[40:])
    assert message == icmpv6.Icmpv6(icmpv6.PARAMPROB, code, pointer)
    assert answer[48:] == v6("fd00::9", "fd00::1", octets, first)


@pytest.mark.parametrize(
    ("first", "octets"),
    [
        (HOP_BY_HOP, extension(UDP, bytes.fromhex("4204ffffffff"))),  # says: drop
        (HOP_BY_HOP, b"\x11\x09"),  # cut off
        (NONE, b"x"),
        (DEST_OPTIONS, extension(UDP, bytes(14))),  # too much padding
        (HOP_BY_HOP, extension(UDP, bytes.fromhex("05000000" * 9 + "0100"))),  # too many
        (DEST_OPTIONS, extension(DEST_OPTIONS, bytes.fromhex("010400000000")) * 100),
    ],
)
def test_other_ipv6_packets_are_dropped_without_a_word(first: int, octets: bytes) -> None:
    host, wire = wired("fd00::1/64")
    wire.feed(v6("fd00::9", "fd00::1", octets, first))
    assert host.packets == []
    assert wire.sent == []


# -- hooks and protocols --------------------------------------------------------------------------


def test_an_ipv4_packet_that_nobody_wants_is_answered() -> None:
    host, wire = wired("10.0.0.1/24")
    wire.feed(v4("10.0.0.9", "10.0.0.1", b"x" * 8, 253))
    assert wire.take()[0][20:22] == bytes((icmp.DEST_UNREACH, icmp.PROT_UNREACH))
    assert host.mib["IpInUnknownProtos"] == 1


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_a_raw_hook_that_takes_a_packet_keeps_it_from_being_answered(address: str) -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    taken = []

    def take(packet: object) -> bool:
        taken.append(packet)
        return True

    host.net.raw_deliver.append(take)
    make, source = (v6, "fd00::9") if ":" in address else (v4, "10.0.0.9")
    wire.feed(make(source, address, b"x" * 8, 253), make(source, address, b"x" * 8))
    assert len(taken) == 2
    assert len(host.packets) == 1
    assert wire.sent == []


def test_complete_is_called_when_a_turn_is_over() -> None:
    host, wire = wired("10.0.0.1/24")
    seen: list[int] = []
    host.net.inet_add_protocol(6, lambda _: None, None, lambda net: seen.append(len(host.packets)))
    with host.stack.lock:
        wire.feed(*[v4("10.0.0.9", "10.0.0.1", b"x")] * 5)
    assert seen == [5]
    host.net.inet_del_protocol(6)
    wire.feed(v4("10.0.0.9", "10.0.0.1", b"x"))
    assert seen == [5]


def test_a_protocol_is_entered_once() -> None:
    host = Host()
    with pytest.raises(OSError, match="protocol 17") as caught:
        host.net.inet_add_protocol(UDP, lambda _: None)
    assert caught.value.errno == errno.EEXIST


def test_a_stack_without_the_family_says_so() -> None:
    from steertag.family.stack import Stack

    with pytest.raises(OSError, match="not registered") as caught:
        inet_net(Stack(load_family=None, load_observers=None))
    assert caught.value.errno == errno.ENETDOWN


def test_closing_leaves_nothing_behind() -> None:
    host, _ = wired("10.0.0.1/24", "fd00::1/64", ethernet=True)
    host.send("10.0.0.77", b"x")
    before = set(host.stack.sysctl)
    host.net.close()
    assert host.stack.devices == {}
    assert host.stack.timers.deadline is None
    assert not any(name.startswith(("net.ipv4.icmp", "net.ipv6")) for name in host.stack.sysctl)
    assert len(before) > len(set(host.stack.sysctl))


def test_the_loopback_device_is_there_from_the_start() -> None:
    host = Host()
    assert "lo" in host.stack.devices
    with pytest.raises(OSError, match="lo"):
        host.net.add_device(loopback())


# -- hostile octets -------------------------------------------------------------------------------


def mutated(rng: random.Random, octets: bytes) -> bytes:
    changed = bytearray(octets)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randint(0, len(changed))] if rng.random() < 0.3 else changed)


def fixed_v4(octets: bytes) -> bytes:
    """With a header checksum that is right, so that what lies behind it is reached."""
    from steertag.wire.checksum import checksum

    if len(octets) < 20:
        return octets
    header = max(20, (octets[0] & 15) * 4)
    blank = octets[:10] + b"\0\0" + octets[12:]
    return blank[:10] + checksum(blank[:header]).to_bytes(2, "big") + blank[12:]


@pytest.mark.parametrize("ethernet", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_no_octets_raise_or_grow_memory(ethernet: bool, seed: int) -> None:
    rng = random.Random(seed)
    host, wire = wired("10.0.0.1/24", "fd00::1/64", ethernet=ethernet)
    host.stack.sysctl["net.ipv6.conf.all.accept_ra"] = 1
    quoted4, quoted6 = v4("10.0.0.1", "10.0.0.9", bytes(16)), v6("fd00::1", "fd00::9", bytes(16))
    advert = bytes.fromhex("400000780000000000000000") + bytes.fromhex(
        "0304 40c0 00015180 00003840 00000000 20010db8" + "00" * 12 + "0101020000000009"
    )
    samples = [
        v4("10.0.0.9", "10.0.0.1", bytes(20), options=bytes.fromhex("94040000")),
        v4("10.0.0.9", "10.0.0.1", bytes(24), frag=0x2000, ident=1),
        v4("10.0.0.9", "10.0.0.1", bytes(24), frag=3, ident=1),
        icmp4("10.0.0.9", "10.0.0.1", icmp.Icmp(8), bytes(9)),
        icmp4("10.0.0.9", "10.0.0.1", icmp.Icmp(3, 4, 1000), quoted4),
        v6("fd00::9", "fd00::1", extension(UDP, bytes.fromhex("050200000100")) + bytes(8), 0),
        v6("fd00::9", "fd00::1", bytes.fromhex("1100000100000001") + bytes(24), 44),
        icmp6("fd00::9", "fd00::1", icmpv6.Icmpv6(128), bytes(9)),
        icmp6("fd00::9", "fd00::1", icmpv6.Icmpv6(2, 0, 1300), quoted6),
        icmp6("fe80::9", "ff02::1:ff00:1", icmpv6.Icmpv6(135), parse("fd00::1"), 255),
        icmp6("fe80::9", "ff02::1", icmpv6.Icmpv6(134), advert[4:], 255),
    ]
    if ethernet:
        samples.append(Arp(1, mac(9), parse("10.0.0.9"), bytes(6), parse("10.0.0.1")).emit())
    for _ in range(1500):
        octets = mutated(rng, rng.choice(samples))
        if octets and octets[0] >> 4 == 4 and rng.random() < 0.8:
            octets = fixed_v4(octets)
        if rng.random() < 0.1:
            octets = rng.randbytes(rng.randrange(80))
        if ethernet:
            kind = {4: "0800", 6: "86dd"}.get(octets[0] >> 4 if octets else 0, "0806")
            octets = wire.dev_addr + bytes(6) + bytes.fromhex(kind) + octets
        wire.feed(octets)
        wire.sent.clear()
    assert host.net.defrag.memory < 4 << 20
    host.pass_time(100_000)
    assert len(host.net.defrag) == 0
    assert len(host.net.neighbours()) <= 1024
