"""What the data sink holds, and what it waits for."""

from __future__ import annotations

from steertag.rdma.memory import Region


class Piece:
    """Octets that are here. `index` is the receive buffer they lie in, -1 for other memory;
    `charge` what they count against rcv_bytes; `stage` the memory that they were read into."""

    __slots__ = ("charge", "index", "stage", "view")

    def __init__(
        self, view: memoryview | bytes, index: int, charge: int, stage: Region | None = None
    ) -> None:
        self.view = view
        self.index = index
        self.charge = charge
        self.stage = stage


class Mark:
    """Where the out-of-band octet belongs."""

    __slots__ = ("octet", "taken")

    def __init__(self, octet: bytes) -> None:
        self.octet = octet
        self.taken = False


class Advert:
    """A source of the peer's: `asked` octets are being read, `got` are here."""

    __slots__ = ("addr", "asked", "got", "length", "rkey")

    def __init__(self, length: int, rkey: int, addr: int) -> None:
        self.length, self.rkey, self.addr = length, rkey, addr
        self.asked = self.got = 0


class Read:
    """An RDMA Read under way, into memory of ours (`staged`) or into the waiting buffer."""

    __slots__ = ("advert", "count", "number", "region", "staged")

    def __init__(
        self, number: int, advert: Advert, count: int, region: Region, staged: bool
    ) -> None:
        self.number, self.advert, self.count = number, advert, count
        self.region, self.staged = region, staged
