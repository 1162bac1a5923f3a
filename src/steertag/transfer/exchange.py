"""The part of a transfer that is the same at a client and at a server: one sends, one receives.

`Sending` and `Receiving` each run one attempt over one path on a control connection on which the
request has been agreed. They raise PathFailed when another path may help and TransferError when
nothing will; the peer has been told by then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from steertag.transfer import rdma, tcp
from steertag.transfer.auth import same
from steertag.transfer.control import Control
from steertag.transfer.digest import Hasher, new_digest
from steertag.transfer.errors import ExitCode, PathCode, PathFailed, TransferError
from steertag.transfer.names import escape
from steertag.transfer.paths import PathName
from steertag.transfer.progress import Progress
from steertag.transfer.protocol import Done, Result
from steertag.transfer.rdma import End, Job
from steertag.transfer.report import Meter, Side
from steertag.transfer.store import Sink, Source


@dataclass(frozen=True, slots=True)
class Outcome:
    """An attempt that went well: see `TransferReport` for the fields."""

    seconds: float
    sync_s: float
    own: Side
    peer: Side
    digest: bytes


@contextmanager
def _telling(control: Control) -> Iterator[None]:
    """Tell the peer of a failure on this side before raising it."""
    try:
        yield
    except TransferError as error:
        control.tell(error)
        raise


def _job(path: PathName, hasher: Hasher, control: Control, meter: Meter, progress: Progress) -> Job:
    return Job(path, hasher, meter, progress.moved, control.stream.idle, control.listen)


class Sending:
    """Sends `source` to whoever is at the other end of `control`."""

    def __init__(
        self, control: Control, source: Source, digest: str, meter: Meter, progress: Progress
    ) -> None:
        self._control = control
        self._source = source
        self._digest = digest
        self._meter = meter
        self._progress = progress

    def run(self, path: PathName, end: End | None) -> Outcome:
        """One attempt over `path`; `end` is its RDMA connection if it needs one."""
        with _telling(self._control):
            hasher = new_digest(self._digest)
            if end is not None:
                job = _job(path, hasher, self._control, self._meter, self._progress)
                rdma.send(end, self._source, job)
            else:
                self._over_tcp(path, hasher)
            self._source.check_unchanged()
            return self._finish(hasher.digest())

    def _over_tcp(self, path: PathName, hasher: Hasher) -> None:
        send = tcp.send_buffered if path is PathName.TCP_BUFFERED else tcp.send_sendfile
        send(self._control, self._source, hasher, self._meter, self._progress.moved)

    def _finish(self, digest: bytes) -> Outcome:
        own = self._meter.side()
        self._control.send(
            Done(self._control.serial, digest, own.cpu_s, own.syscalls, own.staged_bytes)
        )
        self._progress.syncing()
        result = self._control.expect(Result)
        peer = Side(result.cpu_s, result.syscalls, result.staged_bytes)
        seconds = max(self._meter.elapsed - result.sync_s, 0.0)
        return Outcome(seconds, result.sync_s, own, peer, digest)


class Receiving:
    """Receives into `sink` from whoever is at the other end of `control`."""

    def __init__(
        self,
        control: Control,
        sink: Sink,
        attributes: tuple[int, int],
        digest: str,
        meter: Meter,
        progress: Progress,
    ) -> None:
        self._control = control
        self._sink = sink
        self._mode, self._mtime_ns = attributes
        self._digest = digest
        self._meter = meter
        self._progress = progress

    def run(self, path: PathName, end: End | None) -> Outcome:
        """One attempt over `path`; `end` is its RDMA connection if it needs one."""
        with _telling(self._control):
            hasher = new_digest(self._digest)
            if end is not None:
                job = _job(path, hasher, self._control, self._meter, self._progress)
                rdma.receive(end, self._sink, job)
            else:
                buffered = path is PathName.TCP_BUFFERED
                step = tcp.BUFFERED_STEP if buffered else tcp.SENDFILE_STEP
                args = (hasher, self._meter, self._progress.moved)
                tcp.receive(self._control, self._sink, step, *args)
            return self._finish(hasher.digest(), path)

    def _finish(self, digest: bytes, path: PathName) -> Outcome:
        done = self._control.expect(Done)
        if not same(done.digest, digest):
            if path.is_rdma:
                raise PathFailed(PathCode.GARBLED, "what arrived over RDMA is not what was sent")
            raise TransferError(
                ExitCode.DIGEST_MISMATCH,
                f"{escape(self._sink.name)}: what arrived is not what was sent "
                f"({self._digest} {digest.hex()}, sender {done.digest.hex()}); "
                "nothing was replaced, try again",
            )
        own = self._meter.side()
        seconds = self._meter.elapsed
        self._progress.syncing()
        begin = time.perf_counter()
        self._sink.commit(self._mode, self._mtime_ns)
        sync_s = time.perf_counter() - begin
        self._control.send(
            Result(
                serial=self._control.serial,
                digest=digest,
                cpu_s=own.cpu_s,
                syscalls=own.syscalls,
                staged_bytes=own.staged_bytes,
                sync_s=sync_s,
            )
        )
        peer = Side(done.cpu_s, done.syscalls, done.staged_bytes)
        return Outcome(seconds, sync_s, own, peer, digest)
