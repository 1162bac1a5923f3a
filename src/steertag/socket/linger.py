"""SO_LINGER with a time: a close that stays until what was sent is delivered."""

from __future__ import annotations

import socket as std
import termios
from contextlib import suppress

from steertag.family import net
from steertag.family.const import SOCK_LINGER, TcpState
from steertag.family.socket import Socket
from steertag.family.sockopt import sock_of
from steertag.runtime.netdev import NetDriver
from steertag.runtime.wait import deadline_after
from steertag.socket.file import File


def linger(driver: NetDriver, file: File, *, waits: bool) -> std.socket | None:
    """Stay until what was sent is delivered, or SO_LINGER's time is over.

    The host's kernel stays itself, when its socket is closed: here what is to be closed last.
    """
    sk = sock_of(file.sock)
    if not sk.sk_flags & SOCK_LINGER or not sk.sk_lingertime or file.holders > 1:
        return None
    direct = file.sock.ops.direct
    native = None if direct is None else direct(file.sock)
    if native is not None:
        return native.dup()
    if sk.sk_state == TcpState.TCP_LISTEN or not waits:
        return None
    with suppress(OSError):
        net.kernel_sock_shutdown(file.sock, std.SHUT_WR)
    # Of a family that hands connections over, it may wait in another's socket.
    handed_over = direct is not None and not sk.sk_wmem_queued

    def delivered() -> bool:
        return not (sk.sk_wmem_queued or (handed_over and _outq(file.sock)))

    driver.wait_until(file.sock, delivered, deadline_after(sk.sk_lingertime))
    return None


def _outq(sock: Socket) -> int:
    """Octets that are not known to be delivered; the next of its news is asked for."""
    net.sock_poll(sock)
    try:
        return net.sock_ioctl(sock, termios.TIOCOUTQ)
    except OSError:
        return 0
