"""What an RNIC has at this moment: the rows behind rdma(8)'s `resource` and `statistic`.

A row is a JSON-able object with the keys that rdma(8) prints. Details that only this RNIC knows
have keys that begin with `drv_`, as rdma(8) gives a driver's own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final, Protocol, TypeVar
from weakref import WeakKeyDictionary

from steertag.rdma.connection import Connection
from steertag.rdma.counters import Counters
from steertag.rdma.memory import Region
from steertag.rdma.mpa_state import MpaState
from steertag.rdma.qp import QueuePair
from steertag.rdma.srq import SharedReceiveQueue
from steertag.runtime.driver import StreamDriver
from steertag.runtime.listener import Listener
from steertag.runtime.loop import Handler
from steertag.verbs.cm.cmid import CMID
from steertag.verbs.cm.state import CmState
from steertag.verbs.cq import CQ
from steertag.verbs.device import PD, Context

Row = dict[str, object]
T = TypeVar("T")

PORT: Final = 1
_SLICE: Final = 16
"""Objects looked at under a Context's lock in one go."""
_LOCK_SECONDS: Final = 0.2

# ib_qp_state of each of our own, as siw maps them (siw_verbs.c, siw_qp_state_to_ib_qp_state).
_QP_STATE: Final = {
    "RESET": "RESET",
    "INIT": "INIT",
    "RTS": "RTS",
    "SQD": "SQD",
    "CLOSING": "ERR",
    "TERMINATE": "ERR",
    "ERROR": "ERR",
}
_BEFORE_A_QUEUE_PAIR: Final = frozenset({MpaState.WAIT_REQUEST, MpaState.REQUESTED})

# The kernel's name (rxe_hw_counters.c) where the concept is the same: a packet is an FPDU here.
COUNTER_NAMES: Final = {"tx_fpdus": "sent_pkts", "rx_fpdus": "rcvd_pkts"}


class Numbers:
    """Numbers for objects, from 1 on, in the order in which they are first seen (restrack ids)."""

    def __init__(self) -> None:
        self._next = itertools.count(1)
        self._known: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._inside: WeakKeyDictionary[object, dict[str, Numbers]] = WeakKeyDictionary()

    def of(self, thing: object) -> int:
        number = self._known.get(thing)
        if number is None:
            number = self._known[thing] = next(self._next)
        return number

    def inside(self, parent: object, kind: str) -> Numbers:
        """The numbers of one kind of object within `parent`."""
        return self._inside.setdefault(parent, {}).setdefault(kind, Numbers())


def contexts_json(contexts: Sequence[Context], numbers: Numbers) -> Iterator[bytes]:
    """A JSON array with one object a Context, in parts that are quick to make.

    Each has `ctxn`, `device`, `locked` (false: read while the program held the lock), `refused`
    (connections that a full backlog turned away), `counters`, and the rows of each kind of
    resource: `pd`, `cq`, `qp`, `cm_id`, `mr`, `srq`.
    """
    yield b"["
    separator = b""
    for context in sorted(contexts, key=numbers.of):
        if context.closed:
            continue
        yield separator
        yield from _context_json(context, numbers)
        separator = b", "
    yield b"]"


def context_rows(context: Context, numbers: Numbers) -> Row:
    """The same for one Context, as an object."""
    document: Row = json.loads(b"".join(_context_json(context, numbers)))
    return document


