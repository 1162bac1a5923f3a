"""What every verbs object is: something that is closed, after what was made from it."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Managed:
    """A verbs object: closed by `close()` or by leaving its `with` block, once.

    Closing closes first what was made from it, as in pyverbs; until then a parent holds its
    children, so that dropping the last reference to one ends nothing.
    """

    close_rank = 0
    """Among a parent's children: users before what they use."""

    def __init__(self, parent: Managed | None) -> None:
        self._parent = parent
        self._children: list[Managed] = []
        self._closed = False
        if parent is not None:
            parent._children.append(self)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def children(self) -> tuple[Managed, ...]:
        """What was made from it and is not closed yet, oldest first."""
        return tuple(self._children)

    def close(self) -> None:
        """Give the object back. Closing twice is allowed. Raises OSError EBUSY while it is used."""
        if self._closed:
            return
        self._closed = True
        try:
            for child in sorted(self._children, key=lambda child: child.close_rank):
                child.close()
            self._close()
        except OSError:
            self._closed = False
            raise
        if self._parent is not None:
            self._parent._children.remove(self)

    def _close(self) -> None:
        """What closing means for this kind of object."""

    def move(self, parent: Managed) -> None:
        """It belongs to another parent from now on."""
        if self._parent is not None:
            self._parent._children.remove(self)
        self._parent = parent
        parent._children.append(self)

    def flush(self) -> None:
        """Send what is to be sent, where there is such a thing. Called with the lock held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
