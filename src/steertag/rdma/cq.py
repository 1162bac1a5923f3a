"""Work completions and the queue they are taken from (Linux: siw_cq.c)."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

from steertag.errors import os_error
from steertag.rdma.constants import WcStatus


class WC:
    """One work completion (`struct ibv_wc`).

    Attributes:
        wr_id: what the work request carried.
        status: a `WcStatus`.
        opcode: `WC_*`; says something only where `status` is success or the request is known.
        byte_len: octets received or read.
        qp_num: the QP it happened on.
        vendor_err: a Terminate's control word (layer, etype, code) where one was the cause.
        wc_flags: WC_FLAG_WITH_IMM, WC_FLAG_WITH_INV.
        imm_data: the peer's 32 bits of immediate data, where the flag says so.
        invalidated_rkey: the STag that the peer's Send invalidated, where the flag says so.
    """

    __slots__ = (
        "byte_len",
        "imm_data",
        "invalidated_rkey",
        "opcode",
        "qp_num",
        "status",
        "vendor_err",
        "wc_flags",
        "wr_id",
    )

    def __init__(
        self,
        wr_id: int,
        status: WcStatus,
        opcode: int,
        byte_len: int,
        qp_num: int,
        vendor_err: int = 0,
        wc_flags: int = 0,
        imm_data: int = 0,
        invalidated_rkey: int = 0,
    ) -> None:
        self.wr_id = wr_id
        self.status = status
        self.opcode = opcode
        self.byte_len = byte_len
        self.qp_num = qp_num
        self.vendor_err = vendor_err
        self.wc_flags = wc_flags
        self.imm_data = imm_data
        self.invalidated_rkey = invalidated_rkey

    def __repr__(self) -> str:
        return (
            f"WC(wr_id={self.wr_id}, status={self.status.name}, opcode={self.opcode},"
            f" byte_len={self.byte_len}, qp_num={self.qp_num})"
        )


class CompletionQueue:
    """Completions in the order they happened, at most `depth` of them.

    A completion that finds the queue full is lost, as on hardware; `overrun` says so and
    `on_overrun` is called, which is expected to end the QPs that use the queue.

    Args:
        depth: completions it holds.
        on_event: called once after `arm()` when the next completion arrives.
        on_overrun: called when a completion is lost.
        on_push: called with every completion, where somebody sleeps until one comes.
    """

    def __init__(
        self,
        depth: int,
        on_event: Callable[[], None] | None = None,
        on_overrun: Callable[[], None] | None = None,
        on_push: Callable[[], None] | None = None,
    ) -> None:
        self.depth = depth
        self.entries: deque[WC] = deque()
        self.overrun = False
        self._armed = False
        self._armed_solicited = False
        self._on_event = on_event
        self._on_overrun = on_overrun
        self._on_push = on_push

    def push(self, wc: WC, solicited: bool = False) -> None:
        if len(self.entries) >= self.depth:
            self.overrun = True
            if self._on_overrun is not None:
                self._on_overrun()
            return
        self.entries.append(wc)
        if self._on_push is not None:
            self._on_push()
        if self._armed and (
            solicited or not self._armed_solicited or wc.status is not WcStatus.SUCCESS
        ):
            self._armed = False
            if self._on_event is not None:
                self._on_event()

    def resize(self, depth: int) -> None:
        """`ibv_resize_cq`. Raises OSError EINVAL below what is in it."""
        if depth < max(1, len(self.entries)):
            raise os_error(errno.EINVAL, f"{len(self.entries)} completions are in the queue")
        self.depth = depth

    def poll(self, limit: int) -> list[WC]:
        """Take at most `limit` completions, oldest first."""
        entries = self.entries
        return [entries.popleft() for _ in range(min(limit, len(entries)))]

    def arm(self, solicited_only: bool = False) -> None:
        """`ibv_req_notify_cq`: the next completion (or solicited one) calls `on_event`, once."""
        self._armed_solicited = solicited_only and (not self._armed or self._armed_solicited)
        self._armed = True
