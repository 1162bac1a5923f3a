"""Rules are judged when a socket's address is known: at its bind, listen, connect or sendto.

bind is judged as a server's, also for a socket that is going to connect.
"""

from __future__ import annotations

from steertag.run.calls_socket import make_native
from steertag.run.emulated import Emulated
from steertag.run.notify import Notification
from steertag.run.plan import NATIVE, UNDECIDED
from steertag.run.supervisor import Supervisor


def decide(sup: Supervisor, sock: Emulated, call: Notification, role: str, raw: bytes) -> bool:
    """Whether the socket is served; False: it is the host's own by now, and the call proceeds."""
    if sock.family != UNDECIDED:
        return True
    family, use = sup.plan.at_address(sock.domain, sock.kind, sup.program(call), role, raw)
    if family == NATIVE:
        make_native(sup, sock, call)
        return False
    sup.open(sock, family, use)
    sup.set_again(sock)
    if not sock.connectable:
        sup.attach(sock)
    return True
