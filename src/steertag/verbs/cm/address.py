"""What a CMID is besides its connection: its addresses, its options, its state, its channel."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Final, cast

from steertag.errors import os_error
from steertag.rdma.constants import ACCESS_REMOTE
from steertag.runtime.stream import Stream
from steertag.verbs.cm.addrinfo import AddrInfo, SockAddr
from steertag.verbs.cm.conn_param import ConnParam
from steertag.verbs.cm.event import CMEventChannel, CMEventType, Report
from steertag.verbs.cm.listener import bind
from steertag.verbs.cm.options import CmOptions
from steertag.verbs.cm.state import CmCall, CmState, step
from steertag.verbs.cm.verbs import EndpointVerbs
from steertag.verbs.device import PD, Context
from steertag.verbs.enums import (
    IBV_QP_ACCESS_FLAGS,
    IBV_QP_PKEY_INDEX,
    IBV_QP_PORT,
    IBV_QP_STATE,
    IBV_QPS_INIT,
    IBV_QPS_RTR,
    IBV_QPS_RTS,
    RAI_PASSIVE,
    RDMA_PS_TCP,
)
from steertag.verbs.qp import QPAttr, QPInitAttr

if TYPE_CHECKING:
    from steertag.socket import socket as Socket  # noqa: N812
    from steertag.verbs.cm.cmid import CMID

_E: Final = CMEventType


class AddressedId(EndpointVerbs):
    """A CMID before it listens or connects.

    Attributes:
        state: a `CmState`.
        address: where it listens or connects to; None before it is told.
        options: as `set_option` left them.
        unacknowledged: events that were got and not acknowledged.
    """

    def __init__(self, pd: PD, qp_init_attr: QPInitAttr) -> None:
        super().__init__(pd, qp_init_attr)
        self.state = CmState.IDLE
        self.address: AddrInfo | None = None
        self.options = CmOptions()
        self.unacknowledged = 0
        self._channel: CMEventChannel | None = None
        self._bound: Socket | None = None
        self._names: tuple[SockAddr | None, SockAddr | None] = (None, None)
        self._resolved: AddrInfo | None = None

    @property
    def event_channel(self) -> CMEventChannel | None:
        """Where its events go; None: it is synchronous."""
        return self._channel

    # -- addresses -----------------------------------------------------------------------------

    def bind_addr(self, lai: AddrInfo) -> None:
        """`rdma_bind_addr`: take the source address, and a port of the host's choice for port 0.

        Raises OSError as bind does; EINVAL where it is bound already, or has no source address.
        """
        with self.context.loop.lock:
            step(self.state, CmCall.BIND_ADDR)
            self._bound = bind(self.context, lai, self.options)
            self.address = lai
            self._names = (self._bound.getsockname(), None)
            self._enter(CmCall.BIND_ADDR)

    def resolve_addr(self, rai: AddrInfo, timeout_ms: int = 2000) -> None:
        """`rdma_resolve_addr`: the destination, and the local address on the way to it.

        ADDR_RESOLVED, or ADDR_ERROR where there is no route (ENETUNREACH). The host's routes tell
        at once: `timeout_ms` never passes. Raises OSError EINVAL without a destination; without a
        channel also what ADDR_ERROR would say.
        """
        with self.context.loop.lock:
            after = step(self.state, CmCall.RESOLVE_ADDR)
            if not rai.destinations:
                raise os_error(errno.EINVAL, "the address has no destination")
            try:
                local = _local_address(self.context, rai)
            except OSError as exc:
                if self._channel is None:
                    raise
                self._report(_E.RDMA_CM_EVENT_ADDR_ERROR, exc)
                return
            self.address, self.state = rai, after
            self._names = (self._names[0] or local, rai.dst_addr)
            self._report(_E.RDMA_CM_EVENT_ADDR_RESOLVED)

    def resolve_route(self, timeout_ms: int = 2000) -> None:
        """`rdma_resolve_route`: ROUTE_RESOLVED at once, iWARP has no path records.

        `timeout_ms` never passes. Raises OSError EINVAL before ADDR_RESOLVED.
        """
        with self.context.loop.lock:
            self._enter(CmCall.RESOLVE_ROUTE)
            self._report(_E.RDMA_CM_EVENT_ROUTE_RESOLVED)

    def resolve_addrinfo(
        self,
        node: str | None = None,
        service: str | int | None = None,
        port_space: int = RDMA_PS_TCP,
        flags: int = 0,
    ) -> None:
        """`rdma_resolve_addrinfo`: look a name up; with a channel a thread does, for
        ADDRINFO_RESOLVED or ADDRINFO_ERROR (EAGAIN, or ENODATA: no such name). `query_addrinfo`
        has the answer. Without a channel it raises as `AddrInfo` does.
        """

        def ask() -> AddrInfo:
            if flags & RAI_PASSIVE:
                return AddrInfo(src=node, src_service=service, port_space=port_space, flags=flags)
            return AddrInfo(dst=node, dst_service=service, port_space=port_space, flags=flags)

        if self._channel is None:
            self._resolved = ask()
            return

        def look_up() -> None:
            try:
                self._resolved = ask()
            except OSError as exc:
                # getaddrinfo's numbers are no errnos: EAI_AGAIN is -3.
                number = errno.EAGAIN if exc.errno == -3 else errno.ENODATA
                self._report(_E.RDMA_CM_EVENT_ADDRINFO_ERROR, os_error(number, str(exc)))
            else:
                self._report(_E.RDMA_CM_EVENT_ADDRINFO_RESOLVED)

        threading.Thread(target=look_up, name="steertag-resolve", daemon=True).start()

    def query_addrinfo(self) -> AddrInfo:
        """`rdma_query_addrinfo`. Raises OSError ENODATA before ADDRINFO_RESOLVED."""
        if self._resolved is None:
            raise os_error(errno.ENODATA, "this CMID has looked no address up")
        return self._resolved

    def getsockname(self) -> tuple[str, int]:
        """Host and port of this end (`rdma_get_local_addr`). Raises OSError EINVAL where there is
        none: it neither listens, nor is bound, nor connected.
        """
        if self._names[0] is None:
            raise os_error(errno.EINVAL, "this CMID has no local address yet")
        return self._names[0][0], self._names[0][1]

    def getpeername(self) -> tuple[str, int]:
        """Host and port of the peer (`rdma_get_peer_addr`). Raises OSError ENOTCONN without one."""
        if self._names[1] is None:
            raise os_error(errno.ENOTCONN, "this CMID has no peer")
        return self._names[1][0], self._names[1][1]

    get_local_addr = getsockname
    get_peer_addr = getpeername

    def get_src_port(self) -> int:
        """`rdma_get_src_port`: 0 where there is none yet."""
        return self._names[0][1] if self._names[0] is not None else 0

    def get_dst_port(self) -> int:
        """`rdma_get_dst_port`: 0 where there is none yet."""
        return self._names[1][1] if self._names[1] is not None else 0

    def set_option(self, level: int, optname: int, optval: int, optlen: int) -> None:
        """`rdma_set_option`, of level RDMA_OPTION_ID: TOS, REUSEADDR (on by default), AFONLY and
        ACK_TIMEOUT: after 4.096 us x 2^n without an acknowledgement, `ConnParam.retry` more times,
        the connection is lost (TCP_USER_TIMEOUT); 0 is never.

        Raises OSError: ENOSYS for another option, EINVAL for another value or size.
        """
        with self.context.loop.lock:
            self.options.set(level, optname, optval, optlen)
            if self._driver is not None and not self._driver.closed:
                self.options.apply(self._driver.stream, ConnParam().retry_count)

    # -- its queue pair ------------------------------------------------------------------------

    def query_qp(self, attr_mask: int) -> tuple[QPAttr, QPInitAttr]:
        """`QP.query` of its QP. `timeout` is what RDMA_OPTION_ID_ACK_TIMEOUT has set, if it has.

        Raises OSError ENOTCONN without a QP.
        """
        attr, init = self.connected_qp().query(attr_mask)
        if self.options.ack_timeout is not None:
            attr.timeout = self.options.ack_timeout
        return attr, init

    def init_qp_attr(self, qp_state: int) -> tuple[QPAttr, int]:
        """`rdma_init_qp_attr`: what to `modify` a QP of the program's own with, and the mask.

        On an RNIC that is something for IBV_QPS_INIT only: the connection itself takes the QP on,
        and for IBV_QPS_RTR and IBV_QPS_RTS the mask is 0 (Linux: iwcm.c), as it is for a QP that
        is connected. Raises OSError EINVAL for other states.
        """
        if qp_state not in (IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS):
            raise os_error(errno.EINVAL, f"no attributes lead to QP state {qp_state}")
        attr = QPAttr(qp_state=qp_state, port_num=1, qp_access_flags=ACCESS_REMOTE)
        connected = self.qp is not None and self.qp.qp_state != IBV_QPS_INIT
        if qp_state != IBV_QPS_INIT or connected:
            return attr, 0
        mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS
        return attr, mask

    # -- inside --------------------------------------------------------------------------------

    def _join(self, channel: CMEventChannel | None) -> None:
        self._channel = channel
        if channel is not None:
            channel.ids.add(cast("CMID", self))

    def _not_busy(self) -> None:
        if self.unacknowledged:
            raise os_error(
                errno.EBUSY, f"{self.unacknowledged} events of the CMID are not acknowledged"
            )

    def _enter(self, call: CmCall) -> None:
        self.state = step(self.state, call)

    def _report(
        self,
        kind: CMEventType,
        error: OSError | None = None,
        private_data: bytes = b"",
        param: ConnParam | None = None,
    ) -> None:
        if self._channel is not None:
            status = 0 if error is None else -(error.errno or errno.EPROTO)
            report = Report(cast("CMID", self), kind, status, private_data, param, error=error)
            self._channel.post(report)


def _local_address(context: Context, rai: AddrInfo) -> SockAddr | None:
    """The address that the host would send from; None where the Stack can't tell.

    Raises OSError where there is no way to the destination.
    """
    from steertag import socket

    family, (name, port, *rest) = rai.destinations[0]
    source = rai.source_for(family)
    if source is not None:
        return source
    try:
        probe = socket.socket(family, socket.SOCK_DGRAM, stack=context.stack)
    except OSError:
        return None  # a Stack without datagrams
    with probe:
        probe.connect((name, port or 9, *rest))  # sends nothing
        local = probe.getsockname()
    return (local[0], 0)


def names_of(stream: Stream) -> tuple[SockAddr | None, SockAddr | None]:
    """A stream's own address and its peer's, where it has such."""
    names: list[SockAddr | None] = []
    for method in ("getsockname", "getpeername"):
        ask = getattr(stream, method, None)
        try:
            name = ask() if ask is not None else None
        except OSError:
            name = None  # the peer is gone
        names.append(name if isinstance(name, tuple) else None)
    return names[0], names[1]
