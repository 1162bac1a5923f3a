"""RNICs for tests: one with a queue pair that is connected to nobody, and two on a link."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from steertag.rdma.connection import Connection, Engine, Offer
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    SEND_SIGNALED,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
    WcStatus,
)
from steertag.rdma.cq import WC, CompletionQueue
from steertag.rdma.memory import Region
from steertag.rdma.mpa_state import MpaState
from steertag.rdma.qp import QpCap, QueuePair
from steertag.rdma.rnic import Rnic
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.testing.link import Link, drain, feed
from steertag.wire import ddp, mpa, rdmap

ALL_ACCESS = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_WRITE
SIZE = 300_000
CAP = QpCap(max_send_wr=256, max_recv_wr=256, max_send_sge=8, max_recv_sge=8)


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class End:
    """One RNIC with a queue pair, two completion queues and a region of `size` octets."""

    def __init__(
        self,
        seed: int = 1,
        size: int = SIZE,
        access: int = ALL_ACCESS,
        cap: QpCap = CAP,
        cq_depth: int = 4096,
        rnic: Rnic | None = None,
        pd: int | None = None,
    ) -> None:
        self.rnic = Rnic(random.Random(seed).getrandbits) if rnic is None else rnic
        self.pd = self.rnic.alloc_pd() if pd is None else pd
        self.scq = CompletionQueue(cq_depth)
        self.rcq = CompletionQueue(cq_depth)
        self.qp: QueuePair = self.rnic.create_qp(self.pd, self.scq, self.rcq, cap)
        self.memory = bytearray(size)
        self.region: Region = self.rnic.register(self.pd, self.memory, access)
        self.connection: Connection | None = None

    @property
    def engine(self) -> Engine:
        return self.qp if self.connection is None else self.connection.engine

    def sge(self, offset: int, length: int, region: Region | None = None) -> SGE:
        region = region or self.region
        return SGE(region.base + offset, length, region.stag)

    def write(
        self,
        peer: Region,
        local: int,
        remote: int,
        length: int,
        wr_id: int = 0,
        flags: int = SEND_SIGNALED,
    ) -> None:
        self._one_sided(WR_RDMA_WRITE, peer, local, remote, length, wr_id, flags)

    def read(
        self,
        peer: Region,
        local: int,
        remote: int,
        length: int,
        wr_id: int = 0,
        flags: int = SEND_SIGNALED,
    ) -> None:
        self._one_sided(WR_RDMA_READ, peer, local, remote, length, wr_id, flags)

    def _one_sided(
        self,
        opcode: int,
        peer: Region,
        local: int,
        remote: int,
        length: int,
        wr_id: int,
        flags: int,
    ) -> None:
        wr = SendWR(wr_id, sg=[self.sge(local, length)], opcode=opcode, send_flags=flags)
        wr.set_wr_rdma(peer.stag, peer.base + remote)
        self.qp.post_send(wr)

    def send(self, *parts: tuple[int, int], wr_id: int = 0, flags: int = SEND_SIGNALED) -> None:
        """Post a Send of the (offset, length) pieces of the region."""
        sg = [self.sge(*part) for part in parts]
        self.qp.post_send(SendWR(wr_id, sg=sg, opcode=WR_SEND, send_flags=flags))

    def recv(self, *parts: tuple[int, int], wr_id: int = 0) -> None:
        self.qp.post_recv(RecvWR(wr_id, sg=[self.sge(*part) for part in parts]))

    def sent(self) -> list[WC]:
        return self.scq.poll(10_000)

    def got(self) -> list[WC]:
        return self.rcq.poll(10_000)


def ids(completions: list[WC]) -> list[tuple[int, WcStatus]]:
    return [(wc.wr_id, wc.status) for wc in completions]


def lone(
    *,
    crc: bool = True,
    ird: int = 16,
    ord: int = 16,
    held: bool = False,
    max_ulpdu: int = mpa.MAX_ULPDU - 1,
    seed: int = 1,
    size: int = SIZE,
    access: int = ALL_ACCESS,
    cap: QpCap = CAP,
    cq_depth: int = 4096,
) -> End:
    """An End whose queue pair is connected; the test plays its peer with `feed` and `drain`."""
    end = End(seed, size, access, cap, cq_depth)
    end.qp.connected(crc=crc, ird=ird, ord=ord, held=held, max_ulpdu=max_ulpdu)
    return end


@dataclass
class Pair:
    """`client` has opened a connection to `server`."""

    client: End
    server: End
    link: Link
    octets: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))

    def run(self) -> None:
        self.link.run()

    def fpdus_sent(self, side: int) -> list[bytes]:
        """ULPDUs that an end has sent since its MPA frame."""
        return fpdus(_behind_start_frame(bytes(self.octets[side])))


def pair(
    rng: random.Random | None = None,
    offer: Offer | None = None,
    answer: Offer | None = None,
    *,
    capacity: int = 1 << 22,
    client: End | None = None,
    server: End | None = None,
) -> Pair:
    client, server = client or End(1), server or End(2)
    client.connection = Connection.initiate(client.qp, offer or Offer(), now=0.0)
    server.connection = Connection.respond(now=0.0)
    octets = (bytearray(), bytearray())
    link = Link(
        client,
        server,
        rng,
        capacity=capacity,
        on_octets=lambda side, data: octets[side].extend(data),
    )
    link.run()
    assert server.connection.state is MpaState.REQUESTED
    server.connection.accept(server.qp, answer or Offer())
    link.run()
    assert client.connection.state is MpaState.ESTABLISHED
    return Pair(client, server, link, octets)


# -- octets by hand --------------------------------------------------------------------------------


def _behind_start_frame(octets: bytes) -> bytes:
    frame = mpa.StartFrame.parse(octets)
    assert frame is not None
    return octets[len(frame) :]


def fpdus(octets: bytes) -> list[bytes]:
    """The ULPDUs of whole FPDUs."""
    found, at = [], 0
    while at < len(octets):
        frame = mpa.Fpdu.parse(octets, at)
        assert frame is not None, "the stream ends inside an FPDU"
        found.append(bytes(frame.ulpdu))
        at += frame.size
    return found


def fpdu(header: ddp.Tagged | ddp.Untagged, payload: bytes = b"", *, crc: bool = True) -> bytes:
    return b"".join(mpa.emit_fpdu([header.emit(), payload], crc=crc))


def tagged(
    opcode: int, stag: int, to: int, payload: bytes = b"", *, last: bool = True, crc: bool = True
) -> bytes:
    return fpdu(ddp.Tagged(last, rdmap.control(opcode), stag, to), payload, crc=crc)


def untagged(
    opcode: int,
    qn: int,
    msn: int,
    payload: bytes = b"",
    *,
    mo: int = 0,
    last: bool = True,
    crc: bool = True,
) -> bytes:
    return fpdu(ddp.Untagged(last, rdmap.control(opcode), qn, msn, mo), payload, crc=crc)


def write_fpdu(stag: int, to: int, payload: bytes, *, last: bool = True) -> bytes:
    return tagged(rdmap.Opcode.WRITE, stag, to, payload, last=last)


def send_fpdu(
    payload: bytes, msn: int = 1, *, mo: int = 0, last: bool = True, solicited: bool = False
) -> bytes:
    opcode = rdmap.Opcode.SEND_SE if solicited else rdmap.Opcode.SEND
    return untagged(opcode, rdmap.QN_SEND, msn, payload, mo=mo, last=last)


def read_request_fpdu(request: rdmap.ReadRequest, msn: int = 1) -> bytes:
    return untagged(rdmap.Opcode.READ_REQUEST, rdmap.QN_READ_REQUEST, msn, request.emit())


def terminates(octets: bytes) -> list[rdmap.Terminate]:
    """The Terminates among FPDUs."""
    return [
        rdmap.Terminate.parse(ulpdu[ddp.UNTAGGED_LEN :])
        for ulpdu in fpdus(octets)
        if not ulpdu[0] & ddp.T_FLAG and ulpdu[1] & rdmap.OPCODE_MASK == rdmap.Opcode.TERMINATE
    ]


__all__ = [
    "ALL_ACCESS",
    "CAP",
    "SIZE",
    "End",
    "Pair",
    "drain",
    "feed",
    "fpdu",
    "fpdus",
    "ids",
    "lone",
    "pair",
    "pattern",
    "read_request_fpdu",
    "send_fpdu",
    "tagged",
    "terminates",
    "untagged",
    "write_fpdu",
]
