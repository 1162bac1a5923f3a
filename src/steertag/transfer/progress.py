"""What a transfer tells whoever shows its progress."""

from __future__ import annotations

from steertag.transfer.report import Fallback


class Progress:
    """Hears of a transfer's progress; this one is deaf. Sub-class it to show something."""

    def begin(self, name: str, size: int) -> None:
        """`size` octets of `name` are about to move."""

    def picked(self, path: str, why: str) -> None:
        """`auto` chose `path`."""

    def fell_back(self, fallback: Fallback) -> None:
        """A path failed and another is tried; never to be kept from a person."""

    def moved(self, count: int) -> None:
        """`count` more octets have moved."""

    def restart(self) -> None:
        """The octets move again from the first, over another path."""

    def syncing(self) -> None:
        """All octets have moved; the receiver brings them to disk."""

    def end(self) -> None:
        """It is over, well or not."""
