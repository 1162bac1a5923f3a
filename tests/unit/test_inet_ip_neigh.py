"""Neighbours: ARP, Neighbor Discovery, the states, failure; duplicate addresses and routers."""

from __future__ import annotations

import errno

import pytest

from steertag.inet.ip.addr import ALL_NODES, parse, solicited_node
from steertag.wire import arp, icmpv6
from steertag.wire.arp import REPLY, REQUEST, Arp
from steertag.wire.ethernet import (
    BROADCAST,
    ETH_P_ARP,
    ETH_P_IP,
    ETH_P_IPV6,
    Ethernet,
    multicast_v6,
)
from steertag.wire.ethernet import parse_untrusted as parse_frame
from steertag.wire.icmpv6 import NA_OVERRIDE, NA_ROUTER, NA_SOLICITED, Icmpv6
from tests.unit.inet_ip import Host, Wire, icmp6, mac, pair, v4, v6, valid_icmp6, wired

US, PEER, OTHER = mac(1), mac(9), mac(8)
SOLICIT = 135


def linked() -> tuple[Host, Wire]:
    host, wire = wired("10.0.0.1/24", "fd00::1/64", ethernet=True)
    wire.take()
    return host, wire


def frame(payload: bytes, source: bytes = PEER, dest: bytes = US) -> bytes:
    kind = ETH_P_IP if payload[0] >> 4 == 4 else ETH_P_IPV6
    return Ethernet(dest, source, kind).emit() + payload


def arp_frame(operation: int, spa: str, tpa: str, sha: bytes = PEER, dest: bytes = US) -> bytes:
    packet = Arp(operation, sha, parse(spa), US if operation == REPLY else bytes(6), parse(tpa))
    return Ethernet(dest, sha, ETH_P_ARP).emit() + packet.emit()


def advert(
    target: str, flags: int, lladdr: bytes = PEER, dest: str = "fd00::1", hops: int = 255
) -> bytes:
    body = parse(target) + icmpv6.link_address_option(icmpv6.OPT_TARGET_LL, lladdr)
    return frame(icmp6(target, dest, Icmpv6(icmpv6.NEIGHBOR_ADVERT, 0, flags), body, hops))


def solicitation(source: str, target: str, *, option: bool = True, hops: int = 255) -> bytes:
    group = solicited_node(parse(target))
    body = parse(target)
    if option:
        body += icmpv6.link_address_option(icmpv6.OPT_SOURCE_LL, PEER)
    import ipaddress

    dest = str(ipaddress.ip_address(group))
    return frame(icmp6(source, dest, Icmpv6(SOLICIT), body, hops), PEER, multicast_v6(group))


def state_of(host: Host, address: str) -> str:
    return next(each[3] for each in host.net.neighbours() if each[1] == parse(address))


# -- ARP -------------------------------------------------------------------------------------------


def test_an_unknown_neighbour_is_asked_for_by_broadcast() -> None:
    host, wire = linked()
    host.send("10.0.0.9", b"x")
    (question,) = wire.take()
    assert parse_frame(question) == Ethernet(BROADCAST, US, ETH_P_ARP)
    packet = arp.parse_untrusted(question[14:])
    assert packet == Arp(REQUEST, US, parse("10.0.0.1"), bytes(6), parse("10.0.0.9"))
    assert state_of(host, "10.0.0.9") == "INCOMPLETE"


def test_what_was_kept_back_leaves_with_the_answer() -> None:
    host, wire = linked()
    for number in range(3):
        host.send("10.0.0.9", bytes((number,)))
    assert len(wire.take()) == 1
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.1"))
    packets = wire.take()
    assert [packet[34:] for packet in packets] == [b"\0", b"\1", b"\2"]
    assert {packet[:14] for packet in packets} == {Ethernet(PEER, US, ETH_P_IP).emit()}
    assert state_of(host, "10.0.0.9") == "REACHABLE"
    host.send("10.0.0.9", b"next")
    assert wire.take()[0][34:] == b"next"


