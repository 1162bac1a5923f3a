"""Moves octets between our end of a program's socketpair and a socket of the family.

A `Relay` has two ways. Each reads a chunk from its source and sends it to its destination at once;
what the destination does not take is kept (one chunk at most), and nothing more is read until it is
gone: so each side feels the other's full buffers, and a connection that waits holds no memory.

How ends are passed on:

=======================================  ==========================================================
the program shut down for sending        the family's socket is, behind what was sent before
the program closed its last descriptor   the family's socket is closed, behind what was sent before
... with octets unread, or SO_LINGER 0   the family's socket is reset
the peer's end of stream                 our end is shut down, behind what came before
the connection was reset, or failed      our end is closed with an octet unread in it, behind what
                                         came before: the program finds ECONNRESET
=======================================  ==========================================================

Our end's EPOLLHUP says that the program's end is shut down both ways, or closed; for the peer the
two are the same.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket as std
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from steertag.errors import os_error
from steertag.family.msg import MsgHdr
from steertag.family.net import (
    kernel_getsockopt,
    kernel_setsockopt,
    kernel_sock_shutdown,
    sock_release,
)
from steertag.family.sock import POLLRDHUP
from steertag.run.poller import ERR, HUP, IN, OUT, PRI, RDHUP, Poller

if TYPE_CHECKING:
    from steertag.family.socket import Socket

_ROOM: Final = 256 * 1024
_SCRATCH: Final = memoryview(bytearray(_ROOM))
"""Every relay's: what is not passed on at once is copied out of it."""
_FIRST: Final = 64 * 1024
_CHUNKS: Final = 16
"""Chunks that one way moves before the others have their turn."""
_LINGER: Final = struct.Struct("@ii")
ABORT: Final = _LINGER.pack(1, 0)
_INT: Final = struct.Struct("@i")
MSG_OOB: Final = int(std.MSG_OOB)
SHUT_WR: Final = int(std.SHUT_WR)
_READ: Final = select.POLLIN | select.POLLPRI | select.POLLHUP | select.POLLERR | POLLRDHUP
_WRITE: Final = select.POLLOUT | select.POLLHUP | select.POLLERR
_USUAL: Final = IN | OUT
_MORE_OUT: Final = 1 << 20
"""Beside the POLL* bits: our end has not been emptied yet."""
SIOCATMARK: Final = 0x8905


class Counters:
    """What the data process's sockets have done; `stats` gives them by name."""

    __slots__ = ("accepted", "connected", "datagrams", "refused", "relays", "resets", "rx", "tx")

    def __init__(self) -> None:
        self.connected = self.accepted = self.refused = self.resets = 0
        self.relays = 0
        self.datagrams = 0
        self.tx = self.rx = 0

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


class Stream(Protocol):
    """The family's side: a socket of the host's, or a `FamilyStream`. Never waits."""

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0) -> int: ...
    def send(self, data: memoryview, flags: int = 0) -> int: ...
    def shutdown(self, how: int) -> None: ...


class FamilyStream:
    """A socket of a family of this process, with the methods of a socket of the host's.

    They are called with the Stack's lock held.
    """

    __slots__ = ("sock",)

    def __init__(self, sock: Socket) -> None:
        self.sock = sock

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0) -> int:
        sock = self.sock
        if sock.released:
            raise os_error(errno.EBADF)
        msg = MsgHdr((buffer,))
        return sock.ops.recvmsg(sock, msg, flags)

    def send(self, data: memoryview, flags: int = 0) -> int:
        sock = self.sock
        if sock.released:
            raise os_error(errno.EBADF)
        return sock.ops.sendmsg(sock, MsgHdr((data,), flags=flags))

    def shutdown(self, how: int) -> None:
        kernel_sock_shutdown(self.sock, how)


class Owner(Protocol):
    """Who has the relay, and is told of its end."""

    def relay_reset(self, error: int) -> None:
        """The program has to find a reset, and nothing lies unread in our end: `Relay.close`
        is called once something does."""

    def relay_ended(self, error: int) -> None:
        """Our end is closed, and so is the family's socket."""


Held = tuple[float, bytes | OSError]
"""What is on its way, and when it is due; b"" is the end."""


