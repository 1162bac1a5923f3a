"""Segments that came out of order, and what is told to the peer of them (RFC 2018, RFC 2883)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final

from steertag.family.const import SKB_OVERHEAD
from steertag.family.skbuff import SkBuff
from steertag.wire.seq import add, after, before, diff

_MOST_BLOCKS: Final = 4

Block = tuple[int, int]


class RcvSkb(SkBuff):
    """Received octets of a stream: a view of the frame they came in.

    Attributes:
        seq, end_seq: sequence numbers; the FIN counts.
        fin: the stream ends behind it.
    """

    __slots__ = ("end_seq", "fin")

    def __init__(self, payload: memoryview, seq: int, end_seq: int, fin: bool) -> None:
        self._room = payload
        self._data = 0
        self._tail = len(payload)
        self.truesize = len(payload) + SKB_OVERHEAD
        self.sk = None
        self.destructor = None
        self.address = None
        self.seq = seq
        self.end_seq = end_seq
        self.fin = fin

    def trim_head(self, count: int) -> None:
        """Leave out `count` octets that are there already."""
        self._data += count
        self.seq = add(self.seq, count)

    def trim_tail(self, count: int) -> None:
        """Leave out the last `count` octets, and a FIN with them."""
        self._tail -= count
        self.end_seq = add(self.end_seq, -count - (1 if self.fin else 0))
        self.fin = False


class OfoQueue:
    """Pieces beyond `rcv_nxt`, in order, without overlaps; and the blocks to report.

    Attributes:
        block_count: SACK blocks that the next acknowledgement carries.
    """

    __slots__ = ("_base", "_blocks", "_dsack", "_keys", "_skbs", "block_count")

    def __init__(self) -> None:
        self._skbs: list[RcvSkb] = []
        self._keys: list[int] = []  # of each piece: how far beyond _base it starts
        self._base = 0
        self._blocks: list[Block] = []
        self._dsack: Block | None = None
        self.block_count = 0

    def __len__(self) -> int:
        return len(self._skbs)

    def __iter__(self) -> Iterator[RcvSkb]:
        return iter(self._skbs)

    @property
    def octets(self) -> int:
        return sum(len(skb) for skb in self._skbs)

    @property
    def highest_end(self) -> int | None:
        """Where the last piece ends; None without pieces."""
        return self._skbs[-1].end_seq if self._skbs else None

    # -- pieces -----------------------------------------------------------------------------

    def insert(self, skb: RcvSkb, duplicate: Callable[[int, int], None]) -> bool:
        """Put a piece in its place; `duplicate(seq, end)` hears of what was there already.

        What is there stays, but pieces that the new one covers whole make way for it. False:
        nothing of it was new.
        """
        if not self._skbs:
            self._base = skb.seq
        key = diff(skb.seq, self._base)
        skbs, keys = self._skbs, self._keys
        at = bisect_left(keys, key)
        if at and after(skbs[at - 1].end_seq, skb.seq):
            earlier = skbs[at - 1]
            if not after(skb.end_seq, earlier.end_seq):
                duplicate(skb.seq, skb.end_seq)
                self._add_block(skb.seq, skb.end_seq)
                return False
            overlap = diff(earlier.end_seq, skb.seq)
            duplicate(skb.seq, earlier.end_seq)
            skb.trim_head(overlap)
            key += overlap
        while at < len(skbs) and after(skb.end_seq, skbs[at].seq):
            later = skbs[at]
            if before(skb.end_seq, later.end_seq):
                if skb.seq == later.seq:
                    duplicate(skb.seq, skb.end_seq)
                    self._add_block(skb.seq, skb.end_seq)
                    return False
                duplicate(later.seq, skb.end_seq)
                skb.trim_tail(diff(skb.end_seq, later.seq))
                break
            duplicate(later.seq, later.end_seq)
            if skb.seq == later.seq and skb.end_seq == later.end_seq:
                self._add_block(skb.seq, skb.end_seq)
                return False
            later.free()
            del skbs[at], keys[at]
        skbs.insert(at, skb)
        keys.insert(at, key)
        self._add_block(skb.seq, skb.end_seq)
        return True

    def pop_ready(self, rcv_nxt: int) -> RcvSkb | None:
        """The next piece, if it starts at or before `rcv_nxt`."""
        if not self._skbs or after(self._skbs[0].seq, rcv_nxt):
            return None
        del self._keys[0]
        return self._skbs.pop(0)

    def drop_last(self) -> RcvSkb | None:
        """Take the piece furthest away out, to make room; what was told of it is untold."""
        if not self._skbs:
            return None
        self._keys.pop()
        skb = self._skbs.pop()
        self._blocks.clear()
        self._count()
        return skb

    def purge(self) -> None:
        for skb in self._skbs:
            skb.free()
        self._skbs.clear()
        self._keys.clear()
        self._blocks.clear()
        self._dsack = None
        self.block_count = 0

    # -- blocks -----------------------------------------------------------------------------

    def _add_block(self, seq: int, end: int) -> None:
        """Extend the block that it touches, or begin one; the newest stands first."""
        kept = []
        for low, high in self._blocks:
            if after(seq, high) or before(end, low):
                kept.append((low, high))
            else:
                seq = low if before(low, seq) else seq
                end = high if after(high, end) else end
        kept.insert(0, (seq, end))
        del kept[_MOST_BLOCKS:]
        self._blocks = kept
        self._count()

    def acked(self, rcv_nxt: int) -> None:
        """`rcv_nxt` moved on: blocks that lie before it are not reported any more."""
        if not self._skbs:
            self._blocks.clear()
        elif self._blocks:
            self._blocks = [block for block in self._blocks if after(block[1], rcv_nxt)]
        self._count()

    def forget_blocks(self) -> None:
        """The peer doesn't understand them."""
        self._blocks.clear()
        self._count()

    def set_dsack(self, seq: int, end: int) -> None:
        self._dsack = (seq, end)
        self._count()

    def extend_dsack(self, seq: int, end: int) -> None:
        """More octets that came twice: one block tells of those that touch (tcp_dsack_extend)."""
        if self._dsack is None:
            self.set_dsack(seq, end)
            return
        low, high = self._dsack
        if not after(seq, high) and not after(low, end):
            self._dsack = (seq if before(seq, low) else low, end if after(end, high) else high)

    def forget_dsack(self) -> None:
        """It was reported: that is done once."""
        if self._dsack is not None:
            self._dsack = None
            self._count()

    def sack_blocks(self) -> list[Block]:
        """Blocks to report, D-SACK first."""
        if self._dsack is None:
            return self._blocks
        return [self._dsack, *self._blocks]

    def _count(self) -> None:
        self.block_count = min(len(self._blocks) + (self._dsack is not None), _MOST_BLOCKS)
