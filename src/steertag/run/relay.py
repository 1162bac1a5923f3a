"""Moves octets between our end of a program's socketpair and a socket of the family.

A `Relay` has two ways. Each reads a chunk from its source and sends it to its destination at once;
what the destination does not take is kept (one chunk at most), and nothing more is read until it is
gone: so each side feels the other's full buffers, and a connection that waits holds no memory.

How ends are passed on:

=======================================  ==========================================================
the program shut down for sending        the family's socket is, behind what was sent before
the program closed its last descriptor   the family's socket is closed, behind what was sent before
... with octets unread, or SO_LINGER 0   the family's socket is reset
... with octets unread or still to come  it is reset at once where the family takes nothing more
the peer's end of stream                 our end is shut down, behind what came before
the connection was reset, or failed      our end is closed with an octet unread in it, behind what
                                         came before: the program finds ECONNRESET
... while the program reads nothing      what it writes is EPIPE
=======================================  ==========================================================

Our end's EPOLLHUP says that the program's end is shut down both ways, or closed; for the peer the
two are the same.
"""

from __future__ import annotations

import errno
import select
import socket as std
from typing import TYPE_CHECKING, Final, Protocol

from steertag.family.net import kernel_getsockopt
from steertag.family.sock import POLLRDHUP
from steertag.run.ends import ABORT, Counters, abort, at_mark_of, release, unread
from steertag.run.poller import ERR, HUP, IN, OUT, PRI, RDHUP, Poller
from steertag.run.sides import FIRST, MSG_OOB, ROOM, SCRATCH, Sides, Urgent, Way

if TYPE_CHECKING:
    from steertag.family.socket import Socket

_CHUNKS: Final = 16
"""Chunks that one way moves before the others have their turn."""
SHUT_WR: Final = int(std.SHUT_WR)
READ: Final = select.POLLIN | select.POLLPRI | select.POLLHUP | select.POLLERR | POLLRDHUP
_WRITE: Final = select.POLLOUT | select.POLLHUP | select.POLLERR
_USUAL: Final = IN | OUT
MORE_OUT: Final = 1 << 20
"""Beside the POLL* bits: our end has not been emptied yet."""


class Owner(Protocol):
    """Who has the relay, and is told of its end."""

    def relay_reset(self, error: int) -> None:
        """The program has to find a reset, and nothing lies unread in our end: `Relay.close`
        is called once something does."""

    def relay_ended(self, error: int) -> None:
        """Our end is closed, and so is the family's socket."""


