"""Connections (pyverbs: `cmid`; librdmacm's `rdma_create_ep`, `rdma_connect`, ...).

The calls here are the synchronous ones: each waits for what it asks for.
"""

from __future__ import annotations

import errno
import socket as host
import time
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.rdma.connection import (
    REPLY_TIMEOUT,
    REQUEST_TIMEOUT,
    Connection,
)
from steertag.rdma.constants import WR_RDMA_READ, WR_RDMA_WRITE, WR_SEND
from steertag.rdma.cq import WC
from steertag.rdma.mpa_state import MpaState
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.runtime.driver import StreamDriver, Tap
from steertag.runtime.listener import Listener, respond
from steertag.runtime.stream import Stream
from steertag.verbs.conn_param import ConnParam
from steertag.verbs.cq import CQ
from steertag.verbs.device import PD, Context, Managed
from steertag.verbs.enums import RAI_PASSIVE, RDMA_PS_TCP
from steertag.verbs.mr import MR
from steertag.verbs.qp import QP, QPInitAttr

if TYPE_CHECKING:
    from steertag.socket import socket as Socket  # noqa: N812

_BACKLOG: Final = 128
_ERRNO_OF: Final = {
    "rejected": errno.ECONNREFUSED,
    "timeout": errno.ETIMEDOUT,
    "closed": errno.ECONNRESET,
    "lost": errno.ECONNRESET,
    "garbled": errno.EPROTO,
    "revision": errno.EPROTO,
    "markers": errno.EPROTO,
}


