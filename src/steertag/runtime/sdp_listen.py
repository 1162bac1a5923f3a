"""Takes connections for an AF_INET_SDP listener: those of SDP peers, and of plain TCP's.

The first octets tell which. They are looked at, not read, so that a peer without SDP has lost
nothing: its socket is handed on as it is.
"""

from __future__ import annotations

import errno
import socket as std
from typing import TYPE_CHECKING, Final

from steertag.errors import ProtocolError
from steertag.family.const import TcpState
from steertag.family.inet import inet_csk_destroy_sock, sk_clone
from steertag.rdma.connection import REQUEST_TIMEOUT, Connection
from steertag.rdma.mpa_state import MpaState
from steertag.runtime.loop import READ
from steertag.runtime.sdp_link import EngineParts, SdpLink
from steertag.runtime.sdp_transport import DoubtfulTransport, peer_of
from steertag.sdp.fallback import Reason
from steertag.sdp.proto import sdp_accepted, sdp_connected, sdp_failed, sdp_shutdown
from steertag.sdp.sock import SdpSock, sdp_sk
from steertag.wire.mpa import KEY_REQUEST

if TYPE_CHECKING:
    from steertag.runtime.sdp import SdpFabric
    from steertag.runtime.sdp_transport import AnyTransport
    from steertag.sdp.fabric import Transport

_ACCEPTS: Final = 16
_PAUSE: Final = 0.1
"""Seconds to leave peers in the backlog when there is no descriptor for them."""
_PENDING: Final = 256
"""Connections that may be undecided at once, however small the listener's backlog: one that is
decided on for want of room is taken for plain though it may only be slow."""
_KEY_LEN: Final = len(KEY_REQUEST)


class Accepting:
    """`Attempt` of a listener: a handler of the reactor's.

    Args:
        fabric: the Stack's.
        sk: the listener.
        transport: listening.
        use: "sdp", "tcp" or "both".
    """

    def __init__(self, fabric: SdpFabric, sk: SdpSock, transport: AnyTransport, use: str) -> None:
        self.deadline: float | None = None
        self.use = use
        self.fabric = fabric
        self.sk = sk
        self._transport = transport
        self._fd = transport.stream.fileno()
        self._pending: dict[Pending, None] = {}
        self._closed = False
        fabric.reactor.add(self)

    def cancel(self) -> None:
        """Stop; connections that are being set up are closed."""
        if self._closed:
            return
        self._closed = True
        self.fabric.reactor.remove(self)
        for pending in list(self._pending):
            pending.close()

    def room(self) -> None:
        """The accept queue is shorter than it was."""
        if not self._closed and not self._full():
            self.fabric.reactor.wait_on(self, READ)

    def forget(self, pending: Pending) -> None:
        """It is decided."""
        self._pending.pop(pending, None)
        self.room()

    def _full(self) -> bool:
        return len(self.sk.accept_queue) > self.sk.sk_max_ack_backlog

    # -- what the reactor asks -----------------------------------------------------------------

    def fileno(self) -> int:
        return self._fd

    def pump(self) -> bool:
        for accepted in range(_ACCEPTS):
            if self._full():
                # The others wait in the transport's own backlog.
                self.fabric.reactor.wait_on(self, 0)
                return accepted > 0
            try:
                transport = self._transport.accept()
            except BlockingIOError:
                return accepted > 0
            except ConnectionError:
                continue  # a peer that was gone before it was taken
            except OSError:
                # No descriptors or memory: the peers wait in the backlog until there are some.
                self.deadline = self.fabric.reactor.clock() + _PAUSE
                self.fabric.reactor.wait_on(self, 0)
                self.fabric.reactor.schedule(self)
                return accepted > 0
            self._make_room()
            Pending(self, transport).begin(self._pending)
        return True

    def _make_room(self) -> None:
        """Of too many that are being set up, the oldest makes room: it had the most time."""
        if len(self._pending) > max(self.sk.sk_max_ack_backlog, _PENDING):
            next(iter(self._pending)).hurry()

    def handle_timer(self, now: float) -> None:
        """Look again, after descriptors ran out."""
        self.deadline = None
        self.room()

    def block(self, timeout: float | None) -> bool | None:
        """Its socket doesn't block."""
        return None

    def glance(self, timeout: float | None) -> bool:
        """There is no hurry."""
        return False

    def close(self) -> None:
        self.cancel()