class Relay(Sides):
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
        "_news",
        "_poller",
        "delay",
        "error",
        "hung_up",
        "incoming",
        "linger",
        "lost",
        "marked",
        "outgoing",
        "over",
        "owner",
        "refusing",
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
        super().__init__(ours, sock, native)
        self._poller = poller
        self._counters = counters
        self.owner = owner
        self.linger = linger
        self.outgoing = Way()
        self.incoming = Way()
        self.error = 0
        self.delay = 0.0
        self.marked = False
        self.hung_up = self.lost = self.over = self.refusing = False
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
            self.send_out(True)
            return
        if events & (RDHUP | HUP):
            self._our_end = True
            if events & HUP:
                self.hung_up = True
        if events & PRI and not self.refusing:
            self._urgent_out()
        if events & (IN | RDHUP | HUP | ERR) and not self.over:
            self.send_out()
        if events & OUT and self.incoming.left is not None and not self.over:
            self.bring_in()

    def _their_news(self, events: int) -> None:
        """Of a socket of the host's."""
        if events == _USUAL and self.outgoing.left is None:
            self.bring_in(True)
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
        if news & READ:
            if self._native is None and self.sock.ops.poll(self.sock) & select.POLLPRI:
                self._urgent_in()  # news of it may be no other than of what is not urgent
            if not self.over:
                self.bring_in()
        if not self.over and (
            news & MORE_OUT or (news & _WRITE and self.outgoing.left is not None)
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

    def send_out(self, sure: bool = False) -> None:
        """From our end to the family.

        `sure`: what comes first is known not to be urgent.
        """
        way = self.outgoing
        ours, theirs = self.ours, self._theirs
        for _ in range(_CHUNKS):
            if way.fin and not way.eof and (self.refusing or not self._our_end):
                self._refuse_more()
                return
            if way.left is not None and not self._flush_out(way):
                self._out_blocked()
                return
            if way.eof:
                self._out_ended(way)
                return
            if not sure and not self._usual_out(way):
                if way.left is None and not way.eof:
                    return
                continue
            sure = False
            try:
                count = ours.recv_into(SCRATCH, way.size)
            except BlockingIOError:
                return
            except OSError as error:
                self._our_end_failed(error)
                return
            if not count:
                way.eof = True
                continue
            if way.fin:
                continue  # the connection has failed, and the program has left
            chunk = SCRATCH[:count]
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
                way.size = FIRST
                continue  # to find that it takes no more: only then it says when it does
            if count < way.size:
                if self._our_end:
                    continue
                return  # drained: what comes next is news
            way.size = ROOM
        self._more(MORE_OUT)

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
                self._more(READ)  # the connection has failed: found by what comes in
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

    def _out_blocked(self) -> None:
        """Nobody takes what the program has sent; perhaps nobody ever will.

        If it has closed, or shut down both ways, with octets unread or still to come, its peer
        finds a reset natively, whatever the program had sent.
        """
        if not self.hung_up or self.over:
            return
        if not self.lost:
            self.lost = bool(self.ours.getsockopt(std.SOL_SOCKET, std.SO_ERROR))
        if self.lost:
            self._program_left()

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
        if self.over:
            return
        if self.incoming.left is not None:
            if not self._our_end:
                self._refuse_more()
        elif not self._in_on_its_way():
            self._fail(self.error)

    def _in_on_its_way(self) -> bool:
        """Whether there is something for the program, or the end, that it has not found yet."""
        return self.incoming.eof

    def _refuse_more(self) -> None:
        """The connection has failed, and what came before that the program has not read yet.

        If it goes on writing, that ends with EPIPE. An octet stays unread in our end, which is
        what has the program find ECONNRESET once it has read the rest.
        """
        if self.refusing and self.hung_up:
            self._program_left()
            return
        count = unread(self.ours)
        if not count:
            return
        self.refusing = True
        self.ours.shutdown(std.SHUT_RD)
        while count > 1:
            count -= self.ours.recv_into(SCRATCH, min(count - 1, ROOM))

    def _usual_out(self, way: Way) -> bool:
        """Whether what comes next may be received as it is.

        What has come since the news may be out of band, and to receive it in line would make it an
        octet as any other. What lies before the mark stays there, and receiving stops at it.
        """
        if not unread(self.ours):
            return self._our_end  # nothing but the end is to come
        if not at_mark_of(self.ours):
            return True
        self._urgent_out()
        return way.left is None and not way.eof and bool(unread(self.ours))

    def _urgent_out(self) -> None:
        """What the program sent, with an octet out of band among it, mark by mark.

        In our end it stands in line (SO_OOBINLINE).
        """
        way = self.outgoing
        for _ in range(_CHUNKS):
            if way.left is not None or way.eof or self.over:
                return
            try:
                what = self.next_out(way.size)
            except OSError as error:
                self._our_end_failed(error)
                return
            if what is None:
                return
            if not what:
                way.eof = True
            elif not way.fin:
                self.put_out(what)
        self._more(MORE_OUT)

    def put_out(self, what: Urgent | memoryview | bytes) -> bool:
        """Have the family take them; False: not all of them yet."""
        way = self.outgoing
        if isinstance(what, Urgent) and self._sent_urgent(what):
            way.moved += 1
            return True
        way.left = memoryview(bytes(what))
        return self._flush_out(way)

    # -- the peer's octets ---------------------------------------------------------------------

    def bring_in(self, sure: bool = False) -> None:
        """From the family to our end; `sure` as for `send_out`."""
        way = self.incoming
        ours, theirs = self.ours, self._theirs
        for _ in range(_CHUNKS):
            if way.left is not None and not self._flush_in(way):
                return
            if way.eof:
                self._in_ended(way)
                return
            if not sure and self._native is not None and not self._usual_in(way):
                if way.left is None and not way.eof:
                    return
                continue
            sure = False
            try:
                count = theirs.recv_into(SCRATCH[: way.size])
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
            chunk = SCRATCH[:count]
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
                way.size = FIRST
                if sent:
                    continue
                return
            if count < way.size:
                if self._native is None:
                    if self.sock.ops.poll(self.sock) & READ:
                        continue
                    return
                if self._their_end:
                    continue
                return
            way.size = ROOM
        self._more(READ)

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

        What it has sent still goes out, if the peer takes it; our end's HUP says the rest.
        """
        way.fin = self.lost = True
        way.left = None
        if self.hung_up:
            self._more(MORE_OUT)  # nobody may be there who takes what it has sent

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

    def _usual_in(self, way: Way) -> bool:
        """Whether what comes next to a socket of the host's may be received as it is.

        To receive at the mark skips it, so only what lies before it is asked for.
        """
        assert self._native is not None  # looked at by the caller
        if unread(self._native) or self._their_end:
            return True
        self._urgent_in()
        return False

    def _urgent_in(self) -> None:
        """What came, with an octet out of band among it, mark by mark."""
        way = self.incoming
        for _ in range(_CHUNKS):
            if way.left is not None or way.eof or self.over:
                return
            try:
                what = self.next_in(way.size)
            except OSError as error:
                self.error = self.error or error.errno or errno.ECONNRESET
                what = memoryview(b"")
            if what is None:
                return
            if not what:
                way.eof = True
            elif not way.fin:
                self.put_in(what)
        self._more(READ)

    def put_in(self, what: Urgent | memoryview | bytes) -> bool:
        """Put them into our end; False: not all of them yet."""
        way = self.incoming
        if isinstance(what, Urgent):
            try:
                way.moved += self.ours.send(what, MSG_OOB)
            except OSError:
                way.left = memoryview(what)  # the host's AF_UNIX has none, or no room: in line
        else:
            way.left = memoryview(bytes(what))
        return way.left is None or self._flush_in(way)

    # -- the end -------------------------------------------------------------------------------

    def _fail(self, error: int) -> None:
        """The connection was reset or has failed: the program is to find that."""
        self.error = error
        self._counters.resets += 1
        self._release()
        if self.incoming.fin and not self.lost:
            self._drop_unsent()  # the stream had ended before: reading finds that, writing EPIPE
            self.close()
        elif self.hung_up or unread(self.ours):
            self.close()
        else:
            self._stop_ours()
            self.over = True
            self.owner.relay_reset(error)

    def _drop_unsent(self) -> None:
        try:
            while self.ours.recv_into(SCRATCH):
                continue
        except OSError:
            return  # there is no more, or nobody is left

    def unsent(self) -> int:
        """Octets that the program has sent and the family has not taken yet."""
        return unread(self.ours) + len(self.outgoing.left or b"")

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


__all__ = ["MORE_OUT", "READ", "Owner", "Relay"]
