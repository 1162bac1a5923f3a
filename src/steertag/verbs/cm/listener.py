"""The listening side of a CMID: its socket, and its peers' requests as events."""

from __future__ import annotations

import contextlib
import errno
import socket as host
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.rdma.connection import Connection
from steertag.runtime.driver import StreamDriver
from steertag.runtime.listener import Listener
from steertag.verbs.cm.conn_param import ConnParam
from steertag.verbs.cm.event import CMEventType, Report

if TYPE_CHECKING:
    from steertag.socket import socket as Socket  # noqa: N812
    from steertag.verbs.cm.addrinfo import AddrInfo
    from steertag.verbs.cm.cmid import CMID
    from steertag.verbs.cm.options import CmOptions
    from steertag.verbs.device import Context

DEFAULT_BACKLOG: Final = 128


class RequestQueue:
    """Requests that nobody has taken yet: in the listener, and as events in a channel.

    A request stays the listener's, and counts against its backlog, until its event is delivered;
    one that ends before takes its event with it.

    Args:
        cmid: the listening CMID; events go to the channel that it has at the time.
        listener: where the requests are.
    """

    def __init__(self, cmid: CMID, listener: Listener) -> None:
        self.listener = listener
        self._cmid = cmid
        self._reports: dict[Connection, Report] = {}
        listener.on_requests = self.update

    def update(self) -> None:
        """Post and withdraw events, so that they are as the listener's requests are. With the
        Context's lock held.
        """
        channel = self._cmid.event_channel
        if channel is None:
            self._reports.clear()
            return
        requests = dict(self.listener.requests)
        for connection, report in list(self._reports.items()):
            if connection not in requests:
                channel.withdraw(self._cmid, report)
                del self._reports[connection]
        for connection, driver in requests.items():
            if connection not in self._reports:
                self._reports[connection] = report = Report(
                    self._cmid,
                    CMEventType.RDMA_CM_EVENT_CONNECT_REQUEST,
                    private_data=connection.private_data,
                    conn_param=peer_param(connection),
                    request=(connection, driver),
                )
                channel.post(report)

    def tell_again(self) -> None:
        """Post everything anew: the CMID has another channel. With the Context's lock held."""
        self._reports.clear()
        self.update()

    def delivered(self, report: Report) -> None:
        """The event was got: the request is its holder's. With the Context's lock held."""
        assert report.request is not None
        self._reports.pop(report.request[0], None)
        with contextlib.suppress(ValueError):  # it ended at the same moment
            self.listener.requests.remove(report.request)

    def take(self) -> tuple[Connection, StreamDriver] | None:
        """The oldest request, for a listener without a channel. With the Context's lock held."""
        return self.listener.take()


def peer_param(connection: Connection) -> ConnParam:
    """What the peer asks for, or takes, seen from here (`rdma_get_cm_event`): its Reads at once
    are what we are to be ready for, what it takes is what we can make.
    """
    return ConnParam(
        responder_resources=connection.peer_ord,
        initiator_depth=connection.peer_ird,
        private_data=connection.private_data,
        crc=connection.crc,
        mpa_revision=connection.revision,
    )


def bind(context: Context, address: AddrInfo, options: CmOptions) -> Socket:
    """A stream socket bound to the first of `address`'s source addresses that can be had.

    Raises OSError as bind does; EINVAL where there is no address.
    """
    from steertag import socket

    failure = os_error(errno.EINVAL, "the address has no source to bind a CMID to")
    for family, source in address.sources:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM, stack=context.stack)
        except OSError as exc:
            failure = exc
            continue
        try:
            sock.setblocking(False)
            options.apply_before_bind(sock, family)
            sock.bind(source)
        except OSError as exc:
            sock.close()
            failure = OSError(exc.errno, f"{exc.strerror}: {source[0]} port {source[1]}")
            continue
        return sock
    raise failure


def wildcard() -> tuple[int, tuple[str, int]]:
    """Where a CMID listens that was bound to nothing: any address, a port of the host's choice."""
    return int(host.AF_INET), ("0.0.0.0", 0)