def _context_json(context: Context, numbers: Numbers) -> Iterator[bytes]:
    with _locked(context) as locked:
        handlers = context.loop.handlers()
        qps = list(context.rnic.qps.values())
        members = [(pd, list(inside)) for pd, inside in list(context.rnic.pds.items())]
        counters = _total(context)
    listeners = [handler for handler in handlers if isinstance(handler, Listener)]
    head = {
        "ctxn": numbers.of(context),
        "device": context.name,
        "locked": locked,
        "refused": sum(listener.refused for listener in listeners),
        "counters": named_counters(counters),
    }
    yield json.dumps(head)[:-1].encode()
    flat = [thing for _, inside in members for thing in inside]
    cqs = [child for child in context.children if isinstance(child, CQ)]
    yield from _rows_json(context, "pd", members, lambda pd: _pd_row(*pd))
    cq_numbers = numbers.inside(context, "cq")
    yield from _rows_json(context, "cq", cqs, lambda cq: _cq_row(cq, qps, cq_numbers))
    yield from _rows_json(context, "qp", qps, lambda qp: _qp_row(qp, cqs, cq_numbers))
    cm_ids = _CmIds(context, handlers, numbers.inside(context, "cm_id"))
    yield from _rows_json(context, "cm_id", cm_ids.all(), cm_ids.row)
    yield from _rows_json(context, "mr", [t for t in flat if isinstance(t, Region)], _mr_row)
    srqs = [thing for thing in flat if isinstance(thing, SharedReceiveQueue)]
    srq_numbers = numbers.inside(context, "srq")
    yield from _rows_json(context, "srq", srqs, lambda srq: _srq_row(srq, qps, srq_numbers))
    yield b"}"


def _rows_json(
    context: Context, kind: str, things: Iterable[T], row: Callable[[T], Row]
) -> Iterator[bytes]:
    """One array; each row of it encoded by itself, without the Context's lock."""
    yield f', "{kind}": ['.encode()
    separator = ""
    remaining = iter(things)
    while batch := list(itertools.islice(remaining, _SLICE)):
        with _locked(context):
            rows = [row(thing) for thing in batch]
        for one in rows:
            yield (separator + json.dumps(one)).encode()
            separator = ", "
    yield b"]"


@contextmanager
def _locked(context: Context) -> Iterator[bool]:
    """The Context's lock, if it is to be had soon.

    Where it isn't, a program that drives its progress itself sleeps with it: nothing moves then,
    and what is read is right without it. A busy one may be read between two of its steps.
    """
    lock = context.loop.lock
    taken = lock.acquire(timeout=_LOCK_SECONDS)
    try:
        yield taken
    finally:
        if taken:
            lock.release()


# -- counters ------------------------------------------------------------------------------------


def _total(context: Context) -> Counters:
    """Of all queue pairs, destroyed ones included."""
    total = Counters()
    total.add(context.rnic.closed_counters)
    for qp in list(context.rnic.qps.values()):
        total.add(qp.counters)
    return total


def named_counters(counters: Counters) -> dict[str, int]:
    """By the names that `rdma statistic` prints."""
    return {COUNTER_NAMES.get(name, name): value for name, value in asdict(counters).items()}


# -- rows ----------------------------------------------------------------------------------------


def _pd_row(pd: int, members: Sequence[object]) -> Row:
    return {"pdn": pd, "users": len(members)}


def _cq_row(cq: CQ, qps: Sequence[QueuePair], numbers: Numbers) -> Row:
    return {
        "cqn": numbers.of(cq),
        "cqe": cq.cqe,
        "users": sum(qp.uses(cq.queue) for qp in qps),
        "drv_entries": len(cq.queue.entries),
        "drv_overrun": int(cq.overrun),
    }


def _qp_row(qp: QueuePair, cqs: Sequence[CQ], numbers: Numbers) -> Row:
    # iWARP has no queue pair number of the peer, no packet sequence numbers and no path migration:
    # the kernel's iWARP drivers leave these at their zeros.
    row: Row = {
        "port": PORT,
        "lqpn": qp.qp_num,
        "rqpn": 0,
        "type": "RC",
        "state": _QP_STATE.get(qp.state.name, qp.state.name),
        "rq-psn": 0,
        "sq-psn": 0,
        "path-mig-state": "MIGRATED",
        "pdn": qp.pd,
        "drv_state": qp.state.name,
        "drv_crc": int(qp.tx.crc),
        "drv_ird": qp.inbound.ird,
        "drv_ord": qp.tx.ord,
        "drv_sq": f"{qp.tx.depth()}/{qp.cap.max_send_wr}",
        "drv_rq": f"{len(qp.inbound.rq)}/{qp.cap.max_recv_wr}",
        "drv_cqn": ",".join(str(numbers.of(cq)) for cq in cqs if qp.uses(cq.queue)),
        "counters": named_counters(qp.counters),
    }
    if qp.end_reason:
        row["drv_end"] = qp.end_reason
    return row


