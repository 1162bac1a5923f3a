"""Our sockets in place of the standard library's, as a program's user would have them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tests.cpython.suites import Family

if TYPE_CHECKING:
    from steertag.family.stack import Stack
    from steertag.family.timer import Timer

_A_DAY = 86400.0


def substitute(family: Family) -> None:
    """To be called before the suites are imported."""
    if family.module:
        from steertag import socket

        sys.modules["socket"] = socket
    if family.use:
        from steertag.patch import patch

        patch(family.use)
        _warm_up()


def _warm_up() -> Timer:
    """Start what runs until the process ends: the suites count threads before and after a test."""
    import socket

    from steertag.socket import default_stack

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
    ):
        server.accept()[0].close()
    return _hold_driver(default_stack())


def _hold_driver(stack: Stack) -> Timer:
    """Keep the thread that drives a Stack: it ends when there is nothing to wait for."""
    from steertag.family.timer import Timer

    with stack.lock:
        timer = Timer(stack.timers, lambda: None)
        timer.mod(time.monotonic() + _A_DAY)
    return timer
