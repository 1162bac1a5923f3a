"""The data process: owns the Stack, opens the family's sockets, moves the octets.

`start` forks it. It serves what control asks for over the channel (`channel`), one loop for all
(`poller`): a `Served` is a socket of the program's with the family's socket behind it. When control
closes the channel, what programs had sent before they ended is still delivered; then it ends.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import socket as std
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from steertag.errors import StateError, os_error
from steertag.family import net
from steertag.family.const import SOCK_DEAD, TcpState
from steertag.family.msg import MsgHdr
from steertag.family.socket import Socket
from steertag.family.stack import Stack
from steertag.run import channel as c
from steertag.run import sockaddr
from steertag.run.channel import Channel, Message
from steertag.run.datagrams import Datagrams
from steertag.run.delayed import DelayedRelay
from steertag.run.ends import Counters, release
from steertag.run.families import open_stack
from steertag.run.launch import RunConfig
from steertag.run.listeners import Listener
from steertag.run.poller import ERR, HUP, IN, OUT, Poller
from steertag.run.relay import Relay

SIOCOUTQ: Final = 0x5411
_STREAM: Final = int(std.SOCK_STREAM)
_SIGNALS: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP, signal.SIGTERM)
"""The terminal sends them to all; what ends this process is the end of its channel."""
PATIENCE: Final = 10.0
"""Seconds without an octet moved after which what is still to be delivered is given up."""
_LOOK: Final = 0.05
_READY: Final = 0
_DELIVERING: Final = (TcpState.TCP_FIN_WAIT1, TcpState.TCP_CLOSING, TcpState.TCP_LAST_ACK)


class Served:
    """One socket of the program's. Owner of its relay."""

    __slots__ = (
        "connecting",
        "data",
        "datagrams",
        "domain",
        "error",
        "id",
        "kind",
        "linger",
        "linked",
        "listener",
        "marked",
        "native",
        "relay",
        "sock",
        "watching",
    )

    def __init__(self, data: Data, id: int, domain: int, kind: int) -> None:
        self.data = data
        self.id = id
        self.domain = domain
        self.kind = kind
        self.sock: Socket | None = None
        self.native: std.socket | None = None
        self.error: OSError | None = None
        self.linger = b""
        self.relay: Relay | None = None
        self.datagrams: Datagrams | None = None
        self.listener: Listener | None = None
        self.connecting: tuple[int, bytes] | None = None
        self.marked = self.linked = self.watching = False

    def adopt(self, sock: Socket) -> None:
        passthrough = sock.ops.passthrough
        self.sock = sock
        self.native = passthrough(sock) if passthrough is not None else None
        if self.native is not None:
            self.native.setblocking(False)

    def live(self) -> Socket:
        """The family's socket. Raises what opening it raised."""
        if self.error is not None:
            raise self.error
        if self.sock is None or self.sock.released:
            raise os_error(errno.ENOTCONN)
        return self.sock

    # -- connecting ----------------------------------------------------------------------------

    def connect(self, serial: int, raw: bytes) -> None:
        sock = self.live()
        if sockaddr.family_of(raw) == sockaddr.AF_UNSPEC and self.domain != sockaddr.AF_UNSPEC:
            net.kernel_connect(sock, None)
            if self.datagrams is not None:
                self.datagrams.connected(False)
            self.data.answer(self.id, serial, 0, (self.name(), b""))
            return
        if self.connecting is not None:
            raise os_error(errno.EALREADY)
        if self.relay is not None or (self.linked and self.kind == _STREAM):
            raise os_error(errno.EISCONN)
        address = sockaddr.parse(self.domain, raw)
        self.connecting = serial, raw
        try:
            net.kernel_connect(sock, address)
        except BlockingIOError:
            self._watch(sock)
        except BaseException:
            self.connecting = None
            raise
        else:
            self._connected(0)

    def _watch(self, sock: Socket) -> None:
        self.watching = True
        if self.native is None:
            sock.wait_queue.append(self._family_news)
        else:
            self.data.poller.register(self.native.fileno(), self._native_news)

    def _unwatch(self, sock: Socket) -> None:
        if not self.watching:
            return
        self.watching = False
        if self.native is not None:
            self.data.poller.forget(self.native.fileno())
        elif self._family_news in sock.wait_queue:
            sock.wait_queue.remove(self._family_news)

    def _native_news(self, events: int) -> None:
        if self.native is None or not events & (OUT | ERR | HUP):
            return
        error = self.native.getsockopt(std.SOL_SOCKET, std.SO_ERROR)
        if error and self.connecting is not None:
            # Linux has the next call after a failure fail as well, and only then starts anew.
            self.native.connect_ex(sockaddr.parse(self.domain, self.connecting[1]))  # type: ignore[arg-type]
        if error or events & OUT:
            self._connected(error)

    def _family_news(self, mask: int) -> None:
        if mask:
            self.data.poller.again(self)

    def run(self) -> None:
        """A family of this process had news while connecting: ask it how far it is."""
        sock = self.sock
        if self.connecting is None or sock is None or sock.released:
            return
        try:
            net.kernel_connect(sock, sockaddr.parse(self.domain, self.connecting[1]))
        except BlockingIOError:
            return
        except OSError as error:
            self._connected(0 if error.errno == errno.EISCONN else error.errno or errno.EIO)
        else:
            self._connected(0)

    def _connected(self, error: int) -> None:
        connecting, self.connecting = self.connecting, None
        sock = self.sock
        if connecting is None or sock is None:
            return
        self._unwatch(sock)
        serial, raw = connecting
        result = None
        if not error:
            try:
                result = self.name(), sockaddr.emit(self.domain, net.kernel_getname(sock, 1))
            except OSError:
                result = self.name(), raw  # it is over already, which reading will tell
            self.linked = True
            self.data.counters.connected += 1
            if self.datagrams is not None:
                self.datagrams.connected(True)
        self.data.answer_late(self.id, serial, error, result)

    def name(self) -> bytes:
        if self.sock is None or self.sock.released:
            return sockaddr.unspecified(self.domain)
        return sockaddr.emit(self.domain, net.kernel_getname(self.sock, 0))

    # -- moving octets -------------------------------------------------------------------------

    def attach(self, fd: int) -> None:
        ours = std.socket(fileno=fd)
        ours.setblocking(False)
        data = self.data
        if self.sock is None or self.sock.released:
            ours.close()
            self.relay_ended(errno.ENOTCONN)
        elif self.kind == _STREAM:
            kind = DelayedRelay if data.delay else Relay
            self.relay = kind(
                data.poller, ours, self.sock, self.native, self, data.counters, self.linger
            )
            self.relay.delay = data.delay
            self.relay.start()
        else:
            self.datagrams = Datagrams(
                data.poller, ours, self.sock, self.native, self, data.counters, self.domain
            )
            self.datagrams.start()

    def relay_reset(self, error: int) -> None:
        self.data.say((c.RESET, self.id, error))

    def relay_ended(self, error: int) -> None:
        """Our end is closed."""
        if self.data.served.pop(self.id, None) is not None:
            self.data.say((c.GONE, self.id, error))

    def source(self, address: bytes) -> None:
        self.data.say((c.SOURCE, self.id, address))

    def pending(self, token: int, local: bytes, peer: bytes) -> None:
        self.data.say((c.PENDING, self.id, token, local, peer))

    def close(self) -> None:
        """Control is done with it, and so is the program."""
        self.data.served.pop(self.id, None)
        self.connecting = None
        if self.listener is not None:
            self.listener.close()
        elif self.relay is not None:
            self.relay.close_both()
        elif self.datagrams is not None:
            self.datagrams.close()
        elif self.sock is not None:
            self._unwatch(self.sock)
            release(self.data.poller, self.sock, self.native)


