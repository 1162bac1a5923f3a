"""What tests/interop/test_tun.py runs in a namespace: one scene, its findings as JSON.

The kernel is the peer. Its packets come through a TUN or TAP of ours and are answered here by hand,
so that nothing but the DEVICE layer is between the test and the kernel.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import socket
import struct
import sys
from collections.abc import Callable

from steertag.device import Device, Frame, dev_queue_xmit
from steertag.device.frame import (
    CHECKSUM_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    Offload,
)
from steertag.device.gro import Gro
from steertag.device.gso import on_the_wire_untrusted
from steertag.device.hostside import configure, loopback_up
from steertag.device.pcap import PcapDevice
from steertag.device.tun import TapDevice, TunDevice
from steertag.wire import tcp
from steertag.wire.checksum import checksum, partial_parts, pseudo_v6

OURS = {4: "10.9.0.2", 6: "fd00:9::2"}
HOSTS = {4: "10.9.0.1", 6: "fd00:9::1"}
ON_HOST = ("10.9.0.1/24", "fd00:9::1/64")
PATIENCE_MS = 20_000
UDP_SEGMENT = 103
MSS = 1000
PAYLOAD = bytes(range(251)) * 200  # 50200 octets
TCP, UDP = 6, 17


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


class Wire:
    """A device and the kernel behind it."""

    def __init__(self, kind: str, version: int, offload: bool, mtu: int = 1500) -> None:
        self.version = version
        made = TapDevice if kind == "tap" else TunDevice
        self.tun = made("", mtu=mtu, offload=offload)
        self.device: Device = self.tun
        configure(self.tun.name, ON_HOST, mtu=mtu)
        self.source, self.dest = packed(OURS[version]), packed(HOSTS[version])
        self.l2 = b""
        if kind == "tap":
            (shown,) = json.loads(os.popen(f"ip -j link show {self.tun.name}").read())
            self.kernel_mac = bytes.fromhex(shown["address"].replace(":", ""))
            ethertype = b"\x08\x00" if version == 4 else b"\x86\xdd"
            self.l2 = self.kernel_mac + self.tun.dev_addr + ethertype
            mac = self.tun.dev_addr.hex(":")
            os.system(
                f"ip neigh add {OURS[version]} lladdr {mac} dev {self.tun.name} nud permanent"
            )
        self.poll = select.poll()
        self.poll.register(self.tun.fileno(), select.POLLIN)

    def next_frame(self, protocol: int) -> Frame:
        """The next that is of our version and protocol."""
        l3 = len(self.l2)
        at = l3 + (9 if self.version == 4 else 6)
        while True:
            frame = self.device.receive()
            if frame is None:
                if not self.poll.poll(PATIENCE_MS):
                    raise TimeoutError("the kernel sent nothing")
            elif frame.data[l3] >> 4 == self.version and frame.data[at] == protocol:
                return frame

    def network_header(self, protocol: int, length: int) -> bytes:
        if self.version == 6:
            head = struct.pack("!IHBB", 6 << 28, length, protocol, 64)
            return self.l2 + head + self.source + self.dest
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 7, 0x4000, 64, protocol, 0)
        value = checksum(head, self.source, self.dest)
        return self.l2 + head[:10] + value.to_bytes(2, "big") + self.source + self.dest

    def transport(self, frame: Frame) -> memoryview:
        return frame.data[len(self.l2) + (20 if self.version == 4 else 40) :]

    def sum_is_right(self, packet: bytes | memoryview) -> bool:
        l3 = len(self.l2)
        l4 = l3 + (20 if self.version == 4 else 40)
        protocol = packet[l3 + (9 if self.version == 4 else 6)]
        body = bytes(packet[l4:])
        total = pseudo_v6(self.dest, self.source, protocol, len(body))
        return partial_parts([body], total) == 0xFFFF

    def send_udp(self, source: int, dest: int, payload: bytes, size: int) -> None:
        length = 8 + len(payload)
        value = pseudo_v6(self.source, self.dest, UDP, length)
        header = self.network_header(UDP, length)
        at = len(header)
        header += struct.pack("!HHHH", source, dest, length, value)
        kind = GSO_UDP_L4 if size else 0
        offload = Offload(at, 6, kind, size, len(header))
        dev_queue_xmit(self.device, [header, payload], offload)

    def send_tcp(
        self,
        ports: tuple[int, int],
        seq: int,
        ack: int,
        flags: int,
        payload: bytes = b"",
        options: bytes = b"",
    ) -> None:
        length = 20 + len(options) + len(payload)
        value = pseudo_v6(self.source, self.dest, TCP, length)
        network = self.network_header(TCP, length)
        header = network + tcp.emit(*ports, seq, ack, flags, 65535, options, checksum=value)
        large = len(payload) > MSS
        kind = (GSO_TCPV4 if self.version == 4 else GSO_TCPV6) if large else 0
        offload = Offload(len(network), 16, kind, MSS if large else 0, len(header))
        dev_queue_xmit(self.device, [header, payload], offload)


def host_socket(wire: Wire, kind: int) -> socket.socket:
    family = socket.AF_INET if wire.version == 4 else socket.AF_INET6
    sock = socket.socket(family, kind)
    sock.settimeout(PATIENCE_MS / 1000)
    return sock


# -- scenes ----------------------------------------------------------------------------------------


def udp_in(wire: Wire) -> dict[str, object]:
    """The kernel's UDP sends a super-datagram to us."""
    with host_socket(wire, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, MSS)
        sock.sendto(PAYLOAD, (OURS[wire.version], 9))
    octets, frames, packets, sums = b"", [], 0, True
    while len(octets) < len(PAYLOAD):
        frame = wire.next_frame(UDP)
        octets += bytes(wire.transport(frame)[8:])
        frames.append([len(frame), frame.csum, frame.gso_type, frame.gso_size])
        for packet in on_the_wire_untrusted(frame, len(wire.l2)):
            packets += 1
            sums = sums and wire.sum_is_right(packet)
    return {"right": octets == PAYLOAD, "frames": frames, "packets": packets, "sums": sums}


