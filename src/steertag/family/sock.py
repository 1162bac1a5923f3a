"""`struct sock`: the protocol's side of a socket, its queues and call-backs (net/core/sock.c)."""

from __future__ import annotations

import errno
import select
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from steertag.errors import StateError, os_error
from steertag.family import memory
from steertag.family.const import (
    RCV_SHUTDOWN,
    SK_MEM_RECV,
    SK_MEM_SEND,
    SOCK_DEAD,
    SOCK_FREED,
    SOCK_MIN_SNDBUF,
    SOCK_NOMEM,
    SOCK_NOSPACE,
    SOCK_RCVBUF_LOCK,
    SOCK_SNDBUF_LOCK,
    TcpState,
)
from steertag.family.skbuff import SkBuff, SkBuffHead

if TYPE_CHECKING:
    from steertag.family.proto import Proto
    from steertag.family.socket import Socket
    from steertag.family.stack import Stack

POLLRDHUP: int = getattr(select, "POLLRDHUP", 0x2000)


class Sock:
    """What every protocol's sock has. A protocol adds its own by subclassing (`Proto.obj_size`).

    Attributes:
        sk_rcvbuf: octets of buffers (truesize) that may wait to be received.
        sk_sndbuf: octets of buffers that may wait to be sent.
        sk_rmem_alloc: octets charged for buffers in, or taken from, the receive queue.
        sk_wmem_alloc: octets of buffers sent and not yet let go by the device (datagrams).
        sk_wmem_queued: octets of buffers in the write queue (streams).
        sk_forward_alloc: octets taken from the protocol's account and not used yet.
        sk_err: errno to report once, by the next call or SO_ERROR.
        sk_err_soft: errno of something that may heal: reported by SO_ERROR alone, once, and by
            the protocol if it gives up.
        sk_shutdown: RCV_SHUTDOWN and SEND_SHUTDOWN.
        sk_state: a TcpState.
        sk_kern_sock: somebody within the stack uses the socket, and closes it; no program's.
        sk_lingertime: SO_LINGER's, in seconds, when sk_flags has SOCK_LINGER.
        sk_data_ready, sk_write_space, sk_state_change, sk_error_report: what the protocol calls
            when data came, room came, the state changed, sk_err was set. They wake whoever
            waits on the socket; whoever uses a socket from within the stack may replace them.
    """

    __slots__ = (
        "__weakref__",
        "accept_queue",
        "sk_ack_backlog",
        "sk_data_ready",
        "sk_err",
        "sk_err_soft",
        "sk_error_report",
        "sk_family",
        "sk_flags",
        "sk_forward_alloc",
        "sk_kern_sock",
        "sk_lingertime",
        "sk_max_ack_backlog",
        "sk_prot",
        "sk_protocol",
        "sk_rcvbuf",
        "sk_rcvlowat",
        "sk_rcvtimeo",
        "sk_receive_queue",
        "sk_reuse",
        "sk_rmem_alloc",
        "sk_shutdown",
        "sk_sndbuf",
        "sk_sndtimeo",
        "sk_socket",
        "sk_stack",
        "sk_state",
        "sk_state_change",
        "sk_type",
        "sk_wmem_alloc",
        "sk_wmem_queued",
        "sk_write_queue",
        "sk_write_space",
    )

    sk_prot: Proto
    sk_stack: Stack

    def __init__(self) -> None:
        self.sk_family = 0
        self.sk_type = 0
        self.sk_protocol = 0
        self.sk_socket: Socket | None = None
        self.sk_receive_queue = SkBuffHead()
        self.sk_write_queue = SkBuffHead()
        self.sk_rcvbuf = self.sk_sndbuf = 0
        self.sk_rmem_alloc = self.sk_wmem_alloc = 0
        self.sk_wmem_queued = self.sk_forward_alloc = 0
        self.sk_err = self.sk_err_soft = 0
        self.sk_shutdown = 0
        self.sk_state = TcpState.TCP_CLOSE
        self.sk_flags = 0
        self.sk_reuse = False
        self.sk_kern_sock = False
        self.sk_lingertime = 0.0
        self.sk_rcvlowat = 1
        self.sk_rcvtimeo: float | None = None
        self.sk_sndtimeo: float | None = None
        self.sk_ack_backlog = 0
        self.sk_max_ack_backlog = 0
        self.accept_queue: deque[Sock] = deque()
        self.sk_data_ready: Callable[[Sock], None] = sock_def_readable
        self.sk_write_space: Callable[[Sock], None] = sock_def_write_space
        self.sk_state_change: Callable[[Sock], None] = sock_def_wakeup
        self.sk_error_report: Callable[[Sock], None] = sock_def_error_report


