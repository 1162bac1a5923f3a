"""One stream with an SDP engine on it, and what moves its octets."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from steertag.errors import StateError
from steertag.family.sock import POLLRDHUP
from steertag.rdma.cq import CompletionQueue
from steertag.rdma.qp_state import QpState
from steertag.runtime.driver import CLOSE_TIMEOUT, MSG_DONTWAIT, StreamDriver
from steertag.runtime.sdp_transport import KernelTransport
from steertag.sdp.engine import Engine
from steertag.sdp.proto import sdp_drained, sdp_event

if TYPE_CHECKING:
    from steertag.rdma.connection import Connection
    from steertag.rdma.qp import QueuePair
    from steertag.runtime.sdp import SdpFabric
    from steertag.runtime.sdp_transport import AnyTransport
    from steertag.sdp.sock import SdpSock
    from steertag.sdp.tuning import Tuning

FAIR: Final = 256 * 1024
"""Octets of a Read's answer that are waited for at once: each time that some are taken in costs
more than they do. As many are certain to come."""
_RTS: Final = QpState.RTS
_ROUNDS: Final = 8
"""Turns of engine and stream in one call: each may give the other something to do."""


class EngineParts:
    """An engine and what it stands on, of which the RNIC is told when it is over.

    Args:
        fabric: the Stack's.
        sk: whom its events are for.
    """

    def __init__(self, fabric: SdpFabric, sk: SdpSock) -> None:
        self.fabric = fabric
        self.sk = sk
        self.tuning: Tuning = fabric.tuning(sk)
        self.pd = fabric.rnic.alloc_pd()
        self.cq = CompletionQueue(self.tuning.cq_depth)
        self.ending = False
        self.qp: QueuePair = fabric.rnic.create_qp(
            self.pd, self.cq, self.cq, self.tuning.qp_cap(), self._ended
        )
        self.engine = Engine(
            self.qp,
            fabric.rnic,
            self.pd,
            self.cq,
            self.tuning,
            lambda mask: sdp_event(sk, mask),
            fabric.engine_counters,
            fabric.reactor.clock,
        )
        self.engine.oob_inline = sk.oob_inline

    def _ended(self, reason: str) -> None:
        """The queue pair carries nothing any more: have the engine notice, once it is done."""
        if not self.ending:
            self.ending = True
            self.fabric.reactor.lock.raise_work(self.engine.poll)

    def release(self) -> None:
        """The stream is gone, and with it everything that was registered for it."""
        rnic = self.fabric.rnic
        if self.pd not in rnic.pds:
            return
        rnic.destroy_qp(self.qp)
        self.engine.poll()
        rnic.dealloc_pd(self.pd)


class SdpLink(StreamDriver):
    """`Link`: a StreamDriver whose queue pair an engine has.

    Args:
        fabric: the Stack's.
        connection: the MPA set-up.
        transport: whose stream it is; closed with the link.
        parts: the engine; a passive side's comes with the Request (`equip`).
    """

    def __init__(
        self,
        fabric: SdpFabric,
        connection: Connection,
        transport: AnyTransport,
        parts: EngineParts | None = None,
    ) -> None:
        self._parts = parts
        self._transport = transport
        self._fabric = fabric
        self._turning = False
        self._least = 1
        self.abrupt = False
        """Its end resets the stream, so that its port can be had again at once."""
        super().__init__(fabric.reactor, connection, transport.stream)

    def equip(self, parts: EngineParts) -> None:
        """The engine of a passive side."""
        self._parts = parts

    @property
    def engine(self) -> Engine:
        if self._parts is None:
            raise StateError("the peer's Request isn't here yet")
        return self._parts.engine

    @property
    def tuning(self) -> Tuning:
        if self._parts is None:
            raise StateError("the peer's Request isn't here yet")
        return self._parts.tuning

    def figures(self) -> dict[str, int | str]:
        if self._parts is None:
            return {}
        counters = self._parts.qp.counters
        return {
            "crc": int(self.connection.crc),
            "tx_bytes": counters.tx_bytes,
            "rx_bytes": counters.rx_bytes,
            "unread": self._parts.engine.unread,
            "outq": self._parts.engine.outq,
        }

    # -- what the reactor and the calls ask ----------------------------------------------------

    @property
    def deadline(self) -> float | None:
        own = super().deadline
        if self._parts is None or self.closed:
            return own
        its = self._parts.engine.deadline
        if own is None or its is None:
            return its if own is None else own
        return min(own, its)

    def handle_timer(self, now: float) -> None:
        own = super().deadline
        if own is not None and own <= now:
            super().handle_timer(now)
        parts = self._parts
        if parts is not None and not self.closed:
            its = parts.engine.deadline
            if its is not None and its <= now:
                parts.engine.handle_timer(now)
            self.flush()

    def pump(self) -> bool:
        moved = super().pump()
        self._turn()
        return moved

    def flush(self) -> None:
        """Send what the engine has, without reading."""
        if not (self._blocked or self.closed):
            qp = self._qp
            if qp is None or qp.state is not _RTS or qp.tx.pending():
                self._send()
                self.settle()
        self._turn()

    def take(self) -> None:
        """Take in what the stream has, with one look at it."""
        qp = self._qp
        if qp is None or self.closed or self._turning:
            return
        if self._receives_only(qp):
            self._behind_read(qp, self._receive(MSG_DONTWAIT, 1))
            self._turn()
        else:
            self.pump()

    def look(self) -> bool:
        """Take in what the stream has, without waiting; whether to look again soon."""
        qp = self._qp
        if qp is None or self.closed:
            return False
        if self._parts is not None and self._parts.engine.moves_large:
            # Nothing is to be had by looking again and again: that is for small messages.
            if self._receives_only(qp):
                octets = self._receive(MSG_DONTWAIT, 1)
                if octets:
                    self._drained = True  # what is left, or comes meanwhile, is told of
                    self._behind_read(qp, octets)
                    self._turn()
            elif not self._blocked:
                self.pump()
            if qp.tx.awaited >= FAIR > self._least and self._spins and not self.closed:
                self._tell_from(FAIR)
            return False
        if self.glance(0):
            self._turn()
        elif qp.tx.pending() and not self._blocked:
            self.pump()
        return self._spins and not self.closed and qp.rx.reading_ahead

    def close(self) -> None:
        """End it at once, and everything that belongs to it."""
        if self.closed:
            return
        if self.abrupt:
            self._transport.reset_on_close()
        super().close()
        self._transport.close()
        if self._parts is not None:
            self._parts.release()

    # -- inside --------------------------------------------------------------------------------

    def _settle_slowly(self) -> int:
        if self.abrupt and self.connection.engine.closing:
            # An orderly end could leave the port in TIME-WAIT.
            self.close()
            return 0
        return super()._settle_slowly()

    def _linger(self) -> None:
        """After an orderly end the peer may still have much to read: to close before it has would
        make the host reset the stream as soon as the peer says anything, and drop the rest."""
        super()._linger()
        if self._parts is not None and not self._parts.engine.error:
            self._linger_until = self._loop.clock() + CLOSE_TIMEOUT

    def _turn(self) -> None:
        """Octets were moved: let the engine act on it, and send what it has to say."""
        parts = self._parts
        if parts is None or self._turning:
            return
        entries, qp = parts.cq.entries, parts.qp
        self._turning = True
        try:
            for _ in range(_ROUNDS):
                if entries:
                    parts.engine.poll()
                if self.closed or self._blocked or self._qp is None or not qp.tx.pending():
                    break
                self._send()
                self.settle()
        finally:
            self._turning = False
        if self._least > 1 and not self.closed and qp.tx.awaited < self._least:
            self._tell_from(1)
        sk = parts.sk
        if sk.sk_shutdown and sk.sk_wmem_queued:
            sdp_drained(sk)
        deadline = parts.engine.deadline
        if deadline is not None and not self.closed:
            self._loop.schedule(self)

    def _tell_from(self, octets: int) -> None:
        """Have the stream tell of what is there when it is so much (SO_RCVLOWAT)."""
        self._counters.syscalls += 1
        try:
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, octets)
        except OSError:
            octets = max(octets, self._least)  # then it tells of everything, or is gone
        self._least = octets

    def _hung_up(self) -> bool:
        if isinstance(self._transport, KernelTransport):
            return bool(self._transport.poll() & POLLRDHUP)
        return super()._hung_up()