class Way:
    """One direction.

    Attributes:
        left: octets that were read and not taken yet.
        size: octets that are read at a time.
        eof: nothing more will be read.
        fin: the destination was told so, or takes nothing any more.
        failure: what its source ended with, where that is not passed on at once.
        moved: octets that the destination took.
    """

    __slots__ = ("eof", "failure", "fin", "left", "moved", "size")

    def __init__(self) -> None:
        self.left: memoryview | None = None
        self.failure: OSError | None = None
        self.size = _FIRST
        self.moved = 0
        self.eof = self.fin = False


class Relay:
    """Args:
    poller: the loop.
    ours: our end, non-blocking; closed at the end.
    sock: the family's socket, connected; released at the end.
    native: the host's socket that it is, if it is one.
    owner: told of the end.
    linger: SO_LINGER's value as the program set it last, or b"".
    """

    __slots__ = (
        "_counters",
        "_native",
        "_news",
        "_oob_seen",
        "_our_end",
        "_poller",
        "_their_end",
        "_theirs",
        "delay",
        "error",
        "hung_up",
        "incoming",
        "linger",
        "lost",
        "marked",
        "ours",
        "outgoing",
        "over",
        "owner",
        "sock",
    )

    def __init__(
        self,
        poller: Poller,
        ours: std.socket,
        sock: Socket,
        native: std.socket | None,
        owner: Owner,
        counters: Counters,
        linger: bytes = b"",
    ) -> None:
        self._poller = poller
        self._counters = counters
        self.ours = ours
        self.sock = sock
        self._native = native
        self._theirs: Stream = FamilyStream(sock) if native is None else native
        self.owner = owner
        self.linger = linger
        self.outgoing = Way()
        self.incoming = Way()
        self.error = 0
        self.delay = 0.0
        self.marked = False
        self.hung_up = self.lost = self.over = False
        self._oob_seen = self._our_end = self._their_end = False
        self._news = 0

    def start(self) -> None:
        """With the Stack's lock held."""
        self._counters.relays += 1
        self.ours.setsockopt(std.SOL_SOCKET, std.SO_OOBINLINE, 1)
        self._poller.register(self.ours.fileno(), self._our_news)
        if self._native is None:
            self.sock.wait_queue.append(self._family_news)
            self._family_news(self.sock.ops.poll(self.sock))
        else:
            self._poller.register(self._native.fileno(), self._their_news)

    # -- news ----------------------------------------------------------------------------------

    def _our_news(self, events: int) -> None:
        if events == _USUAL and self.incoming.left is None:
            self.send_out()
            return
        if events & (RDHUP | HUP):
            self._our_end = True
            if events & HUP:
                self.hung_up = True
        if events & PRI:
            self._urgent_out()
        if events & (IN | RDHUP | HUP | ERR) and not self.over:
            self.send_out()
        if events & OUT and self.incoming.left is not None and not self.over:
            self.bring_in()

    def _their_news(self, events: int) -> None:
        """Of a socket of the host's."""
        if events == _USUAL and self.outgoing.left is None:
            self.bring_in()
            return
        if events & (RDHUP | HUP | ERR):
            self._their_end = True
        if events & PRI:
            self._urgent_in()
        if events & (IN | RDHUP | HUP | ERR) and not self.over:
            self.bring_in()
        if events & (OUT | ERR) and self.outgoing.left is not None and not self.over:
            self.send_out()
        if events & ERR and self.incoming.fin and not self.over:
            self._failed_behind_its_end()

    def _family_news(self, mask: int) -> None:
        """Of a socket of this process, at any time the Stack's lock is held."""
        if mask:
            self._news |= mask
            self._poller.again(self)

    def _more(self, news: int) -> None:
        self._news |= news
        self._poller.again(self)

    def run(self) -> None:
        """Move what can be moved, for whatever reason there was."""
        news, self._news = self._news, 0
        if self.over:
            return
        if self.sock.released:
            self._fail(errno.ECONNABORTED)
            return
        if news & _READ:
            if self._native is None and self.sock.ops.poll(self.sock) & select.POLLPRI:
                self._urgent_in()  # news of it may be no other than of what is not urgent
            if not self.over:
                self.bring_in()
        if not self.over and (
            news & _MORE_OUT or (news & _WRITE and self.outgoing.left is not None)
        ):
            self.send_out()
        if news & select.POLLERR and self.incoming.fin and not self.over:
            self._failed_behind_its_end()

    def _failed_behind_its_end(self) -> None:
        """The peer's stream has ended, and nothing is read that would tell of an error."""
        error = kernel_getsockopt(self.sock, std.SOL_SOCKET, std.SO_ERROR)
        if error and isinstance(error, int):
            self._fail(error)

    # -- the program's octets ------------------------------------------------------------------

    def send_out(self) -> None:
        """From our end to the family."""
        way = self.outgoing
        ours, theirs = self.ours, self._theirs
        for _ in range(_CHUNKS):
            if way.left is not None and not self._flush_out(way):
                return
            if way.eof:
                self._out_ended(way)
                return
            try:
                count = ours.recv_into(_SCRATCH, way.size)
            except BlockingIOError:
                return
            except OSError as error:
                self._our_end_failed(error)
                return
            if not count:
                way.eof = True
                continue
            if way.fin:
                continue  # the connection has failed: nobody takes it
            chunk = _SCRATCH[:count]
            try:
                sent = theirs.send(chunk)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._out_failed(error)
                return
            way.moved += sent
            if sent < count:
                way.left = memoryview(bytes(chunk[sent:]))
                way.size = _FIRST
                if sent:
                    continue  # to find that it takes no more: only then it says when it does
                return
            if count < way.size:
                if self._our_end:
                    continue
                if self._oob_seen:
                    self._urgent_out()
                    continue
                return  # drained: what comes next is news
            way.size = _ROOM
        self._more(_MORE_OUT)

    def _flush_out(self, way: Way) -> bool:
        """True once nothing is left."""
        assert way.left is not None  # looked at by the caller
        if way.fin:
            way.left = None
            return True
        left: memoryview | None = way.left
        while left:
            try:
                sent = self._theirs.send(left)
            except BlockingIOError:
                way.left = left
                return False
            except OSError as error:
                self._out_failed(error)
                return False
            way.moved += sent
            left = left[sent:]
        way.left = None
        return True

    def _out_ended(self, way: Way) -> None:
        """Everything that the program has sent is the family's."""
        if not way.fin:
            way.fin = True
            if self.hung_up or self._gone():
                self._program_left()
                return
            try:
                self._theirs.shutdown(SHUT_WR)
            except OSError:
                self._more(_READ)  # the connection has failed: found by what comes in
        elif self.hung_up:
            self._program_left()
            return
        if self.incoming.fin:
            self._end(0)

    def _gone(self) -> bool:
        """Whether the program has closed, too, and not only sent its last: no event said so yet."""
        poll = select.poll()
        poll.register(self.ours, 0)
        self.hung_up = bool(poll.poll(0))
        return self.hung_up

    def _program_left(self) -> None:
        """The last descriptor is closed: what has not reached the program never will."""
        if self.lost or self.incoming.left is not None or self.linger[: len(ABORT)] == ABORT:
            self._abort()
        self._end(0)

    def _our_end_failed(self, error: OSError) -> None:
        """ECONNRESET: the program closed with octets unread."""
        self._abort()
        self._end(error.errno or errno.ECONNRESET)

    def _out_failed(self, error: OSError) -> None:
        """The family takes nothing more: what it still has for the program comes first."""
        self.outgoing.fin = True
        self.outgoing.left = None
        if not self.error:
            self.error = error.errno or errno.ECONNRESET
        self.bring_in()
        if not self.over and self.incoming.left is None and not self.incoming.eof:
            self._fail(self.error)

    def _urgent_out(self) -> None:
        """What the program sent, with an octet out of band among it, mark by mark.

        In our end it stands in line (SO_OOBINLINE), and receiving stops before it: read as another
        it would be the family's all the same.
        """
        self._oob_seen = True
        way = self.outgoing
        while way.left is None and not way.eof and not self.over:
            try:
                if marked := at_mark_of(self.ours):
                    count = self.ours.recv_into(_SCRATCH[:1])
                else:
                    count = self.ours.recv_into(_SCRATCH[: way.size])
            except OSError:
                return
            if not count:
                way.eof = True
            elif not way.fin and not (marked and self._sent_urgent()):
                way.left = memoryview(bytes(_SCRATCH[:count]))
                self._flush_out(way)

    def _sent_urgent(self) -> bool:
        """Whether the family took the first of the scratch's octets out of band."""
        try:
            return bool(self._theirs.send(_SCRATCH[:1], MSG_OOB))
        except OSError:
            return False  # it has no such thing, or no room: in line, then

    # -- the peer's octets ---------------------------------------------------------------------

    def bring_in(self) -> None:
        """From the family to our end."""
        way = self.incoming
        ours, theirs = self.ours, self._theirs
        for _ in range(_CHUNKS):
            if way.left is not None and not self._flush_in(way):
                return
            if way.eof:
                self._in_ended(way)
                return
            try:
                count = theirs.recv_into(_SCRATCH[: way.size])
            except BlockingIOError:
                return
            except OSError as error:
                self.error = self.error or error.errno or errno.ECONNRESET
                way.eof = True
                continue
            if not count:
                way.eof = True
                continue
            if way.fin:
                continue  # the program shut its end down for receiving
            chunk = _SCRATCH[:count]
            try:
                sent = ours.send(chunk)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._in_refused(way)
                continue
            way.moved += sent
            if sent < count:
                way.left = memoryview(bytes(chunk[sent:]))
                way.size = _FIRST
                if sent:
                    continue
                return
            if count < way.size:
                if self._native is None:
                    if self.sock.ops.poll(self.sock) & _READ:
                        continue
                    return
                if self._their_end:
                    continue
                if self._oob_seen:
                    self._urgent_in()
                    continue
                return
            way.size = _ROOM
        self._more(_READ)

    def _flush_in(self, way: Way) -> bool:
        assert way.left is not None  # looked at by the caller
        left: memoryview = way.left
        while left:
            try:
                sent = self.ours.send(left)
            except BlockingIOError:
                way.left = left
                return False
            except OSError:
                self._in_refused(way)
                return True
            way.moved += sent
            left = left[sent:]
        way.left = None
        return True

    def _in_refused(self, way: Way) -> None:
        """The program takes nothing more: it closed, or shut its end down for receiving.

        What it has sent still goes out; our end's HUP says the rest.
        """
        way.fin = self.lost = True
        way.left = None

    def _in_ended(self, way: Way) -> None:
        """Everything that came is in our end."""
        if self.error:
            self._fail(self.error)
            return
        if not way.fin:
            way.fin = True
            try:
                self.ours.shutdown(SHUT_WR)
            except OSError:
                self.hung_up = True
        if self.outgoing.eof and self.outgoing.left is None and self.outgoing.fin:
            self._end(0)

    def _urgent_in(self) -> None:
        """What came, with an octet out of band among it: receiving stops before the mark."""
        self._oob_seen = True
        way = self.incoming
        while way.left is None and not way.eof and not self.over:
            try:
                if at_mark(self.sock, self._native) and self._received_urgent():
                    continue
                count = self._theirs.recv_into(_SCRATCH[: way.size])
            except BlockingIOError:
                return
            except OSError as error:
                self.error = self.error or error.errno or errno.ECONNRESET
                count = 0
            if not count:
                way.eof = True
            elif not way.fin:
                way.left = memoryview(bytes(_SCRATCH[:count]))
                self._flush_in(way)

    def _received_urgent(self) -> bool:
        """Pass on the octet at the mark; False if it was before. BlockingIOError: it is to come."""
        octet = bytearray(1)
        try:
            self._theirs.recv_into(memoryview(octet), 1, MSG_OOB)
        except BlockingIOError:
            raise
        except OSError:
            return False
        try:
            self.ours.send(octet, MSG_OOB)
        except OSError:
            self.incoming.left = memoryview(octet)  # the host's AF_UNIX has none: in line, then
            self._flush_in(self.incoming)
        return True

    # -- the end -------------------------------------------------------------------------------

    def _fail(self, error: int) -> None:
        """The connection was reset or has failed: the program is to find that."""
        self.error = error
        self._counters.resets += 1
        self._release()
        if self.incoming.fin and not self.lost:
            self._drop_unsent()  # the stream had ended before: reading finds that, writing EPIPE
            self.close()
        elif self.hung_up or self._unread():
            self.close()
        else:
            self._stop_ours()
            self.over = True
            self.owner.relay_reset(error)

    def _drop_unsent(self) -> None:
        try:
            while self.ours.recv_into(_SCRATCH):
                continue
        except OSError:
            return  # there is no more, or nobody is left

    def _unread(self) -> int:
        answer = fcntl.ioctl(self.ours.fileno(), termios.FIONREAD, bytes(_INT.size))
        return int(_INT.unpack(answer)[0])

    def unsent(self) -> int:
        """Octets that the program has sent and the family has not taken yet."""
        return self._unread() + len(self.outgoing.left or b"")

    def close(self) -> None:
        """Close our end as it is: with something unread, the program finds ECONNRESET."""
        self._end(self.error)

    def close_both(self) -> None:
        """Nobody needs the connection any more."""
        self._release()
        self._end(self.error)

    def _abort(self) -> None:
        """The peer is to find a reset."""
        self._counters.resets += 1
        abort(self.sock)

    def _end(self, error: int) -> None:
        self._release()
        if self.ours.fileno() >= 0:
            self._stop_ours()
            self.ours.close()
            self._counters.relays -= 1
            self._counters.tx += self.outgoing.moved
            self._counters.rx += self.incoming.moved
            self.over = True
            self.owner.relay_ended(error)

    def _stop_ours(self) -> None:
        self._poller.forget(self.ours.fileno())

    def _release(self) -> None:
        release(self._poller, self.sock, self._native, self._family_news)
        self.outgoing.left = self.incoming.left = None


