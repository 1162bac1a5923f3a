"""Families that forward to the host kernel's own sockets: AF_INET, AF_INET6, AF_UNIX.

They enter through the same door as everybody: `register(stack)` uses the public calls, and a
package's entry point names it. Two ways lead to the host's socket: `ProtoOps.passthrough` hands
it to the socket object, which then calls it directly; and each `ProtoOps` member forwards, for
whoever uses sockets from within.
"""

from steertag.host.ops import register
from steertag.host.sock import HostSock

__all__ = ["HostSock", "register"]
