"""Connects an AF_INET_SDP socket: over SDP, or over the transport alone where the peer has none."""

from __future__ import annotations

import errno
import socket as std
from typing import TYPE_CHECKING, Final

from steertag.errors import ProtocolError, os_error
from steertag.rdma.connection import Connection
from steertag.rdma.mpa_state import MpaState
from steertag.runtime.connector import Connector
from steertag.runtime.sdp_link import EngineParts, SdpLink
from steertag.sdp.fallback import LEARNT, Reason
from steertag.sdp.proto import sdp_connected, sdp_failed, sdp_fell_back

if TYPE_CHECKING:
    from steertag.family.msg import Address
    from steertag.runtime.sdp import SdpFabric
    from steertag.runtime.sdp_transport import AnyTransport
    from steertag.runtime.stream import Stream
    from steertag.sdp.sock import SdpSock

_CONNECT_TIMEOUT: Final = 600.0
"""Seconds; the transport itself gives up long before."""
_REASONS: Final = {
    "timeout": Reason.SILENT,
    "garbled": Reason.ANSWERED,
    "revision": Reason.ANSWERED,
    "closed": Reason.CLOSED,
    "lost": Reason.CLOSED,
    "rejected": Reason.REJECTED,
}
_REFUSED: Final = {Reason.SILENT: errno.ETIMEDOUT}
"""What connect fails with where falling back is not allowed; ECONNREFUSED for the others."""


class Connecting:
    """`Attempt` of an active side.

    Args:
        fabric: the Stack's.
        sk: the sock that connects.
        family: AF_INET, AF_INET6, or the transport's own.
        address: the peer's.
        use: "sdp", "tcp" or "both".
        reason: why it is to be the transport alone, where it is.
    """

    def __init__(
        self,
        fabric: SdpFabric,
        sk: SdpSock,
        family: int,
        address: Address,
        use: str,
        reason: Reason | None,
    ) -> None:
        self._fabric = fabric
        self._sk = sk
        self._family = family
        self._address = address
        self._use = use
        self._reason = reason
        self._transport: AnyTransport | None = None
        self._connector: Connector | None = None
        self._link: SdpLink | None = None
        self._parts: EngineParts | None = None
        self._error: OSError | None = None
        self._starting = False
        self._over = False

    def start(self) -> None:
        """Begin. Raises the OSError of what fails at once."""
        self._starting = True
        try:
            self._open()
        finally:
            self._starting = False
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Give up; nobody is told."""
        self._over = True
        self._drop()

    # -- the stream ----------------------------------------------------------------------------

    def _open(self) -> None:
        self._transport = transport = self._fabric.take_transport(self._sk, self._family)
        connector = Connector(
            self._fabric.reactor,
            [(self._family, self._address)],
            lambda target: transport.stream,
            _CONNECT_TIMEOUT,
            self._opened,
        )
        self._connector = connector
        connector.start()

    def _opened(self, stream: Stream | None, error: OSError | None) -> None:
        self._connector = None
        transport = self._transport
        if self._over or transport is None:
            return
        if error is not None:
            self._fail(error)
        elif self._reason is not None:
            self._over = True
            self._fabric.fell_back(self._sk, self._address, self._reason)
            self._transport = None
            self._fabric.make_plain(self._sk, transport)
            sdp_fell_back(self._sk, transport, self._reason)
        else:
            self._speak(transport)

    # -- SDP -----------------------------------------------------------------------------------

    def _speak(self, transport: AnyTransport) -> None:
        """Send the MPA Request with the Hello in it."""
        fabric = self._fabric
        try:
            self._parts = parts = EngineParts(fabric, self._sk)
            parts.engine.prepare()
        except OSError as exc:
            self._fail(exc)
            return
        transport.stream.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        connection = Connection.initiate(
            parts.qp,
            fabric.offer(parts.engine.hello(*fabric.names(transport))),
            fabric.reactor.clock(),
            fabric.hello_timeout,
            self._changed,
        )
        self._link = SdpLink(fabric, connection, transport, parts)
        self._link.abrupt = self._sk.bound  # falling back takes its port again

    def _changed(self) -> None:
        """The set-up got on. The link is in the middle of it: what ends it waits."""
        link, parts = self._link, self._parts
        if self._over or link is None or parts is None:
            return
        connection = link.connection
        if connection.state is MpaState.ESTABLISHED:
            try:
                parts.engine.take_hello_ack(connection.private_data)
            except ProtocolError:
                self._end_with(Reason.NOT_SDP)
                return
            parts.engine.start()
            link.abrupt = False
            self._over = True
            self._sk.transport = self._transport
            self._fabric.spoke(self._address)
            sdp_connected(self._sk, link)
        elif connection.state in (MpaState.FAILED, MpaState.REJECTED):
            self._end_with(_REASONS.get(connection.code, Reason.NOT_SDP))

    def _end_with(self, reason: Reason) -> None:
        self._reason = reason
        self._over = True
        self._fabric.reactor.lock.raise_work(self._without_sdp)

    def _without_sdp(self) -> None:
        """The peer has no SDP: connect again, or give up."""
        if self._link is None or self._reason is None:
            return  # cancelled meanwhile
        self._drop()
        self._over = False
        fabric, reason = self._fabric, self._reason
        if reason in LEARNT and self._use != "sdp":
            fabric.learn(self._address, reason)
        if self._use == "sdp":
            fabric.refused(self._address, reason)
            code = _REFUSED.get(reason, errno.ECONNREFUSED)
            self._fail(os_error(code, f"no SDP: {reason}, and SDP_FALLBACK is never"))
            return
        try:
            self._open()
        except OSError as exc:
            self._fail(exc)

    # -- the end -------------------------------------------------------------------------------

    def _drop(self) -> None:
        connector, self._connector = self._connector, None
        link, self._link = self._link, None
        transport, self._transport = self._transport, None
        parts, self._parts = self._parts, None
        if connector is not None:
            connector.cancel()
        if link is not None:
            link.close()
        elif parts is not None:
            parts.release()
        if transport is not None:
            transport.close()

    def _fail(self, error: OSError) -> None:
        self._over = True
        self._drop()
        self._sk.transport = None
        if self._starting:
            self._error = error
        else:
            sdp_failed(self._sk, error.errno or errno.EIO)
