"""Our socket in place of the standard library's, before anything else imports it."""

from __future__ import annotations

import sys
import time

from tests.cpython.suites import Family


def substitute(family: Family) -> None:
    if family.rules is None:
        return
    import socket as std

    from steertag import socket
    from steertag.inet.const import AF_INET_NEW_TCP
    from steertag.socket.base import socket as cls
    from steertag.socket.process import ProcessSocket

    for name in ("_GLOBAL_DEFAULT_TIMEOUT", "_LOCALHOST", "_LOCALHOST_V6", "_GiveupOnSendfile"):
        setattr(socket, name, getattr(std, name))
    number = {"new_tcp": AF_INET_NEW_TCP, "sdp": 27}.get(family.rules)
    if number is not None:
        stack = socket.default_stack()
        create = stack.sock_create
        warm = socket.socket(number)
        warm.close()

        def sock_create(fam, kind, proto):
            if fam == std.AF_INET and kind & 0xF == std.SOCK_STREAM:
                sock = create(number, kind, 0)
                return sock
            return create(fam, kind, proto)

        type(stack).sock_create = lambda self, f, k, p=0: (
            sock_create(f, k, p) if self is stack else create.__func__(self, f, k, p)
        )
        ProcessSocket.family = property(
            lambda self: std.AF_INET if self.kernel.family == number else self.kernel.family
        )
    _hold_driver(socket.default_stack())
    for name in [n for n, m in sys.modules.items() if getattr(m, "socket", None) is std]:
        if not name.startswith("steertag"):
            sys.modules[name].socket = socket
    sys.modules["socket"] = socket


def _hold_driver(stack):
    """Keep the Stack's thread: the suites count threads before and after."""
    from steertag.family.timer import Timer

    global _held
    with stack.lock:
        _held = Timer(stack.timers, lambda: None)
        _held.mod(time.monotonic() + 86400)
