"""The verbs for asyncio: what waits is a coroutine, the rest are the calls of `steertag.verbs`.

Everything waits on descriptors that the event loop watches: no thread is needed, and none is busy.
A cancelled wait takes nothing away: a completion or a connection request that it would have got is
the next one's. All of it belongs to the thread of the event loop.
"""

from steertag.verbs.aio.calls import addrinfo, get_cm_event, get_cq_event
from steertag.verbs.aio.cmid import CMID
from steertag.verbs.aio.completion import CQ, submit, submit_all
from steertag.verbs.aio.context import Context

__all__ = [
    "CMID",
    "CQ",
    "Context",
    "addrinfo",
    "get_cm_event",
    "get_cq_event",
    "submit",
    "submit_all",
]