class Data:
    """Args:
    channel: to control.
    stack: the one that has the families.
    rtt: seconds; see `RunConfig`.
    """

    def __init__(self, channel: Channel, stack: Stack, rtt: float = 0.0) -> None:
        self.channel = channel
        self.stack = stack
        self.rtt = rtt
        self.delay = rtt / 2
        self.poller = Poller(stack)
        self.counters = Counters()
        self.served: dict[int, Served] = {}
        self.marked = False
        self._calls: dict[int, Callable[[Message, int], None]] = {
            c.OPEN: self._open,
            c.BIND: self._bind,
            c.CONNECT: self._connect,
            c.LISTEN: self._listen,
            c.ATTACH: self._attach,
            c.ACCEPT: self._accept,
            c.ABORT: self._abort,
            c.SETSOCKOPT: self._setsockopt,
            c.GETSOCKOPT: self._getsockopt,
            c.GETSOCKNAME: self._getsockname,
            c.GETPEERNAME: self._getpeername,
            c.SHUTDOWN: self._shutdown,
            c.SENDTO: self._sendto,
            c.IOCTL: self._ioctl,
            c.CLOSE: self._close,
            c.STATS: self._stats,
        }
        self.poller.register_level(channel.fileno(), self._channel_news)
        self._writing = False

    # -- the channel ---------------------------------------------------------------------------

    def _channel_news(self, events: int) -> None:
        if events & OUT:
            self.channel.flush()
            self._mind_writing()
        self.poller.again(self)

    def run(self) -> None:
        """Serve what control has asked for."""
        for message, fd in self.channel.receive():
            try:
                self._calls[message[0]](message, fd)
            except OSError as error:
                self._refuse(message, error.errno or errno.EIO)
            except (TypeError, ValueError, OverflowError):
                self._refuse(message, errno.EINVAL)  # what the family makes of an address
            except StateError:
                self._refuse(message, errno.EOPNOTSUPP)
        if self.channel.closed:
            self.poller.running = False

    def _refuse(self, message: Message, error: int) -> None:
        if message[2]:
            self.answer(message[1], message[2], error, None)

    def say(self, message: Message) -> None:
        self.channel.send(message)
        if self.channel.wants_write != self._writing:
            self._mind_writing()

    def _mind_writing(self) -> None:
        self._writing = self.channel.wants_write
        if not self.channel.closed:
            self.poller.modify_level(self.channel.fileno(), IN | OUT if self._writing else IN)

    def answer(self, id: int, serial: int, error: int, result: object) -> None:
        self.say((c.ANSWER, id, serial, error, result))

    def answer_late(self, id: int, serial: int, error: int, result: object) -> None:
        """A round trip later than it is, where `rtt` says so."""
        if not self.rtt:
            self.answer(id, serial, error, result)
            return
        when = self.poller.clock() + self.rtt
        self.poller.call_at(when, lambda: self.answer(id, serial, error, result))

    # -- what control asks for -----------------------------------------------------------------

    def _open(self, message: Message, fd: int) -> None:
        _, id, _, family, domain, kind, protocol = message
        self.served[id] = served = Served(self, id, domain, kind)
        try:
            served.adopt(self.stack.sock_create(family, kind, protocol))
        except OSError as error:
            served.error = error

    def _of(self, message: Message) -> Served:
        served = self.served.get(message[1])
        if served is None:
            raise os_error(errno.ENOTCONN)
        return served

    def _bind(self, message: Message, fd: int) -> None:
        served = self._of(message)
        sock = served.live()
        net.kernel_bind(sock, sockaddr.parse(served.domain, message[3]))
        self.answer(served.id, message[2], 0, served.name())

    def _connect(self, message: Message, fd: int) -> None:
        self._of(message).connect(message[2], message[3])

    def _listen(self, message: Message, fd: int) -> None:
        served = self._of(message)
        sock = served.live()
        if served.listener is None:
            listener = Listener(
                self.poller, sock, served.native, served.domain, served.pending, self.counters
            )
        else:
            listener = served.listener
        listener.listen(message[3])
        served.listener = listener
        self.answer(served.id, message[2], 0, served.name())

    def _attach(self, message: Message, fd: int) -> None:
        served = self.served.get(message[1])
        if served is None:
            os.close(fd)
        else:
            served.attach(fd)

    def _accept(self, message: Message, fd: int) -> None:
        _, id, _, listener_id, token = message
        listening = self.served.get(listener_id)
        sock = None
        if listening is not None and listening.listener is not None:
            sock = listening.listener.take(token)
        if listening is None or sock is None:
            os.close(fd)
            self.say((c.GONE, id, errno.ECONNABORTED))
            return
        self.served[id] = served = Served(self, id, listening.domain, listening.kind)
        served.linger = listening.linger
        served.adopt(sock)
        served.attach(fd)

    def _abort(self, message: Message, fd: int) -> None:
        served = self.served.get(message[1])
        if served is not None and served.listener is not None:
            served.listener.abort(message[3])

    def _setsockopt(self, message: Message, fd: int) -> None:
        served = self._of(message)
        _, id, serial, level, name, value = message
        net.kernel_setsockopt(served.live(), level, name, value)
        if (level, name) == (std.SOL_SOCKET, std.SO_LINGER):
            served.linger = value
            if served.relay is not None:
                served.relay.linger = value
        self.answer(id, serial, 0, None)

    def _getsockopt(self, message: Message, fd: int) -> None:
        served = self._of(message)
        _, id, serial, level, name, size = message
        value = net.kernel_getsockopt(served.live(), level, name, size)
        octets = value.to_bytes(4, sys.byteorder, signed=True) if isinstance(value, int) else value
        self.answer(id, serial, 0, octets)

    def _getsockname(self, message: Message, fd: int) -> None:
        served = self._of(message)
        served.live()
        self.answer(served.id, message[2], 0, served.name())

    def _getpeername(self, message: Message, fd: int) -> None:
        served = self._of(message)
        peer = net.kernel_getname(served.live(), 1)
        self.answer(served.id, message[2], 0, sockaddr.emit(served.domain, peer))

    def _shutdown(self, message: Message, fd: int) -> None:
        served = self._of(message)
        net.kernel_sock_shutdown(served.live(), message[3])
        self.answer(served.id, message[2], 0, None)

    def _sendto(self, message: Message, fd: int) -> None:
        served = self._of(message)
        _, id, serial, raw, data, flags = message
        name = sockaddr.parse(served.domain, raw) if raw else None
        msg = MsgHdr((memoryview(data),), name=name, flags=flags)
        sent = net.sock_sendmsg(served.live(), msg)
        self.counters.datagrams += 1
        self.answer(id, serial, 0, sent)

    def _ioctl(self, message: Message, fd: int) -> None:
        served = self._of(message)
        _, id, serial, request = message
        count = net.sock_ioctl(served.live(), request)
        if request == SIOCOUTQ and served.relay is not None:
            count += served.relay.unsent()
        self.answer(id, serial, 0, count)

    def _close(self, message: Message, fd: int) -> None:
        served = self.served.get(message[1])
        if served is not None:
            served.close()

    def _stats(self, message: Message, fd: int) -> None:
        counts = self.counters.as_dict()
        counts["sockets"] = len(self.served)
        self.answer(message[1], message[2], 0, counts)

    # -- the end -------------------------------------------------------------------------------

    def finish(self) -> None:
        """Control is gone. What programs sent before they ended is delivered, the rest given up."""
        poller = self.poller
        with self.stack.lock:
            poller.forget(self.channel.fileno())
            poller.turn(0.0)
            for served in list(self.served.values()):
                sending = served.relay is not None and served.relay.hung_up
                if not sending:
                    served.close()
        moved, deadline = -1, 0.0
        while self.served or self._delivering():
            now = poller.clock()
            if (count := self._moved()) != moved:
                moved, deadline = count, now + PATIENCE
            if now >= deadline:
                break
            poller.turn(_LOOK)

    def _moved(self) -> int:
        relays = (served.relay for served in self.served.values())
        left = sum(relay.outgoing.moved for relay in relays if relay is not None)
        return left + self.counters.tx - sum(sk.sk_wmem_queued for sk in self.stack.socks)

    def _delivering(self) -> bool:
        return any(
            sk.sk_flags & SOCK_DEAD and sk.sk_state in _DELIVERING for sk in tuple(self.stack.socks)
        )


