"""The transport's sockets under AF_INET_SDP: the host's, or AF_INET_NEW_TCP's.

Both are had through the SOCKET layer's kernel calls (`Stack.sock_create`, `kernel_bind`, ...), as
any user of sockets within a kernel has them. A socket whose calls all end at the host's
(`ProtoOps.passthrough`) is used as what it is, with nothing between.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket as std
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

from steertag.errors import os_error
from steertag.family import net
from steertag.family.msg import MsgHdr, RecvMsg
from steertag.family.sock import POLLRDHUP, sk_wake
from steertag.family.sockopt import sock_of

if TYPE_CHECKING:
    from steertag.family.msg import Address
    from steertag.family.socket import Socket
    from steertag.runtime.connector import ConnectingSocket
    from steertag.runtime.reactor import Reactor
    from steertag.runtime.stream import Buffer
    from steertag.sdp.fabric import Transport
    from steertag.sdp.sock import SdpSock

_EVERYTHING: Final = select.POLLIN | select.POLLOUT | select.POLLPRI | POLLRDHUP
_ALWAYS: Final = select.POLLERR | select.POLLHUP | POLLRDHUP
_EDGES: Final = _EVERYTHING | select.EPOLLET
_INT: Final = struct.Struct("@i")
_RESET: Final = struct.pack("@ii", 1, 0)
MSG_DONTWAIT: Final = int(std.MSG_DONTWAIT)


class HostTransport:
    """One of the host kernel's stream sockets.

    Args:
        reactor: where it waits for news.
        sock: the SOCKET layer's.
        native: the host's, which `sock` is.
    """

    __slots__ = ("_fd", "_mask", "_poller", "_reactor", "_sk", "family", "native", "sock")

    def __init__(self, reactor: Reactor, sock: Socket, native: std.socket) -> None:
        native.setblocking(False)
        sock_of(sock).sk_kern_sock = True
        self._fd = native.fileno()
        self.family = sock.family
        self.sock = sock
        self.native = native
        self._reactor = reactor
        self._poller: select.poll | None = None
        self._sk: SdpSock | None = None
        self._mask = 0

    @property
    def stream(self) -> ConnectingSocket:
        return self.native  # type: ignore[return-value]  # addresses are judged by the callee

    def bind(self, address: Address) -> None:
        self.native.bind(address)  # type: ignore[arg-type]  # judged by the callee

    def listen(self, backlog: int) -> None:
        net.kernel_listen(self.sock, backlog)

    def accept(self) -> HostTransport:
        """The next connection's. Raises BlockingIOError where there is none."""
        native, _ = self.native.accept()
        try:
            sock = self.sock.stack.sock_adopt(native)
        except BaseException:
            native.close()
            raise
        return HostTransport(self._reactor, sock, native)

    def getsockname(self) -> Address:
        name: Address = self.native.getsockname()
        return name

    def getpeername(self) -> Address:
        name: Address = self.native.getpeername()
        return name

    def setsockopt(self, level: int, name: int, value: int | bytes | None) -> None:
        if value is None:
            self.native.setsockopt(level, name, None, 0)
        else:
            self.native.setsockopt(level, name, value)

    def getsockopt(self, level: int, name: int, size: int) -> int | bytes:
        native = self.native
        return native.getsockopt(level, name, size) if size else native.getsockopt(level, name)

    def sendmsg(self, msg: MsgHdr) -> int:
        iov, flags = msg.msg_iov, msg.msg_flags | MSG_DONTWAIT
        if len(iov) == 1 and not msg.msg_control:
            return self.native.send(iov[0], flags)
        return self.native.sendmsg(iov, msg.msg_control, flags)

    def recvmsg(self, msg: MsgHdr, flags: int) -> int:
        if type(msg) is RecvMsg:
            msg.msg_flags = 0
            return msg.write(0, self.native.recv(msg.length, flags | MSG_DONTWAIT))
        count, msg.msg_control, msg.msg_flags, _ = self.native.recvmsg_into(
            msg.msg_iov, msg.msg_controllen, flags | MSG_DONTWAIT
        )
        return count

    def peek(self, octets: int) -> bytes:
        """The first octets that wait to be read; none: the stream has ended."""
        return self.native.recv(octets, MSG_DONTWAIT | std.MSG_PEEK)

    def ioctl(self, cmd: int, arg: object) -> int:
        answer = fcntl.ioctl(self.native.fileno(), cmd, bytes(_INT.size))
        return int(_INT.unpack(answer)[0])

    def shutdown(self, how: int) -> None:
        self.native.shutdown(how)

    def poll(self) -> int:
        poller = self._poller
        if poller is None:
            poller = self._poller = select.poll()
            poller.register(self.native, _EVERYTHING)
        ready = poller.poll(0)
        return ready[0][1] if ready else 0

    def watch(self, sk: SdpSock, mask: int) -> None:
        if self._sk is None:
            self._sk = sk
            self._reactor.add(self, mask)
        elif mask & ~self._mask:
            self._reactor.wait_on(self, mask | self._mask)
        self._mask |= mask

    def watch_edges(self, sk: SdpSock) -> None:
        self.watch(sk, _EDGES)

    def unwatch(self) -> None:
        """It has no news for its sock any more."""
        if self._sk is not None:
            self._sk = None
            self._mask = 0
            self._reactor.remove(self)

    def close(self) -> None:
        self.unwatch()
        net.sock_release(self.sock)

    def reset_on_close(self) -> None:
        """Have `close` reset the connection, so that its port is free at once."""
        self.native.setsockopt(std.SOL_SOCKET, std.SO_LINGER, _RESET)

    def abort(self) -> None:
        self.reset_on_close()
        self.close()

    # -- what the reactor asks, while somebody waits for it to be ready ------------------------

    deadline = None

    def fileno(self) -> int:
        return self._fd

    def pump(self) -> bool:
        sk, wanted = self._sk, self._mask
        if not wanted & select.EPOLLET:
            self._mask = 0
            self._reactor.wait_on(self, 0)
        if sk is not None:
            sk_wake(sk, self.poll() & (wanted | _ALWAYS))
        return True

    def block(self, timeout: float | None) -> bool | None:
        """It has nothing to block in."""
        return None

    def glance(self, timeout: float | None) -> bool:
        """There is no hurry."""
        return False

    def handle_timer(self, now: float) -> None:
        """It has no deadline."""


