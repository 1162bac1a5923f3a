"""The verbs for asyncio: what waits is a coroutine, the rest are the calls of `steertag.verbs`.

Everything waits on descriptors that the event loop watches: no thread is needed, and none is busy.
A cancelled wait takes nothing away: a completion or a connection request that it would have got is
the next one's. All of it belongs to the thread of the event loop.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

from steertag.errors import os_error
from steertag.rdma.connection import REPLY_TIMEOUT
from steertag.rdma.constants import SEND_SIGNALED, WR_RDMA_READ, WR_RDMA_WRITE
from steertag.rdma.cq import WC
from steertag.rdma.rnic import RnicLimits
from steertag.rdma.wr import RecvWR, SendWR
from steertag.runtime.driver import Tap
from steertag.runtime.stream import Stream
from steertag.verbs import cq as sync_cq
from steertag.verbs import device as sync_device
from steertag.verbs.cm import cmid as sync
from steertag.verbs.cm import verbs as cm_verbs
from steertag.verbs.cm.addrinfo import AddrInfo
from steertag.verbs.cm.conn_param import ConnParam
from steertag.verbs.cm.event import CMEvent, CMEventChannel, CMEventType
from steertag.verbs.device import DEVICE_NAME, PD, Progress
from steertag.verbs.mr import MR
from steertag.verbs.qp import QP, QPInitAttr

if TYPE_CHECKING:
    from steertag.family import Stack

__all__ = [
    "CMID",
    "CQ",
    "Context",
    "addrinfo",
    "get_cm_event",
    "get_cq_event",
    "submit",
    "submit_all",
]

_BATCH: Final = 64
_T = TypeVar("_T")
_E: Final = CMEventType


# -- waiting for a descriptor ----------------------------------------------------------------------


class _Readable:
    """Tasks that wait until a descriptor is readable. It is watched only while there are some."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Raises what `close` was given."""
        future = self._loop.create_future()
        if not self._waiting:
            self._loop.add_reader(self._fd, self._wake)
        self._waiting.add(future)
        try:
            await future
        finally:
            if future in self._waiting:
                self._waiting.remove(future)
                if not self._waiting:
                    self._loop.remove_reader(self._fd)

    def close(self, reason: OSError) -> None:
        for future in self._take():
            future.set_exception(reason)

    def _wake(self) -> None:
        for future in self._take():
            future.set_result(None)

    def _take(self) -> list[asyncio.Future[None]]:
        waiting, self._waiting = self._waiting, set()
        if waiting:
            self._loop.remove_reader(self._fd)
        return [future for future in waiting if not future.done()]


async def get_cm_event(channel: CMEventChannel) -> CMEvent:
    """The channel's next event, waited for on its descriptor; the program's to acknowledge.

    For CMIDs whose Context has a thread, or is an `aio.Context`.
    """
    return await _next_of(channel.fileno(), lambda: channel.get_event(0))


async def get_cq_event(
    channel: sync_cq.CompChannel, expected_cq: sync_cq.CQ | None = None
) -> sync_cq.CQ:
    """The channel's next event, waited for on its descriptor; the program's to acknowledge.

    Raises OSError EINVAL for an event of another queue than `expected_cq`, and where nobody would
    move the octets: the Context has no thread and is no `aio.Context`.
    """
    context = channel.context
    if not context.loop.threaded and not isinstance(context, Context):
        raise os_error(errno.EINVAL, "the channel's Context is driven by nobody: use aio.Context")
    return await _next_of(channel.fileno(), lambda: channel.get_cq_event(expected_cq, 0))


async def _next_of(fd: int, take: Callable[[], _T]) -> _T:
    own = os.dup(fd)  # an event loop has one watcher for each descriptor
    readable = _Readable(own)
    try:
        while True:
            try:
                return take()
            except (TimeoutError, BlockingIOError):
                await readable.wait()
    finally:
        os.close(own)


async def addrinfo(
    src: str | None = None,
    dst: str | None = None,
    src_service: str | int | None = None,
    dst_service: str | int | None = None,
    *,
    flags: int = 0,
) -> AddrInfo:
    """An `AddrInfo`, its names looked up in a thread, as `loop.getaddrinfo` does it."""
    return await asyncio.to_thread(AddrInfo, src, dst, src_service, dst_service, flags=flags)


# -- the device ------------------------------------------------------------------------------------


