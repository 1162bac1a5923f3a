"""Devices around devices: each looks, to whoever uses it, like the one that it surrounds."""

from __future__ import annotations

from collections.abc import Sequence

from steertag.device.base import Device
from steertag.device.frame import Frame, Offload
from steertag.family.skbuff import Buffer


class Middleware(Device):
    """Passes everything on. A subclass changes what it is there for.

    It is the outermost that is registered with a Stack. `stats` are one for all: what the innermost
    sent, and what the outermost received.

    Attributes:
        inner: the device that it surrounds, which nobody else uses any more.
    """

    def __init__(self, inner: Device, features: int | None = None) -> None:
        super().__init__(inner.name, inner.mtu, inner.features if features is None else features)
        self.inner = inner
        self.stats = inner.stats
        self.kind = inner.kind
        self.type = inner.type
        self.hard_header_len = inner.hard_header_len
        self.dev_addr = inner.dev_addr
        inner.on_receive = self._news

    def _news(self) -> None:
        if self.on_receive is not None:
            self.on_receive()

    def transmit(self, parts: Sequence[Buffer], offload: Offload | None = None) -> None:
        self.inner.transmit(parts, offload)

    def receive(self) -> Frame | None:
        return self.inner.receive()

    def fileno(self) -> int:
        return self.inner.fileno()

    def close(self) -> None:
        self.up = False
        self.inner.close()