class Pending:
    """A connection that came in, until it is known what it is, and set up.

    Args:
        owner: the listener's.
        transport: the connection's.
    """

    def __init__(self, owner: Accepting, transport: AnyTransport) -> None:
        self.deadline: float | None = owner.fabric.reactor.clock() + owner.fabric.listen_grace
        self._owner = owner
        self._transport = transport
        self._fd = transport.stream.fileno()
        self._partial = False
        self._registered = False
        self._link: SdpLink | None = None
        self._parts: EngineParts | None = None
        self._child: SdpSock | None = None
        self._over = False

    def begin(self, among: dict[Pending, None]) -> None:
        """Wait for its first octets, unless there is nothing to be told from them."""
        if self._owner.use == "tcp":
            self._plain(Reason.POLICY)
            return
        among[self] = None
        self._registered = True
        self._owner.fabric.reactor.add(self)
        self.pump()

    def hurry(self) -> None:
        """Others wait: what isn't known yet counts as plain, what isn't set up is closed."""
        if self._link is None:
            self._decide()
        else:
            self.close()

    def close(self) -> None:
        """Give it up."""
        if self._over:
            return
        self._finish()
        link, child, parts = self._link, self._child, self._parts
        if link is not None:
            link.close()
        elif parts is not None:
            parts.release()
        self._transport.close()
        self._lost(child)

    # -- the first octets ----------------------------------------------------------------------

    def fileno(self) -> int:
        return self._fd

    def pump(self) -> bool:
        if self._link is not None or self._over:
            return False
        try:
            first = self._transport.peek(_KEY_LEN)
        except BlockingIOError:
            return False
        except OSError:
            first = b""  # the error is told by the call that finds it, as over TCP
        if first and KEY_REQUEST.startswith(first):
            if len(first) == _KEY_LEN:
                self._listen_to()
                return True
            if not self._partial:
                self._partial = True
                self._want(_KEY_LEN)
                return True
        self._plain(Reason.PLAIN_PEER)
        return True

    def _want(self, octets: int) -> None:
        """Be told when so many are there (SO_RCVLOWAT)."""
        self._transport.setsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT, octets)

    def handle_timer(self, now: float) -> None:
        self.deadline = None
        self._decide()

    def _decide(self) -> None:
        """Its time is over. Who decides may be late: what has come meanwhile counts."""
        self.pump()
        if self._link is None and not self._over:
            self._plain(Reason.PLAIN_PEER if self._partial else Reason.SILENT_PEER)

    def block(self, timeout: float | None) -> bool | None:
        """Its socket doesn't block."""
        return None

    def glance(self, timeout: float | None) -> bool:
        """There is no hurry."""
        return False

    # -- plain TCP -----------------------------------------------------------------------------

    def _plain(self, reason: Reason) -> None:
        """It is a peer without SDP: the listener's child is the transport's socket as it is."""
        owner, fabric = self._owner, self._owner.fabric
        peer = peer_of(self._transport)
        if owner.use == "sdp":
            fabric.refused(peer, reason)
            self.close()
            return
        if self._partial:
            self._want(1)
        self._finish()
        child = sdp_sk(sk_clone(owner.sk))
        fabric.inherit(owner.sk, child)
        child.transport = child.plain = self._handed_on(child, reason)
        child.reason = reason
        child.peer = peer
        fabric.make_plain(child, self._transport)
        fabric.fell_back(child, peer, reason)
        sdp_accepted(owner.sk, child)

    def _handed_on(self, child: SdpSock, reason: Reason) -> Transport:
        """The transport of a peer that said nothing is looked at once more, when it does."""
        if reason is not Reason.SILENT_PEER:
            return self._transport
        late = Late(self._owner, self._transport, child)
        return DoubtfulTransport(self._transport, child, KEY_REQUEST, late)

    # -- SDP -----------------------------------------------------------------------------------

    def _listen_to(self) -> None:
        """It speaks MPA: set it up."""
        fabric = self._owner.fabric
        if self._partial:
            self._want(1)
        if self._registered:
            fabric.reactor.remove(self)
            self._registered = False
        self.deadline = None
        self._transport.stream.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        connection = Connection.respond(fabric.reactor.clock(), REQUEST_TIMEOUT, self._changed)
        self._link = link = SdpLink(fabric, connection, self._transport)
        link.pump()

    def _changed(self) -> None:
        link = self._link
        if self._over or link is None:
            return
        state = link.connection.state
        if state is MpaState.REQUESTED:
            self._requested(link)
        elif state is MpaState.ESTABLISHED:
            self._established(link)
        elif state is MpaState.FAILED:
            self._owner.fabric.reactor.lock.raise_work(self.close)

    def _requested(self, link: SdpLink) -> None:
        """The Request is here: answer its Hello, or refuse what is none."""
        fabric, connection = self._owner.fabric, link.connection
        self._child = child = self._sock()
        try:
            self._parts = parts = EngineParts(fabric, child)
            parts.engine.take_hello(connection.private_data)
            parts.engine.prepare()
        except (OSError, ProtocolError):
            fabric.refused(child.peer, Reason.NOT_SDP)
            connection.reject()
            self._let_go()
            return
        link.equip(parts)
        parts.engine.start()
        offer = fabric.offer(parts.engine.hello_ack())
        connection.accept(parts.qp, offer, fabric.reactor.clock())

    def _let_go(self) -> None:
        """The link says what it has to say, and closes itself."""
        self._finish()
        child, parts = self._child, self._parts
        if parts is not None:
            parts.release()
        self._lost(child)

    def _established(self, link: SdpLink) -> None:
        self._finish()
        child = self._child
        assert child is not None  # made with the Request
        child.transport = self._transport
        self._owner.fabric.counters.sdp_passive += 1
        self._speaks(child, link)

    # -- the sock ------------------------------------------------------------------------------

    def _sock(self) -> SdpSock:
        """That of a connection over SDP."""
        child = sdp_sk(sk_clone(self._owner.sk))
        self._owner.fabric.inherit(self._owner.sk, child)
        child.peer = peer_of(self._transport)
        return child

    def _speaks(self, child: SdpSock, link: SdpLink) -> None:
        child.link, child.engine = link, link.engine
        sdp_accepted(self._owner.sk, child)

    def _lost(self, child: SdpSock | None) -> None:
        if child is not None:
            inet_csk_destroy_sock(child)

    def _finish(self) -> None:
        self._over = True
        if self._registered:
            self._registered = False
            self._owner.fabric.reactor.remove(self)
        self._owner.forget(self)


