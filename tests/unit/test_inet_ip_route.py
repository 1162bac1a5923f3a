"""Routes, source addresses, and what is known of the path: MTUs."""

from __future__ import annotations

import errno

import pytest

from steertag.inet.ip.addr import parse, text
from steertag.inet.ip.route import RTN_BLACKHOLE, RTN_PROHIBIT, RTN_UNREACHABLE
from steertag.wire.ipv4 import parse_untrusted
from tests.unit.inet_ip import UDP, Host, Wire, pair, v4, wired


def two_links() -> tuple[Host, Wire, Wire]:
    host, first = wired("10.0.0.1/24", "fd00::1/64")
    second = Wire("wire1")
    host.net.add_device(second, ("10.1.0.1/24", "fd01::1/64"))
    return host, first, second


def code(call: pytest.ExceptionInfo[OSError]) -> int | None:
    return call.value.errno


@pytest.mark.parametrize(
    ("dest", "device", "gateway", "source"),
    [
        ("10.0.0.9", "wire0", "", "10.0.0.1"),
        ("10.1.0.9", "wire1", "", "10.1.0.1"),
        ("8.8.8.8", "wire0", "10.0.0.254", "10.0.0.1"),
        ("10.9.9.9", "wire1", "10.1.0.254", "10.1.0.1"),
        ("10.9.1.9", "wire0", "10.0.0.253", "10.0.0.1"),
        ("10.9.1.7", "wire1", "", "10.1.0.1"),
        ("127.0.0.5", "lo", "", "127.0.0.1"),
        ("10.0.0.1", "lo", "", "10.0.0.1"),
        ("fd01::9", "wire1", "", "fd01::1"),
        ("2001:db8::1", "wire1", "fd01::fe", "fd01::1"),
        ("::1", "lo", "", "::1"),
    ],
)
def test_the_longest_prefix_wins(dest: str, device: str, gateway: str, source: str) -> None:
    host, _, second = two_links()
    net = host.net
    net.route_add("default", "10.0.0.254")
    net.route_add("10.9.0.0/16", "10.1.0.254")
    net.route_add("10.9.1.0/24", "10.0.0.253")
    net.route_add("10.9.1.7/32", device=second)
    net.route_add("::/0", "fd01::fe")
    dst = net.route_output(parse(dest))
    assert dst.device.name == device
    assert dst.gateway == (parse(gateway) if gateway else b"")
    assert text(dst.saddr) == source
    assert dst.local == (device == "lo")


def test_of_two_routes_the_lower_metric_wins() -> None:
    host, _, _ = two_links()
    host.net.route_add("default", "10.0.0.254", metric=100)
    host.net.route_add("default", "10.1.0.254", metric=50)
    assert host.net.route_output(parse("8.8.8.8")).gateway == parse("10.1.0.254")
    host.net.route_del("default", metric=50)
    assert host.net.route_output(parse("8.8.8.8")).gateway == parse("10.0.0.254")


def test_a_route_may_say_source_and_mtu() -> None:
    host, _, _ = two_links()
    host.net.route_add("10.9.0.0/16", "10.0.0.254", src="10.1.0.1", mtu=1400)
    dst = host.net.route_output(parse("10.9.9.9"))
    assert (dst.saddr, dst.mtu) == (parse("10.1.0.1"), 1400)


def test_the_device_may_be_asked_for() -> None:
    host, _, second = two_links()
    host.net.route_add("default", "10.0.0.254")
    dst = host.net.route_output(parse("8.8.8.8"), oif=second.ifindex)
    assert (dst.device, dst.gateway, dst.saddr) == (second, b"", parse("10.1.0.1"))


