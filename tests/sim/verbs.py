"""Two processes' worth of verbs objects in one process, over real loopback sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from steertag.verbs import (
    CMID,
    MR,
    PD,
    SGE,
    AddrInfo,
    ConnParam,
    Context,
    QPCap,
    QPInitAttr,
    RecvWR,
    SendWR,
)
from steertag.verbs.device import Progress
from steertag.verbs.enums import (
    IBV_ACCESS_LOCAL_WRITE,
    IBV_ACCESS_REMOTE_READ,
    IBV_ACCESS_REMOTE_WRITE,
    IBV_WR_RDMA_READ,
    IBV_WR_RDMA_WRITE,
    IBV_WR_SEND,
    RAI_PASSIVE,
)

TIMEOUT = 60.0
HOST = "127.0.0.1"
ALL_ACCESS = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ
SIZE = 1 << 20
MODES: list[Progress] = ["thread", "caller"]
CAP = QPCap(max_send_wr=512, max_recv_wr=512)


def listening(pd: PD | None = None, backlog: int = 0, init: QPInitAttr | None = None) -> CMID:
    listener = CMID(AddrInfo(src=HOST, src_service=0, flags=RAI_PASSIVE), init, pd)
    try:
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def towards(listener: CMID, pd: PD | None = None, init: QPInitAttr | None = None) -> CMID:
    host, port = listener.getsockname()
    return CMID(AddrInfo(dst=host, dst_service=port), init, pd)


@dataclass
class Side:
    """A connected CMID with a region of `SIZE` octets."""

    cmid: CMID
    memory: bytearray
    mr: MR

    def sge(self, offset: int, length: int) -> SGE:
        return SGE(self.mr.buf + offset, length, self.mr.lkey)

    def write(self, peer: Side, length: int, local: int = 0, remote: int = 0, id: int = 0) -> None:
        self._post(IBV_WR_RDMA_WRITE, peer.mr, length, local, remote, id)

    def read(self, peer: Side, length: int, local: int = 0, remote: int = 0, id: int = 0) -> None:
        self._post(IBV_WR_RDMA_READ, peer.mr, length, local, remote, id)

    def send(self, length: int, local: int = 0, id: int = 0) -> None:
        self._post(IBV_WR_SEND, self.mr, length, local, 0, id)

    def recv(self, length: int, local: int = 0, id: int = 0) -> None:
        assert self.cmid.qp is not None
        self.cmid.qp.post_recv(RecvWR(id, sg=[self.sge(local, length)]))

    def _post(self, opcode: int, peer: MR, length: int, local: int, remote: int, id: int) -> None:
        assert self.cmid.qp is not None
        wr = SendWR(id, sg=[self.sge(local, length)], opcode=opcode)
        wr.set_wr_rdma(peer.rkey, peer.buf + remote)
        self.cmid.qp.post_send(wr)


def region(cmid: CMID, size: int = SIZE) -> Side:
    memory = bytearray(size)
    return Side(cmid, memory, MR(cmid.pd, memory, ALL_ACCESS))


Init = Callable[[Context], QPInitAttr]


def default_init(context: Context) -> QPInitAttr:
    return QPInitAttr(cap=CAP)


@contextmanager
def connected(
    progress: Progress = "thread",
    offer: ConnParam | None = None,
    answer: ConnParam | None = None,
    client_init: Init = default_init,
    server_init: Init = default_init,
    receives: int = 0,
) -> Iterator[tuple[Side, Side]]:
    """A client and a server, each with a Context of its own; the server has posted `receives`."""
    with (
        Context(progress=progress) as here,
        Context(progress=progress) as there,
        listening(PD(there), init=server_init(there)) as listener,
        towards(listener, PD(here), client_init(here)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        under_way = pool.submit(client.connect, offer, TIMEOUT)
        with listener.get_request(TIMEOUT) as server:
            server.create_qp()
            side = region(server)
            for n in range(receives):
                side.recv(1024, n * 1024, n)
            server.accept(answer)
            under_way.result(TIMEOUT)
            yield region(client), side


@contextmanager
def plain_server() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as server:
        server.settimeout(TIMEOUT)
        yield server
