"""A piece of the outgoing stream: what the write queue and the retransmission queue hold."""

from __future__ import annotations

from typing import Final

from steertag.family.const import SKB_OVERHEAD
from steertag.family.skbuff import Buffer

# `sacked` bits (TCP_SKB_CB, net/ipv4/tcp.h)
TCPCB_SACKED_ACKED: Final = 0x01
TCPCB_SACKED_RETRANS: Final = 0x02
TCPCB_LOST: Final = 0x04
TCPCB_EVER_RETRANS: Final = 0x80


class TcpSkb:
    """One super-segment of the stream, up to 64 KiB: the device, or its fallback, cuts it to MSS.

    Attributes:
        seq, end_seq: sequence numbers; SYN and FIN count one each.
        flags: TCP flags it carries beside ACK: SYN, FIN, PSH, URG (wire/tcp.py).
        parts: the payload, in order; never changed in place.
        length: octets of payload.
        sacked: TCPCB_* bits.
        sent_at: when it was sent last, seconds; 0.0 before. RACK's xmit_ts.
        first_sent_at: when it was sent first.
        retrans: how often it was sent again.
        delivered, delivered_at, first_tx, app_limited: the connection's when it was sent (rate.py).
        in_flight: octets in flight when it was sent, itself included.
        fast_open: it is the data of a SYN.
    """

    __slots__ = (
        "app_limited",
        "delivered",
        "delivered_at",
        "end_seq",
        "fast_open",
        "first_sent_at",
        "first_tx",
        "flags",
        "in_flight",
        "length",
        "parts",
        "retrans",
        "sacked",
        "sent_at",
        "seq",
    )

    def __init__(self, seq: int, flags: int = 0) -> None:
        self.seq = self.end_seq = seq
        self.flags = flags
        self.parts: list[Buffer] = []
        self.length = 0
        self.sacked = 0
        self.sent_at = self.first_sent_at = 0.0
        self.retrans = 0
        self.delivered = 0
        self.delivered_at = self.first_tx = 0.0
        self.app_limited = False
        self.in_flight = 0
        self.fast_open = False

    @property
    def truesize(self) -> int:
        """Octets it is charged at."""
        return self.length + SKB_OVERHEAD

    def split(self, count: int) -> TcpSkb:
        """Keep the first `count` octets of payload; return the rest as another (tcp_fragment).

        FIN and PSH go with the rest; what is known of its sending is the same for both.
        """
        rest = TcpSkb((self.seq + count) & 0xFFFFFFFF)
        rest.end_seq = self.end_seq
        rest.sacked, rest.retrans = self.sacked, self.retrans
        rest.sent_at, rest.first_sent_at = self.sent_at, self.first_sent_at
        rest.delivered, rest.delivered_at = self.delivered, self.delivered_at
        rest.in_flight = self.in_flight
        rest.first_tx, rest.app_limited = self.first_tx, self.app_limited
        rest.flags, self.flags = self.flags & ~0x02, self.flags & ~0x09
        if self.flags & 0x02:  # SYN takes the first sequence number
            rest.seq = (rest.seq + 1) & 0xFFFFFFFF
        rest.parts = _cut(self.parts, count)
        rest.length, self.length = self.length - count, count
        self.end_seq = rest.seq
        return rest

    def trim_head(self, count: int) -> None:
        """Drop the first `count` octets of payload, which the peer has (tcp_trim_head)."""
        self.parts = _cut(self.parts, count)
        self.length -= count
        self.seq = (self.seq + count) & 0xFFFFFFFF

    def __repr__(self) -> str:
        return f"<TcpSkb {self.seq}:{self.end_seq} sacked {self.sacked:#x} retrans {self.retrans}>"


def _cut(parts: list[Buffer], count: int) -> list[Buffer]:
    """Take what lies beyond `count` octets off the list, and return it."""
    at = 0
    while at < len(parts) and count >= len(parts[at]):
        count -= len(parts[at])
        at += 1
    rest = parts[at:]
    del parts[at:]
    if count and rest:
        view = memoryview(rest[0])
        parts.append(view[:count])
        rest[0] = view[count:]
    return rest