# -- life -------------------------------------------------------------------------------------


def sk_alloc(stack: Stack, family: int, prot: Proto) -> Sock:
    """A sock of the protocol's class; it counts as one of the protocol's until `sk_free`.

    Raises:
        StateError: `prot` is not registered with `stack`.
    """
    if prot.stack is not stack:
        raise StateError(f"protocol {prot.name} is not registered with this Stack")
    sk = prot.obj_size()
    prot.inuse += 1
    sk.sk_family = family
    sk.sk_prot = prot
    sk.sk_stack = stack
    return sk


def sock_init_data(sock: Socket | None, sk: Sock) -> None:
    """Start values: buffer sizes from the sysctls, and the tie to the socket (None for a child)."""
    sysctl = sk.sk_stack.sysctl
    prot = sk.sk_prot
    sk.sk_rcvbuf = prot.sysctl_rmem[1] if prot.sysctl_rmem else sysctl["net.core.rmem_default"]
    sk.sk_sndbuf = prot.sysctl_wmem[1] if prot.sysctl_wmem else sysctl["net.core.wmem_default"]
    if prot.sockets_allocated is not None:
        prot.sockets_allocated.value += 1
    sk.sk_stack.socks.add(sk)
    if sock is not None:
        sk.sk_type = sock.type
        sock_graft(sk, sock)


def sock_graft(sk: Sock, sock: Socket) -> None:
    """Tie a sock to the user's socket."""
    sk.sk_socket = sock
    sock.sk = sk


def sock_orphan(sk: Sock) -> None:
    """The user's socket is gone; the sock lives on until `sk_free`."""
    sk.sk_flags |= SOCK_DEAD
    sk.sk_socket = None


def sk_free(sk: Sock) -> None:
    """Let the sock go: queues freed, charges returned, counted out. Calling it again is harmless.

    Buffers that a device still holds keep it alive, as in the kernel (`sk_wmem_alloc`).
    """
    if sk.sk_flags & SOCK_FREED:
        return
    sk.sk_flags |= SOCK_FREED | SOCK_DEAD
    sk.sk_receive_queue.purge()
    while len(sk.sk_write_queue):
        sk_wmem_free_skb(sk, sk.sk_write_queue.popleft())
    if not sk.sk_wmem_alloc:
        _destroy(sk)


def _destroy(sk: Sock) -> None:
    prot = sk.sk_prot
    if prot.destroy is not None:
        prot.destroy(sk)
    memory.sk_mem_reclaim(sk)
    memory.forget_waiter(sk)
    if prot.sockets_allocated is not None:
        prot.sockets_allocated.value -= 1
    sk.sk_stack.socks.discard(sk)
    prot.inuse -= 1


# -- errors -----------------------------------------------------------------------------------


def sock_error(sk: Sock) -> OSError | None:
    """Take the pending error, if any: it is reported once."""
    code, sk.sk_err = sk.sk_err, 0
    return os_error(code) if code else None


def sock_raise_error(sk: Sock) -> None:
    """Raise the pending error, if any.

    No local name has the exception: that would be a cycle, which keeps what the frames of its
    traceback had, buffers of the user's among it.
    """
    code = sk.sk_err
    if code:
        sk.sk_err = 0
        raise os_error(code)


# -- default call-backs -----------------------------------------------------------------------


def sk_wake(sk: Sock, mask: int) -> None:
    """Tell whoever waits on the socket to look again; `mask` says which POLL* bits are news."""
    sock = sk.sk_socket
    if sock is not None:
        sock.wake(mask)


def sock_def_readable(sk: Sock) -> None:
    sk_wake(sk, select.POLLIN)


