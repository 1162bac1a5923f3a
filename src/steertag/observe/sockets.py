"""Sockets of a Stack, as ss(8) lists them."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from steertag.errors import StateError
from steertag.family.const import TcpState
from steertag.family.inet_hash import InetSock
from steertag.family.proto import DiagInfo, MiniSock, Proto
from steertag.family.sock import Sock
from steertag.family.stack import Stack
from steertag.observe.processes import Process, own_name
from steertag.observe.table import columns, plain

STATES = {
    TcpState.TCP_ESTABLISHED: "ESTAB",
    TcpState.TCP_SYN_SENT: "SYN-SENT",
    TcpState.TCP_SYN_RECV: "SYN-RECV",
    TcpState.TCP_FIN_WAIT1: "FIN-WAIT-1",
    TcpState.TCP_FIN_WAIT2: "FIN-WAIT-2",
    TcpState.TCP_TIME_WAIT: "TIME-WAIT",
    TcpState.TCP_CLOSE: "UNCONN",
    TcpState.TCP_CLOSE_WAIT: "CLOSE-WAIT",
    TcpState.TCP_LAST_ACK: "LAST-ACK",
    TcpState.TCP_LISTEN: "LISTEN",
    TcpState.TCP_CLOSING: "CLOSING",
}


@dataclass(frozen=True, slots=True)
class SocketRow:
    """One socket.

    Attributes:
        netid: the protocol's name, in small letters.
        family: its number.
        state: as ss prints it.
        recv_q: octets that wait to be read; of a listener, connections that wait.
        send_q: octets that the peer has not acknowledged; of a listener, its backlog.
        local, peer: addresses, "*" for none.
        info: what the protocol tells beside, as of `ss -i` and `ss -o` (`Proto.diag_info`).
    """

    netid: str
    family: int
    state: str
    recv_q: int
    send_q: int
    local: str
    peer: str
    info: DiagInfo = field(default_factory=dict)


def rows(stack: Stack, *, listening: bool | None = None) -> list[SocketRow]:
    """Every socket, closed ones that still deliver included; `listening` keeps one kind."""
    with stack.lock:
        found = [_row(sk) for sk in stack.socks]
        for prot in stack.protocols:
            if prot.diag_minisocks is not None:
                found += [_mini(prot, one) for one in prot.diag_minisocks(stack)]
    if listening is not None:
        found = [row for row in found if (row.state == "LISTEN") == listening]
    return sorted(found, key=lambda row: (row.netid, row.local, row.peer))


def format(stack: Stack, *, listening: bool | None = None) -> str:
    """The table of ss."""
    table = [("Netid", "State", "Recv-Q", "Send-Q", "Local Address:Port", "Peer Address:Port")]
    for row in rows(stack, listening=listening):
        queues = (str(row.recv_q), str(row.send_q))
        table.append((row.netid, row.state, *queues, row.local, row.peer))
    return columns(table, right=frozenset({2, 3}))


def as_json(stack: Stack, *, listening: bool | None = None) -> list[dict[str, object]]:
    """The same: one object a socket."""
    return [asdict(row) for row in rows(stack, listening=listening)]


# -- with their owners -----------------------------------------------------------------------------


Owned = tuple[SocketRow, int, str]
"""A socket, and the number and the name of its process."""


def owned(
    stack: Stack | None, processes: Iterable[Process] = (), *, listening: bool | None = None
) -> list[Owned]:
    """The sockets of this process's `stack`, and those that other processes told of."""
    found: list[Owned] = []
    if stack is not None:
        mine = (os.getpid(), own_name())
        found = [(row, *mine) for row in rows(stack, listening=listening)]
    for process in processes:
        for told in process.sockets:
            row = _told(told)
            if listening is None or (row.state == "LISTEN") == listening:
                found.append((row, process.pid, process.comm))
    return found


