"""One SDP stream over one queue pair (sans-I/O).

Called with the Stack's lock held. Never waits, and never raises for what the peer sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from steertag.rdma.cq import CompletionQueue
from steertag.rdma.qp import QueuePair
from steertag.rdma.rnic import Rnic
from steertag.sdp.const import SdpState
from steertag.sdp.counters import SdpCounters
from steertag.sdp.transfer import Transfer
from steertag.sdp.tuning import Tuning

Buffer = bytes | bytearray | memoryview


class Writer(Protocol):
    """Where received octets go: `MsgHdr.write` and `RecvMsg.write` are such."""

    def __call__(self, offset: int, data: Buffer, /) -> int: ...


class Engine:
    """Args:
    qp: the queue pair, made with `tuning.qp_cap()`, in INIT.
    rnic: what it belongs to.
    pd: its protection domain, the stream's own.
    cq: its completion queue for sends and receives, of `tuning.cq_depth`, the stream's own.
    tuning: limits and thresholds; may be changed while the stream lives, sizes of the ring apart.
    on_event: called with the POLL bits that are news.
    counters: where to count.
    clock: gives seconds, monotonic.

    Attributes:
        state: where the stream is.
        error: errno that ended it; 0 while it lives and after an orderly end.
        oob_inline: out-of-band octets stay in the stream (SO_OOBINLINE).
        deadline: when `handle_timer` has to be called; None for not at all. May change with
            every call.
    """

    def __init__(
        self,
        qp: QueuePair,
        rnic: Rnic,
        pd: int,
        cq: CompletionQueue,
        tuning: Tuning,
        on_event: Callable[[int], None],
        counters: SdpCounters,
        clock: Callable[[], float],
    ) -> None:
        self.state = SdpState.INIT
        self.error = 0
        self.oob_inline = False
        self.deadline: float | None = None
        raise NotImplementedError

    # -- set-up --------------------------------------------------------------------------------

    def hello(self, local: bytes = bytes(16), remote: bytes = bytes(16), port: int = 0) -> bytes:
        """Private data of the active side's MPA Request.

        Args:
            local, remote: packed addresses, 4 or 16 octets.
            port: the stream's local port.
        """
        raise NotImplementedError

    def take_hello(self, private_data: bytes) -> None:
        """The passive side's: what the Request brought. Raises ProtocolError: not SDP, another
        version, sizes that can't work."""
        raise NotImplementedError

    def hello_ack(self) -> bytes:
        """Private data of the passive side's MPA Reply, after `take_hello`."""
        raise NotImplementedError

    def take_hello_ack(self, private_data: bytes) -> None:
        """The active side's: what the Reply brought. Raises ProtocolError as `take_hello`."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Post the receives: before the MPA Request or Reply is sent. Raises OSError ENOMEM."""
        raise NotImplementedError

    def start(self) -> None:
        """The queue pair is connected (RTS) and the Hello of the peer taken: data may flow."""
        raise NotImplementedError

    # -- progress ------------------------------------------------------------------------------

    def poll(self) -> None:
        """Take completions off the queue and act on them; notice the queue pair's end.

        To be called after octets of the stream were moved, and from the queue pair's `on_end`.
        """
        raise NotImplementedError

    def handle_timer(self, now: float) -> None:
        """`deadline` has come."""
        raise NotImplementedError

    # -- the data source -----------------------------------------------------------------------

    def sendmsg(self, parts: Sequence[memoryview], *, oob: bool = False) -> int:
        """Take octets to send; with `oob` the last one taken is out-of-band data.

        Memory that can't change (a view over `bytes`) of at least `zcopy_threshold` octets is
        kept and advertised; everything else is copied. Gives the octets taken, 0 where there is
        no room. The caller looks at `error` and `send_shut` first.
        """
        raise NotImplementedError

    def send_in_place(self, part: memoryview) -> Transfer:
        """Send memory that may change after `Transfer.done`, without a copy.

        Not bounded by `snd_bytes`: it is the caller's memory.
        """
        raise NotImplementedError

    def writable(self) -> bool:
        """Whether `sendmsg` would take a fair amount."""
        raise NotImplementedError

    @property
    def outq(self) -> int:
        """Octets taken from the application that are not known to be delivered (SIOCOUTQ)."""
        raise NotImplementedError

    @property
    def send_shut(self) -> bool:
        """`shutdown_send` was called."""
        raise NotImplementedError

    # -- the data sink -------------------------------------------------------------------------

    def recv_into(self, write: Writer, room: int, *, peek: bool = False) -> int:
        """Give what is there to `write`, at most `room` octets; 0 for nothing.

        Octets handed over may not be kept by reference after the call that asked for them
        returns. Stops before the out-of-band mark, if anything was read.
        """
        raise NotImplementedError

    def recv_in_place(self, part: memoryview) -> Transfer:
        """The caller waits with this buffer.

        What is there already is copied; else an advertised source is read straight into it, or
        it is advertised itself, or filled with whatever comes. Done with the first octets, at
        the end of the stream (`octets` 0, `error` 0), or by an error.
        """
        raise NotImplementedError

    @property
    def unread(self) -> int:
        """Octets that `recv_into` could give now (SIOCINQ)."""
        raise NotImplementedError

    @property
    def readable(self) -> bool:
        """Octets, the end of the stream, or an error are there to be read."""
        raise NotImplementedError

    @property
    def eof(self) -> bool:
        """The peer has shut its side and everything is read (or we shut ours)."""
        raise NotImplementedError

    @property
    def peer_shut(self) -> bool:
        """The peer's DisConn is here (POLLRDHUP)."""
        raise NotImplementedError

    @property
    def oob_pending(self) -> bool:
        """Out-of-band data is there or announced (POLLPRI)."""
        raise NotImplementedError

    def recv_oob(self, *, peek: bool = False) -> bytes | None:
        """The out-of-band octet: b"" where it was announced and isn't here; None for none."""
        raise NotImplementedError

    def at_mark(self) -> bool:
        """Whether the next octet is the one behind (inline: at) the mark (SIOCATMARK)."""
        raise NotImplementedError

    # -- the end -------------------------------------------------------------------------------

    def shutdown_send(self) -> None:
        """DisConn, behind everything that is to be sent. Once is enough."""
        raise NotImplementedError

    def shutdown_recv(self) -> None:
        """Whatever is unread or comes is thrown away; the peer isn't told."""
        raise NotImplementedError

    def close(self) -> None:
        """Nobody reads or sends any more: DisConn behind what is left to be sent; unread octets,
        and those that come, reset the stream as TCP does. `ended` tells when it is over."""
        raise NotImplementedError

    def abort(self) -> None:
        """AbortConn, as fast as it gets away; what is unsent is dropped. Transfers are done."""
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        """The queue pair has ended: nothing moves any more, and no memory is registered."""
        raise NotImplementedError
