"""Registered protocols, as /proc/net/protocols lists them (net/core/sock.c, proto_seq_printf)."""

from __future__ import annotations

from steertag.family.proto import Proto
from steertag.family.stack import Stack
from steertag.observe.table import columns

# The two letters that head each column, and the member that makes it "y".
# backlog_rcv (br) is a member that no protocol here has: the Stack's lock takes the place of a
# sock's backlog. Kernels before 6.5 have one column more, sendpage (sp).
MEMBERS: tuple[tuple[str, str | None], ...] = (
    ("cl", "close"),
    ("co", "connect"),
    ("di", "disconnect"),
    ("ac", "accept"),
    ("io", "ioctl"),
    ("in", "init"),
    ("de", "destroy"),
    ("sh", "shutdown"),
    ("ss", "setsockopt"),
    ("gs", "getsockopt"),
    ("se", "sendmsg"),
    ("re", "recvmsg"),
    ("bi", "bind"),
    ("br", None),
    ("ha", "hash"),
    ("uh", "unhash"),
    ("gp", "get_port"),
    ("em", "enter_memory_pressure"),
)
_HEAD = ("protocol", "size", "sockets", "memory", "press", "maxhdr", "slab", "module")


def _press(prot: Proto) -> str:
    if prot.memory_pressure is None:
        return "NI"  # not implemented, as the kernel says
    return "yes" if prot.memory_pressure.value else "no"


def _memory(prot: Proto) -> int:
    return prot.memory_allocated.value if prot.memory_allocated is not None else -1


def _has(prot: Proto, member: str | None) -> bool:
    return member is not None and getattr(prot, member) is not None


def format(stack: Stack) -> str:
    """The table, newest protocol first. Memory is in quanta of 4096 octets, -1 for none kept."""
    with stack.lock:
        rows: list[tuple[str, ...]] = [(*_HEAD, *(head for head, _ in MEMBERS))]
        for prot in stack.protocols:
            sizes = (str(prot.obj_size.__basicsize__), str(prot.inuse), str(_memory(prot)))
            more = (_press(prot), str(prot.max_header), "no", prot.owner)
            flags = ("y" if _has(prot, member) else "n" for _, member in MEMBERS)
            rows.append((prot.name, *sizes, *more, *flags))
    return columns(rows, right=frozenset({1, 2, 3, 5}))


def as_json(stack: Stack) -> list[dict[str, object]]:
    """The same, and the marks: one object a protocol, newest first."""
    with stack.lock:
        return [
            {
                "protocol": prot.name,
                "size": prot.obj_size.__basicsize__,
                "sockets": prot.inuse,
                "memory": _memory(prot),
                "pressure": _press(prot),
                "max_header": prot.max_header,
                "module": prot.owner,
                "orphans": prot.orphan_count.value if prot.orphan_count is not None else None,
                "mem": prot.sysctl_mem and list(prot.sysctl_mem),
                "members": [name for _, name in MEMBERS if name and _has(prot, name)],
            }
            for prot in stack.protocols
        ]
