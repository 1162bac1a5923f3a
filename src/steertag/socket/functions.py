"""The standard library's module-level functions, making steertag's sockets."""

from __future__ import annotations

import os
import socket as std
from typing import Any

from steertag.family.net import kernel_socketpair
from steertag.family.stack import Stack
from steertag.inet.const import AF_INET_NEW_TCP
from steertag.socket.base import socket
from steertag.socket.default import default_stack
from steertag.socket.file import File

_GLOBAL_DEFAULT: Any = vars(std)["_GLOBAL_DEFAULT_TIMEOUT"]  # whichever module a caller has it from
_close = std.close


def close(fd: int, *, stack: Stack | None = None) -> None:
    """Close a descriptor; one that a socket of this process gave ends that holder of it."""
    owner = stack if stack is not None else default_stack()
    if isinstance(fd, int) and fd >= 0 and File.of_fd(owner, fd) is not None:
        socket(fileno=fd, stack=owner).close()
    else:
        _close(fd)


def fromfd(
    fd: int, family: int, type: int, proto: int = 0, *, stack: Stack | None = None
) -> socket:
    """A socket object of a duplicate of `fd`."""
    return socket(family, type, proto, os.dup(fd), stack=stack)


def socketpair(
    family: int | None = None,
    type: int = std.SOCK_STREAM,
    proto: int = 0,
    *,
    stack: Stack | None = None,
) -> tuple[socket, socket]:
    """Two connected sockets; of AF_UNIX unless another family is named."""
    owner = stack if stack is not None else default_stack()
    number = std.AF_UNIX if family is None else family
    kind = type
    first = owner.sock_create(number, kind, proto)
    second = owner.sock_create(number, kind, proto)
    try:
        kernel_socketpair(first, second)
    except BaseException:
        for sock in (first, second):
            socket._wrap(sock).close()
        raise
    return socket._wrap(first), socket._wrap(second)


def create_connection(
    address: tuple[str | None, int],
    timeout: Any = _GLOBAL_DEFAULT,
    source_address: tuple[str, int] | None = None,
    *,
    all_errors: bool = False,
    family: int = std.AF_UNSPEC,
    stack: Stack | None = None,
) -> socket:
    """Connect to a host and port over the host's TCP, trying each of the name's addresses.

    Args:
        family: AF_INET, AF_INET6: addresses of that version alone; AF_INET_NEW_TCP: of both, over
            this process's TCP; another family: `address` is one of its own.

    Raises the last error, or with `all_errors` an ExceptionGroup of all.
    """
    failures: list[Exception] = []
    for number, sockaddr in _targets(address, family):
        sock = None
        try:
            sock = socket(number, std.SOCK_STREAM, stack=stack)
            if timeout is not _GLOBAL_DEFAULT:
                sock.settimeout(timeout)
            if source_address:
                sock.bind(source_address)
            sock.connect(sockaddr)
            return sock
        except OSError as exc:
            if sock is not None:
                sock.close()
            failures.append(exc)
    if not failures:
        raise OSError("getaddrinfo returns an empty list")
    if all_errors:
        raise ExceptionGroup("create_connection failed", failures)
    try:
        raise failures[0]
    finally:
        # The exception's frame refers to the list: a cycle otherwise.
        failures.clear()


def _targets(address: tuple[str | None, int], family: int) -> list[tuple[int, Any]]:
    """The families and addresses to try."""
    named = family in (std.AF_UNSPEC, std.AF_INET, std.AF_INET6)
    if not named and family != AF_INET_NEW_TCP:
        return [(family, address)]
    found = std.getaddrinfo(*address, family if named else 0, std.SOCK_STREAM)
    return [(entry[0] if named else family, entry[4]) for entry in found]


def create_server(
    address: tuple[str, int] | str,
    *,
    family: int = std.AF_INET,
    backlog: int | None = None,
    reuse_port: bool = False,
    dualstack_ipv6: bool = False,
    stack: Stack | None = None,
) -> socket:
    """A listening SOCK_STREAM socket bound to `address`, which may be reused at once."""
    if dualstack_ipv6 and not std.has_dualstack_ipv6():
        raise ValueError("dualstack_ipv6 not supported on this platform")
    if dualstack_ipv6 and family != std.AF_INET6:
        raise ValueError("dualstack_ipv6 requires AF_INET6 family")
    sock = socket(family, std.SOCK_STREAM, stack=stack)
    try:
        sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEPORT, 1)
        if family == std.AF_INET6:
            sock.setsockopt(std.IPPROTO_IPV6, std.IPV6_V6ONLY, int(not dualstack_ipv6))
        try:
            sock.bind(address)
        except OSError as exc:
            reason = f"{exc.strerror} (while attempting to bind on address {address!r})"
            raise OSError(exc.errno, reason) from None
        sock.listen() if backlog is None else sock.listen(backlog)
        return sock
    except BaseException:
        sock.close()
        raise