def udp_out(wire: Wire) -> dict[str, object]:
    """We send a super-datagram to the kernel's UDP."""
    with host_socket(wire, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((HOSTS[wire.version], 0))
        wire.send_udp(9, sock.getsockname()[1], PAYLOAD, MSS)
        datagrams = [sock.recv(65536) for _ in range(-(-len(PAYLOAD) // MSS))]
        wire.send_udp(9, sock.getsockname()[1], b"one by itself", 0)
        last = sock.recv(65536)
    return {
        "right": b"".join(datagrams) == PAYLOAD and last == b"one by itself",
        "sizes": sorted({len(one) for one in datagrams}),
        "sent": wire.device.stats.tx_packets,
    }


def open_by_kernel(wire: Wire) -> tuple[socket.socket, tuple[int, int], int]:
    """A connection that the kernel opens; ports from our side, and the next octet it will send."""
    sock = host_socket(wire, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.connect_ex((OURS[wire.version], 80))
    syn = tcp.parse_untrusted(wire.transport(wire.next_frame(TCP)))
    ports = (80, syn.source)
    options = struct.pack("!BBHBBBB", 2, 4, MSS, 1, 3, 3, 10)  # MSS, NOP, window scale 10
    wire.send_tcp(ports, 1000, syn.end_seq, tcp.SYN | tcp.ACK, options=options)
    tcp.parse_untrusted(wire.transport(wire.next_frame(TCP)))  # its acknowledgment
    sock.settimeout(PATIENCE_MS / 1000)
    return sock, ports, syn.end_seq


def tcp_in(wire: Wire) -> dict[str, object]:
    """The kernel's TCP sends a stream to us, which we acknowledge frame by frame."""
    sock, ports, expected = open_by_kernel(wire)
    with sock:
        sock.sendall(PAYLOAD)
        octets, sizes, sums, joined = b"", [], True, []
        gro = Gro(joined.append, len(wire.l2))
        while len(octets) < len(PAYLOAD):
            frame = wire.next_frame(TCP)
            sizes.append(frame.gso_size)
            if frame.csum == CHECKSUM_NONE:
                sums = sums and wire.sum_is_right(frame.data)
            for packet in on_the_wire_untrusted(frame, len(wire.l2)):
                sums = sums and wire.sum_is_right(packet)
                gro.receive(Frame(memoryview(packet)))
            found = tcp.parse_untrusted(wire.transport(frame))
            if found.seq == expected and len(found.payload):
                octets += bytes(found.payload)
                expected = found.end_seq & 0xFFFFFFFF
                wire.send_tcp(ports, 1001, expected, tcp.ACK)
        gro.flush()
        wire.send_tcp(ports, 1001, expected, tcp.RST | tcp.ACK)
    again = b"".join(bytes(tcp.parse_untrusted(wire.transport(one)).payload) for one in joined)
    return {
        "right": octets == PAYLOAD,
        "sizes": sorted(set(sizes)),
        "sums": sums,
        "joined_right": again == PAYLOAD,
        "joined": len(joined),
        "largest": max(map(len, joined)),
    }


def tcp_out(wire: Wire) -> dict[str, object]:
    """We send a super-segment to the kernel's TCP."""
    sock, ports, ack = open_by_kernel(wire)
    with sock:
        wire.send_tcp(ports, 1001, ack, tcp.ACK | tcp.PSH, PAYLOAD)
        octets = b""
        while len(octets) < len(PAYLOAD) and (more := sock.recv(65536)):
            octets += more
        wire.send_tcp(ports, 1001 + len(PAYLOAD), ack, tcp.RST | tcp.ACK)
    return {"right": octets == PAYLOAD, "sent": wire.device.stats.tx_packets}


BOTH_WAYS = ("udp_in", "udp_out", "tcp_in", "tcp_out")


def captured(wire: Wire) -> dict[str, object]:
    """Both ways of TCP and UDP with a capture: whole or cut, as the last arguments say."""
    device = PcapDevice(wire.tun, sys.argv[6], whole=sys.argv[7] == "whole")
    wire.device = device
    found = {
        name: SCENES[name](wire)["right"] for name in ("udp_in", "udp_out", "tcp_in", "tcp_out")
    }
    device.close()
    return found | {"failure": device.failure is not None}


SCENES: dict[str, Callable[[Wire], dict[str, object]]] = {
    "udp_in": udp_in,
    "udp_out": udp_out,
    "tcp_in": tcp_in,
    "tcp_out": tcp_out,
    "captured": captured,
}


# -- without traffic -------------------------------------------------------------------------------


def refused(make: Callable[[], object]) -> list[object]:
    try:
        make()
    except OSError as error:
        return [error.errno, error.strerror]
    return []


def naming() -> dict[str, object]:
    first = TunDevice("mine0")
    second = TunDevice()
    tap = TapDevice("wire%d")
    found: dict[str, object] = {
        "names": [first.name, second.name, tap.name],
        "busy": refused(lambda: TunDevice("mine0")),
        "wrong_kind": refused(lambda: TapDevice("lo")),
    }
    first.close()
    again = TunDevice("mine0")
    again.close()
    return found


def persistent() -> dict[str, object]:
    """An interface that was there before, used with and without offload."""
    os.system("ip tuntap add dev keep0 mode tun")
    features = []
    for offload in (True, False, True):
        device = TunDevice("keep0", offload=offload)
        configure("keep0", ON_HOST)
        features.append(device.features > 0)
        device.transmit([bytes((0x45, *bytes(19)))])
        device.close()
    (shown,) = json.loads(os.popen("ip -j -s link show keep0").read())
    return {
        "features": features,
        "received": shown["stats64"]["rx"]["bytes"],
        "wrong_kind": refused(lambda: TapDevice("keep0")),
    }


def forbidden() -> dict[str, object]:
    return {"tun": refused(lambda: TunDevice("mine0")), "tap": refused(TapDevice)}


def host_side() -> dict[str, object]:
    loopback_up()
    device = TunDevice("mine0")
    down = refused(lambda: device.transmit([bytes((0x45, *bytes(19)))]))
    configure("mine0", ON_HOST, mtu=9000, txqueuelen=77)
    configure("mine0", ON_HOST, txqueuelen=None)  # again, as it is
    shown = json.loads(os.popen("ip -j addr show mine0").read())
    loopback = json.loads(os.popen("ip -j link show lo").read())[0]["flags"]
    no_packet = refused(lambda: device.transmit([b"\x00"]))
    too_long = refused(lambda: device.transmit([bytes(1501)]))
    configure("mine0", up=False)
    down_again = refused(lambda: device.transmit([bytes((0x45, *bytes(19)))]))
    errors = {
        "no_such": refused(lambda: configure("nosuch0")),
        "mtu": refused(lambda: configure("mine0", mtu=1)),
    }
    stats = device.stats
    counters = [stats.tx_packets, stats.tx_dropped, stats.tx_errors]
    os.system("ip link del mine0")
    gone = [refused(device.receive), refused(lambda: device.transmit([bytes(20)]))]
    device.close()
    closed = refused(lambda: device.transmit([bytes(20)]))
    return errors | {
        "down": down,
        "down_again": down_again,
        "shown": shown,
        "loopback": loopback,
        "no_packet": no_packet,
        "too_long": too_long,
        "counters": counters,
        "gone": gone,
        "closed": closed,
        "after_close": device.receive() is None,
    }


PLAIN = {"naming": naming, "persistent": persistent, "forbidden": forbidden, "host_side": host_side}


def main() -> None:
    scene = sys.argv[1]
    if scene in PLAIN:
        found = PLAIN[scene]()
    else:
        kind, version, offload = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "offload"
        found = SCENES[scene](Wire(kind, version, offload, int(sys.argv[5])))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