class ConnectError(OSError):
    """A connection could not be set up.

    Attributes:
        errno: ECONNREFUSED (rejected), ETIMEDOUT, ECONNRESET or EPROTO (no iWARP peer there).
        code: rejected, timeout, closed, lost, garbled, revision or markers.
        private_data: the peer's, with a rejection.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(_ERRNO_OF.get(connection.code, errno.EPROTO), connection.reason)
        self.code = connection.code
        self.private_data = connection.private_data


class AddrInfo:
    """Where to connect to, or to listen (`rdma_getaddrinfo`).

    Args:
        src, src_service: host and port to listen on, or to connect from.
        dst, dst_service: host and port to connect to.
        port_space: RDMA_PS_TCP.
        flags: RAI_PASSIVE for listening.
    """

    def __init__(
        self,
        src: str | None = None,
        dst: str | None = None,
        src_service: str | int | None = None,
        dst_service: str | int | None = None,
        port_space: int = RDMA_PS_TCP,
        flags: int = 0,
    ) -> None:
        if port_space != RDMA_PS_TCP:
            raise os_error(errno.EPROTONOSUPPORT, f"port space {port_space:#x}; it is RDMA_PS_TCP")
        self.src, self.dst = src, dst
        self.src_service, self.dst_service = src_service, dst_service
        self.flags = flags

    @property
    def passive(self) -> bool:
        return bool(self.flags & RAI_PASSIVE)


class CMID(Managed):
    """A connection, or a listener for them (`struct rdma_cm_id`).

    Args:
        creator: the address; None for an identifier that a listener or `adopt_*` makes.
        qp_init_attr: the QP to make; missing completion queues are made with it.
        pd: its protection domain; None opens a Context and a domain of the CMID's own.

    Attributes:
        qp: the queue pair, once there is one.
        private_data: the peer's, once its Request or Reply is here.
    """

    def __init__(
        self,
        creator: AddrInfo | None = None,
        qp_init_attr: QPInitAttr | None = None,
        pd: PD | None = None,
    ) -> None:
        self._own_context: Context | None = None
        self._own_cqs: list[CQ] = []
        if pd is None:
            self._own_context = Context()
            pd = PD(self._own_context)
        self.pd = pd
        self.context: Context = pd.context
        self.qp: QP | None = None
        self._address = creator
        self._qp_init_attr = qp_init_attr if qp_init_attr is not None else QPInitAttr()
        self._listener: Listener | None = None
        self._listening: Socket | None = None
        self._connection: Connection | None = None
        self._driver: StreamDriver | None = None
        super().__init__(pd)

    # -- active side ---------------------------------------------------------------------------

    def connect(
        self,
        param: ConnParam | None = None,
        timeout: float = REPLY_TIMEOUT,
        *,
        tap: Tap | None = None,
    ) -> None:
        """Open a stream to the address and set the connection up; waits for the Reply.

        Raises:
            ConnectError: the peer answered no, wrongly, or not within `timeout` seconds.
            OSError: the stream could not be opened; EINVAL without an address.
        """
        from steertag import socket

        address = self._address
        if address is None or address.dst is None or address.dst_service is None:
            raise os_error(errno.EINVAL, "a CMID connects to an AddrInfo with dst and dst_service")
        (param or ConnParam()).offer()
        self._make_qp()  # what can't be is found before a stream is opened
        started = time.monotonic()
        source = None
        if address.src is not None:
            source = (address.src, int(address.src_service or 0))
        stream = socket.create_connection(
            (address.dst, int(address.dst_service)),
            timeout,
            source,
            stack=self.context.stack,
        )
        self.adopt_active(stream, param, timeout - (time.monotonic() - started), tap=tap)

    def adopt_active(
        self,
        stream: Stream,
        param: ConnParam | None = None,
        timeout: float = REPLY_TIMEOUT,
        *,
        tap: Tap | None = None,
    ) -> None:
        """Set the connection up, as the active side, over a stream that is connected already.

        The stream is the connection's from here on, closed with it. Raises as `connect`.
        """
        offer = (param or ConnParam()).offer()
        _no_delay(stream)
        loop = self.context.loop
        qp = self._make_qp()
        with loop.lock:
            connection = Connection.initiate(qp.core, offer, loop.clock(), timeout, loop.notify)
            driver = StreamDriver(loop, connection, stream, tap=tap, tap_for=self.context.tap_for)
            self._take(connection, driver)
        loop.wait_for(lambda: connection.state is not MpaState.WAIT_REPLY, None)
        if connection.state is not MpaState.ESTABLISHED:
            self._abandon()
            raise ConnectError(connection)

    # -- passive side --------------------------------------------------------------------------

    def listen(self, backlog: int = 0) -> None:
        """Listen on the address. `backlog`: connections under way at most; 0 means 128.

        Raises:
            OSError: EINVAL without a passive address; what bind and listen raise.
        """
        from steertag import socket

        address = self._address
        if address is None or not address.passive:
            raise os_error(errno.EINVAL, "a CMID listens on an AddrInfo with RAI_PASSIVE")
        backlog = backlog or _BACKLOG
        at = (address.src or "", int(address.src_service or 0))
        family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
        self._listening = socket.create_server(
            at, family=family, backlog=backlog, stack=self.context.stack
        )
        self._listening.setblocking(False)
        _no_delay(self._listening)  # accepted streams inherit it
        self._listener = Listener(
            self.context.loop, self._listening, backlog, tap_for=self.context.tap_for
        )

    def getsockname(self) -> tuple[str, int]:
        """Host and port that a listener listens on (`rdma_get_local_addr`)."""
        if self._listening is None:
            raise os_error(errno.EINVAL, "this CMID does not listen")
        name = self._listening.getsockname()
        return name[0], name[1]

    def get_request(self, timeout: float | None = None) -> CMID:
        """Wait for the next connection request; `accept` or `reject` what this gives.

        Raises:
            TimeoutError: none came within `timeout` seconds.
        """
        listener = self._listener
        if listener is None:
            raise os_error(errno.EINVAL, "this CMID does not listen")
        requests: list[CMID] = []

        def take() -> bool:
            taken = listener.take()
            if taken is not None:
                request = CMID(None, self._qp_init_attr, self.pd)
                request._take(*taken)
                requests.append(request)
            return bool(requests) or listener.closed

        if not self.context.wait_for(take, timeout):
            raise TimeoutError("no connection request")
        if not requests:
            raise os_error(errno.EBADF, "the listener was closed")
        return requests[0]

    def adopt_passive(self, stream: Stream, timeout: float = REQUEST_TIMEOUT) -> None:
        """Wait for the MPA Request on a stream that was accepted already; then `accept` it.

        The stream is the connection's from here on, closed with it. Raises ConnectError.
        """
        _no_delay(stream)
        loop = self.context.loop
        with loop.lock:
            connection, driver = respond(loop, stream, loop.notify, timeout, self.context.tap_for)
            self._take(connection, driver)
        loop.wait_for(lambda: connection.state is not MpaState.WAIT_REQUEST, None)
        if connection.state is not MpaState.REQUESTED:
            self._abandon()
            raise ConnectError(connection)

    def accept(self, param: ConnParam | None = None) -> None:
        """Accept the request: make the QP, send the Reply.

        Receives may be posted before, to `qp` after `create_qp`. The peer has to send first
        (RFC 5044 section 7.1): what is posted here leaves when its first message has come.

        Raises:
            ConnectError: the peer is gone meanwhile.
        """
        offer = (param or ConnParam(crc=False)).offer()
        qp = self._make_qp()
        with self.context.loop.lock:
            connection = self._connected()
            if connection.state is not MpaState.REQUESTED:
                raise ConnectError(connection)
            connection.accept(qp.core, offer)
            self._driver_of().flush()

    def reject(self, private_data: bytes = b"") -> None:
        """Refuse the request, with up to 508 octets for the peer."""
        with self.context.loop.lock:
            connection = self._connected()
            if connection.state is MpaState.REQUESTED:
                connection.reject(private_data)
                self._driver_of().flush()

    # -- both sides ----------------------------------------------------------------------------

    @property
    def private_data(self) -> bytes:
        return b"" if self._connection is None else self._connection.private_data

    @property
    def crc(self) -> bool:
        """CRC32C is in use on this connection."""
        return self._connection is not None and self._connection.crc

    def create_qp(self) -> QP:
        """The QP, made now: receives can be posted before the connection is accepted."""
        return self._make_qp()

    def disconnect(self) -> None:
        """Send what is posted, then close the stream (`rdma_disconnect`). Doesn't wait.

        A connection that is not set up yet is closed at once.
        """
        with self.context.loop.lock:
            if self._driver is None or self._driver.closed:
                return
            if self.qp is None or self._connected().state is not MpaState.ESTABLISHED:
                self._driver.close()
                return
            self.qp.core.close()
            self._driver.flush()
            self._driver.settle()

    @property
    def disconnected(self) -> bool:
        """The stream is closed; every request has completed."""
        return self._driver is None or self._driver.closed

    def wait_disconnected(self, timeout: float | None = None) -> bool:
        """Wait until the stream is closed, by either side; False after `timeout` seconds."""
        return self.context.wait_for(lambda: self.disconnected, timeout)

    # -- librdmacm's rdma_verbs.h --------------------------------------------------------------

    def reg_msgs(self, size: int) -> MR:
        """`rdma_reg_msgs`: memory for Sends and receives."""
        return MR(self.pd, size, 1)

    def reg_read(self, size: int) -> MR:
        """`rdma_reg_read`: memory that the peer may read."""
        return MR(self.pd, size, 1 | 4)

    def reg_write(self, size: int) -> MR:
        """`rdma_reg_write`: memory that the peer may write."""
        return MR(self.pd, size, 1 | 2)

    def post_recv(self, mr: MR, length: int | None = None) -> None:
        """`rdma_post_recv` into the region's first `length` octets."""
        self._the_qp().post_recv(RecvWR(sg=[_sge(mr, length)]))

    def post_send(self, mr: MR, flags: int = 2, length: int | None = None) -> None:
        """`rdma_post_send` of the region's first `length` octets."""
        self._the_qp().post_send(SendWR(sg=[_sge(mr, length)], opcode=WR_SEND, send_flags=flags))

    def post_read(self, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 2) -> None:
        """`rdma_post_read` of `length` octets at `remote_addr` into the region."""
        wr = SendWR(sg=[_sge(mr, length)], opcode=WR_RDMA_READ, send_flags=flags)
        wr.set_wr_rdma(rkey, remote_addr)
        self._the_qp().post_send(wr)

    def post_write(self, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 2) -> None:
        """`rdma_post_write` of the region's first `length` octets to `remote_addr`."""
        wr = SendWR(sg=[_sge(mr, length)], opcode=WR_RDMA_WRITE, send_flags=flags)
        wr.set_wr_rdma(rkey, remote_addr)
        self._the_qp().post_send(wr)

    def get_send_comp(self, timeout: float | None = None) -> WC:
        """`rdma_get_send_comp`: wait for the next completion of the send queue."""
        return _completion(self._the_qp().scq, timeout)

    def get_recv_comp(self, timeout: float | None = None) -> WC:
        """`rdma_get_recv_comp`: wait for the next completion of the receive queue."""
        return _completion(self._the_qp().rcq, timeout)

    # -- inside --------------------------------------------------------------------------------

    def _make_qp(self) -> QP:
        if self.qp is None:
            init = self._qp_init_attr
            scq, rcq = init.scq, init.rcq
            if scq is None:
                scq = CQ(self.context, init.cap.max_send_wr + 1)
            if rcq is None:
                rcq = CQ(self.context, init.cap.max_recv_wr + 1)
            self.qp = QP(
                self.pd,
                QPInitAttr(init.qp_type, init.qp_context, scq, rcq, init.cap, init.sq_sig_all),
            )
            self._own_cqs = [q for q in (scq, rcq) if q not in (init.scq, init.rcq)]
            if self._driver is not None:
                self.qp.drive(self._driver)
        return self.qp

    def _take(self, connection: Connection, driver: StreamDriver) -> None:
        self._connection, self._driver = connection, driver
        if self.qp is not None:
            self.qp.drive(driver)

    def _abandon(self) -> None:
        with self.context.loop.lock:
            if self._driver is not None:
                self._driver.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            raise os_error(errno.ENOTCONN, "this CMID has no connection")
        return self._connection

    def _driver_of(self) -> StreamDriver:
        assert self._driver is not None
        return self._driver

    def _the_qp(self) -> QP:
        if self.qp is None:
            raise os_error(errno.ENOTCONN, "this CMID has no queue pair yet")
        return self.qp

    def _close(self) -> None:
        with self.context.loop.lock:
            if self._listener is not None:
                self._listener.close()
            if self.qp is not None:
                self.qp.close()
            if self._driver is not None:
                self._driver.close()
        for cq in self._own_cqs:
            cq.close()
        if self._own_context is not None:
            self._own_context.close()


def _sge(mr: MR, length: int | None) -> SGE:
    return SGE(mr.buf, mr.length if length is None else length, mr.lkey)


def _completion(cq: CQ, timeout: float | None) -> WC:
    taken = cq.wait(1, timeout)
    if not taken:
        raise TimeoutError("no completion")
    return taken[0]


def _no_delay(stream: Stream) -> None:
    """Small FPDUs leave at once: the RNIC gathers what belongs together itself."""
    set_option = getattr(stream, "setsockopt", None)
    if set_option is None:
        return
    try:
        set_option(host.IPPROTO_TCP, host.TCP_NODELAY, 1)
    except OSError as exc:
        if exc.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            raise
