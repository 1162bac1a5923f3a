"""UDP of AF_INET_NEW_TCP on the wire: checksums, sizes, ICMP, memory, hostile packets."""

from __future__ import annotations

import errno
import random
import socket as std
import struct
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steertag.device.base import NETIF_F_ALL
from steertag.inet import const as c
from steertag.testing.families import expect_errno
from tests.unit.inet_sides import outcome, two_hosts
from tests.unit.inet_wire import packed, parse_udp, udp, wire

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
GROUP = {4: "Udp", 6: "Udp6"}
RECVERR = {4: (c.SOL_IP, c.IP_RECVERR), 6: (c.SOL_IPV6, c.IPV6_RECVERR)}
UNREACHABLE = (3, 3), (1, 4)
HOST_UNREACHABLE = (3, 1), (1, 3)
TOO_BIG = (3, 4), (2, 0)


@VERSIONS
@pytest.mark.parametrize("size", [0, 1, 7, 1000, 1452])
def test_a_datagram_goes_out_as_rfc_768_says(version: int, size: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.bind(("", 4000))
        payload = random.Random(size).randbytes(size)
        sock.sendto(payload, (link.far, 53))
        (sent,) = link.datagrams()
        assert (sent.source, sent.sport, sent.dest, sent.dport) == (link.near, 4000, link.far, 53)
        assert (sent.payload, sent.valid) == (payload, True)


@VERSIONS
def test_a_checksum_of_zero_is_sent_as_ones(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.bind(("", 4000))
        for filler in range(65536):
            body = struct.pack("!H", filler)
            ends = packed(link.near) + packed(link.far)
            words = ends + struct.pack("!HHHHH", c.IPPROTO_UDP, 10, 4000, 53, 10) + body
            if sum(struct.unpack(f"!{len(words) // 2}H", words)) % 0xFFFF == 0:
                break
        sock.sendto(body, (link.far, 53))
        (packet,) = link.packets()
        assert packet[-4:-2] == b"\xff\xff"
        assert parse_udp(packet).valid


@VERSIONS
def test_a_socket_may_do_without_checksums(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.setsockopt(std.SOL_SOCKET, c.SO_NO_CHECK, 1)
        sock.setsockopt(c.SOL_UDP, c.UDP_NO_CHECK6_TX, 1)
        sock.sendto(b"x", (link.far, 53))
        assert [sent.valid for sent in link.datagrams()] == [None]


@VERSIONS
def test_a_wrong_checksum_is_counted_and_dropped(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.bind(("", 5000))
        link.inject(udp(link.far, link.near, 53, 5000, b"x", check=1))
        expect_errno(lambda: sock.recv(9), errno.EAGAIN)
        assert link.host.mib[GROUP[version] + "InCsumErrors"] == 1
        assert link.host.mib[GROUP[version] + "InErrors"] == 1


def test_ipv4_allows_no_checksum_and_ipv6_on_request() -> None:
    for version in (4, 6):
        with wire(version) as link:
            sock = link.host.socket()
            sock.bind(("", 5000))
            bare = udp(link.far, link.near, 53, 5000, b"x", check=0)
            link.inject(bare)
            assert outcome(lambda s=sock: s.recv(9)) == (b"x" if version == 4 else "EAGAIN")  # type: ignore[misc]
            sock.setsockopt(c.SOL_UDP, c.UDP_NO_CHECK6_RX, 1)
            link.inject(bare)
            assert sock.recv(9) == b"x"


@VERSIONS
@pytest.mark.parametrize(
    ("length", "want"), [(0, None), (7, None), (8, b""), (11, b"012"), (99, None)]
)
def test_the_length_field_bounds_the_payload(version: int, length: int, want: bytes | None) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.bind(("", 5000))
        body = b"01234567"
        right = udp(link.far, link.near, 53, 5000, body[: max(length - 8, 0)])
        check = struct.unpack("!H", right[(26 if version == 4 else 46) :][:2])[0]
        link.inject(udp(link.far, link.near, 53, 5000, body, length=length, check=check))
        assert outcome(lambda: sock.recv(99)) == ("EAGAIN" if want is None else want)


@VERSIONS
def test_a_port_without_a_socket_is_answered(version: int) -> None:
    with wire(version) as link:
        link.inject(udp(link.far, link.near, 53, 5000, b"query"))
        (answer,) = link.packets()
        body = answer[20 if version == 4 else 40 :]
        assert (body[0], body[1]) == UNREACHABLE[0 if version == 4 else 1]
        assert body.endswith(b"query")
        assert link.host.mib[GROUP[version] + "NoPorts"] == 1


@VERSIONS
def test_what_is_larger_than_the_path_is_cut_into_fragments(version: int) -> None:
    with two_hosts(mtu=1500) as (near, far):
        server, client = far.socket(), near.socket()
        server.bind(("", 5000))
        data = random.Random(1).randbytes(5000)
        client.sendto(data, ("10.0.0.2" if version == 4 else "fd00::2", 5000))
        assert server.recv(9999) == data
        assert near.mib[("Ip" if version == 4 else "Ip6") + "FragCreates"] == 4


@VERSIONS
def test_a_router_that_carries_less_is_remembered(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.connect((link.far, 53))
        level = c.SOL_IP if version == 4 else c.SOL_IPV6
        option = c.IP_MTU if version == 4 else c.IPV6_MTU
        discover = c.IP_MTU_DISCOVER if version == 4 else c.IPV6_MTU_DISCOVER
        sock.setsockopt(level, discover, c.IP_PMTUDISC_DO)
        sock.send(bytes(1400))
        link.report(link.packets()[0], *TOO_BIG, 1300)
        expect_errno(lambda: sock.send(b""), errno.EMSGSIZE)  # what the message says
        assert sock.getsockopt(level, option) == 1300
        expect_errno(lambda: sock.send(bytes(1400)), errno.EMSGSIZE)  # what is known since
        sock.setsockopt(level, discover, c.IP_PMTUDISC_PROBE)
        sock.send(bytes(1400))
        assert len(link.packets()) == 1
        sock.setsockopt(level, discover, c.IP_PMTUDISC_WANT)
        sock.send(bytes(1400))
        assert [len(packet) <= 1300 for packet in link.packets()] == [True, True]


@VERSIONS
def test_an_error_is_told_with_what_was_sent_and_who_says_so(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.setsockopt(*RECVERR[version], 1)
        sock.sendto(b"payload", (link.far, 53))
        (sent,) = link.packets()
        link.report(sent, *HOST_UNREACHABLE)
        expect_errno(lambda: sock.recv(9), errno.EHOSTUNREACH)
        data, control, flags, name = sock.recvmsg(99, 200, std.MSG_ERRQUEUE)
        assert data == (b"" if version == 4 else b"payload")  # as much as the message quotes
        assert (flags, name[:2]) == (std.MSG_ERRQUEUE, (link.far, 53))
        ((level, kind, octets),) = control
        assert (level, kind) == RECVERR[version]
        err, origin, type_, code, _, info, _ = struct.unpack_from("=IBBBBII", octets)
        assert (err, origin, info) == (errno.EHOSTUNREACH, 2 if version == 4 else 3, 0)
        assert (type_, code) == HOST_UNREACHABLE[0 if version == 4 else 1]
        assert packed(link.far) in octets[16:]


@VERSIONS
def test_a_soft_error_is_not_told_without_asking(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.connect((link.far, 53))
        sock.send(b"x")
        link.report(link.packets()[0], (11, 0), (3, 0))  # time exceeded
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0


@VERSIONS
def test_an_error_about_another_s_datagram_is_nobody_s(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.bind(("", 4000))
        sock.connect((link.far, 53))
        forged = udp(link.near, link.far, 4001, 53, b"x")
        link.report(forged, *UNREACHABLE)
        link.report(udp(link.near, link.far, 4000, 54, b"x"), *UNREACHABLE)
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0


def test_the_error_queue_is_bounded() -> None:
    with wire(4) as link:
        sock = link.host.socket()
        sock.setsockopt(c.SOL_IP, c.IP_RECVERR, 1)
        for _ in range(200):
            outcome(lambda: sock.sendto(b"payload", (link.far, 53)))
            for sent in link.packets():
                link.report(sent, *HOST_UNREACHABLE)
        count = 0
        while outcome(lambda: sock.recvmsg(9, 0, std.MSG_ERRQUEUE)) != "EAGAIN":
            count += 1
        assert 0 < count <= 64


@VERSIONS
def test_a_full_receive_buffer_drops_and_counts(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.bind(("", 5000))
        sock.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 4000)
        packet = udp(link.far, link.near, 53, 5000, bytes(1000))
        for _ in range(20):
            link.inject(packet)
        got = 0
        while outcome(lambda: sock.recv(9999)) == bytes(1000):
            got += 1
        assert 0 < got < 8
        assert link.host.mib[GROUP[version] + "RcvbufErrors"] == 20 - got
        assert link.host.mib[GROUP[version] + "InDatagrams"] == got
        assert sock.kernel.sk.sk_rmem_alloc == 0


def test_the_protocol_s_memory_bounds_all_sockets_together() -> None:
    with wire(4) as link:
        link.host.stack.sysctl["net.new_udp.mem"] = (2, 4, 8)
        socks = [link.host.socket() for _ in range(10)]
        for number, sock in enumerate(socks):
            sock.bind(("", 5000 + number))
            for _ in range(5):
                link.inject(udp(link.far, link.near, 53, 5000 + number, bytes(1400)))
        prot = socks[0].kernel.sk.sk_prot
        assert prot.memory_allocated.value <= 8
        assert link.host.mib["UdpMemErrors"] > 0
        for sock in socks:
            sock.close()
        assert prot.memory_allocated.value == 0


def test_a_small_datagram_of_a_large_frame_keeps_little_memory() -> None:
    with wire(4, mtu=65535) as link:
        sock = link.host.socket()
        sock.bind(("", 5000))
        link.inject(udp(link.far, link.near, 53, 5000, b"x") + bytes(60000))
        (skb,) = sock.kernel.sk.sk_receive_queue
        assert len(skb.data.obj) == 1
        assert sock.recv(9) == b"x"


@VERSIONS
@pytest.mark.parametrize("features", [0, NETIF_F_ALL], ids=["bare", "offload"])
def test_segments_cross_a_link_whole_or_cut(version: int, features: int) -> None:
    with two_hosts() as (near, far):
        near.device("mem0").features = features
        server, whole, client = far.socket(), far.socket(), near.socket()
        server.bind(("", 5000))
        whole.bind(("", 5001))
        whole.setsockopt(c.SOL_UDP, c.UDP_GRO, 1)
        client.setsockopt(c.SOL_UDP, c.UDP_SEGMENT, 1400)
        data = random.Random(1).randbytes(30_000)
        for port in (5000, 5001):
            client.sendto(data, ("10.0.0.2" if version == 4 else "fd00::2", port))
        pieces = [server.recv(9999) for _ in range(22)]
        assert (b"".join(pieces), {len(each) for each in pieces[:-1]}) == (data, {1400})
        got = b""
        while len(got) < len(data):
            piece, control, _, _ = whole.recvmsg(65535, 64)
            got += piece
            size = struct.pack("=i", 1400)
            assert control == ([(c.SOL_UDP, c.UDP_GRO, size)] if len(piece) > 1400 else [])
        assert got == data


def test_segments_that_can_not_be_are_refused() -> None:
    with two_hosts() as (near, _):
        sock = near.socket()
        sock.connect(("10.0.0.2", 5000))
        sock.setsockopt(c.SOL_UDP, c.UDP_SEGMENT, 1473)
        expect_errno(lambda: sock.send(bytes(3000)), errno.EINVAL)
        sock.setsockopt(c.SOL_UDP, c.UDP_SEGMENT, 100)
        expect_errno(lambda: sock.send(bytes(100 * 128 + 1)), errno.EINVAL)
        sock.setsockopt(std.SOL_SOCKET, c.SO_NO_CHECK, 1)
        expect_errno(lambda: sock.send(bytes(200)), errno.EINVAL)
        sock.send(bytes(100))


def test_a_broadcast_needs_permission_and_reaches_everybody() -> None:
    with two_hosts() as (near, far):
        client, socks = near.socket(), [far.socket() for _ in range(3)]
        for sock, address in zip(socks, ("", "10.0.0.255", "10.0.0.2"), strict=True):
            sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
            sock.bind((address, 5000))
        expect_errno(lambda: client.sendto(b"x", ("10.0.0.255", 5000)), errno.EACCES)
        expect_errno(lambda: client.connect(("10.0.0.255", 5000)), errno.EACCES)
        client.setsockopt(std.SOL_SOCKET, std.SO_BROADCAST, 1)
        client.sendto(b"x", ("10.0.0.255", 5000))
        assert [outcome(lambda s=s: s.recv(9)) for s in socks] == [b"x", b"x", "EAGAIN"]  # type: ignore[misc]
        client.sendto(b"x", ("10.0.0.255", 5001))
        assert far.mib["UdpIgnoredMulti"] == 1
        assert far.mib["IcmpOutMsgs"] == 0


@VERSIONS
def test_options_and_ancillary_data_shape_the_header(version: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.setsockopt(c.SOL_IP, c.IP_TTL, 5)
        sock.setsockopt(c.SOL_IP, c.IP_TOS, 0x28)
        sock.sendto(b"x", (link.far, 53))
        if version == 4:
            control = [
                (c.SOL_IP, c.IP_TTL, struct.pack("=i", 9)),
                (c.SOL_IP, c.IP_TOS, b"\x10"),
            ]
        else:
            control = [
                (c.SOL_IPV6, c.IPV6_HOPLIMIT, struct.pack("=i", 9)),
                (c.SOL_IPV6, c.IPV6_TCLASS, struct.pack("=i", 0x10)),
            ]
        sock.sendmsg([b"y"], control, 0, (link.far, 53))
        assert [(sent.ttl, sent.tos) for sent in link.datagrams()] == [(5, 0x28), (9, 0x10)]


@VERSIONS
def test_the_source_may_be_chosen_for_one_datagram(version: int) -> None:
    with wire(version) as link:
        other = "10.0.0.77" if version == 4 else "fd00::77"
        link.host.net.addr_add(link.host.device("mem0"), f"{other}/{24 if version == 4 else 64}")
        sock = link.host.socket()
        for source, want in (
            (other, other),
            ("192.0.2.1" if version == 4 else "2001:db8::1", None),
        ):
            if version == 4:
                info = struct.pack("=i4s4s", 0, packed(source), bytes(4))
                control = [(c.SOL_IP, c.IP_PKTINFO, info)]
            else:
                control = [(c.SOL_IPV6, c.IPV6_PKTINFO, struct.pack("=16sI", packed(source), 0))]
            send = partial(sock.sendmsg, [b"x"], control, 0, (link.far, 53))
            if want is None:
                expect_errno(send, errno.EINVAL)
            else:
                send()
                assert [sent.source for sent in link.datagrams()] == [want]


def test_queues_answer_to_ioctl() -> None:
    with two_hosts() as (near, far):
        server, client = far.socket(), near.socket()
        server.bind(("", 5000))
        client.connect(("10.0.0.2", 5000))
        assert (server.ioctl(c.SIOCINQ), client.ioctl(c.SIOCOUTQ)) == (0, 0)
        client.send(b"12345")
        client.send(b"123")
        assert server.ioctl(c.SIOCINQ) == 5
        client.send(b"1234", std.MSG_MORE)
        assert client.ioctl(c.SIOCOUTQ) == 4
        expect_errno(lambda: server.ioctl(12345), errno.ENOTTY)


def test_what_is_held_back_is_gone_with_its_socket() -> None:
    with two_hosts() as (near, _):
        client = near.socket()
        client.connect(("10.0.0.2", 5000))
        client.send(bytes(1000), std.MSG_MORE)
        prot = client.kernel.sk.sk_prot
        client.close()
        assert (prot.inuse, near.mib["UdpOutDatagrams"]) == (0, 0)


def test_no_route_is_told_at_once() -> None:
    with two_hosts() as (near, _):
        sock = near.socket()
        expect_errno(lambda: sock.sendto(b"x", ("192.0.2.1", 53)), errno.ENETUNREACH)
        expect_errno(lambda: sock.connect(("2001:db8::1", 53)), errno.ENETUNREACH)
        near.net.route_add("default", via="10.0.0.2")
        sock.sendto(b"x", ("192.0.2.1", 53))
        send = lambda: sock.sendto(b"x", std.MSG_DONTROUTE, ("192.0.2.1", 53))  # noqa: E731
        expect_errno(send, errno.ENETUNREACH)


@VERSIONS
@settings(max_examples=60, deadline=None)
@given(octets=st.binary(max_size=80), cut=st.integers(0, 60))
def test_hostile_octets_neither_raise_nor_stay(version: int, octets: bytes, cut: int) -> None:
    with wire(version) as link:
        sock = link.host.socket()
        sock.bind(("", 5000))
        sock.setsockopt(*RECVERR[version], 1)
        whole = udp(link.far, link.near, 53, 5000, octets)
        head = 20 if version == 4 else 40
        for packet in (whole[: head + cut], whole[:head] + octets, octets):
            link.inject(packet)
        link.report(whole[head:] + octets, *UNREACHABLE)
        link.report(udp(link.near, link.far, 5000, 53, b"")[: head + cut], *UNREACHABLE)
        while isinstance(outcome(lambda: sock.recv(99)), bytes):
            pass
        sock.close()
        assert not list(link.host.stack.socks)
