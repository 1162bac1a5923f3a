"""A benchmark's other process, started by the first: `python -m steertag.perf.peer ADDRESS PORT`.

It connects to the first process and serves rounds until that goes away.
"""

from __future__ import annotations

import signal
import sys
from typing import Final

from steertag.perf.job import Control, job_from
from steertag.perf.raw import RawSocket
from steertag.perf.rdma import RdmaSide
from steertag.socket import IPPROTO_TCP, TCP_NODELAY, create_connection

LOOPBACK: Final = "127.0.0.1"


def serve(address: str, port: int) -> None:
    """Serve rounds: the passive side of each."""
    control = Control(create_connection((address, port)))
    raw_stream = create_connection((address, port))
    raw_stream.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    rdma_stream = create_connection((address, port))
    hello = control.receive()
    size, crc = hello["size"], hello["crc"]
    if not isinstance(size, int) or not isinstance(crc, bool):
        raise ValueError(f"hello {hello!r}")
    raw = RawSocket(raw_stream, size)
    rdma = RdmaSide(rdma_stream, active=False, size=size, crc=crc)
    sides: dict[str, RawSocket | RdmaSide] = {"raw": raw, "rdma": rdma}
    try:
        while (message := control.receive()).get("transport") in sides:
            side, job = sides[str(message["transport"])], job_from(message)
            control.send({"ready": True})
            if job.latency:
                side.pong(job)
            else:
                side.passive(job)
    finally:
        rdma.close()
        raw_stream.close()
        control.close()


if __name__ == "__main__":
    # Ctrl-C goes to the whole group: the first process tells of it and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(sys.argv[1], int(sys.argv[2]))
    except OSError as exc:
        sys.exit(f"benchmark peer: {exc}")
