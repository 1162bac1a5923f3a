"""States of a connection's set-up (RFC 5044 section 7.1, RFC 6581; Linux: `enum siw_cep_state`).

Everything that changes the state goes through `step`. A (state, event) pair that is missing from
TRANSITIONS is a bug of the caller; `docs/tools/draw_states.py` draws the table.
"""

from enum import IntEnum, auto
from typing import Final

from steertag.rdma.state_table import next_state


class MpaState(IntEnum):
    WAIT_REPLY = auto()  # initiator: the Request is on its way
    WAIT_REQUEST = auto()  # responder: the stream is up, nothing read yet
    REQUESTED = auto()  # responder: the application accepts or rejects
    WAIT_RTR = auto()  # responder in peer-to-peer mode: accepted, ready-to-receive is to come
    ESTABLISHED = auto()  # FPDUs flow: the queue pair has the stream
    REJECTED = auto()  # a Reply with the R flag was sent or received
    FAILED = auto()  # wrong bytes, time-out, or the stream was lost


class MpaEvent(IntEnum):
    REQUEST_RECEIVED = auto()
    REPLY_RECEIVED = auto()
    REJECT_RECEIVED = auto()
    ACCEPT = auto()
    ACCEPT_PEER_TO_PEER = auto()
    RTR_RECEIVED = auto()
    REJECT = auto()
    FAIL = auto()


_S, _E = MpaState, MpaEvent

TRANSITIONS: Final[dict[tuple[MpaState, MpaEvent], MpaState]] = {
    (_S.WAIT_REPLY, _E.REPLY_RECEIVED): _S.ESTABLISHED,
    (_S.WAIT_REPLY, _E.REJECT_RECEIVED): _S.REJECTED,
    (_S.WAIT_REPLY, _E.FAIL): _S.FAILED,
    (_S.WAIT_REQUEST, _E.REQUEST_RECEIVED): _S.REQUESTED,
    (_S.WAIT_REQUEST, _E.FAIL): _S.FAILED,
    (_S.REQUESTED, _E.ACCEPT): _S.ESTABLISHED,
    (_S.REQUESTED, _E.ACCEPT_PEER_TO_PEER): _S.WAIT_RTR,
    (_S.REQUESTED, _E.REJECT): _S.REJECTED,
    (_S.REQUESTED, _E.FAIL): _S.FAILED,
    (_S.WAIT_RTR, _E.RTR_RECEIVED): _S.ESTABLISHED,
    (_S.WAIT_RTR, _E.FAIL): _S.FAILED,
    (_S.REJECTED, _E.FAIL): _S.REJECTED,
    (_S.FAILED, _E.FAIL): _S.FAILED,
}


def step(state: MpaState, event: MpaEvent) -> MpaState:
    """The state that `event` leads to. Raises StateError where it may not happen."""
    return next_state(TRANSITIONS, state, event)
