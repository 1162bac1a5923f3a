"""Segments that no connection sends: RST and ACK in answer to a segment (RFC 9293 section 3.10.7);
and the limits on ACKs that an attacker can ask for (RFC 5961)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.device.frame import Offload
from steertag.inet.const import IPPROTO_TCP
from steertag.inet.ip.packet import PACKET_HOST
from steertag.inet.sock import BROADCAST, is_link_local, is_multicast, is_wildcard
from steertag.inet.tcp import output
from steertag.wire.seq import after, before
from steertag.wire.tcp import ACK, CHECKSUM_AT, RST, SYN, emit, timestamps_option

if TYPE_CHECKING:
    from steertag.inet.ip.net import InetNet
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.hash import Key
    from steertag.inet.tcp.net import TcpNet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Segment

_UNLIMITED: Final = 2**31 - 1


def tcp_send_control(
    net: InetNet,
    ends: Key,
    *,
    seq: int,
    ack_seq: int,
    flags: int,
    window: int = 0,
    options: bytes = b"",
    stamps: tuple[int, int] | None = None,
    tos: int = 0,
    ttl: int = 0,
    oif: int = 0,
) -> bool:
    """Send a segment without data, of no sock (ip_send_unicast_reply). False: it could not leave.

    Args:
        ends: (own address, own port, peer's address, peer's port).
        stamps: (tsval, tsecr) for a timestamps option in front of `options`.
    """
    laddr, lport, raddr, rport = ends
    if stamps is not None:
        options = timestamps_option(*stamps) + options
    length = 20 + len(options)
    try:
        dst = net.route_output(raddr, laddr, oif)
        header = emit(
            lport,
            rport,
            seq,
            ack_seq,
            flags,
            window,
            options,
            checksum=dst.pseudo(IPPROTO_TCP, length),
        )
        dst.xmit(
            [header],
            IPPROTO_TCP,
            ttl=ttl,
            tos=tos,
            offload=Offload(0, CHECKSUM_AT, 0, 0, length),
        )
    except OSError:
        return False  # as good as lost on the way
    net.mib["TcpOutSegs"] += 1
    return True


def is_for_us_alone(packet: Packet) -> bool:
    """Neither multicast nor broadcast, at either end: what may be answered."""
    saddr = packet.saddr
    return packet.pkt_type == PACKET_HOST and not (
        is_multicast(saddr) or saddr == BROADCAST or is_wildcard(saddr)
    )


def ifindex_of(packet: Packet) -> int:
    """The number of the interface that it came in by."""
    return packet.device.ifindex


def tcp_send_reset(net: InetNet, packet: Packet, seg: Segment) -> None:
    """Answer with RST, unless the segment is one or was not sent to us alone (tcp_v4_send_reset).

    RFC 9293 section 3.10.7.1: it takes its sequence number from the segment's acknowledgement, or
    else it acknowledges the segment.
    """
    flags = seg.flags
    if flags & RST or not is_for_us_alone(packet):
        return
    if flags & ACK:
        seq, ack_seq, answer = seg.ack_seq, 0, RST
    else:
        seq, ack_seq, answer = 0, seg.end_seq, RST | ACK
    ends = (packet.daddr, seg.dest, packet.saddr, seg.source)
    if tcp_send_control(
        net,
        ends,
        seq=seq,
        ack_seq=ack_seq,
        flags=answer,
        tos=packet.tos & ~3,
        oif=ifindex_of(packet) if is_link_local(packet.saddr) else 0,
    ):
        net.mib["TcpOutRsts"] += 1


def in_window(seg: Segment, left: int, right: int) -> bool:
    """At least one number of the segment lies in the window (tcp_in_window)."""
    if seg.seq == left or (after(seg.end_seq, left) and before(seg.seq, right)):
        return True
    return seg.seq == right and seg.seq == seg.end_seq


# -- limits ---------------------------------------------------------------------------------------


def oow_rate_limited(net: TcpNet, seg: Segment, counter: str, last: float, now: float) -> bool:
    """Whether an ACK in answer to an unacceptable segment, the last such having been sent at
    `last` (0.0: never), is too much (__tcp_oow_rate_limited).

    What takes room in the stream always deserves one.
    """
    return not takes_room(seg) and _too_soon(net, counter, last, now)


def _too_soon(net: TcpNet, counter: str, last: float, now: float) -> bool:
    if last:
        elapsed = now - last
        if 0.0 <= elapsed < net.ip.stack.sysctl["net.ipv4.tcp_invalid_ratelimit"] / 1000.0:
            net.ip.mib["TcpExt" + counter] += 1
            return True
    return False


def tcp_oow_rate_limited(sk: TcpSock, seg: Segment, counter: str, now: float) -> bool:
    """The same for a connection; when it is not too much, it is counted as sent.

    `counter`: the TcpExt counter to go up if it is, as "TCPACKSkippedSeq".
    """
    if oow_rate_limited(sk.net, seg, counter, sk.last_oow_ack_time, now):
        return True
    if not takes_room(seg):
        sk.last_oow_ack_time = now
    return False


def takes_room(seg: Segment) -> bool:
    """In the stream: such a segment is no part of two ends' answering each other for ever."""
    return seg.seq != seg.end_seq and not seg.flags & SYN


def tcp_send_challenge_ack(sk: TcpSock, now: float) -> None:
    """An ACK that makes a real peer show itself (RFC 5961), as often as the limits allow: per
    connection sysctl tcp_invalid_ratelimit, of the whole Stack tcp_challenge_ack_limit a second.

    The second limit is randomised, so that nobody can tell from it what others were sent.
    """
    net = sk.net
    if _too_soon(net, "TCPACKSkippedChallenge", sk.last_oow_ack_time, now):
        return
    sk.last_oow_ack_time = now
    limit = sk.sk_stack.sysctl["net.ipv4.tcp_challenge_ack_limit"]
    if limit != _UNLIMITED:
        second = int(now)
        if second != net.challenge_at:
            net.challenge_at = second
            half = (limit + 1) >> 1
            net.challenge_left = half + (sk.sk_stack.rng.randrange(limit) if limit else 0)
        if net.challenge_left <= 0:
            return
        net.challenge_left -= 1
    sk.mib["TcpExtTCPChallengeACK"] += 1
    output.tcp_send_ack(sk)
