"""Connections and listeners that are awaited."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from steertag.errors import os_error
from steertag.rdma.connection import REPLY_TIMEOUT
from steertag.runtime.driver import Tap
from steertag.runtime.stream import Stream
from steertag.verbs.aio.context import Context
from steertag.verbs.aio.endpoint import EndpointVerbs
from steertag.verbs.aio.readiness import Readable
from steertag.verbs.cm import cmid as sync
from steertag.verbs.cm.addrinfo import AddrInfo
from steertag.verbs.cm.conn_param import ConnParam
from steertag.verbs.cm.event import CMEvent, CMEventChannel, CMEventType
from steertag.verbs.device import PD
from steertag.verbs.qp import QPInitAttr

_E: Final = CMEventType


class CMID(EndpointVerbs):
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
        init = qp_init_attr if qp_init_attr is not None else QPInitAttr()
        try:
            cmid = request if request is not None else sync.CMID(creator, init, pd)
        except Exception:
            if self._own_context is not None:
                self._own_context.close()
            raise
        super().__init__(context, cmid, init)
        self.pd = pd
        self._answer: asyncio.Future[None] | None = None
        self._ended: set[asyncio.Future[None]] = set()
        self._requests: Readable | None = None
        self._channel: CMEventChannel | None = None
        context.register(self.cmid, self)
        self.cmid.migrate_id(context.cm_channel)

    # -- what it is ----------------------------------------------------------------------------

    @property
    def private_data(self) -> bytes:
        """The peer's, once its Request or Reply is here."""
        return self.cmid.private_data

    def getsockname(self) -> tuple[str, int]:
        return self.cmid.getsockname()

    def getpeername(self) -> tuple[str, int]:
        return self.cmid.getpeername()

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
        self._requests = Readable(self._channel.fileno())

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
