"""States of a CMID (Linux: `enum rdma_cm_state`), and what may be called in each.

A call that isn't in TRANSITIONS for the state is the program's mistake: EINVAL, as in librdmacm.
How far the set-up of a connection in CONNECT has come is its `MpaState`.
"""

import errno
from enum import IntEnum, auto
from typing import Final

from steertag.errors import os_error


class CmState(IntEnum):
    """Numbers are `enum rdma_cm_state`'s; the queries in between take no time here."""

    IDLE = 0  # made, and told no address
    ADDR_RESOLVED = 2  # there is a way to the destination
    ROUTE_RESOLVED = 4  # it can connect
    CONNECT = 5  # being connected, requested by a peer, or connected
    DISCONNECT = 6  # rejected, or disconnected by either side
    ADDR_BOUND = 7  # it has a source address, to listen on or to connect from
    LISTEN = 8  # it takes connection requests
    DESTROYING = 10  # closed


class CmCall(IntEnum):
    BIND_ADDR = auto()
    RESOLVE_ADDR = auto()
    RESOLVE_ROUTE = auto()
    CREATE_EP = auto()  # made of an AddrInfo: nothing is left to resolve
    LISTEN = auto()
    CONNECT = auto()
    ADOPT = auto()  # a stream that is connected already, or a listener's request
    FAIL = auto()  # to connect: it may be tried again
    END = auto()  # rejected, or disconnected by either side
    DESTROY = auto()


_S, _C = CmState, CmCall

TRANSITIONS: Final[dict[tuple[CmState, CmCall], CmState]] = {
    (_S.IDLE, _C.BIND_ADDR): _S.ADDR_BOUND,
    (_S.IDLE, _C.RESOLVE_ADDR): _S.ADDR_RESOLVED,
    (_S.IDLE, _C.CREATE_EP): _S.ROUTE_RESOLVED,
    (_S.IDLE, _C.LISTEN): _S.LISTEN,
    (_S.IDLE, _C.ADOPT): _S.CONNECT,
    (_S.ADDR_BOUND, _C.RESOLVE_ADDR): _S.ADDR_RESOLVED,
    (_S.ADDR_BOUND, _C.LISTEN): _S.LISTEN,
    (_S.ADDR_RESOLVED, _C.RESOLVE_ADDR): _S.ADDR_RESOLVED,
    (_S.ADDR_RESOLVED, _C.RESOLVE_ROUTE): _S.ROUTE_RESOLVED,
    (_S.ROUTE_RESOLVED, _C.CONNECT): _S.CONNECT,
    (_S.ROUTE_RESOLVED, _C.ADOPT): _S.CONNECT,
    (_S.CONNECT, _C.FAIL): _S.ROUTE_RESOLVED,
    (_S.CONNECT, _C.END): _S.DISCONNECT,
    **{(state, _C.DESTROY): _S.DESTROYING for state in CmState},
}


def step(state: CmState, call: CmCall) -> CmState:
    """The state that `call` leads to. Raises OSError EINVAL where it may not be made."""
    after = TRANSITIONS.get((state, call))
    if after is None:
        raise os_error(errno.EINVAL, f"{call.name.lower()} on a CMID in state {state.name}")
    return after