def sock_def_write_space(sk: Sock) -> None:
    """Wake writers once half the buffer is free, so that they do not wake for every buffer."""
    if sk.sk_wmem_alloc << 1 <= sk.sk_sndbuf:
        sk.sk_flags &= ~SOCK_NOSPACE
        sk_wake(sk, select.POLLOUT)


def sock_def_wakeup(sk: Sock) -> None:
    sk_wake(sk, select.POLLIN | select.POLLOUT | select.POLLHUP)


def sock_def_error_report(sk: Sock) -> None:
    sk_wake(sk, select.POLLERR)


# -- receive queue ----------------------------------------------------------------------------


def skb_set_owner_r(skb: SkBuff, sk: Sock) -> None:
    """Charge a received buffer to its receiver; the memory was granted by `sk_rmem_schedule`."""
    skb.free()
    skb.sk = sk
    skb.destructor = sock_rfree
    sk.sk_rmem_alloc += skb.truesize
    memory.sk_mem_charge(sk, skb.truesize)


def sock_rfree(skb: SkBuff) -> None:
    """A received buffer was consumed."""
    sk = skb.sk
    assert sk is not None  # set together with the destructor
    sk.sk_rmem_alloc -= skb.truesize
    memory.sk_mem_uncharge(sk, skb.truesize)


def sock_queue_rcv_skb(sk: Sock, skb: SkBuff) -> None:
    """Queue a datagram for the receiver.

    Raises:
        OSError: ENOMEM, its buffer is full; ENOBUFS, the protocol's memory is. The caller drops
            the datagram.
    """
    if sk.sk_rmem_alloc + skb.truesize > sk.sk_rcvbuf:
        raise os_error(errno.ENOMEM, "receive buffer is full")
    if not memory.sk_schedule(sk, skb.truesize, SK_MEM_RECV):
        raise os_error(errno.ENOBUFS, "protocol memory is exhausted")
    skb_set_owner_r(skb, sk)
    sk.sk_receive_queue.append(skb)
    sk.sk_data_ready(sk)


# -- send buffers -----------------------------------------------------------------------------


def skb_set_owner_w(skb: SkBuff, sk: Sock) -> None:
    """Charge a datagram to its sender until the device lets it go."""
    skb.sk = sk
    skb.destructor = sock_wfree
    sk.sk_wmem_alloc += skb.truesize
    memory.sk_mem_charge(sk, skb.truesize)


def sock_wfree(skb: SkBuff) -> None:
    """The device let a datagram go."""
    sk = skb.sk
    assert sk is not None  # set together with the destructor
    sk.sk_wmem_alloc -= skb.truesize
    memory.sk_mem_uncharge(sk, skb.truesize)
    if sk.sk_flags & SOCK_FREED:
        if not sk.sk_wmem_alloc:
            _destroy(sk)
    else:
        sk.sk_write_space(sk)


def sock_alloc_send_skb(sk: Sock, size: int) -> SkBuff:
    """A buffer for a datagram of `size` octets, with the protocol's headroom, charged to `sk`.

    Raises:
        OSError: the pending error; EPIPE after a shutdown for sending; EAGAIN when the send
            buffer is full; ENOBUFS when the protocol is above `sysctl_mem[2]`.
    """
    sock_raise_error(sk)
    if sk.sk_shutdown & ~RCV_SHUTDOWN:
        raise os_error(errno.EPIPE)
    if sk.sk_wmem_alloc >= sk.sk_sndbuf:
        sk.sk_flags |= SOCK_NOSPACE
        raise os_error(errno.EAGAIN)
    skb = SkBuff(size, sk.sk_prot.max_header)
    if not memory.sk_schedule(sk, skb.truesize, SK_MEM_SEND):
        raise os_error(errno.ENOBUFS, "protocol memory is exhausted")
    skb_set_owner_w(skb, sk)
    return skb


def sk_stream_wspace(sk: Sock) -> int:
    return sk.sk_sndbuf - sk.sk_wmem_queued


def sk_stream_is_writeable(sk: Sock) -> bool:
    """A third of the buffer is free, and memory was not refused since (net/core/stream.c)."""
    return (
        not sk.sk_flags & SOCK_NOMEM
        and sk.sk_wmem_queued < sk.sk_sndbuf
        and sk_stream_wspace(sk) >= sk.sk_wmem_queued >> 1
    )


