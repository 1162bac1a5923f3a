"""The verbs API that applications import; names and call shapes as in pyverbs.

Everything is importable from here. Objects are context managers; closing a `Context` closes what
was made from it.
"""

from steertag.rdma.constants import WcStatus
from steertag.rdma.counters import Counters
from steertag.verbs.addrinfo import AddrInfo
from steertag.verbs.cm_error import ConnectError
from steertag.verbs.cm_event import CMEvent, CMEventChannel, CMEventType
from steertag.verbs.cmid import CMID
from steertag.verbs.conn_param import ConnParam
from steertag.verbs.cq import CQ, WC, CompChannel
from steertag.verbs.device import PD, Context, Device, get_device_list
from steertag.verbs.enums import *  # noqa: F403
from steertag.verbs.mr import MR
from steertag.verbs.qp import QP, SGE, QPCap, QPInitAttr, RecvWR, SendWR

__all__ = [
    "CMID",
    "CQ",
    "MR",
    "PD",
    "QP",
    "SGE",
    "WC",
    "AddrInfo",
    "CMEvent",
    "CMEventChannel",
    "CMEventType",
    "CompChannel",
    "ConnParam",
    "ConnectError",
    "Context",
    "Counters",
    "Device",
    "QPCap",
    "QPInitAttr",
    "RecvWR",
    "SendWR",
    "WcStatus",
    "get_device_list",
]