def test_only_so_many_packets_are_kept_back_and_the_oldest_go() -> None:
    host, wire = linked()
    host.stack.sysctl["net.ipv4.neigh.default.unres_qlen"] = 2
    for number in range(5):
        host.send("10.0.0.9", bytes((number,)))
    wire.take()
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.1"))
    assert [packet[34:] for packet in wire.take()] == [b"\3", b"\4"]


def test_a_request_for_our_address_is_answered_and_remembered() -> None:
    host, wire = linked()
    wire.feed(arp_frame(REQUEST, "10.0.0.9", "10.0.0.1", dest=BROADCAST))
    (answer,) = wire.take()
    assert parse_frame(answer) == Ethernet(PEER, US, ETH_P_ARP)
    expected = Arp(REPLY, US, parse("10.0.0.1"), PEER, parse("10.0.0.9"))
    assert arp.parse_untrusted(answer[14:]) == expected
    assert state_of(host, "10.0.0.9") == "STALE"


def test_requests_for_others_teach_nothing() -> None:
    host, wire = linked()
    wire.feed(arp_frame(REQUEST, "10.0.0.9", "10.0.0.7", dest=BROADCAST))
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.7"))
    assert wire.sent == []
    assert host.net.neighbours() == []


def test_whoever_says_to_be_us_is_not_believed() -> None:
    host, wire = linked()
    wire.feed(arp_frame(REPLY, "10.0.0.1", "10.0.0.1"))
    wire.feed(arp_frame(REQUEST, "127.0.0.1", "10.0.0.1"))
    assert host.net.neighbours() == []


def test_a_probe_for_our_address_is_answered() -> None:
    host, wire = linked()
    wire.feed(arp_frame(REQUEST, "0.0.0.0", "10.0.0.1", dest=BROADCAST))
    assert arp.parse_untrusted(wire.take()[0][14:]).spa == parse("10.0.0.1")
    assert host.net.neighbours() == []


def test_an_announcement_changes_what_is_known_but_not_at_once() -> None:
    host, wire = linked()
    host.send("10.0.0.9", b"x")
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.1"))
    announcement = arp_frame(REQUEST, "10.0.0.9", "10.0.0.9", sha=OTHER, dest=BROADCAST)
    wire.feed(announcement)
    assert host.net.neighbours()[0][2] == PEER  # within a second of another
    host.pass_time(2)
    wire.feed(announcement)
    assert host.net.neighbours()[0][2:] == (OTHER, "STALE")


def test_frames_for_others_are_not_ours() -> None:
    host, wire = linked()
    wire.feed(frame(v4("10.0.0.9", "10.0.0.1", b"x"), dest=OTHER))
    assert host.packets == []
    wire.feed(frame(v4("10.0.0.9", "10.0.0.1", b"x")))
    assert len(host.packets) == 1


def test_the_padding_of_a_short_frame_is_cut_off() -> None:
    host, wire = linked()
    wire.feed(frame(v4("10.0.0.9", "10.0.0.1", b"x")) + bytes(25))
    assert bytes(host.packets[0].data) == b"x"


# -- the states ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "asked"), [("10.0.0.9", (3, 1)), ("fd00::9", (1, 3))])
def test_a_neighbour_that_does_not_answer_is_given_up_and_the_sender_told(
    address: str, asked: tuple[int, int]
) -> None:
    host, wire = linked()
    host.send(address, b"eight octets")
    host.pass_time(2.5)
    assert len(wire.sent) == 3
    assert state_of(host, address) == "INCOMPLETE"
    host.pass_time(1)
    assert len(wire.sent) == 3
    assert state_of(host, address) == "FAILED"
    (error,) = host.errors
    assert error.errno == errno.EHOSTUNREACH
    assert not error.fatal
    assert error.daddr == parse(address)
    assert bytes(error.data) == b"eight octets"
    assert (error.type, error.code) == asked
    host.send(address, b"again")
    assert state_of(host, address) == "INCOMPLETE"
    assert len(wire.sent) == 4


