"""What the control process and the data process say to each other.

One SOCK_SEQPACKET pair, one message a packet: `marshal` of a tuple `(kind, socket, ...)`, since
both ends are one build and trust each other. A socket is named by a number of control's choice.
Our end of a program's socketpair travels with its message (SCM_RIGHTS). Neither end ever waits for
the other: what does not fit into the pair is queued here and goes out when it can (`wants_write`).

Addresses are `struct sockaddr` as the program wrote it, octets: what they mean to a family, the
data process knows (`sockaddr`).

    control                              data
    open ------------------------------>           a socket of the family; nothing is answered
    bind, connect, listen, ... -------->
                 <---------------------- answer    errno, or what was asked for
    attach + our end ------------------>           octets are moved from now on
                 <---------------------- pending   a listener has a connection, by its token
    accept(token) + our end ----------->           ... which becomes a socket of the program's
                 <---------------------- source    whom the datagram that comes next is from
                 <---------------------- reset     put an octet into the pair, then `close`
                 <---------------------- gone      both ways have ended, our end is closed
    close ----------------------------->           for sockets that have not gone by themselves
"""

from __future__ import annotations

import array
import errno
import marshal
import os
import socket as std
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

# Requests: (kind, socket, serial, ...), answered. Those of serial 0 are not.
OPEN: Final = 1
BIND: Final = 2
CONNECT: Final = 3
LISTEN: Final = 4
ATTACH: Final = 5
ACCEPT: Final = 6
SETSOCKOPT: Final = 7
GETSOCKOPT: Final = 8
GETSOCKNAME: Final = 9
GETPEERNAME: Final = 10
SHUTDOWN: Final = 11
SENDTO: Final = 12
IOCTL: Final = 13
CLOSE: Final = 14
STATS: Final = 15
ABORT: Final = 16
# What data says: (kind, socket, ...).
ANSWER: Final = 32
PENDING: Final = 33
SOURCE: Final = 34
RESET: Final = 35
GONE: Final = 36

Message = tuple[Any, ...]
Then = Callable[[int, Any], None]
"""Called once with `(errno, result)`; errno is 0 where it went well."""

_BATCH: Final = 64
"""Messages that one `receive` takes at most, so that others get their turn."""
_LARGEST: Final = 1 << 17
_BUFFER: Final = 1 << 20
"""Octets that the pair holds, if the host lets it."""
_FDS: Final = std.CMSG_SPACE(4)


