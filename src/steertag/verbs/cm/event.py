"""Events of connections, and the channel they come through (pyverbs: `cmid.CMEvent`,
`cmid.CMEventChannel`; librdmacm's `rdma_get_cm_event`).
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import TYPE_CHECKING, Self

from steertag.errors import os_error
from steertag.rdma.connection import Connection
from steertag.runtime.driver import StreamDriver
from steertag.runtime.loop import Loop
from steertag.verbs.cm.conn_param import ConnParam
from steertag.verbs.cm.state import CmState
from steertag.verbs.device import PD, Context, Managed

if TYPE_CHECKING:
    from steertag.verbs.cm.cmid import CMID

_SECONDS_MAX = 3600.0


class CMEventType(IntEnum):
    """`enum rdma_cm_event_type`. Those after "never" are here for their names: iWARP has no
    path records, no multicast and no time-wait of a QP, and the device can't be unplugged.
    """

    RDMA_CM_EVENT_ADDR_RESOLVED = 0
    RDMA_CM_EVENT_ADDR_ERROR = 1
    RDMA_CM_EVENT_ROUTE_RESOLVED = 2
    RDMA_CM_EVENT_CONNECT_REQUEST = 4
    RDMA_CM_EVENT_CONNECT_RESPONSE = 5
    RDMA_CM_EVENT_CONNECT_ERROR = 6
    RDMA_CM_EVENT_UNREACHABLE = 7
    RDMA_CM_EVENT_REJECTED = 8
    RDMA_CM_EVENT_ESTABLISHED = 9
    RDMA_CM_EVENT_DISCONNECTED = 10
    RDMA_CM_EVENT_ADDRINFO_RESOLVED = 16
    RDMA_CM_EVENT_ADDRINFO_ERROR = 17
    # never:
    RDMA_CM_EVENT_ROUTE_ERROR = 3
    RDMA_CM_EVENT_DEVICE_REMOVAL = 11
    RDMA_CM_EVENT_MULTICAST_JOIN = 12
    RDMA_CM_EVENT_MULTICAST_ERROR = 13
    RDMA_CM_EVENT_ADDR_CHANGE = 14
    RDMA_CM_EVENT_TIMEWAIT_EXIT = 15


def event_str(event_type: int) -> str:
    """`rdma_event_str`: the event's name."""
    try:
        return CMEventType(event_type).name
    except ValueError:
        return "UNKNOWN EVENT"


@dataclass(eq=False, slots=True)
class Report:
    """An event that waits in a channel.

    Attributes:
        cmid: whom it is of; a CONNECT_REQUEST is of its listener.
        request: the peer's, with a CONNECT_REQUEST.
        error: `status` as an exception, with its reason.
    """

    cmid: CMID
    kind: CMEventType
    status: int = 0
    private_data: bytes = b""
    conn_param: ConnParam | None = None
    request: tuple[Connection, StreamDriver] | None = None
    error: OSError | None = None


