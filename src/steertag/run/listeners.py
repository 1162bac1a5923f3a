"""Listeners of the family, and the connections that wait until the program accepts them.

What the family has accepted is told to control (`pending`), which puts an octet into the program's
end for each. At most a part of the backlog is taken over in that way, the rest waits in the family:
so a full backlog is the family's, and its peers are answered as the family answers them. Of a
backlog of 0 nothing is left for the family while one waits here: it is made to drop what comes, as
it does where its backlog is full.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket as std
import struct
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Final

from steertag.family.const import PEER_OF_ACCEPTED
from steertag.family.net import kernel_accept, kernel_getname, kernel_listen
from steertag.run import sockaddr
from steertag.run.ends import Counters, abort, release
from steertag.run.poller import IN, Poller

if TYPE_CHECKING:
    from steertag.family.socket import Socket

_tokens: Final = count(1)
_OUT_OF_SOMETHING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RETRY: Final = 0.1
"""Seconds until accepting is tried again when descriptors or memory were lacking."""

_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
_RETURN_0: Final = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
_DROP_ALL: Final = struct.pack("@HP", 1, ctypes.addressof(_RETURN_0))
"""A `struct sock_fprog`: BPF_RET | BPF_K, of no octets."""
_NOTHING: Final = bytes(4)

Pending = Callable[[int, bytes, bytes], None]
"""`(token, local, peer)`."""


class Listener:
    """Args:
    domain: the program's; what addresses look like.
    pending: told of each connection.
    """

    def __init__(
        self,
        poller: Poller,
        sock: Socket,
        native: std.socket | None,
        domain: int,
        pending: Pending,
        counters: Counters,
    ) -> None:
        self._poller = poller
        self._sock = sock
        self._native = native
        self._domain = domain
        self._pending = pending
        self._counters = counters
        self._waiting: dict[int, Socket] = {}
        self._limit = 1
        self._single = False
        self._shut = False
        self._started = False
        self.marked = False

    def listen(self, backlog: int) -> None:
        """Raises what the family's `listen` does."""
        backlog = max(backlog, 0)
        self._shut_door(False)
        self._limit = max(1, backlog // 2)
        self._single = not backlog
        kernel_listen(self._sock, max(0, backlog - self._limit))
        if self._started:
            self._poller.again(self)
            return
        self._started = True
        if self._native is None:
            self._sock.wait_queue.append(self._news)
        else:
            self._poller.register(self._native.fileno(), self._native_news)
        self._poller.again(self)

    def take(self, token: int) -> Socket | None:
        """The connection is the program's now. None: it was given up meanwhile."""
        sock = self._waiting.pop(token, None)
        self._poller.again(self)
        if sock is not None:
            self._counters.accepted += 1
        return sock

    def abort(self, token: int) -> None:
        """Nobody will accept it: it is reset."""
        sock = self.take(token)
        if sock is not None:
            self._refuse(sock)

    def close(self) -> None:
        """Connections that still wait are reset, as the kernel does it."""
        release(self._poller, self._sock, self._native, self._news)
        waiting, self._waiting = self._waiting, {}
        for sock in waiting.values():
            self._refuse(sock)

    def _refuse(self, sock: Socket) -> None:
        self._counters.refused += 1
        abort(sock)
        release(self._poller, sock, None)

    def _news(self, mask: int) -> None:
        if mask & (select.POLLIN | select.POLLERR | select.POLLHUP):
            self._poller.again(self)

    def _native_news(self, events: int) -> None:
        if events & IN:
            self._poller.again(self)

    def run(self) -> None:
        """Accept what there is and as much as may wait here."""
        sock = self._sock
        if sock.released:
            return
        self._shut_door(self._single and (bool(self._waiting) or self._readable()))
        self._accept_all(sock)
        if self._shut and not self._waiting:
            self._shut_door(False)

    def _readable(self) -> bool:
        """Whether a connection has come, of which the next must not."""
        return bool(self._sock.ops.poll(self._sock) & select.POLLIN)

    def _shut_door(self, shut: bool) -> None:
        """Have the family take no further connection: its peers try again."""
        if shut is self._shut:
            return
        self._shut = shut
        if self._native is None:
            if self._sock.sk is not None:
                self._sock.sk.sk_max_ack_backlog = -1 if shut else 0
        elif shut:
            self._native.setsockopt(std.SOL_SOCKET, _SO_ATTACH_FILTER, _DROP_ALL)
        else:
            self._native.setsockopt(std.SOL_SOCKET, _SO_DETACH_FILTER, _NOTHING)

    def _accept_all(self, sock: Socket) -> None:
        while len(self._waiting) < self._limit:
            try:
                newsock = kernel_accept(sock)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_SOMETHING:
                    self._poller.call_at(self._poller.clock() + RETRY, self._retry)
                    return
                if error.errno == errno.EINVAL:
                    return  # it listens no more
                continue  # that connection ended before it was accepted
            try:
                local = sockaddr.emit(self._domain, kernel_getname(newsock, 0))
                peer = sockaddr.emit(self._domain, kernel_getname(newsock, PEER_OF_ACCEPTED))
            except OSError:
                release(self._poller, newsock, None)
                continue  # likewise
            token = next(_tokens)
            self._waiting[token] = newsock
            self._pending(token, local, peer)

    def _retry(self) -> None:
        self._poller.again(self)
