"""Two RNICs joined by a recorded stream in memory; nothing waits and nothing is random."""

from __future__ import annotations

import random

from steertag.observe.pcap import StreamTap
from steertag.rdma.connection import Connection, Offer
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE,
    ACCESS_REMOTE_INVALIDATE,
)
from steertag.rdma.cq import WC, CompletionQueue
from steertag.rdma.memory import Region
from steertag.rdma.mpa_state import MpaState
from steertag.rdma.qp import QpCap
from steertag.rdma.rnic import Rnic
from steertag.rdma.wr import SGE, RecvWR, SendWR

ALL_ACCESS = ACCESS_LOCAL_WRITE | ACCESS_REMOTE | ACCESS_REMOTE_INVALIDATE


class End:
    """One RNIC with one queue pair and one region."""

    def __init__(self, seed: int, memory: bytearray) -> None:
        rnic = Rnic(random.Random(seed).getrandbits)
        pd = rnic.alloc_pd()
        self.cq = CompletionQueue(1024)
        self.qp = rnic.create_qp(pd, self.cq, self.cq, QpCap())
        self.memory = memory
        self.region: Region = rnic.register(pd, memory, ALL_ACCESS)
        self.connection: Connection

    def sge(self, offset: int, length: int) -> SGE:
        return SGE(self.region.base + offset, length, self.region.stag)

    def post(self, opcode: int, offset: int, length: int, peer: End | None = None) -> None:
        """Post one request on `length` octets at `offset` of either end's memory."""
        wr = SendWR(sg=[self.sge(offset, length)], opcode=opcode)
        if peer is not None:
            wr.set_wr_rdma(peer.region.stag, peer.region.base + offset)
        self.qp.post_send(wr)

    def post_recv(self, offset: int, length: int) -> None:
        self.qp.post_recv(RecvWR(sg=[self.sge(offset, length)]))

    def completions(self) -> list[WC]:
        return self.cq.poll(1024)


class Pair:
    """`client` has opened a connection to `server`, whose octets `tap` records."""

    def __init__(self, tap: StreamTap, offer: Offer, answer: Offer, *, size: int = 300_000) -> None:
        self._tap = tap
        self.client = End(1, bytearray(size))
        self.server = End(2, bytearray(size))
        self.client.connection = Connection.initiate(self.client.qp, offer, now=0.0)
        self.server.connection = Connection.respond(now=0.0)
        self.run()
        assert self.server.connection.state is MpaState.REQUESTED
        self.server.connection.accept(self.server.qp, answer)
        self.run()

    def run(self) -> None:
        """Carry octets both ways until neither end has any to send."""
        while self._carry(self.client, self.server, sent=True) or self._carry(
            self.server, self.client, sent=False
        ):
            pass

    def _carry(self, source: End, sink: End, *, sent: bool) -> bool:
        engine = source.connection.engine
        if not engine.wants_to_send:
            return False
        octets = b"".join(engine.data_to_send())
        (self._tap.sent if sent else self._tap.received)(octets)
        engine.sent(len(octets))
        while octets:
            into = sink.connection.engine.buffers()[0]
            part, octets = octets[: len(into)], octets[len(into) :]
            into[: len(part)] = part
            sink.connection.engine.received(len(part))
        return True