class CMEventChannel(Managed):
    """An event channel (`rdma_create_event_channel`).

    `fileno()` is a real descriptor: readable while an event waits, for select, poll, epoll and
    asyncio. Closing the channel closes its CMIDs.

    Args:
        creator: the Context of CMIDs that are made without a protection domain; None opens one
            for the channel when the first needs it.
    """

    close_rank = 2

    def __init__(self, creator: Context | None = None) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        # Taken inside a Context's lock, never around one. Reentrant: an event may be dropped, and
        # so acknowledged, wherever memory is collected.
        self._lock = threading.RLock()
        self._making = threading.Lock()
        self._reports: deque[Report] = deque()
        self._waiting = 0
        self._ended = False
        self._context = creator
        self._own_context: Context | None = None
        self._pd: PD | None = None
        self.ids: set[CMID] = set()
        super().__init__(creator)

    # -- the program's -------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, flag: bool) -> None:
        """Whether `get_event` without a time-out waits; the descriptor's own O_NONBLOCK flag,
        which may also be set on it."""
        os.set_blocking(self._fd, flag)

    def get_event(self, timeout: float | None = None) -> CMEvent:
        """Wait for the next event (`rdma_get_cm_event`).

        Raises:
            TimeoutError: none came within `timeout` seconds.
            BlockingIOError: there is none, no time-out was given, and the channel doesn't block.
            OSError: EBADF, the channel was closed.
        """
        return CMEvent(self, timeout)

    @property
    def pending(self) -> int:
        """Events that wait."""
        return len(self._reports)

    @property
    def pd(self) -> PD:
        """The protection domain of CMIDs that are made without one."""
        with self._making:
            if self._pd is None or self._pd.closed:
                if self._context is None:
                    self._context = self._own_context = Context()
                self._pd = PD(self._context)
            return self._pd

    # -- for CMIDs; with the lock of theirs held -----------------------------------------------

    def post(self, report: Report) -> None:
        """Nothing is heard of a CMID that is being closed."""
        with self._lock:
            if not self._ended and report.cmid.state is not CmState.DESTROYING:
                self._reports.append(report)
                os.eventfd_write(self._fd, 1)

    def withdraw(self, cmid: CMID, report: Report | None = None) -> list[Report]:
        """Take back what waits here of `cmid`, or just `report`."""
        with self._lock:
            taken = [
                waiting
                for waiting in self._reports
                if waiting.cmid is cmid and (report is None or waiting is report)
            ]
            for waiting in taken:
                self._reports.remove(waiting)
                os.eventfd_read(self._fd)
            return taken

    def acknowledge(self, cmid: CMID) -> None:
        with self._lock:
            cmid.unacknowledged -= 1

    def take(self, timeout: float | None) -> Report:
        """See `get_event`."""
        blocking = timeout is not None or os.get_blocking(self._fd)
        end = None if timeout is None else time.monotonic() + timeout
        self._enter()
        try:
            while True:
                loops = self._caller_driven()
                for loop in loops:
                    loop.run_once(0.0)
                report = self._pop()
                if report is not None:
                    return report
                if not blocking:
                    raise BlockingIOError(errno.EAGAIN, "no connection event")
                if end is not None and end <= time.monotonic():
                    raise TimeoutError("no connection event")
                _wait(self._fd, loops, end)
        finally:
            self._leave()

    # -- inside --------------------------------------------------------------------------------

    def _pop(self) -> Report | None:
        with self._lock:
            if self._ended:
                raise os_error(errno.EBADF, "the event channel was closed")
            if not self._reports:
                return None
            report = self._reports.popleft()
            os.eventfd_read(self._fd)
            report.cmid.unacknowledged += 1
            return report

    def _caller_driven(self) -> list[Loop]:
        """Loops that nobody runs but who waits here."""
        loops = {cmid.context.loop for cmid in tuple(self.ids)}
        return [loop for loop in loops if not loop.threaded and not loop.closed]

    def _enter(self) -> None:
        with self._lock:
            if self._ended:
                raise os_error(errno.EBADF, "the event channel was closed")
            self._waiting += 1

    def _leave(self) -> None:
        """The last one out closes the descriptor of a channel that was closed meanwhile."""
        with self._lock:
            self._waiting -= 1
            if self._ended and not self._waiting:
                os.close(self._fd)

    def _close(self) -> None:
        for cmid in tuple(self.ids):
            cmid.close()
        with self._lock:
            self._ended = True
            self._reports.clear()
            if self._waiting:
                os.eventfd_write(self._fd, self._waiting)
            else:
                os.close(self._fd)
        if self._own_context is not None:
            self._own_context.close()