def test_reachable_becomes_stale_then_delay_then_probe_then_reachable() -> None:
    host, wire = linked()
    host.send("10.0.0.9", b"x")
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.1"))
    assert state_of(host, "10.0.0.9") == "REACHABLE"
    host.pass_time(46)  # at most one and a half of 30 seconds
    assert state_of(host, "10.0.0.9") == "STALE"
    wire.take()
    host.send("10.0.0.9", b"y")
    assert wire.take()[0][34:] == b"y"  # it goes out all the same
    assert state_of(host, "10.0.0.9") == "DELAY"
    host.pass_time(5.1)
    assert state_of(host, "10.0.0.9") == "PROBE"
    (question,) = wire.take()
    assert parse_frame(question).dest == PEER  # of the one that is known
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.1"))
    assert state_of(host, "10.0.0.9") == "REACHABLE"


def test_a_probed_neighbour_that_is_silent_has_failed() -> None:
    host, wire = linked()
    host.send("10.0.0.9", b"x")
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.1"))
    host.pass_time(46)
    host.send("10.0.0.9", b"y")
    host.pass_time(10)
    assert state_of(host, "10.0.0.9") == "FAILED"


def test_the_transport_layer_may_confirm() -> None:
    host, wire = linked()
    host.send("10.0.0.9", b"x")
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.1"))
    host.pass_time(46)
    dst = host.net.route_output(parse("10.0.0.9"))
    dst.xmit([b"y"], 17)
    assert state_of(host, "10.0.0.9") == "DELAY"
    host.pass_time(1)
    dst.confirm()
    wire.take()
    host.pass_time(5)
    assert state_of(host, "10.0.0.9") == "REACHABLE"
    assert wire.sent == []


def test_a_neighbour_by_decree_stays() -> None:
    host, wire = linked()
    host.net.neigh_add(wire, "10.0.0.9", OTHER)
    host.send("10.0.0.9", b"x")
    assert parse_frame(wire.take()[0]).dest == OTHER
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.1"))
    host.pass_time(1000)
    assert host.net.neighbours()[0][2:] == (OTHER, "PERMANENT")
    host.net.neigh_del(wire, "10.0.0.9")
    assert host.net.neighbours() == []
    with pytest.raises(OSError, match="10") as caught:
        host.net.neigh_del(wire, "10.0.0.9")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("answer", [False, True])
def test_neighbours_are_bounded(answer: bool) -> None:
    host, wire = wired("10.0.0.1/8", ethernet=True)
    host.stack.sysctl["net.ipv4.neigh.default.gc_thresh1"] = 16
    host.stack.sysctl["net.ipv4.neigh.default.gc_thresh3"] = 32
    for number in range(200):
        address = f"10.1.{number}.1"
        host.send(address, b"x")
        if answer:
            wire.feed(arp_frame(REPLY, address, "10.0.0.1"))
        host.pass_time(0.001)
    assert len(host.net.neighbours()) <= 32
    host.pass_time(10)
    host.send("10.1.0.1", b"y")  # forgotten, and found again
    wire.take()
    wire.feed(arp_frame(REPLY, "10.1.0.1", "10.0.0.1"))
    assert b"y" in [packet[34:] for packet in wire.take()] or answer


def test_a_route_in_use_outlives_its_neighbour() -> None:
    host, wire = linked()
    dst = host.net.route_output(parse("10.0.0.9"))
    dst.xmit([b"x"], 17)
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.1"))
    host.net.neigh_del(wire, "10.0.0.9")
    wire.take()
    dst.xmit([b"y"], 17)
    assert parse_frame(wire.take()[0]).ethertype == ETH_P_ARP
    wire.feed(arp_frame(REPLY, "10.0.0.9", "10.0.0.1"))
    assert wire.take()[0][34:] == b"y"


