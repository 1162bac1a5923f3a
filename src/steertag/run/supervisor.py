"""The control process's two loops, and what its calls share.

One thread does nothing but receive calls and answer them (`serve`): with a blocking RECV and the
caller waking it on its own processor, a call costs ten microseconds more than natively. The other
(`attend`) sees to the rest: the data process's answers, program ends that were closed, timers.
Either holds `lock` while it does something.

A call that can't be answered yet is parked (`Waiting`). A signal may end its wait: the program
then makes the same call again, or gives up. Nobody tells us, except that the answer comes too late;
so each call is written such that it can come twice: it takes over what is parked (`requests`,
`connect`, `accepters`), or finds the answer that was lost (`replay`).
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import logging
import os
import select
import socket as std
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from steertag.errors import os_error
from steertag.run.channel import Channel, DataClient
from steertag.run.emulated import Emulated, State, Waiting
from steertag.run.notify import Listener, Notification
from steertag.run.options import How, setting
from steertag.run.plan import NATIVE, Plan
from steertag.run.syscalls import Syscalls
from steertag.run.target import Target
from steertag.sdp.options import SDP_FALLBACK, SOL_SDP

_LOG: Final = logging.getLogger("steertag.run")

PROCEED: Final = 1 << 62
"""Result of a handler: the kernel is to carry out the call."""
ID, TID, NR, IP, ARG0 = 0, 1, 3, 5, 6

_TIMEVAL: Final = struct.Struct("@qq")
_ENDED: Final = 1024
"""Sockets that are remembered though nothing is behind them: the program may still hold them."""
MOST_KNOWN: Final = 4096
"""Entries of `known` and of `taken`."""
_LOOK: Final = 1.0
"""Seconds between looks whether a call still waits, of which we hold a duplicate descriptor."""
_LONGEST_ADDRESS: Final = 128  # struct sockaddr_storage

Handler: TypeAlias = Callable[["Supervisor", Emulated, Notification], int | None]
"""Answers a call: a result, a negative errno, PROCEED; None: it is parked, or answered already."""
Start: TypeAlias = Callable[[Callable[[int, Any], None]], int]
Finish: TypeAlias = Callable[[int, Any], int]


class Supervisor:
    """Answers the calls of one program and its descendants.

    Args:
        listener: where they come from.
        calls: the processor's numbers.
        plan: what is served.
        channel: to the data process.
        handlers: what is done for each call, by name (`calls.HANDLERS`).
        verbose: write each call to stderr.

    Attributes:
        data: the data process.
        target: the program.
        sockets: by the program's end ("socket:[inode]").
        by_ident: by the number that the data process knows them by; those that have not ended.
        alive: somebody is left who could make a call.
        dead: the data process is.
        known: errno with which a kind of socket is refused, 0 if it is served, by (family, domain,
            type, protocol).
        taken: options that the data process took before, in this state of a socket.
    """

    def __init__(
        self,
        listener: Listener,
        calls: Syscalls,
        plan: Plan,
        channel: Channel,
        handlers: Mapping[str, Handler],
        *,
        verbose: bool = False,
    ) -> None:
        self.listener = listener
        self.plan = plan
        self.target = Target(calls)
        self.data = DataClient(channel, self)
        self.verbose = verbose
        self.lock = threading.RLock()
        self.sockets: dict[str, Emulated] = {}
        self.by_ident: dict[int, Emulated] = {}
        self.known: dict[tuple[int, int, int, int], int] = {}
        self.taken: set[tuple[object, ...]] = set()
        self.alive = True
        self.dead = False
        self._names = {calls[name]: name for name in handlers}
        self._handlers = {calls[name]: handler for name, handler in handlers.items()}
        self._socket = calls["socket"]
        self._once = (calls["connect"], calls["bind"])
        self._ended: deque[str] = deque()
        self._refused: set[int] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._writing = False
        self._epoll.register(self._wake, select.EPOLLIN)
        self._epoll.register(self.data.fileno(), select.EPOLLIN)
        self._epoll.register(listener.fd, 0)

    # -- the calls --------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer calls until nobody is left who could make one."""
        listener, lock = self.listener, self.lock
        receive, handle = listener.receive, self.handle
        while True:
            call = receive()
            if call is not None:
                try:
                    with lock:
                        handle(call)
                except Exception:  # noqa: BLE001 - it costs one call, not all
                    _LOG.exception("a bug in steertag; please report it")
            elif listener.over():
                return

    def handle(self, call: Notification) -> None:
        """Answer one call, or park it."""
        sock = None
        waited = False
        try:
            number = call[NR]
            if number == self._socket:
                result = self._handlers[number](self, _NO_SOCKET, call)
            else:
                if number in self._once:
                    self.catch_up()
                sock = self.find(call)
                if sock is None:
                    result = self._native(call)
                elif self.dead:
                    result = -errno.ENETDOWN
                elif sock.replay is not None and (again := self._replayed(sock, call)) is not None:
                    result = again
                    waited = True
                else:
                    result = self._handlers[number](self, sock, call)
        except OSError as exc:
            result = -(exc.errno or errno.EIO)
        except Exception:  # noqa: BLE001 - an answer is given, whatever it is
            _LOG.exception("a bug in steertag; please report it")
            result = -errno.EIO
        if self.verbose:
            self._say(call, result)
        if result is not None:
            self.answer(sock, call, result, waited)
        if self.data.wants_write != self._writing:
            self._watch_channel()

    def answer(
        self, sock: Emulated | None, call: Notification, result: int, waited: bool = True
    ) -> bool:
        """Give the result; False: too late, and if the call comes again it finds it.

        `waited`: the caller did, and a signal may come at the same moment as the answer.
        """
        if result == PROCEED:
            return self.listener.proceed(call[ID])
        if self.listener.reply(call[ID], result):
            if waited and sock is not None and result == 0 and call[NR] in self._once:
                sock.replay = (_key(call), _PERHAPS)
            return True
        if sock is not None and result not in _NEVER_AGAIN:
            sock.replay = (_key(call), result)
        return False

    def find(self, call: Notification) -> Emulated | None:
        """The socket that a call's first argument is a descriptor of, if it is one of ours."""
        tid, number = call[TID], call[ARG0] & 0xFFFF_FFFF
        try:
            key = self.target.identity(tid, number)
        except PermissionError:
            self.refused(tid)
            return None
        sock = self.sockets.get(key) if key is not None else None
        if sock is not None:
            sock.where = (tid, number)
        return sock

    def _native(self, call: Notification) -> int | None:
        """A call for a socket that is none of ours: the kernel's, unless --map has a say."""
        if not self.plan.maps:
            return PROCEED
        from steertag.run.calls_native import mapped  # few programs are run with --map

        return mapped(self, call)

    def _replayed(self, sock: Emulated, call: Notification) -> int | None:
        """The answer that was lost, if this is the call that it was for."""
        assert sock.replay is not None  # looked at by the caller
        key, result = sock.replay
        if key[0] != call[TID]:
            return None
        sock.replay = None
        if key != _key(call):
            return None
        if result == _PERHAPS:
            return 0 if self.target.catches_signals(call[TID]) else None
        return result

    def refused(self, tid: int) -> None:
        """Say, once for each, that the kernel does not let us look into a process."""
        try:
            process = self.target.process(tid)
        except OSError:
            return
        if process not in self._refused:
            self._refused.add(process)
            name = self.target.executable(tid) or "a program"
            self.warn(
                f"process {process} ({name}) can't be looked into, so its sockets are the host's"
                " own; see `stag run --check`"
            )

    def warn(self, text: str) -> None:
        """One line on standard error; nobody may be listening any more."""
        with contextlib.suppress(OSError):
            print(f"stag run: {text}", file=sys.stderr, flush=True)

    def name_of(self, call: Notification) -> str:
        return self._names.get(call[NR], str(call[NR]))

    # -- the program's memory ---------------------------------------------------------------------

    def address(self, call: Notification, pointer: int, length: int) -> bytes:
        """A `struct sockaddr` that the caller gave. Raises EINVAL, EFAULT."""
        length &= 0xFFFF_FFFF
        if length > _LONGEST_ADDRESS:
            raise os_error(errno.EINVAL)
        raw = self.target.peek(call[TID], pointer, length)
        if not self.listener.alive(call[ID]):
            raise os_error(errno.EINTR)  # its thread's number may mean another one by now
        return raw

    def write_address(self, call: Notification, pointer: int, length: int, raw: bytes) -> None:
        """Give an address as the kernel does (move_addr_to_user). Raises EINVAL, EFAULT."""
        if not pointer:
            return
        tid = call[TID]
        room = self.target.peek_int(tid, length)
        if room < 0:
            raise os_error(errno.EINVAL)
        self.target.poke(tid, pointer, raw[:room])
        self.target.poke(tid, length, struct.pack("=i", len(raw)))

    def nonblocking(self, call: Notification) -> bool:
        return self.target.nonblocking(call[TID], call[ARG0] & 0xFFFF_FFFF)

    def theirs(self, sock: Emulated, call: Notification) -> std.socket:
        """A duplicate of the program's end. Raises EBADF: the number means another file by now."""
        found = self.target.socket(call[TID], call[ARG0] & 0xFFFF_FFFF)
        if f"socket:[{os.fstat(found.fileno()).st_ino}]" != sock.key:
            found.close()
            raise os_error(errno.EBADF)
        return found

    # -- sockets ----------------------------------------------------------------------------------

    def pair(self, sock: Emulated, nonblocking: bool) -> std.socket:
        """A new pair for `sock`: ours is kept, and the program's is returned.

        Datagrams go through a SOCK_SEQPACKET pair: it keeps them apart as well, and tells when the
        program has closed its end.
        """
        kind = std.SOCK_STREAM if sock.stream else std.SOCK_SEQPACKET
        theirs, own = std.socketpair(std.AF_UNIX, kind)
        own.setblocking(False)
        if nonblocking:
            theirs.setblocking(False)
        sock.own = own
        sock.key = f"socket:[{os.fstat(theirs.fileno()).st_ino}]"
        self.sockets[sock.key] = sock
        self.by_ident[sock.ident] = sock
        return theirs

    def watch(self, sock: Emulated) -> None:
        """Notice when the program's end is closed."""
        assert sock.own is not None  # it has just been made
        fd = sock.own.fileno()
        self._watched[fd] = lambda: self._hung_up(sock)
        self._epoll.register(fd, 0)

    def unwatch(self, sock: Emulated) -> None:
        if sock.own is not None and self._watched.pop(sock.own.fileno(), None) is not None:
            self._epoll.unregister(sock.own.fileno())

    def let_go(self, sock: Emulated) -> None:
        """Close our end."""
        self.unwatch(sock)
        if sock.own is not None:
            sock.own.close()
            sock.own = None

    def attach(self, sock: Emulated) -> None:
        """The data process moves octets between our end and the family from now on."""
        self.unwatch(sock)
        assert sock.own is not None  # not attached before
        self.data.attach(sock.ident, sock.own.detach())
        sock.own = None

    def _hung_up(self, sock: Emulated) -> None:
        """Our end's other one is closed, or shut down both ways, which no call of ours does."""
        own = sock.own
        if own is None:
            return
        poller = select.poll()
        poller.register(own, 0)
        if poller.poll(0):
            self.forget(sock)

    def forget(self, sock: Emulated) -> None:
        """The program has closed it."""
        if sock.state is State.CLOSED:
            return
        sock.state = State.CLOSED
        self.let_go(sock)
        if sock.opened:
            self.data.close(sock.ident)
        # A thread that waits while another one closes the descriptor goes on waiting, as natively,
        # until a signal.
        sock.accepters.clear()
        sock.connect = None
        sock.pending.clear()
        self.by_ident.pop(sock.ident, None)
        if self.sockets.get(sock.key) is sock:
            del self.sockets[sock.key]
        self.drop_former(sock)

    def drop_former(self, sock: Emulated) -> None:
        """No descriptor of the program's is one of its former ends any more."""
        for key in sock.former:
            if self.sockets.get(key) is sock:
                del self.sockets[key]
        sock.former.clear()

    def ended(self, sock: Emulated) -> None:
        """Nothing is behind the program's end any more, and it may still ask about it."""
        self.by_ident.pop(sock.ident, None)
        self._ended.append(sock.key)
        if len(self._ended) > _ENDED:
            key = self._ended.popleft()
            old = self.sockets.get(key)
            if old is not None and old.own is None and old.ident not in self.by_ident:
                del self.sockets[key]

    def program(self, call: Notification) -> str:
        return self.target.executable(call[TID])

    def open(self, sock: Emulated, family: int, use: str) -> None:
        """Have the data process make a socket of the family; `use` is the rule's word for it."""
        sock.family = family
        sock.use = use
        sock.opened = True
        # TCP's number is AF_INET's default; to another family it would mean something else.
        protocol = 0 if sock.protocol == sock.usual else sock.protocol
        self.data.open(sock.ident, family, sock.domain, sock.kind, protocol)
        if use == "sdp" and self.plan.strict:
            self.data.setsockopt(sock.ident, SOL_SDP, SDP_FALLBACK, b"never", trips_next)

    def set_again(self, sock: Emulated) -> None:
        """Options that were set before there was this family's socket."""
        for (level, name), value in sock.options.items():
            if setting(level, name)[0] is How.FAMILY:
                self.data.setsockopt(sock.ident, level, name, value, trips_next)

    # -- waiting ----------------------------------------------------------------------------------

    def ask(self, sock: Emulated, call: Notification, start: Start, finish: Finish) -> int | None:
        """Park a call until the data process has answered.

        `start(then)` makes the request, unless the same thread's same call has made it already;
        `finish(errno, result)` gives the call's result.
        """
        key = (call[NR], call[TID])
        waiting = sock.requests.get(key)
        if waiting is not None:
            waiting.call = call
            return None
        waiting = sock.requests[key] = Waiting(call)

        def then(error: int, result: Any) -> None:  # noqa: ANN401 - the channel's
            sock.requests.pop(key, None)
            try:
                value = finish(error, result)
            except OSError as exc:
                value = -(exc.errno or errno.EIO)
            if self.verbose:
                self._say(waiting.call, value)
            self.answer(sock, waiting.call, value)

        start(then)
        return None

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Have it called, with the lock held."""
        when = time.monotonic() + seconds
        sooner = not self._timers or when < self._timers[0][0]
        heapq.heappush(self._timers, (when, next(self._serial), call))
        if sooner:
            os.eventfd_write(self._wake, 1)

    def limit(self, sock: Emulated, names: tuple[int, int], call: Callable[[], None]) -> None:
        """Have it called when the socket's SO_RCVTIMEO or SO_SNDTIMEO is over, if it has one."""
        for name in names:
            value = sock.options.get((std.SOL_SOCKET, name), b"")
            if len(value) == _TIMEVAL.size and any(value):
                seconds, micros = _TIMEVAL.unpack(value)
                self.after(seconds + micros / 1e6, call)
                return

    def when_ready(
        self, waits: std.socket, events: int, call: Notification, then: Callable[[], bool]
    ) -> None:
        """Have `then` called when a duplicate of the program's is ready, until it says True.

        The duplicate is closed after that, or when the call that waits has ended without us.
        """
        fd = waits.fileno()

        def end() -> None:
            if self._watched.pop(fd, None) is not None:
                self._epoll.unregister(fd)
                waits.close()

        def ready() -> None:
            if then():
                end()

        def look() -> None:
            if fd in self._watched and self._watched[fd] is ready:
                if self.listener.alive(call[ID]):
                    self.after(_LOOK, look)
                else:
                    end()

        self._watched[fd] = ready
        self._epoll.register(fd, events)
        self.after(_LOOK, look)

    # -- the rest ---------------------------------------------------------------------------------

    def attend(self) -> None:
        """The other thread: until nobody is left who could make a call."""
        while self.alive:
            with self.lock:
                timeout = None
                if self._timers:
                    timeout = max(0.0, self._timers[0][0] - time.monotonic())
            events = self._epoll.poll(timeout)
            with self.lock:
                for fd, mask in events:
                    self._event(fd, mask)
                while self._timers and self._timers[0][0] <= time.monotonic():
                    self._guard(heapq.heappop(self._timers)[2])
                if self.data.wants_write != self._writing:
                    self._watch_channel()

    def catch_up(self) -> None:
        """See to what has happened already, before a call that may be there for the second time.

        The data process may have answered the first; and the program counts on sockets that it
        closed to be closed.
        """
        for fd, mask in self._epoll.poll(0):
            self._event(fd, mask)

    def _event(self, fd: int, mask: int) -> None:
        if fd == self._wake:
            with contextlib.suppress(BlockingIOError):  # both threads may have seen it
                os.eventfd_read(fd)
        elif fd == self.listener.fd:
            self.alive = False
        elif (call := self._watched.get(fd)) is not None:
            self._guard(call)
        elif fd == self.data.fileno():
            if mask & select.EPOLLOUT:
                self.data.flush()
            self._guard(self.data.dispatch)

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - it costs one socket, not all
            _LOG.exception("a bug in steertag; please report it")

    def _watch_channel(self) -> None:
        self._writing = self.data.wants_write
        if self.dead:
            return  # it is not watched any more
        extra = select.EPOLLOUT if self._writing else 0
        self._epoll.modify(self.data.fileno(), select.EPOLLIN | extra)

    # -- what data says (`channel.Events`) --------------------------------------------------------

    def pending(self, listener: int, token: int, local: bytes, peer: bytes) -> None:
        from steertag.run.calls_listen import arrived

        sock = self.by_ident.get(listener)
        if sock is None or sock.state is not State.LISTENING:
            self.data.abort(listener, token)
            return
        arrived(self, sock, token, local, peer)

    def source(self, socket: int, address: bytes) -> None:
        sock = self.by_ident.get(socket)
        if sock is not None:
            sock.source = address

    def reset(self, socket: int, error: int) -> None:
        sock = self.by_ident.get(socket)
        if sock is None:
            return
        tid, number = sock.where
        try:
            found = self.target.identity(tid, number) == sock.key
            theirs = self.target.socket(tid, number) if found else None
        except OSError:
            theirs = None  # its thread has ended: the program finds the end of the stream
        if theirs is not None:
            with theirs:
                if f"socket:[{os.fstat(theirs.fileno()).st_ino}]" == sock.key:
                    _put_octet(theirs)
        self.data.close(socket)
        self.gone(socket, error)

    def gone(self, socket: int, error: int) -> None:
        sock = self.by_ident.get(socket)
        if sock is not None:
            self.let_go(sock)
            sock.state = State.FAILED
            self.ended(sock)

    def died(self) -> None:
        """The data process is gone: what it served has ended, and what is asked for fails."""
        self.dead = True
        self._epoll.unregister(self.data.fileno())
        self.warn("the data process has died; its sockets have ended")
        for sock in list(self.by_ident.values()):
            self.let_go(sock)
            for waiting in sock.accepters:
                self.listener.reply(waiting.call[ID], -errno.ENETDOWN)
            sock.accepters.clear()
            sock.state = State.FAILED
            sock.error = errno.ENETDOWN
            self.ended(sock)

    # -- for people -------------------------------------------------------------------------------

    def _say(self, call: Notification, result: int | None) -> None:
        name = self.name_of(call)
        arguments = ", ".join(f"{argument:#x}" for argument in call[ARG0 : ARG0 + 4])
        if result is None:
            said = "..."
        elif result == PROCEED:
            said = "the kernel's"
        elif result < 0:
            said = errno.errorcode.get(-result, str(-result))
        else:
            said = str(result)
        self.warn(f"[{call[TID]}] {name}({arguments}) = {said}")

    def stats(self) -> dict[str, int]:
        """Counters at this moment."""
        return {
            "sockets": len(self.by_ident),
            "remembered": len(self.sockets) - len(self.by_ident),
            "stale": self.listener.stale,
            "waiting": sum(len(sock.requests) for sock in self.by_ident.values()),
        }


_NEVER_AGAIN: Final = (-errno.EAGAIN, -errno.EINTR)
"""Results that say nothing was done: the call that comes again is made again."""
_PERHAPS: Final = -1 << 40
"""Of a replay: the result was 0, and it was in time; but a signal that came at the same moment may
have taken it from the caller all the same (wait_for_completion_interruptible)."""
_NO_SOCKET: Final = Emulated(0, 0, 0, NATIVE)


def _key(call: Notification) -> tuple[int, ...]:
    """What is the same when a call is made again."""
    return (call[TID], call[NR], *call[IP:])


def _put_octet(theirs: std.socket) -> None:
    try:
        theirs.send(b"!", std.MSG_DONTWAIT)
    except OSError:
        # Full: then there is something unread already. Shut down: it finds the end of the stream.
        return


def trips_next(error: int, result: object) -> None:
    """What was taken before is asked for again; if it fails, the next request does as well."""
