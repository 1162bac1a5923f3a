"""Buffers with headroom, and queues of them (Linux: sk_buff).

A protocol writes its payload once and then puts each header in front of it: `push` moves the
start of the data back into the headroom that was reserved when the buffer was made
(`Proto.max_header`), so no layer copies what the layer above wrote.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from steertag.errors import StateError
from steertag.family.const import SKB_OVERHEAD

if TYPE_CHECKING:
    from steertag.family.sock import Sock

Buffer = bytes | bytearray | memoryview


class SkBuff:
    """One buffer: headroom, data, tailroom.

    Attributes:
        truesize: octets it is charged at: its whole room and the bookkeeping.
        sk: the sock it is charged to, if any.
        destructor: gives the charge back; called once, by `free`.
        address: who sent it (receive side), in the family's own form.
        seq: room for the protocol: where its data starts in the stream.
    """

    __slots__ = ("_data", "_room", "_tail", "address", "destructor", "seq", "sk", "truesize")

    def __init__(self, size: int, headroom: int = 0) -> None:
        self._room = memoryview(bytearray(headroom + size))
        self._data = self._tail = headroom
        self.truesize = headroom + size + SKB_OVERHEAD
        self.sk: Sock | None = None
        self.destructor: Callable[[SkBuff], None] | None = None
        self.address: object = None
        self.seq = 0

    @classmethod
    def of(cls, data: Buffer, headroom: int = 0) -> SkBuff:
        """A buffer holding a copy of `data`."""
        skb = cls(len(data), headroom)
        skb.put(data)
        return skb

    def __len__(self) -> int:
        return self._tail - self._data

    @property
    def data(self) -> memoryview:
        """The octets from the start of the data to its end; valid until the buffer is freed."""
        return self._room[self._data : self._tail]

    @property
    def headroom(self) -> int:
        return self._data

    @property
    def tailroom(self) -> int:
        return len(self._room) - self._tail

    def put(self, data: Buffer) -> None:
        """Add octets at the end. Raises StateError if there is no room (the kernel panics)."""
        end = self._tail + len(data)
        if end > len(self._room):
            raise StateError(f"skb_put of {len(data)} octets: tailroom is {self.tailroom}")
        self._room[self._tail : end] = data
        self._tail = end

    def push(self, header: Buffer) -> None:
        """Put octets in front. Raises StateError if the headroom does not hold them."""
        start = self._data - len(header)
        if start < 0:
            raise StateError(f"skb_push of {len(header)} octets: headroom is {self._data}")
        self._room[start : self._data] = header
        self._data = start

    def pull(self, count: int) -> None:
        """Take `count` octets off the front. Raises StateError if there are fewer."""
        if count > len(self):
            raise StateError(f"skb_pull of {count} octets: there are {len(self)}")
        self._data += count

    def free(self) -> None:
        """Give the charge back (kfree_skb). Calling it again does nothing."""
        destructor, self.destructor = self.destructor, None
        if destructor is not None:
            destructor(self)
        self.sk = None


class SkBuffHead:
    """A queue of buffers (sk_buff_head). Guarded by the Stack's lock."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: deque[SkBuff] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[SkBuff]:
        return iter(self._queue)

    @property
    def octets(self) -> int:
        """Octets of data in the whole queue."""
        return sum(len(skb) for skb in self._queue)

    def peek(self) -> SkBuff | None:
        return self._queue[0] if self._queue else None

    def append(self, skb: SkBuff) -> None:
        self._queue.append(skb)

    def popleft(self) -> SkBuff:
        return self._queue.popleft()

    def purge(self) -> None:
        """Free every buffer (skb_queue_purge)."""
        while self._queue:
            self._queue.popleft().free()
