"""A CMID on its way to a connection: the active side, and what both sides do with a set-up."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import Final

from steertag.errors import os_error
from steertag.rdma.connection import REPLY_TIMEOUT, Connection, Offer
from steertag.rdma.mpa_state import MpaState
from steertag.runtime.connector import ConnectingSocket, Connector, Target
from steertag.runtime.driver import StreamDriver, Tap
from steertag.runtime.stream import Stream
from steertag.verbs.cm.address import AddressedId, names_of
from steertag.verbs.cm.conn_param import ConnParam
from steertag.verbs.cm.error import ConnectError, event_of
from steertag.verbs.cm.event import CMEventType
from steertag.verbs.cm.listener import peer_param
from steertag.verbs.cm.state import CmCall, CmState, step
from steertag.verbs.device import PD
from steertag.verbs.qp import QP, QPInitAttr

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


class ConnectingId(AddressedId):
    """A CMID and the connection that it makes. Its own events come from here."""

    def __init__(self, pd: PD, qp_init_attr: QPInitAttr, port_space: int) -> None:
        super().__init__(pd, qp_init_attr)
        self.port_space = port_space
        self._connector: Connector | None = None
        self._connection: Connection | None = None
        self._attempt: _Attempt | None = None
        self._active = False
        self._under_way = False
        self._established = False
        self._answering = False
        self._disconnect_told = False
        self._failure: OSError | None = None

    # -- what there is -------------------------------------------------------------------------

    @property
    def private_data(self) -> bytes:
        """The peer's, once its Request or Reply is here."""
        return b"" if self._connection is None else self._connection.private_data

    @property
    def crc(self) -> bool:
        """CRC32C is in use on this connection."""
        return self._connection is not None and self._connection.crc

    @property
    def peer_to_peer(self) -> bool:
        """The connection is in peer-to-peer mode (RFC 6581): either program may send first."""
        agreement = None if self._connection is None else self._connection.agreement
        return agreement is not None and agreement.rtr is not None

    @property
    def fallback(self) -> str:
        """Why the connection is in MPA revision 1 where revision 2 was asked for; empty else."""
        return "" if self._connection is None else self._connection.fallback

    @property
    def disconnected(self) -> bool:
        """There is no stream, or it is closed; every request has completed."""
        return self._connector is None and (self._driver is None or self._driver.closed)

    def wait_disconnected(self, timeout: float | None = None) -> bool:
        """Wait until the stream is closed, by either side; False after `timeout` seconds."""
        return self.context.wait_for(lambda: self.disconnected, timeout)

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
                    errno.EINVAL,
                    "a CMID connects to an AddrInfo with dst and dst_service or after resolve_addr",
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

    # -- inside: setting up --------------------------------------------------------------------

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

    def _connected(self) -> Connection:
        if self._connection is None:
            raise os_error(errno.ENOTCONN, "this CMID has no connection")
        return self._connection

    def _driver_of(self) -> StreamDriver:
        assert self._driver is not None
        return self._driver