class Late(Pending):
    """`Pending`, of a peer that was taken for plain as it said nothing: it has said that it isn't.

    Args:
        owner: the listener's.
        transport: the connection's.
        sk: the program's, which has received nothing.
    """

    def __init__(self, owner: Accepting, transport: AnyTransport, sk: SdpSock) -> None:
        super().__init__(owner, transport)
        self.deadline = None
        self._sk = sk

    def speaks(self) -> None:
        """Its first octets are an MPA Request's."""
        self._not_plain()
        self._sk.sk_state = TcpState.TCP_SYN_RECV
        self._sk.attempt = self
        self._transport.unwatch()
        self._listen_to()

    def too_late(self) -> None:
        """They come after the program has sent something, which the peer can't have understood."""
        self._not_plain()
        self._owner.fabric.asked_late(self._sk.peer)
        self._transport.abort()
        sdp_failed(self._sk, errno.ECONNRESET)

    def _not_plain(self) -> None:
        sk = self._sk
        sk.plain = sk.transport = None
        if sk.sk_socket is not None:
            sk.sk_socket.ops = self._owner.fabric.ops

    def cancel(self) -> None:
        """The program has no need of it any more."""
        self._sk.attempt = None
        self.close()

    def _sock(self) -> SdpSock:
        return self._sk

    def _speaks(self, child: SdpSock, link: SdpLink) -> None:
        child.reason = None
        self._owner.fabric.spoke_late(child.peer)
        sdp_connected(child, link)
        if child.sk_shutdown:
            sdp_shutdown(child, child.sk_shutdown)

    def _lost(self, child: SdpSock | None) -> None:
        if self._sk.attempt is self:
            sdp_failed(self._sk, errno.ECONNRESET)