class Context(sync_device.Context):
    """An opened RNIC that belongs to the running event loop.

    Args:
        progress: "caller": the event loop moves the octets, with no thread at all. "thread": a
            background thread does, and only what has come of it is the event loop's.
        name, stack, randbits, limits: as for `steertag.verbs.Context`.

    Raises:
        RuntimeError: there is no running event loop.
        OSError: ENODEV for another name.
    """

    def __init__(
        self,
        name: str = DEVICE_NAME,
        *,
        stack: Stack | None = None,
        progress: Progress = "caller",
        randbits: Callable[[int], int] = secrets.randbits,
        limits: RnicLimits | None = None,
    ) -> None:
        self._asyncio = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watched: list[int] = []
        self._ids: dict[sync.CMID, CMID] = {}
        super().__init__(name, stack=stack, progress=progress, randbits=randbits, limits=limits)
        self.cm_channel = CMEventChannel(self)
        self.comp_channel = sync_cq.CompChannel(self)
        self._watch(self.cm_channel.fileno(), self.take_cm_events)
        self._watch(self.comp_channel.fileno(), self._take_completions)
        if progress == "caller":
            self.loop.polled = True
            self._watch(self.loop.fileno(), self._move)

    def close(self) -> None:
        """Close it, with what was made from it; who waits for something of it gets an OSError."""
        if not self.closed:
            for aio_id in list(self._ids.values()):
                aio_id.close()
            watched, self._watched = self._watched, []
            for fd in watched:
                self._asyncio.remove_reader(fd)
            if self._timer is not None:
                self._timer.cancel()
        super().close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- for CMID and CQ -----------------------------------------------------------------------

    def register(self, cmid: sync.CMID, aio_id: CMID) -> None:
        """Events of `cmid` are for `aio_id`."""
        self._ids[cmid] = aio_id

    def unregister(self, cmid: sync.CMID) -> None:
        self._ids.pop(cmid, None)

    def take_cm_events(self) -> None:
        """Hand out the events that wait."""
        while self.cm_channel.pending:
            with self.cm_channel.get_event(0) as event:
                aio_id = self._ids.get(event.id)
                if aio_id is not None:
                    aio_id.on_event(event)

    # -- inside --------------------------------------------------------------------------------

    def _watch(self, fd: int, call: Callable[[], None]) -> None:
        self._asyncio.add_reader(fd, call)
        self._watched.append(fd)

    def _move(self) -> None:
        """Octets can be moved, or the next deadline is another one."""
        self.loop.run_ready()
        self._take_completions()
        self.take_cm_events()
        self._set_timer()

    def _set_timer(self) -> None:
        deadline = self.loop.deadline
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            left = max(0.0, deadline - self.loop.clock())
            self._timer = self._asyncio.call_later(left, self._move)

    def _take_completions(self) -> None:
        while True:
            try:
                cq = self.comp_channel.get_cq_event(timeout=0)
            except TimeoutError:
                return
            cq.ack_events(1)
            if isinstance(cq, CQ):
                cq.rearm()


# -- completions -----------------------------------------------------------------------------------


class _Ticket(int):
    """A request's `wr_id`, which brings its completion to who waits for it."""

    future: asyncio.Future[WC]


