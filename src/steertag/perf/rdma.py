"""Both sides of the RDMA rounds of a benchmark, in perftest's manner.

The program's own thread drives the connection (`progress="caller"`), as perftest's polling does.
Every transfer goes from or to the same registered buffer.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Final

from steertag import verbs as v
from steertag.perf.job import Job
from steertag.socket import socket

_WHERE: Final = struct.Struct("!QI")
_DEPTH: Final = 256
_RECEIVES: Final = 512
_CREDIT_EVERY: Final = 128
_NOTE: Final = 8
_OPCODES: Final = {
    "write": v.IBV_WR_RDMA_WRITE,
    "read": v.IBV_WR_RDMA_READ,
    "send": v.IBV_WR_SEND,
}


class RdmaSide:
    """One side of an RDMA connection over an accepted or connected `stream`.

    Args:
        stream: is the connection's from here on.
        active: connects; the other side accepts.
        size: octets of a message.
        crc: ask for CRC32C.
        context: where it is made; None opens one of its own.
    """

    def __init__(
        self,
        stream: socket,
        *,
        active: bool,
        size: int,
        crc: bool,
        context: v.Context | None = None,
    ) -> None:
        self._own = context is None
        self._context = v.Context(progress="caller") if context is None else context
        pd = v.PD(self._context)
        self._scq = v.CQ(self._context, 2 * _DEPTH)
        self._rcq = v.CQ(self._context, 2 * _RECEIVES)
        cap = v.QPCap(max_send_wr=_DEPTH, max_recv_wr=_RECEIVES)
        attr = v.QPInitAttr(scq=self._scq, rcq=self._rcq, cap=cap, sq_sig_all=False)
        self._cmid = v.CMID(None, attr, pd)
        local = v.IBV_ACCESS_LOCAL_WRITE
        self._local_buffer = bytearray(size)
        self._local = v.MR(pd, self._local_buffer, local)
        self._exposed_buffer = bytearray(size)
        self._exposed = v.MR(
            pd,
            self._exposed_buffer,
            local | v.IBV_ACCESS_REMOTE_WRITE | v.IBV_ACCESS_REMOTE_READ,
        )
        self._inbox = v.MR(pd, bytearray(max(size, _NOTE)), local)
        self._qp = self._cmid.create_qp()
        self._repost(_RECEIVES)
        param = v.ConnParam(
            private_data=_WHERE.pack(self._exposed.buf, self._exposed.rkey), crc=crc
        )
        if active:
            self._cmid.adopt_active(stream, param)
        else:
            self._cmid.adopt_passive(stream)
            self._cmid.accept(param)
        self._peer_addr, self._peer_rkey = _WHERE.unpack(self._cmid.private_data)
        self.crc = self._cmid.crc
        self.counters = self._qp.counters

    def close(self) -> None:
        self._cmid.disconnect()
        self._cmid.wait_disconnected(1.0)
        if self._own:
            self._context.close()

    # -- bandwidth and rate --------------------------------------------------------------------

    def active(self, job: Job) -> float:
        """Move the job's messages; seconds until the last is there."""
        started = time.perf_counter()
        notes = self._post_all(job)
        if job.op == "read":
            elapsed = time.perf_counter() - started
            self._tell()
            self._hear()
            return elapsed
        # The peer's answer says that everything before our note has been placed.
        self._tell()
        self._hear(1 + job.count // _CREDIT_EVERY - notes if job.op == "send" else 1)
        return time.perf_counter() - started

    def passive(self, job: Job) -> None:
        if job.op == "send":
            self._receive_many(job)
        self._hear()
        self._tell()

    def _post_all(self, job: Job) -> int:
        """Post the job's messages and see them complete; how many notes of the peer came by.

        Sends take credits: iWARP knows no "receiver not ready", a Send without a posted receive
        ends the connection.
        """
        window = min(_DEPTH, max(2 * job.post_list, 16))
        whole = self._requests(job, job.post_list)
        sends = job.op == "send"
        credit = _RECEIVES - _CREDIT_EVERY if sends else job.count
        outstanding, left, notes = 0, job.count, 0
        while left or outstanding:
            size = min(job.post_list, left)
            if size and size <= credit and outstanding + size <= window:
                self._qp.post_send(whole if size == job.post_list else self._requests(job, size))
                outstanding += size
                left -= size
                credit -= size
                continue
            if sends:
                self._context.wait_for(self._anything)
                heard = self._receive(_RECEIVES, wait=False)
                notes += heard
                credit += heard * _CREDIT_EVERY
                if not self._scq.queue.entries:
                    continue
            outstanding -= self._reap()
        return notes

    def _anything(self) -> bool:
        return bool(self._scq.queue.entries or self._rcq.queue.entries)

    def _requests(self, job: Job, count: int, *, signal: bool = True) -> v.SendWR:
        """A list of `count` requests, the last one signalled; its wr_id is their number."""
        opcode = _OPCODES[job.op]
        sge = [v.SGE(self._local.buf, job.size, self._local.lkey)]
        wr = None
        for index in range(count):
            signalled = signal and index == 0
            flags = v.IBV_SEND_SIGNALED if signalled else 0
            wr = v.SendWR(count if signalled else 0, None, sge, opcode, flags, wr)
            wr.set_wr_rdma(self._peer_rkey, self._peer_addr)
        if wr is None:
            raise ValueError("a list of no requests")
        return wr

    def _reap(self) -> int:
        """Wait for send completions; how many requests they stand for."""
        done = 0
        for wc in self._scq.wait(64):
            _check(wc)
            done += wc.wr_id
        return done

    def _receive_many(self, job: Job) -> None:
        got = credited = 0
        while got < job.count:
            got += self._receive(min(64, job.count - got))
            while got - credited >= _CREDIT_EVERY:
                credited += _CREDIT_EVERY
                self._tell()

    # -- latency -------------------------------------------------------------------------------

    def ping(self, job: Job) -> list[float]:
        """Round trips, in seconds: a message and its echo, or one RDMA Read."""
        samples = []
        clock, exchange = time.perf_counter, self._ping_of(job)
        # The echo says that a Write or Send has arrived: its completion would say nothing more.
        wr = self._requests(job, 1, signal=job.op == "read")
        for index in range(job.count):
            started = clock()
            exchange(wr, index, job)
            samples.append(clock() - started)
            self._discard_send_completions()
        if job.op == "read":
            self._tell()
            self._hear()
        return samples

    def pong(self, job: Job) -> None:
        wr = self._requests(job, 1, signal=False)
        if job.op == "read":
            # Reads are answered by the RNIC; the program only drives it until it is told.
            self._hear()
            self._tell()
            return
        for index in range(job.count):
            if job.op == "write":
                self._await_mark(index, job)
                self._post_mark(wr, index)
            else:
                self._await(self._rcq, job)
                self._receive(1)
                self._qp.post_send(wr)
            self._discard_send_completions()

    def _ping_of(self, job: Job) -> Callable[[v.SendWR, int, Job], None]:
        return {"write": self._ping_write, "send": self._ping_send, "read": self._ping_read}[job.op]

    def _ping_write(self, wr: v.SendWR, index: int, job: Job) -> None:
        self._post_mark(wr, index)
        self._await_mark(index, job)

    def _ping_send(self, wr: v.SendWR, index: int, job: Job) -> None:
        self._qp.post_send(wr)
        self._await(self._rcq, job)
        self._receive(1)

    def _ping_read(self, wr: v.SendWR, index: int, job: Job) -> None:
        self._qp.post_send(wr)
        self._await(self._scq, job)

    def _post_mark(self, wr: v.SendWR, index: int) -> None:
        """Write a message whose last octet the peer waits for."""
        self._local_buffer[-1] = _mark(index)
        self._qp.post_send(wr)

    def _await_mark(self, index: int, job: Job) -> None:
        mark, exposed, progress = _mark(index), self._exposed_buffer, self._context.progress
        timeout = 0.0 if job.poll else None
        while exposed[-1] != mark:
            if not progress(timeout) and self._cmid.disconnected:
                raise ConnectionResetError(f"the RDMA connection ended: {self._qp.end_reason}")

    def _await(self, cq: v.CQ, job: Job) -> None:
        if job.poll:
            entries, progress = cq.queue.entries, self._context.progress
            while not entries:
                progress(0.0)
        else:
            self._context.wait_for(lambda: bool(cq.queue.entries))

    # -- small things --------------------------------------------------------------------------

    def _discard_send_completions(self) -> None:
        while self._scq.queue.entries:
            for wc in self._scq.poll(64)[1]:
                _check(wc)

    def _tell(self) -> None:
        """Send the peer a note."""
        sge = [v.SGE(self._inbox.buf, _NOTE, self._inbox.lkey)]
        self._qp.post_send(v.SendWR(0, sg=sge, opcode=v.IBV_WR_SEND))

    def _hear(self, notes: int = 1) -> None:
        """Wait for notes of the peer."""
        while notes > 0:
            notes -= self._receive(notes)
        self._discard_send_completions()

    def _receive(self, limit: int, *, wait: bool = True) -> int:
        """Take receive completions, at most `limit`, and post as many receives again."""
        taken = self._rcq.wait(limit) if wait else self._rcq.poll(limit)[1]
        for wc in taken:
            _check(wc)
        self._repost(len(taken))
        return len(taken)

    def _repost(self, count: int) -> None:
        sge = [v.SGE(self._inbox.buf, self._inbox.length, self._inbox.lkey)]
        wr = v.RecvWR(0, sg=sge)
        self._qp.post_recv(wr for _ in range(count))


def _mark(index: int) -> int:
    return index % 255 + 1


def _check(wc: v.WC) -> None:
    if wc.status is not v.WcStatus.SUCCESS:
        raise ConnectionResetError(f"a work request failed: {wc.status.name}")