class CMEvent:
    """A connection event (`struct rdma_cm_event`): the next one of `channel`, waited for.

    It is to be acknowledged: by `ack_cm_event`, by `close`, by leaving its `with` block, or by
    dropping it. A CMID with unacknowledged events can't be closed.

    Args:
        channel: where to take it from.
        timeout: seconds; see `CMEventChannel.get_event`, which also has the errors.

    Attributes:
        event_type: a `CMEventType`.
        status: 0, or a negative errno.
        error: the same as an OSError (`ConnectError`), which has the reason in words; or None.
        private_data: the peer's, with a request, a response, an answer or a rejection.
        conn_param: with a CONNECT_REQUEST, CONNECT_RESPONSE or ESTABLISHED: what the peer asks
            for, or takes, seen from here: `responder_resources` are its Reads at once,
            `initiator_depth` is how many it takes.
        listen_id: the listener, with a CONNECT_REQUEST.
    """

    def __init__(self, channel: CMEventChannel, timeout: float | None = None) -> None:
        self._acknowledged = True  # until there is something to acknowledge
        self._report = report = channel.take(timeout)
        self._channel = channel
        self._acknowledged = False
        self.event_type = report.kind
        self.status = report.status
        self.private_data = report.private_data
        self.conn_param = report.conn_param
        self.error = report.error
        self.listen_id: CMID | None = None
        self._id: CMID | None = report.cmid
        if report.request is not None:
            self.listen_id, self._id = report.cmid, None
            self.listen_id.request_delivered(report)

    @property
    def id(self) -> CMID:
        """Whom it is of; with a CONNECT_REQUEST, the new CMID to accept or reject.

        Raises OSError EINVAL where the request was dropped: acknowledged, and its CMID not taken.
        """
        if self._id is None:
            assert self.listen_id is not None
            self.listen_id.request_taken(self)
        assert self._id is not None
        return self._id

    def event_str(self) -> str:
        """`rdma_event_str` of its type."""
        return event_str(self.event_type)

    # -- for CMID ------------------------------------------------------------------------------

    def listener_for(self, listen_id: CMID | None, pd: PD | None) -> CMID:
        """The listener. Raises OSError EINVAL for another event than a CONNECT_REQUEST, or a
        listener or domain that doesn't fit it.
        """
        listener = self.listen_id
        if listener is None or listen_id not in (None, listener):
            raise os_error(errno.EINVAL, f"{self.event_str()} is not of that listening CMID")
        if pd is not None and pd.context is not listener.context:
            raise os_error(errno.EINVAL, "the domain is of another Context than the listener")
        return listener

    def take_request(self) -> tuple[Connection, StreamDriver]:
        """The peer's request. Raises OSError EINVAL where it was taken, or dropped."""
        request, self._report.request = self._report.request, None
        if request is None:
            raise os_error(errno.EINVAL, "the request was taken, or dropped when acknowledged")
        return request

    def claimed_by(self, cmid: CMID) -> None:
        """`cmid` has the request."""
        self._id = cmid

    # -- the program's -------------------------------------------------------------------------

    def ack_cm_event(self) -> None:
        """`rdma_ack_cm_event`. A connection request whose CMID nobody has taken is closed.

        Raises OSError EINVAL when it is acknowledged already.
        """
        if self._acknowledged:
            raise os_error(errno.EINVAL, f"{self.event_str()} is acknowledged already")
        self._acknowledged = True
        request, self._report.request = self._report.request, None
        if request is not None:
            with self._report.cmid.context.loop.lock:
                request[1].close()
        self._channel.acknowledge(self._report.cmid)

    def close(self) -> None:
        """Acknowledge it, unless it is already."""
        if not self._acknowledged:
            self.ack_cm_event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<CMEvent {self.event_str()} status={self.status}>"


def _wait(fd: int, loops: list[Loop], end: float | None) -> None:
    """Until `fd` is readable, one of `loops` has something to do, or `end`."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    left = _SECONDS_MAX if end is None else end - time.monotonic()
    for loop in loops:
        poller.register(loop.fileno(), select.POLLIN)
        deadline = loop.deadline
        if deadline is not None:
            left = min(left, deadline - loop.clock())
    # poll counts in milliseconds and rounds down: rounded up here, so that it is not in vain.
    poller.poll(max(0, int(left * 1000) + 1))