def test_the_gateway_is_the_neighbour_of_what_lies_behind_it() -> None:
    host, wire = linked()
    host.net.route_add("default", "10.0.0.254")
    host.send("8.8.8.8", b"x")
    assert arp.parse_untrusted(wire.take()[0][14:]).tpa == parse("10.0.0.254")


@pytest.mark.parametrize(
    ("dest", "lladdr"),
    [
        ("255.255.255.255", BROADCAST),
        ("10.0.0.255", BROADCAST),
        ("224.0.0.251", bytes.fromhex("01005e0000fb")),
        ("ff02::fb", bytes.fromhex("3333000000fb")),
    ],
)
def test_nobody_is_asked_where_groups_are(dest: str, lladdr: bytes) -> None:
    host, wire = linked()
    host.send(dest, b"x", oif=wire.ifindex)
    assert parse_frame(wire.take()[0]).dest == lladdr


# -- Neighbor Discovery ----------------------------------------------------------------------------


def test_an_unknown_ipv6_neighbour_is_asked_for_in_its_group() -> None:
    host, wire = linked()
    host.send("fd00::9", b"x")
    (question,) = wire.take()
    group = solicited_node(parse("fd00::9"))
    assert parse_frame(question).dest == multicast_v6(group)
    packet = question[14:]
    assert (packet[7], packet[8:24], packet[24:40]) == (255, parse("fd00::1"), group)
    assert valid_icmp6(packet)
    assert packet[48:64] == parse("fd00::9")
    assert packet[64:] == bytes((1, 1)) + US


def test_an_advertisement_answers_it() -> None:
    host, wire = linked()
    host.send("fd00::9", b"x")
    wire.take()
    wire.feed(advert("fd00::9", NA_SOLICITED | NA_OVERRIDE))
    (packet,) = wire.take()
    assert packet[:14] == Ethernet(PEER, US, ETH_P_IPV6).emit()
    assert state_of(host, "fd00::9") == "REACHABLE"


def test_an_unsolicited_advertisement_is_less_certain() -> None:
    host, wire = linked()
    host.send("fd00::9", b"x")
    wire.feed(advert("fd00::9", NA_OVERRIDE))
    assert state_of(host, "fd00::9") == "DELAY"  # stale, and used by what was kept back


def test_without_override_another_address_makes_the_known_one_doubtful() -> None:
    host, wire = linked()
    host.send("fd00::9", b"x")
    wire.feed(advert("fd00::9", NA_SOLICITED | NA_OVERRIDE))
    wire.feed(advert("fd00::9", NA_SOLICITED, OTHER))
    assert host.net.neighbours()[0][2:] == (PEER, "STALE")
    wire.feed(advert("fd00::9", NA_SOLICITED | NA_OVERRIDE, OTHER))
    assert host.net.neighbours()[0][2:] == (OTHER, "REACHABLE")


@pytest.mark.parametrize("hops", [64, 254])
def test_what_came_over_a_router_is_no_neighbor_discovery(hops: int) -> None:
    host, wire = linked()
    host.send("fd00::9", b"x")
    wire.take()
    wire.feed(advert("fd00::9", NA_SOLICITED | NA_OVERRIDE, hops=hops))
    wire.feed(solicitation("fd00::9", "fd00::1", hops=hops))
    assert wire.sent == []
    assert state_of(host, "fd00::9") == "INCOMPLETE"


def test_nobody_asked_for_teaches_nothing() -> None:
    host, wire = linked()
    wire.feed(advert("fd00::9", NA_SOLICITED | NA_OVERRIDE))
    assert host.net.neighbours() == []


def test_a_solicitation_is_answered_and_remembered() -> None:
    host, wire = linked()
    wire.feed(solicitation("fd00::9", "fd00::1"))
    (answer,) = wire.take()
    assert answer[:14] == Ethernet(PEER, US, ETH_P_IPV6).emit()
    packet = answer[14:]
    assert valid_icmp6(packet)
    message = icmpv6.parse_untrusted(packet[40:])
    assert message == Icmpv6(icmpv6.NEIGHBOR_ADVERT, 0, NA_SOLICITED | NA_OVERRIDE)
    assert packet[48:64] == parse("fd00::1")
    assert packet[64:] == bytes((2, 1)) + US
    assert state_of(host, "fd00::9") == "STALE"


