"""Octets arrive exactly however the stream between two RNICs cuts what they send and read."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from threading import Thread

import pytest

from steertag import verbs as v

SIZE = 3_000_000
TIMEOUT = 60.0
ACCESS = v.IBV_ACCESS_LOCAL_WRITE | v.IBV_ACCESS_REMOTE_READ | v.IBV_ACCESS_REMOTE_WRITE
Buffer = bytes | bytearray | memoryview


class CuttingStream:
    """A stream whose calls move fewer octets than they could, as chance will have it."""

    def __init__(self, stream: socket.socket, rng: random.Random, most: int) -> None:
        self._stream = stream
        self._rng = rng
        self._most = most
        self.fileno = stream.fileno
        self.setsockopt = stream.setsockopt
        self.setblocking = stream.setblocking
        self.shutdown = stream.shutdown
        self.close = stream.close

    def _cut(self, octets: int) -> int:
        return min(octets, self._rng.choice((1, 7, 100, 4096, self._most)))

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        return self._stream.send(memoryview(data)[: self._cut(len(data))], flags)

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        /,
    ) -> int:
        octets = b"".join(buffers)
        return self._stream.send(octets[: self._cut(len(octets))], flags)

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0, /) -> int:
        return self._stream.recv_into(buffer, self._cut(len(buffer)), flags)

    def recvmsg_into(
        self, buffers: Iterable[memoryview], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, object]:
        left, pieces = self._cut(sum(map(len, buffers := list(buffers)))), []
        for buffer in buffers:
            pieces.append(buffer[:left])
            left -= len(pieces[-1])
        return self._stream.recvmsg_into(pieces, 0, flags)


def side(stream: CuttingStream, *, active: bool) -> tuple[v.Context, v.CMID, v.MR]:
    context = v.Context()
    pd = v.PD(context)
    memory = v.MR(pd, 2 * SIZE, ACCESS)
    cmid = v.CMID(None, v.QPInitAttr(cap=v.QPCap(max_send_wr=16, max_recv_wr=16)), pd)
    cmid.create_qp()
    where = memory.buf.to_bytes(8, "big") + memory.rkey.to_bytes(4, "big")
    if active:
        cmid.adopt_active(stream, v.ConnParam(private_data=where), TIMEOUT)
    else:
        cmid.adopt_passive(stream, TIMEOUT)
        assert cmid.qp is not None
        cmid.qp.post_recv(v.RecvWR(1, sg=[v.SGE(memory.buf, SIZE, memory.lkey)]))
        cmid.accept(v.ConnParam(private_data=where))
    return context, cmid, memory


@pytest.mark.parametrize("opcode", [v.IBV_WR_RDMA_WRITE, v.IBV_WR_RDMA_READ, v.IBV_WR_SEND])
@pytest.mark.parametrize("seed", range(3))
def test_three_megabytes_are_exact_over_a_stream_that_is_cut_anywhere(
    opcode: int, seed: int
) -> None:
    rng = random.Random(seed)
    left, right = socket.socketpair()
    most = rng.choice((20_000, 300_000))
    ends: list[tuple[v.Context, v.CMID, v.MR]] = []
    passive = Thread(
        target=lambda: ends.append(
            side(CuttingStream(right, random.Random(seed + 1), most), active=False)
        )
    )
    passive.start()
    context, cmid, memory = side(CuttingStream(left, rng, most), active=True)
    passive.join(TIMEOUT)
    peer_context, peer, peer_memory = ends[0]
    with context, peer_context:
        data = rng.randbytes(SIZE)
        reading = opcode == v.IBV_WR_RDMA_READ
        (peer_memory if reading else memory).write(data, SIZE)
        wr = v.SendWR(9, sg=[v.SGE(memory.buf, SIZE, memory.lkey)], opcode=opcode)
        wr.set_wr_rdma(
            int.from_bytes(cmid.private_data[8:12], "big"),
            int.from_bytes(cmid.private_data[:8], "big"),
        )
        assert cmid.qp is not None
        assert peer.qp is not None
        cmid.qp.post_send(wr)
        # Its receive takes a message of no octets that comes behind everything else.
        (wc,) = cmid.qp.scq.wait(1, TIMEOUT)
        assert (wc.wr_id, wc.status) == (9, v.WcStatus.SUCCESS)
        if opcode != v.IBV_WR_SEND:
            cmid.qp.post_send(v.SendWR(10, opcode=v.IBV_WR_SEND))
        (wc,) = peer.qp.rcq.wait(1, TIMEOUT)
        assert wc.status is v.WcStatus.SUCCESS
        assert memory.read(SIZE, 0) == data
        assert peer_memory.read(SIZE, 0) == data
