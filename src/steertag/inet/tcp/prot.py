"""TCP as a protocol: its `Proto` and its `ProtoOps` (tcp_prot, inet_stream_ops)."""

from __future__ import annotations

from typing import Final

from steertag.family.const import SK_MEM_QUANTUM
from steertag.family.proto import Counter, Proto
from steertag.family.sock import Sock, sk_stream_write_space
from steertag.family.stack import Stack
from steertag.inet import diag
from steertag.inet.const import IPPROTO_TCP
from steertag.inet.ip.net import inet_net
from steertag.inet.tcp import calls, close, connect, err, hash, input, listen, opts, rcv, timer
from steertag.inet.tcp.cong.registry import tcp_assign_congestion_control
from steertag.inet.tcp.net import tcp_net
from steertag.inet.tcp.ofo import OfoQueue
from steertag.inet.tcp.rtx import RtxQueue
from steertag.inet.tcp.sock import TcpSock, tcp_sk
from steertag.inet.tcp.sysctl import tcp_tables

OWNER: Final = "steertag.inet"
MAX_TCP_HEADER: Final = 128
_MIB: Final = 1 << 20
_MEM: Final = tuple(octets // SK_MEM_QUANTUM for octets in (384 * _MIB, 512 * _MIB, 768 * _MIB))
_WMEM: Final = (4096, 65536, 4 * _MIB)
_RMEM: Final = (4096, 131072, 6 * _MIB)


def tcp_init_sock(sk: Sock) -> None:
    """`Proto.init`: what a connection needs of its Stack."""
    tp = tcp_sk(sk)
    stack = tp.sk_stack
    tp.net = tcp_net(stack)
    tp.mib = tp.net.ip.mib
    tp.rtx = RtxQueue(tp)
    tp.ofo = OfoQueue()
    tp.reordering = stack.sysctl["net.ipv4.tcp_reordering"]
    timer.tcp_init_xmit_timers(tp)
    tcp_assign_congestion_control(tp)
    tp.sk_write_space = sk_stream_write_space


def _pressure_entered(sk: Sock) -> None:
    tcp_sk(sk).mib["TcpExtTCPMemoryPressures"] += 1


def _pressure_left(sk: Sock) -> None:
    """Nothing to undo: windows grow again by themselves."""


def _keepalive(sk: Sock, on: bool) -> None:
    timer.tcp_set_keepalive(tcp_sk(sk), on)


def tcp_prot(stack: Stack) -> Proto:
    """A `Proto` for this Stack, whose parameters are registered and whose segments it handles."""
    mem, wmem, rmem = list(_MEM), list(_WMEM), list(_RMEM)
    for table in tcp_tables(mem, wmem, rmem):
        stack.sysctl.register(table)
    net = tcp_net(stack)
    inet_net(stack).inet_add_protocol(
        IPPROTO_TCP,
        rcv.tcp_receiver(net),
        err.tcp_error_handler(net),
        lambda _: input.tcp_complete(net),
    )
    return Proto(
        name="NEW-TCP",
        owner=OWNER,
        obj_size=TcpSock,
        max_header=MAX_TCP_HEADER,
        no_autobind=True,  # connect chooses by the destination
        h=net.hash,
        close=close.tcp_close,
        connect=connect.tcp_v_connect,
        disconnect=close.tcp_disconnect,
        accept=listen.tcp_accept,
        ioctl=calls.tcp_ioctl,
        init=tcp_init_sock,
        destroy=close.tcp_destroy,
        shutdown=close.tcp_shutdown,
        setsockopt=opts.tcp_setsockopt,
        getsockopt=opts.tcp_getsockopt,
        sendmsg=calls.tcp_sendmsg,
        recvmsg=calls.tcp_recvmsg,
        keepalive=_keepalive,
        hash=hash.tcp_hash,
        unhash=hash.tcp_unhash,
        get_port=hash.tcp_v_get_port,
        diag_info=diag.tcp_diag_info,
        diag_minisocks=diag.tcp_minisocks,
        enter_memory_pressure=_pressure_entered,
        leave_memory_pressure=_pressure_left,
        sockets_allocated=Counter(),
        memory_allocated=Counter(),
        memory_pressure=Counter(),
        orphan_count=Counter(),
        sysctl_mem=mem,
        sysctl_wmem=wmem,
        sysctl_rmem=rmem,
    )