def _mr_row(region: Region) -> Row:
    return {
        "mrn": region.stag >> 8,
        "rkey": f"{region.stag:x}",
        "lkey": f"{region.stag:x}",
        "iova": f"{region.base:x}",
        "mrlen": region.length,
        "pdn": region.pd,
        "drv_access": f"{region.access:#x}",
        "drv_windows": len(region.windows),
    }


def _srq_row(srq: SharedReceiveQueue, qps: Sequence[QueuePair], numbers: Numbers) -> Row:
    row: Row = {"srqn": numbers.of(srq), "type": "BASIC"}
    users = [qp.qp_num for qp in qps if qp.srq is srq]
    if users:
        row["lqpn"] = users
    return {**row, "pdn": srq.pd, "drv_rq": f"{len(srq.rq)}/{srq.max_wr}", "drv_limit": srq.limit}


class _CmIds:
    """The CMIDs of a Context, with what serves them; and connections that no CMID has yet."""

    def __init__(self, context: Context, handlers: Sequence[Handler], numbers: Numbers) -> None:
        self._numbers = numbers
        drivers = [handler for handler in handlers if isinstance(handler, StreamDriver)]
        self._listeners = [handler for handler in handlers if isinstance(handler, Listener)]
        self._of_qp = {driver.connection.qp: driver for driver in drivers}
        pds = [child for child in context.children if isinstance(child, PD)]
        self._cmids = [cmid for pd in pds for cmid in pd.children if isinstance(cmid, CMID)]
        self._half_open = [
            driver for driver in drivers if driver.connection.state in _BEFORE_A_QUEUE_PAIR
        ]

    def all(self) -> list[CMID | StreamDriver]:
        taken = {_ends(cmid) for cmid in self._cmids}
        free = [driver for driver in self._half_open if _ends(driver.stream) not in taken]
        return [*self._cmids, *free]

    def row(self, thing: CMID | StreamDriver) -> Row:
        row: Row = {"port": PORT, "cm-idn": self._numbers.of(thing)}
        if isinstance(thing, StreamDriver):
            row |= {"state": CmState.CONNECT.name, "ps": "TCP"}
            return {**row, **_addresses(thing.stream), **_set_up(thing.connection)}
        if thing.qp is not None:
            row |= {"lqpn": thing.qp.qp_num, "qp-type": "RC"}
        row |= {"state": thing.state.name, "ps": "TCP", **_addresses(thing)}
        if thing.state is CmState.LISTEN:
            return {**row, **self._listening(thing)}
        driver = self._of_qp.get(thing.qp.core) if thing.qp is not None else None
        return row if driver is None else {**row, **_set_up(driver.connection)}

    def _listening(self, cmid: CMID) -> Row:
        for listener in self._listeners:
            if _name(listener.socket, "getsockname") == _name(cmid, "getsockname"):
                requests = f"{len(listener.requests)}/{listener.backlog}"
                return {"drv_requests": requests, "drv_refused": listener.refused}
        return {}


def _set_up(connection: Connection) -> Row:
    return {"drv_mpa": connection.state.name, "drv_revision": connection.revision}


def _addresses(thing: object) -> Row:
    """`host:port` of both ends as rdma(8) writes them; none for a stream without addresses."""
    ends = zip(("src-addr", "dst-addr"), _ends(thing), strict=True)
    return {key: f"{name[0]}:{name[1]}" for key, name in ends if name is not None}


def _ends(thing: object) -> tuple[tuple[object, ...] | None, tuple[object, ...] | None]:
    return _name(thing, "getsockname"), _name(thing, "getpeername")


class _Named(Protocol):
    def __call__(self) -> object: ...


def _name(thing: object, method: str) -> tuple[object, ...] | None:
    """The host and the port that a socket or a CMID says it has."""
    ask: _Named | None = getattr(thing, method, None)
    if ask is None:
        return None
    try:
        name = ask()
    except OSError:
        return None  # none yet, or it was closed meanwhile
    return name[:2] if isinstance(name, tuple) and len(name) >= 2 else None
