"""Connections (pyverbs: `cmid`; librdmacm's `rdma_create_id`, `rdma_connect`, ...).

A CMID without an event channel is synchronous: its calls wait for what they ask for, as after
`rdma_create_ep`. With a channel they begin it, and an event tells how it ended.
"""

from __future__ import annotations

import errno

from steertag.errors import os_error
from steertag.rdma.connection import REQUEST_TIMEOUT, Connection
from steertag.rdma.mpa_state import MpaState
from steertag.runtime.driver import StreamDriver
from steertag.runtime.listener import Listener, respond
from steertag.runtime.stream import Stream
from steertag.verbs.cm.addrinfo import AddrInfo
from steertag.verbs.cm.conn_param import ConnParam
from steertag.verbs.cm.connect import ConnectingId
from steertag.verbs.cm.error import ConnectError
from steertag.verbs.cm.event import CMEvent, CMEventChannel, Report
from steertag.verbs.cm.listener import DEFAULT_BACKLOG, RequestQueue, bind, wildcard
from steertag.verbs.cm.state import CmCall, step
from steertag.verbs.device import DEVICE_NAME, PD, Context
from steertag.verbs.enums import RAI_PASSIVE, RDMA_PS_TCP
from steertag.verbs.qp import QPInitAttr

__all__ = ["CMID", "AddrInfo", "ConnParam", "ConnectError"]