class KernelTransport:
    """A stream socket of a family of this process.

    Args:
        reactor: where its stream is pumped.
        sock: the SOCKET layer's.
    """

    __slots__ = ("_reactor", "_sk", "family", "sock", "stream")

    def __init__(self, reactor: Reactor, sock: Socket) -> None:
        sock_of(sock).sk_kern_sock = True
        self.family = sock.family
        self.sock = sock
        self.stream = KernelStream(reactor, sock)
        self._reactor = reactor
        self._sk: SdpSock | None = None

    def bind(self, address: Address) -> None:
        net.kernel_bind(self.sock, address)

    def listen(self, backlog: int) -> None:
        net.kernel_listen(self.sock, backlog)

    def accept(self) -> KernelTransport:
        """The next connection's. Raises BlockingIOError where there is none."""
        return KernelTransport(self._reactor, net.kernel_accept(self.sock))

    def getsockname(self) -> Address:
        return net.kernel_getname(self.sock, False)

    def getpeername(self) -> Address:
        return net.kernel_getname(self.sock, True)

    def setsockopt(self, level: int, name: int, value: int | bytes | None) -> None:
        net.kernel_setsockopt(self.sock, level, name, value)

    def getsockopt(self, level: int, name: int, size: int) -> int | bytes:
        return net.kernel_getsockopt(self.sock, level, name, size)

    def sendmsg(self, msg: MsgHdr) -> int:
        return net.sock_sendmsg(self.sock, msg)

    def recvmsg(self, msg: MsgHdr, flags: int) -> int:
        return net.sock_recvmsg(self.sock, msg, flags)

    def peek(self, octets: int) -> bytes:
        """The first octets that wait to be read; none: the stream has ended."""
        msg = RecvMsg(octets)
        return msg.data(net.sock_recvmsg(self.sock, msg, std.MSG_PEEK))

    def ioctl(self, cmd: int, arg: object) -> int:
        return net.sock_ioctl(self.sock, cmd, arg)

    def shutdown(self, how: int) -> None:
        net.kernel_sock_shutdown(self.sock, how)

    def poll(self) -> int:
        return net.sock_poll(self.sock)

    def watch(self, sk: SdpSock, mask: int) -> None:
        """Its news are the sock's from now on."""
        if self._sk is None:
            self._sk = sk
            self.sock.wait_queue.append(self._forward)

    def watch_edges(self, sk: SdpSock) -> None:
        self.watch(sk, 0)

    def unwatch(self) -> None:
        """It has no news for its sock any more."""
        if self._sk is not None:
            self._sk = None
            self.sock.wait_queue.remove(self._forward)

    def close(self) -> None:
        self.unwatch()
        self.stream.close()

    def reset_on_close(self) -> None:
        """Have `close` reset the connection, so that its port is free at once."""
        net.kernel_setsockopt(self.sock, std.SOL_SOCKET, std.SO_LINGER, _RESET)

    def abort(self) -> None:
        self.reset_on_close()
        self.close()

    def _forward(self, mask: int) -> None:
        if self._sk is not None and mask:
            sk_wake(self._sk, mask)


