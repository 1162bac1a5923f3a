"""A Stack's parameters, by dotted name (kernel/sysctl.c, proc_dointvec_minmax).

Every value is one integer or a row of them, bound to the very list that the code reads, so a
write takes effect at once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from steertag.errors import os_error

INT_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class CtlTable:
    """One parameter.

    Attributes:
        name: dotted, such as net.core.rmem_max.
        data: where the integers live; a write replaces them in place.
        doc: one line: meaning and unit.
        minimum, maximum: bounds of each integer, both allowed.
        writable: False for what is only reported.
        check: raises OSError(EINVAL) for a row that makes no sense as a whole.
    """

    name: str
    data: list[int]
    doc: str
    minimum: int = 0
    maximum: int = INT_MAX
    writable: bool = True
    check: Callable[[Sequence[int]], None] | None = None


def ascending(values: Sequence[int]) -> None:
    """A row whose integers may not go down, as low, pressure and high marks."""
    if any(a > b for a, b in pairwise(values)):
        raise os_error(errno.EINVAL, f"{' '.join(map(str, values))} does not ascend")


class Sysctl:
    """The table of one Stack. `sysctl[name]` is an int, or a tuple of them for a row.

    Errors: ENOENT no such name, EINVAL not such a value, EACCES a read-only one, EEXIST taken.
    """

    def __init__(self) -> None:
        self._tables: dict[str, CtlTable] = {}

    def register(self, table: CtlTable) -> None:
        """Add a parameter. Raises EEXIST if the name is taken."""
        if table.name in self._tables:
            raise os_error(errno.EEXIST, table.name)
        self._tables[table.name] = table

    def unregister(self, name: str) -> None:
        """Take a parameter away. Raises ENOENT."""
        self.table(name)
        del self._tables[name]

    def table(self, name: str) -> CtlTable:
        """The parameter's entry; slashes may stand for dots, as in sysctl(8). Raises ENOENT."""
        found = self._tables.get(name) or self._tables.get(name.replace("/", "."))
        if found is None:
            raise os_error(errno.ENOENT, f"no sysctl {name!r}")
        return found

    def __getitem__(self, name: str) -> int:
        """The value of a single integer, or the first of a row."""
        return self.table(name).data[0]

    def read(self, name: str) -> tuple[int, ...]:
        """The whole row."""
        return tuple(self.table(name).data)

    def write(self, name: str, value: str | int | Sequence[int]) -> None:
        """Set a parameter: an int, a row, or text as sysctl(8) takes it ("4096 16384 4194304").

        Nothing is changed unless all of it is right.
        """
        table = self.table(name)
        if not table.writable:
            raise os_error(errno.EACCES, f"{table.name} is read-only")
        row = _row(table, value)
        if len(row) != len(table.data):
            raise os_error(errno.EINVAL, f"{table.name} takes {len(table.data)} integers")
        for item in row:
            if not table.minimum <= item <= table.maximum:
                bounds = f"{table.minimum}..{table.maximum}"
                raise os_error(errno.EINVAL, f"{table.name}: {item} is not in {bounds}")
        if table.check is not None:
            table.check(row)
        table.data[:] = row

    def __setitem__(self, name: str, value: str | int | Sequence[int]) -> None:
        self.write(name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._tables))

    def __contains__(self, name: object) -> bool:
        return name in self._tables

    def __len__(self) -> int:
        return len(self._tables)

    def format(self, name: str) -> str:
        """The value as sysctl(8) prints it: integers separated by tabs."""
        return "\t".join(map(str, self.table(name).data))


def _row(table: CtlTable, value: str | int | Sequence[int]) -> list[int]:
    if isinstance(value, int):
        return [value]
    if not isinstance(value, str):
        return list(value)
    try:
        return [int(word, 10) for word in value.replace(",", " ").split()]
    except ValueError:
        raise os_error(errno.EINVAL, f"{table.name}: {value!r} is not integers") from None


def core_tables() -> list[CtlTable]:
    """What every Stack has, with Linux's defaults."""
    return [
        CtlTable("net.core.rmem_default", [212992], "octets of a receive buffer at start", 2304),
        CtlTable("net.core.wmem_default", [212992], "octets of a send buffer at start", 4608),
        CtlTable("net.core.rmem_max", [212992], "most that SO_RCVBUF may ask for, octets", 2304),
        CtlTable("net.core.wmem_max", [212992], "most that SO_SNDBUF may ask for, octets", 4608),
        CtlTable("net.core.somaxconn", [4096], "longest backlog that listen() gives", 0, 65535),
        CtlTable("net.core.max_orphans", [4096], "closed sockets, per protocol, that may linger"),
        CtlTable("net.core.netdev_budget", [300], "frames taken from a device in one turn", 1),
        CtlTable(
            "net.ipv4.ip_local_port_range",
            [32768, 60999],
            "ports that are given when none is asked for: first and last",
            1,
            65535,
            check=ascending,
        ),
    ]