def format_owned(found: Sequence[Owned], *, info: bool = False) -> str:
    """The table of `ss -p`; with `info` a line more below each socket that has some (`ss -i`)."""
    head = ("Netid", "State", "Recv-Q", "Send-Q", "Local Address:Port", "Peer Address:Port")
    table: list[tuple[str, ...]] = [(*head, "Process")]
    for row, pid, comm in found:
        cells = (row.netid, row.state, row.recv_q, row.send_q, row.local, row.peer)
        table.append((*map(plain, cells), f'users:(("{plain(comm)}",pid={pid}))'))
    lines = columns(table, right=frozenset({2, 3})).splitlines()
    if info:
        told = ["", *(_info_text(row.info) for row, _, _ in found)]
        lines = [
            f"{line}\n\t {more}" if more else line for line, more in zip(lines, told, strict=True)
        ]
    return "\n".join(lines)


def _info_text(info: DiagInfo) -> str:
    """ "cubic wscale:7,7 rto:204 ...": options and the algorithm stand for themselves."""
    bare = ("options", "cong")
    return " ".join(
        plain(value) if name in bare else f"{plain(name)}:{plain(value)}"
        for name, value in info.items()
    )


def owned_json(found: Iterable[Owned]) -> list[dict[str, object]]:
    """One object a socket."""
    return [{**asdict(row), "pid": pid, "comm": comm} for row, pid, comm in found]


def _told(row: dict[str, object]) -> SocketRow:
    """A row as another process told it; what isn't what it should be is `?` or -1."""

    def word(key: str) -> str:
        value = row.get(key)
        return value if isinstance(value, str) else "?"

    def number(key: str) -> int:
        value = row.get(key)
        return value if isinstance(value, int) else -1

    return SocketRow(
        netid=word("netid"),
        family=number("family"),
        state=word("state"),
        recv_q=number("recv_q"),
        send_q=number("send_q"),
        local=word("local"),
        peer=word("peer"),
        info=_told_info(row.get("info")),
    )


def _told_info(value: object) -> DiagInfo:
    if not isinstance(value, dict):
        return {}
    return {str(name): each for name, each in value.items() if isinstance(each, int | str)}


def _row(sk: Sock) -> SocketRow:
    if sk.sk_prot.diag is not None:
        sk.sk_prot.diag(sk)
    if sk.sk_state == TcpState.TCP_LISTEN:
        recv_q, send_q = sk.sk_ack_backlog, sk.sk_max_ack_backlog
    else:
        recv_q, send_q = _queue(sk, termios.FIONREAD), _queue(sk, termios.TIOCOUTQ)
    return SocketRow(
        netid=sk.sk_prot.name.lower(),
        family=int(sk.sk_family),
        state=STATES[sk.sk_state],
        recv_q=recv_q,
        send_q=send_q,
        local=_address(sk, False),
        peer=_address(sk, True),
        info=sk.sk_prot.diag_info(sk) if sk.sk_prot.diag_info is not None else {},
    )


def _mini(prot: Proto, one: MiniSock) -> SocketRow:
    return SocketRow(
        netid=prot.name.lower(),
        family=one.family,
        state=STATES[one.state],
        recv_q=0,
        send_q=0,
        local=_text(one.local),
        peer=_text(one.peer),
        info=one.info,
    )


def _queue(sk: Sock, request: int) -> int:
    """What the protocol says, or else what its queues hold."""
    if sk.sk_prot.ioctl is not None:
        try:
            return sk.sk_prot.ioctl(sk, request, None)
        except OSError:
            return 0  # not in this state
    return sk.sk_receive_queue.octets if request == termios.FIONREAD else sk.sk_wmem_alloc


def _address(sk: Sock, peer: bool) -> str:
    """As the family's getname has it; a sock without a socket is asked itself."""
    sock = sk.sk_socket
    if sock is not None:
        try:
            return _text(sock.ops.getname(sock, peer))
        except (OSError, StateError):
            return "*"
    if not isinstance(sk, InetSock):
        return "*"
    return _text((sk.inet_daddr, sk.inet_dport) if peer else (sk.inet_saddr, sk.inet_num))


def _text(address: object) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = str(address[0]) or "*", address[1] or "*"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, bytes):
        address = "@" + address.lstrip(b"\0").decode("ascii", "backslashreplace")
    return ascii(address)[1:-1] if address else "*"