def test_without_a_route_the_network_is_unreachable() -> None:
    host, _, second = two_links()
    for dest, oif in (("8.8.8.8", 0), ("2001:db8::1", 0), ("2001:db8::1", second.ifindex)):
        with pytest.raises(OSError, match="unreachable") as caught:
            host.net.route_output(parse(dest), oif=oif)
        assert code(caught) == errno.ENETUNREACH
    assert (host.mib["IpOutNoRoutes"], host.mib["Ip6OutNoRoutes"]) == (1, 2)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (RTN_UNREACHABLE, errno.EHOSTUNREACH),
        (RTN_BLACKHOLE, errno.EINVAL),
        (RTN_PROHIBIT, errno.EACCES),
    ],
)
def test_a_route_may_lead_nowhere(kind: int, number: int) -> None:
    host, _, _ = two_links()
    host.net.route_add("default", "10.0.0.254")
    host.net.route_add("10.9.0.0/16", type=kind)
    with pytest.raises(OSError, match="10.9") as caught:  # noqa: RUF043
        host.net.route_output(parse("10.9.1.1"))
    assert code(caught) == number


def test_a_source_that_is_not_ours_is_refused_unless_any_will_do() -> None:
    host, _, _ = two_links()
    with pytest.raises(OSError, match="no address of this host") as caught:
        host.net.route_output(parse("10.0.0.9"), parse("10.0.0.7"))
    assert code(caught) == errno.EINVAL
    dst = host.net.route_output(parse("10.0.0.9"), parse("10.0.0.7"), any_source=True)
    assert dst.saddr == parse("10.0.0.7")


@pytest.mark.parametrize(
    ("daddr", "saddr"),
    [(b"xyz", b""), (bytes(4), bytes(16)), (b"\x0a\0\0\x09", b"\xe0\0\0\x01")],
)
def test_what_is_no_address_is_refused(daddr: bytes, saddr: bytes) -> None:
    host, _, _ = two_links()
    with pytest.raises(OSError, match="Invalid") as caught:
        host.net.route_output(daddr, saddr)
    assert code(caught) == errno.EINVAL


def test_a_link_local_address_needs_its_link() -> None:
    host, wire = wired("fd00::1/64", ethernet=True)
    with pytest.raises(OSError, match="scope") as caught:
        host.net.route_output(parse("fe80::9"))
    assert code(caught) == errno.EINVAL
    dst = host.net.route_output(parse("fe80::9"), oif=wire.ifindex)
    assert (dst.device, dst.saddr) == (wire, parse("fe80::ff:fe00:1"))


def test_a_device_that_is_down_or_unknown_is_refused() -> None:
    host, wire, _ = two_links()
    wire.up = False
    with pytest.raises(OSError, match="device") as caught:
        host.net.route_output(parse("10.0.0.9"), oif=wire.ifindex)
    assert code(caught) == errno.ENETDOWN
    with pytest.raises(OSError, match="device") as caught:
        host.net.route_output(parse("10.0.0.9"), oif=99)
    assert code(caught) == errno.ENODEV


def test_a_host_without_addresses_cannot_send() -> None:
    host, wire = wired()
    host.net.route_add("default", device=wire)
    with pytest.raises(OSError, match="no address to send from") as caught:
        host.net.route_output(parse("8.8.8.8"))
    assert code(caught) == errno.EADDRNOTAVAIL


def test_a_change_of_routes_makes_what_was_found_invalid() -> None:
    host, _, _ = two_links()
    net = host.net
    net.route_add("default", "10.0.0.254")
    dst = net.route_output(parse("8.8.8.8"))
    assert net.route_output(parse("8.8.8.8")) is dst
    assert dst.valid()
    net.route_add("8.8.0.0/16", "10.1.0.254")
    assert not dst.valid()
    assert net.route_output(parse("8.8.8.8")).gateway == parse("10.1.0.254")


