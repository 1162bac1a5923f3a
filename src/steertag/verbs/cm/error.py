"""Why a connection could not be set up."""

from __future__ import annotations

import errno
from typing import Final

from steertag.rdma.connection import Connection
from steertag.verbs.cm.event import CMEventType

_ERRNO_OF: Final = {
    "rejected": errno.ECONNREFUSED,
    "timeout": errno.ETIMEDOUT,
    "closed": errno.ECONNRESET,
    "lost": errno.ECONNRESET,
    "aborted": errno.ECONNABORTED,
}
_EVENT_OF: Final = {
    errno.ECONNREFUSED: CMEventType.RDMA_CM_EVENT_REJECTED,
    errno.ECONNRESET: CMEventType.RDMA_CM_EVENT_REJECTED,
    errno.ETIMEDOUT: CMEventType.RDMA_CM_EVENT_UNREACHABLE,
    errno.EHOSTUNREACH: CMEventType.RDMA_CM_EVENT_UNREACHABLE,
    errno.ENETUNREACH: CMEventType.RDMA_CM_EVENT_UNREACHABLE,
}


class ConnectError(OSError):
    """A connection could not be set up.

    Attributes:
        errno: ECONNREFUSED (rejected), ETIMEDOUT, ECONNRESET, ECONNABORTED (disconnected by the
            program meanwhile) or EPROTO (no iWARP peer there, or none to agree with).
        code: rejected, timeout, closed, lost, aborted, garbled, revision, ...: one word.
        private_data: the peer's, with a rejection.
    """

    def __init__(self, code: str, reason: str, private_data: bytes = b"") -> None:
        super().__init__(_ERRNO_OF.get(code, errno.EPROTO), reason)
        self.code = code
        self.private_data = private_data

    @classmethod
    def of(cls, connection: Connection) -> ConnectError:
        """Of a set-up that has ended."""
        return cls(connection.code, connection.reason, connection.private_data)


def event_of(error: OSError) -> CMEventType:
    """The event that tells an active side of `error` (Linux: `cma_iw_handler`)."""
    return _EVENT_OF.get(error.errno or 0, CMEventType.RDMA_CM_EVENT_CONNECT_ERROR)
