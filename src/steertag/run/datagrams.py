"""Datagrams (SOCK_DGRAM, SOCK_SEQPACKET) between our end of a pair and a socket of the family.

The pair is of SOCK_SEQPACKET, whatever the program asked for: it keeps boundaries as SOCK_DGRAM
does, and unlike that tells when the other end is closed. How the program's calls go:

==========================================  =======================================================
send, write, sendto without an address      straight into the pair, at the host's speed
sendto, sendmsg with an address             control asks for `sendto`: one datagram by the channel
recv, read                                  straight from the pair
recvfrom, recvmsg, to a connected socket    from the pair; the source is the peer's address
... to one that is not                      from the pair; the source is what `source` said last
==========================================  =======================================================

So that the last word fits what the program is about to receive, a socket without a fixed peer has
at most one datagram in the pair: the next is put there when it is gone. The others wait in the
family, whose receive buffer decides what is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket as std
import struct
import termios
from typing import TYPE_CHECKING, Final

from steertag.family.msg import MsgHdr
from steertag.family.net import kernel_sock_shutdown
from steertag.family.sock import POLLRDHUP
from steertag.run import sockaddr
from steertag.run.ends import Counters, release
from steertag.run.poller import HUP, IN, OUT, RDHUP, Poller

if TYPE_CHECKING:
    from steertag.family.socket import Socket
    from steertag.run.data import Served

_LARGEST: Final = 1 << 16
_SCRATCH: Final = memoryview(bytearray(_LARGEST))
_BUFFERS: Final = (_SCRATCH,)
_SO_TIMESTAMP: Final = 29
_STAMP: Final = std.CMSG_SPACE(16)
"""Octets of a datagram's time, which tells an empty one from the end."""
_TURN: Final = 64
"""Datagrams that one way moves before others have their turn."""
_TIOCOUTQ: Final = termios.TIOCOUTQ
_INT: Final = struct.Struct("@i")
_READ: Final = select.POLLIN | select.POLLERR | select.POLLHUP | POLLRDHUP
SHUT_WR: Final = int(std.SHUT_WR)
MSG_TRUNC: Final = int(std.MSG_TRUNC)
_DEAD: Final = (errno.EBADF, errno.ENETDOWN, errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET)


