"""Congestion control algorithms by name, one table a Stack (net/ipv4/tcp_cong.c).

class Mine(CongestionOps):
    name = "mine"
    def cong_avoid(self, sk, ack, acked, now): ...

tcp_register_congestion_control(stack, Mine())
sock.setsockopt(IPPROTO_TCP, TCP_CONGESTION, b"mine")
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family.const import TcpState
from steertag.inet.tcp.cong.cubic import Cubic
from steertag.inet.tcp.cong.ops import (
    CA_ACK_ECE,
    CA_ACK_SLOWPATH,
    CA_ACK_WIN_UPDATE,
    CA_EVENT_COMPLETE_CWR,
    CA_EVENT_CWND_RESTART,
    CA_EVENT_LOSS,
    CA_EVENT_TX_START,
    CongestionOps,
    tcp_cong_avoid_ai,
    tcp_is_cwnd_limited,
    tcp_slow_start,
)
from steertag.inet.tcp.cong.reno import Reno

if TYPE_CHECKING:
    from steertag.family.stack import Stack
    from steertag.inet.tcp.sock import TcpSock

TCP_CA_NAME_MAX: Final = 16
_KEY: Final = "tcp_cong"

__all__ = [
    "CA_ACK_ECE",
    "CA_ACK_SLOWPATH",
    "CA_ACK_WIN_UPDATE",
    "CA_EVENT_COMPLETE_CWR",
    "CA_EVENT_CWND_RESTART",
    "CA_EVENT_LOSS",
    "CA_EVENT_TX_START",
    "TCP_CA_NAME_MAX",
    "CongestionOps",
    "CongestionRegistry",
    "tcp_assign_congestion_control",
    "tcp_ca_find",
    "tcp_cleanup_congestion_control",
    "tcp_cong_avoid_ai",
    "tcp_congestion_registry",
    "tcp_get_available_congestion_control",
    "tcp_get_default_congestion_control",
    "tcp_init_congestion_control",
    "tcp_is_cwnd_limited",
    "tcp_register_congestion_control",
    "tcp_set_congestion_control",
    "tcp_set_default_congestion_control",
    "tcp_slow_start",
    "tcp_unregister_congestion_control",
]


class CongestionRegistry:
    """A Stack's algorithms, in the order they were registered, and the default one's name."""

    __slots__ = ("algorithms", "default")

    def __init__(self) -> None:
        self.algorithms: dict[str, CongestionOps] = {ops.name: ops for ops in (Reno(), Cubic())}
        self.default = "cubic"


def tcp_congestion_registry(stack: Stack) -> CongestionRegistry:
    """The Stack's table; it has "reno" and "cubic" from the start."""
    found = stack.generic.get(_KEY)
    if not isinstance(found, CongestionRegistry):
        found = stack.generic[_KEY] = CongestionRegistry()
    return found


def tcp_register_congestion_control(stack: Stack, ops: CongestionOps) -> None:
    """Add an algorithm of one's own.

    Raises:
        OSError: EEXIST, the name is taken; EINVAL, it has none, or one of 16 octets or more, or no
            `cong_avoid`.
    """
    name = ops.name
    if not name or not name.isascii() or len(name) >= TCP_CA_NAME_MAX:
        raise os_error(errno.EINVAL, f"congestion control named {name!r}")
    if type(ops).cong_avoid is CongestionOps.cong_avoid:
        raise os_error(errno.EINVAL, f"{name} has no cong_avoid")
    with stack.lock:
        algorithms = tcp_congestion_registry(stack).algorithms
        if name in algorithms:
            raise os_error(errno.EEXIST, f"congestion control {name}")
        algorithms[name] = ops


def tcp_unregister_congestion_control(stack: Stack, ops: CongestionOps) -> None:
    """Take an algorithm out.

    Raises:
        OSError: ENOENT, it is not registered; EBUSY, connections use it, or it is the default.
    """
    with stack.lock:
        registry = tcp_congestion_registry(stack)
        if registry.algorithms.get(ops.name) is not ops:
            raise os_error(errno.ENOENT, f"congestion control {ops.name}")
        if registry.default == ops.name:
            raise os_error(errno.EBUSY, f"{ops.name} is the default")
        users = sum(getattr(sk, "ca", None) is ops for sk in stack.socks)
        if users:
            raise os_error(errno.EBUSY, f"{users} connections use {ops.name}")
        del registry.algorithms[ops.name]


def tcp_ca_find(stack: Stack, name: str) -> CongestionOps:
    """The algorithm of that name. Raises ENOENT."""
    found = tcp_congestion_registry(stack).algorithms.get(name)
    if found is None:
        raise os_error(errno.ENOENT, f"congestion control {name!r}")
    return found


def tcp_get_available_congestion_control(stack: Stack) -> list[str]:
    """Names, in the order of registration."""
    return list(tcp_congestion_registry(stack).algorithms)


def tcp_set_default_congestion_control(stack: Stack, name: str) -> None:
    """What new sockets use (sysctl net.ipv4.tcp_congestion_control). Raises ENOENT."""
    with stack.lock:
        tcp_ca_find(stack, name)
        tcp_congestion_registry(stack).default = name


def tcp_get_default_congestion_control(stack: Stack) -> str:
    return tcp_congestion_registry(stack).default


def tcp_assign_congestion_control(sk: TcpSock) -> None:
    """A new sock: the default one, not begun yet."""
    registry = tcp_congestion_registry(sk.sk_stack)
    sk.ca = registry.algorithms[registry.default]
    sk.ca_priv = None


def tcp_init_congestion_control(sk: TcpSock) -> None:
    """The connection is up: the algorithm begins."""
    sk.prior_ssthresh = 0
    sk.ca_priv = None
    sk.ca.init(sk)


def tcp_cleanup_congestion_control(sk: TcpSock) -> None:
    """The connection is over."""
    sk.ca.release(sk)
    sk.ca_priv = None


def tcp_set_congestion_control(sk: TcpSock, name: str) -> None:
    """TCP_CONGESTION: change the algorithm, of a running connection too. Raises ENOENT."""
    ops = tcp_ca_find(sk.sk_stack, name)
    if ops is sk.ca:
        return
    tcp_cleanup_congestion_control(sk)
    sk.ca = ops
    if sk.sk_state not in (TcpState.TCP_CLOSE, TcpState.TCP_LISTEN):
        tcp_init_congestion_control(sk)
