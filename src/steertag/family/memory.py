"""What queued data costs, and what happens when it is too much (net/core/sock.c, __sk_mem_*).

A sock takes quanta of SK_MEM_QUANTUM octets from its protocol's account (`memory_allocated`) into
`sk_forward_alloc`, and charges buffers to that. Three marks, `Proto.sysctl_mem`, in quanta:

* below [0] everything is granted, and pressure, if there was any, is left;
* above [1] pressure is entered: a sock gets its minimum (`sysctl_wmem[0]`, `sysctl_rmem[0]`) or
  its share of [2], whichever it asks for first;
* above [2] nothing is granted. A stream's sender gets EAGAIN and is woken when memory comes back
  (the kernel lets it ask again after a random while); a datagram is refused with ENOBUFS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.family.const import SK_MEM_QUANTUM, SK_MEM_RECV, SOCK_NOMEM

if TYPE_CHECKING:
    from steertag.family.proto import Proto
    from steertag.family.sock import Sock


def sk_mem_pages(octets: int) -> int:
    """Quanta that hold `octets`."""
    return -(-octets // SK_MEM_QUANTUM)


def sk_schedule(sk: Sock, size: int, kind: int) -> bool:
    """May `size` octets more be charged to `sk`? (sk_wmem_schedule, sk_rmem_schedule)

    Kind is SK_MEM_SEND or SK_MEM_RECV. A protocol without an account always may.
    """
    if sk.sk_prot.memory_allocated is None or size <= sk.sk_forward_alloc:
        return True
    return _grow(sk, size, kind)


def sk_forced_mem_schedule(sk: Sock, size: int) -> None:
    """Take the memory whatever the marks say: for what must get through lest nothing does.

    A stream's first buffer into an empty receive queue is such: without it the reader would
    never read, and the memory never come back.
    """
    account = sk.sk_prot.memory_allocated
    if account is None or size <= sk.sk_forward_alloc:
        return
    pages = sk_mem_pages(size - sk.sk_forward_alloc)
    sk.sk_forward_alloc += pages * SK_MEM_QUANTUM
    account.value += pages


def _grow(sk: Sock, size: int, kind: int) -> bool:
    """__sk_mem_schedule: take quanta from the account, or give them back and say no."""
    prot = sk.sk_prot
    account = prot.memory_allocated
    assert account is not None  # the caller looked
    pages = sk_mem_pages(size - sk.sk_forward_alloc)
    account.value += pages
    sk.sk_forward_alloc += pages * SK_MEM_QUANTUM
    if _granted(sk, prot, account.value, kind):
        return True
    sk.sk_forward_alloc -= pages * SK_MEM_QUANTUM
    account.value -= pages
    return False


def _granted(sk: Sock, prot: Proto, allocated: int, kind: int) -> bool:
    marks = prot.sysctl_mem
    if marks is None:
        return True
    low, pressure, high = marks
    if allocated <= low:
        _leave_pressure(sk)
        return True
    if allocated > pressure:
        _enter_pressure(sk)
    if allocated > high:
        return False
    if kind == SK_MEM_RECV:
        used, minimum = sk.sk_rmem_alloc, prot.sysctl_rmem
    else:
        used, minimum = sk.sk_wmem_queued + sk.sk_wmem_alloc, prot.sysctl_wmem
    if minimum is not None and used < minimum[0]:
        return True
    if prot.memory_pressure is None or not prot.memory_pressure.value:
        return True
    socks = prot.sockets_allocated.value if prot.sockets_allocated is not None else prot.inuse
    share = sk_mem_pages(sk.sk_wmem_queued + sk.sk_rmem_alloc + sk.sk_forward_alloc)
    return high > socks * share


def _enter_pressure(sk: Sock) -> None:
    prot = sk.sk_prot
    if prot.memory_pressure is not None and not prot.memory_pressure.value:
        prot.memory_pressure.value = 1
        if prot.enter_memory_pressure is not None:
            prot.enter_memory_pressure(sk)


def _leave_pressure(sk: Sock) -> None:
    prot = sk.sk_prot
    if prot.memory_pressure is not None and prot.memory_pressure.value:
        prot.memory_pressure.value = 0
        if prot.leave_memory_pressure is not None:
            prot.leave_memory_pressure(sk)


def sk_under_memory_pressure(sk: Sock) -> bool:
    pressure = sk.sk_prot.memory_pressure
    return pressure is not None and pressure.value != 0


def sk_mem_charge(sk: Sock, size: int) -> None:
    """Use `size` octets of what was scheduled."""
    if sk.sk_prot.memory_allocated is not None:
        sk.sk_forward_alloc -= size


def sk_mem_uncharge(sk: Sock, size: int) -> None:
    """Give `size` octets back: whole quanta that are no longer used return to the account."""
    if sk.sk_prot.memory_allocated is None:
        return
    sk.sk_forward_alloc += size
    sk_mem_reclaim(sk)


def sk_mem_reclaim(sk: Sock) -> None:
    """Return unused whole quanta, and wake the senders who wait for them."""
    account = sk.sk_prot.memory_allocated
    if account is None or sk.sk_forward_alloc < SK_MEM_QUANTUM:
        return
    pages, sk.sk_forward_alloc = divmod(sk.sk_forward_alloc, SK_MEM_QUANTUM)
    account.value -= pages
    marks = sk.sk_prot.sysctl_mem
    if marks is None:
        return
    if account.value < marks[0]:
        _leave_pressure(sk)
    if account.value < marks[2]:
        _wake_waiters(sk.sk_prot)


def wait_for_memory(sk: Sock) -> None:
    """Have `sk_write_space` called when the protocol has memory again."""
    waiters = sk.sk_prot.memory_waiters
    if sk not in waiters:
        waiters.append(sk)


def forget_waiter(sk: Sock) -> None:
    if sk in sk.sk_prot.memory_waiters:
        sk.sk_prot.memory_waiters.remove(sk)


def _wake_waiters(prot: Proto) -> None:
    waiters, prot.memory_waiters = prot.memory_waiters, []
    for sk in waiters:
        sk.sk_flags &= ~SOCK_NOMEM
        sk.sk_write_space(sk)
