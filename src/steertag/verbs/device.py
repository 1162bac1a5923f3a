"""The device and what is allocated straight from it (pyverbs: `device`, `pd`)."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from steertag.errors import os_error
from steertag.rdma.qp import QueuePair
from steertag.rdma.rnic import Rnic, RnicLimits
from steertag.runtime.driver import Tap
from steertag.runtime.loop import Loop
from steertag.runtime.stream import Stream
from steertag.verbs.addr import GID, device_gid
from steertag.verbs.attr import (
    GID_INDEX,
    PKEY,
    PORT,
    DeviceAttr,
    DeviceAttrEx,
    GIDEntry,
    PortAttr,
    device_attr,
    node_guid,
)
from steertag.verbs.enums import (
    IBV_GID_TYPE_SYSFS_IB_ROCE_V1,
    IBV_NODE_RNIC,
    IBV_TRANSPORT_IWARP,
)
from steertag.verbs.events import EVENT_NUMBERS, AsyncEvent, AsyncEvents
from steertag.verbs.fabric import Fabric
from steertag.verbs.managed import Managed

if TYPE_CHECKING:
    from steertag.family import Stack

__all__ = [
    "DEVICE_NAME",
    "PD",
    "Context",
    "Device",
    "Managed",
    "Progress",
    "get_device_list",
]

DEVICE_NAME: Final = "steertag0"
Progress = Literal["thread", "caller"]


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
        self.rnic = Rnic(randbits, limits, Fabric.of(self.the_stack).next_qp_num)
        self.loop = Loop()
        self.progress: Callable[[float | None], bool] = self.loop.run_once
        """Move what can be moved; where that is nothing, wait up to so many seconds for more
        (None: without end). True if anything was moved. For `progress="caller"`: with a
        background thread it gives False at once."""
        self.tap_for: Callable[[Stream], Tap | None] | None = None
        """Asked for a tap by every connection made in this Context, active or passive, before
        its first octet."""
        self.num_comp_vectors = 1
        self.address_handles = 0
        self.completion_queues = 0
        self.events = AsyncEvents(self.loop)
        self.queue_pairs: dict[int, object] = {}
        """The verbs' queue pairs by number, for the events of the core's."""
        self.rnic.on_event = self._core_event
        self._announce()
        if progress == "thread":
            self.loop.start()
            self.progress = _moves_by_itself

    def _announce(self) -> None:
        """Show the Context to the Stack's observers, which may set `tap_for`."""
        try:
            self.the_stack.opened(self)
        except OSError:
            self.loop.close()
            raise

    @property
    def the_stack(self) -> Stack:
        """The Stack whose sockets carry its connections, the default one included."""
        from steertag.socket.default import default_stack

        return self.stack if self.stack is not None else default_stack()

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `predicate()` holds (it is called with the Context's lock held).

        False after `timeout` seconds. It is looked at again after each completion and each change
        of a connection. That a peer has written memory is neither: RDMA has no event for it.
        """
        return self.loop.wait_for(predicate, timeout)

    # -- what the device says of itself --------------------------------------------------------

    def query_device(self) -> DeviceAttr:
        return device_attr(self.rnic.limits)

    def query_device_ex(self) -> DeviceAttrEx:
        return DeviceAttrEx(self.query_device())

    def query_port(self, port_num: int = PORT) -> PortAttr:
        """Raises OSError EINVAL for another port than 1, as everything that takes a port."""
        _check_port(port_num)
        return PortAttr()

    def query_gid(self, port_num: int = PORT, index: int = GID_INDEX) -> GID:
        """The device's GID; its table has this entry. Raises OSError EINVAL for another."""
        _check_port(port_num)
        _check_gid_index(index)
        return device_gid()

    def query_gid_type(self, port_num: int = PORT, index: int = GID_INDEX) -> int:
        """As sysfs has it: IBV_GID_TYPE_SYSFS_IB_ROCE_V1, of which an RNIC's is one."""
        self.query_gid(port_num, index)
        return IBV_GID_TYPE_SYSFS_IB_ROCE_V1

    def query_gid_ex(self, port_num: int = PORT, gid_index: int = GID_INDEX) -> GIDEntry:
        raw = self.query_gid(port_num, gid_index).raw
        return GIDEntry(int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big"))

    def query_gid_table(self, max_entries: int) -> list[GIDEntry]:
        """Every GID there is. Raises OSError EINVAL where `max_entries` are too few for them."""
        if max_entries < 1:
            raise os_error(errno.EINVAL, f"{max_entries} entries for a table of 1")
        return [self.query_gid_ex()]

    def query_pkey(self, port_num: int = PORT, index: int = 0) -> int:
        """Raises OSError EINVAL for another index than 0."""
        _check_port(port_num)
        if index:
            raise os_error(errno.EINVAL, f"P_Key index {index}; there is 0")
        return PKEY

    def get_pkey_index(self, port_num: int, pkey: int) -> int:
        """Raises OSError EINVAL for a key that isn't in the table."""
        if pkey != self.query_pkey(port_num):
            raise os_error(errno.EINVAL, f"P_Key {pkey:#x}; there is {PKEY:#x}")
        return 0

    # -- asynchronous events -------------------------------------------------------------------

    @property
    def async_fd(self) -> int:
        """Readable while an asynchronous event waits, for select, poll, epoll and asyncio."""
        return self.events.fileno()

    def get_async_event(self, timeout: float | None = None) -> AsyncEvent:
        """Wait for the next asynchronous event (`ibv_get_async_event`).

        Raises:
            TimeoutError: none came within `timeout` seconds.
            BlockingIOError: none is there, and `async_fd` was made non-blocking.
        """
        return self.events.get(timeout)

    def _core_event(self, name: str, element: object) -> None:
        """The core's own object stands for the one that the program has."""
        if isinstance(element, QueuePair):
            element = self.queue_pairs.get(element.qp_num, element)
        self.events.post(EVENT_NUMBERS[name], element)

    def _close(self) -> None:
        self.loop.close()
        self.events.close()

    def __repr__(self) -> str:
        return f"<Context {self.name} qps={len(self.rnic.qps)}>"


def _check_port(port_num: int) -> None:
    if port_num != PORT:
        raise os_error(errno.EINVAL, f"port {port_num}; there is {PORT}")


def _check_gid_index(index: int) -> None:
    if index != GID_INDEX:
        raise os_error(errno.EINVAL, f"GID index {index}; there is {GID_INDEX}")


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
    """An entry of `get_device_list` (`struct ibv_device`).

    Attributes:
        name: for `Context`.
        node_type: IBV_NODE_RNIC.
        transport_type: IBV_TRANSPORT_IWARP.
        guid: the device's number.
        index: its number among the devices.
    """

    node_type = IBV_NODE_RNIC
    transport_type = IBV_TRANSPORT_IWARP

    def __init__(self, name: str, index: int = 0) -> None:
        self.name = name
        self.guid = node_guid()
        self.index = index

    def __repr__(self) -> str:
        return f"Device({self.name!r}, node_type=IBV_NODE_RNIC, transport=IBV_TRANSPORT_IWARP)"


def get_device_list() -> list[Device]:
    """The RNICs that `Context` opens."""
    return [Device(DEVICE_NAME)]