def test_routes_that_cannot_be_are_refused() -> None:
    host, _, second = two_links()
    add = host.net.route_add
    for arguments, number in (
        (("10.9.0.1/16", "10.0.0.254"), errno.EINVAL),
        (("10.9.0.0/16", "fd00::9"), errno.EINVAL),
        (("10.9.0.0/16",), errno.EINVAL),
        (("10.9.0.0/16", "192.168.0.1"), errno.ENETUNREACH),
        (("10.9.0.0/16", "10.0.0.254", None, "10.0.0.7"), errno.EINVAL),
        (("10.9.0.0/33", "10.0.0.254"), errno.EINVAL),
        (("nonsense", "10.0.0.254"), errno.EINVAL),
        (("10.9.0.0/16", None, Wire("stranger")), errno.ENODEV),
    ):
        with pytest.raises(OSError, match=r".") as caught:
            add(*arguments)  # type: ignore[arg-type]
        assert code(caught) == number
    add("10.9.0.0/16", device=second)
    with pytest.raises(OSError, match="exists") as caught:
        add("10.9.0.0/16", device=second)
    assert code(caught) == errno.EEXIST
    with pytest.raises(OSError, match="10") as caught:
        host.net.route_del("10.8.0.0/16")
    assert code(caught) == errno.ESRCH


def test_routes_are_listed_as_ip_prints_them() -> None:
    host, _, _ = two_links()
    host.net.route_add("default", "10.0.0.254", metric=5, mtu=1400)
    assert [str(route) for route in host.net.routes()] == [
        "default via 10.0.0.254 dev wire0 proto boot metric 5 mtu 1400",
        "127.0.0.0/8 dev lo proto kernel src 127.0.0.1",
        "10.0.0.0/24 dev wire0 proto kernel src 10.0.0.1",
        "10.1.0.0/24 dev wire1 proto kernel src 10.1.0.1",
        "fd00::/64 dev wire0 proto kernel",
        "fd01::/64 dev wire1 proto kernel",
    ]


def test_an_address_goes_with_its_route_and_broadcast() -> None:
    host, wire, _ = two_links()
    host.net.addr_add(wire, "10.0.0.3/24")
    host.net.addr_del(wire, "10.0.0.1/24")
    assert host.net.route_output(parse("10.0.0.9")).saddr == parse("10.0.0.3")
    host.net.addr_del(wire, "10.0.0.3/24")
    assert not host.net.is_local(parse("10.0.0.3"))
    with pytest.raises(OSError, match="unreachable"):
        host.net.route_output(parse("10.0.0.9"))
    wire.feed(v4("10.0.0.9", "10.0.0.255", b"x"))
    assert host.packets == []
    with pytest.raises(OSError, match="wire0") as caught:
        host.net.addr_del(wire, "10.0.0.3/24")
    assert code(caught) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("address", ["10.1.0.1/16", "224.0.0.1/8", "0.0.0.0/0", "ff02::1/64", "x"])
def test_addresses_that_cannot_be_are_refused(address: str) -> None:
    host, wire, _ = two_links()
    with pytest.raises(OSError, match=r".") as caught:
        host.net.addr_add(wire, address)
    assert code(caught) == (errno.EEXIST if address == "10.1.0.1/16" else errno.EINVAL)


# -- source addresses (RFC 6724) ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dest", "source"),
    [
        ("2001:db8:1::99", "2001:db8:1::1"),  # rule 8: longest prefix
        ("2001:db8:2::99", "2001:db8:2::1"),
        ("fd12::99", "fd12::1"),  # rule 6: labels
        ("2606:4700::1", "2001:db8:1::1"),  # rule 6: not the unique local one
        ("ff02::1", "fe80::ff:fe00:1"),  # rule 2: scope
        ("ff0e::1", "2001:db8:1::1"),
    ],
)
def test_the_source_is_chosen_by_the_rules(dest: str, source: str) -> None:
    host, wire = wired("fd12::1/64", "2001:db8:1::1/64", "2001:db8:2::1/64", ethernet=True)
    host.net.route_add("::/0", device=wire)
    index = wire.ifindex if dest.startswith("ff") else 0
    assert text(host.net.route_output(parse(dest), oif=index).saddr) == source


def test_a_deprecated_source_is_the_second_choice() -> None:
    host, _ = wired("2001:db8:1::1/64", "2001:db8:2::1/64")
    (first,) = [each for _, each in host.net.addresses() if each.address == parse("2001:db8:1::1")]
    first.deprecated = True
    host.net.bump_genid()
    assert text(host.net.route_output(parse("2001:db8:1::99")).saddr) == "2001:db8:2::1"


