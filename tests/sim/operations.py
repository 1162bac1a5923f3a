"""Ends with every right, and requests of the rarer kinds."""

from __future__ import annotations

import sys

from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_MW_BIND,
    ACCESS_REMOTE_ATOMIC,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    SEND_SIGNALED,
    WR_BIND_MW,
    WcStatus,
)
from steertag.rdma.memory import Window, WindowBind
from steertag.rdma.qp import QpCap
from steertag.rdma.wr import SendWR
from tests.sim.ends import (
    End,
    Pair,
    pair,
)

OK = WcStatus.SUCCESS
EVERYTHING = (
    ACCESS_LOCAL_WRITE
    | ACCESS_REMOTE_READ
    | ACCESS_REMOTE_WRITE
    | ACCESS_REMOTE_ATOMIC
    | ACCESS_MW_BIND
)
INLINE_CAP = QpCap(
    max_send_wr=64, max_recv_wr=64, max_send_sge=8, max_recv_sge=8, max_inline_data=512
)


def ends() -> tuple[End, End]:
    return End(1, access=EVERYTHING, cap=INLINE_CAP), End(2, access=EVERYTHING, cap=INLINE_CAP)


def joined() -> Pair:
    client, server = ends()
    return pair(client=client, server=server)


def post(end: End, opcode: int, wr_id: int = 1, *parts: tuple[int, int], **fields: int) -> None:
    flags = fields.pop("flags", SEND_SIGNALED)
    wr = SendWR(wr_id, sg=[end.sge(*part) for part in parts], opcode=opcode, send_flags=flags)
    for name, value in fields.items():
        setattr(wr, name, value)
    end.qp.post_send(wr)


def bind(end: End, window: Window, stag: int, at: int, length: int, access: int) -> None:
    wr = SendWR(9, opcode=WR_BIND_MW)
    wr.bind = WindowBind(window, stag, end.region, end.region.base + at, length, access)
    end.qp.post_send(wr)


def word(end: End, at: int) -> int:
    return int.from_bytes(end.memory[at : at + 8], sys.byteorder)