class Channel:
    """One end. Whoever owns it polls `fileno()` for reading, and while `wants_write` for writing.

    Attributes:
        closed: the other end is gone, or `close` was called.
        wants_write: something is queued; call `flush` when the descriptor is writable.
    """

    __slots__ = ("_queue", "_sock", "closed", "wants_write")

    def __init__(self, sock: std.socket) -> None:
        sock.setblocking(False)
        for option in (std.SO_SNDBUF, std.SO_RCVBUF):
            sock.setsockopt(std.SOL_SOCKET, option, _BUFFER)
        self._sock = sock
        self._queue: deque[tuple[bytes, int]] = deque()
        self.closed = False
        self.wants_write = False

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        one, other = std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message, fd: int = -1) -> None:
        """Say it; with `fd`, that descriptor is the other process's from now on, and closed here.

        To an end that is gone nothing is said; the descriptor is closed all the same.
        """
        data = marshal.dumps(message)
        if self._queue:
            self._queue.append((data, fd))
        elif not self._send(data, fd):
            self._queue.append((data, fd))
            self.wants_write = True

    def flush(self) -> None:
        queue = self._queue
        while queue and self._send(*queue[0]):
            queue.popleft()
        self.wants_write = bool(queue)

    def _send(self, data: bytes, fd: int) -> bool:
        """False if there is no room now."""
        try:
            if self.closed:
                pass  # as below: nobody hears it
            elif fd < 0:
                self._sock.send(data)
            else:
                rights = array.array("i", (fd,))
                self._sock.sendmsg((data,), ((std.SOL_SOCKET, std.SCM_RIGHTS, rights),))
        except BlockingIOError:
            return False
        except OSError as error:
            # ETOOMANYREFS: more descriptors on their way than the process may have open.
            if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS):
                return False
            self.closed = True
        if fd >= 0:
            os.close(fd)
        return True

    def receive(self) -> list[tuple[Message, int]]:
        """What has come, each message with its descriptor or -1; nothing: look again later.

        At the other end's death `closed` is set, after everything that it had said.
        """
        got: list[tuple[Message, int]] = []
        recvmsg = self._sock.recvmsg
        while not self.closed and len(got) < _BATCH:
            try:
                data, ancillary, _, _ = recvmsg(_LARGEST, _FDS, std.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except OSError:
                data, ancillary = b"", []
            if not data:
                self.closed = True
                break
            fd = int.from_bytes(ancillary[0][2][:4], "little") if ancillary else -1
            got.append((marshal.loads(data), fd))
        return got

    def close(self) -> None:
        self.closed = True
        while self._queue:
            fd = self._queue.popleft()[1]
            if fd >= 0:
                os.close(fd)
        self._sock.close()


class Events(Protocol):
    """What data says unasked; implemented by control."""

    def pending(self, listener: int, token: int, local: bytes, peer: bytes) -> None:
        """A connection waits at `listener`: `DataClient.accept` or `abort` it by its token."""

    def source(self, socket: int, address: bytes) -> None:
        """Datagrams that are put into the pair from now on are from `address`.

        Said only of sockets without a fixed peer, and then at most one datagram is in the pair:
        having looked at it there (MSG_PEEK) and then dispatched what is in the channel, control
        knows whom it is from.
        """

    def reset(self, socket: int, error: int) -> None:
        """The connection was reset, and nothing lies unread in our end.

        Put an octet into the program's end, in its name, and `DataClient.close` the socket: the
        program's next call finds ECONNRESET. Where that can't be done, close it all the same.
        """

    def gone(self, socket: int, error: int) -> None:
        """It has ended both ways and our end is closed; `error` is an errno, or 0."""

    def died(self) -> None:
        """The data process is gone. Every request that was open has been answered (ENETDOWN)."""


class DataClient:
    """The control process's side: requests and what becomes of them.

    Addresses are `struct sockaddr`, octets. A `then` is called from `dispatch`, never from the
    request itself, but for those made after `Events.died`, which fail at once (ENETDOWN); its
    errno is 0 or positive. Requests of one socket are served in their order.
    """

    def __init__(self, channel: Channel, events: Events) -> None:
        self._channel = channel
        self._events = events
        self._open: dict[int, Then] = {}
        self._serial = 0
        self._dead = False

    def fileno(self) -> int:
        """To be polled for reading (`dispatch`), and while `wants_write` for writing (`flush`)."""
        return self._channel.fileno()

    @property
    def wants_write(self) -> bool:
        return self._channel.wants_write

    def flush(self) -> None:
        self._channel.flush()

    @property
    def outstanding(self) -> int:
        """Requests not answered yet."""
        return len(self._open)

    # -- sockets -------------------------------------------------------------------------------

    def open(self, socket: int, family: int, domain: int, kind: int, protocol: int) -> None:
        """A socket of `family`, for one that the program made as (domain, kind, protocol).

        Nothing is answered: what goes wrong is the answer to the next request about it.
        """
        numbers = int(family), int(domain), int(kind), int(protocol)  # of enumerations, maybe
        self._channel.send((OPEN, socket, 0, *numbers))

    def bind(self, socket: int, address: bytes, then: Then) -> int:
        """Result: the local address."""
        return self._request(then, BIND, socket, address)

    def connect(self, socket: int, address: bytes, then: Then) -> int:
        """Answered when the handshake is over. Result: (local, peer).

        An address of AF_UNSPEC dissolves a datagram socket's connection. After an error the socket
        can be connected once more.
        """
        return self._request(then, CONNECT, socket, address)

    def listen(self, socket: int, backlog: int, then: Then) -> int:
        """Result: the local address. `Events.pending` follows; again, for another backlog."""
        return self._request(then, LISTEN, socket, backlog)

    def attach(self, socket: int, fd: int) -> None:
        """Move octets between `fd`, our end, and a connected (or datagram) socket from now on.

        Gives the descriptor away. Ends with `Events.gone`.
        """
        self._channel.send((ATTACH, socket, 0), fd)

    def accept(self, listener: int, token: int, socket: int, fd: int) -> None:
        """The pending connection is the program's, as `socket`, and its octets go through `fd`."""
        self._channel.send((ACCEPT, socket, 0, listener, token), fd)

    def abort(self, listener: int, token: int) -> None:
        """Nobody will accept that one: it is reset."""
        self._channel.send((ABORT, listener, 0, token))

    def shutdown(self, socket: int, how: int, then: Then) -> int:
        """For listeners and datagram sockets; what is attached does it in the pair."""
        return self._request(then, SHUTDOWN, socket, how)

    def close(self, socket: int) -> None:
        """It is not needed any more; with what is unread in our end, the program finds a reset.

        Harmless for one that has gone.
        """
        self._channel.send((CLOSE, socket, 0))

    # -- questions -----------------------------------------------------------------------------

    def setsockopt(self, socket: int, level: int, name: int, value: bytes, then: Then) -> int:
        """For options whose table entry says so (`options`). Result: None."""
        return self._request(then, SETSOCKOPT, socket, int(level), int(name), value)

    def getsockopt(self, socket: int, level: int, name: int, size: int, then: Then) -> int:
        """Result: up to `size` octets."""
        return self._request(then, GETSOCKOPT, socket, int(level), int(name), size)

    def getsockname(self, socket: int, then: Then) -> int:
        return self._request(then, GETSOCKNAME, socket)

    def getpeername(self, socket: int, then: Then) -> int:
        return self._request(then, GETPEERNAME, socket)

    def sendto(self, socket: int, address: bytes, data: bytes, flags: int, then: Then) -> int:
        """One datagram to a destination of its own. Result: octets sent."""
        return self._request(then, SENDTO, socket, address, data, flags)

    def ioctl(self, socket: int, request: int, then: Then) -> int:
        """SIOCOUTQ: octets not delivered yet, the pair's and the family's. Result: an int."""
        return self._request(then, IOCTL, socket, request)

    def stats(self, then: Then) -> int:
        """Result: {name: int}: sockets, relays, octets each way, connections, resets, ..."""
        return self._request(then, STATS, 0)

    def cancel(self, serial: int) -> None:
        """Whoever asked is dead, or was interrupted: its `then` won't be called."""
        if serial in self._open:
            self._open[serial] = _ignore

    # -- what comes ----------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Take in what has come: answers to their `then`, the rest to Events. Never waits."""
        events = self._events
        for message, _ in self._channel.receive():
            kind = message[0]
            if kind == ANSWER:
                then = self._open.pop(message[2], _ignore)
                then(message[3], message[4])
            elif kind == PENDING:
                events.pending(message[1], message[2], message[3], message[4])
            elif kind == SOURCE:
                events.source(message[1], message[2])
            elif kind == RESET:
                events.reset(message[1], message[2])
            elif kind == GONE:
                events.gone(message[1], message[2])
        if self._channel.closed and not self._dead:
            self._fail()

    def close_channel(self) -> None:
        """Nothing more will be asked: the data process delivers what it has and ends."""
        self._dead = True
        self._channel.close()

    def _fail(self) -> None:
        self._dead = True
        waiting, self._open = self._open, {}
        for then in waiting.values():
            then(errno.ENETDOWN, None)
        self._events.died()

    def _request(self, then: Then, kind: int, socket: int, *fields: object) -> int:
        if self._dead:
            then(errno.ENETDOWN, None)
            return 0
        self._serial = serial = self._serial + 1
        self._open[serial] = then
        self._channel.send((kind, socket, serial, *fields))
        return serial


def _ignore(error: int, result: object) -> None:
    """Whoever asked does not want to know any more."""
