"""States of a queue pair (RFC 5040 section 6.2; iWARP verbs; Linux: `enum siw_qp_state`).

Everything that changes a QP's state goes through `step`. A (state, event) pair that is missing
from TRANSITIONS is a bug of the caller; `docs/tools/draw_states.py` draws the table.
"""

from enum import IntEnum, auto
from typing import Final

from steertag.rdma.state_table import next_state


class QpState(IntEnum):
    RESET = auto()  # as good as new
    INIT = auto()  # receives may be posted; where an iWARP queue pair begins (siw's IDLE)
    RTS = auto()  # FPDUs flow
    SQD = auto()  # what has begun on the send queue is finished, nothing else is begun
    CLOSING = auto()  # what is posted is sent, then the stream is closed
    TERMINATE = auto()  # a Terminate is on its way out; nothing else is sent or taken
    ERROR = auto()  # the stream is gone; every request is flushed


class QpEvent(IntEnum):
    MODIFY_RESET = auto()  # `ibv_modify_qp` to the state of that name, as the next four
    MODIFY_INIT = auto()
    MODIFY_RTS = auto()
    MODIFY_SQD = auto()
    MODIFY_ERROR = auto()
    CONNECTED = auto()
    CLOSE = auto()  # the application disconnects
    DRAINED = auto()  # CLOSING or TERMINATE: the last octet was handed to the stream
    PEER_CLOSED = auto()  # FIN: the peer sends no more, and by RFC 5044 takes no more
    PROTOCOL_ERROR = auto()  # found here: the peer is told
    TERMINATED = auto()  # the peer's Terminate arrived
    STREAM_LOST = auto()


_S, _E = QpState, QpEvent

TRANSITIONS: Final[dict[tuple[QpState, QpEvent], QpState]] = {
    (_S.RESET, _E.MODIFY_RESET): _S.RESET,
    (_S.RESET, _E.MODIFY_INIT): _S.INIT,
    (_S.RESET, _E.CLOSE): _S.ERROR,
    (_S.INIT, _E.MODIFY_RESET): _S.RESET,
    (_S.INIT, _E.MODIFY_INIT): _S.INIT,
    (_S.INIT, _E.CONNECTED): _S.RTS,
    (_S.INIT, _E.CLOSE): _S.ERROR,
    (_S.RTS, _E.MODIFY_RTS): _S.RTS,
    (_S.RTS, _E.MODIFY_SQD): _S.SQD,
    (_S.RTS, _E.CLOSE): _S.CLOSING,
    (_S.RTS, _E.PEER_CLOSED): _S.ERROR,
    (_S.RTS, _E.PROTOCOL_ERROR): _S.TERMINATE,
    (_S.RTS, _E.TERMINATED): _S.ERROR,
    (_S.SQD, _E.MODIFY_RTS): _S.RTS,
    (_S.SQD, _E.MODIFY_SQD): _S.SQD,
    (_S.SQD, _E.CLOSE): _S.CLOSING,
    (_S.SQD, _E.PEER_CLOSED): _S.ERROR,
    (_S.SQD, _E.PROTOCOL_ERROR): _S.TERMINATE,
    (_S.SQD, _E.TERMINATED): _S.ERROR,
    (_S.CLOSING, _E.CLOSE): _S.CLOSING,
    (_S.CLOSING, _E.DRAINED): _S.ERROR,
    (_S.CLOSING, _E.PEER_CLOSED): _S.ERROR,
    (_S.CLOSING, _E.PROTOCOL_ERROR): _S.TERMINATE,
    (_S.CLOSING, _E.TERMINATED): _S.ERROR,
    (_S.TERMINATE, _E.CLOSE): _S.TERMINATE,
    (_S.TERMINATE, _E.DRAINED): _S.ERROR,
    (_S.TERMINATE, _E.PEER_CLOSED): _S.ERROR,
    (_S.ERROR, _E.MODIFY_RESET): _S.RESET,
    (_S.ERROR, _E.CLOSE): _S.ERROR,
    (_S.ERROR, _E.PEER_CLOSED): _S.ERROR,
    **{(state, _E.MODIFY_ERROR): _S.ERROR for state in QpState},
    **{(state, _E.STREAM_LOST): _S.ERROR for state in QpState},
}


def step(state: QpState, event: QpEvent) -> QpState:
    """The state that `event` leads to. Raises StateError where it may not happen."""
    return next_state(TRANSITIONS, state, event)