class CQ(sync_cq.CQ):
    """A completion queue whose completions are waited for.

    A completion belongs to whom `submit` gave a future for it, as long as that isn't cancelled;
    every other one to the next `get`. `async for` goes on until the queue is closed.

    Args:
        creator: an `aio.Context`.
        cqe: completions it holds at most.
        cq_context: anything; kept.
    """

    def __init__(self, creator: Context, cqe: int, cq_context: object = None) -> None:
        self._unclaimed: deque[WC] = deque()
        self._getters: deque[asyncio.Future[None]] = deque()
        self._submitted: set[asyncio.Future[WC]] = set()
        super().__init__(creator, cqe, cq_context, creator.comp_channel)
        self.req_notify()

    async def get(self) -> WC:
        """The next completion that no `submit` has claimed.

        Raises OSError: EBADF when the queue is closed, ENOBUFS when it has lost completions.
        """
        while not self._unclaimed:
            self._check()
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except BaseException:
                if getter in self._getters:
                    self._getters.remove(getter)
                elif self._unclaimed:
                    self._wake_one()  # it was woken, and can't take what it was woken for
                raise
        return self._unclaimed.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WC:
        try:
            return await self.get()
        except OSError as exc:
            if exc.errno == errno.EBADF:
                raise StopAsyncIteration from None
            raise

    def ticket(self, wr_id: int) -> _Ticket:
        """A `wr_id` whose completion its future gets. For `submit`."""
        ticket = _Ticket(wr_id)
        ticket.future = asyncio.get_running_loop().create_future()
        self._submitted.add(ticket.future)
        ticket.future.add_done_callback(self._submitted.discard)
        return ticket

    def rearm(self) -> None:
        """Its event was taken: ask for the next, then hand out what is there."""
        if self.closed:
            return
        self.req_notify()
        self.hand_out()

    def hand_out(self) -> None:
        """Give every completion to whom it belongs."""
        while True:
            number, taken = self.poll(_BATCH)
            for wc in taken:
                ticket = wc.wr_id
                if isinstance(ticket, _Ticket) and not ticket.future.done():
                    ticket.future.set_result(wc)
                else:
                    self._unclaimed.append(wc)
                    self._wake_one()
            if not number:
                break
        if self.overrun:
            self._fail(os_error(errno.ENOBUFS, "the completion queue was full: some are lost"))

    def _wake_one(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    def _check(self) -> None:
        if self.closed:
            raise os_error(errno.EBADF, "the completion queue is closed")
        if self.overrun:
            raise os_error(errno.ENOBUFS, "the completion queue was full: some are lost")

    def _fail(self, reason: OSError) -> None:
        getters, self._getters = self._getters, deque()
        waiting: list[asyncio.Future[None] | asyncio.Future[WC]] = [*getters, *self._submitted]
        for future in waiting:
            if not future.done():
                future.set_exception(reason)

    def _close(self) -> None:
        self.hand_out()
        super()._close()
        self._fail(os_error(errno.EBADF, "the completion queue is closed"))


def submit(qp: QP, wr: SendWR | RecvWR) -> asyncio.Future[WC]:
    """Post a request now; await what this gives for its completion, whatever its status.

    It always completes visibly. A completion whose future was cancelled is `CQ.get`'s. Raises
    OSError as `post_send` and `post_recv` do; EINVAL where the queue pair's completion queue is no
    `aio.CQ`, or for a request that others are linked behind.
    """
    return submit_all(qp, [wr])[0]


def submit_all(qp: QP, wrs: Iterable[SendWR | RecvWR]) -> list[asyncio.Future[WC]]:
    """`submit` for requests of one kind, posted with one doorbell."""
    requests = list(wrs)
    sends = [wr for wr in requests if isinstance(wr, SendWR)]
    receives = [wr for wr in requests if isinstance(wr, RecvWR)]
    cq = qp.scq if sends else qp.rcq
    if not isinstance(cq, CQ):
        raise os_error(errno.EINVAL, "the queue pair's completion queue is no aio.CQ")
    if (sends and receives) or any(wr.next_wr is not None for wr in requests):
        raise os_error(errno.EINVAL, "submit takes Sends or receives, none linked to another")
    before = [(wr.wr_id, wr.send_flags if isinstance(wr, SendWR) else 0) for wr in requests]
    tickets = [cq.ticket(wr.wr_id) for wr in requests]
    for wr, ticket in zip(requests, tickets, strict=True):
        wr.wr_id = ticket
    for send in sends:
        send.send_flags |= SEND_SIGNALED
    try:
        if sends:
            qp.post_send(sends)
        else:
            qp.post_recv(receives)
    except BaseException:
        # The completions of those that were posted are `get`'s.
        for ticket in tickets:
            ticket.future.cancel()
        raise
    finally:
        for wr, (wr_id, flags) in zip(requests, before, strict=True):
            wr.wr_id = wr_id
            if isinstance(wr, SendWR):
                wr.send_flags = flags
    return [ticket.future for ticket in tickets]


# -- connections -----------------------------------------------------------------------------------


class CMID:
    """A connection, or a listener for them. `async with` disconnects in order, then closes; where
    the block ends with an exception, it closes at once. `async for` gives a listener's requests.

    Args:
        creator: where to connect to, or to listen; None with `adopt_active`.
        qp_init_attr: the QP to make; missing completion queues are made with it.
        pd: a domain of an `aio.Context`; None opens one.

    Attributes:
        cmid: the `steertag.verbs.CMID` beneath; its plain calls may be used.

    Raises:
        OSError: EINVAL for a domain of another kind of Context.
    """

    def __init__(
        self,
        creator: AddrInfo | None = None,
        qp_init_attr: QPInitAttr | None = None,
        pd: PD | None = None,
        *,
        request: sync.CMID | None = None,
    ) -> None:
        self._own_context: Context | None = None
        if pd is None:
            self._own_context = Context()
            pd = PD(self._own_context)
        context = pd.context
        if not isinstance(context, Context):
            raise os_error(errno.EINVAL, "the domain is not of an aio.Context")
        self.context: Context = context
        self.pd = pd
        self._init = qp_init_attr if qp_init_attr is not None else QPInitAttr()
        self._own_cqs: list[CQ] = []
        self.cmid = request if request is not None else sync.CMID(creator, self._init, pd)
        self._answer: asyncio.Future[None] | None = None
        self._ended: set[asyncio.Future[None]] = set()
        self._requests: _Readable | None = None
        self._channel: CMEventChannel | None = None
        context.register(self.cmid, self)
        self.cmid.migrate_id(context.cm_channel)

    # -- what it is ----------------------------------------------------------------------------

    @property
    def qp(self) -> QP:
        """The queue pair, made when it is first asked for."""
        return self.create_qp()

    @property
    def private_data(self) -> bytes:
        """The peer's, once its Request or Reply is here."""
        return self.cmid.private_data

    def getsockname(self) -> tuple[str, int]:
        return self.cmid.getsockname()

    def getpeername(self) -> tuple[str, int]:
        return self.cmid.getpeername()

    def create_qp(self) -> QP:
        """The queue pair, made now: receives can be posted before the connection is there."""
        if self.cmid.qp is None:
            init = self._init
            scq, rcq = init.scq, init.rcq
            if scq is None:
                scq = self._make_cq(init.cap.max_send_wr)
            if rcq is None:
                rcq = self._make_cq(init.cap.max_recv_wr)
            made = copy.copy(init)
            made.scq, made.rcq = scq, rcq
            self.cmid.create_qp(made)
        assert self.cmid.qp is not None
        return self.cmid.qp

    # -- active side ---------------------------------------------------------------------------

    async def connect(
        self,
        param: ConnParam | None = None,
        timeout: float = REPLY_TIMEOUT,
        *,
        tap: Tap | None = None,
    ) -> None:
        """Open a stream and set the connection up. Raises as `steertag.verbs.CMID.connect`.

        Cancelled, it closes the stream.
        """
        self.create_qp()
        await self._answered(lambda: self.cmid.connect(param, timeout, tap=tap))

    async def adopt_active(
        self,
        stream: Stream,
        param: ConnParam | None = None,
        timeout: float = REPLY_TIMEOUT,
        *,
        tap: Tap | None = None,
    ) -> None:
        """The same over a stream that is connected already."""
        self.create_qp()
        await self._answered(lambda: self.cmid.adopt_active(stream, param, timeout, tap=tap))

    # -- passive side --------------------------------------------------------------------------

    def listen(self, backlog: int = 0) -> None:
        """Listen on the address; see `steertag.verbs.CMID.listen`."""
        self._channel = CMEventChannel(self.context)
        self.cmid.migrate_id(self._channel)
        self.cmid.listen(backlog)
        self._requests = _Readable(self._channel.fileno())

    async def get_request(self) -> CMID:
        """The next connection request, to `accept` or `reject`.

        Raises OSError: EINVAL where this CMID doesn't listen, EBADF when it is closed.
        """
        channel, requests = self._channel, self._requests
        if channel is None or requests is None:
            raise os_error(errno.EINVAL, "this CMID does not listen, or is closed")
        while not channel.pending:
            await requests.wait()
        with channel.get_event(0) as event:
            return CMID(None, self._init, self.pd, request=event.id)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CMID:
        if self.cmid.closed:
            raise StopAsyncIteration
        try:
            return await self.get_request()
        except OSError as exc:
            if exc.errno == errno.EBADF:
                raise StopAsyncIteration from None
            raise

    async def accept(self, param: ConnParam | None = None) -> None:
        """Accept the request. Raises as `steertag.verbs.CMID.accept`. Cancelled, it closes the
        stream.
        """
        self.create_qp()
        await self._answered(lambda: self.cmid.accept(param))

    def reject(self, private_data: bytes | None = None) -> None:
        """Refuse the request; see `steertag.verbs.CMID.reject`."""
        self.cmid.reject(private_data)

    # -- both sides ----------------------------------------------------------------------------

    async def disconnect(self) -> None:
        """Send what is posted, then close the stream, and wait until that is done."""
        self.cmid.disconnect()
        await self.wait_disconnected()

    async def wait_disconnected(self) -> None:
        """Until the stream is closed, by either side; every request has completed then."""
        while not self.cmid.disconnected:
            ended = asyncio.get_running_loop().create_future()
            self._ended.add(ended)
            try:
                await ended
            finally:
                self._ended.discard(ended)

    def close(self) -> None:
        """Close it now, and the stream with it; what is posted completes as flushed."""
        if self.cmid.closed:
            return
        closed = os_error(errno.EBADF, "the CMID was closed")
        if self._requests is not None:
            self._requests.close(closed)
        self.cmid.close()
        self.context.unregister(self.cmid)
        for cq in self._own_cqs:
            cq.close()
        if self._channel is not None:
            self._channel.close()
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(closed)
        self._tell_ended()
        if self._own_context is not None:
            self._own_context.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._channel is None and not self.cmid.closed:
                await self.disconnect()
        finally:
            self.close()

    # -- requests ------------------------------------------------------------------------------

    def reg_msgs(self, size: int) -> MR:
        """Memory for Sends and receives."""
        return self.cmid.reg_msgs(size)

    def reg_read(self, size: int) -> MR:
        """Memory that the peer may read."""
        return self.cmid.reg_read(size)

    def reg_write(self, size: int) -> MR:
        """Memory that the peer may write."""
        return self.cmid.reg_write(size)

    def submit(self, wr: SendWR | RecvWR) -> asyncio.Future[WC]:
        """Post a request now; await what this gives for its completion. See `submit`."""
        return submit(self.qp, wr)

    def recv(self, mr: MR, length: int | None = None) -> asyncio.Future[WC]:
        """`submit` a receive into the region's first `length` octets; None: all of them."""
        return self.submit(cm_verbs.recv_wr(mr, length))

    def send(self, mr: MR, length: int | None = None, flags: int = 0) -> asyncio.Future[WC]:
        """`submit` a Send of the region's first `length` octets; None: all of them."""
        return self.submit(cm_verbs.send_wr(mr, flags, length))

    def read(
        self, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 0
    ) -> asyncio.Future[WC]:
        """`submit` an RDMA Read of `length` octets at `remote_addr` into the region."""
        return self.submit(
            cm_verbs.rdma_wr(WR_RDMA_READ, mr, length, remote_addr, rkey, flags),
        )

    def write(
        self, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 0
    ) -> asyncio.Future[WC]:
        """`submit` an RDMA Write of the region's first `length` octets to `remote_addr`."""
        return self.submit(
            cm_verbs.rdma_wr(WR_RDMA_WRITE, mr, length, remote_addr, rkey, flags),
        )

    async def get_send_comp(self) -> WC:
        """The next completion of the send queue that no `submit` has claimed."""
        return await _aio_cq(self.qp.scq).get()

    async def get_recv_comp(self) -> WC:
        """The next completion of the receive queue that no `submit` has claimed."""
        return await _aio_cq(self.qp.rcq).get()

    # -- inside --------------------------------------------------------------------------------

    def on_event(self, event: CMEvent) -> None:
        """Something has become of the connection. For `Context`."""
        answer = self._answer
        if event.event_type is _E.RDMA_CM_EVENT_DISCONNECTED:
            self._tell_ended()
        elif answer is not None and not answer.done():
            if event.error is None:
                answer.set_result(None)
            else:
                answer.set_exception(event.error)

    async def _answered(self, begin: Callable[[], None]) -> None:
        """Begin to set the connection up; wait for how that ends."""
        self._answer = answer = asyncio.get_running_loop().create_future()
        try:
            begin()
            # What was told at once needs no turn of the event loop.
            self.context.take_cm_events()
            await answer
        except BaseException:
            if not self.cmid.closed:
                self.cmid.disconnect()
                self.context.take_cm_events()
            raise
        finally:
            if self._answer is answer:
                self._answer = None

    def _tell_ended(self) -> None:
        for future in self._ended:
            if not future.done():
                future.set_result(None)

    def _make_cq(self, requests: int) -> CQ:
        cq = CQ(self.context, requests + 1)
        self._own_cqs.append(cq)
        return cq


def _aio_cq(cq: sync_cq.CQ) -> CQ:
    if not isinstance(cq, CQ):
        raise os_error(errno.EINVAL, "the queue pair's completion queue is no aio.CQ")
    return cq
