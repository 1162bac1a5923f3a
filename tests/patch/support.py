"""Servers that run beside a test."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from steertag.socket.base import HostSocket

PATIENCE = 20.0
"""Seconds after which a test has failed: nobody waits longer for anything."""


def of_this_process(sock: object) -> bool:
    """Whether it is a socket of a family that lives in this process."""
    real = getattr(sock, "real", sock)
    return not isinstance(real, HostSocket)


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[Any]:
    """The server's address, while it serves."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()


@contextmanager
def answering(handle: Callable[[socket.socket], None]) -> Iterator[Any]:
    """A listener's address; `handle` gets its first connection in a thread of its own."""

    def run() -> None:
        listener.settimeout(PATIENCE)
        conn, _ = listener.accept()
        conn.settimeout(PATIENCE)
        handle(conn)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        done = pool.submit(run)
        yield listener.getsockname()
        done.result(PATIENCE)
