"""The listings of rdma(8), of processes that were asked (`observe.processes`).

Every listing is a list of `Entry`, and `as_text` and `as_json` print it with the words, the keys
and in the order of iproute2's rdma: there is one device, `steertag0`, with one port, that all
processes of a user share as they would share a kernel's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from steertag.observe.processes import Object, Process
from steertag.observe.resources import named_counters
from steertag.observe.table import plain
from steertag.rdma.counters import Counters
from steertag.rdma.rnic import RnicLimits
from steertag.verbs import enums
from steertag.verbs.attr import device_attr
from steertag.verbs.device import get_device_list

INDEX: Final = 0
PORT: Final = 1
KINDS: Final = ("qp", "cm_id", "cq", "mr", "pd", "ctx", "srq")
# The order of the kernel's summary (enum rdma_restrack_type).
_SUMMARY: Final = ("pd", "cq", "qp", "cm_id", "mr", "ctx", "srq")
_INDENT: Final = "\n    "

# What is printed of a row, in rdma(8)'s order. Keys that a row lacks are left out.
_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "qp": ("lqpn", "rqpn", "type", "state", "rq-psn", "sq-psn", "path-mig-state", "pdn", "pid",
           "comm"),
    "cm_id": ("cm-idn", "lqpn", "qp-type", "state", "ps", "pid", "comm", "src-addr", "dst-addr"),
    "cq": ("cqn", "cqe", "users", "ctxn", "pid", "comm"),
    "mr": ("mrn", "rkey", "lkey", "iova", "mrlen", "pdn", "pid", "comm"),
    "pd": ("pdn", "users", "ctxn", "pid", "comm"),
    "ctx": ("ctxn", "pid", "comm"),
    "srq": ("srqn", "type", "lqpn", "pdn", "pid", "comm"),
}  # fmt: skip
# ib_device's capabilities by rdma(8)'s names (iproute2, rdma/dev.c).
_CAPS: Final = {
    enums.IBV_DEVICE_SRQ_RESIZE: "SRQ_RESIZE",
    enums.IBV_DEVICE_MEM_WINDOW: "MEM_WINDOW",
    enums.IBV_DEVICE_MEM_MGT_EXTENSIONS: "MEM_MGT_EXTENSIONS",
    enums.IBV_DEVICE_MEM_WINDOW_TYPE_2A: "MEM_WINDOW_TYPE_2A",
    enums.IBV_DEVICE_MEM_WINDOW_TYPE_2B: "MEM_WINDOW_TYPE_2B",
}
_HEXADECIMAL: Final = frozenset({"rkey", "lkey", "iova"})
_OF_A_LINK: Final = frozenset({"qp", "cm_id"})

NUMBER, STRING = "number", "string"
# Which filters there are (iproute2, rdma/res.h); `dev` or `link` name the device.
FILTERS: Final[dict[str, dict[str, str]]] = {
    "qp": {"lqpn": NUMBER, "rqpn": NUMBER, "pid": NUMBER, "sq-psn": NUMBER, "rq-psn": NUMBER,
           "type": STRING, "path-mig-state": STRING, "state": STRING, "pdn": NUMBER},
    "cm_id": {"lqpn": NUMBER, "qp-type": STRING, "state": STRING, "ps": STRING, "pid": NUMBER,
              "src-addr": STRING, "src-port": NUMBER, "dst-addr": STRING, "dst-port": NUMBER,
              "cm-idn": NUMBER},
    "cq": {"users": NUMBER, "pid": NUMBER, "cqn": NUMBER, "ctxn": NUMBER},
    "mr": {"rkey": STRING, "lkey": STRING, "mrlen": NUMBER, "pid": NUMBER, "mrn": NUMBER,
           "pdn": NUMBER},
    "pd": {"users": NUMBER, "pid": NUMBER, "ctxn": NUMBER, "pdn": NUMBER},
    "ctx": {"pid": NUMBER, "ctxn": NUMBER},
    "srq": {"pid": NUMBER, "srqn": NUMBER, "type": STRING, "pdn": NUMBER, "lqpn": NUMBER},
    "statistic qp": {"cntn": NUMBER, "lqpn": NUMBER, "pid": NUMBER, "qp-type": STRING},
}  # fmt: skip


class Word(NamedTuple):
    """One value of an entry: `text` for people, `key` and `value` for JSON; either may be None."""

    key: str | None
    value: object
    text: str | None


@dataclass(slots=True)
class Entry:
    """One object of a listing."""

    words: list[Word] = field(default_factory=list)

    def add(self, key: str | None, value: object, text: str | None = "") -> None:
        """A value. `text` is what people see: by default the key and the value."""
        self.words.append(Word(key, value, f"{key} {plain(value)}" if text == "" else text))

    def add_below(self, key: str, value: object, *, first: bool = True) -> None:
        """A value on a line of its own, or behind the one before it."""
        self.add(key, value, f"{_INDENT if first else ''}{plain(key)} {plain(value)}")

    def text(self) -> str:
        line = ""
        for word in self.words:
            if word.text is not None:
                separator = "" if not line or word.text.startswith("\n") else " "
                line += separator + word.text
        return line

    def json(self) -> Object:
        return {word.key: word.value for word in self.words if word.key is not None}


def as_text(entries: Iterable[Entry]) -> str:
    return "".join(entry.text() + "\n" for entry in entries)


def as_json(entries: Iterable[Entry], *, pretty: bool = False) -> str:
    return json.dumps([entry.json() for entry in entries], indent=4 if pretty else None) + "\n"


def devices() -> list[str]:
    return [device.name for device in get_device_list()]


# -- dev, link, system ---------------------------------------------------------------------------


def dev(*, details: bool = False) -> Iterator[Entry]:
    for index, name in enumerate(devices()):
        entry = _named(index, name)
        attr = device_attr(RnicLimits())
        entry.add("node_type", "rnic")
        entry.add("protocol", "iw")
        entry.add("fw", attr.fw_version)
        entry.add("node_guid", _guid(attr.node_guid))
        entry.add("sys_image_guid", _guid(attr.sys_image_guid))
        if details:
            caps = [name for bit, name in _CAPS.items() if attr.device_cap_flags & bit]
            entry.add("caps", caps, f"{_INDENT}caps: <{', '.join(caps)}>")
        yield entry


def _guid(number: int) -> str:
    digits = f"{number:016x}"
    return ":".join(digits[at : at + 4] for at in range(0, 16, 4))


def link() -> Iterator[Entry]:
    """A port is up as long as it can open streams; it is bound to no network device."""
    for index, name in enumerate(devices()):
        entry = Entry()
        _add_link(entry, index, name)
        entry.add("state", "ACTIVE")
        entry.add("physical_state", "LINK_UP")
        yield entry


def system() -> Iterator[Entry]:
    """A process's RNIC is in the network namespace of its process, and in no other; after a fork
    the parent's regions are the parent's pages."""
    entry = Entry()
    entry.add("netns", "exclusive")
    entry.add("copy-on-fork", True, "copy-on-fork on")
    yield entry


def _named(index: int, name: str) -> Entry:
    entry = Entry()
    entry.add("ifindex", index, f"{index}:")
    entry.add("ifname", name, f"{name}:")
    return entry


def _add_link(entry: Entry, index: int, name: str) -> None:
    entry.add("ifindex", index, None)
    entry.add("ifname", name, None)
    entry.add("port", PORT, f"link {name}/{PORT}")


# -- resource ------------------------------------------------------------------------------------


def summary(processes: Sequence[Process]) -> Iterator[Entry]:
    """How many there are of each kind."""
    for index, name in enumerate(devices()):
        entry = _named(index, name)
        for kind in _SUMMARY:
            entry.add(kind, sum(1 for _ in _rows(processes, kind)))
        yield entry


def resource(
    processes: Sequence[Process], kind: str, wanted: Filters | None = None, *, details: bool = False
) -> Iterator[Entry]:
    """One entry for each resource of `kind`. `details` adds the `drv_` keys."""
    name = devices()[INDEX]
    for row in _rows(processes, kind):
        if wanted is not None and not wanted.let_through(row):
            continue
        entry = Entry()
        if kind in _OF_A_LINK:
            _add_link(entry, INDEX, name)
        else:
            entry.add("ifindex", INDEX, None)
            entry.add("ifname", name, f"dev {name}")
        for key in _FIELDS[kind]:
            if key in row:
                _add_field(entry, key, row[key])
        if details:
            for place, key in enumerate(key for key in row if key.startswith("drv_")):
                entry.add_below(key, row[key], first=place == 0)
        yield entry


def _add_field(entry: Entry, key: str, value: object) -> None:
    if key in _HEXADECIMAL:
        entry.add(key, value, f"{key} 0x{plain(value)}")
    elif isinstance(value, list):
        numbers = [str(number) for number in value]
        entry.add(key, numbers, f"{key} {plain(','.join(numbers))}")
    else:
        entry.add(key, value)


def _rows(processes: Sequence[Process], kind: str) -> Iterator[Object]:
    """The rows of one kind with their owner."""
    for process in processes:
        for context in process.rdma:
            owner: Object = {
                "ctxn": context.get("ctxn"),
                "pid": process.pid,
                "comm": process.comm,
            }
            rows = [owner] if kind == "ctx" else context.get(kind)
            for row in rows if isinstance(rows, list) else []:
                if isinstance(row, dict):
                    yield {**row, **owner}


# -- statistic -----------------------------------------------------------------------------------


def statistic(processes: Sequence[Process]) -> Iterator[Entry]:
    """Sums over the processes that live; of each, over all queue pairs that it has had.

    `refused` counts connections that a listener's full backlog turned away, of the RNICs that are
    open.
    """
    totals = {**named_counters(Counters()), "refused": 0}
    for process in processes:
        closed: Object = {"counters": process.closed}
        for context in (closed, *process.rdma):
            for name, value in _counters(context):
                totals[name] = totals.get(name, 0) + value
            refused = context.get("refused")
            if isinstance(refused, int):
                totals["refused"] += refused
    for name in devices():
        entry = Entry()
        entry.add("ifname", name, None)
        entry.add("port", PORT, f"link {name}/{PORT}")
        for counter, value in totals.items():
            entry.add_below(counter, value)
        yield entry


def qp_statistic(processes: Sequence[Process], wanted: Filters | None = None) -> Iterator[Entry]:
    """The counters of each queue pair: every one has its own, numbered as it is."""
    name = devices()[INDEX]
    for row in _rows(processes, "qp"):
        row = {**row, "cntn": row.get("lqpn"), "qp-type": row.get("type")}
        if wanted is not None and not wanted.let_through(row):
            continue
        entry = Entry()
        _add_link(entry, INDEX, name)
        for key in ("cntn", "qp-type", "pid", "comm"):
            entry.add(key, row[key])
        for counter, value in _counters(row):
            entry.add_below(counter, value)
        entry.add("lqpn", [row["cntn"]], f"{_INDENT}LQPN: <{plain(row['cntn'])}>")
        yield entry


def qp_mode() -> Iterator[Entry]:
    """Counters are not bound by type or process: each queue pair has its own."""
    for index, name in enumerate(devices()):
        entry = Entry()
        _add_link(entry, index, name)
        entry.add("mode", "qp auto off")
        yield entry


def _counters(holder: Object) -> Iterator[tuple[str, int]]:
    counters = holder.get("counters")
    for name, value in counters.items() if isinstance(counters, dict) else ():
        if isinstance(value, int):
            yield str(name), value


# -- filters -------------------------------------------------------------------------------------


class Filters:
    """What rows have to be like, in rdma(8)'s notation.

    Numbers: `7`, `1,3`, `2-6` and mixtures; words: `rts`, `rts,sqd`, whatever their case.
    """

    def __init__(self, kind: str) -> None:
        self._kinds = FILTERS[kind]
        self._tests: list[tuple[str, Callable[[object], bool]]] = []

    def add(self, name: str, value: str) -> None:
        """A name, which may be abbreviated, and what is wanted of it. Raises ValueError."""
        full = next((known for known in self._kinds if known.startswith(name)), None)
        if full is None:
            raise ValueError(f"no filter {name!r} here; there is {', '.join(self._kinds)}")
        if self._kinds[full] == NUMBER:
            ranges = [_range(full, part) for part in value.split(",")]
            self._tests.append((full, lambda number: _within(number, ranges)))
        else:
            words = {_bare(full, word) for word in value.split(",")}
            self._tests.append((full, lambda word: _bare(full, str(word)) in words))

    def let_through(self, row: Object) -> bool:
        return all(test(_value(row, name)) for name, test in self._tests)


def _bare(name: str, word: str) -> str:
    word = word.lower()
    return word.removeprefix("0x").lstrip("0") if name in _HEXADECIMAL else word


def _range(name: str, text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() if dash else not last)):
        raise ValueError(f"{name} takes numbers: 7 or 1,3 or 2-6; not {text!r}")
    return int(first), int(last or first)


def _within(value: object, ranges: Sequence[tuple[int, int]]) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return any(
        first <= number <= last
        for number in numbers
        if isinstance(number, int)
        for first, last in ranges
    )


def _value(row: Object, name: str) -> object:
    """A row's value; addresses are split into their halves."""
    side, _, half = name.partition("-")
    if side in ("src", "dst") and half in ("addr", "port"):
        host, _, port = str(row.get(f"{side}-addr", "")).rpartition(":")
        return host if half == "addr" else int(port) if port.isdecimal() else None
    return row.get(name)
