"""AF_INET_NEW_TCP: TCP, UDP, ICMP and raw sockets over IPv4 and IPv6, in this process.

    stack = Stack()
    register(stack)
    inet_net(stack).add_device(device, ("10.0.0.2/24", "fd00::2/64"))

The names are imported when first used: a program that asks for the number alone pays for no more.

Which file does what, from the bottom up; imports go upwards in this list only:

* `const`, `mib`: numbers of the interface, and the counters.
* `ip`: the network layer; it knows no transport but by the handlers that they register with it.
* `sock`, `sockopt`, `cmsg`, `errqueue`: what the socks of all transports have: addresses, options
  of IPPROTO_IP and IPPROTO_IPV6, ancillary data, errors kept for the user.
* `datagram`: what UDP, raw and ping sockets share.
* `tcp`; `udp_table`, `udp_rx`, `udp_tx`, `udp`; `raw`; `ping`: the transports. TCP imports from no
  other; `raw` and `ping` have their ioctl from `udp`.
* `diag`: what ss(8) tells of a sock. It reads those of TCP and UDP, and `tcp.prot` and `udp` put it
  into their `Proto`: the one place where a transport and what is above it name each other.
* `af_inet`: the family, which registers them all with a Stack.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from steertag.inet.const import AF_INET_NEW_TCP

if TYPE_CHECKING:
    from steertag.inet.af_inet import register, unregister
    from steertag.inet.ip.net import InetNet, inet_net
    from steertag.inet.tcp.cong.ops import CongestionOps
    from steertag.inet.tcp.cong.registry import (
        tcp_register_congestion_control,
        tcp_unregister_congestion_control,
    )

_REGISTRY = "steertag.inet.tcp.cong.registry"
_HOME = {
    "CongestionOps": "steertag.inet.tcp.cong.ops",
    "InetNet": "steertag.inet.ip.net",
    "inet_net": "steertag.inet.ip.net",
    "register": "steertag.inet.af_inet",
    "tcp_register_congestion_control": _REGISTRY,
    "tcp_unregister_congestion_control": _REGISTRY,
    "unregister": "steertag.inet.af_inet",
}

__all__ = [
    "AF_INET_NEW_TCP",
    "CongestionOps",
    "InetNet",
    "inet_net",
    "register",
    "tcp_register_congestion_control",
    "tcp_unregister_congestion_control",
    "unregister",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
