"""A connected stream socket with an idle limit, exact reads and a count of its system calls."""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import time
from struct import Struct
from typing import Final

from steertag import socket
from steertag.transfer.errors import ConnectionLost, ExitCode, TransferError
from steertag.transfer.names import escape
from steertag.transfer.report import Meter
from steertag.transfer.url import format_address

MPA_REQUEST_KEY: Final = b"MPA ID Req Frame"
"""What an RDMA connection begins with (RFC 5044 section 7.1); ours begins with another letter."""

_TIMEVAL: Final = Struct("@ll")
_HOST_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def dial(host: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection to `host`:`port`; every address of the host is tried.

    Raises:
        TransferError: CANNOT_CONNECT, with the reason of the last address tried.
    """
    peer = escape(format_address(host, port))
    try:
        return socket.create_connection((host, port), timeout=timeout)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        hint = "check the host's name"
    except TimeoutError:
        reason, hint = f"no answer in {timeout:g} s", "check host and port, and firewalls between"
    except OSError as error:
        reason, hint = error.strerror or str(error), "check host and port, and that stag serves"
    raise TransferError(ExitCode.CANNOT_CONNECT, f"cannot connect to {peer}: {reason}; {hint}")


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket on `host`:`port`.

    Raises:
        TransferError: the address cannot be had.
    """
    where = escape(format_address(host, port))
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise TransferError(ExitCode.FAILURE, f"cannot serve on {where}: {reason}") from error
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen()
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise TransferError(
            ExitCode.FAILURE,
            f"cannot serve on {where}: {error.strerror}; choose another --bind HOST:PORT",
        ) from error
    return sock


def is_loopback(host: str) -> bool:
    """Whether every address of `host` is reached from this machine only."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        return False
    addresses = [str(item[4][0]).partition("%")[0] for item in found]
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def is_rdma(sock: socket.socket, timeout: float) -> bool:
    """Whether the peer's first octets begin an MPA Request; they stay where they are."""
    sock.settimeout(timeout)
    try:
        return sock.recv(1, socket.MSG_PEEK) == MPA_REQUEST_KEY[:1]
    except OSError:
        return False  # silent or gone; the greeting will find out and say so


def shut(sock: socket.socket) -> None:
    """End `sock` in both directions, which wakes whoever waits on it; safe from another thread."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.EBADF):
            raise


class Stream:
    """Owns `sock`. Whatever goes wrong with the connection is raised as `ConnectionLost`.

    Args:
        sock: a connected stream socket of any family.
        idle: seconds that one call may wait for the peer.
        peer: how to call the peer in messages.
        meter: where system calls are counted.
    """

    def __init__(self, sock: socket.socket, idle: float, peer: str, meter: Meter) -> None:
        self._sock = sock
        self.peer = peer
        self.idle = idle
        self.meter = meter
        self._kernel_limits = False
        sock.settimeout(idle)

    def use_kernel_limits(self) -> None:
        """Leave the idle limit to the kernel (SO_RCVTIMEO), for the bulk of a transfer.

        A Python time-out polls before each call, which doubles the system calls.
        """
        value = _TIMEVAL.pack(int(self.idle), int(self.idle % 1 * 1e6))
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        except OSError as error:
            if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            return  # a family without them keeps the time-out that it has
        self._sock.settimeout(None)
        self._kernel_limits = True

    def sibling(self, timeout: float) -> socket.socket:
        """Another connection to where this one leads. Raises OSError."""
        sock = socket.socket(self._sock.family, self._sock.type, self._sock.proto)
        try:
            sock.settimeout(timeout)
            sock.connect(self._sock.getpeername())
        except OSError:
            sock.close()
            raise
        return sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def readable(self) -> bool:
        """Whether something (octets or the end) can be read at once."""
        self.meter.syscalls += 1
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def recv_into(self, view: memoryview) -> int:
        """Read at most `len(view)` octets, at least one."""
        self.meter.syscalls += 1
        try:
            count = self._sock.recv_into(view)
        except OSError as error:
            raise self._lost(error) from error
        if not count:
            raise ConnectionLost(f"{self.peer} closed the connection")
        return count

    def recv_exactly(self, count: int, deadline: float | None = None) -> bytes:
        """Read `count` octets; all of them before `deadline` (time.monotonic) if there is one."""
        data = bytearray(count)
        view = memoryview(data)
        while view:
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ConnectionLost(f"{self.peer} was silent for too long")
                self._sock.settimeout(left)
            view = view[self.recv_into(view) :]
        if deadline is not None:
            self._sock.settimeout(self.idle)
        return bytes(data)

    def send_all(self, data: bytes | bytearray | memoryview, more: bool = False) -> None:
        """Send everything; `more` says that more follows at once (MSG_MORE)."""
        view = memoryview(data)
        flags = socket.MSG_MORE if more else 0
        while view:
            self.meter.syscalls += 1
            try:
                view = view[self._sock.send(view, flags) :]
            except OSError as error:
                raise self._lost(error) from error

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """Send at most `count` octets of file `fd` from `offset` by sendfile(2).

        Returns:
            How many were sent; 0 means that the file ends before `offset`.
        """
        self.meter.syscalls += 1
        try:
            return os.sendfile(self._sock.fileno(), fd, offset, count)
        except OSError as error:
            raise self._lost(error) from error

    def can_send_file(self) -> bool:
        """Whether the descriptor is the connection itself, as sendfile(2) needs."""
        return self._kernel_limits and self._sock.family in _HOST_FAMILIES

    def shutdown(self) -> None:
        """Wake whoever waits on this connection; safe from another thread."""
        shut(self._sock)

    def close(self) -> None:
        self._sock.close()

    def _lost(self, error: OSError) -> ConnectionLost:
        if isinstance(error, TimeoutError | BlockingIOError):
            return ConnectionLost(f"{self.peer} was silent for {self.idle:g} s")
        return ConnectionLost(f"connection to {self.peer} lost: {error.strerror or error}")
