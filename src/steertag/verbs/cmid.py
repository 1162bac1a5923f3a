"""Connections (pyverbs: `cmid`; librdmacm's `rdma_create_id`, `rdma_connect`, ...).

A CMID without an event channel is synchronous: its calls wait for what they ask for, as after
`rdma_create_ep`. With a channel they begin it, and an event tells how it ended.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import Final

from steertag.errors import os_error
from steertag.rdma.connection import REPLY_TIMEOUT, REQUEST_TIMEOUT, Connection, Offer
from steertag.rdma.mpa_state import MpaState
from steertag.runtime.connector import ConnectingSocket, Connector, Target
from steertag.runtime.driver import StreamDriver, Tap
from steertag.runtime.listener import Listener, respond
from steertag.runtime.stream import Stream
from steertag.verbs.addrinfo import AddrInfo
from steertag.verbs.cm_address import AddressedId, names_of
from steertag.verbs.cm_error import ConnectError, event_of
from steertag.verbs.cm_event import CMEvent, CMEventChannel, CMEventType, Report
from steertag.verbs.cm_listener import DEFAULT_BACKLOG, RequestQueue, bind, peer_param, wildcard
from steertag.verbs.cm_state import CmCall, CmState, step
from steertag.verbs.conn_param import ConnParam
from steertag.verbs.device import DEVICE_NAME, PD, Context
from steertag.verbs.enums import RAI_PASSIVE, RDMA_PS_TCP
from steertag.verbs.qp import QP, QPInitAttr

__all__ = ["CMID", "AddrInfo", "ConnParam", "ConnectError"]

_E: Final = CMEventType


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An active side's attempt to connect.

    Attributes:
        end: until when, in seconds of the loop's clock.
        retries: see `CmOptions.apply`.
        reopen: a stream can be opened again, for another revision.
        fallback: why this is the second one.
    """

    qp: QP
    offer: Offer
    end: float
    retries: int
    tap: Tap | None
    reopen: bool = True
    fallback: str = ""