class CMID(ConnectingId):
    """A connection, or a listener for them (`struct rdma_cm_id`).

    Args:
        creator: an AddrInfo: synchronous, to connect or to listen there (`rdma_create_ep`);
            a CMEventChannel: asynchronous, its events come there (`rdma_create_id`);
            a CMEvent: the peer's connection request that it tells of; None: for a stream that is
            there already (`adopt_active`, `adopt_passive`).
        qp_init_attr: the QP to make; missing completion queues are made with it.
        pd: its protection domain; None: the listener's or the channel's, or a Context and a
            domain of the CMID's own.
        port_space: RDMA_PS_TCP.
        listen_id: the listener, with a CMEvent; None: the event knows it.

    Attributes:
        qp: the queue pair, once there is one.
        state: a `CmState`.
        options: as `set_option` left them.
        unacknowledged: events that were got and not acknowledged.

    Raises:
        OSError: EPROTONOSUPPORT for another port space; EINVAL for an event without a request, or
            a listener or domain that doesn't fit it.
        TypeError: for another kind of creator.
    """

    def __init__(
        self,
        creator: AddrInfo | CMEventChannel | CMEvent | None = None,
        qp_init_attr: QPInitAttr | None = None,
        pd: PD | None = None,
        port_space: int = RDMA_PS_TCP,
        listen_id: CMID | None = None,
    ) -> None:
        if port_space != RDMA_PS_TCP:
            raise os_error(errno.EPROTONOSUPPORT, f"port space {port_space:#x}; it is RDMA_PS_TCP")
        if not isinstance(creator, AddrInfo | CMEventChannel | CMEvent | None):
            raise TypeError(
                f"a CMID is made of an AddrInfo, a channel or an event, not {creator!r}"
            )
        listener = request = None
        if isinstance(creator, CMEvent):
            listener = creator.listener_for(listen_id, pd)
            request = creator.take_request()
        own = None
        if pd is None:
            pd = _domain_of(creator, listener)
        if pd is None:
            own = Context()
            pd = PD(own)
        init = qp_init_attr or (listener.qp_init_attr if listener is not None else QPInitAttr())
        super().__init__(pd, init, port_space)
        self._own_context = own
        self._requests: RequestQueue | None = None
        if isinstance(creator, AddrInfo):
            self.address = creator
            self._enter(CmCall.BIND_ADDR if creator.passive else CmCall.CREATE_EP)
        elif isinstance(creator, CMEventChannel):
            self._join(creator)
        elif isinstance(creator, CMEvent):
            assert listener is not None
            assert request is not None
            self._join(listener.event_channel)
            creator.claimed_by(self)
            with self.context.loop.lock:
                self._take_request(listener, *request)

    # -- what it is ----------------------------------------------------------------------------

    @property
    def dev_name(self) -> str:
        return self.context.name or DEVICE_NAME

    @property
    def port_num(self) -> int:
        """The device's port: 1, there is only one."""
        return 1

    # -- passive side --------------------------------------------------------------------------

    def listen(self, backlog: int = 0) -> None:
        """Listen on the address. `backlog`: connections under way at most; 0 means 128.

        With a channel, each is a CONNECT_REQUEST. Raises OSError: EINVAL without a passive
        address; what bind and listen raise.
        """
        with self.context.loop.lock:
            after = step(self.state, CmCall.LISTEN)
            if self._channel is None and (self.address is None or not self.address.passive):
                raise os_error(errno.EINVAL, "a CMID listens on an AddrInfo with RAI_PASSIVE")
            if self.address is None:
                self.address = AddrInfo(flags=RAI_PASSIVE)
                self.address.sources = [wildcard()]
            sock = self._bound or bind(self.context, self.address, self.options)
            backlog = backlog or DEFAULT_BACKLOG
            try:
                sock.listen(backlog)
                self.options.apply(sock, ConnParam().retry_count)
                self._names = (sock.getsockname(), None)
            except OSError:
                if sock is not self._bound:
                    sock.close()
                raise
            self._bound = None
            listener = Listener(self.context.loop, sock, backlog, tap_for=self.context.tap_for)
            self._requests = RequestQueue(self, listener)
            self.state = after

    def get_request(self, timeout: float | None = None) -> CMID:
        """Wait for the next connection request; `accept` or `reject` what this gives.

        For a listener without a channel. Raises:
            TimeoutError: none came within `timeout` seconds.
            OSError: EINVAL with a channel; EBADF where the listener was closed.
        """
        queue = self._requests
        if queue is None or self._channel is not None:
            raise os_error(errno.EINVAL, "this CMID does not listen, or has an event channel")
        requests: list[CMID] = []

        def take() -> bool:
            taken = queue.take()
            if taken is not None:
                request = CMID(None, self._qp_init_attr, self.pd)
                request._take_request(self, *taken)
                requests.append(request)
            return bool(requests) or queue.listener.closed

        if not self.context.wait_for(take, timeout):
            raise TimeoutError("no connection request")
        if not requests:
            raise os_error(errno.EBADF, "the listener was closed")
        return requests[0]

    def adopt_passive(self, stream: Stream, timeout: float = REQUEST_TIMEOUT) -> None:
        """Wait for the MPA Request on a stream that was accepted already; then `accept` it.

        The stream is the connection's from here on, closed with it. Waits, with a channel too.
        Raises ConnectError.
        """
        loop = self.context.loop
        with loop.lock:
            self._enter(CmCall.ADOPT)
            self._begin(active=False)
            self.options.apply(stream, ConnParam().retry_count)
            connection, driver = respond(loop, stream, loop.notify, timeout, self.context.tap_for)
            self._take(connection, driver)
        loop.wait_for(lambda: connection.state is not MpaState.WAIT_REQUEST, None)
        if connection.state is not MpaState.REQUESTED:
            with loop.lock:
                driver.close()
                self._enter(CmCall.FAIL)
            raise ConnectError.of(connection)
        connection.on_change = self._changed

    def accept(self, param: ConnParam | None = None) -> None:
        """Accept the request: make the QP, send the Reply (`rdma_accept`). With a channel:
        ESTABLISHED, or CONNECT_ERROR.

        Receives may be posted before, to `qp` after `create_qp`. The peer has to send first
        (RFC 5044 section 7.1): what is posted here leaves when its first message has come. Where
        the peer asks for peer-to-peer mode, the connection is established when its
        ready-to-receive frame is here.

        Raises:
            ConnectError: the peer is gone meanwhile.
            OSError: ENOTCONN without a request.
        """
        param = param or ConnParam(crc=False)
        offer = param.offer()
        with self.context.loop.lock:
            connection = self._connected()
            if connection.state is not MpaState.REQUESTED:
                raise ConnectError.of(connection)
            qp = self._qp_to_connect(param)
            self._under_way, self._failure = True, None
            try:
                connection.accept(qp.core, offer, self.context.loop.clock())
            except ValueError:
                self._under_way = False
                raise
            self._driver_of().flush()
        self._wait_for_answer()

    def reject(self, private_data: bytes | None = None) -> None:
        """Refuse the request, with up to 508 octets for the peer (`rdma_reject`).

        Nothing happens where the peer is gone. Raises OSError: ENOTCONN without a request, EINVAL
        on an active side or once accepted.
        """
        with self.context.loop.lock:
            connection = self._connected()
            if self._active or connection.state is MpaState.ESTABLISHED:
                raise os_error(errno.EINVAL, "this CMID has no request to reject")
            if connection.state is MpaState.REQUESTED:
                connection.reject(private_data or b"")
                self._driver_of().flush()

    # -- both sides ----------------------------------------------------------------------------

    def disconnect(self) -> None:
        """Send what is posted, then close the stream (`rdma_disconnect`). Doesn't wait.

        With a channel: DISCONNECTED, on both sides, once each. A connection that is not set up
        yet is closed at once, which ends `connect` and `accept` with ECONNABORTED.
        """
        with self.context.loop.lock:
            if self._connector is not None or not self._established:
                self._abort()
            elif not self._driver_of().closed and self.qp is not None:
                self.qp.core.close()
                self._driver_of().flush()
                self._driver_of().settle()

    def migrate_id(self, channel: CMEventChannel | None) -> None:
        """`rdma_migrate_id`: have events go to another channel, those that wait included; None:
        be synchronous from now on.

        Raises OSError EBUSY while events are not acknowledged.
        """
        with self.context.loop.lock:
            self._not_busy()
            before, self._channel = self._channel, None
            waiting = before.withdraw(self) if before is not None else []
            if before is not None:
                before.ids.discard(self)
            self._join(channel)
            if self._requests is not None:
                # They are the listener's: told again, or taken by get_request.
                waiting = []
                self._requests.tell_again()
            if channel is not None:
                for report in waiting:
                    channel.post(report)
            if self._established and self.disconnected:
                self._tell_disconnected()

    # -- for events ----------------------------------------------------------------------------

    @property
    def requests_waiting(self) -> int:
        """Connection requests that nobody has taken yet."""
        return 0 if self._requests is None else len(self._requests.listener.requests)

    def request_delivered(self, report: Report) -> None:
        """A CONNECT_REQUEST of this listener was got."""
        with self.context.loop.lock:
            assert self._requests is not None
            self._requests.delivered(report)

    def request_taken(self, event: CMEvent) -> None:
        """Make the CMID of a connection request."""
        CMID(event, listen_id=self)

    # -- inside --------------------------------------------------------------------------------

    def _take_request(self, listener: CMID, connection: Connection, driver: StreamDriver) -> None:
        """A peer's request is this CMID's. With the lock held."""
        self.options = listener.options.copy()
        self._enter(CmCall.ADOPT)
        self._begin(active=False)
        connection.on_change = self._changed
        self._take(connection, driver)

    def _close(self) -> None:
        with self.context.loop.lock:
            channel = self._channel
            if not (self.pd.closed or (channel is not None and channel.closed)):
                self._not_busy()
            self._enter(CmCall.DESTROY)
            if self._under_way:
                self._under_way = False
                self._failure = ConnectError("aborted", "closed before it was connected")
            if self._channel is not None:
                self._channel.withdraw(self)
                self._channel.ids.discard(self)
            if self._connector is not None:
                self._connector.cancel()
                self._connector = None
            if self._requests is not None:
                self._requests.listener.close()
            if self._bound is not None:
                self._bound.close()
            if self._driver is not None and self._external_qp:
                self._driver.close()
            self.destroy_qp()
            if self._driver is not None:
                self._driver.close()
            self.context.loop.notify()
        if self._own_context is not None:
            self._own_context.close()


def _domain_of(creator: object, listener: CMID | None) -> PD | None:
    """The domain of a CMID that was given none; None: it needs one of its own."""
    if listener is not None:
        return listener.pd
    return creator.pd if isinstance(creator, CMEventChannel) else None
