"""What is put in the place of what, and put back."""

from __future__ import annotations

import errno
import functools
import logging
import multiprocessing.connection
import os
import socket as std
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from steertag.errors import StateError
from steertag.family.net import sock_release
from steertag.family.rules import Rules
from steertag.family.stack import Stack
from steertag.patch import mp, tls
from steertag.patch.facade import Facade
from steertag.patch.policy import Policy
from steertag.patch.sockets import PolicySocket
from steertag.socket.base import HostSocket
from steertag.socket.base import socket as ours
from steertag.socket.default import default_stack
from steertag.socket.functions import close

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_lock: Final = threading.RLock()
_active: list[Patch] = []


class Patch:
    """A program's sockets by a policy, until `undo`. Made by `patch`.

    Sockets that were made stay what they are after `undo`.

    Attributes:
        policy: what decides.
    """

    def __init__(self, policy: Policy, stack: Stack) -> None:
        self.policy = policy
        self._stack = stack
        self._undo: list[Callable[[], None]] = []
        self._log: logging.Handler | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def undo(self) -> None:
        """Put everything back. Calling it again does nothing."""
        with _lock:
            if self not in _active:
                return
            _active.remove(self)
            Facade.policy = None
            while self._undo:
                self._undo.pop()()
            if self._log is not None:
                logging.getLogger("steertag").removeHandler(self._log)
                self._log.close()

    def _set(self, place: Any, name: str, value: object) -> None:
        before = getattr(place, name)
        own = name in vars(place)
        setattr(place, name, value)

        def restore() -> None:
            if own:
                setattr(place, name, before)
            else:
                delattr(place, name)

        self._undo.append(restore)

    def _install(self) -> None:
        Facade.policy, Facade.stack = self.policy, self._stack
        self._set(std, "socket", Facade)
        self._set(std, "SocketType", Facade)
        self._set(std, "close", functools.partial(close, stack=self._stack))
        self._set(
            ssl.SSLContext, "wrap_socket", tls.patched_wrap_socket(ssl.SSLContext.wrap_socket)
        )
        self._install_asyncio()
        connection = multiprocessing.connection.Connection
        for name, method in mp.replacements(self._stack, connection).items():
            self._set(connection, name, method)

    def _install_asyncio(self) -> None:
        # Imported by now, by ssl's users at the latest; a host without it has another loop.
        from asyncio import unix_events

        loop: Any = unix_events._UnixSelectorEventLoop
        self._set(loop, "_sock_sendfile_native", _sendfile(loop._sock_sendfile_native))


def patch(
    family: str | int | None = None,
    *,
    rules: Rules | str | os.PathLike[str] | None = None,
    stack: Stack | None = None,
) -> Patch:
    """Have the sockets that this program makes from now on choose their family by a policy.

    Args:
        family: "sdp", "new_tcp", "host" ... or a number: for all of them, or where no rule matches.
        rules: a policy file, or its path (docs/reference/rules.md).
        stack: where they live; the default Stack.

    Left out, both come from the environment: STEERTAG_FAMILY and SDP_CONFIG; without these it is
    AF_INET_SDP. Sockets that exist are left alone, and so are classes that were made from
    `socket.socket` before.

    Raises:
        ValueError: no such family name, or a wrong line in the rules.
        OSError: the rules can't be read, or no family has the number.
        StateError: the program is patched already.
    """
    policy = Policy.of(family, rules)
    owner = stack if stack is not None else default_stack()
    with _lock:
        if _active:
            raise StateError("the program is patched already: unpatch() first")
        _check(policy, owner)
        made = Patch(policy, owner)
        if policy.rules is not None and policy.rules.log is not None:
            made._log = policy.rules.log.open()
        _active.append(made)
        made._install()
    return made


def _check(policy: Policy, stack: Stack) -> None:
    """Whether every family that it may come to is there. Raises OSError."""
    for choice in policy.choices():
        if choice.number is None:
            continue
        try:
            sock_release(stack.sock_create(choice.number, std.SOCK_STREAM))
        except OSError as exc:
            if exc.errno != errno.EAFNOSUPPORT:
                raise
            asks = policy.line_of(choice)
            text = f"{asks}no family has the number {choice.number}: expected one that is "
            text += "registered, or its package installed (entry-point group steertag.families)"
            raise OSError(errno.EAFNOSUPPORT, text) from None


def unpatch() -> None:
    """Undo `patch`; nothing happens if there is nothing to undo."""
    with _lock:
        for made in tuple(_active):
            made.undo()


def is_in_process(sock: object) -> bool:
    """Whether its octets are not the host's to move."""
    if isinstance(sock, PolicySocket):
        return sock.native is None
    return isinstance(sock, ours) and not isinstance(sock, HostSocket)


def _sendfile(native: Callable[..., Any]) -> Callable[..., Any]:
    """asyncio's sendfile where os.sendfile has no way: it knows descriptors of the host's alone.

    The loop reads and sends, as it does itself without os.sendfile. It is done here so that a
    transport is paused for it, and refuses other writes, as over the host's sockets.
    """

    async def sock_sendfile_native(
        self: Any, sock: Any, file: Any, offset: int, count: int | None
    ) -> Any:
        if is_in_process(sock):
            return await self._sock_sendfile_fallback(sock, file, offset, count)
        return await native(self, sock, file, offset, count)

    return sock_sendfile_native
