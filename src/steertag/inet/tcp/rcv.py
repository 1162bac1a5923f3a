"""Segments come in here: lookup, checks, and on to whoever it is for (tcp_v4_rcv)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from steertag.device.frame import CHECKSUM_NONE
from steertag.errors import WireError
from steertag.family.const import TcpState
from steertag.inet.ip.packet import PACKET_HOST, l4_checksum_ok
from steertag.inet.tcp import fastopen, listen, output, request, reset
from steertag.inet.tcp.input import tcp_rcv_established, tcp_rcv_state_process
from steertag.inet.tcp.request import RequestSock
from steertag.inet.tcp.timewait import TimeWaitSock, tcp_timewait_state_process
from steertag.wire.tcp import parse_untrusted

if TYPE_CHECKING:
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.net import TcpNet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Segment


def tcp_receiver(net: TcpNet) -> Callable[[Packet], None]:
    """The handler of protocol 6 for a Stack."""
    ehash = net.hash.ehash
    mib = net.ip.mib
    clock = net.ip.stack.clock
    established = TcpState.TCP_ESTABLISHED

    def tcp_rcv(packet: Packet) -> None:
        """A segment, of whatever octets; it never raises for them."""
        mib["TcpInSegs"] += 1
        try:
            seg = parse_untrusted(packet.data)
        except WireError:
            mib["TcpInErrs"] += 1
            return
        if packet.csum == CHECKSUM_NONE and not l4_checksum_ok(packet):
            mib["TcpInCsumErrors"] += 1
            mib["TcpInErrs"] += 1
            return
        sk = ehash.get((packet.daddr, seg.dest, packet.saddr, seg.source))
        if sk is None:
            _nobody(net, packet, seg, clock())
        elif isinstance(sk, RequestSock):
            _request(net, sk, packet, seg, clock())
        elif isinstance(sk, TimeWaitSock):
            tcp_timewait_state_process(sk, packet, seg)
        elif packet.ttl < sk.min_ttl:
            mib["TcpExtTCPMinTTLDrop"] += 1
        elif sk.sk_state == established:
            tcp_rcv_established(sk, packet, seg, clock())
        elif sk.fastopen_rsk is not None:
            _fastopen_child(sk, packet, seg, clock())
        else:
            tcp_rcv_state_process(sk, packet, seg, clock())

    return tcp_rcv


def _nobody(net: TcpNet, packet: Packet, seg: Segment, now: float) -> None:
    """No connection has these numbers: a listener's, or nobody's."""
    if packet.pkt_type != PACKET_HOST:
        return
    listener = net.hash.lookup_listener(
        net.ip, packet.daddr, seg.dest, packet.saddr, seg.source, reset.ifindex_of(packet)
    )
    if listener is None:
        reset.tcp_send_reset(net.ip, packet, seg)
    elif packet.ttl < listener.min_ttl:
        net.ip.mib["TcpExtTCPMinTTLDrop"] += 1
    else:
        listen.tcp_listen_rcv(listener, packet, seg, now)


def _request(net: TcpNet, req: RequestSock, packet: Packet, seg: Segment, now: float) -> None:
    listener = req.listener
    if listener.sk_state != TcpState.TCP_LISTEN:
        req.dequeue()
        _nobody(net, packet, seg, now)
    elif packet.ttl < listener.min_ttl:
        net.ip.mib["TcpExtTCPMinTTLDrop"] += 1
    else:
        request.tcp_check_req(req, packet, seg, now)


def _fastopen_child(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> None:
    """Data may be flowing already, and still the SYN-ACK isn't acknowledged."""
    if not request.tcp_check_fastopen_req(sk, packet, seg, now):
        return
    before = sk.snd_una
    tcp_rcv_state_process(sk, packet, seg, now)
    if sk.fastopen_rsk is not None and (
        sk.sk_state not in (TcpState.TCP_SYN_RECV, TcpState.TCP_CLOSE) or sk.snd_una != before
    ):
        fastopen.tcp_rcv_synrecv_state_fastopen(sk, now)
        output.tcp_push_pending_frames(sk)  # what waits gets its timer now
