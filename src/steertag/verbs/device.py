"""The device and what is allocated straight from it (pyverbs: `device`, `pd`)."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from steertag.errors import os_error
from steertag.rdma.rnic import Rnic, RnicLimits
from steertag.runtime.driver import Tap
from steertag.runtime.loop import Loop
from steertag.runtime.stream import Stream

if TYPE_CHECKING:
    from steertag.family import Stack

DEVICE_NAME: Final = "steertag0"
Progress = Literal["thread", "caller"]


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


class Context(Managed):
    """An opened RNIC (`ibv_open_device`).

    Objects made from it are closed with it. One lock guards a Context: programs that want
    connections to progress in parallel open several.

    Args:
        name: `steertag0`, the only device there is.
        stack: the Stack whose sockets carry the connections; None is the default Stack.
        progress: who moves octets. "thread": a background thread of the Context. "caller": the
            program's own calls (`CQ.poll`, `progress`, whatever waits); lowest latency, and
            nothing moves between them. Such a Context is for one thread at a time: while one
            waits, another's call waits with it.
        randbits: where STags come from; `secrets.randbits` unless a test wants to repeat a run.

    Raises:
        OSError: ENODEV for another name.
    """

    def __init__(
        self,
        name: str = DEVICE_NAME,
        *,
        stack: Stack | None = None,
        progress: Progress = "thread",
        randbits: Callable[[int], int] = secrets.randbits,
        limits: RnicLimits | None = None,
    ) -> None:
        if name != DEVICE_NAME:
            raise os_error(errno.ENODEV, f"{name!r}; the device is {DEVICE_NAME!r}")
        super().__init__(None)
        self.name = name
        self.stack = stack
        self.rnic = Rnic(randbits, limits)
        self.loop = Loop()
        self.progress: Callable[[float | None], bool] = self.loop.run_once
        """Move what can be moved; where that is nothing, wait up to so many seconds for more
        (None: without end). True if anything was moved. For `progress="caller"`: with a
        background thread it gives False at once."""
        self.tap_for: Callable[[Stream], Tap | None] | None = None
        """Asked for a tap by every connection made in this Context, active or passive, before
        its first octet."""
        self._announce()
        if progress == "thread":
            self.loop.start()
            self.progress = _moves_by_itself

    def _announce(self) -> None:
        """Show the Context to the Stack's observers, which may set `tap_for`."""
        from steertag.socket.default import default_stack

        stack = self.stack if self.stack is not None else default_stack()
        try:
            stack.rnic_opened(self)
        except OSError:
            self.loop.close()
            raise

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `predicate()` holds (it is called with the Context's lock held).

        False after `timeout` seconds. It is looked at again after each completion and each change
        of a connection. That a peer has written memory is neither: RDMA has no event for it.
        """
        return self.loop.wait_for(predicate, timeout)

    def _close(self) -> None:
        self.loop.close()

    def __repr__(self) -> str:
        return f"<Context {self.name} qps={len(self.rnic.qps)}>"


def _moves_by_itself(timeout: float | None) -> bool:
    """`Context.progress` where a background thread does the work."""
    return False


class PD(Managed):
    """A protection domain (`ibv_alloc_pd`): regions and queue pairs of one don't mix with
    another's.

    Raises:
        OSError: ENOMEM when the device has no more.
    """

    def __init__(self, creator: Context) -> None:
        self.context = creator
        with creator.loop.lock:
            self.handle = creator.rnic.alloc_pd()
        super().__init__(creator)

    def flush(self) -> None:
        for child in self._children:
            child.flush()

    def _close(self) -> None:
        with self.context.loop.lock:
            self.context.rnic.dealloc_pd(self.handle)


class Device:
    """An entry of `get_device_list`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Device({self.name!r}, node_type=IBV_NODE_RNIC, transport=IBV_TRANSPORT_IWARP)"


def get_device_list() -> list[Device]:
    """The RNICs that `Context` opens."""
    return [Device(DEVICE_NAME)]