def test_somebody_who_looks_for_duplicates_of_our_address_is_told() -> None:
    _, wire = linked()
    wire.feed(solicitation("::", "fd00::1", option=False))
    packet = wire.take()[0][14:]
    assert packet[24:40] == ALL_NODES
    assert icmpv6.parse_untrusted(packet[40:]).rest == NA_OVERRIDE


@pytest.mark.parametrize("target", ["fd00::7", "fd00::1:1"])
def test_solicitations_for_others_are_not_answered(target: str) -> None:
    host, wire = linked()
    wire.feed(solicitation("fd00::9", target))
    assert wire.sent == []
    assert host.net.neighbours() == []


def test_a_link_local_address_is_there_on_ethernet() -> None:
    left, right = pair(ethernet=True)
    index = next(device.ifindex for device, _ in left.net.addresses() if device.name != "lo")
    left.send("fe80::ff:fe00:2", b"x", oif=index)
    (packet,) = right.packets
    assert packet.saddr == parse("fe80::ff:fe00:1")


# -- duplicate address detection -------------------------------------------------------------------


def with_dad() -> tuple[Host, Wire]:
    host, wire = Host(), Wire(ethernet=True)
    host.stack.sysctl["net.ipv6.conf.all.dad_transmits"] = 1
    host.net.add_device(wire, ("fd00::1/64",))
    return host, wire


def test_an_address_is_not_used_before_it_is_known_to_be_nobodys() -> None:
    host, wire = with_dad()
    probe = next(sent[14:] for sent in wire.take() if sent[62:78] == parse("fd00::1"))
    assert probe[8:24] == bytes(16)
    assert probe[24:40] == solicited_node(parse("fd00::1"))
    assert len(probe) == 64  # no link-layer address option
    assert not host.net.is_local(parse("fd00::1"))
    with pytest.raises(OSError, match="no address"):
        host.send("fd00::9", b"x")
    host.pass_time(1.1)
    assert host.net.is_local(parse("fd00::1"))
    host.send("fd00::9", b"x")


@pytest.mark.parametrize("how", ["advertisement", "probe"])
def test_an_address_that_somebody_has_is_never_used(how: str) -> None:
    host, wire = with_dad()
    if how == "advertisement":
        wire.feed(advert("fd00::1", NA_OVERRIDE, dest="ff02::1"))
    else:
        wire.feed(solicitation("::", "fd00::1", option=False))
    host.pass_time(10)
    assert not host.net.is_local(parse("fd00::1"))
    (found,) = [each for _, each in host.net.addresses() if each.address == parse("fd00::1")]
    assert found.dadfailed


# -- router advertisements -------------------------------------------------------------------------


