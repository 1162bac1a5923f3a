"""A TCP sender by itself: a TcpSock over a Stack whose clock stands still, and a route that keeps
what is sent. Tests play the peer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from steertag import Proto, Stack
from steertag.family.const import TcpState
from steertag.family.sock import sk_alloc, sock_init_data
from steertag.inet.ip.net import InetNet
from steertag.inet.mib import Mib
from steertag.inet.tcp import ack, output, timer
from steertag.inet.tcp.cong.registry import (
    tcp_assign_congestion_control,
    tcp_init_congestion_control,
    tcp_set_congestion_control,
)
from steertag.inet.tcp.hash import TcpHash
from steertag.inet.tcp.ofo import OfoQueue
from steertag.inet.tcp.rtx import RtxQueue
from steertag.inet.tcp.skb import (
    TCPCB_EVER_RETRANS,
    TCPCB_LOST,
    TCPCB_SACKED_ACKED,
    TCPCB_SACKED_RETRANS,
    TcpSkb,
)
from steertag.inet.tcp.sock import TcpSock
from steertag.inet.tcp.sysctl import tcp_tables
from steertag.wire.seq import add
from steertag.wire.tcp import ACK, Segment, parse_untrusted

MSS = 1000


@dataclass
class Sent:
    """A segment as it left: its header and octets of payload, and when."""

    at: float
    header: Segment
    length: int
    tos: int

    def span(self, start: int) -> tuple[int, int]:
        """First and one past the last octet, counted from `start`."""
        first = (self.header.seq - start) & 0xFFFFFFFF
        return first, first + self.length


class Route:
    """Quacks like a Dst. What is handed to it is kept in `sent`."""

    family = 4
    saddr, daddr = b"\x0a\0\0\1", b"\x0a\0\0\2"

    def __init__(self, clock: Clock, mtu: int) -> None:
        self.mtu = mtu
        self.sent: list[Sent] = []
        self.confirmed = 0
        self.broken = False
        self._clock = clock

    def valid(self) -> bool:
        return True

    def confirm(self) -> None:
        self.confirmed += 1

    def pseudo(self, protocol: int, length: int) -> int:
        return 0

    def xmit(
        self,
        parts: Sequence[bytes | memoryview],
        protocol: int,
        *,
        ttl: int = 0,
        tos: int = 0,
        df: bool = True,
        offload: object = None,
        flowlabel: int = 0,
    ) -> None:
        if self.broken:
            raise OSError("no buffers")
        octets = b"".join(parts)
        header = parse_untrusted(memoryview(octets))
        self.sent.append(Sent(self._clock.now, header, len(header.payload), tos))


class OneRoute(InetNet):
    """A network layer that knows that route."""

    def __init__(self, route: Route) -> None:
        self.route = route

    def route_output(self, daddr: bytes, saddr: bytes = b"", oif: int = 0) -> Route:  # type: ignore[override]
        return self.route


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Net:
    def __init__(self, stack: Stack) -> None:
        self.early_retrans = stack.sysctl.table("net.ipv4.tcp_early_retrans").data
        self.pending_acks: list[TcpSock] = []


class Sender:
    """An established connection with a window of 10 MB, and the peer's end of it.

    Sequence numbers in calls and answers are offsets from the first octet of data.
    """

    def __init__(
        self,
        *,
        sack: bool = True,
        timestamps: bool = False,
        start: int = 0xFFFFF000,
        congestion: str = "reno",
        cwnd: int = 10,
        rtt: float = 0.1,
        window: int = 10_000_000,
    ) -> None:
        self.clock = Clock()
        self.stack = Stack(clock=self.clock, rng=random.Random(1), load_family=None)
        for table in tcp_tables([1 << 20] * 3, [4096, 1 << 16, 1 << 22], [4096, 1 << 17, 1 << 22]):
            self.stack.sysctl.register(table)
        prot = Proto(name="T", owner="tests", obj_size=TcpSock, h=TcpHash())
        self.stack.proto_register(prot)
        sk = sk_alloc(self.stack, 46, prot)
        assert isinstance(sk, TcpSock)
        sock_init_data(None, sk)
        self.sk = sk
        self.start = start
        self.rtt = rtt
        self.route = Route(self.clock, MSS + 40 + (12 if timestamps else 0))
        self.stack.generic["inet"] = OneRoute(self.route)
        sk.dst = self.route  # type: ignore[assignment]
        sk.mib = Mib()
        sk.net = Net(self.stack)  # type: ignore[assignment]
        sk.rtx, sk.ofo = RtxQueue(sk), OfoQueue()
        sk.inet_saddr, sk.inet_daddr = self.route.saddr, self.route.daddr
        sk.inet_num, sk.inet_dport = 1, 2
        timer.tcp_init_xmit_timers(sk)
        tcp_assign_congestion_control(sk)
        tcp_set_congestion_control(sk, congestion)
        sk.sk_state = TcpState.TCP_ESTABLISHED
        sk.sack_ok, sk.ts_ok = sack, timestamps
        sk.snd_una = sk.snd_nxt = sk.write_seq = sk.snd_sml = sk.rtt_seq = start
        sk.snd_wnd = sk.max_window = window
        sk.rcv_nxt = sk.rcv_wup = sk.snd_wl1 = 5000
        sk.rcv_wnd = sk.rcv_ssthresh = sk.window_clamp = 65535
        sk.cwnd_usage_seq = start
        sk.cwnd_stamp = self.clock.now
        output.tcp_sync_mss(sk, self.route.mtu)
        assert sk.mss_cache == MSS
        sk.cwnd = cwnd * MSS
        sk.nonagle = 1
        tcp_init_congestion_control(sk)

    # -- what the user does ---------------------------------------------------------------------

    def queue(self, octets: int) -> None:
        """Write, without sending."""
        sk = self.sk
        while octets:
            skb = TcpSkb(sk.write_seq)
            skb.length = min(octets, 65000)
            skb.parts = [bytes(skb.length)]
            skb.end_seq = sk.write_seq = add(sk.write_seq, skb.length)
            sk.sk_wmem_queued += skb.truesize
            sk.send_queue.append(skb)
            octets -= skb.length

    def send(self, octets: int) -> list[tuple[int, int]]:
        """Write and push; what left, as spans."""
        self.queue(octets)
        return self.push()

    def push(self) -> list[tuple[int, int]]:
        before = len(self.route.sent)
        output.tcp_push_pending_frames(self.sk)
        return self.spans(before)

    def spans(self, since: int = 0) -> list[tuple[int, int]]:
        return [sent.span(self.start) for sent in self.route.sent[since:]]

    # -- what the peer does ---------------------------------------------------------------------

    def segment(
        self, upto: int, *, window: int | None = None, flags: int = ACK, tsecr: float | None = None
    ) -> Segment:
        seg = Segment()
        seg.source, seg.dest = 2, 1
        seg.seq = seg.end_seq = self.sk.rcv_nxt
        seg.ack_seq = add(self.start, upto)
        seg.flags = flags
        seg.window = self.sk.snd_wnd >> self.sk.snd_wscale if window is None else window
        seg.urgent = 0
        seg.options = seg.payload = memoryview(b"")
        seg.tsval, seg.tsecr = None, 0
        if self.sk.ts_ok:
            at = self.clock.now - self.rtt if tsecr is None else tsecr
            seg.tsval = 1
            seg.tsecr = output.tcp_timestamp(self.sk, at)
        return seg

    def ack(
        self,
        upto: int,
        *sacks: tuple[int, int],
        data: bool = False,
        window: int | None = None,
        flags: int = ACK,
        tsecr: float | None = None,
    ) -> list[tuple[int, int]]:
        """An acknowledgement comes; what left in answer, as spans."""
        before = len(self.route.sent)
        seg = self.segment(upto, window=window, flags=flags, tsecr=tsecr)
        blocks = tuple((add(self.start, low), add(self.start, high)) for low, high in sacks)
        self.taken = ack.tcp_ack(self.sk, seg, self.clock.now, blocks, data=data)
        output.tcp_data_snd_check(self.sk, self.clock.now)
        return self.spans(before)

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """Time passes; timers run when they are due. What left meanwhile, as spans."""
        before = len(self.route.sent)
        end = self.clock.now + seconds
        timers = self.stack.timers
        while (due := timers.deadline) is not None and due <= end:
            self.clock.now = max(self.clock.now, due)
            timers.run(self.clock.now)
        self.clock.now = end
        return self.spans(before)

    # -- what can be seen -----------------------------------------------------------------------

    def mib(self, name: str) -> int:
        return self.sk.mib["TcpExt" + name]

    @property
    def in_flight(self) -> int:
        return ack.tcp_packets_in_flight(self.sk)

    def warm(self) -> None:
        """One segment there and back: the round trip is known, 0 is moved behind it."""
        self.send(MSS)
        self.wait(self.rtt)
        self.ack(MSS)
        self.start = self.sk.snd_una
        self.route.sent.clear()

    def check_counts(self) -> None:
        """The sums are those of the queue's tags."""
        sk = self.sk
        sums = dict.fromkeys((TCPCB_SACKED_ACKED, TCPCB_LOST, TCPCB_SACKED_RETRANS), 0)
        expected = None
        for skb in sk.rtx:
            assert expected is None or skb.seq == expected
            expected = skb.end_seq
            for bit in sums:
                if skb.sacked & bit:
                    sums[bit] += (skb.end_seq - skb.seq) & 0xFFFFFFFF
            assert not (skb.sacked & TCPCB_SACKED_RETRANS and not skb.sacked & TCPCB_EVER_RETRANS)
        assert expected is None or expected == sk.snd_nxt
        if sk.sack_ok:
            assert sk.sacked_out == sums[TCPCB_SACKED_ACKED]
        assert sk.lost_out == sums[TCPCB_LOST]
        assert sk.retrans_out == sums[TCPCB_SACKED_RETRANS]
        queued = sum(skb.truesize for skb in sk.rtx) + sum(skb.truesize for skb in sk.send_queue)
        assert sk.sk_wmem_queued == queued