class CMID(AddressedId):
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
        super().__init__(pd, init)
        self.port_space = port_space
        self._own_context = own
        self._requests: RequestQueue | None = None
        self._connector: Connector | None = None
        self._connection: Connection | None = None
        self._attempt: _Attempt | None = None
        self._active = False
        self._under_way = False
        self._established = False
        self._answering = False
        self._disconnect_told = False
        self._failure: OSError | None = None
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

    @property
    def private_data(self) -> bytes:
        """The peer's, once its Request or Reply is here."""
        return b"" if self._connection is None else self._connection.private_data

    @property
    def crc(self) -> bool:
        """CRC32C is in use on this connection."""
        return self._connection is not None and self._connection.crc

    @property
    def fallback(self) -> str:
        """Why the connection is in MPA revision 1 where revision 2 was asked for; empty else."""
        return "" if self._connection is None else self._connection.fallback

    @property
    def disconnected(self) -> bool:
        """There is no stream, or it is closed; every request has completed."""
        return self._connector is None and (self._driver is None or self._driver.closed)

    # -- active side ---------------------------------------------------------------------------

    def connect(
        self,
        param: ConnParam | None = None,
        timeout: float = REPLY_TIMEOUT,
        *,
        tap: Tap | None = None,
    ) -> None:
        """Open a stream to the address and set the connection up (`rdma_connect`).

        Without a channel it waits, and raises what went wrong. With one: ESTABLISHED; REJECTED
        (ECONNREFUSED, with the peer's private data; ECONNRESET: the peer closed), UNREACHABLE
        (ETIMEDOUT, EHOSTUNREACH, ENETUNREACH), or CONNECT_ERROR. With `param.qp_num` in place of
        a QP of its own, CONNECT_RESPONSE in place of ESTABLISHED, then `establish`.

        Raises:
            ConnectError: the peer answered no, wrongly, or not within `timeout` seconds.
            OSError: the stream could not be opened; EINVAL without an address, or where it is
                connected already or was.
            ValueError: parameters that no frame can hold.
        """
        param = param or ConnParam()
        offer = param.offer()
        with self.context.loop.lock:
            if self.address is None or not self.address.destinations:
                raise os_error(
                    errno.EINVAL, "a CMID connects to an AddrInfo with dst and dst_service"
                )
            step(self.state, CmCall.CONNECT)
            # What can't be is found before a stream is opened.
            qp = self._qp_to_connect(param)
            self._enter(CmCall.CONNECT)
            self._begin(active=True)
            end = self.context.loop.clock() + timeout
            self._open_stream(_Attempt(qp, offer, end, param.retry_count, tap))
        self._wait_for_answer()

    def adopt_active(
        self,
        stream: Stream,
        param: ConnParam | None = None,
        timeout: float = REPLY_TIMEOUT,
        *,
        tap: Tap | None = None,
    ) -> None:
        """Set the connection up, as the active side, over a stream that is connected already.

        The stream is the connection's from here on, closed with it. Raises, and tells, as
        `connect`.
        """
        param = param or ConnParam()
        offer = param.offer()
        with self.context.loop.lock:
            step(self.state, CmCall.ADOPT)
            qp = self._qp_to_connect(param)
            self._enter(CmCall.ADOPT)
            self._begin(active=True)
            end = self.context.loop.clock() + timeout
            self._initiate(stream, _Attempt(qp, offer, end, param.retry_count, tap, False))
        self._wait_for_answer()

    def establish(self) -> None:
        """`rdma_establish`: after CONNECT_RESPONSE, the program is ready too.

        The RNIC has told the peer before: there is no third message that this call would send.
        Raises OSError EINVAL without a CONNECT_RESPONSE.
        """
        with self.context.loop.lock:
            if not self._answering:
                raise os_error(errno.EINVAL, "establish() is for a CMID with a CONNECT_RESPONSE")
            self._answering = False

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

    def wait_disconnected(self, timeout: float | None = None) -> bool:
        """Wait until the stream is closed, by either side; False after `timeout` seconds."""
        return self.context.wait_for(lambda: self.disconnected, timeout)

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

    # -- inside: setting up --------------------------------------------------------------------

    def _join(self, channel: CMEventChannel | None) -> None:
        self._channel = channel
        if channel is not None:
            channel.ids.add(self)

    def _begin(self, *, active: bool) -> None:
        self._active = active
        self._under_way = active
        self._established = self._answering = self._disconnect_told = False
        self._failure = None

    def _open_stream(self, attempt: _Attempt) -> None:
        """With the lock held."""
        loop, address = self.context.loop, self.address
        assert address is not None

        def done(stream: Stream | None, error: OSError | None) -> None:
            self._connector = None
            if stream is not None:
                self._initiate(stream, attempt)
            else:
                assert error is not None
                self._failed(error)

        timeout = attempt.end - loop.clock()
        self._connector = Connector(loop, address.destinations, self._socket_for, timeout, done)
        self._connector.start()

    def _socket_for(self, target: Target) -> ConnectingSocket:
        """A socket to connect to `target` with: the bound one, where it is of that family."""
        from steertag import socket

        family, address = target[0], self.address
        assert address is not None
        bound = self._bound
        if bound is not None and bound.family == family:
            self._bound = None
            return bound
        sock = socket.socket(family, socket.SOCK_STREAM, stack=self.context.stack)
        try:
            sock.setblocking(False)
            source = address.source_for(family)
            if source is not None:
                self.options.apply_before_bind(sock, family)
                sock.bind(source)
        except OSError:
            sock.close()
            raise
        return sock

    def _initiate(self, stream: Stream, attempt: _Attempt) -> None:
        """The stream is open: ask the peer. With the lock held."""
        loop = self.context.loop
        self.options.apply(stream, attempt.retries)
        now = loop.clock()
        self._attempt = attempt
        self._connection = connection = Connection.initiate(
            attempt.qp.core,
            attempt.offer,
            now,
            attempt.end - now,
            self._changed,
            fallback=attempt.fallback,
        )
        tap_for = self.context.tap_for
        driver = StreamDriver(loop, connection, stream, tap=attempt.tap, tap_for=tap_for)
        if connection is self._connection:  # else it failed, and the next attempt has begun
            self._take(connection, driver)

    def _fall_back(self, connection: Connection) -> bool:
        """Connect again, in MPA revision 1, where that was asked for and may help. With the lock
        held.
        """
        attempt = self._attempt
        if attempt is None or not (attempt.offer.revision_fallback and attempt.reopen):
            return False
        answered = connection.peer_revision
        if answered != 1 and (answered is not None or connection.code not in ("closed", "lost")):
            return False
        reason = f"MPA revision 2 failed ({connection.reason}): connecting again in revision 1"
        # Imported where it is needed: it takes a while, and most programs never do.
        import logging

        logging.getLogger("steertag.verbs").warning("%s", reason)
        self._forget()
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()
        self._open_stream(
            replace(attempt, offer=attempt.offer.in_revision_1(), reopen=False, fallback=reason)
        )
        return True

    def _take_request(self, listener: CMID, connection: Connection, driver: StreamDriver) -> None:
        """A peer's request is this CMID's. With the lock held."""
        self.options = listener.options.copy()
        self._enter(CmCall.ADOPT)
        self._begin(active=False)
        connection.on_change = self._changed
        self._take(connection, driver)

    def _take(self, connection: Connection, driver: StreamDriver) -> None:
        self._connection, self._driver = connection, driver
        self._names = names_of(driver.stream)
        driver.on_close = self._stream_closed
        if self.qp is not None:
            self.qp.drive(driver)

    def _changed(self) -> None:
        """The set-up has got further. With the lock held."""
        self.context.loop.notify()
        connection = self._connected()
        if connection.state is MpaState.ESTABLISHED:
            if self._established:
                return
            self._under_way, self._established = False, True
            self._answering = self._active and self._external_qp
            kind = (
                _E.RDMA_CM_EVENT_CONNECT_RESPONSE
                if self._answering
                else _E.RDMA_CM_EVENT_ESTABLISHED
            )
            private_data = connection.private_data if self._active else b""
            self._report(kind, None, private_data, peer_param(connection))
        elif connection.state in (MpaState.REJECTED, MpaState.FAILED):
            if self._under_way and self._active and self._fall_back(connection):
                return
            self._failed(ConnectError.of(connection))

    def _failed(self, error: OSError) -> None:
        """There will be no connection. With the lock held."""
        self.context.loop.notify()
        if self.state is not CmState.CONNECT or self._established:
            return
        asked, self._under_way, self._failure = self._under_way, False, error
        self._forget()
        code = error.code if isinstance(error, ConnectError) else ""
        if self._active:
            self._enter(CmCall.FAIL)
            private_data = error.private_data if isinstance(error, ConnectError) else b""
            self._report(event_of(error), error, private_data)
            return
        self._enter(CmCall.END)
        # What the program itself did to a request needs no telling.
        if code != "rejected" and (asked or code != "aborted"):
            self._report(_E.RDMA_CM_EVENT_CONNECT_ERROR, error)

    def _forget(self) -> None:
        """What becomes of this connection concerns nobody: another may be tried meanwhile."""
        if self._connection is not None:
            self._connection.on_change = None
        if self._driver is not None:
            self._driver.on_close = None

    def _abort(self) -> None:
        """Give up what is being set up. With the lock held."""
        if self._connector is not None:
            self._connector.cancel()
            self._connector = None
        elif self._driver is None or self._driver.closed:
            return
        self._failed(ConnectError("aborted", "disconnected before it was connected"))
        if self._driver is not None:
            self._driver.close()

    def _wait_for_answer(self) -> None:
        """Without a channel: until the connection is there, or won't be."""
        if self._channel is not None:
            return
        self.context.loop.wait_for(lambda: not self._under_way, None)
        failure, self._failure = self._failure, None
        if failure is not None:
            with self.context.loop.lock:
                if self._driver is not None:
                    self._driver.close()
            raise failure

    # -- inside: events ------------------------------------------------------------------------

    def _stream_closed(self) -> None:
        """With the lock held."""
        if self.state is CmState.CONNECT and self._established:
            self._enter(CmCall.END)
            self._tell_disconnected()

    def _tell_disconnected(self) -> None:
        if self._channel is not None and not self._disconnect_told:
            self._disconnect_told = True
            self._report(_E.RDMA_CM_EVENT_DISCONNECTED)

    def _not_busy(self) -> None:
        if self.unacknowledged:
            raise os_error(
                errno.EBUSY, f"{self.unacknowledged} events of the CMID are not acknowledged"
            )

    # -- inside: the queue pair ----------------------------------------------------------------

    def _connected(self) -> Connection:
        if self._connection is None:
            raise os_error(errno.ENOTCONN, "this CMID has no connection")
        return self._connection

    def _driver_of(self) -> StreamDriver:
        assert self._driver is not None
        return self._driver

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
    """The domain of a CMID that was given none; None: it needs one of its own.

    Raises TypeError for a creator that is none.
    """
    if listener is not None:
        return listener.pd
    if isinstance(creator, CMEventChannel):
        return creator.pd
    if creator is None or isinstance(creator, AddrInfo):
        return None
    raise TypeError(f"a CMID is made of an AddrInfo, a channel or an event, not {creator!r}")
