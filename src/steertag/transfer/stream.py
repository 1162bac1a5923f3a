"""A connected stream socket with an idle limit, exact reads and a count of its system calls."""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import time
from struct import Struct
from typing import Any, Final

from steertag import socket
from steertag.family.net import sock_poll
from steertag.family.stack import Stack
from steertag.transfer.errors import ConnectionLost, ExitCode, TransferError
from steertag.transfer.names import escape
from steertag.transfer.report import Meter
from steertag.transfer.url import format_address

MPA_REQUEST_KEY: Final = b"MPA ID Req Frame"
"""What an RDMA connection begins with (RFC 5044 section 7.1); ours begins with another letter."""

_TIMEVAL: Final = Struct("@ll")
_HOST_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
HOST_TCP: Final = int(socket.AF_UNSPEC)
"""The family that stands for the host's own TCP, with whichever version of IP an address is of."""
_Addresses = list[tuple[int, Any]]


def addresses_of(host: str, port: int | None, family: int, flags: int = 0) -> _Addresses:
    """Families and socket addresses of `host`:`port`; every one of `family` unless HOST_TCP.

    Names are the host's to look up, whatever the family.

    Raises:
        socket.gaierror: no such host. UnicodeError: no host name.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family if family != HOST_TCP else item[0], item[4]) for item in found]


def dial(
    host: str, port: int, timeout: float, family: int = HOST_TCP, stack: Stack | None = None
) -> socket.socket:
    """A stream to `host`:`port`; every address of the host is tried.

    Args:
        timeout: seconds for each address.
        family: HOST_TCP, or a family whose addresses are IP's.
        stack: where the socket lives; None is the default Stack.

    Raises:
        TransferError: CANNOT_CONNECT, with the reason of the last address tried.
    """
    peer = escape(format_address(host, port))
    try:
        return _connect(addresses_of(host, port, family), timeout, stack)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        hint = "check the host's name"
    except TimeoutError:
        reason, hint = f"no answer in {timeout:g} s", "check host and port, and firewalls between"
    except OSError as error:
        reason, hint = error.strerror or str(error), "check host and port, and that stag serves"
    raise TransferError(ExitCode.CANNOT_CONNECT, f"cannot connect to {peer}: {reason}; {hint}")


def _connect(addresses: _Addresses, timeout: float, stack: Stack | None) -> socket.socket:
    """A connection to the first of `addresses` that answers. Raises the last one's OSError."""
    failure = OSError(errno.EADDRNOTAVAIL, "the host has no address")
    for family, address in addresses:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM, stack=stack)
        except OSError as error:
            failure = error
            continue
        try:
            sock.settimeout(timeout)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
            continue
        return sock
    raise failure


def listen(
    host: str, port: int, family: int = HOST_TCP, stack: Stack | None = None
) -> socket.socket:
    """A listening stream socket on `host`:`port`; `family` and `stack` as for `dial`.

    Raises:
        TransferError: the address cannot be had.
    """
    where = escape(format_address(host, port))
    try:
        family, address = addresses_of(host, port, family, socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise TransferError(ExitCode.FAILURE, f"cannot serve on {where}: {reason}") from error
    sock = socket.socket(family, socket.SOCK_STREAM, stack=stack)
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
        found = addresses_of(host, None, HOST_TCP, socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        return False
    addresses = [str(address[0]).partition("%")[0] for _, address in found]
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


def _without_nagle(sock: socket.socket) -> None:
    """Have small messages leave at once: two in a row would wait for a delayed acknowledgement."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL):
            raise  # those: a family without it


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
        self._in_process = sock.kernel.ops.passthrough is None
        sock.settimeout(idle)
        _without_nagle(sock)

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
        mine = self._sock
        sock = socket.socket(mine.family, mine.type, mine.proto, stack=mine.kernel.stack)
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
        if self._in_process:
            return bool(sock_poll(self._sock.kernel) & (select.POLLIN | select.POLLHUP))
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
