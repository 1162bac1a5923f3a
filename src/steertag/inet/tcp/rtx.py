"""What has been sent and is not acknowledged, and what the peer says it has of it.

The queue is ordered by sequence number, so that an acknowledgement takes pieces off its head. The
scoreboard (RFC 2018, RFC 6675) is in the pieces' `sacked` bits, whose octets are summed up in
`sk.sacked_out`, `lost_out` and `retrans_out`; and, so that blocks that were seen before cost
nothing, in a list of the ranges that are tagged already.

Cursors say from where on there is something to find: they only go back when something is marked
anew, so that the work of an acknowledgement is bounded by what it changes, not by the queue.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from steertag.family.const import SKB_OVERHEAD
from steertag.family.memory import sk_forced_mem_schedule, sk_mem_charge, sk_mem_uncharge
from steertag.inet.tcp.skb import (
    TCPCB_EVER_RETRANS,
    TCPCB_LOST,
    TCPCB_SACKED_ACKED,
    TCPCB_SACKED_RETRANS,
    TcpSkb,
)

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_SYN: Final = 0x02


class RtxQueue:
    """The retransmission queue of one connection.

    Attributes:
        skbs: the pieces, by sequence number. The head may begin before `sk.snd_una` as long as
            nothing in the queue is tagged: `trim` sees to it.
        ranges: (start, end) of what is SACKED_ACKED, ascending, disjoint, not adjacent.
        retransmit_seq: nothing before it is lost and not retransmitted yet.
        rack_seq: every piece before it is sacked, lost or was sent more than once.
        resent: (time, start, end) of retransmissions, in the order they were made; entries whose
            octets were delivered or sent again since are passed over when they come up.
    """

    __slots__ = ("_sk", "rack_seq", "ranges", "resent", "retransmit_seq", "skbs")

    def __init__(self, sk: TcpSock) -> None:
        self._sk = sk
        self.skbs: deque[TcpSkb] = deque()
        self.ranges: list[tuple[int, int]] = []
        self.resent: deque[tuple[float, int, int]] = deque()
        self.retransmit_seq = self.rack_seq = 0

    def __bool__(self) -> bool:
        return bool(self.skbs)

    def __len__(self) -> int:
        return len(self.skbs)

    def __iter__(self) -> Iterator[TcpSkb]:
        return iter(self.skbs)

    @property
    def head(self) -> TcpSkb | None:
        return self.skbs[0] if self.skbs else None

    @property
    def highest_sack(self) -> int:
        """The end of the highest octets that the peer has; `snd_una` where it has none."""
        return self.ranges[-1][1] if self.ranges else self._sk.snd_una

    def append(self, skb: TcpSkb) -> None:
        """A piece was sent for the first time."""
        if not self.skbs:
            self.retransmit_seq = self.rack_seq = skb.seq
        self.skbs.append(skb)

    def clear(self) -> None:
        """Forget all. The pieces' memory is the caller's to give back."""
        self.skbs.clear()
        self.ranges.clear()
        self.resent.clear()

    def find(self, seq: int) -> int:
        """Index of the piece that holds `seq`, or of the one it would come behind; at least 0."""
        skbs = self.skbs
        if not skbs:
            return 0
        base = skbs[0].seq
        offset = (seq - base) & _MASK
        if offset >= _HALF:
            return 0
        at = bisect_right(skbs, offset, key=lambda skb: (skb.seq - base) & _MASK) - 1
        return at if at > 0 else 0

    def index(self, seq: int) -> int:
        """Index of the first piece that begins at `seq` or after it."""
        skbs = self.skbs
        if not skbs:
            return 0
        base = skbs[0].seq
        offset = (seq - base) & _MASK
        if offset >= _HALF:
            return 0
        return bisect_left(skbs, offset, key=lambda skb: (skb.seq - base) & _MASK)

    def split(self, at: int, count: int) -> TcpSkb:
        """Split the piece of that index after `count` octets of payload; returns the rest."""
        sk = self._sk
        rest = self.skbs[at].split(count)
        sk_forced_mem_schedule(sk, SKB_OVERHEAD)
        sk.sk_wmem_queued += SKB_OVERHEAD
        sk_mem_charge(sk, SKB_OVERHEAD)
        self.skbs.insert(at + 1, rest)
        return rest

    def trim(self) -> None:
        """Cut what is acknowledged off the head, before anything is tagged (tcp_trim_head)."""
        if not self.skbs:
            return
        sk = self._sk
        skb = self.skbs[0]
        octets = (sk.snd_una - skb.seq) & _MASK
        if not 0 < octets < (skb.end_seq - skb.seq) & _MASK:
            return
        if skb.sacked:
            self._uncount(skb.sacked, octets)
        if skb.flags & _SYN:
            skb.flags &= ~_SYN
            skb.seq = (skb.seq + 1) & _MASK
            octets -= 1
        if octets:
            skb.trim_head(octets)
            sk.sk_wmem_queued -= octets
            sk_mem_uncharge(sk, octets)

    def _uncount(self, sacked: int, octets: int) -> None:
        sk = self._sk
        if sacked & TCPCB_SACKED_ACKED:
            sk.sacked_out -= octets
        if sacked & TCPCB_LOST:
            sk.lost_out -= octets
        if sacked & TCPCB_SACKED_RETRANS:
            sk.retrans_out -= octets

    def pop_acked(self, upto: int) -> list[TcpSkb]:
        """Take off what is acknowledged as a whole, uncounted and uncharged."""
        skbs = self.skbs
        sk = self._sk
        gone: list[TcpSkb] = []
        freed = 0
        while skbs:
            skb = skbs[0]
            if (upto - skb.end_seq) & _MASK >= _HALF:
                break
            del skbs[0]
            if skb.sacked:
                self._uncount(skb.sacked, (skb.end_seq - skb.seq) & _MASK)
            freed += skb.length + SKB_OVERHEAD
            gone.append(skb)
        if gone:
            sk.sk_wmem_queued -= freed
            sk_mem_uncharge(sk, freed)
            if (self.retransmit_seq - upto) & _MASK >= _HALF:
                self.retransmit_seq = upto
            if (self.rack_seq - upto) & _MASK >= _HALF:
                self.rack_seq = upto
        if self.ranges:
            self._drop_ranges(upto)
        if not skbs:
            self.resent.clear()
        return gone

    def _drop_ranges(self, upto: int) -> None:
        ranges = self.ranges
        count = 0
        for start, end in ranges:
            if (upto - end) & _MASK < _HALF:
                count += 1
                continue
            if (start - upto) & _MASK >= _HALF:
                ranges[count] = (upto, end)
            break
        if count:
            del ranges[:count]

    # -- the scoreboard ---------------------------------------------------------------------------

    def holes(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of start..end is in no tagged range yet."""
        ranges = self.ranges
        base = self.skbs[0].seq
        at = bisect_right(ranges, (start - base) & _MASK, key=lambda r: (r[1] - base) & _MASK)
        found: list[tuple[int, int]] = []
        while at < len(ranges):
            low, high = ranges[at]
            if (low - end) & _MASK < _HALF:
                break
            if (start - low) & _MASK >= _HALF:
                found.append((start, low))
            start = high
            at += 1
        if (start - end) & _MASK >= _HALF:
            found.append((start, end))
        return found

    def add_range(self, start: int, end: int) -> None:
        """These octets, of whole pieces, are SACKED_ACKED now; joined with their neighbours."""
        ranges = self.ranges
        base = self.skbs[0].seq
        low = bisect_left(ranges, (start - base) & _MASK, key=lambda r: (r[1] - base) & _MASK)
        high = bisect_right(ranges, (end - base) & _MASK, key=lambda r: (r[0] - base) & _MASK)
        if low < high:
            first, last = ranges[low][0], ranges[high - 1][1]
            if (first - start) & _MASK >= _HALF:
                start = first
            if (end - last) & _MASK >= _HALF:
                end = last
        ranges[low:high] = [(start, end)]

    def renege(self) -> None:
        """The peer has dropped what it said it had (RFC 2018 section 8): believe nothing of it."""
        for skb in self.skbs:
            skb.sacked &= ~TCPCB_SACKED_ACKED
        self.ranges.clear()
        self._sk.sacked_out = 0

    def mark_lost(self, skb: TcpSkb) -> None:
        """Tag a piece as lost; a retransmission of it that was in flight is lost as well."""
        sacked = skb.sacked
        if sacked & TCPCB_SACKED_ACKED:
            return
        sk = self._sk
        octets = (skb.end_seq - skb.seq) & _MASK
        if sacked & TCPCB_LOST:
            if not sacked & TCPCB_SACKED_RETRANS:
                return
            skb.sacked = sacked & ~TCPCB_SACKED_RETRANS
            sk.retrans_out -= octets
            sk.mib["TcpExtTCPLostRetransmit"] += 1
        else:
            skb.sacked = sacked | TCPCB_LOST
            sk.lost_out += octets
        sk.lost += octets
        if (skb.seq - self.retransmit_seq) & _MASK >= _HALF:
            self.retransmit_seq = skb.seq

    def unmark_lost(self) -> None:
        """Nothing is lost after all (an undone reduction)."""
        sk = self._sk
        if sk.lost_out:
            for skb in self.skbs:
                skb.sacked &= ~TCPCB_LOST
            sk.lost_out = 0
        if self.skbs:
            self.retransmit_seq = self.rack_seq = self.skbs[0].seq

    def mark_resent(self, skb: TcpSkb) -> None:
        """A piece was sent again, at `skb.sent_at`, to take the place of the one that was lost."""
        sk = self._sk
        sacked = skb.sacked
        if not sacked & TCPCB_SACKED_RETRANS:
            sk.retrans_out += (skb.end_seq - skb.seq) & _MASK
        skb.sacked = sacked | TCPCB_SACKED_RETRANS | TCPCB_EVER_RETRANS


def tcp_packets_in_flight(sk: TcpSock) -> int:
    """Octets in the network as far as is known (RFC 6675's pipe)."""
    return ((sk.snd_nxt - sk.snd_una) & _MASK) - sk.sacked_out - sk.lost_out + sk.retrans_out


def tcp_any_retrans_done(sk: TcpSock) -> bool:
    """Was anything that is still in the queue sent again?"""
    if sk.retrans_out:
        return True
    skbs = sk.rtx.skbs
    return bool(skbs) and skbs[0].sacked & TCPCB_EVER_RETRANS != 0
