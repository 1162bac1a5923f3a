"""Urgent data that comes in (tcp_urg, tcp_check_urg; RFC 9293 section 3.8.5, RFC 6093)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.family.const import SOCK_URGINLINE
from steertag.wire.seq import add, after, before, diff
from steertag.wire.tcp import URG

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Segment


def tcp_urg(sk: TcpSock, seg: Segment) -> None:
    """What a segment says of urgent data: one octet, kept beside the stream."""
    if seg.flags & URG:
        _check_urg(sk, seg)
    if sk.urg_wait:
        at = diff(sk.urg_seq, seg.seq)
        if 0 <= at < len(seg.payload):
            sk.urg_data = seg.payload[at]
            sk.urg_wait = False
            sk.sk_data_ready(sk)


def _check_urg(sk: TcpSock, seg: Segment) -> None:
    pointer = seg.urgent
    if pointer and not sk.sk_stack.sysctl["net.ipv4.tcp_stdurg"]:
        pointer -= 1
    at = add(seg.seq, pointer)
    if after(sk.copied_seq, at) or before(at, sk.rcv_nxt):
        return
    if (sk.urg_wait or sk.urg_data is not None) and not after(at, sk.urg_seq):
        return
    if sk.urg_seq == sk.copied_seq != sk.rcv_nxt and not sk.sk_flags & SOCK_URGINLINE:
        _skip_old_urgent(sk)
    sk.urg_wait = True
    sk.urg_data = None
    sk.urg_seq = at
    sk.pred_ok = False
    sk.sk_data_ready(sk)


def _skip_old_urgent(sk: TcpSock) -> None:
    """The reader stands before an urgent octet, and there is another: the old one is no part of
    the stream."""
    head = sk.sk_receive_queue.peek()
    if (sk.urg_data is None and not sk.urg_taken and not sk.urg_wait) or head is None:
        return
    sk.urg_taken = False
    sk.copied_seq = add(sk.copied_seq, 1)
    head.pull(1)
    if not len(head):
        sk.sk_receive_queue.popleft().free()