class KernelStream:
    """`Stream` and `ConnectingSocket` over a socket of this process, for handlers of a Reactor.

    It needs no descriptor: it tells the reactor of the socket's news.
    """

    __slots__ = ("_number", "_reactor", "kernel")

    def __init__(self, reactor: Reactor, sock: Socket) -> None:
        self.kernel = sock
        self._reactor = reactor
        self._number = reactor.attach(lambda: net.sock_poll(sock))
        sock.wait_queue.append(self._news)

    def _news(self, mask: int) -> None:
        if mask:
            self._reactor.news(self._number)

    def fileno(self) -> int:
        return self._number

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        return self.sendmsg((data,), (), flags)

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        /,
    ) -> int:
        parts = [memoryview(part).cast("B") for part in buffers]
        return net.sock_sendmsg(self.kernel, MsgHdr(parts, flags=flags & ~MSG_DONTWAIT))

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0, /) -> int:
        return net.sock_recvmsg(self.kernel, MsgHdr((buffer,)), flags & ~MSG_DONTWAIT)

    def recvmsg_into(
        self, buffers: Iterable[memoryview], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, object]:
        msg = MsgHdr(list(buffers))
        return net.sock_recvmsg(self.kernel, msg, flags & ~MSG_DONTWAIT), [], 0, None

    def connect_ex(self, address: object, /) -> int:
        try:
            net.kernel_connect(self.kernel, address)
        except OSError as exc:
            return exc.errno or errno.EIO
        return 0

    def getpeername(self) -> object:
        return net.kernel_getname(self.kernel, True)

    def getsockopt(self, level: int, option: int, /) -> int:
        value = net.kernel_getsockopt(self.kernel, level, option)
        assert isinstance(value, int)  # no size was given
        return value

    def setsockopt(self, level: int, option: int, value: bytes | int, /) -> None:
        net.kernel_setsockopt(self.kernel, level, option, value)

    def setblocking(self, flag: bool, /) -> None:
        """Nothing of the kernel's calls waits."""

    def shutdown(self, how: int, /) -> None:
        net.kernel_sock_shutdown(self.kernel, how)

    def close(self) -> None:
        if self._news in self.kernel.wait_queue:
            self.kernel.wait_queue.remove(self._news)
        self._reactor.detach(self._number)
        net.sock_release(self.kernel)


AnyTransport = HostTransport | KernelTransport


def peer_of(transport: AnyTransport) -> Address:
    """Its peer's address; None: it is gone already."""
    try:
        return transport.getpeername()
    except OSError:
        return None


class Judge(Protocol):
    """What becomes of a connection whose peer turns out to speak SDP."""

    def speaks(self) -> None:
        """Nothing was sent to it: it can be SDP's. The sock has no transport from then on."""
        ...

    def too_late(self) -> None:
        """It was sent something as a plain peer: the connection ends by a reset."""
        ...


class DoubtfulTransport:
    """The transport of a peer that has said nothing yet: plain TCP's, unless it begins with `key`
    after all.

    It is looked at with each call until that is known. The key comes in one segment from who knows
    it: a part of it is plain TCP's.

    Args:
        inner: the transport.
        sk: the program's, which has it.
        key: an MPA Request's first octets.
        judge: told when they are there.
    """

    __slots__ = ("_inner", "_judge", "_key", "_sent", "_sk")

    def __init__(self, inner: AnyTransport, sk: SdpSock, key: bytes, judge: Judge) -> None:
        self._inner, self._sk, self._key, self._judge = inner, sk, key, judge
        self._sent = False

    def _look(self) -> bool:
        """Whether calls go to the transport. Raises the connection's error, which is told once."""
        plain: Transport | None = self._sk.plain
        if plain is None or plain is self._inner:
            return plain is not None  # known since the call began
        try:
            first = self._inner.peek(len(self._key))
        except BlockingIOError:
            return True
        if first != self._key:
            self._sk.plain = self._sk.transport = self._inner
            return True
        if self._sent:
            self._judge.too_late()
        else:
            self._judge.speaks()
        return False

    def sendmsg(self, msg: MsgHdr) -> int:
        if not self._look():
            raise os_error(errno.EAGAIN)
        count = self._inner.sendmsg(msg)
        self._sent = True
        return count

    def recvmsg(self, msg: MsgHdr, flags: int) -> int:
        if not self._look():
            raise os_error(errno.EAGAIN)
        return self._inner.recvmsg(msg, flags)

    def poll(self) -> int:
        ready = self._inner.poll()
        # An error is left to the call that is to find it.
        if ready & (select.POLLIN | select.POLLERR) != select.POLLIN or self._look():
            return ready
        return 0

    def ioctl(self, cmd: int, arg: object) -> int:
        return self._inner.ioctl(cmd, arg) if self.poll() else 0

    def shutdown(self, how: int) -> None:
        self.poll()
        if self._sk.plain is not None:
            self._sent = True
            self._inner.shutdown(how)

    def watch(self, sk: SdpSock, mask: int) -> None:
        if sk.plain is not None:
            self._inner.watch(sk, mask)

    def watch_edges(self, sk: SdpSock) -> None:
        self.watch(sk, _EDGES)

    @property
    def family(self) -> int:
        return self._inner.family

    def bind(self, address: Address) -> None:
        self._inner.bind(address)

    def listen(self, backlog: int) -> None:
        self._inner.listen(backlog)

    def getsockname(self) -> Address:
        return self._inner.getsockname()

    def getpeername(self) -> Address:
        return self._inner.getpeername()

    def setsockopt(self, level: int, name: int, value: int | bytes | None) -> None:
        self._inner.setsockopt(level, name, value)

    def getsockopt(self, level: int, name: int, size: int) -> int | bytes:
        return self._inner.getsockopt(level, name, size)

    def close(self) -> None:
        self._inner.close()

    def abort(self) -> None:
        self._inner.abort()