def sk_stream_alloc_skb(sk: Sock, size: int) -> SkBuff:
    """A buffer for `size` octets of a stream, with the protocol's headroom, granted memory.

    The caller puts data in and queues it with `sk_stream_queue_skb`, which charges it.

    Raises:
        OSError: EAGAIN when the send buffer is full, or when the protocol is above
            `sysctl_mem[2]`: a sender that blocks is woken when memory comes back.
    """
    if sk.sk_wmem_queued >= sk.sk_sndbuf:
        sk.sk_flags |= SOCK_NOSPACE
        raise os_error(errno.EAGAIN)
    skb = SkBuff(size, sk.sk_prot.max_header)
    if not memory.sk_schedule(sk, skb.truesize, SK_MEM_SEND):
        sk.sk_flags |= SOCK_NOSPACE | SOCK_NOMEM
        memory.wait_for_memory(sk)
        if not sk.sk_flags & SOCK_SNDBUF_LOCK:  # sk_stream_moderate_sndbuf
            sk.sk_sndbuf = max(min(sk.sk_sndbuf, sk.sk_wmem_queued >> 1), SOCK_MIN_SNDBUF)
        raise os_error(errno.EAGAIN, "protocol memory is exhausted")
    return skb


def sk_stream_queue_skb(sk: Sock, skb: SkBuff) -> None:
    """Charge a buffer and put it at the end of the write queue."""
    skb.sk = sk
    sk.sk_wmem_queued += skb.truesize
    memory.sk_mem_charge(sk, skb.truesize)
    sk.sk_write_queue.append(skb)


def sk_wmem_free_skb(sk: Sock, skb: SkBuff) -> None:
    """A buffer of the write queue was delivered (or given up): take its charge back."""
    sk.sk_wmem_queued -= skb.truesize
    memory.sk_mem_uncharge(sk, skb.truesize)
    skb.free()


def sk_stream_new_space(sk: Sock) -> None:
    """Data was delivered: let a send buffer that was too small grow, and wake senders.

    It doubles, up to `sysctl_wmem[2]`, unless SO_SNDBUF was set or memory is short
    (tcp_new_space, tcp_sndbuf_expand).
    """
    limits = sk.sk_prot.sysctl_wmem
    if (
        limits is not None
        and sk.sk_flags & (SOCK_NOSPACE | SOCK_SNDBUF_LOCK) == SOCK_NOSPACE
        and not memory.sk_under_memory_pressure(sk)
    ):
        sk.sk_sndbuf = max(sk.sk_sndbuf, min(sk.sk_sndbuf * 2, limits[2]))
    sk.sk_write_space(sk)


def sk_rcvbuf_grow(sk: Sock) -> None:
    """The reader keeps up with a full buffer: let it grow likewise, up to `sysctl_rmem[2]`."""
    limits = sk.sk_prot.sysctl_rmem
    if (
        limits is not None
        and not sk.sk_flags & SOCK_RCVBUF_LOCK
        and not memory.sk_under_memory_pressure(sk)
    ):
        sk.sk_rcvbuf = max(sk.sk_rcvbuf, min(sk.sk_rcvbuf * 2, limits[2]))


def sk_stream_write_space(sk: Sock) -> None:
    """A stream's `sk_write_space`: wake a sender that was turned away once there is room."""
    if sk_stream_is_writeable(sk) and sk.sk_flags & SOCK_NOSPACE:
        sk.sk_flags &= ~SOCK_NOSPACE
        sk_wake(sk, select.POLLOUT)


# -- listening --------------------------------------------------------------------------------


def sk_acceptq_is_full(sk: Sock) -> bool:
    return sk.sk_ack_backlog > sk.sk_max_ack_backlog


def sk_acceptq_added(sk: Sock, child: Sock) -> None:
    """A connection is established and waits for `accept`."""
    sk.sk_ack_backlog += 1
    sk.accept_queue.append(child)
    sk.sk_data_ready(sk)


def sk_acceptq_removed(sk: Sock) -> Sock:
    sk.sk_ack_backlog -= 1
    return sk.accept_queue.popleft()