class Datagrams:
    """Args as `Relay`'s; `owner` is also told the source of what comes next.

    Attributes:
        fixed: the socket has a peer.
    """

    def __init__(
        self,
        poller: Poller,
        ours: std.socket,
        sock: Socket,
        native: std.socket | None,
        owner: Served,
        counters: Counters,
        domain: int,
    ) -> None:
        self._poller = poller
        self._ours = ours
        self._sock = sock
        self._native = native
        self._owner = owner
        self._counters = counters
        self._domain = domain
        self._source = b""
        self._held: bytes | None = None  # from the family, with no room in the pair yet
        self._left: bytes | None = None  # from the program, with no room in the family yet
        self._shut_out = False  # the program sends no more
        self._sequenced = sock.type == std.SOCK_SEQPACKET
        self.fixed = self._sequenced or self._has_peer()
        self.marked = False
        self.over = False

    def start(self) -> None:
        """With the Stack's lock held."""
        self._counters.relays += 1
        self._ours.setsockopt(std.SOL_SOCKET, _SO_TIMESTAMP, 1)
        self._poller.register(self._ours.fileno(), self._our_news)
        if self._native is None:
            self._sock.wait_queue.append(self._family_news)
        else:
            self._poller.register(self._native.fileno(), self._their_news)
        self._poller.again(self)

    def connected(self, fixed: bool) -> None:
        """The program gave it a peer, or took it away."""
        self.fixed = fixed or self._sequenced
        self._poller.again(self)

    def _has_peer(self) -> bool:
        try:
            return bool(self._sock.ops.getname(self._sock, 1))
        except OSError:
            return False

    # -- news ----------------------------------------------------------------------------------

    def _our_news(self, events: int) -> None:
        if events & (IN | RDHUP | HUP):
            self._send_out()
        if events & OUT and not self.over:
            self._bring_in()

    def _their_news(self, events: int) -> None:
        if events & OUT and self._left is not None:
            self._send_out()
        if not self.over:
            self._bring_in()

    def _family_news(self, mask: int) -> None:
        if mask:
            self._poller.again(self)

    def run(self) -> None:
        if not self.over:
            self._bring_in()
        if not self.over:
            self._send_out()

    # -- the program's datagrams ---------------------------------------------------------------

    def _send_out(self) -> None:
        for _ in range(_TURN):
            data: memoryview | bytes
            if self._left is not None:
                data = self._left
            else:
                try:
                    count, stamp, _, _ = self._ours.recvmsg_into(_BUFFERS, _STAMP)
                except BlockingIOError:
                    return
                except OSError:
                    count, stamp = 0, []
                if not count and not stamp:
                    self._program_ended()
                    return
                data = _SCRATCH[:count]
            try:
                self._sock.ops.sendmsg(self._sock, MsgHdr((memoryview(data),)))
            except BlockingIOError:
                self._left = bytes(data)
                return
            except OSError as error:
                self._failed(error)
                if self.over:
                    return
            self._left = None
            self._counters.datagrams += 1
            self._counters.tx += len(data)
        self._poller.again(self)

    def _program_ended(self) -> None:
        """Nothing was read, not even an empty datagram: that would have a time."""
        if self._shut_by_program() & HUP:
            self._end(0)
        else:
            self._shut_family()

    def _shut_by_program(self) -> int:
        """HUP: it has closed; RDHUP: it sends no more; 0: neither."""
        poll = select.poll()
        poll.register(self._ours.fileno(), POLLRDHUP)
        return sum(events for _, events in poll.poll(0))

    def _shut_family(self) -> None:
        if not self._shut_out:
            self._shut_out = True
            with contextlib.suppress(OSError):  # of a socket without a peer, or whose peer is gone
                kernel_sock_shutdown(self._sock, SHUT_WR)

    def _failed(self, error: OSError) -> None:
        """A datagram lost is nothing that UDP promises to tell; a sequence that broke has ended."""
        if self._sequenced and error.errno in _DEAD:
            if error.errno == errno.EPIPE:
                self._refuse_more()
            self._end(error.errno or errno.ECONNRESET)

    def _refuse_more(self) -> None:
        """What the program sends is EPIPE; octets left unread here would make it ECONNRESET."""
        self._ours.shutdown(std.SHUT_RD)
        with contextlib.suppress(OSError):
            while self._ours.recv_into(_SCRATCH):
                continue

    # -- what comes ----------------------------------------------------------------------------

    def _bring_in(self) -> None:
        for _ in range(_TURN):
            if not self.fixed and self._occupied():
                return
            if self._held is None and not self._receive():
                return
            if not self._put():
                return
        self._poller.again(self)

    def _occupied(self) -> bool:
        """A datagram lies in the pair, which the program has not received yet."""
        answer = fcntl.ioctl(self._ours.fileno(), _TIOCOUTQ, bytes(_INT.size))
        return bool(_INT.unpack(answer)[0])

    def _receive(self) -> bool:
        """Hold the family's next datagram. False: there is none now, or no more."""
        msg = MsgHdr((_SCRATCH,))
        try:
            count = self._sock.ops.recvmsg(self._sock, msg, 0)
        except BlockingIOError:
            return False
        except OSError as error:
            self._failed(
                error
            )  # ECONNREFUSED of something sent: the next may have come all the same
            if not self.over:
                self._poller.again(self)
            return False
        if not count and self._sequenced:
            self._shut()
            return False
        self._held = bytes(_SCRATCH[: min(count, _LARGEST)])
        if not self.fixed:
            source = sockaddr.emit(self._domain, msg.msg_name)
            if source != self._source:
                self._source = source
                self._owner.source(source)
        return True

    def _put(self) -> bool:
        """Put what is held into the pair. False: there is no room now."""
        held = self._held
        assert held is not None  # looked at by the caller
        try:
            self._ours.send(held)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self._grow(len(held))
                return True
            self._held = None
            # Shut for receiving, and dropped; or the end of it.
            return not self._shut_by_program() & HUP
        self._held = None
        self._counters.rx += len(held)
        return True

    def _grow(self, length: int) -> None:
        """The pair's buffer is smaller than one datagram: have a larger one, or drop it."""
        before = self._ours.getsockopt(std.SOL_SOCKET, std.SO_SNDBUF)
        self._ours.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, 2 * length)
        if self._ours.getsockopt(std.SOL_SOCKET, std.SO_SNDBUF) <= before:
            self._held = None

    def _shut(self) -> None:
        """The peer of a sequence has ended it."""
        try:
            self._ours.shutdown(std.SHUT_WR)
        except OSError:
            self._end(0)

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        self._end(0)

    def _end(self, error: int) -> None:
        if self.over:
            return
        self.over = True
        release(self._poller, self._sock, self._native, self._family_news)
        self._poller.forget(self._ours.fileno())
        self._ours.close()
        self._counters.relays -= 1
        self._owner.relay_ended(error)
