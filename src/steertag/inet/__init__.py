"""AF_INET_NEW_TCP: TCP, UDP, ICMP and raw sockets over IPv4 and IPv6, in this process.

    stack = Stack()
    register(stack)
    inet_net(stack).add_device(device, ("10.0.0.2/24", "fd00::2/64"))

The names are imported when first used: a program that asks for the number alone pays for no more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from steertag.inet.const import AF_INET_NEW_TCP

if TYPE_CHECKING:
    from steertag.inet.af_inet import register, unregister
    from steertag.inet.ip.net import InetNet, inet_net

_HOME = {
    "InetNet": "steertag.inet.ip.net",
    "inet_net": "steertag.inet.ip.net",
    "register": "steertag.inet.af_inet",
    "unregister": "steertag.inet.af_inet",
}

__all__ = ["AF_INET_NEW_TCP", "InetNet", "inet_net", "register", "unregister"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