def serve(channel: Channel, config: RunConfig) -> None:
    """What the data process does, from its start to its end."""
    try:
        stack = open_stack(config)
        data = Data(channel, stack, config.rtt)
        data.poller.drive()
    except OSError as error:
        channel.send((_READY, error.errno or errno.EIO, error.strerror or str(error)))
        return
    channel.send((_READY, 0, ""))
    data.poller.run()
    _leave((2,))
    data.finish()
    stack.close()


def start(config: RunConfig, foreign: Sequence[int] = ()) -> tuple[int, Channel]:
    """Fork the data process; its pid, and our end of the channel to it.

    It closes the descriptors `foreign`, which are ours alone.

    To be called while the process has one thread. The child ignores the terminal's signals, and
    ends when this end of the channel is closed and what programs had sent is delivered.

    Raises:
        OSError: the Stack or the family can't be had, in one line; no process is left behind.
    """
    ours, theirs = Channel.pair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        ours.close()
        for fd in foreign:
            os.close(fd)
        _child(theirs, config)
    theirs.close()
    error, text = _first_word(ours)
    if error:
        ours.close()
        os.waitpid(pid, 0)
        raise OSError(error, text)
    return pid, ours


def _child(channel: Channel, config: RunConfig) -> None:
    status = 1
    try:
        logging.basicConfig(format="stag run: %(message)s")  # among what the program says
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        _leave((0, 1))
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        serve(channel, config)
        status = 0
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it is
        sys.stderr.write(f"stag run: the data process ends: {type(error).__name__}: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _leave(fds: Iterable[int]) -> None:
    """Hold none of the caller's files open: whoever reads them waits for their end."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in fds:
        os.dup2(nothing, fd)
    os.close(nothing)


def _first_word(channel: Channel) -> tuple[int, str]:
    """How its start went: it is the one message that is waited for."""
    import select

    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        poll.poll()
        for message, _ in channel.receive():
            return _as_word(message)
        if channel.closed:
            return errno.ENETDOWN, "the data process ended at its start"


def _as_word(message: tuple[Any, ...]) -> tuple[int, str]:
    return int(message[1]), str(message[2])
