"""Hosts for tests of the network layer: a clock that stands still, and links one can look into."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Final

from steertag.device import Device, Frame, Offload, memory_link
from steertag.device.base import ARPHRD_ETHER, ETH_HLEN
from steertag.family.skbuff import Buffer
from steertag.family.stack import Stack
from steertag.inet.ip.addr import parse
from steertag.inet.ip.net import IcmpError, InetNet, Packet, init_net
from steertag.wire import icmp, icmpv6
from steertag.wire.checksum import checksum, pseudo_v6
from steertag.wire.ipv4 import Ipv4
from steertag.wire.ipv6 import Ipv6

UDP: Final = 17


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Host:
    """A Stack with a network layer, and what its transport protocol 17 is given.

    Attributes:
        packets, errors: what the handlers of protocol 17 were called with.
        replies: every ICMP and ICMPv6 message that came in.
        told: every ICMP error about something sent from here.
    """

    def __init__(self, clock: Clock | None = None, seed: int = 1) -> None:
        self.clock = clock or Clock()
        self.stack = Stack(
            clock=self.clock, rng=random.Random(seed), load_family=None, load_observers=None
        )
        self.net: InetNet = init_net(self.stack, b"secret of 16 oct")
        self.packets: list[Packet] = []
        self.errors: list[IcmpError] = []
        self.replies: list[Packet] = []
        self.told: list[IcmpError] = []
        self.net.inet_add_protocol(UDP, self.packets.append, self.errors.append)
        self.net.raw_deliver.append(self._look)
        self.net.raw_err.append(self.told.append)

    def _look(self, packet: Packet) -> bool:
        if packet.protocol in (1, 58):
            self.replies.append(packet)
        return False

    @property
    def mib(self) -> dict[str, int]:
        return self.net.mib

    def send(self, address: str, payload: bytes, *, df: bool = False, oif: int = 0) -> None:
        """One packet of protocol 17."""
        self.net.route_output(parse(address), oif=oif).xmit([payload], UDP, df=df)

    def ping(self, address: str, size: int = 56, *, df: bool = False) -> None:
        dst = self.net.route_output(parse(address))
        data = bytes(range(256)) * (size // 256) + bytes(size % 256)
        if dst.family == 4:
            dst.xmit([icmp.Icmp(icmp.ECHO, 0, 1).emit(data), data], 1, df=df)
        else:
            message = icmpv6.Icmpv6(icmpv6.ECHO_REQUEST, 0, 1)
            dst.xmit([message.emit(dst.saddr, dst.daddr, data), data], 58, df=df)

    def types(self) -> list[int]:
        """The types of the ICMP messages that came in since this was asked last."""
        found = [packet.data[0] for packet in self.replies]
        self.replies.clear()
        return found

    def pass_time(self, seconds: float) -> None:
        """Let timers expire, one after the other."""
        end = self.clock.now + seconds
        with self.stack.lock:
            while (deadline := self.stack.timers.deadline) is not None and deadline <= end:
                self.clock.now = max(self.clock.now, deadline)
                self.stack.timers.run(self.clock.now)
            self.clock.now = end


class Wire(Device):
    """A device whose other end is the test: `sent` is what left, `feed` brings something in."""

    def __init__(self, name: str = "wire0", mtu: int = 1500, *, ethernet: bool = False) -> None:
        super().__init__(name, mtu)
        self.sent: list[bytes] = []
        self.refuse: OSError | None = None
        self._queue: deque[Frame] = deque()
        if ethernet:
            as_ethernet(self, 1)

    def transmit(self, parts: Sequence[Buffer], offload: Offload | None = None) -> None:
        if self.refuse is not None:
            raise self.refuse
        octets = b"".join(parts)
        self.count_transmit(len(octets), offload)
        self.sent.append(octets)

    def receive(self) -> Frame | None:
        return self._queue.popleft() if self._queue else None

    def close(self) -> None:
        self._queue.clear()

    def feed(self, *frames: bytes) -> None:
        self._queue.extend(Frame(memoryview(frame)) for frame in frames)
        if self.on_receive is not None:
            self.on_receive()

    def take(self) -> list[bytes]:
        """What left since this was asked last."""
        sent, self.sent = self.sent, []
        return sent


def as_ethernet(device: Device, number: int) -> None:
    device.type = ARPHRD_ETHER
    device.hard_header_len = ETH_HLEN
    device.dev_addr = mac(number)


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def wired(*addresses: str, mtu: int = 1500, ethernet: bool = False) -> tuple[Host, Wire]:
    """A host on a link that the test holds."""
    host, wire = Host(), Wire(mtu=mtu, ethernet=ethernet)
    host.net.add_device(wire, addresses)
    return host, wire


def pair(mtu: int = 1500, *, ethernet: bool = False, features: int = 0) -> tuple[Host, Host]:
    """Two hosts on a link: 10.0.0.1 and .2, fd00::1 and ::2."""
    clock = Clock()
    hosts = (Host(clock, 1), Host(clock, 2))
    for number, (host, device) in enumerate(
        zip(hosts, memory_link(mtu=mtu, features=features), strict=True), 1
    ):
        if ethernet:
            as_ethernet(device, number)
        host.net.add_device(device, (f"10.0.0.{number}/24", f"fd00::{number}/64"))
    return hosts


def v4(
    source: str, dest: str, payload: bytes = b"", protocol: int = UDP, **fields: int | bytes
) -> bytes:
    """An IPv4 packet; `fields` as of `Ipv4`."""
    header = Ipv4(parse(source), parse(dest), protocol, **fields)  # type: ignore[arg-type]
    return header.emit(len(payload)) + payload


def v6(
    source: str, dest: str, payload: bytes = b"", protocol: int = UDP, hops: int = 64, tos: int = 0
) -> bytes:
    return Ipv6(parse(source), parse(dest), protocol, hops, tos).emit(len(payload)) + payload


def icmp4(source: str, dest: str, message: icmp.Icmp, data: bytes = b"", **fields: int) -> bytes:
    return v4(source, dest, message.emit(data) + data, 1, **fields)


def icmp6(
    source: str, dest: str, message: icmpv6.Icmpv6, body: bytes = b"", hops: int = 64
) -> bytes:
    octets = message.emit(parse(source), parse(dest), body) + body
    return v6(source, dest, octets, 58, hops)


def valid_icmp6(packet: bytes) -> bool:
    pseudo = pseudo_v6(packet[8:24], packet[24:40], 58, len(packet) - 40)
    return checksum(packet[40:], initial=pseudo) == 0