def router_advert(
    lifetime: int = 1800, *, valid: int = 86400, hops: int = 42, mtu: int = 1400
) -> bytes:
    prefix = icmpv6.Prefix(parse("2001:db8::"), 64, True, True, valid, valid // 2).emit()
    body = (
        bytes(8)
        + icmpv6.link_address_option(icmpv6.OPT_SOURCE_LL, PEER)
        + bytes((5, 1, 0, 0))
        + mtu.to_bytes(4, "big")
        + prefix
    )
    message = Icmpv6(icmpv6.ROUTER_ADVERT, 0, hops << 24 | lifetime)
    return frame(
        icmp6("fe80::9", "ff02::1", message, body, 255), PEER, bytes.fromhex("333300000001")
    )


def test_advertised_routers_are_not_believed_unless_asked_for() -> None:
    host, wire = linked()
    before = [str(route) for route in host.net.routes()]
    wire.feed(router_advert())
    assert [str(route) for route in host.net.routes()] == before


def test_an_advertised_router_and_prefix_are_taken() -> None:
    host, wire = linked()
    host.stack.sysctl["net.ipv6.conf.all.accept_ra"] = 1
    wire.feed(router_advert())
    assert host.net.is_local(parse("2001:db8::ff:fe00:1"))
    dst = host.net.route_output(parse("2606:4700::1111"))
    assert dst.gateway == parse("fe80::9")
    assert dst.saddr == parse("2001:db8::ff:fe00:1")
    assert dst.mtu == 1400
    wire.take()
    dst.xmit([b"x"], 17)
    (packet,) = wire.take()
    assert parse_frame(packet).dest == PEER
    assert packet[14 + 7] == 42
    wire.feed(router_advert())  # again: nothing is doubled
    assert sum(route.protocol == "ra" for route in host.net.routes()) == 1


def test_a_router_goes_with_its_lifetime() -> None:
    host, wire = linked()
    host.stack.sysctl["net.ipv6.conf.all.accept_ra"] = 1
    wire.feed(router_advert(lifetime=100))
    host.pass_time(99)
    assert host.net.route_output(parse("2606:4700::1111")).gateway
    host.pass_time(2)
    with pytest.raises(OSError, match="unreachable") as caught:
        host.net.route_output(parse("2606:4700::1111"))
    assert caught.value.errno == errno.ENETUNREACH
    wire.feed(router_advert())
    wire.feed(router_advert(lifetime=0))
    with pytest.raises(OSError, match="unreachable"):
        host.net.route_output(parse("2606:4700::1111"))


def test_a_router_that_says_it_is_none_any_more_is_none() -> None:
    host, wire = linked()
    host.stack.sysctl["net.ipv6.conf.all.accept_ra"] = 1
    wire.feed(router_advert())
    wire.feed(advert("fe80::9", NA_ROUTER | NA_OVERRIDE, dest="ff02::1"))
    assert host.net.route_output(parse("2606:4700::1111")).gateway
    wire.feed(advert("fe80::9", NA_OVERRIDE, dest="ff02::1"))
    with pytest.raises(OSError, match="unreachable"):
        host.net.route_output(parse("2606:4700::1111"))


def test_an_advertised_address_is_deprecated_and_then_goes() -> None:
    host, wire = linked()
    host.stack.sysctl["net.ipv6.conf.all.accept_ra"] = 1
    wire.feed(router_advert(valid=10000))
    address = parse("2001:db8::ff:fe00:1")
    host.pass_time(5001)
    (found,) = [each for _, each in host.net.addresses() if each.address == address]
    assert found.deprecated
    assert host.net.is_local(address)
    host.pass_time(5000)
    assert not host.net.is_local(address)


def test_nobody_may_take_an_address_away_at_once() -> None:
    host, wire = linked()
    host.stack.sysctl["net.ipv6.conf.all.accept_ra"] = 1
    wire.feed(router_advert())
    wire.feed(router_advert(valid=2))
    host.pass_time(7000)
    assert host.net.is_local(parse("2001:db8::ff:fe00:1"))
    host.pass_time(300)
    assert not host.net.is_local(parse("2001:db8::ff:fe00:1"))


def test_a_device_that_goes_takes_all_of_it_along() -> None:
    host, wire = linked()
    host.stack.sysctl["net.ipv6.conf.all.accept_ra"] = 1
    wire.feed(router_advert())
    host.send("fd00::9", b"x")
    host.net.del_device(wire)
    assert host.stack.timers.deadline is None
    assert host.net.neighbours() == []
    assert {route.device for route in host.net.routes()} == {host.net.lo}
    wire.feed(frame(v6("fd00::9", "fd00::1", b"x")))
    assert host.packets == []


def test_a_route_over_a_device_that_went_is_refused() -> None:
    host, wire = linked()
    dst = host.net.route_output(parse("10.0.0.9"))
    host.net.del_device(wire)
    assert not dst.valid()
    with pytest.raises(OSError, match="wire0") as caught:
        dst.xmit([b"x"], 17)
    assert caught.value.errno == errno.ENODEV
    assert host.stack.timers.deadline is None
