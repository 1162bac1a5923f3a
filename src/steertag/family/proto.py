"""`struct proto`: a transport protocol, and the counters it shares (Linux: include/net/sock.h)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from steertag.family.const import TcpState
from steertag.family.msg import Address
from steertag.family.sock import Sock

if TYPE_CHECKING:
    from steertag.family.inet_hash import HashInfo
    from steertag.family.msg import MsgHdr
    from steertag.family.stack import Stack


DiagInfo = dict[str, int | str]


class MiniSock(NamedTuple):
    """A connection that has no sock of its own (inet_timewait_sock, request_sock)."""

    family: int
    state: TcpState
    local: Address
    peer: Address
    info: DiagInfo


class Counter:
    """A number that several protocols may share (`atomic_long_t *`): TCP and TCPv6 do.

    It is changed with the Stack's lock held.
    """

    __slots__ = ("value",)

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Counter({self.value})"


@dataclass(eq=False, kw_only=True)
class Proto:
    """What a protocol does and owns. A function that is None is one the protocol does not have.

    Functions are called with the Stack's lock held and never wait: one that can't go on raises
    `BlockingIOError` (EAGAIN) and the socket object waits. All raise OSError. A Proto belongs to
    the one Stack it is registered with, so a family's `register(stack)` makes a fresh one.

    Attributes:
        name: as /proc/net/protocols lists it; also names the sysctls `net.<name>.mem` and so on.
        owner: the module that brings it.
        obj_size: the sock class. The kernel allocates that many octets; `sk_alloc` makes one of
            these. Its `__init__` takes no arguments.
        max_header: octets of headers that the protocol and those below put before the payload.
            `sk_stream_alloc_skb` and `sock_alloc_send_skb` reserve them as headroom.
        h: tables of bound and connected socks, where `get_port`, `hash` and `unhash` are the
            stock ones.
        close: `(sk, timeout)`. The user let go (`inet_release`). Timeout is SO_LINGER's, in
            seconds, 0 without. Ends with `sk_free`, now or when the last data is delivered.
        connect: `(sk, address)`. Starts a connection, or fixes a datagram socket's peer
            (`inet_stream_connect`, `inet_dgram_connect`).
        disconnect: `(sk, flags)`. Back to unconnected: `connect` to AF_UNSPEC, and
            `inet_listen`'s undoing by `shutdown`.
        accept: `(sk, flags) -> sk`. The next established connection (`inet_accept`).
        ioctl: `(sk, cmd, arg) -> int`. SIOCINQ, SIOCOUTQ and the protocol's own (`inet_ioctl`).
        init: `(sk)`. Right after `sock_init_data`, from the family's create and for each child.
        destroy: `(sk)`. The last call on a sock: give back what `init` took (`sk_free`).
        shutdown: `(sk, how)`. Half-close: how is RCV_SHUTDOWN and/or SEND_SHUTDOWN, already set
            in `sk_shutdown` (`inet_shutdown`).
        setsockopt: `(sk, level, name, value)`. Levels other than SOL_SOCKET
            (`sock_common_setsockopt`), and what of SOL_SOCKET is not common to all families.
            Value is an int or octets.
        getsockopt: `(sk, level, name, size) -> int | bytes`. As above; size 0 asks for an int.
        keepalive: `(sk, on)`. SO_KEEPALIVE was set; `sk_flags` says so afterwards. A protocol
            without it refuses the option.
        sendmsg: `(sk, msg) -> octets taken` (`inet_sendmsg`).
        recvmsg: `(sk, msg, flags) -> octets placed`; sets msg_name and msg_flags
            (`sock_common_recvmsg`).
        busy_loop: `(sk) -> bool`. A thread is about to sleep for this sock: look, without waiting,
            whether something came for it (sk_busy_loop). True: call again, for what is awaited is
            likely to be here in some microseconds.
        bind: `(sk, address)`. Replaces the address check of `inet_bind` for a protocol with
            addresses of its own.
        hash: `(sk)`. Becomes findable: `inet_listen`, and the protocol once connected.
        unhash: `(sk)`. Stops being findable and gives the port back (`sk_common_release`,
            `inet_csk_destroy_sock`).
        get_port: `(sk, port)`. Takes a port, 0 for any; raises EADDRINUSE (`inet_bind`,
            `inet_autobind`).
        enter_memory_pressure: `(sk)`. Memory went above `sysctl_mem[1]`: called once, until
            left. Needs `memory_pressure`.
        leave_memory_pressure: `(sk)`. It is below `sysctl_mem[0]` again.
        sockets_allocated: socks alive, orphans and children included; sets what share of
            `sysctl_mem[2]` a sock may have under pressure.
        memory_allocated: quanta of SK_MEM_QUANTUM octets that queued data is charged at. None:
            the protocol is not accounted, as AF_UNIX is not.
        memory_pressure: not 0 while under pressure.
        orphan_count: socks that the user closed and which still have data to deliver; above
            sysctl net.core.max_orphans they are aborted instead.
        sysctl_mem: [low, pressure, high] in quanta; sysctl `net.<name>.mem`.
        sysctl_wmem: [min, default, max] octets of a sock's send buffer: min is granted under
            pressure, default starts `sk_sndbuf`, max bounds its growth. `net.<name>.wmem`.
        sysctl_rmem: the same for the receive buffer. `net.<name>.rmem`.
        diag: `(sk)`. Brings `sk_state` and the backlog up to date, for a protocol that keeps them
            elsewhere; called before a listing (inet_diag_handler).
        diag_info: `(sk)`. What `stag sockets -i` prints of a sock beside its state and queues, by
            name (idiag_get_info). None: nothing.
        diag_minisocks: `(stack)`. Connections that have no sock: requests, and those that only
            wait for their time to pass. None: there are no such.
        no_autobind: `inet_sendmsg` and `connect` don't bind a sock that has no port.
    """

    name: str
    owner: str
    obj_size: type[Sock] = Sock
    max_header: int = 0
    h: HashInfo | None = None
    no_autobind: bool = False

    close: Callable[[Sock, float], None] | None = None
    connect: Callable[[Sock, Address], None] | None = None
    disconnect: Callable[[Sock, int], None] | None = None
    accept: Callable[[Sock, int], Sock] | None = None
    ioctl: Callable[[Sock, int, object], int] | None = None
    init: Callable[[Sock], None] | None = None
    destroy: Callable[[Sock], None] | None = None
    shutdown: Callable[[Sock, int], None] | None = None
    setsockopt: Callable[[Sock, int, int, int | bytes | None], None] | None = None
    getsockopt: Callable[[Sock, int, int, int], int | bytes] | None = None
    keepalive: Callable[[Sock, bool], None] | None = None
    sendmsg: Callable[[Sock, MsgHdr], int] | None = None
    recvmsg: Callable[[Sock, MsgHdr, int], int] | None = None
    busy_loop: Callable[[Sock], bool] | None = None
    bind: Callable[[Sock, Address], None] | None = None
    hash: Callable[[Sock], None] | None = None
    unhash: Callable[[Sock], None] | None = None
    get_port: Callable[[Sock, int], None] | None = None
    diag: Callable[[Sock], None] | None = None
    diag_info: Callable[[Sock], DiagInfo] | None = None
    diag_minisocks: Callable[[Stack], Iterable[MiniSock]] | None = None

    enter_memory_pressure: Callable[[Sock], None] | None = None
    leave_memory_pressure: Callable[[Sock], None] | None = None
    sockets_allocated: Counter | None = None
    memory_allocated: Counter | None = None
    memory_pressure: Counter | None = None
    orphan_count: Counter | None = None
    sysctl_mem: list[int] | None = None
    sysctl_wmem: list[int] | None = None
    sysctl_rmem: list[int] | None = None

    # Kept by the Stack, not by the protocol's author.
    stack: Stack | None = field(default=None, init=False, repr=False)
    inuse: int = field(default=0, init=False)
    memory_waiters: list[Sock] = field(default_factory=list, init=False, repr=False)