class DelayedRelay(Relay):
    """One whose octets arrive `delay` seconds later than they do, each way: for tests."""

    __slots__ = ("_held_in", "_held_out")

    LIMIT: ClassVar[int] = 4 << 20
    """Octets on their way, at most."""

    def start(self) -> None:
        self._held_out: deque[Held] = deque()
        self._held_in: deque[Held] = deque()
        super().start()

    def send_out(self) -> None:
        held, way = self._held_out, self.outgoing
        if not way.eof:
            self._hold(held, self.ours.recv_into)
        if not self._arrived(held, way, self._flush_out):
            return
        if way.eof:
            self._out_ended(way)
        elif isinstance(way.failure, OSError):
            self._our_end_failed(way.failure)

    def bring_in(self) -> None:
        held, way = self._held_in, self.incoming
        if not way.eof:
            self._hold(held, self._theirs.recv_into)
        if not self._arrived(held, way, self._flush_in):
            return
        if way.failure is not None:
            self.error = self.error or way.failure.errno or errno.ECONNRESET
            way.eof = True
        if way.eof:
            self._in_ended(way)

    def _hold(self, held: deque[Held], receive: Callable[[memoryview], int]) -> None:
        """Take in what there is; it is due later."""
        due = self._poller.clock() + self.delay
        count = sum(len(what) for _, what in held if isinstance(what, bytes))
        if held and not (isinstance(held[-1][1], bytes) and held[-1][1]):
            return  # its end is among it already
        while count < self.LIMIT:
            try:
                got = receive(_SCRATCH)
            except BlockingIOError:
                return
            except OSError as error:
                held.append((due, error))
                break
            held.append((due, bytes(_SCRATCH[:got])))
            if not got:
                break
            count += got

    def _arrived(self, held: deque[Held], way: Way, flush: Callable[[Way], bool]) -> bool:
        """Pass on what is due. True if nothing stands in its way."""
        now = self._poller.clock()
        if way.left is not None and not flush(way):
            return False
        while held and held[0][0] <= now and not self.over:
            what = held.popleft()[1]
            if isinstance(what, OSError):
                way.failure = what
                return True
            if not what:
                way.eof = True
                return True
            way.left = memoryview(what)
            if not flush(way):
                return False
        if held and not self.over:
            self._poller.call_at(held[0][0], lambda: self._more(_READ | _MORE_OUT))
        return not self.over


def at_mark(sock: Socket, native: std.socket | None) -> bool:
    """sockatmark(3)."""
    if native is None:
        return bool(sock.ops.ioctl(sock, SIOCATMARK, None))
    return at_mark_of(native)


def at_mark_of(end: std.socket) -> bool:
    answer = fcntl.ioctl(end.fileno(), SIOCATMARK, bytes(_INT.size))
    return bool(_INT.unpack(answer)[0])


def abort(sock: Socket) -> None:
    """Have the socket's release reset the connection."""
    try:
        kernel_setsockopt(sock, std.SOL_SOCKET, std.SO_LINGER, ABORT)
    except OSError:
        return  # the family has no such thing: its end is an orderly one


def release(
    poller: Poller,
    sock: Socket,
    native: std.socket | None,
    news: Callable[[int], None] | None = None,
) -> None:
    """Close the family's socket."""
    if sock.released:
        return
    if native is not None:
        poller.forget(native.fileno())
    elif news is not None and news in sock.wait_queue:
        sock.wait_queue.remove(news)
    sock_release(sock)


__all__ = [
    "ABORT",
    "Counters",
    "DelayedRelay",
    "FamilyStream",
    "Owner",
    "Relay",
    "abort",
    "at_mark",
    "release",
]