def test_the_address_of_the_outgoing_device_is_preferred() -> None:
    host, _, second = two_links()
    host.net.route_add("::/0", device=second)
    assert text(host.net.route_output(parse("fd99::1")).saddr) == "fd01::1"


def test_the_primary_address_of_the_subnet_is_the_source() -> None:
    host, _ = wired("192.168.0.1/24", "10.0.0.1/24", "10.0.0.2/24")
    assert text(host.net.route_output(parse("10.0.0.9")).saddr) == "10.0.0.1"


# -- path MTU -------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["10.0.0.9", "fd00::9"])
def test_a_smaller_path_mtu_is_remembered_for_a_while(address: str) -> None:
    host, _ = wired("10.0.0.1/24", "fd00::1/64")
    net, packed = host.net, parse(address)
    dst = net.route_output(packed)
    assert dst.mtu == 1500
    dst.update_pmtu(1400)
    assert dst.mtu == 1400
    assert not dst.valid()
    assert net.route_output(packed).mtu == 1400
    net.route_output(packed).update_pmtu(1450)  # a path does not become wider by being told
    assert net.route_output(packed).mtu == 1400
    host.pass_time(599)
    assert net.route_output(packed).mtu == 1400
    again = net.route_output(packed)
    host.pass_time(2)
    assert not again.valid()
    assert net.route_output(packed).mtu == 1500
    assert host.stack.timers.deadline is None


def test_other_paths_stay_as_wide() -> None:
    host, _ = wired("10.0.0.1/24")
    host.net.route_output(parse("10.0.0.9")).update_pmtu(1400)
    assert host.net.route_output(parse("10.0.0.8")).mtu == 1500


def test_too_small_a_path_mtu_is_not_believed() -> None:
    host, wire = wired("10.0.0.1/24", "fd00::1/64")
    host.net.route_output(parse("10.0.0.9")).update_pmtu(100)
    dst = host.net.route_output(parse("10.0.0.9"))
    assert dst.mtu == 552
    dst.xmit([b"x"], UDP, df=True)
    assert parse_untrusted(wire.take()[0]).frag == 0  # routers may fragment it
    host.net.route_output(parse("fd00::9")).update_pmtu(1000)
    assert host.net.route_output(parse("fd00::9")).mtu == 1500


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_packets_are_fragmented_to_the_path_mtu(address: str) -> None:
    left, right = pair()
    left.net.route_output(parse(address)).update_pmtu(1300)
    with pytest.raises(OSError, match="1300"):
        left.send(address, bytes(1400), df=True)
    left.send(address, bytes(1400), df=False)
    (packet,) = right.packets
    assert packet.reassembled


def test_path_mtus_take_bounded_memory() -> None:
    host, _ = wired("10.0.0.1/8")
    for number in range(5000):
        address = bytes((10, 1, number >> 8, number & 0xFF))
        host.net.route_output(address).update_pmtu(1400)
    assert len(host.net.pmtu.entries()) <= 4096


def test_what_a_sender_is_told_by_a_busy_device_is_what_it_raised() -> None:
    host, wire = wired("10.0.0.1/24")
    wire.refuse = OSError(errno.ENOBUFS, "full")
    with pytest.raises(OSError, match="full"):
        host.send("10.0.0.9", b"x")


def test_a_device_whose_address_another_has_is_not_added() -> None:
    host, first, _ = two_links()
    before = [str(each) for each in host.net.routes()], list(host.stack.devices)
    third = Wire("third")
    with pytest.raises(FileExistsError, match=r"10\.0\.0\.1: a device of the Stack has it"):
        host.net.add_device(third, ("10.7.0.1/24", "10.0.0.1/24"))
    assert ([str(each) for each in host.net.routes()], list(host.stack.devices)) == before
    host.net.del_device(first)
    host.net.add_device(third, ("10.7.0.1/24", "10.0.0.1/24"))
